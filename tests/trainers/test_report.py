from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from iclkit.embed import RetrieverFormat
from iclkit.selectors import make_selector
from iclkit.testing import FakeLM, HashEmbedder, pair_task
from iclkit.trainers import (
    Feedback,
    FeedbackPrompt,
    Ledger,
    Miner,
    SelectorSetup,
    Session,
    corpus_of_tasks,
    feedback_value,
    is_correct,
    make_method,
    preset,
    report_on,
)
from iclkit.trainers._method import mine_candidates

CHOOSERS = {
    "bm25": SelectorSetup("bm25"),
    "knn": SelectorSetup("knn", HashEmbedder(48)),
    "se2": SelectorSetup("se2", HashEmbedder(48)),
}


def session(folder, lm=None, **changes):
    task, judge = pair_task(60, 16, modes=3, forms=3)
    config = preset("epr", **{"queries": 12, "held_out": 6, "report": 12, "candidates": "random:7", **changes})
    corpus = corpus_of_tasks([task], config)
    return Session(config, corpus, Feedback(lm or judge, Ledger(folder / "ledger.db")),
                   Miner(corpus, config.seed, HashEmbedder()), RetrieverFormat(config.document), folder)  # fmt: skip


def worth(s, query, rows):
    """What the LM makes of rows, the first next to the query."""
    (told,) = s.feedback.score(
        s.corpus.tasks[0], [FeedbackPrompt(query, tuple(s.corpus.examples[r] for r in reversed(rows)))]
    )
    return feedback_value(told, s.config.value, s.config.normalize), is_correct(told)


def naive(s, size):
    """The oracle's gain and right answers, query by query, and what random sets give where each candidate is one."""
    (course,) = s.corpus.tasks
    gains, hits, chance = [], [], []
    for query, own in zip(course.report, mine_candidates(s, course, course.report), strict=True):
        chosen = []
        for _ in range(size):
            chosen.append(max((c for c in own if c not in chosen), key=lambda c: worth(s, query, [*chosen, c])[0]))
        singles = [worth(s, query, [c])[0] for c in own]
        chance.append(np.mean(singles))
        found, hit = worth(s, query, chosen)
        gains.append(found)
        hits.append(hit)
    return np.array(gains), hits, np.array(chance)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_oracle_adds_what_is_best_behind_what_it_has(size, tmp_path):
    s = session(tmp_path)
    report = report_on(s, s.corpus.tasks[0], CHOOSERS, "knn", size)
    ways = {(w.name, w.pool): w for w in report.strategies}
    gains, hits, chance = naive(s, size)
    oracle = ways["oracle", "among the candidates"]
    assert oracle.accuracy.value == pytest.approx(np.mean(hits))
    assert (report.queries, report.shots) == (12, size)
    assert ways["random", "among the candidates"].gain.value == 0
    if size == 1:
        assert oracle.gain.value == pytest.approx(np.mean(gains - chance))
        assert max((w.gain.value, w.name) for w in report.strategies if w.pool == oracle.pool)[1] == "oracle"
    else:
        assert oracle.gain.value > ways["knn", oracle.pool].gain.value
    knn = ways["knn", oracle.pool].gain.value
    assert report.oracle_share.value == pytest.approx(knn / oracle.gain.value)


def test_among_the_candidates_choosers_are_kept_to_them(tmp_path):
    lm = FakeLM()
    s = session(tmp_path, lm)
    (course,) = s.corpus.tasks
    allowed = dict(zip(course.report, mine_candidates(s, course, course.report), strict=True))
    told, tell = [], s.feedback.score

    def listen(course, asks, progress=None):
        told.append(asks)
        return tell(course, asks, progress)

    s.feedback.score = listen
    report_on(s, course, CHOOSERS, "se2", 3)
    assert len(told) == 1 + 3 + 2 * len(CHOOSERS)  # random sets, the oracle's steps, the choosers twice
    row = {e.id: r for r, e in enumerate(s.corpus.examples)}
    for asks in told[: 4 + len(CHOOSERS)]:
        for ask in asks:
            assert {row[e.id] for e in ask.demonstrations} <= {*allowed[ask.query]}
            assert len({e.id for e in ask.demonstrations}) == len(ask.demonstrations)
    assert any(
        {row[e.id] for e in a.demonstrations} - {*allowed[a.query]} for asks in told[-len(CHOOSERS) :] for a in asks
    )
    assert {len(a.demonstrations) for asks in told[4:] for a in asks} == {3}


def test_a_report_is_the_same_again_and_costs_nothing_the_second_time(tmp_path):
    first = report_on(session(tmp_path), *_rest(tmp_path))
    s = session(tmp_path)
    assert report_on(s, *_rest(tmp_path)) == first
    assert s.feedback.computed == 0


def _rest(tmp_path):
    return session(tmp_path).corpus.tasks[0], CHOOSERS, "se2", 2


def test_queries_whose_prompts_do_not_fit_are_left_out(tmp_path):
    s = session(tmp_path)
    (course,) = s.corpus.tasks
    others = report_on(s, replace(course, report=course.report[1:]), CHOOSERS, "se2", 3)
    tell = s.feedback.score

    def too_long(course, asks, progress=None):
        told = tell(course, asks, progress)
        return [None if a.query == course.report[0] else t for a, t in zip(asks, told, strict=True)]

    s.feedback.score = too_long
    assert report_on(s, course, CHOOSERS, "se2", 3) == others
    assert others.queries == len(course.report) - 1


def test_where_no_prompt_fits_there_is_nothing_to_tell(tmp_path):
    s = session(tmp_path, FakeLM(context_size=40))
    report = report_on(s, s.corpus.tasks[0], CHOOSERS, "knn", 3)
    assert report.queries == 0
    assert np.isnan(report.oracle_share.value)


@pytest.mark.parametrize(
    ("method", "spec", "count"), [("epr", "knn", 1), ("udr", "knn", 1), ("llm-r", "knn", 1), ("se2", "se2", 3),
                                  ("ceil", "ceil,trade_off=0.3", 3)],
)  # fmt: skip
def test_a_retriever_is_judged_by_the_selector_it_is_meant_for(method, spec, count):
    config = preset(method, **({"trade_off": 0.3} if method == "ceil" else {}))
    chooser = make_method(config).selector(config)
    assert (chooser.spec, chooser.count) == (spec, count)
    assert make_selector(chooser.spec).name == spec.partition(",")[0]
