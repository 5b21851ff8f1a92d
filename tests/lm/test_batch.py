"""A batch is a dry run that lists what the cache lacks; its answers enter the cache and the real run finds them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from iclkit.errors import ModelError, RunError, UsageError
from iclkit.lm import GenerateRequest, ScoreRequest, answer_by_batch
from iclkit.lm._cache import Cache, NoCache
from iclkit.lm._cached import cached
from iclkit.lm._servers import open_openai

from .openai_server import ToyServer

Start = Callable[..., ToyServer]
ASKED = [
    *(ScoreRequest(f"{n} is", label) for n in range(4) for label in ("positive", "negative")),
    *(GenerateRequest(f"Tell me {n}:", 4) for n in range(3)),
]


def opened(server: ToyServer, path: Path, **settings: Any) -> Any:
    return cached(open_openai(f"openai:toy@{server.url}", backoff=0.01, **settings), Cache(path))


def ask(lm: Any, asked: Any = ASKED) -> tuple[Any, Any]:
    return (
        lm.score([r for r in asked if isinstance(r, ScoreRequest)]),
        lm.generate([r for r in asked if isinstance(r, GenerateRequest)]),
    )


def by_batch(lm: Any, folder: Path, asked: Any = ASKED) -> list[str]:
    told: list[str] = []
    answer_by_batch(lm, lambda: lm.estimate(asked), told.append, folder=folder, poll=0.01)
    return told


def test_what_the_cache_lacks_is_answered_by_a_batch_and_the_run_asks_nothing(start: Start, tmp_path: Path):
    server = start("chat", "choice", "batch")
    want = ask(opened(server, tmp_path / "direct.db"))
    lm = opened(server, tmp_path / "c.db")
    lm.generate([r for r in ASKED if isinstance(r, GenerateRequest)][:1])  # known before
    server.waits = 2
    server.asked.clear()
    told = by_batch(lm, tmp_path / "batches")
    assert server.asked["/v1/chat/completions"] == 0
    assert len(server.files["file-1"].splitlines()) == 4 + 2
    assert any("in_progress" in line for line in told)
    assert ask(lm) == want
    assert server.asked["/v1/chat/completions"] == 0
    assert [*(tmp_path / "batches").iterdir()] == []


def test_a_batch_under_way_is_gone_on_with(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    server = start("chat", "choice", "batch")
    server.waits = 1

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("iclkit.lm._servers._batch.time.sleep", interrupt)
        with pytest.raises(KeyboardInterrupt):
            by_batch(opened(server, tmp_path / "c.db"), tmp_path / "batches")
    lm = opened(server, tmp_path / "c.db")
    by_batch(lm, tmp_path / "batches")
    assert (server.asked["/v1/files"], server.asked["/v1/batches"]) == (1, 1)
    server.asked.clear()
    ask(lm)
    assert server.asked["/v1/chat/completions"] == 0


def test_an_answer_of_a_batch_that_broke_off_is_asked_for_by_the_run(start: Start, tmp_path: Path):
    server = start("chat", "choice", "batch")
    lm = opened(server, tmp_path / "c.db")
    inner = server.batch

    def broken(path: str, body: Any) -> Any:
        status, answer = inner(path, body)
        return status, answer.replace(b'"finish_reason": "length"', b'"finish_reason": "error"') if path.endswith(
            "/content"
        ) else answer

    server.batch = broken  # type: ignore[method-assign]
    asked = [GenerateRequest(f"Tell me {n}:", 4) for n in range(3)]
    by_batch(lm, tmp_path / "batches", asked)
    server.asked.clear()
    assert all(answer.text for answer in lm.generate(asked))
    assert server.asked["/v1/chat/completions"] == 3


def test_lines_that_failed_are_asked_by_the_run_itself(start: Start, tmp_path: Path):
    server = start("chat", "choice", "batch")
    asked = [*ASKED, GenerateRequest("bad", 3)]
    lm = opened(server, tmp_path / "c.db")
    by_batch(lm, tmp_path / "batches", asked)
    server.asked.clear()
    assert len(ask(lm, asked)[1]) == 4
    assert server.asked["/v1/chat/completions"] == 1


def test_a_batch_that_fails_is_one_line_and_is_submitted_again(start: Start, tmp_path: Path):
    server = start("chat", "choice", "batch")
    server.ends = "failed"
    lm = opened(server, tmp_path / "c.db")
    with pytest.raises(ModelError, match="batch batch_1 failed: no credit; the same command submits it again"):
        by_batch(lm, tmp_path / "batches")
    server.ends = "completed"
    by_batch(lm, tmp_path / "batches")
    assert server.asked["/v1/batches"] == 2


def test_a_server_without_batches_and_an_lm_without_cache_are_one_line(start: Start, tmp_path: Path):
    server = start("chat", "choice")
    with pytest.raises(ModelError, match="answered 404"):
        by_batch(opened(server, tmp_path / "c.db"), tmp_path / "batches")
    with pytest.raises(UsageError, match="needs the LM cache"):
        by_batch(cached(open_openai(f"openai:toy@{server.url}"), NoCache()), tmp_path)


def test_a_batch_costs_half_and_is_not_sent_where_it_may_cost_too_much(start: Start, tmp_path: Path):
    server = start("chat", "choice", "batch")
    price = "in=0,out=1000000"
    asked = [GenerateRequest(f"Tell me {n}:", 10) for n in range(3)]
    direct = opened(server, tmp_path / "d.db", price=price)
    probing = direct.usage.cost
    direct.generate(asked)
    lm = opened(server, tmp_path / "c.db", price=price)
    by_batch(lm, tmp_path / "batches", asked)
    assert lm.generate(asked) == direct.generate(asked)
    assert lm.usage.cost - probing == pytest.approx((direct.usage.cost - probing) / 2)
    poor = opened(server, tmp_path / "e.db", price=price, max_cost=1000)
    with pytest.raises(RunError, match="--max-cost"):
        by_batch(poor, tmp_path / "batches", [GenerateRequest(f"Tell me {n}:", 1000) for n in range(3)])
    assert server.asked["/v1/batches"] == 1


def test_eval_by_batch_makes_the_run_that_eval_makes(start: Start, tmp_path: Path, monkeypatch, capsys):
    from iclkit.cli import main

    server = start("chat", "choice", "batch")
    (folder := tmp_path / "task").mkdir()
    for name, count in (("train", 8), ("test", 4)):
        rows = [{"input": f"{name} {n}", "output": ("positive", "negative")[n % 2]} for n in range(count)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    found = []
    for way in ([], ["--batch"]):
        monkeypatch.setenv("ICLKIT_HOME", str(tmp_path / f"home{len(way)}"))
        server.asked.clear()
        args = ["eval", str(folder), "-s", "random", "-k", "2", "--seeds", "1", "--json", *way]
        args += ["--lm", f"openai:toy@{server.url},context=4000", "--out", str(tmp_path / f"runs{len(way)}")]
        with pytest.raises(SystemExit) as ended:
            main(args)
        out, err = capsys.readouterr()
        assert (ended.value.code, "Traceback" in err) == (0, False)
        found.append([line["figure"] for group in json.loads(out)["groups"] for line in group["lines"]])
    assert found[0] == found[1]
    assert server.asked["/v1/batches"] == 1
