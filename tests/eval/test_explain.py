"""Explanations: effect equals leaving a demonstration out by hand; flipped labels are found."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import numpy as np
import pytest

from iclkit import evaluate
from iclkit.datasets import make_task
from iclkit.errors import DataError, NeedError, RequestError, UsageError
from iclkit.eval import explain, influences, load_texts, make_bench, suspects, with_runner_up
from iclkit.pool import Pool
from iclkit.predictors import PromptPredictor, Settings, Tools
from iclkit.prompts import Template, assemble
from iclkit.records import Example, Query
from iclkit.selectors import make_selector
from iclkit.testing import FakeLM, HashEmbedder, OverlapReranker, ScriptedLM

from .worlds import LABELS, WORDS, classification, copying_lm, generation, rows


@pytest.fixture
def made(tmp_path, home):
    task, lm = classification(test=70), copying_lm()
    run = evaluate(task, "knn", lm, k=4, embedder=HashEmbedder(), out=tmp_path)
    return task, lm, run, load_texts(tmp_path / run.id)


def prompting(selector, lm, k=8):
    return PromptPredictor(make_selector(selector), Tools(lm), Settings(k=k))


def share(lm, prompt, gold):
    scores = np.array([lm._score(prompt.text, f" {label}").logprob for label in LABELS])
    return scores[LABELS.index(gold)] - np.logaddexp.reduce(scores)


def test_effect_is_what_leaving_a_demonstration_out_by_hand_gives(made):
    task, lm, run, texts = made
    pool = {e.id: e for e in task.train}
    for found in explain(run, texts, lm, run.rows[:6]):
        query = Query(texts[found.row.query_id]["input"])
        shown = [Example(pool[i].input, pool[i].output) for i in found.row.shown]
        full = share(lm, assemble(task.template, query, shown, order="best-first"), found.row.gold)
        assert found.logprob == pytest.approx(full)
        for item in found.shown:
            left = [e for n, e in enumerate(shown, 1) if n != item.position]
            without = share(lm, assemble(task.template, query, left, order="best-first"), found.row.gold)
            assert item.effect == pytest.approx(full - without)
        empty = share(lm, assemble(task.template, query, []), found.row.gold)
        assert found.without == pytest.approx(empty)
        assert sum(found.shares.values()) == pytest.approx(1)


@pytest.mark.parametrize("normalize", ["sum", "mean"])
@pytest.mark.parametrize("calibrate", ["none", "contextual", "domain", "batch", "pool", "given"])
def test_an_explanation_starts_from_the_probability_that_the_run_judged_by(tmp_path, home, calibrate, normalize):
    worded = {"animal": "animal", "food": "food", "tool": "tool of a craft"}  # labels of one and of four tokens
    train, test = ([Example(e.input, worded[e.output]) for e in rows(n, n)] for n in (45, 8))
    task, lm = make_task("worded", train, test, template=Template("Text: {input}\nKind: {output}")), FakeLM()
    prior = {"animal": 0.2, "food": 0.5, "tool of a craft": 0.3} if calibrate == "given" else None
    run = evaluate(task, "knn", lm, k=2, embedder=HashEmbedder(), out=tmp_path, calibrate=calibrate, prior=prior,
                   normalize=normalize)  # fmt: skip
    for found in explain(run, load_texts(tmp_path / run.id), lm, bench=make_bench(task)):
        assert found.logprob == pytest.approx(found.row.metrics["gold_logprob"])


def test_domain_calibration_is_not_explained_without_the_pool_whose_words_it_drew(tmp_path, home):
    task, lm = classification(test=2), copying_lm()
    run = evaluate(task, "zero", lm, out=tmp_path, calibrate="domain")
    with pytest.raises(DataError, match="the pool is not known"):
        explain(run, load_texts(tmp_path / run.id), lm)


def test_rank_position_score_and_tokens_are_those_of_the_run(made):
    task, lm, run, texts = made
    (found,) = explain(run, texts, lm, run.rows[:1])
    assert [s.example.id for s in found.shown] == [*run.rows[0].shown]
    assert [s.position for s in found.shown] == [1, 2, 3, 4]
    assert [s.rank for s in found.shown] == [4, 3, 2, 1]  # best last
    assert {(s.example.id, s.score) for s in found.shown} == {*run.rows[0].picks}
    assert found.shown[0].tokens == lm.count_tokens(task.template.render_demo(found.shown[0].example))


def test_the_runner_up_is_what_one_more_shot_would_show(made):
    task, lm, run, texts = made
    (found,) = explain(run, texts, lm, run.rows[:1])
    bench = make_bench(task)
    full = with_runner_up(found, run, bench, Tools(embedder=HashEmbedder(), lm=lm))
    more = evaluate(make_bench(task, first=1), "knn", lm, k=5, embedder=HashEmbedder()).rows[0]
    assert full.next is not None
    assert (full.next[0].id, full.next[1]) == more.picks[4]


@pytest.mark.parametrize(("selector", "step"), [("se2", "step 1: score"), ("ceil", "step 1: log-determinant")])
def test_a_choice_made_step_by_step_is_told_with_what_came_next(tmp_path, home, selector, step):
    task, lm = classification(test=4), copying_lm()
    run = evaluate(task, selector, lm, k=3, embedder=HashEmbedder(), out=tmp_path)
    (found,) = explain(run, load_texts(tmp_path / run.id), lm, run.rows[:1])
    story = with_runner_up(found, run, make_bench(task), Tools(lm, HashEmbedder())).story
    assert story[1].startswith(step)
    assert sum(line.startswith("step") for line in story) == 3
    assert any("runner-up" in line for line in story)
    assert not any(r.notes for r in run.rows)


def test_influence_joins_all_showings_and_leads_with_what_surely_helps(made):
    _, lm, run, texts = made
    explanations = explain(run, texts, lm)
    found = influences(explanations)
    assert sum(f.times for f in found) == 4 * 70
    one = found[0]
    effects = [s.effect for x in explanations for s in x.shown if s.example.id == one.example.id]
    assert one.effect.value == pytest.approx(np.mean(effects))
    assert (one.times, one.effect.value > 0) == (len(effects), True)
    sure = [f for f in found if f.effect.low > 0]
    assert found[: len(sure)] == sorted(sure, key=lambda f: (-f.effect.low, -f.effect.value, f.example.id))


def test_generated_answers_are_explained_by_the_right_text(tmp_path, home):
    run = evaluate(generation(), "random", copying_lm(), k=2, out=tmp_path)
    (found,) = explain(run, load_texts(tmp_path / run.id), FakeLM(), run.rows[:1])
    assert found.shares == {}
    assert math.isfinite(found.shown[0].effect)


def test_a_run_without_texts_is_refused(made):
    _, lm, run, _ = made
    with pytest.raises(DataError, match="finish it"):
        explain(run, {}, lm)


def test_zero_shot_rows_have_nothing_to_leave_out(tmp_path, home):
    run = evaluate(classification(test=3), "zero", copying_lm(), out=tmp_path)
    (found, *_) = explain(run, load_texts(tmp_path / run.id), copying_lm())
    assert found.shown == ()
    assert found.logprob == found.without


def flipped(share_of: float, seed: int = 0):
    """A task some of whose train rows carry a wrong label, and which."""
    task, rng = classification(train=90), random.Random(seed)
    bad = set(rng.sample(range(90), int(90 * share_of)))
    train = [
        Example(e.input, rng.choice([x for x in LABELS if x != e.output])) if n in bad else e
        for n, e in enumerate(task.train)
    ]
    return make_task("flipped", train, task.test, template=task.template), {train[n].id for n in bad}


def auroc(ranked: list[str], bad: set[str]) -> float:
    """Chance that a flipped example is ranked before one that is not."""
    before, wins = 0, 0
    for i in ranked:
        if i in bad:
            before += 1
        else:
            wins += before
    return wins / (len(bad) * (len(ranked) - len(bad)))


def test_flipped_labels_are_found_well_above_chance(home):
    task, bad = flipped(0.1)
    bench = make_bench(task, Pool.of(task.train))
    votes = copying_lm()

    def logprob(context: str, continuation: str) -> float:  # knows some words, and looks at the demonstrations
        words = context.split("\n\n")[-1].split("\n")[0].split()
        return 0.3 * votes._score(context, continuation).logprob + sum(w in WORDS[continuation.strip()] for w in words)

    found = suspects(bench, prompting("bm25", ScriptedLM(logprob), 6), bench.view.examples)
    assert auroc([s.example.id for s in found], bad) > 0.8
    assert {s.example.id for s in found} == {*bench.view.ids}


def test_an_example_is_never_asked_with_itself_in_sight(home):
    task, _ = flipped(0.1)
    bench = make_bench(task, Pool.of(task.train))
    lm = copying_lm()
    suspects(bench, prompting("bm25", lm, 6), bench.view.examples[:5])
    for request in lm.scored:
        *demos, query = request.context.split("\n\n")
        assert all(query.split("\n")[0] not in d for d in demos)


def test_a_task_without_labels_has_no_suspects(home):
    bench = make_bench(generation())
    with pytest.raises(DataError, match="no labels"):
        suspects(bench, prompting("random", FakeLM()), bench.view.examples[:2])


class Ranking(ScriptedLM):
    """A server that tells no probabilities: it answers with the label that most demonstrations show, or not at all."""

    scoring = "generate"

    def __init__(self):
        super().__init__(self._rank, reply=self._answer_of)

    @staticmethod
    def _said(context):
        shown = [d.split("\nKind: ")[1] for d in context.split("\n\n")[:-1] if "\nKind: " in d]
        return max(sorted(set(shown)), key=shown.count) if shown else ""

    def _rank(self, context, continuation):
        said = self._said(context)
        return -100.0 if not said else -1 / (1 + len(said)) if continuation.strip() == said else -80.0

    def _answer_of(self, context):
        return " " + self._said(context)


def test_an_lm_without_probabilities_is_explained_by_its_answers_and_not_by_ranks_in_nats(tmp_path):
    task, lm = classification(test=12), Ranking()
    run = evaluate(task, "random", lm, k=3, out=tmp_path)
    found = explain(run, load_texts(tmp_path / run.id), lm)
    for item, row in zip(found, run.rows, strict=True):
        assert (item.unit, item.shares) == ("answer", {})
        assert item.logprob == float(row.output == row.gold)
        assert item.without == 0.0  # without demonstrations it says nothing, which is not the first label
        examples = [s.example for s in item.shown]
        for n, shown in enumerate(item.shown):
            rest = [e.output for m, e in enumerate(examples) if m != n]
            said = max(sorted(set(rest)), key=rest.count)
            assert shown.effect == item.logprob - float(said == row.gold)
    assert {s.effect for item in found for s in item.shown} <= {-1.0, 0.0, 1.0}
    with pytest.raises(UsageError, match="tells no log-probabilities"):
        suspects(make_bench(task), prompting("random", lm), task.train[:3])


def test_written_answers_of_such_an_lm_are_explained_by_the_metric(tmp_path):
    class Echo(ScriptedLM):
        scoring = "generate"

    lm = Echo(reply=lambda c: " it is " + c.split("say ")[-1].split("\n")[0] if c.count("say") > 2 else " no")
    run = evaluate(generation(), "random", lm, k=2, out=tmp_path)
    found = explain(run, load_texts(tmp_path / run.id), lm)
    assert {(item.unit, item.logprob, item.without) for item in found} == {("answer", 1.0, 0.0)}
    assert {s.effect for item in found for s in item.shown} == {1.0}


def test_rows_that_cannot_be_explained_are_left_out_and_a_run_of_them_says_why(made):
    _, _, run, texts = made

    class Narrow(FakeLM):
        def score(self, requests, on_done=None):
            for i, r in enumerate(requests):
                if f"{run.rows[1].query_id}" == target(r.context):
                    raise RequestError(i, "too long for me")
            return super().score(requests, on_done)

    def target(context):
        text = context.split("\n\n")[-1].split("\n")[0].removeprefix("Text: ")
        return next(q for q, t in texts.items() if t["input"] == text and "output" not in t)

    rows = [replace(run.rows[0], failure="refused"), *run.rows[1:4]]
    found = explain(run, texts, Narrow(), rows)
    assert [item.row for item in found] == rows[2:]
    with pytest.raises(DataError, match=r"nothing can be explained: query .*it failed in the run \(refused\)"):
        explain(run, texts, FakeLM(), rows[:1])


def test_a_run_of_a_reranker_is_explained_with_the_reranker(tmp_path, home):
    task, lm, reranker = classification(test=6), copying_lm(), OverlapReranker()
    run = evaluate(task, "rerank,of=bm25,depth=8", lm, k=3, reranker=reranker, out=tmp_path)
    found, bench = explain(run, load_texts(tmp_path / run.id), lm, run.rows[:1])[0], make_bench(task)
    full = with_runner_up(found, run, bench, Tools(lm, reranker=reranker))
    chosen = make_selector("rerank,of=bm25,depth=8").fit(bench.view, Tools(lm, reranker=reranker).kit(bench.context))
    assert full.next is not None
    assert full.next[0].id == chosen.select(bench.queries[0], 4).ids[3]
    with pytest.raises(NeedError, match="--reranker"):
        with_runner_up(found, run, bench, Tools(lm))
