"""What each method makes of scores: lessons, batches, what the trainer reads, and what is measured."""

from __future__ import annotations

import multiprocessing
import os
from collections import Counter
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from iclkit.datasets import Task
from iclkit.embed import RetrieverFormat
from iclkit.prompts import Template
from iclkit.records import Example, fold_text
from iclkit.testing import FakeLM, HashEmbedder
from iclkit.trainers import (
    EPR,
    LLMR,
    METHODS,
    UDR,
    Feedback,
    Ledger,
    Miner,
    Session,
    TrainingRow,
    corpus_of_tasks,
    oracle_share,
    preset,
)
from iclkit.trainers._fit import Collator, RetrieverLoss, SequentialSampler, TrainingTexts, load_encoder
from iclkit.trainers._llm_r import eligible_extremes, reward_query_text
from iclkit.trainers._method import HeldOutQueries, candidate_gain, in_batches
from iclkit.trainers._whole import SEAL, last_checkpoint, seal

from .conftest import config_for

SMALL = {"queries": 10, "held_out": 2, "report": 2}
LABELS = ("a", "b", "c")


def some_task(name: str, n: int, labels: tuple[str, ...] = LABELS) -> Task:
    rows = [Example(f"{name} text {i} about {i % 7}", LABELS[i % 3], task=name) for i in range(n)]
    return Task(name, "classification", tuple(rows[:-3]), tuple(rows[-3:]), Template(), labels=labels)


TASKS = (some_task("small", 33), some_task("large", 93), some_task("free", 33, ()))


def session(method: str = "epr", **changes: Any) -> Session:
    config = config_for(method, **{**SMALL, **changes})
    corpus = corpus_of_tasks(TASKS, config)
    feedback = Feedback(FakeLM(), Ledger(":memory:"))
    return Session(config, corpus, feedback, Miner(corpus, 0, HashEmbedder()), RetrieverFormat(), Path("work"))


S = session()
ROW = int(S.corpus.tasks[0].queries[0])


def ranked(values: list[float], rows: list[int] | None = None) -> list[tuple[int, float]]:
    rows = rows or [*range(100, 100 + len(values))]
    return sorted(zip(rows, values, strict=True), key=lambda rv: (-rv[1], rv[0]))


# values with many ties among them
valued = st.lists(st.integers(-60, 0).map(lambda v: v / 4), min_size=0, max_size=40)


# -- UDR --


@given(valued, st.integers(2, 8), st.integers(1, 6), st.integers(1, 6), st.integers(1, 3), st.integers(0, 3))
@settings(max_examples=300, deadline=None)
def test_udr_takes_some_of_the_best_one_of_the_worst_and_keeps_the_lms_order(values, size, best, worst, top, epoch):
    s = replace(S, config=preset("udr", list_size=size, positives=best, negatives=worst, top_sampled=top))
    own = ranked(values)
    lesson = UDR().training_row(s, ROW, own, epoch)
    if len(own) < max(size, best + worst):
        assert lesson is None
        return
    if lesson is None:
        return  # all that was drawn ties: see the next test
    place, worth = {r: n for n, (r, _) in enumerate(own)}, dict(own)
    at = [place[r] for r in lesson.documents]
    assert at == sorted({*at})
    assert len(at) == size
    assert sum(p < best for p in at) >= 1
    if len(own) - best - worst >= size - 1 - min(top, best, size - 1):
        assert sum(p < best for p in at) == min(top, best, size - 1)
        assert sum(p >= len(own) - worst for p in at) == 1
    assert any(p >= len(own) - worst for p in at)
    drawn = [worth[r] for r in lesson.documents]
    assert lesson.values == tuple(1 + sum(w > v for w in drawn) for v in drawn)
    assert lesson == UDR().training_row(s, ROW, own, epoch)


def test_udr_learns_nothing_from_candidates_that_all_tie() -> None:
    config = preset("udr", list_size=4, positives=2, negatives=2)
    s = replace(S, config=config)
    assert UDR().training_row(s, ROW, ranked([-1.0] * 20), 0) is None
    assert UDR().training_row(s, ROW, ranked([-float(n) for n in range(20)]), 0) is not None


def test_udr_draws_other_candidates_in_each_epoch() -> None:
    s = replace(S, config=preset("udr"))
    own = ranked([-float(n) for n in range(30)])
    lessons = [UDR().training_row(s, ROW, own, epoch) for epoch in range(40)]
    shown = Counter(r for lesson in lessons for r in lesson.documents)
    assert len({lesson.documents for lesson in lessons}) > 30
    assert {*range(100, 130)} == {*shown}


# -- EPR --


@given(valued, st.integers(1, 6), st.integers(1, 6), st.integers(0, 3), st.integers(0, 2))
@settings(max_examples=300, deadline=None)
def test_epr_sets_one_of_the_best_against_some_of_the_worst(values, positives, negatives, hard, epoch) -> None:
    s = replace(S, config=preset("epr", positives=positives, negatives=negatives, hard_negatives=hard))
    own = ranked(values)
    lesson = EPR().training_row(s, ROW, own, epoch)
    if lesson is None:
        distinct = len({*values}) == len(values)
        assert not (distinct and len(values) >= positives + negatives and hard <= negatives)
        return
    first, *against = lesson.documents
    assert first in [r for r, _ in own[:positives]]
    assert {*against} <= {r for r, _ in own[-negatives:]}
    assert len({*against}) == len(against) == hard
    assert all(dict(own)[r] < dict(own)[first] for r in against)


def test_top1_always_takes_the_best_and_topk_takes_each_in_turn() -> None:
    own = ranked([-float(n) for n in range(20)])
    firsts = {
        how: {
            EPR().training_row(replace(S, config=preset("epr", positive_sampling=how)), ROW, own, e).documents[0]
            for e in range(30)
        }
        for how in ("top1", "topk")
    }
    assert firsts == {"top1": {100}, "topk": {100, 101, 102}}


# -- LLM-R --


def in_pool(course: str, output: str | None = None) -> list[int]:
    rows = next(c for c in S.corpus.tasks if c.name == course).rows.tolist()
    return [r for r in rows if r != ROW and output in (None, S.corpus.examples[r].output)]


@given(st.lists(st.floats(-9, 0), min_size=12, max_size=25, unique=True), st.integers(0, 3))
@settings(max_examples=150, deadline=None)
def test_llm_rs_positive_has_the_highest_reward_and_its_teacher_are_the_rewards(values, epoch) -> None:
    s = replace(S, config=preset("llm-r", hard_negatives=2, negatives=5, positives=3))
    own = ranked(values, in_pool("small")[: len(values)])
    lesson = LLMR().training_row(s, ROW, own, epoch)
    first, *against = lesson.documents
    assert first == own[0][0]
    assert {*against} <= {r for r, _ in own[-5:]}
    assert len({*against}) == 2
    assert lesson.values == tuple(dict(own)[r] for r in lesson.documents)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_by_the_label_rule_positives_have_the_querys_label_and_no_negative_has_it(data) -> None:
    s = replace(S, config=preset("llm-r", label_rule=True, hard_negatives=1, negatives=6, positives=3))
    rows = data.draw(st.lists(st.sampled_from(in_pool("small")), min_size=8, max_size=20, unique=True))
    values = data.draw(st.lists(st.floats(-9, 0), min_size=len(rows), max_size=len(rows), unique=True))
    own, label = ranked(values, rows), S.corpus.examples[ROW].output
    of = {r: S.corpus.examples[r].output for r in rows}
    best, worst = eligible_extremes(s, ROW, own, 3, 6)
    assert {of[r] for r in best} <= {label}
    assert label not in {of[r] for r in worst}
    lesson = LLMR().training_row(s, ROW, own, 0)
    same = [(r, v) for r, v in own if of[r] == label]
    if len(same) < len(own) and same:
        assert lesson is not None
    if lesson:
        assert lesson.documents[0] == same[0][0]
        assert all(of[r] != label for r in lesson.documents[1:])
        assert lesson.values == tuple(dict(own)[r] for r in lesson.documents)
    groups = LLMR()._groups(replace(s, config=replace(s.config, reward_negatives=2, reward_epochs=1)), {ROW: own})
    for group in groups:
        ((_, (first, *against)),) = group
        assert first.endswith(f"\t{label}")
        assert not any(text.endswith(f"\t{label}") for text in against)


def test_the_label_rule_is_for_tasks_with_labels_only() -> None:
    config = preset("llm-r", label_rule=True, negatives=5, hard_negatives=3)
    course = S.corpus.tasks[2]
    own = ranked([-float(n) for n in range(20)], course.rows.tolist()[:20])
    s = replace(S, config=config)
    ruled, free = LLMR().training_row(s, int(course.rows[25]), own, 0), LLMR().training_row(
        replace(s, config=replace(config, label_rule=False)), int(course.rows[25]), own, 0
    )  # fmt: skip
    assert ruled == free
    assert ruled is not None


@pytest.mark.parametrize("label_rule", [False, True])
def test_missing_negatives_are_refilled_by_strangers_of_reward_minus_100(label_rule) -> None:
    config = preset("llm-r", hard_negatives=3, negatives=2, positives=2, label_rule=label_rule)
    s = replace(S, config=config)
    label = S.corpus.examples[ROW].output
    same = [r for r in in_pool("small", label) if r not in S.miner.forbidden(S.corpus.examples[ROW])]
    other = [r for r in in_pool("small") if S.corpus.examples[r].output != label]
    own = ranked([-1.0, -2.0, -3.0], [*same[:2], other[0]])
    assert LLMR().training_row(s, ROW, own, 0) is None
    row = LLMR().training_row(replace(s, config=replace(config, refill=True)), ROW, own, 0)
    assert row is not None
    assert row.documents[0] == same[0]
    known = dict(own)
    strangers = [r for r in row.documents if r not in known]
    assert strangers
    assert not {*strangers} & {ROW, *S.miner.forbidden(S.corpus.examples[ROW])}
    assert row.values == tuple(known.get(r, -100.0) for r in row.documents)
    assert len({*row.documents}) == 4
    if label_rule:
        assert all(S.corpus.examples[r].output != label for r in row.documents[1:])
    assert preset("llm-r", "paper").refill


def test_a_demonstration_of_another_task_is_never_a_positive() -> None:
    s = replace(S, config=preset("llm-r", cross_task=True, hard_negatives=1, negatives=8, positives=3))
    mixed = in_pool("large")[:10] + in_pool("small")[:10]
    own = ranked([-float(n) for n in range(20)], mixed)  # the foreign ones look best
    lesson = LLMR().training_row(s, ROW, own, 0)
    assert lesson.documents[0] == in_pool("small")[0]
    assert LLMR().training_row(s, ROW, own[:10], 0) is None


# -- batches --


def lessons_of(s: Session, counts: dict[str, int]) -> dict[str, list[Any]]:
    return {name: [(name, n) for n in range(count)] for name, count in counts.items()}


@given(
    st.dictionaries(st.sampled_from("pqrs"), st.integers(0, 60), max_size=4), st.integers(1, 16), st.integers(0, 3)
)  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_an_epoch_shows_each_lesson_once_in_batches_of_one_task(counts, size, epoch) -> None:
    made = lessons_of(S, counts)
    batches = in_batches(S, made, size, epoch)
    assert all(len({name for name, _ in batch}) == 1 and len(batch) <= size for batch in batches)
    assert sorted(x for b in batches for x in b) == sorted(x for own in made.values() for x in own)
    assert len(batches) == sum(-(-count // size) for count in counts.values())
    assert batches == in_batches(S, made, size, epoch)


@pytest.mark.parametrize("power", [0.5, 0.25])
def test_tasks_are_seen_in_proportion_to_a_power_of_their_share(power) -> None:
    counts = {"p": 30, "q": 300, "r": 900}
    batches = in_batches(S, lessons_of(S, counts), 4, 0, power=power)
    seen = Counter(name for batch in batches for name, _ in batch)
    assert all(len({name for name, _ in batch}) == 1 for batch in batches)
    assert sum(seen.values()) == pytest.approx(1230, abs=2)
    weights = {name: (count / 1230) ** power for name, count in counts.items()}
    for name, weight in weights.items():
        assert seen[name] / 1230 == pytest.approx(weight / sum(weights.values()), abs=0.002)
    shown = Counter(x for batch in batches for x in batch if x[0] == "p")
    assert len(shown) == 30
    assert max(shown.values()) - min(shown.values()) <= 1  # whole rounds before any lesson comes again


def test_udr_evens_tasks_out_and_epr_does_not() -> None:
    def seen(method: Any, name: str) -> Counter[str]:
        s = session(name, queries=0, epochs=4, batch_size=4, list_size=4, positives=2, negatives=2)
        gathered = {
            row: ranked([-float(n) for n in range(12)], course.rows.tolist()[:12])
            for course in s.corpus.tasks
            for row in course.queries.tolist()
        }
        return Counter(s.task_of(x.query).name for batch in method.batches(s, gathered) for x in batch)

    epr, udr = seen(EPR(), "epr"), seen(UDR(), "udr")
    assert epr["large"] / epr["small"] == pytest.approx(88 / 28)
    assert udr["large"] / udr["small"] == pytest.approx((88 / 28) ** 0.5, rel=0.05)
    assert sum(epr.values()) == pytest.approx(sum(udr.values()), abs=12)


def test_max_steps_is_the_number_of_batches_and_epochs_follow_each_other() -> None:
    s = session("epr", max_steps=17, batch_size=4)
    gathered = {
        row: ranked([-float(n) for n in range(12)], course.rows.tolist()[:12])
        for course in s.corpus.tasks
        for row in course.queries.tolist()
    }
    batches = EPR().batches(s, gathered)
    assert len(batches) == 17
    assert Counter(x.query for batch in batches[:9] for x in batch) == dict.fromkeys(gathered, 1)
    assert s.facts["queries"] == {"scored": 30, "used": 30}
    assert EPR().batches(s, {row: own[:1] for row, own in gathered.items()}) == []


# -- what the encoder reads --


def test_the_query_side_never_reads_the_answer_and_the_reward_model_does() -> None:
    def other(task: Task) -> Task:
        return replace(task, train=tuple(Example(e.input, "other", task=e.task) for e in task.train), labels=())

    one, two = session(), session()
    two.corpus = corpus_of_tasks([other(t) for t in TASKS], preset("epr", **SMALL))
    for s in (one, two):
        s.rendering = RetrieverFormat(instructions={"small": "Say:", "large": "Think:"})
    rows = range(len(one.corpus.examples))
    assert [one.query_text(r) for r in rows] == [two.query_text(r) for r in rows]
    assert one.query_text(ROW).startswith("Say: small text")
    assert all(one.document_text(r) != two.document_text(r) for r in rows)
    assert all(reward_query_text(one, r) != reward_query_text(two, r) for r in rows)


class Batch:
    """An encoder that only notes the texts."""

    def __init__(self, query: str = "", document: str = "") -> None:
        self.prompts = {"query": query, "document": document}

    def preprocess(self, texts: list[str], prompt: str | None = None, task: str = "") -> dict[str, Any]:
        return {"texts": [f"{task}|{prompt or ''}{t}" if task else f"{prompt or ''}{t}" for t in texts]}


def collate(
    lessons: list[TrainingRow],
    forbidden: dict[int, list[int]] | None = None,
    *,
    routed: bool = False,
    encoder: Any = None,
) -> Any:
    texts = TrainingTexts(lambda q, c: f"q{q}" + "".join(f"+{x}" for x in c), lambda d: f"d{d}",
                  lambda q: (forbidden or {}).get(q, []))  # fmt: skip
    rows = [{"query": x.query, "chosen": x.chosen, "documents": x.documents, "values": x.values} for x in lessons]
    return Collator(encoder or Batch(), texts, routed=routed)(rows)


@pytest.mark.parametrize("routed", [False, True])
def test_the_prefixes_of_the_base_stand_in_front_of_every_text_in_training(routed: bool) -> None:
    lessons = [TrainingRow(0, (5, 6)), TrainingRow(1, (6, 7))]
    batch = collate(lessons, encoder=Batch("query: ", "passage: "), routed=routed)
    for side, prefix in (("query", "query: "), ("document", "passage: ")):
        assert all(t.removeprefix(f"{side}|").startswith(prefix) for t in batch[f"{side}_texts"])


def test_equal_documents_of_a_batch_are_read_once() -> None:
    batch = collate([TrainingRow(0, (5, 6), (1.0, 2.0), (9, 8)), TrainingRow(1, (6, 7), (1.0, 2.0))])
    assert batch["query_texts"] == ["q0+9+8", "q1"]
    assert batch["document_texts"] == ["d5", "d6", "d7"]
    label = batch["label"]
    assert {name: tuple(tensor.shape) for name, tensor in label.items()} == {
        "columns": (2, 2), "values": (2, 2), "mask": (2, 4), "rows": (2, 3),
    }  # fmt: skip
    assert label["columns"].tolist() == [[0, 1], [1, 2]]
    assert label["values"].tolist() == [[1.0, 2.0], [1.0, 2.0]]
    routed = collate([TrainingRow(0, (5, 6))], routed=True)
    assert (routed["query_texts"], routed["document_texts"]) == (["query|q0"], ["document|d5", "document|d6"])
    assert (routed["query_task"], routed["document_task"]) == ("query", "document")


def test_the_own_positive_in_another_block_and_duplicates_of_the_query_are_no_negatives() -> None:
    # columns:          5  6      6  5      7  20     5  8
    lessons = [TrainingRow(0, (5, 6)), TrainingRow(1, (6, 5)), TrainingRow(2, (7, 20)), TrainingRow(3, (5, 8))]
    mask = collate(lessons, {1: [20, 7], 3: [6]})["label"]["mask"]
    assert mask.int().tolist() == [
        [0, 0, 0, 1, 0, 0, 1, 0],  # 5 again; its own block is never masked
        [0, 1, 0, 0, 1, 1, 0, 0],  # 6 again, and 7 and 20, which repeat the query
        [0, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0, 0],
    ]


def test_documents_of_others_with_the_own_answer_can_be_masked() -> None:
    answers = {0: "a", 1: "b", 5: "a", 6: "b", 7: "a", 8: "b"}
    texts = TrainingTexts(lambda q, c: f"q{q}", lambda d: f"d{d}", lambda q: [], answers.__getitem__)
    # columns: 5a 6b   8b 7a
    rows = [{"query": q, "chosen": (), "documents": d, "values": ()} for q, d in ((0, (5, 6)), (1, (8, 7)))]
    mask = Collator(Batch(), texts, routed=False)(rows)["label"]["mask"]
    assert mask.int().tolist() == [[0, 0, 0, 1], [0, 1, 0, 0]]


@pytest.mark.parametrize("method", ["epr", "udr", "llm-r", "se2"])
def test_masking_by_answer_is_a_setting_that_papers_leave_off(method) -> None:
    assert not preset(method, "paper").masks_labels
    assert preset(method, mask_labels=True).masks_labels
    assert "mask_labels" not in preset(method, "paper").identity()


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_the_mask_is_what_a_plain_loop_says(data) -> None:
    b, m = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    row = st.lists(st.integers(0, 9), min_size=m, max_size=m, unique=True)
    lessons = [TrainingRow(n, tuple(data.draw(row))) for n in range(b)]
    forbidden = {n: data.draw(st.lists(st.integers(0, 9), max_size=3)) for n in range(b)}
    mask = collate(lessons, forbidden)["label"]["mask"]
    for i, lesson in enumerate(lessons):
        for j, other in enumerate(lessons):
            for k, d in enumerate(other.documents):
                masked = i != j and (d == lesson.documents[0] or d in forbidden[i])
                assert bool(mask[i, j * m + k]) == masked


def test_no_duplicate_of_a_query_is_ever_a_negative_of_it_in_training() -> None:
    rows = [Example(f"Text number {i % 15}{'!' * (i // 15)}", LABELS[i % 3]) for i in range(45)]
    task = Task("t", "classification", tuple(rows), (Example("x", "a"),), Template(), labels=LABELS)
    config = preset("epr", queries=8, held_out=1, report=1)
    corpus = corpus_of_tasks([task], config)
    miner = Miner(corpus, 0)
    for row in corpus.tasks[0].queries.tolist():
        same = {r for r, e in enumerate(corpus.examples) if fold_text(e.text) == fold_text(corpus.examples[row].text)}
        assert {*miner.forbidden(corpus.examples[row])} == same
        assert len(same) == 3


@pytest.mark.parametrize(("towers", "frozen"), [(1, False), (2, False), (2, True)])
def test_the_gradient_reaches_both_towers_unless_documents_are_frozen(towers, frozen, bert) -> None:
    config = preset("epr", towers=towers, freeze_documents=frozen, max_tokens=16)
    model = load_encoder(config, bert)
    texts = TrainingTexts(lambda q, c: f"{TOPIC[q]}", lambda d: f"{TOPIC[d]} {TOPIC[-d]}", lambda q: [])
    lessons = [TrainingRow(0, (1, 2)), TrainingRow(3, (4, 5))]
    rows = [{"query": x.query, "chosen": (), "documents": x.documents, "values": ()} for x in lessons]
    batch = Collator(model, texts, routed=towers == 2)(rows)
    parts = [
        {k.removeprefix(f"{side}_"): v for k, v in batch.items() if k.startswith(f"{side}_")}
        for side in ("query", "document")
    ]
    loss = RetrieverLoss(model, partial(EPR().loss, config), freeze=frozen)(parts, batch["label"])
    loss.backward()
    if towers == 1:
        assert _moved(model)
        return
    routes = model[0].sub_modules
    assert _moved(routes["query"])
    assert _moved(routes["document"]) != frozen


@pytest.mark.parametrize("method", ["epr", "udr", "llm-r", "se2"])
@pytest.mark.parametrize("frozen", [False, True])
def test_texts_read_a_few_at_a_time_give_the_loss_and_the_gradient_of_the_whole_batch(method, frozen, bert) -> None:
    config = preset(method, towers=2, max_tokens=16)
    texts = TrainingTexts(lambda q, c: f"{TOPIC[q]}", lambda d: f"{TOPIC[d]} {TOPIC[-d]}", lambda q: [])
    values = {"udr": (1.0, 2.0, 3.0), "llm-r": (2.0, 0.5, -1.0)}.get(method, ())
    rows = [{"query": q, "chosen": (), "documents": (q + 1, q + 2, q + 4), "values": values} for q in range(5)]
    found = []
    for mini_batch in (0, 2):
        model = load_encoder(config, bert)
        batch = Collator(model, texts, routed=True)(rows)
        parts = [
            {k.removeprefix(f"{side}_"): v for k, v in batch.items() if k.startswith(f"{side}_")}
            for side in ("query", "document")
        ]
        of_batch = partial(METHODS[method]().loss, config)
        loss = RetrieverLoss(model, of_batch, freeze=frozen, mini_batch=mini_batch)(parts, batch["label"])
        loss.backward()
        found.append((loss.item(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}))
    (whole, gradient), (portions, again) = found
    assert portions == pytest.approx(whole, abs=1e-6)
    assert gradient.keys() == again.keys()
    for name, value in gradient.items():
        torch.testing.assert_close(again[name], value, atol=1e-6, rtol=1e-5)


def gathered_gradient(rank: int, many: int, method: str, mini_batch: int, bert: Path, meet: str, out: Path) -> None:
    """One of ``many`` processes: the mean gradient of their losses, each of its share of the rows, goes to a file."""
    import torch.distributed as dist

    if many > 1:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(many), "LOCAL_RANK": str(rank), "ACCELERATE_USE_CPU": "1"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
        dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=many, timeout=timedelta(seconds=60))
    config = preset(method, max_tokens=16, gather_across_devices=True)
    texts = TrainingTexts(lambda q, c: TOPIC[q], lambda d: f"{TOPIC[d]} {TOPIC[-d]}", lambda q: [(q + 3) % 8])
    values = {"udr": (1.0, 2.0, 3.0), "llm-r": (2.0, 0.5, -1.0)}.get(method, ())
    rows = [{"query": q, "chosen": (), "documents": (q + 1, q + 2, q + 4), "values": values} for q in range(4)]
    model = load_encoder(config, bert).eval()
    batch = Collator(model, texts, routed=False)(rows[rank * 4 // many : (rank + 1) * 4 // many])
    parts = [
        {k.removeprefix(f"{side}_"): v for k, v in batch.items() if k.startswith(f"{side}_")}
        for side in ("query", "document")
    ]
    of_batch = partial(METHODS[method]().loss, config)
    loss = RetrieverLoss(model, of_batch, freeze=False, mini_batch=mini_batch, gather=texts)(parts, batch["label"])
    loss.backward()
    found = {"loss": loss.detach()} | {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    if many > 1:
        for name in sorted(found):
            dist.all_reduce(found[name])
            found[name] /= many
        dist.destroy_process_group()
    if rank == 0:
        torch.save(found, out)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "mini_batch"), [("epr", 0), ("epr", 2), ("udr", 0), ("llm-r", 0)])
def test_gathered_batches_of_two_processes_give_the_gradient_of_one_batch_as_large(
    method, mini_batch, bert, tmp_path
) -> None:
    gathered_gradient(0, 1, method, 0, bert, "", tmp_path / "one.pt")
    args = [(rank, 2, method, mini_batch, bert, f"file://{tmp_path}/meet", tmp_path / "two.pt") for rank in range(2)]
    started = [multiprocessing.get_context("spawn").Process(target=gathered_gradient, args=a) for a in args]
    try:
        for process in started:
            process.start()
        for process in started:
            process.join(timeout=180)
        assert [process.exitcode for process in started] == [0, 0]
    finally:
        for process in started:
            process.kill()
    one, two = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=1e-5, rtol=1e-4, msg=lambda why, name=name: f"{name}: {why}")


def test_a_table_of_word_vectors_is_read_whole(bag) -> None:
    model = load_encoder(preset("epr"), bag)
    assert RetrieverLoss(model, lambda q, d, b: q.sum(), freeze=False, mini_batch=2).mini_batch_size == 0


def test_pairs_read_a_few_at_a_time_give_the_reward_models_loss_and_gradient(bert) -> None:
    from iclkit.trainers._reward import _GroupLoss, load_reward

    groups = ["rose oven", "boat pan"], [("rose", "oven", "pan"), ("boat", "chalk", "nurse")]
    found = []
    for mini_batch in (0, 2):
        model = load_reward(preset("llm-r", reward_base=str(bert)), bert).eval()
        loss = _GroupLoss(model, mini_batch)(groups, torch.zeros(2))
        loss.backward()
        found.append((loss.item(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}))
    assert found[1][0] == pytest.approx(found[0][0], abs=1e-6)
    for name, value in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], value, atol=1e-6, rtol=1e-5)


def test_the_reward_models_loss_is_list_net_with_all_mass_on_the_positive(bert) -> None:
    from sentence_transformers.cross_encoder.losses import ListNetLoss

    from iclkit.trainers._reward import _GroupLoss, load_reward

    model = load_reward(preset("llm-r", reward_base=str(bert)), bert).eval()
    groups = ["rose oven", "boat pan"], [["rose", "oven", "pan"], ["boat", "chalk", "nurse"]]
    theirs = ListNetLoss(model)(groups, [torch.tensor([1000.0, 0, 0])] * 2)
    assert _GroupLoss(model)(groups, torch.zeros(2)).item() == pytest.approx(theirs.item(), abs=1e-6)


TOPIC = ["rose", "tulip", "oven", "pan", "boat", "anchor", "pupil", "chalk", "nurse", "ward"]


def _moved(module: torch.nn.Module) -> bool:
    return any(p.grad is not None and float(p.grad.abs().sum()) > 0 for p in module.parameters())


def test_batches_come_in_the_order_they_were_written() -> None:
    from datasets import Dataset

    data = Dataset.from_dict({"batch": [0, 0, 0, 1, 2, 2, 5], "x": [*range(7)]})
    sampler = SequentialSampler(data, batch_size=99, drop_last=False, valid_label_columns=["label"], seed=3)
    assert [*sampler] == [*sampler] == [[0, 1, 2], [3], [4, 5], [6]]
    assert len(sampler) == 4


# -- checkpoints --


def test_the_last_whole_checkpoint_is_found_and_damaged_ones_are_passed_over_with_a_word(tmp_path) -> None:
    assert last_checkpoint(tmp_path / "none") is None
    for step in (5, 25, 100, 125, 150):
        folder = tmp_path / f"checkpoint-{step}"
        (folder / "module").mkdir(parents=True)
        (folder / "module" / "model.safetensors").write_bytes(b"weights")
        (folder / "trainer_state.json").write_text("{}")
        if step != 150:  # killed while it was written
            seal(folder)
    (tmp_path / "checkpoint-100" / "module" / "model.safetensors").write_bytes(b"weightz")  # a bit turned round
    (tmp_path / "checkpoint-125" / "trainer_state.json").unlink()
    (tmp_path / "checkpoint-nothing").mkdir()
    heard: list[str] = []
    assert last_checkpoint(tmp_path, heard.append) == tmp_path / "checkpoint-25"
    assert [line.split("checkpoint-")[1].split()[0] for line in heard] == ["150", "125", "100"]
    (tmp_path / "checkpoint-25" / SEAL).write_text("[]")
    (tmp_path / "checkpoint-5" / SEAL).write_text("{oops")
    assert last_checkpoint(tmp_path) is None


# -- what is measured --


class Table:
    """An encoder that looks vectors up by text."""

    def __init__(self, dim: int = 6) -> None:
        self.dim = dim

    def _encode(self, texts: list[str], **_: Any) -> np.ndarray:
        return np.array([HashEmbedder(self.dim).encode_queries([t])[0] for t in texts])

    encode_query = encode_document = _encode


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_the_gain_is_that_of_a_plain_loop_over_queries(data) -> None:
    parts, gains = [], []
    for course in S.corpus.tasks[:2]:
        queries = [S.corpus.examples[int(r)] for r in course.held_out]
        lists = []
        for query in queries:
            rows = data.draw(st.lists(st.sampled_from(course.rows.tolist()), min_size=2, max_size=6, unique=True))
            own = ranked([data.draw(st.floats(-5, 0)) for _ in rows], rows)
            lists.append(own)
            at = HashEmbedder(6).encode_queries([query.text])[0].astype(float)
            near = {r: float(HashEmbedder(6).encode_queries([S.document_text(r)])[0].astype(float) @ at) for r in rows}
            best = max(near.values())
            chosen = next(v for r, v in sorted(own) if near[r] > best - 1e-9)
            gains.append(chosen - sum(v for _, v in own) / len(own))
        parts.append(HeldOutQueries(course, queries, lists))
    assert candidate_gain(S, Table(), parts) == pytest.approx(sum(gains) / len(gains), abs=1e-9)


def test_a_tie_of_the_model_goes_to_the_lower_row_not_to_what_the_lm_likes_best() -> None:
    class Blind(Table):
        def encode_document(self, texts: list[str], **_: Any) -> np.ndarray:
            return np.ones((len(texts), self.dim))

    course = S.corpus.tasks[0]
    low, high = course.rows[:2].tolist()
    query = S.corpus.examples[int(course.held_out[0])]
    parts = [HeldOutQueries(course, [query], [[(high, -1.0), (low, -3.0)]])]
    assert candidate_gain(S, Blind(), parts) == pytest.approx(-1.0)


def test_without_held_out_queries_the_gain_is_nothing() -> None:
    assert candidate_gain(S, Table(), [HeldOutQueries(S.corpus.tasks[0], [], [])]) == 0.0


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0.125, 4)), min_size=1, max_size=30), st.integers(0, 5))
@settings(max_examples=15, deadline=None)
def test_the_captured_share_is_a_ratio_of_means_within_its_interval(pairs, seed) -> None:
    best = np.array([b for _, b in pairs])
    gain = np.array([part * b for part, b in pairs])
    found = oracle_share(gain, best, seed)
    assert found.value == pytest.approx(sum(gain) / sum(best))
    assert -1e-9 <= found.low <= found.high <= 1 + 1e-9
    draws = np.random.default_rng(seed).integers(len(best), size=(2000, len(best)))
    ratios = sorted(sum(gain[i] for i in draw) / sum(best[i] for i in draw) for draw in draws[:2000].tolist())
    assert found.low == pytest.approx(np.quantile(ratios, 0.025))
    assert found.high == pytest.approx(np.quantile(ratios, 0.975))


def test_all_of_the_head_room_is_one_none_is_nought_and_without_any_there_is_no_share() -> None:
    best = np.array([1.0, 2.0, 0.0])
    assert [oracle_share(best, best, 0).value, oracle_share(0 * best, best, 0).value] == [1.0, 0.0]
    assert oracle_share(-best, best, 0).value == -1.0
    assert np.isnan(oracle_share(best * 0, best * 0, 0).value)
    assert np.isnan(oracle_share(np.array([]), np.array([]), 0).value)
