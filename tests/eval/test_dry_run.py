"""A dry run asks what the runs would ask, and computes nothing."""

from __future__ import annotations

import pytest

from iclkit.eval import Grid, cost, dry_run, make_bench, plan
from iclkit.lm import load_lm
from iclkit.predictors import Tools
from iclkit.selectors._rewriter import LMRewriter, RewriteStyle
from iclkit.testing import FakeLM, HashEmbedder

from .worlds import classification, generation

HASH = HashEmbedder()


@pytest.fixture(autouse=True)
def _own_home(home):
    """Pools of the tasks are kept in an empty home."""


@pytest.mark.parametrize("make", [classification, generation])
def test_a_dry_run_counts_the_requests_that_the_runs_then_make(make):
    lm = FakeLM()
    jobs = plan([make_bench(make(), limit=12)], Tools(lm), Grid(("zero", "random", "bm25"), (3,), 2))
    estimate = dry_run(jobs)
    assert not lm.scored
    assert not lm.generated
    for job in jobs:
        job.run(None)
    asked = [*lm.scored, *lm.generated]
    assert estimate.requests == len(asked)
    assert estimate.tokens_asked == sum(lm.count_tokens(r.context + getattr(r, "continuation", "")) for r in asked), (
        "each request is read whole"
    )
    assert estimate.tokens_generated == sum(r.max_tokens for r in lm.generated)


def test_what_an_lm_is_imagined_to_write_is_not_kept_in_the_pool():
    lm = FakeLM()
    (job,) = plan(
        [make_bench(classification(train=18), limit=4)], Tools(lm, HASH), Grid(("skill-knn,rewrites=2",), (3,), 1)
    )
    assert dry_run([job]).requests == dry_run([job]).requests == 2 * (18 + 4) + 4 * 3
    assert lm.generated == []
    assert not job.bench.view.keys(LMRewriter(lm, RewriteStyle.load("classification"), 2)).fallbacks
    assert len(lm.generated) == 2 * 18


def test_what_selectors_ask_is_told_in_numbers_before_anything_is_asked():
    lm = FakeLM()
    names = ("knn", "skill-knn,rewrites=2", "mdl,window=4", "rrf,of=[bm25,pvi-weight,sets=1]")
    jobs = plan([make_bench(classification(train=18), limit=4)], Tools(lm, HASH), Grid(names, (2, 3), 2))
    notes = cost(jobs).notes
    assert [n.split(" asks ")[0] for n in notes] == [*names[1:]]
    assert "at most 88 texts more (36 once a run and 2 per query)" in notes[0]  # 4 runs
    assert "at most 192 texts more (0 once a run and 12 per query)" in notes[1]
    assert "at most 144 texts more (36 once a run and 0 per query)" in notes[2]
    assert (lm.scored, lm.generated) == ([], [])


@pytest.mark.models
def test_tokens_after_sharing_are_those_that_the_engine_then_computes(smollm2_path):
    lm = load_lm(str(smollm2_path), cache=False, workers=1, threads=1)
    jobs = plan([make_bench(classification(), limit=10)], Tools(lm), Grid(("random-fixed",), (4,), 1))
    estimate = dry_run(jobs)
    for job in jobs:
        job.run(None)
    assert (estimate.calls, estimate.tokens_asked) == (lm.usage.calls, lm.usage.tokens_asked)
    assert estimate.tokens_computed == lm.usage.tokens_computed < estimate.tokens_asked / 2
    assert estimate.seconds


def test_what_a_rewriter_is_asked_is_counted_and_not_asked():
    lm, rewriter = FakeLM(), FakeLM(name="rewriter")
    tools = Tools(lm, HASH, load_lm={"strong": rewriter}.__getitem__)
    grid = Grid(("skill-knn,rewrites=2,rewriter=strong",), (2, 3), 1)
    jobs = plan([make_bench(classification(train=18), limit=4)], tools, grid)
    assert dry_run(jobs).requests == 2 * (18 + 4) + 2 * 4 * 3
    assert (lm.scored, lm.generated, rewriter.generated) == ([], [], [])
