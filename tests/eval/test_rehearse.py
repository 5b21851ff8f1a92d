"""A rehearsal asks what the runs would ask, and computes nothing."""

from __future__ import annotations

import pytest

from iclkit.eval import Grid, make_bench, plan, rehearse
from iclkit.lm import load_lm
from iclkit.testing import FakeLM

from .worlds import classification, generation


@pytest.fixture(autouse=True)
def _own_home(home):
    """Pools of the tasks are kept in an empty home."""


@pytest.mark.parametrize("make", [classification, generation])
def test_a_rehearsal_counts_the_requests_that_the_runs_then_make(make):
    lm = FakeLM()
    jobs = plan([make_bench(make(), limit=12)], lm, Grid(("zero", "random", "bm25"), (3,), 2))
    seen = rehearse(jobs)
    assert not lm.scored
    assert not lm.generated
    for job in jobs:
        job.run(None)
    asked = [*lm.scored, *lm.generated]
    assert seen.requests == len(asked)
    assert seen.tokens_asked == sum(lm.count_tokens(r.context + getattr(r, "continuation", "")) for r in asked), (
        "each request is read whole"
    )
    assert seen.tokens_generated == sum(r.max_tokens for r in lm.generated)


@pytest.mark.models
def test_tokens_after_sharing_are_those_that_the_engine_then_computes(smollm2_path):
    lm = load_lm(str(smollm2_path), cache=False, workers=1, threads=1)
    jobs = plan([make_bench(classification(), limit=10)], lm, Grid(("random-fixed",), (4,), 1))
    seen = rehearse(jobs)
    for job in jobs:
        job.run(None)
    assert (seen.calls, seen.tokens_asked) == (lm.spent.calls, lm.spent.tokens_asked)
    assert seen.tokens_computed == lm.spent.tokens_computed < seen.tokens_asked / 2
    assert seen.seconds
