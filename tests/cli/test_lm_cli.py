"""``iclkit lm check``: what a server can do, in a table or as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from iclkit.cli import main

from ..lm.openai_server import ToyServer


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ToyServer]:
    monkeypatch.setenv("ICLKIT_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    offers = ("completions", "echo", "logprobs", "logprob_ids", "lists", "tokenize", "models")
    started = ToyServer(*offers, window=900)
    yield started
    started.close()


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def call(*args: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main([*args])
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return call


def test_check_says_how_a_server_is_asked_and_what_a_prompt_takes(server: ToyServer, run: Any):
    spec = f"openai:toy@{server.url},concurrency=2"
    code, out, _ = run("lm", "check", spec, "--json")
    found = json.loads(out)
    assert code == 0
    assert (found["scoring"], found["context"], found["endpoint"]) == ("token-ids", 900, "completions")
    assert found["requests_per_prompt"] == 1
    assert found["asked twice, differs by"] == 0
    code, out, _ = run("lm", "check", spec)
    assert (code, "scoring" in out, "token-ids" in out) == (0, True, True)
    _, out, _ = run("lm", "check", spec, "--prompts", "2", "--price", "in=2,out=8", "--json")
    found = json.loads(out)
    tokens = found["tokens_per_prompt"]  # the prompt, and one token that is written
    assert 2 * tokens / 1000 <= found["cost of 1,000 prompts"] <= 8 * tokens / 1000
    assert found["cost of this check"] >= found["cost of 1,000 prompts"] / 500
    server.asked.clear()
    run("lm", "check", spec, "--prompts", "1")
    known = server.asked["/v1/completions"]
    run("lm", "check", spec, "--prompts", "1", "--reprobe")
    assert known == 2 < server.asked["/v1/completions"] - known


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("openai:toy@http://127.0.0.1:9", "cannot be reached"),
        ("openai:absent@{url}/nowhere", "takes neither a completion"),
        ("openai:toy@{url},scoring=first-token", "does not offer the scoring 'first-token'"),
    ],
)
def test_a_server_that_cannot_be_asked_is_one_line(server: ToyServer, run: Any, spec: str, words: str):
    code, out, err = run("lm", "check", spec.format(url=server.url))
    assert (code, out) == (1, "")
    assert words in err
    assert err.strip().count("\n") == 1  # what is asked, and the trouble
