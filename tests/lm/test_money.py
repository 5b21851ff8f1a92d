"""What answers cost: said before, counted while they come, and never more than was allowed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from iclkit.errors import DataError, RunError, UsageError
from iclkit.lm import GenerateRequest, ScoreRequest, load_lm
from iclkit.lm._cache import Cache
from iclkit.lm._cached import cached
from iclkit.lm._servers import open_openai
from iclkit.lm._servers._money import Prices, Purse, read_prices

from .openai_server import ToyServer, tokenize

Start = Callable[..., ToyServer]


def test_prices_are_read_as_typed_and_from_files_of_either_kind(tmp_path: Path):
    assert read_prices("in=0.15, out=0.6", "m") == Prices(0.15, 0.6, 0.15)
    assert read_prices("in=1,out=4,cached=0.1", "m") == Prices(1, 4, 0.1)
    assert read_prices("in=1,out=4", "m", batch=True) == Prices(0.5, 2, 0.5)
    file = tmp_path / "prices.json"
    file.write_text(json.dumps({
        "ours": {"in": 2, "out": 8},
        "gpt": {"input_cost_per_token": 1e-6, "output_cost_per_token": 4e-6, "input_cost_per_token_batches": 4e-7},
    }))  # fmt: skip
    assert read_prices(str(file), "ours") == Prices(2, 8, 2)
    assert read_prices(str(file), "openai/gpt").output == pytest.approx(4)
    assert read_prices(str(file), "gpt", batch=True).input == pytest.approx(0.4)
    with pytest.raises(DataError, match="has no price for 'other'"):
        read_prices(str(file), "other")


def test_a_price_file_tells_the_context_where_the_server_does_not(start: Start, tmp_path: Path):
    file = tmp_path / "prices.json"
    prices = {"input_cost_per_token": 1e-6, "output_cost_per_token": 4e-6}
    file.write_text(json.dumps({"toy": {**prices, "max_input_tokens": 200_000}, "other": {**prices, "in": 1}}))
    lm = open_openai(f"openai:toy@{start('chat').url}", price=str(file))
    assert (lm.context_size, lm.can.context_from) == (200_000, "the price file")
    assert not any("assumed" in note for note in lm.notes)
    told = open_openai(f"openai:toy@{start('chat', 'models').url}", price=str(file))
    assert (told.context_size, told.can.context_from) == (500, "/models")
    lm = open_openai(f"openai:other@{start('chat').url}", price=str(file))
    assert lm.context_size == 4096
    assert any("4096 is assumed" in note for note in lm.notes)


@pytest.mark.parametrize(
    "text", ["in=1", "in=1,out=-2", "in=1,out=nan", "in=1,out=2,tax=3", "in=one,out=2", "in=inf,out=1"]
)
def test_a_price_that_is_none_is_one_line(text: str):
    with pytest.raises(UsageError, match="--price"):
        read_prices(text, "m")


def test_the_cost_is_that_of_the_tokens_the_server_counts_less_what_its_cache_knew(start: Start):
    server = start("completions", "echo", "tokenize", "models")
    lm = open_openai(f"openai:toy@{server.url}", price="in=1000000,out=2000000,cached=500000")
    before = lm.usage.cost
    assert before > 0  # finding out what the server can do is paid for as well
    lm.generate([GenerateRequest("Tell me a story of some length:", 3)])
    size = len(tokenize("Tell me a story of some length:"))
    assert lm.usage.cost - before == pytest.approx(size + 2 * 3)
    before = lm.usage.cost
    lm.generate([GenerateRequest("Tell me a story of some length:", 2)])
    assert lm.usage.cost - before == pytest.approx(size - 16 / 2 + 2 * 2)


def test_the_estimate_is_not_below_what_labels_cost(start: Start):
    for offers in (("completions", "logprobs", "tokenize"), ("completions", "echo")):
        lm = open_openai(f"openai:toy@{start(*offers).url}", price="in=1,out=3")
        asked = [ScoreRequest(f"{n} is", label) for n in range(3) for label in (" positive", " pos in", " x")]
        before, said = lm.usage.cost, lm.estimate(asked).cost
        lm.score(asked)
        assert 0 < lm.usage.cost - before <= (said or 0)
    assert lm.estimate(asked[:0]).cost == 0


def test_a_limit_stops_before_it_is_passed_and_a_higher_one_goes_on(start: Start, tmp_path: Path):
    server = start("completions", "echo", "tokenize", "models")
    asked = [GenerateRequest(f"{n} is in", 4) for n in range(30)]
    store, spec = Cache(tmp_path / "c.db"), f"openai:toy@{server.url}"
    lm = cached(open_openai(spec, price="in=1000000,out=1000000", max_cost=400, concurrency=8), store)
    opened = lm.inner.usage.cost  # type: ignore[attr-defined]
    with pytest.raises(RunError, match=r"before going over --max-cost 400: .* is spent") as caught:
        lm.generate(asked)
    assert "\n" not in str(caught.value)
    assert opened < lm.usage.cost <= 400  # what was asked to open it counts, too
    again = cached(open_openai(spec, price="in=1000000,out=1000000", max_cost=10_000), store)
    before = server.asked["/v1/completions"]
    assert len(again.generate(asked)) == 30
    assert 0 < server.asked["/v1/completions"] - before < 30


def test_requests_that_fail_cost_nothing_and_release_what_was_set_aside():
    purse = Purse(Prices(1e6, 1e6, 1e6), 10)
    first = purse.reserve(4, 4)
    with pytest.raises(RunError):
        purse.reserve(2, 1)
    purse.settle(first, 0.0)
    purse.settle(purse.reserve(5, 5), 7.0)
    assert purse.spent == 7
    with pytest.raises(UsageError, match="--max-cost"):
        Purse(Prices(1, 1, 1), -1.0)


def test_a_price_for_what_costs_nothing_and_a_limit_without_a_price_are_refused():
    with pytest.raises(UsageError, match="costs nothing"):
        load_lm("smollm2-135m", price="in=1,out=2")
    with pytest.raises(UsageError, match="needs prices"):
        open_openai("openai:toy@http://127.0.0.1:9", max_cost=1.0)


def test_a_run_says_and_records_what_it_cost(start: Start, tmp_path: Path, monkeypatch, capsys):
    from iclkit.cli import main

    monkeypatch.setenv("ICLKIT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "200")  # a narrow board has no cost
    server = start("completions", "echo", "tokenize", "models", window=4000)
    folder = tmp_path / "task"
    folder.mkdir()
    for name, count in (("train", 8), ("test", 4)):
        rows = [{"input": f"{name} {n}", "output": ("positive", "negative")[n % 2]} for n in range(count)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    args = ["eval", str(folder), "-s", "random", "-k", "2", "--seeds", "1", "--lm", f"openai:toy@{server.url}",
            "--out", str(tmp_path / "runs"), "--price", "in=10,out=10"]  # fmt: skip
    for more, words in ((["--dry-run"], "cost, about"), ([], "at these prices")):
        with pytest.raises(SystemExit) as ended:
            main([*args, *more])
        out, err = capsys.readouterr()
        assert ended.value.code == 0
        assert words in out + err
    (spent,) = _spent(tmp_path / "runs")
    assert spent > 0
    assert f"openai:toy@{server.url}: spent " in err
    assert "cost / 1,000" in out
    with pytest.raises(SystemExit):
        main(["leaderboard", str(tmp_path / "runs"), "--json"])
    lines = [line for group in json.loads(capsys.readouterr().out)["groups"] for line in group["lines"]]
    assert [line["cost"] for line in lines if line["cost"]] == [pytest.approx(spent / 4)]


def _spent(runs: Path) -> list[float]:
    found = [json.loads(path.read_text())["spent"].get("cost", 0) for path in runs.glob("*/run.json")]
    return [cost for cost in found if cost]


def test_a_run_that_the_limit_stops_records_what_it_spent_and_goes_on(
    start: Start, tmp_path: Path, monkeypatch, capsys
):
    from iclkit.cli import main

    monkeypatch.setenv("ICLKIT_HOME", str(tmp_path / "home"))
    server = start("completions", "echo", "tokenize", "models", window=4000)
    rows = [{"input": f"text {n}", "output": ("positive", "negative")[n % 2]} for n in range(8)]
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    args = ["eval", str(tmp_path), "-s", "random", "-k", "1", "--seeds", "1", "--predictor", "none", "--out",
            str(tmp_path / "runs"), "--price", "in=1000000,out=1000000",
            "--lm", f"openai:toy@{server.url},concurrency=1"]  # fmt: skip
    with pytest.raises(SystemExit) as ended:
        main([*args, "--max-cost", "600"])
    err = capsys.readouterr().err
    assert ended.value.code == 1
    assert "stopped before going over --max-cost 600" in err
    (spent,) = _spent(tmp_path / "runs")
    assert 0 < spent <= 600
    with pytest.raises(SystemExit) as ended:
        main(args)
    assert ended.value.code == 0
    assert _spent(tmp_path / "runs")[0] > spent
