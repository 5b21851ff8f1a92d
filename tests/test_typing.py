"""A user's script sees real types: no name of the public face is ``Any`` to a type checker."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import iclkit

SCRIPT = """
from iclkit import (
    BaseSelector, Example, IclkitError, Kit, Needs, Pool, Query, Selector, Template, assemble, evaluate, leaderboard,
    Chooser, chooser, load_embedder, load_lm, load_selector, load_task, make_selector,
)

pool = Pool.open("demos.db")
selector = make_selector("knn").fit(pool.view(), Kit(embedder=load_embedder("all-minilm-l6-v2")))
picks = selector.select(Query("late"), 4)
task = load_task("support")
run = evaluate(task, "knn", load_lm("smollm2-135m"), k=4)
board = leaderboard([run])
for value in (pool, selector, picks, picks.ids, task, task.train, run, run.rows, board, board.groups, BaseSelector,
              Example, IclkitError, Needs, Selector, Template, assemble, evaluate, load_lm):
    pass
asked: Chooser = chooser("tickets.csv", input="text", output="team", selector="knn", k=8)
messages: list[dict[str, str]] = asked.messages("my parcel is late", where={"tenant": "acme"})
same = load_selector(make_selector("bm25").fit(Pool.of([("late", "delivery")])).save("kept"))
plain = make_selector("knn").fit([Example("late", "delivery")], Kit(embedder="all-minilm-l6-v2", lm="smollm2-135m"))
shown = [e.output for e in plain.select("late", 1).examples]
sent = same.prompt("late").to_openai()
reveal_type(asked)
reveal_type(same.select("late"))
reveal_type(evaluate(task, "knn", "smollm2-135m", embedder="all-minilm-l6-v2"))
reveal_type(pool)
reveal_type(selector)
reveal_type(picks)
reveal_type(task)
reveal_type(load_lm)
reveal_type(run)
reveal_type(board)
reveal_type(BaseSelector)
reveal_type(IclkitError)
"""


def test_a_users_script_has_no_any(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    root = Path(iclkit.__file__).parent.parent
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--disallow-any-expr", "--config-file", str(root / "pyproject.toml"),
         "--cache-dir", str(tmp_path / "cache"), str(script)],
        capture_output=True, text=True, cwd=root, check=False,
    )  # fmt: skip
    said = [line for line in checked.stdout.splitlines() if "script.py" in line]
    assert [line for line in said if ": error:" in line or "Any" in line] == []
    assert sum("Revealed type" in line for line in said) == 12


def test_every_public_name_loads() -> None:
    for name in iclkit.__all__:
        assert getattr(iclkit, name) is not None
