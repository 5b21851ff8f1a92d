"""Looking at a pool a page at a time, and changing what was looked at."""

from __future__ import annotations

from dataclasses import replace

import pytest

from iclkit.errors import ChangedElsewhere, DataError
from iclkit.pool import Pool
from iclkit.records import Example

ROWS = [
    Example("My parcel is late", "shipping", task="support", meta={"tenant": "acme"}),
    Example('He said "never again"', "complaint", task="support"),
    Example({"question": "Où est mon colis ?", "context": "a\nb"}, "shipping"),
    Example("STRASSE or straße", "other", choices=("other", "parcel")),
]


@pytest.fixture
def pool() -> Pool:
    return Pool.of(ROWS)


def found(pool: Pool, text: str = "", **how: object) -> list[Example]:
    return [*pool.find(text, **how).examples]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("PARCEL", [0, 3]),
        ("late parcel", [0]),
        ("parcel complaint", []),
        ('"never', [1]),
        ("où colis", [2]),
        ("strasse", [3]),
        ("tenant acme", [0]),
        ("support", [0, 1]),
        (ROWS[2].id[:9], [2]),
        ("", [0, 1, 2, 3]),
    ],
)
def test_every_word_is_found_whatever_its_case_and_place(pool: Pool, text: str, rows: list[int]) -> None:
    assert found(pool, text) == [ROWS[n] for n in rows]


def test_filters_and_pages_count_all_that_was_found(pool: Pool) -> None:
    assert found(pool, output="shipping") == [ROWS[0], ROWS[2]]
    assert found(pool, "parcel", task="support") == [ROWS[0]]
    page = pool.find(start=1, limit=2, newest_first=True)
    assert [*page.examples] == [ROWS[2], ROWS[1]]
    assert (page.total, page.start, page.revision) == (4, 1, pool.revision)
    assert pool.find(start=9).examples == ()


def test_values_are_counted_the_commonest_first(pool: Pool) -> None:
    assert pool.count_values("output") == [("shipping", 2), ("complaint", 1), ("other", 1)]
    assert pool.count_values("task", limit=1) == [("", 2)]


def test_an_exchange_and_its_undoing_leave_the_pool_as_it_was(pool: Pool) -> None:
    old = ROWS[0]
    new = replace(old, output="delivery", id="")
    assert pool.exchange(old, new) == new
    assert [e.id for e in pool] == [*(e.id for e in ROWS[1:]), new.id]
    assert pool.exchange(new, old) == old
    assert pool.exchange(old, None) is None
    assert old.id not in pool.ids
    assert pool.exchange(None, old) == old
    assert {e.id: e for e in pool} == {e.id: e for e in ROWS}


def test_an_id_that_somebody_chose_comes_back_too() -> None:
    named = Example("a", "b", id="row-1")
    pool = Pool.of([named])
    changed = pool.exchange(named, replace(named, output="c", id=""))
    assert pool.exchange(changed, named) == named
    assert pool.ids == ("row-1",)


def test_other_metadata_changes_an_example_in_place(pool: Pool) -> None:
    new = replace(ROWS[0], meta={"tenant": "globex"}, id="")
    assert pool.exchange(ROWS[0], new) == replace(new, id=ROWS[0].id)
    assert pool.ids == tuple(e.id for e in ROWS)
    assert pool.get(ROWS[0].id).meta == {"tenant": "globex"}


def test_what_was_changed_or_removed_meanwhile_is_left_alone(pool: Pool) -> None:
    first, second, third, _ = ROWS
    now = pool.update(first.id, output="delivery")
    pool.remove([second.id])
    pool.update(third.id, meta={"seen": True})
    before = [*pool]
    for old, words, becomes in ((first, "changed, and is", now.id), (second, "removed", None), (third, "changed after",
                                third.id)):  # fmt: skip
        with pytest.raises(ChangedElsewhere, match=words) as caught:
            pool.exchange(old, replace(old, output="mine", id=""))
        assert caught.value.now == becomes
    assert [*pool] == before
    assert [pool.became(e.id) for e in (first, second, third)] == [now.id, None, third.id]
    with pytest.raises(DataError, match="no example"):
        pool.became("never")


def test_an_exchange_never_makes_two_of_one(pool: Pool) -> None:
    with pytest.raises(DataError, match="would become equal to"):
        pool.exchange(ROWS[0], ROWS[1])
    with pytest.raises(DataError, match="in the pool already"):
        pool.exchange(None, ROWS[1])
    assert [*pool] == ROWS
