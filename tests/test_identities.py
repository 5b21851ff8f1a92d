"""What was computed once stays valid: stores of an earlier version answer everything, and no renaming touches a hash.

``stores`` holds a pool, an LM cache, a ledger and a study as version 0.1.0 wrote them before the names of its classes
and fields were changed (SQLite files as SQL). A change that makes one of these tests fail would make users compute
anew what they have paid for.
"""

from __future__ import annotations

import ast
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from iclkit.datasets import Task, make_task
from iclkit.embed import EmbeddingFormat, Retriever, RetrieverFormat, bge_icl, prompt_eol, rare
from iclkit.embed._formats import format_fingerprint
from iclkit.lm import GenerateRequest, ScoreRequest
from iclkit.lm._cache import Cache
from iclkit.lm._cached import cached, generation_key, score_key, score_text_key
from iclkit.lm._tokens import TokenPair
from iclkit.pool import Pool
from iclkit.prompts import Template
from iclkit.records import Example, Query, digest
from iclkit.selectors import Kit, make_selector
from iclkit.testing import FakeLM, HashEmbedder
from iclkit.trainers._ledger import LabelScores, Ledger, ScoreScope
from iclkit.tuners import TuneSettings, make_problem, tune

STORES = Path(__file__).with_name("stores")
PACKAGE = Path(__file__).resolve().parent.parent / "iclkit"
TEMPLATE = Template("Text: {input}\nKind: {output}", "Say yes or no.", stop=("\n",))
FORMAT = RetrieverFormat("input+output", " => ", {"weather": "Find weather:"}, ("query",))


def stored(name: str, folder: Path) -> Path:
    """A store of the earlier version, made of its SQL."""
    file = folder / f"{name}.db"
    with closing(sqlite3.connect(file)) as db:
        db.executescript((STORES / f"{name}.sql").read_text())
    return file


def rows(split: str, count: int) -> list[Example]:
    return [Example(f"{split} text number {n} of many {split}{n}", ("yes", "no")[n % 2]) for n in range(count)]


def task() -> Task:
    splits = rows("train", 20), rows("test", 6), rows("dev", 12)
    return make_task("things", *splits, template=TEMPLATE, kind="classification")


def test_a_pool_gives_its_vectors_and_keys_without_an_embedder_or_lm_at_work(tmp_path: Path) -> None:
    plain, inner, lm = HashEmbedder(), HashEmbedder(), FakeLM()
    with Pool.open(stored("pool", tmp_path)) as pool:
        view = pool.view()
        assert view.vectors(plain).shape == (8, 64)
        assert view.vectors(Retriever(inner, FORMAT, {}).for_task("weather")).shape == (8, 64)
        assert plain.calls["documents"] == inner.calls["documents"] == 0
        make_selector("skill-knn,rewrites=2").fit(view, Kit(embedder=plain, lm=lm)).select(
            Query("text number 3 of all"), 2
        )
    assert not lm.generated, "keys of the pool and of the query are there"


def test_an_lm_cache_answers_every_score_and_generation(tmp_path: Path) -> None:
    inner, prompt = FakeLM(), "Text: rain\nKind:"
    lm = cached(inner, Cache(stored("lm-cache", tmp_path)))
    lm.score([ScoreRequest(prompt, " yes"), ScoreRequest(prompt, " no")])
    lm.generate([GenerateRequest(prompt, 5, ("\n",)), GenerateRequest(prompt, 5, temperature=0.7, seed=3)])
    assert not inner.scored
    assert not inner.generated


def test_keys_of_the_lm_cache_by_token_ids_and_by_text() -> None:
    fancy = GenerateRequest("a", 7, ("\n",), ("x",), 0.5, 9)
    assert [
        score_key("fp", TokenPair((1, 2, 3, 4), 2)).hex(),
        score_text_key("fp", ScoreRequest("a", "b")).hex(),
        generation_key("fp", (1, 2), fancy).hex(),
        generation_key("fp", "a", GenerateRequest("a")).hex(),
    ] == [
        "d36d5195e4d1a17baa85beb151e18df889e854d9",
        "e7a32238d540934f53a51074606695ddc1d96573",
        "db7bcdb33efcbbd75c77d6b810b32741b4f2c592",
        "c3beafd352183d10f650535cefece733e3ddc683",
    ]


@pytest.mark.parametrize("scope", [ScoreScope("fake-1", TEMPLATE, ("yes", "no")), ScoreScope("fake-1", Template(), ())])
def test_a_ledger_knows_what_was_scored(scope: ScoreScope, tmp_path: Path) -> None:
    ledger = Ledger(stored("ledger", tmp_path))
    assert ledger.get(scope, [("query", ["one", "two"])]) == {0: LabelScores((-1.5, -0.5), (1, 2), 1)}
    assert scope in ledger.scopes()


def test_a_study_that_was_finished_asks_nothing(tmp_path: Path) -> None:
    shutil.copy(STORES / "study.journal", tmp_path)
    lm, settings = (
        FakeLM(),
        TuneSettings(k=2, trials=6, sampler="ease,warmup=3", validation=6, confirm=0, candidates=10),
    )
    problem = make_problem(task(), lm, settings, report=lambda _: None)
    tune(problem, settings, embedder=HashEmbedder(), storage=f"journal:{tmp_path}/study.journal")
    assert not lm.scored
    assert not lm.generated


def test_hashes_of_templates_tasks_and_retrievers_are_those_of_before() -> None:
    assert digest(TEMPLATE.identity()) == "1868fc9b2fb79f9d88dd2f589e03700d"
    assert task().hash == "80796623ca353ac8ccd0804d4682ed1a"
    assert digest(FORMAT.identity()) == "2dba71f642f2fe1cfae4278fb428e148"
    fingerprint = Retriever(HashEmbedder(), FORMAT, {}).for_task("weather").fingerprint
    assert fingerprint == "6d77cf4091de95a302ad8314abc3ce23"


@pytest.mark.parametrize(
    ("form", "query", "document"),
    [
        (EmbeddingFormat(), "c784a2238fff2e35401148c565ac73c6", "c784a2238fff2e35401148c565ac73c6"),
        (prompt_eol(("rain", "wet")), "07bebb5ca0753c2561db8305e51848d0", "07bebb5ca0753c2561db8305e51848d0"),
        (bge_icl("Find it", [("a", "b")]), "521f4034969e0fb081da20b7af51da6f", "7b1a5c82cdd60a6787d30feeb70b02eb"),
        (rare("Find", [("q", "d")]), "e021d21f914c2c0d530ecdd92c71ff08", "683aa58cf8a5e178e25c9624f08619cc"),
    ],
    ids=["plain", "prompteol", "bge-icl", "rare"],
)
def test_hashes_of_embedding_formats_are_those_of_before(form: EmbeddingFormat, query: str, document: str) -> None:
    assert format_fingerprint(form, "query", model="m") == query
    assert format_fingerprint(form, "document", model="m") == document


# Where the fields of a dataclass are written out by their names, and why none of it is an identity.
BY_FIELD_NAME = {
    "settings": "a setting's name is what a user types",
    "schema": "reads JSON files by the names in them",
    "records": "rows of a run",
    "selectors/_base": "a selector's spec: its name and the settings as a user types them",
    "predictors/_base": "a predictor's spec, likewise",
    "lm/_servers/_http": "checks",
    "lm/_architecture": "settings of a model, by the names that its configuration gives them",
    "lm/_vllm": "options of vLLM's engine as a user types them",
    "lm/_servers/_config": "settings as a user types them",
    "lm/_servers/_capabilities": "a file about a server, read by the names in it",
    "models/_catalogue": "reads the catalogue",
    "models/_store": "manifest",
    "datasets/_task_file": "a task file: names as a user types them",
    "embed/_quick": "a note of a folder, which is read again by the same names",
    "pool/_lance_vectors": "a row of a table of indexes",
    "pool/_lists": "header of an index file",
    "report/_text": "a board as JSON",
    "trainers/_config": "settings as a user types them",
    "trainers/_report": "a report as JSON",
    "cli": "output",
}


def test_no_identity_is_made_of_the_names_of_fields() -> None:
    for file in sorted(PACKAGE.rglob("*.py")):
        place = str(file.relative_to(PACKAGE).with_suffix(""))
        if place in BY_FIELD_NAME or place.split("/")[0] in BY_FIELD_NAME:
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            called = node.func if isinstance(node, ast.Call) else None
            name = (
                called.attr if isinstance(called, ast.Attribute) else called.id if isinstance(called, ast.Name) else ""
            )
            owner = called.value if isinstance(called, ast.Attribute) else None
            if name in ("asdict", "astuple") or (
                name == "fields" and (owner is None or ast.unparse(owner) == "dataclasses")
            ):
                raise AssertionError(f"{place} calls {name}: write an identity() with literal keys")
