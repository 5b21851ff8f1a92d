"""Near-duplicate search agrees with comparing every pair."""

from __future__ import annotations

import random
import time

from hypothesis import given, settings
from hypothesis import strategies as st

from iclkit.pool._dedupe import duplicate_rows, fold_input
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
    st.sampled_from([0.2, 0.5, 0.7, 0.8, 0.9, 0.99]),
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
