"""A selector that is kept in a folder picks the same when it is loaded, here or on another machine."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest

from iclkit import load_selector
from iclkit.errors import DataError, IclkitError, ModelError, PoolError, UsageError
from iclkit.pool import Pool
from iclkit.prompts import Template
from iclkit.records import Example, Query
from iclkit.selectors import BUILTINS, FixedSelector, Kit, SelectorFile, make_selector
from iclkit.testing import FakeLM, HashEmbedder, OverlapReranker

# ruff: noqa: S301  what is unpickled here was pickled here

WORDS = ["red", "green", "blue", "old", "new", "fish", "bird", "cat", "dog", "house", "river", "stone"]
EXAMPLES = [
    Example(f"{a} {b} number {n}", "xy"[n % 2], meta={"attrs": {"tenant": ["acme", "other"][n % 3 == 0]}, "n": n})
    for n, (a, b) in enumerate((a, b) for a in WORDS[:5] for b in WORDS[5:])
]
QUERIES = [Query("old fish"), Query("blue house"), Query("something else")]
MODELS = {"embedder": HashEmbedder(), "lm": FakeLM(), "reranker": OverlapReranker()}


def _kit() -> Kit:
    return Kit(template=Template("In: {input}\nLabel: {output}"), labels=("x", "y"), seed=3, **MODELS)


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    with Pool.open(tmp_path / "demos.db") as made:
        made.add(EXAMPLES)
        yield made


@pytest.fixture
def names(tmp_path: Path) -> dict[str, str]:
    """Every built-in by a spec that can be fitted: ``fixed`` with a file of its own."""
    SelectorFile(tuple(EXAMPLES[4:8])).write(tmp_path / "best.json")
    return {name: name if name != "fixed" else str(tmp_path / "best.json") for name in BUILTINS}


def _picks(selector, queries=QUERIES) -> list:
    return [s.picks for s in selector.select_many(queries, 4)]


@pytest.mark.parametrize("name", BUILTINS)
def test_every_selector_is_kept_moved_and_copied(name: str, names: dict[str, str], tmp_path: Path, pool: Pool) -> None:
    fitted = make_selector(names[name]).fit(pool, _kit())
    before = _picks(fitted)
    fitted.save(tmp_path / "kept", k=4, copy_pool=True)
    moved = (tmp_path / "kept").rename(tmp_path / "elsewhere")
    pool.remove([EXAMPLES[0].id])  # the copy does not see it
    (tmp_path / "best.json").unlink()
    loaded = load_selector(moved, **MODELS)
    assert (loaded.k, loaded.order, loaded.kit.seed, loaded.template.demo) == (
        4, "best-last", 3, "In: {input}\nLabel: {output}",
    )  # fmt: skip
    assert _picks(loaded) == before


@pytest.mark.parametrize("name", BUILTINS)
def test_every_fitted_selector_is_pickled_and_deep_copied(name: str, names: dict[str, str], pool: Pool) -> None:
    fitted = make_selector(names[name]).fit(pool, _kit())
    before = _picks(fitted)
    assert _picks(pickle.loads(pickle.dumps(fitted))) == before
    assert _picks(copy.deepcopy(fitted)) == before


@pytest.mark.parametrize("name", BUILTINS)
def test_every_selector_keeps_to_the_filter_of_a_query(name: str, names: dict[str, str], pool: Pool) -> None:
    fitted = make_selector(names[name]).fit(pool, _kit())
    tenants = {e.id: e.meta["attrs"]["tenant"] for e in EXAMPLES}
    found = fitted.select("old fish", 4, where={"attrs.tenant": "acme"})
    assert {tenants[i] for i in found.ids} <= {"acme"}
    assert found.ids or name == "zero"
    assert not {*fitted.select("old fish", 4, exclude=found.ids).ids} & {*found.ids}


def test_pools_and_their_parts_are_pickled_and_copied(pool: Pool) -> None:
    part = pool.view(where={"attrs.tenant": "acme"})
    for again in (pickle.loads(pickle.dumps([pool, part])), copy.deepcopy([pool, part])):
        assert (again[0].ids, again[1].ids, again[1].origin) == (pool.ids, part.ids, part.origin)
    memory = Pool.of(EXAMPLES)
    assert pickle.loads(pickle.dumps(memory)).ids == copy.deepcopy(memory).ids == memory.ids


def test_what_is_kept_can_be_read_and_its_pool_copy_holds_the_part_alone(tmp_path: Path, pool: Pool) -> None:
    part = pool.view(where={"attrs.tenant": "acme"})
    make_selector("mmr,trade_off=0.3").fit(part, _kit()).save(tmp_path / "kept", copy_pool=True)
    said = json.loads((tmp_path / "kept" / "selector.json").read_text())
    assert said["selector"]["settings"]["trade_off"] == 0.3
    assert said["pool"]["where"] == {"attrs.tenant": "acme"}
    assert Pool.open(tmp_path / "kept" / "pool.db").ids == part.ids
    other = next(e for e in EXAMPLES if e.meta["attrs"]["tenant"] == "other")
    assert other.text.encode() not in (tmp_path / "kept" / "pool.db").read_bytes()


def test_a_selector_on_examples_alone_takes_them_along(tmp_path: Path) -> None:
    fitted = make_selector("bm25").fit(EXAMPLES)
    before = _picks(fitted)
    fitted.save(tmp_path / "kept")
    assert _picks(load_selector(tmp_path / "kept")) == before


def test_a_pool_that_has_changed_is_said_or_followed(tmp_path: Path, pool: Pool) -> None:
    make_selector("bm25").fit(pool, _kit()).save(tmp_path / "kept", k=2)
    new = Example("old fish, old fish", "x")
    pool.add([new])
    with pytest.raises(PoolError, match=r"has changed since the selector was saved \(35 examples then, 36 now\)"):
        load_selector(tmp_path / "kept")
    follows = load_selector(tmp_path / "kept", follow=True)
    assert new.id in follows.select("old fish").ids
    pool.remove([new.id])
    assert new.id not in follows.select("old fish").ids
    pool.add([newer := Example("old fish fish", "y")])
    assert newer.id in follows.select("old fish").ids
    stays = load_selector(tmp_path / "kept", follow=True)
    stays.follow = False
    pool.remove([newer.id])
    assert newer.id in stays.select("old fish").ids
    assert stays.refit()
    assert not stays.refit()
    assert newer.id not in stays.select("old fish").ids


def test_another_model_another_pool_or_a_damaged_file_is_one_line(tmp_path: Path, pool: Pool) -> None:
    kept = make_selector("knn").fit(pool, _kit()).save(tmp_path / "kept")
    with pytest.raises(ModelError, match="is not the one that the selector was saved with"):
        load_selector(kept, embedder=HashEmbedder(dim=8))
    with pytest.raises(ModelError, match="or say where it is: embedder="):
        load_selector(kept)
    pool.close()
    Path(pool.path).rename(tmp_path / "moved.db")
    with pytest.raises(PoolError, match="pool="):
        load_selector(kept, **MODELS)
    assert load_selector(kept, pool=tmp_path / "moved.db", **MODELS).select("old fish", 2)
    Pool.open(tmp_path / "demos.db").add(EXAMPLES[:3])
    with pytest.raises(PoolError, match="another pool"):
        load_selector(kept, **MODELS)
    for damage in ({"k": -1}, {"order": "nearest"}, {"selector": {"name": "knnn", "settings": {}, "version": 1}},
                   {"template": {"demo": "no field"}}, {"pool": None}, {"iclkit_saved_selector": 9}):  # fmt: skip
        (tmp_path / "odd").mkdir(exist_ok=True)
        said = json.loads((kept / "selector.json").read_text()) | damage
        (tmp_path / "odd" / "selector.json").write_text(json.dumps(said))
        with pytest.raises(IclkitError, match=r"selector\.json"):
            load_selector(tmp_path / "odd", **MODELS)
    with pytest.raises(DataError, match="holds no selector"):
        load_selector(tmp_path)


def test_saving_replaces_what_was_saved_and_nothing_else(tmp_path: Path, pool: Pool) -> None:
    bm25 = make_selector("bm25").fit(pool)
    bm25.save(tmp_path / "kept", k=2)
    bm25.save(tmp_path / "kept", k=5, copy_pool=True)
    loaded = load_selector(tmp_path / "kept")
    assert loaded.k == 5
    loaded.k = 6
    loaded.save(tmp_path / "kept", copy_pool=True)  # over the folder that its own pool stands in
    assert load_selector(tmp_path / "kept").k == 6
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="holds other things"):
        bm25.save(tmp_path / "mine")
    with pytest.raises(DataError, match="call fit"):
        make_selector("bm25").save(tmp_path / "new")
    with pytest.raises(UsageError, match="selector file"):
        FixedSelector.showing(EXAMPLES[:2]).fit(pool).save(tmp_path / "new")
    assert {p.name for p in tmp_path.iterdir() if p.is_dir()} == {"kept", "mine"}


class _Alien:
    """A selector of somebody's own, which knows nothing of filters and stands in no package."""

    def fit(self, pool, kit) -> None:
        self.ids = pool.ids

    def select(self, query, k):
        from iclkit.records import Pick, Selection, Spec

        return Selection(query, tuple(Pick(i, 0.0, n) for n, i in enumerate(self.ids[:k], 1)), Spec("alien"))


def test_a_foreign_selector_cannot_break_a_filter_in_silence_and_says_why_it_cannot_be_kept(tmp_path: Path) -> None:
    alien = make_selector(_Alien()).fit(EXAMPLES)
    assert len(alien.select("old fish", 3)) == 3
    with pytest.raises(DataError, match="does not keep to the filter"):
        alien.select("old fish", 3, where={"attrs.tenant": "acme"})
    with pytest.raises(UsageError, match="entry point"):
        alien.save(tmp_path / "kept")


def test_what_is_no_query_or_no_pool_is_said() -> None:
    fitted = make_selector("bm25").fit(EXAMPLES)
    assert fitted.select({"input": "old fish"}, 1).ids
    with pytest.raises(UsageError, match="a query is a text, named fields or a Query, not int"):
        fitted.select(3, 1)
    with pytest.raises(UsageError, match="takes a list of queries"):
        fitted.select_many("old fish", 1)
