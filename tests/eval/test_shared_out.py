"""Two processes with one folder of runs: each run is made once, and both have it."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

from iclkit import evaluate
from iclkit.eval import load_run
from iclkit.records import Run
from iclkit.testing import ScriptedLM

from .worlds import classification, copying_lm


class Gated(ScriptedLM):
    """Says when it is first asked, and answers once it may."""

    def __init__(self, begun: Any, may: Any) -> None:
        super().__init__(copying_lm()._logprob)
        self.begun, self.may = begun, may

    def score(self, requests: Any, on_done: Any = None) -> Any:
        self.begun.set()
        assert self.may.wait(120)
        return super().score(requests, on_done)


def make(out: Path, begun: Any, may: Any, told: Any) -> None:
    lm = Gated(begun, may)
    run = evaluate(classification(test=70), "bm25", lm, k=2, out=out)
    told.put((run.id, len(run.rows), lm.usage.requests))


def test_a_run_that_another_process_is_making_is_waited_for_and_not_made_again(tmp_path: Path, home: Path) -> None:
    context = multiprocessing.get_context("spawn")
    may, told = context.Event(), context.Queue()
    begun = [context.Event(), context.Event()]
    first = context.Process(target=make, args=(tmp_path, begun[0], may, told))
    first.start()
    assert begun[0].wait(120)
    second = context.Process(target=make, args=(tmp_path, begun[1], may, told))
    second.start()
    second.join(3)  # it waits, and has asked nothing
    assert second.is_alive()
    assert not begun[1].is_set()
    may.set()
    answers = [told.get(timeout=120), told.get(timeout=120)]
    for process in (first, second):
        process.join(120)
    assert [process.exitcode for process in (first, second)] == [0, 0]
    assert {answer[:2] for answer in answers} == {(answers[0][0], 70)}
    assert sorted(answer[2] > 0 for answer in answers) == [False, True]
    alone: Run = evaluate(classification(test=70), "bm25", copying_lm(), k=2)
    assert load_run(tmp_path / alone.id).rows == alone.rows


def test_a_process_that_was_waited_for_and_killed_leaves_its_rows_to_the_one_that_waits(
    tmp_path: Path, home: Path
) -> None:
    context = multiprocessing.get_context("spawn")
    begun, may, told = context.Event(), context.Event(), context.Queue()
    first = context.Process(target=make, args=(tmp_path, begun, may, told))
    first.start()
    assert begun.wait(120)
    begun_too, go = context.Event(), context.Event()
    go.set()
    second = context.Process(target=make, args=(tmp_path, begun_too, go, told))
    second.start()
    first.kill()
    first.join()
    run_id, rows, _ = told.get(timeout=120)
    second.join(120)
    assert (rows, second.exitcode) == (70, 0)
    assert load_run(tmp_path / run_id).facts["done"]
