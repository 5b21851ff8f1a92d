from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from iclkit.datasets import Task
from iclkit.embed import Embedder, load_embedder
from iclkit.errors import UsageError
from iclkit.lm import GenerateRequest, ScoreRequest
from iclkit.pool import Pool
from iclkit.prompts import assemble
from iclkit.records import Example, Query
from iclkit.selectors import Kit, make_selector
from iclkit.testing import (
    CoverageLM,
    FeedbackLM,
    HashEmbedder,
    HiddenModeLM,
    conflicting_tasks,
    hidden_mode_task,
    pair_task,
    redundancy_task,
    shuffled_judge,
)
from iclkit.testing._feedback_tasks import TOPICS
from iclkit.trainers import _losses as losses

torch.set_num_threads(1)
SEEDS = (0, 1, 2)


def tasks_of(seed: int) -> dict[str, tuple[Task, FeedbackLM]]:
    (hue, tone), both = conflicting_tasks(seed=seed)
    return {
        "mode": hidden_mode_task(seed=seed),
        "words": hidden_mode_task(seed=seed, kind="generation"),
        "hue": (hue, both),
        "tone": (tone, both),
        "pair": pair_task(seed=seed),
        "sum": pair_task(seed=seed, independent=True),
        "cover": redundancy_task(seed=seed),
    }


ALL = tasks_of(0)


def chance_read(judge: FeedbackLM, task: Task, query: Example, shown: Sequence[Example]) -> float:
    """Probability of the right answer, by way of a prompt."""
    prompt = assemble(task.template, Query(query.input), shown)
    (score,) = judge.score([ScoreRequest(prompt.text, prompt.answer_prefix + query.output)])
    return math.exp(score.logprob)


def share_solved(task: Task, judge: FeedbackLM, choose: Callable[[Example], Sequence[Example]]) -> float:
    return float(np.mean([judge.solved(q.text, choose(q), task.template.instruction) for q in task.test]))


def by_selector(task: Task, spec: str, k: int, embedder: Embedder | None) -> Callable[[Example], Sequence[Example]]:
    selector = make_selector(spec).fit(Pool.of(task.train).view(), Kit(embedder=embedder))
    rows = {e.id: e for e in task.train}
    return lambda query: [rows[i] for i in selector.select(Query(query.input), k).ids]


def one_by_one(task: Task, judge: FeedbackLM, k: int) -> Callable[[Example], Sequence[Example]]:
    """The k best demonstrations when each is judged alone; those that are alike in that by how they look."""
    vectors = HashEmbedder().encode_documents([e.text for e in task.train])

    def choose(query: Example) -> Sequence[Example]:
        near = vectors @ HashEmbedder().encode_queries([query.text])[0]
        alone = [judge.chance(query.text, [e], task.template.instruction) for e in task.train]
        return [task.train[n] for n in np.lexsort((-near, -np.array(alone)))[:k]]

    return choose


def one_after_the_other(task: Task, judge: FeedbackLM, k: int) -> Callable[[Example], Sequence[Example]]:
    """k times the demonstration that is best beside those chosen before."""

    def choose(query: Example) -> Sequence[Example]:
        chosen: list[Example] = []
        for _ in range(k):
            left = [e for e in task.train if e not in chosen]
            chosen.append(max(left, key=lambda e: judge.chance(query.text, [*chosen, e], task.template.instruction)))
        return chosen

    return choose


# ---- the tasks


def topic_of(text: str) -> int:
    """The topic that most words of a text belong to."""
    return max(range(len(TOPICS)), key=lambda n: sum(word in TOPICS[n] for word in text.split()))


def coined(text: str) -> list[str]:
    return [word for word in text.split() if not any(word in topic for topic in TOPICS)]


def test_a_text_is_six_words_of_one_topic_and_the_forms_of_its_features() -> None:
    words = [w for topic in TOPICS for w in topic]
    assert len({*words}) == len(words) == 120
    for name, (task, judge) in ALL.items():
        for example in (*task.train, *task.test):
            forms = coined(example.text)
            expected = {"hue": 2, "tone": 2}.get(name, 1)
            if isinstance(judge, CoverageLM):
                expected = len(judge.attributes(example.text))
            assert len(forms) == expected
            rest = [w for w in example.text.split() if w not in forms]
            assert len(rest) == 6
            assert {*rest} <= {*TOPICS[topic_of(example.text)]}


@pytest.mark.parametrize("name", ALL)
def test_a_task_is_determined_by_its_seed(name: str) -> None:
    (task, judge), (again, same), (other, different) = ALL[name], tasks_of(0)[name], tasks_of(1)[name]
    assert task.hash == again.hash != other.hash
    assert judge.fingerprint == same.fingerprint != different.fingerprint
    assert not {e.text for e in task.train} & {e.text for e in other.train}


@pytest.mark.parametrize("name", ALL)
def test_all_texts_differ_and_every_answer_is_the_judges(name: str) -> None:
    task, judge = ALL[name]
    texts = [e.text for e in (*task.train, *task.test)]
    assert len({*texts}) == len(texts)
    assert [judge.gold(e.text) for e in (*task.train, *task.test)] == [e.output for e in (*task.train, *task.test)]
    if task.labels:
        counts = Counter(e.output for e in task.train)
        assert set(counts) == set(task.labels)
        assert min(counts.values()) > 0.6 * len(task.train) / len(task.labels)
    else:
        assert len({e.output for e in task.train}) > 0.9 * len(task.train)


def test_judges_have_fingerprints_of_their_own() -> None:
    judges = [judge for _, judge in ALL.values()]
    judges += [shuffled_judge(ALL["mode"][1]), shuffled_judge(ALL["mode"][1], 1)]
    assert len({j.fingerprint for j in judges}) == len(judges) - 1  # hue and tone have one judge


def test_forms_of_a_mode_stand_in_no_two_texts_of_a_topic_and_all_of_them_in_train() -> None:
    for seed in SEEDS:
        task, judge = hidden_mode_task(seed=seed)
        texts = [e.text for e in (*task.train, *task.test)]
        assert {coined(t)[0] for t in texts[:240]} == {form for f in judge.features.values() for form in f}
        assert len({(topic_of(t), coined(t)[0]) for t in texts}) >= 290  # of 300
        assert {*Counter(judge.mode(t) for t in texts[:240]).values()} == {40}


def test_too_few_rows_for_the_forms_are_refused() -> None:
    with pytest.raises(UsageError, match="do not come up in 20 train rows"):
        hidden_mode_task(train=20)
    with pytest.raises(UsageError, match="multiple of 4"):
        redundancy_task(train=42)
    assert len(hidden_mode_task(train=30, test=4)[0].train) == 30
    assert len(redundancy_task(train=40, test=10)[0].test) == 10


# ---- the judges


def helpful_and_not(task: Task, judge: HiddenModeLM, query: Example) -> tuple[list[Example], list[Example]]:
    same = [judge.mode(e.text) == judge.mode(query.text) for e in task.train]
    return [e for e, s in zip(task.train, same, strict=True) if s], [
        e for e, s in zip(task.train, same, strict=True) if not s
    ]


@pytest.mark.parametrize("kind", ["classification", "generation"])
def test_the_right_answer_is_likely_iff_a_demonstration_has_the_mode_and_more_so_with_more(kind: str) -> None:
    task, judge = hidden_mode_task(kind=kind)
    for query in task.test[:10]:
        good, bad = helpful_and_not(task, judge, query)
        for shown, chance in [
            ([], 0.1),
            (bad[:3], 0.1),
            ([*bad[:3], good[0]], 0.6),
            ([good[0], *bad[:3]], 0.6),
            ([good[0], bad[0], good[1]], 0.8),
            (good[:3], 0.9),
        ]:
            assert chance_read(judge, task, query, shown) == pytest.approx(chance)
            assert judge.solved(query.text, shown) == (chance >= 0.6)


def test_probabilities_of_the_labels_add_up_to_1_and_other_words_are_unlikely() -> None:
    task, judge = ALL["mode"]
    text = assemble(task.template, Query(task.test[0].input), task.train[:2]).text
    scores = judge.score([ScoreRequest(text, f" {label}") for label in (*task.labels, "sideways")])
    assert sum(math.exp(s.logprob) for s in scores[:-1]) == pytest.approx(1)
    assert scores[-1].logprob < min(s.logprob for s in scores[:-1]) - 3


@pytest.mark.parametrize("kind", ["classification", "generation"])
def test_generation_is_right_iff_the_right_answer_is_likely(kind: str) -> None:
    task, judge = hidden_mode_task(kind=kind)
    for query in task.test[:10]:
        good, bad = helpful_and_not(task, judge, query)
        prompts = [assemble(task.template, Query(query.input), shown).text for shown in (good[:1], bad[:4])]
        for choices in {(), task.labels}:
            right, wrong = judge.generate([GenerateRequest(p, 8, ("\n",), choices) for p in prompts])
            assert right.text.strip() == query.output
            assert wrong.text.strip() != query.output


def test_a_judge_refuses_what_it_cannot_read() -> None:
    task, judge = ALL["mode"]
    for context in ("", "Say something.", "Input: a\nLabel: b", f"Input: {task.test[0].text}\nOutput:"):
        with pytest.raises(ValueError, match=r"open 'Label:'"):
            judge.score([ScoreRequest(context, " north")])
    with pytest.raises(ValueError, match="not a text of this task"):
        judge.score([ScoreRequest(f"Input: nothing\nLabel: north\n\nInput: {task.test[0].text}\nLabel:", " north")])


def test_the_shuffled_judge_gives_the_same_scores_without_a_signal() -> None:
    task, judge = hidden_mode_task()
    control = shuffled_judge(judge)
    pairs = [(q, e) for q in task.test for e in task.train]
    helps = np.array([control.helps(q.text, e) for q, e in pairs])
    truth = np.array([judge.helps(q.text, e) for q, e in pairs])
    assert truth.mean() == pytest.approx(1 / 6, abs=0.01)
    assert helps.mean() == pytest.approx(1 / 6, abs=0.01)
    assert helps[truth].mean() == pytest.approx(1 / 6, abs=0.02)
    assert [control.helps(q.text, e) for q, e in pairs] == helps.tolist()
    other = shuffled_judge(judge, 1)
    assert np.mean([other.helps(q.text, e) for q, e in pairs[:2400]] == helps[:2400]) < 0.8
    assert {round(chance_read(control, task, q, [e]), 6) for q, e in pairs[:100]} == {0.1, 0.6}
    assert control.mode(task.test[0].text) == judge.mode(task.test[0].text)


def test_only_the_instruction_tells_which_feature_counts() -> None:
    (hue, tone), judge = conflicting_tasks()
    said = [t.template.instruction for t in (hue, tone)]
    assert [t.card.description for t in (hue, tone)] == said
    query = hue.test[0]
    rows = {
        tuple(judge.mode(e.text, i) == judge.mode(query.text, i) for i in said): e for e in (*hue.train, *tone.train)
    }
    assert chance_read(judge, hue, query, [rows[True, False]]) == pytest.approx(0.6)
    assert chance_read(judge, tone, query, [rows[True, False]]) == pytest.approx(0.1)
    assert chance_read(judge, hue, query, [rows[False, True]]) == pytest.approx(0.1)
    assert chance_read(judge, tone, query, [rows[False, True]]) == pytest.approx(0.6)
    with pytest.raises(ValueError, match="knows the instructions"):
        judge.score([ScoreRequest(f"Input: {query.text}\nLabel:", " north")])


def test_no_row_of_train_has_both_modes_of_a_test_row_so_one_choice_for_both_tasks_is_right_for_one_at_most() -> None:
    for seed in SEEDS:
        (hue, tone), judge = conflicting_tasks(seed=seed)
        said = [t.template.instruction for t in (hue, tone)]
        assert [e.text for e in (*hue.train, *hue.test)] == [e.text for e in (*tone.train, *tone.test)]
        assert not {e.id for e in hue.train} & {e.id for e in tone.train}
        for query in hue.test:
            shared = {tuple(judge.mode(e.text, i) == judge.mode(query.text, i) for i in said) for e in hue.train}
            assert shared == {(True, False), (False, True), (False, False)}
        for i in said:
            assert {judge.mode(e.text, i) for e in hue.test} == {f"mode {n}" for n in range(8)}


def test_a_pair_of_both_labels_is_needed_and_two_of_one_mislead() -> None:
    task, judge = ALL["pair"]
    for query in task.test[:10]:
        good, bad = helpful_and_not(task, judge, query)
        upper, lower = ([e for e in good if e.output == label] for label in task.labels)
        for shown, chance in [
            ([], 0.2),
            ([bad[0], bad[1]], 0.2),
            ([upper[0]], 0.6),
            ([lower[0], bad[0]], 0.55),
            ([upper[0], upper[1]], 0.3),
            ([lower[0], bad[0], lower[1]], 0.3),
            ([upper[0], lower[0]], 0.95),
            ([lower[0], upper[0], upper[1]], 0.95),
        ]:
            assert chance_read(judge, task, query, shown) == pytest.approx(chance)
            assert judge.solved(query.text, shown) == (chance == 0.95)


def test_near_duplicates_cover_the_same_half() -> None:
    for seed in SEEDS:
        task, judge = redundancy_task(seed=seed)
        asked = [judge.attributes(e.text) for e in (*task.train, *task.test)]
        doubles = [a for a in asked if len(a) == 2]
        assert len({*doubles}) == len(doubles) == 180
        assert all(len(judge.attributes(e.text)) == 2 for e in task.test)
        singles = [e.text for e in task.train if len(judge.attributes(e.text)) == 1]
        assert len(singles) == 120
        for text in singles:
            twins = [t for t in singles if sum(x != y for x, y in zip(t.split(), text.split(), strict=True)) == 1]
            assert len(twins) == 1
            assert judge.attributes(twins[0]) == judge.attributes(text)
        query = task.test[0]
        one, other = sorted(judge.attributes(query.text))
        halves = [[e for e in task.train if a in judge.attributes(e.text)] for a in (one, other)]
        rest = [e for e in task.train if not judge.attributes(e.text) & {one, other}]
        assert chance_read(judge, task, query, []) == pytest.approx(0.1)
        assert chance_read(judge, task, query, rest[:3]) == pytest.approx(0.1)
        assert chance_read(judge, task, query, [halves[0][0], halves[0][1], rest[0]]) == pytest.approx(0.2)
        assert chance_read(judge, task, query, [halves[0][0], halves[1][0]]) == pytest.approx(0.9)


# ---- what finds the useful demonstration, and what does not

LOOKS = {"bm25": ("bm25", None), "knn": ("knn", HashEmbedder(256)), "random": ("random", None)}
CHANCE = {"mode": (1, 1 / 6), "hue": (1, 1 / 8), "tone": (1, 1 / 8), "pair": (2, 1 / 72), "cover": (2, 0.02)}


@pytest.mark.parametrize("name", CHANCE)
@pytest.mark.parametrize("looks", LOOKS)
def test_what_looks_alike_helps_no_more_than_chance(name: str, looks: str) -> None:
    k, chance = CHANCE[name]
    found = [
        share_solved(task, judge, by_selector(task, LOOKS[looks][0], k, LOOKS[looks][1]))
        for task, judge in (tasks_of(seed)[name] for seed in SEEDS)
    ]
    assert np.mean(found) < chance + 0.09


@pytest.mark.models
def test_a_sentence_encoder_that_was_not_trained_on_it_does_no_better(minilm_path: Path) -> None:
    embedder = load_embedder(str(minilm_path), threads=1)
    for name in ("mode", "hue", "pair", "cover"):
        (k, chance), (task, judge) = CHANCE[name], ALL[name]
        assert share_solved(task, judge, by_selector(task, "knn", k, embedder)) < chance + 0.14  # of 60: 3 deviations


@pytest.mark.parametrize("name", CHANCE)
def test_the_judge_itself_finds_what_helps(name: str) -> None:
    for seed in SEEDS:
        task, judge = tasks_of(seed)[name]
        assert share_solved(task, judge, one_after_the_other(task, judge, CHANCE[name][0])) == 1


def test_judging_demonstrations_one_by_one_never_finds_the_pair_unless_they_are_independent() -> None:
    for seed in SEEDS:
        pair, summed = pair_task(seed=seed), pair_task(seed=seed, independent=True)
        assert share_solved(*pair, one_by_one(*pair, 2)) == 0
        assert share_solved(*summed, one_by_one(*summed, 2)) == 1
        assert [e.text for e in pair[0].train] == [e.text for e in summed[0].train]


def test_judging_demonstrations_one_by_one_often_shows_one_attribute_twice() -> None:
    for seed in SEEDS:
        task, judge = redundancy_task(seed=seed)
        assert share_solved(task, judge, one_by_one(task, judge, 2)) < 0.7


# ---- feedback is enough to learn it


def learn(tasks: Sequence[Task], judge: HiddenModeLM, truth: HiddenModeLM, instruct: bool = False) -> float:
    """Share of test rows whose nearest demonstration truly helps, once a bag of words has learnt from the judge.

    A text is the sum of its words' vectors, each dimension weighed by a gate: one for each task, or one for all. It is
    fitted to what the judge says of 24 random demonstrations of each train row.
    """
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    texts = {e.text for t in tasks for e in (*t.train, *t.test)}
    words = {w: n for n, w in enumerate(sorted({w for t in texts for w in t.split()}))}
    table = torch.randn(len(words), 64, generator=generator).requires_grad_()
    gates = torch.randn(len(tasks), 64, generator=generator).requires_grad_()

    def encode(rows: Sequence[Example], task: int) -> torch.Tensor:
        sums = torch.stack([counts[e.text] for e in rows]) @ table
        return torch.nn.functional.normalize(sums * torch.sigmoid(3 * gates[task if instruct else 0]), dim=1)

    counts = {t: torch.zeros(len(words)) for t in texts}
    for text, count in counts.items():
        for word in text.split():
            count[words[word]] += 1
    told = []
    for task in tasks:
        others = [[m for m in rng.permutation(len(task.train)).tolist() if m != n][:24] for n in range(len(task.train))]
        chances = [
            [judge.chance(query.text, [task.train[m]], task.template.instruction) for m in row]
            for query, row in zip(task.train, others, strict=True)
        ]
        told.append((torch.tensor(others), 3 * torch.tensor(chances).log()))
    optimiser = torch.optim.Adam([table, gates], lr=0.05)
    for _ in range(150):
        total = torch.zeros(())
        for n, (others, teacher) in enumerate(told):
            rows = encode(tasks[n].train, n)
            total = total + losses.distill((rows[:, None] * rows[others]).sum(-1) / 0.1, teacher)
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
    right = []
    with torch.no_grad():
        for n, task in enumerate(tasks):
            best = (encode(task.test, n) @ encode(task.train, n).T).argmax(1).tolist()
            pairs = zip(task.test, best, strict=True)
            right += [truth.solved(q.text, [task.train[b]], task.template.instruction) for q, b in pairs]
    return float(np.mean(right))


def test_an_encoder_learns_the_modes_from_feedback_and_little_from_shuffled_feedback() -> None:
    task, judge = hidden_mode_task()
    assert learn([task], judge, judge) >= 0.9
    assert learn([task], shuffled_judge(judge), judge) <= 0.45


def test_one_encoder_learns_conflicting_tasks_only_if_it_sees_the_instruction() -> None:
    tasks, judge = conflicting_tasks()
    assert learn(tasks, judge, judge, instruct=True) >= 0.75
    assert learn(tasks, judge, judge) <= 0.5
