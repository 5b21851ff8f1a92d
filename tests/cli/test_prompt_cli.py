"""The prompt that is printed, deployed and measured is one prompt, byte for byte."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from iclkit.cli import main
from iclkit.lm import as_lm
from iclkit.testing import FakeLM, HashEmbedder

LABELED = [
    (f"{a} parcel {n}", ["billing", "delivery"][n % 2]) for n, a in enumerate(["late", "lost", "paid", "blue"] * 4)
]
TASKS: dict[str, dict[str, list[dict[str, object]]]] = {
    "text": {
        "train": [{"input": i, "output": o} for i, o in LABELED[:12]],
        "test": [{"input": i, "output": o} for i, o in LABELED[12:]],
    },
    "fields": {
        "train": [{"input": {"subject": f"s{n} {{x}}", "body_text": i}, "output": o}
                  for n, (i, o) in enumerate(LABELED[:12])],
        "test": [{"input": {"subject": "new", "body_text": i}, "output": o} for i, o in LABELED[12:]],
    },
    "choices": {
        "train": [{"input": f"which is {n}", "choices": [f"{n}", f"not {n}"], "output": f"{n}"} for n in range(12)],
        "test": [{"input": f"which is {n}", "choices": [f"{n}", f"not {n}"], "output": f"{n}"} for n in range(20, 24)],
    },
    "generation": {
        "train": [{"input": f"double {n}", "output": f"the double of {n} is {2 * n}"} for n in range(12)],
        "test": [{"input": f"double {n}", "output": f"the double of {n} is {2 * n}"} for n in range(20, 24)],
    },
}  # fmt: skip


class Recorder(FakeLM):
    """An LM that notes what it is sent: the texts, and the chats that they render."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.chats: dict[str, list[dict[str, str]]] = {}

    def render_chat(self, messages):
        text = super().render_chat(messages)
        self.chats[text] = [{"role": m.role, "content": m.content} for m in messages]
        return text

    def score(self, requests, on_done=None):
        self.texts += dict.fromkeys(r.context for r in requests)
        return super().score(requests, on_done)

    def generate(self, requests, on_done=None):
        self.texts += [r.context for r in requests]
        return super().generate(requests, on_done)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    lm = Recorder()
    assert as_lm(lm) is lm
    monkeypatch.setattr("iclkit.lm.load_lm", lambda *a, **k: lm)
    monkeypatch.setattr("iclkit.embed.load_embedder", lambda *a, **k: HashEmbedder())
    monkeypatch.setattr("iclkit.models.resolve", lambda *a, **k: Path())
    return lm


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ICLKIT_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)

    def made(kind: str) -> str:
        (tmp_path / kind).mkdir()
        for split, rows in TASKS[kind].items():
            (tmp_path / kind / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        return str(tmp_path / kind)

    return made


@pytest.fixture
def iclkit(capsys: pytest.CaptureFixture[str]):
    def run(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main([*words])
        out, err = capsys.readouterr()
        return stop.value.code, out, err

    return run


TOML = """
demo = "Q: {{{input}}}\\nA: {output}"
instruction = \'\'\'Answer {"like": "this"}.\'\'\'
demo_separator = "\\n---\\n"
"""
TURN = 'demo = "{input}\\n=> {output}"\ninstruction = "Sort."\nsystem = "Be brief."\nchat = true\nturns = false\n'
WAYS = [
    ("text", []), ("text", ["--chat"]), ("fields", []), ("fields", ["--chat"]), ("choices", []),
    ("choices", ["--chat"]), ("generation", []), ("generation", ["--chat"]),
    ("text", ["--template", r"One of: {labels}. {{so}}\n\nT: {input}\nL: {output}"]),
    ("text", ["--template", "own.toml"]), ("text", ["--template", "turn.toml"]),
    ("choices", ["--template", r"{input}\n{choices}\nAnswer: {letter}"]),
    ("text", ["-s", "mmr,trade_off=0.3", "--order", "best-first", "-k", "3"]),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "options"), WAYS, ids=[f"{kind} {' '.join(o)[:24]}" for kind, o in WAYS])
def test_what_is_printed_is_what_an_evaluation_sent(
    kind, options, task, iclkit, sent: Recorder, tmp_path: Path
) -> None:
    (tmp_path / "own.toml").write_text(TOML)
    (tmp_path / "turn.toml").write_text(TURN)
    folder = task(kind)
    options = [*options, *([] if "-s" in options else ["-s", "knn"]), *([] if "-k" in options else ["-k", "4"])]
    code, _, err = iclkit("eval", folder, *options, "--predictor", "none", "--seeds", "1")
    assert code == 0, err
    evaluated = list(dict.fromkeys(sent.texts))
    rows = [json.dumps(row["input"]) for row in TASKS[kind]["test"]]
    assert len(evaluated) == len(rows)
    for n, expected in enumerate(evaluated):
        with_lm = iclkit("prompt", folder, "--row", str(n), *options, "--lm", "any")
        assert with_lm[:2] == (0, expected + "\n")
        _, messages, _ = iclkit("prompt", folder, "--row", str(n), *options, "--format", "messages")
        as_sent = sent.chats.get(expected, [{"role": "user", "content": expected}])
        assert json.loads(messages) == as_sent
        _, body, _ = iclkit("prompt", folder, "--row", str(n), *options, "--format", "openai", "--model", "m")
        assert json.loads(body) == {"model": "m", "messages": as_sent, "temperature": 0}
        _, curl, _ = iclkit("prompt", folder, "--row", str(n), *options, "--format", "curl", "--model", "m")
        assert json.loads(shlex.split(curl)[-1]) == json.loads(body)
    assert sent.texts.count(evaluated[0]) == 1 or kind != "generation"  # printing asks no LM


def test_a_query_is_a_text_or_named_fields_and_a_task_without_system_role_is_served(
    task, iclkit, sent, tmp_path
) -> None:
    folder = task("fields")
    query = json.dumps({"subject": "it is", "body_text": "lost"})
    code, out, _ = iclkit("prompt", folder, query, "-k", "1", "-s", "bm25")
    assert code == 0
    assert out.endswith("Subject: it is\nBody text: lost\nLabel:\n")
    (tmp_path / "turn.toml").write_text('demo = "{body_text}: {output}"\nsystem = "Be brief."\nchat = true\n')
    words = ("prompt", folder, query, "-k", "0", "--template", "turn.toml", "--format", "messages", "-s", "bm25")
    assert [m["role"] for m in json.loads(iclkit(*words)[1])] == ["system", "user"]
    (turn,) = json.loads(iclkit(*words, "--no-system")[1])
    assert turn["content"] == "Be brief.\n\nlost:"


def test_select_shows_the_tasks_prompt(task, iclkit, sent) -> None:
    for kind in ("text", "fields"):
        folder = task(kind)
        iclkit("pool", "add", f"{kind}.db", f"{folder}/train.jsonl")
        query = TASKS[kind]["test"][0]["input"]
        (Path(folder) / "q.jsonl").write_text(json.dumps({"input": query}) + "\n")
        chosen = iclkit("select", f"{kind}.db", "--queries", f"{folder}/q.jsonl", "-s", "bm25", "-k", "3", "--prompt")
        assert chosen[:2] == iclkit("prompt", folder, "--row", "0", "-s", "bm25", "-k", "3")[:2]


def test_what_cannot_be_a_prompt_is_one_line(task, iclkit, sent, tmp_path) -> None:
    text, generation = task("text"), task("generation")
    (tmp_path / "bad.toml").write_text("demo = 3")
    for words, code, said in (
        ((text,), 2, "give one query"),
        ((text, "x", "--row", "1"), 2, "give one query"),
        ((text, "--row", "99", "-s", "bm25"), 2, "neither an id of a test row nor a number below 4"),
        ((text, "x", "--budget", "9"), 2, "--lm"),
        ((text, "x", "--template", "no.toml"), 1, "no.toml"),
        ((text, "x", "--template", "bad.toml"), 1, "demo should be a text"),
        ((generation, "x", "--template", r"{labels}\n\n{input}: {output}"), 2, "has no label set"),
        ((task("choices"), '{"input": 3}', "-s", "bm25"), 1, "every field is a text"),
    ):
        status, out, err = iclkit("prompt", *words)
        errors = [line for line in err.splitlines() if not line.startswith("note: ")]
        assert (status, out, len(errors)) == (code, "", 1), err
        assert said in errors[0]
