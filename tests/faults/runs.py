"""Damaged run folders: each is named in one line, hides no other run, and never becomes a figure."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .children import call
from .trials import Trial
from .worlds import rows, write_jsonl


def _state(**values: Any) -> Callable[[Path], None]:
    def damage(run: Path) -> None:
        file = run / "run.json"
        state = json.loads(file.read_text())
        for key, value in values.items():
            place, *rest = key.split("__")
            if rest:
                state[place] = {**state[place], rest[0]: value}
            else:
                state[place] = value
        file.write_text(json.dumps(state))

    return damage


def _write(name: str, data: bytes) -> Callable[[Path], None]:
    return lambda run: (run / name).write_bytes(data) and None


def _cut(name: str, at: int) -> Callable[[Path], None]:
    return lambda run: (run / name).write_bytes((run / name).read_bytes()[:at]) and None


def _rows(change: Callable[[list[dict[str, Any]]], object]) -> Callable[[Path], None]:
    def damage(run: Path) -> None:
        file = run / "rows.jsonl"
        data = [json.loads(line) for line in file.read_text().split("\n") if line]
        change(data)
        file.write_text("".join(json.dumps(row) + "\n" for row in data))

    return damage


def _each(**values: Any) -> Callable[[Path], None]:
    return _rows(lambda data: [row.update(values) for row in data])


def _lines(change: Callable[[list[str]], list[str]]) -> Callable[[Path], None]:
    def damage(run: Path) -> None:
        file = run / "rows.jsonl"
        file.write_text("".join(change(file.read_text().splitlines(keepends=True))))

    return damage


DAMAGES: dict[str, Callable[[Path], None]] = {
    "run.json: empty": _write("run.json", b""),
    "run.json: {oops": _write("run.json", b"{oops"),
    "run.json: []": _write("run.json", b"[]"),
    "run.json: 5": _write("run.json", b"5"),
    "run.json: null": _write("run.json", b"null"),
    "run.json: not UTF-8": _write("run.json", b'{"id": "\xff"}'),
    "run.json: deep": _write("run.json", b"[" * 100_000),
    "run.json: huge integer": _write("run.json", b'{"done": ' + b"9" * 5000 + b"}"),
    "run.json: cut off": _cut("run.json", 100),
    "run.json: spec a list": _state(spec=[]),
    "run.json: spec a number": _state(spec=3),
    "run.json: spec empty": _state(spec={}),
    "run.json: facts null": _state(facts=None),
    "run.json: spent a text": _state(spent="x"),
    "run.json: done a text": _state(done="yes"),
    "run.json: k a text": _state(spec__parts={"k": "2"}),
    "run.json: seed a list": _state(spec__parts={"seed": [1]}),
    "run.json: task a number": _state(spec__task=5),
    "run.json: selector null": _state(spec__parts={"selector": None}),
    "run.json: lm null": _state(spec__parts={"lm": None}),
    "rows: cut off under done": _cut("rows.jsonl", -40),
    "rows: half of them": _lines(lambda lines: lines[: len(lines) // 2]),
    "rows: none": _write("rows.jsonl", b""),
    "rows: a row twice": _lines(lambda lines: [*lines, lines[-1]]),
    "rows: one for another": _lines(lambda lines: [lines[1], *lines[1:]]),
    "rows: not UTF-8": _write("rows.jsonl", b"\xff\xfe\n"),
    "rows: not JSON": _lines(lambda lines: [*lines[:3], "{oops\n", *lines[4:]]),
    "rows: a list": _lines(lambda lines: [*lines[:3], "[]\n", *lines[4:]]),
    "rows: a metric of x": _each(metrics={"accuracy": "x"}),
    "rows: a metric of 1e9": _each(metrics={"accuracy": 1e9}),
    "rows: a metric of NaN": _each(metrics={"accuracy": float("nan")}),
    "rows: a metric null": _each(metrics=None),
    "rows: every metric 1.0": _rows(lambda data: [r["metrics"].update(dict.fromkeys(r["metrics"], 1.0)) for r in data]),
    "rows: another gold": _rows(lambda data: [row.update(gold=row["output"]) for row in data]),
    "rows: picks a text": _each(picks="x"),
    "rows: tokens a text": _each(prompt_tokens="many"),
    "rows: log-probabilities of NaN": _rows(
        lambda data: [row.update(label_logprobs={k: float("nan") for k in row["label_logprobs"]}) for row in data]
    ),
    "rows: output a number": _each(output=5),
    "rows: an unknown field": _each(surprise=1),
    "texts: not JSON": _write("texts.jsonl", b"{oops\n"),
    "texts: not UTF-8": _write("texts.jsonl", b"\xff\n"),
    "texts: a list": _write("texts.jsonl", b"[]\n"),
    "texts: none": lambda run: (run / "texts.jsonl").unlink(),
}  # fmt: skip


def run_trials(folder: Path, lm: Path, names: list[str] | None = None) -> Iterator[Trial]:
    """Every damage through ``leaderboard`` (text and page), ``explain`` and ``eval`` again."""
    folder.mkdir(parents=True)
    write_jsonl(folder / "task" / "train.jsonl", rows("train", 20))
    write_jsonl(folder / "task" / "test.jsonl", rows("test", 30))
    home = folder / "home"
    words = ["eval", "task", "--predictor", "none", "-s", "random", "-s", "bm25", "-k", "2", "--seeds", "1",
             "--lm", str(lm), "--dtype", "fp32", "--workers", "1"]  # fmt: skip
    made = call(words, folder, home)
    if made.code != 0:
        yield Trial("damaged run folder", "set-up", made.fault or made.err[-300:])
        return
    (folder / "runs").rename(folder / "whole")
    good = call(["leaderboard", "whole", "--json"], folder, home)
    whole = {line["selector"]: line for line in _board_lines(good.out)}
    victim = next(r.name for r in sorted((folder / "whole").iterdir()) if _selector(r) == "bm25")
    for name in names or DAMAGES:
        shutil.rmtree(folder / "runs", ignore_errors=True)
        shutil.copytree(folder / "whole", folder / "runs")
        DAMAGES[name](folder / "runs" / victim)
        wrong = ""
        for read in (["leaderboard", "runs", "--json"], ["leaderboard", "runs", "--html", "board.html"]):
            outcome = call(read, folder, home, limit=60)
            wrong = wrong or (f"{read[0]}: {outcome.fault}" if outcome.fault else "")
            if not wrong and outcome.code == 0 and read[-1] == "--json":
                lines = {line["selector"]: line for line in _board_lines(outcome.out)}
                if "random" not in lines:
                    wrong = "the damaged run hides the other"
                elif "bm25" in lines and lines["bm25"]["figure"]["value"] != whole["bm25"]["figure"]["value"]:
                    wrong = f"a figure of a damaged run is shown: {lines['bm25']['figure']}"
        for again in (["explain", f"runs/{victim}", "--query", "1"], words):
            outcome = call(again, folder, home, limit=60)
            wrong = wrong or (f"{again[0]}: {outcome.fault}" if outcome.fault else "")
        yield Trial("damaged run folder", name, wrong)


def _selector(run: Path) -> str:
    from iclkit.eval import load_run

    return load_run(run).spec.selector.name


def _board_lines(text: str) -> list[dict[str, Any]]:
    return [line for group in json.loads(text)["groups"] for line in group["lines"]]
