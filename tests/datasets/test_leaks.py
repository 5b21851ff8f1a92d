"""The search for leaks finds what a naive comparison of all pairs finds, and leaves look-alikes alone."""

from __future__ import annotations

import random
import time
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iclkit.datasets import Leak, check_task, find_leaks, load_task, make_task
from iclkit.errors import UsageError
from iclkit.records import Example, Query, clean_text, fold_text


def grams_of(text: str) -> set[str]:
    padded = f"\0\0\0{fold_text(text)}\0\0\0"
    return {padded[i : i + 4] for i in range(len(padded) - 3)} if fold_text(text) else set()


def naive_similarity(a: str, b: str, everything: list[str]) -> float:
    x, y = grams_of(a), grams_of(b)
    if len(everything) >= 20:
        x, y = ({g for g in s if 2 * sum(g in grams_of(t) for t in everything) <= len(everything)} for s in (x, y))
    return len(x & y) / len(x | y) if x and y else 0.0


def naive_leaks(pool: list[Example], test: list[Query], near: float) -> list[Leak]:
    leaks = []
    everything = [*(q.text for q in test), *(e.text for e in pool)]
    for query in test:
        for example in pool:
            if clean_text(query.text) == clean_text(example.text):
                leaks.append(Leak(query.id, example.id, "exact", 1.0))
            elif not fold_text(query.text) or not fold_text(example.text):
                continue
            elif fold_text(query.text) == fold_text(example.text):
                leaks.append(Leak(query.id, example.id, "normalized", 1.0))
            elif (found := naive_similarity(query.text, example.text, everything)) >= near - 1e-9:
                leaks.append(Leak(query.id, example.id, "near", found))
    return leaks


texts = st.lists(
    st.one_of(
        st.text("ab ", max_size=12),
        st.text(st.sampled_from("aB é!。🙂"), max_size=8),
        st.lists(st.sampled_from(["what", "is", "the", "capital", "of", "Texas", "Ohio?"]), max_size=9).map(" ".join),
    ),
    max_size=12,
)


@settings(deadline=None)
@given(pool=texts, test=texts, near=st.sampled_from([0.1, 0.5, 0.7, 0.9, 1.0]))
def test_the_search_finds_exactly_what_comparing_all_pairs_finds(pool: list[str], test: list[str], near: float) -> None:
    examples = [Example(t, "y", id=f"e{i}") for i, t in enumerate(pool)]
    queries = [Query(t, id=f"q{i}") for i, t in enumerate(test)]
    found = find_leaks(examples, queries, near=near)
    wanted = naive_leaks(examples, queries, near)
    assert [(x.test_id, x.example_id, x.kind) for x in found] == [(x.test_id, x.example_id, x.kind) for x in wanted]
    assert [x.similarity for x in found] == pytest.approx([x.similarity for x in wanted])


def kinds(pool: str, test: str, near: float | None = 0.9) -> list[str]:
    return [leak.kind for leak in find_leaks([Example(pool, "y")], [Query(test)], near=near)]


LONG = (
    "Hello, I changed my mind and really need a refund on one of the things I bought recently. Can you please cancel "
    "the transaction and get my money back? Please, it is urgent."
)


@pytest.mark.parametrize(
    ("pool", "test", "found"),
    [
        ("I lost my card", " I lost my card\n", ["exact"]),
        ("I lost my card.", "i LOST my  card!", ["normalized"]),
        ("Ｇｒöße", "grösse", ["normalized"]),
        (LONG, LONG.replace("get my", "get me my"), ["near"]),
        (LONG, LONG.replace("recently", "recnetly"), ["near"]),
        ("what is the capital of texas", "what is the capital of ohio", []),
        ("what is the population of washington", "what is the population of washington dc", []),
        ("who was the 3rd president of the united states", "who was the 23rd president of the united states", []),
        ("reasonable", "unreasonable", []),
        ("?!", "...", []),  # nothing but punctuation: equal only when exactly equal
        ("?!", "?!", ["exact"]),
        ("", "", ["exact"]),
    ],
)
def test_what_counts_as_a_leak_by_default(pool: str, test: str, found: list[str]) -> None:
    assert kinds(pool, test) == found


def test_near_can_be_left_out_and_must_be_a_share() -> None:
    assert kinds(LONG, LONG.replace("get my", "get me my"), near=None) == []
    for wrong in (0.0, 1.1, -1.0):
        with pytest.raises(UsageError, match="near is"):
            kinds("a", "b", near=wrong)


def test_an_instruction_in_every_input_does_not_make_them_near_duplicates() -> None:
    head = "Please classify the following sentence into one of the categories, and answer with one word: "
    pool = [Example(head + f"sentence {i:03d}", "y") for i in range(0, 200, 2)]
    assert find_leaks(pool, [Query(head + f"sentence {i:03d}") for i in range(1, 200, 2)]) == []
    assert [leak.kind for leak in find_leaks(pool, [Query(head + "sentence 002!")])] == ["normalized"]


def test_a_large_pool_is_searched_in_blocks_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = [Example(f"{LONG} {i} {'abcdefghij'[i % 10] * 9}", "y") for i in range(15)]
    test = [Query(f"{LONG} {i}9 {'abcdefghij'[i % 10] * 9}") for i in range(4)]
    whole = find_leaks(pool, test)
    assert whole
    monkeypatch.setattr("iclkit.datasets._leaks._ROWS_AT_ONCE", 4)
    assert find_leaks(pool, test) == whole


def test_fields_are_compared_as_one_text_and_outputs_do_not_matter() -> None:
    pool = [Example({"premise": "It rains", "hypothesis": "It is wet"}, "yes")]
    test = [Example({"premise": "it rains.", "hypothesis": "it is wet."}, "no")]
    assert [leak.kind for leak in find_leaks(pool, test)] == ["normalized"]
    assert find_leaks(pool, test)[0].test_id == test[0].id


def test_an_empty_side_has_no_leaks() -> None:
    assert find_leaks([], [Query("x")]) == find_leaks([Example("x", "y")], []) == []


def random_texts(count: int, words: int = 12) -> list[str]:
    rng = random.Random(0)
    vocabulary = ["".join(rng.choices("abcdefghijklmnop", k=rng.randint(3, 8))) for _ in range(3000)]
    return [" ".join(rng.choices(vocabulary, k=words)) for _ in range(count)]


@pytest.mark.parametrize("what", ["test rows in a pool", "doubles of a task"])
def test_pairs_compared_grow_no_faster_than_the_rows(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import scipy.sparse

    met, plain = [0], scipy.sparse.csr_matrix.__matmul__

    def product(self: Any, other: Any) -> Any:
        found = plain(self, other)
        met[0] += getattr(found, "nnz", 0)  # a product with a vector counts them beforehand
        return found

    monkeypatch.setattr(scipy.sparse.csr_matrix, "__matmul__", product)
    compared = []
    for count in (1000, 2000, 4000):
        texts = random_texts(count)
        again = [Example(f"{t} now", "x") for t in texts[: count // 10]]
        rows = [Example(t, "x") for t in texts]
        met[0] = 0
        if what == "doubles of a task":
            task = make_task("t", [*rows, *again], [Example("a test row", "x")])
            (found,) = [f for f in check_task(task) if f.kind == "near-double"]
            assert 0 < found.count <= len(again)
        else:
            assert find_leaks(rows, [*again, *(Example(f"{t} b", "x") for t in random_texts(count // 4, 9))])
        compared.append(met[0])
    assert compared[1] <= 2.5 * compared[0]
    assert compared[2] <= 2.5 * compared[1]
    assert compared[2] <= 3 * 4400


def test_sizes_that_differ_as_far_as_the_similarity_allows_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(1)
    texts = random_texts(60, 30)
    cuts = [" ".join(t.split()[: rng.randint(20, 30)]) for t in texts]
    pool, test = (
        [Example(t, "x", id=f"{kind}{n}") for n, t in enumerate(side)] for kind, side in (("e", texts), ("q", cuts))
    )
    grams = {e.id: grams_of(e.text) for e in [*pool, *test]}
    counts = Counter(chain.from_iterable(grams.values()))
    grams = {i: {g for g in held if 2 * counts[g] <= len(grams)} for i, held in grams.items()}
    overlap = {
        (q.id, e.id): len(grams[q.id] & grams[e.id]) / len(grams[q.id] | grams[e.id]) for q in test for e in pool
    }
    for near in (0.6, 0.7, 0.75, 0.8, 0.9):
        found = {(x.test_id, x.example_id): x.kind for x in find_leaks(pool, test, near)}
        assert {*found} == {pair for pair, share in overlap.items() if share >= near}
        assert "near" in found.values()
        with monkeypatch.context() as few:
            few.setattr("iclkit.datasets._leaks._MEETINGS_AT_ONCE", 1)
            assert {(x.test_id, x.example_id): x.kind for x in find_leaks(pool, test, near)} == found


@pytest.mark.data
def test_shared_sets_have_no_leak_but_true_near_duplicates(shared_data: Path) -> None:
    counts = {}
    for name in ("sst2", "trec", "banking77", "geoquery", "antonyms", "larger_animal", "subj"):
        task = load_task(shared_data / name)
        leaks = find_leaks(task.train, task.queries())
        assert {leak.kind for leak in leaks} <= {"near"}  # equal inputs were removed when the sets were made
        counts[name] = len({leak.test_id for leak in leaks})
    # read by eye: each is one sentence with a typo, a comma or one small word changed
    assert counts == {"sst2": 0, "trec": 0, "banking77": 3, "geoquery": 2, "antonyms": 0, "larger_animal": 0, "subj": 1}


@pytest.mark.data
def test_planted_near_duplicates_are_found_in_a_real_pool(shared_data: Path) -> None:
    task = load_task(shared_data / "gsm8k")
    pool = list(task.train)
    planted = [
        Query(pool[100].text.upper()),
        Query(pool[200].text + " Thanks!"),
        Query(pool[300].text.replace("the", "teh", 1)),
    ]
    found = {(leak.test_id, leak.example_id): leak.kind for leak in find_leaks(pool, [*task.queries(), *planted])}
    for query, row, kind in zip(planted, (100, 200, 300), ("normalized", "near", "near"), strict=True):
        assert found[query.id, pool[row].id] == kind


@pytest.mark.data
def test_a_thousand_rows_against_eight_thousand_take_seconds(shared_data: Path) -> None:
    task = load_task(shared_data / "subj")
    start = time.process_time()
    find_leaks(task.train, task.queries())
    assert time.process_time() - start < 10  # 1 to 2 s on one core of 2020; the limit leaves room for a loaded machine
