"""Words that are counted once and kept beside the pool: always the weights that counting anew gives."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iclkit.pool import Pool, PoolView, TermIndex, Terms
from iclkit.pool import _terms as terms
from iclkit.records import Example

WORDS = ["red", "green", "blue", "fish", "cat", "dog", "the", "ÄÖ", "日本", "x1"]
TEXT = st.lists(st.sampled_from(WORDS), max_size=8).map(" ".join)
QUERY = " ".join([*WORDS, "red red unheard 日"])


def weights(view: PoolView, tokenizer: str = "words", stemmer: str = "") -> np.ndarray:
    return view.term_index(tokenizer, stemmer, 1.2, 0.75).scores(QUERY)


def fresh(view: PoolView, tokenizer: str = "words", stemmer: str = "") -> np.ndarray:
    """Counted anew, in memory."""
    texts = [e.text for e in view.examples]
    return TermIndex(Terms.of(texts, terms.tokenizer(tokenizer, stemmer)), 1.2, 0.75).scores(QUERY)


def examples(*numbers: int) -> list[Example]:
    return [Example(" ".join(WORDS[(n * step) % 10] for step in range(1, 2 + n % 9)) + f" n{n}", "y") for n in numbers]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "demos.db"


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that are cut into words."""
    texts: list[str] = []

    def cut(text: str) -> list[str]:
        texts.append(text)
        return text.split()

    plain = terms.tokenizer
    monkeypatch.setattr(terms, "tokenizer", lambda name, stemmer: cut if name == "split" else plain(name, stemmer))
    return texts


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(TEXT, min_size=1, max_size=12), query=TEXT, b=st.sampled_from([0.0, 0.4, 1.0]))
def test_weights_are_those_of_bm25s_to_the_last_bit(texts: list[str], query: str, b: float) -> None:
    bm25s = pytest.importorskip("bm25s")
    cut = [terms.words(text) for text in texts]
    vocabulary = {word: n for n, word in enumerate(dict.fromkeys(w for words in cut for w in words))}
    ours = TermIndex(Terms.of(texts, terms.words), 1.5, b)
    if not vocabulary:
        assert not ours.scores(query).any()
        return
    theirs = bm25s.BM25(method="lucene", k1=1.5, b=b, csc_backend="scipy")
    theirs.index(([[vocabulary[w] for w in words] for words in cut], vocabulary), create_empty_token=False,
                 show_progress=False)  # fmt: skip
    expected = np.zeros(len(texts), np.float32)
    for word in terms.words(query):
        if word in vocabulary:
            expected += theirs.get_scores_from_ids([vocabulary[word]])
    assert np.array_equal(ours.scores(query), expected)


CHANGE = st.one_of(
    st.tuples(st.just("add"), st.lists(st.integers(0, 40), max_size=12)),
    st.tuples(st.just("remove"), st.lists(st.integers(0, 20), max_size=6)),
    st.tuples(st.just("update"), st.lists(st.integers(0, 20), max_size=2)),
)


@settings(max_examples=40, deadline=None)
@given(changes=st.lists(CHANGE, min_size=1, max_size=6), small=st.sampled_from([0, 4096]))
def test_after_any_changes_weights_are_those_of_counting_anew(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[str, list[int]]], small: int
) -> None:
    before, terms._SMALL = terms._SMALL, small
    try:
        path = tmp_path_factory.mktemp("pool") / "demos.db"
        for change, numbers in changes:
            with Pool.open(path) as pool:
                ids = pool.ids
                chosen = list(dict.fromkeys(ids[n % len(ids)] for n in numbers)) if ids else []
                if change == "add":
                    pool.add(examples(*numbers))
                elif change == "remove":
                    pool.remove(chosen)
                for example_id in chosen if change == "update" else ():
                    pool.update(example_id, input=f"red fish {example_id}")
                view = pool.view()
                for part in (view, view.only(view.rows[::2]), view.overlay(examples(90, 91)), view.overlay()):
                    assert np.array_equal(weights(part), fresh(part))
    finally:
        terms._SMALL = before


@pytest.mark.parametrize(("tokenizer", "stemmer"), [("words", "english"), ("split", ""), ("trigrams", "")])
def test_every_tokenizer_has_a_file_of_its_own(path: Path, tokenizer: str, stemmer: str) -> None:
    for _ in range(2):
        with Pool.open(path) as pool:
            pool.add(examples(*range(30)))
            view = pool.view()
            assert np.array_equal(weights(view), fresh(view))
            assert np.array_equal(weights(view, tokenizer, stemmer), fresh(view, tokenizer, stemmer))
    assert len([*path.parent.glob("*.terms")]) == 2


def test_words_are_counted_once_and_for_a_new_row_alone(path: Path, counted: list[str]) -> None:
    work = []
    for size in (0, 200):
        with Pool.open(path) as pool:
            pool.add(examples(*range(size, size + 200)))
            pool.view().term_index("split", "", 1.5, 0.75)
        with Pool.open(path) as pool:
            counted.clear()
            for k1 in (1.0, 2.0):
                pool.view().term_index("split", "", k1, 0.75)
            again = len(counted)
            pool.add(examples(1000 + size))
            counted.clear()
            pool.view().term_index("split", "", 1.5, 0.75)
            work.append((again, len(counted)))
    assert max(work[0]) <= 2 * terms._SAMPLE + 1
    assert work[1] == work[0]


def test_where_the_rows_of_a_file_stand_is_found_once_while_rows_are_added(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terms, "_SMALL", 0)
    placed: list[int] = []
    plain = terms._KeptTerms.positions

    def positions(kept: terms._KeptTerms, rows: np.ndarray, texts: np.ndarray) -> np.ndarray | None:
        placed.append(len(rows))
        return plain(kept, rows, texts)

    with Pool.open(path) as pool:
        pool.add(examples(*range(200)))
        weights(pool.view())
        pool.remove(pool.ids[10:12])
        monkeypatch.setattr(terms._KeptTerms, "positions", positions)
        for n in range(4):
            pool.add(examples(1000 + n))
            assert np.array_equal(weights(pool.view()), fresh(pool.view()))
        assert len(placed) == 1
        pool.remove(pool.ids[20:21])
        assert np.array_equal(weights(pool.view()), fresh(pool.view()))
        assert len(placed) == 2


def test_parts_of_a_pool_use_the_words_counted_for_the_whole(path: Path, counted: list[str]) -> None:
    with Pool.open(path) as pool:
        pool.add(examples(*range(100)))
        view = pool.view()
        view.term_index("split", "", 1.5, 0.75)
        counted.clear()
        view.only(view.rows[10:60]).term_index("split", "", 1.5, 0.75)
    assert len(counted) <= 2 * terms._SAMPLE


def test_a_file_is_written_anew_only_when_it_lacks_a_share_of_the_rows(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terms, "_SMALL", 10)
    written = []
    with Pool.open(path) as pool:
        for start in (0, 80, 84, 89, 200):
            pool.add(examples(*range(start, start + (80 if not start else 5))))
            pool.view().term_index("words", "", 1.5, 0.75)
            (file,) = path.parent.glob("*.terms")
            written.append(file.stat().st_mtime_ns)
    assert written[0] == written[1]
    assert len({*written}) > 1
    assert len({*written}) < 4


def _restore(path: Path, file: Path) -> None:
    """The pool as it was before, from a copy, and other rows added to that; the file of words is the later one."""
    kept = file.read_bytes()
    shutil.copy(path.with_suffix(".copy"), path)
    with Pool.open(path) as pool:
        pool.add(examples(*range(300, 320)))
    file.write_bytes(kept)


DAMAGE: dict[str, Callable[[Path, Path], object]] = {
    "flipped": lambda path, file: file.write_bytes(file.read_bytes()[:-9] + b"x" + file.read_bytes()[-8:]),
    "cut": lambda path, file: file.write_bytes(file.read_bytes()[:-9]),
    "empty": lambda path, file: file.write_bytes(b""),
    "another version": lambda path, file: file.write_bytes(b"iclkit term index 9\n" + file.read_bytes()[20:]),
    "header": lambda path, file: file.write_bytes(terms.MAGIC + b'{"sizes": [1, 2]}\n'),
    "foreign": lambda path, file: file.write_text("hello\nworld\n"),
    "restored": _restore,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_file_that_is_not_what_the_pool_says_is_made_anew(
    path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    with Pool.open(path) as pool:
        pool.add(examples(*range(20)))
    shutil.copy(path, path.with_suffix(".copy"))
    with Pool.open(path) as pool:
        pool.add(examples(*range(100, 120)))
        weights(pool.view())
    (file,) = path.parent.glob("*.terms")
    DAMAGE[damage](path, file)
    with Pool.open(path) as pool, caplog.at_level(logging.WARNING):
        assert np.array_equal(weights(pool.view()), fresh(pool.view()))
    if damage != "restored":
        (record,) = caplog.records
        assert str(file) in record.getMessage()
    caplog.clear()
    with Pool.open(path) as pool:
        assert np.array_equal(weights(pool.view()), fresh(pool.view()))
    assert not caplog.records


def test_a_pool_that_is_only_read_keeps_nothing(path: Path) -> None:
    with Pool.open(path) as pool:
        pool.add(examples(*range(5)))
    with Pool.open(path, read_only=True) as pool:
        assert np.array_equal(weights(pool.view()), fresh(pool.view()))
    assert not [*path.parent.glob("*.terms")]
