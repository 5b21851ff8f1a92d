"""Near-duplicate search agrees with comparing every pair."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iclkit.pool._dedupe import duplicate_rows, fold_input, near_pairs
from iclkit.records import Example


def naive(examples: list[Example], near: float) -> list[list[int]]:
    """Every row against every kept row, with sets of pieces as texts."""

    def cut(text: str) -> set[str]:
        padded = f" {text} "
        return {padded[i : i + 4] for i in range(max(1, len(padded) - 3))}

    kept: list[int] = []
    groups: dict[int, list[int]] = {}
    folded = [(e.task, fold_input(Example(e.output, "")), fold_input(e)) for e in examples]
    exact: dict[tuple[str, str, str], int] = {}
    for row, key in enumerate(folded):
        if key in exact:  # joins whatever its first copy joined
            groups[exact[key]].append(row)
            continue
        best, home = 0.0, -1
        for other in kept:
            if folded[other][:2] == key[:2]:
                a, b = cut(folded[other][2]), cut(key[2])
                overlap = len(a & b) / len(a | b)
                if overlap >= near - 1e-12 and overlap > best:
                    best, home = overlap, other
        if home < 0:
            kept.append(row)
            groups[row] = []
            home = row
        groups[home].append(row)
        exact[key] = home
    return [sorted(rows) for rows in groups.values() if len(rows) > 1]


words = st.lists(st.sampled_from(["the", "cat", "cats", "sat", "mat", "a", "on", "THE", "café!"]), max_size=7).map(
    " ".join
)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.builds(Example, words, st.sampled_from("xy"), st.sampled_from(["", "t"])), max_size=14),
    st.sampled_from([0.2, 0.5, 0.6, 0.7, 0.75, 0.8, 0.9, 0.99]),
)
def test_near_duplicates_are_those_of_comparing_every_pair(examples: list[Example], near: float) -> None:
    assert duplicate_rows(examples, near) == naive(examples, near)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.builds(Example, words, st.just("x")), max_size=14))
def test_an_overlap_of_one_finds_the_same_pieces_only(examples: list[Example]) -> None:
    exact = duplicate_rows(examples)
    assert duplicate_rows(examples, 1.0) == exact
    assert exact == [
        [r for r, e in enumerate(examples) if fold_input(e) == text]
        for text in dict.fromkeys(map(fold_input, examples))
        if sum(fold_input(e) == text for e in examples) > 1
    ]


def test_ten_thousand_texts_take_seconds() -> None:
    rng = random.Random(0)
    vocabulary = ["".join(rng.choices("abcdefghijklmnop", k=rng.randint(3, 8))) for _ in range(3000)]
    texts = [" ".join(rng.choices(vocabulary, k=10)) for _ in range(9000)]
    texts += [t + " please" for t in texts[:1000]]
    start = time.process_time()
    groups = duplicate_rows([Example(t, "x", id=str(n)) for n, t in enumerate(texts)], 0.8)
    assert len(groups) == 1000
    assert time.process_time() - start < 30


def random_texts(count: int, words: int = 12) -> list[str]:
    rng = random.Random(0)
    vocabulary = ["".join(rng.choices("abcdefghijklmnop", k=rng.randint(3, 8))) for _ in range(3000)]
    return [" ".join(rng.choices(vocabulary, k=words)) for _ in range(count)]


@pytest.mark.parametrize("near", [0.75, 0.8, 0.9])
def test_pairs_compared_grow_no_faster_than_the_pool(near: float) -> None:
    compared = []
    for count in (1000, 2000, 4000):
        texts = random_texts(count)
        texts += [f"{t} please" for t in texts[: count // 10]]
        pairs, work = near_pairs(texts, [""] * len(texts), near)
        assert [*range(count, count + count // 10)] == [new for new, _ in pairs] or near == 0.9
        compared.append(work)
    assert compared[1] <= 2.5 * compared[0]
    assert compared[2] <= 2.5 * compared[1]
    assert compared[2] <= 4400


def test_sizes_that_differ_as_far_as_the_overlap_allows_meet() -> None:
    rng = random.Random(1)
    texts = random_texts(60, 30)
    cuts = [" ".join(t.split()[: rng.randint(20, 30)]) for t in texts]
    examples = [Example(t, "x", id=str(n)) for n, t in enumerate([*texts, *cuts])]
    for near in (0.6, 0.7, 0.75, 0.8, 0.9):
        groups = duplicate_rows(examples, near)
        assert groups == naive(examples, near)
        assert groups
