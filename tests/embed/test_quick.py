"""A few queries are encoded without torch: the same vectors, the same stored ones, and the full embedder otherwise."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from iclkit import models
from iclkit.embed import CARD, Retriever, load_embedder
from iclkit.embed import _quick as quick
from iclkit.embed._encoder import TextEmbedder
from iclkit.embed._quick import PROBES, QuickEmbedder
from iclkit.errors import ModelError
from iclkit.pool import Pool
from iclkit.records import Example, Query

from .test_encoder import TEXTS, save_sentence_transformer

MORE = [*TEXTS, *PROBES, "the Cat SAT", "  red\n\n blue ", "mat " * 63, "mat " * 64]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ICLKIT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def notes(home: Path) -> list[Path]:
    return sorted((home / "encoders").glob("*.json"))


def both(name: str, **options: Any) -> tuple[Any, Any]:
    """An embedder for few queries, whose folder was loaded before, and the one in full."""
    first = load_embedder(name, few=True, **options)
    assert not isinstance(first, QuickEmbedder)
    return load_embedder(name, few=True, **options), load_embedder(name, **options)


@pytest.mark.parametrize(
    ("pooling", "options"),
    [
        ("mean", {}),
        ("cls", {"max_seq_length": 20}),
        ("mean", {"normalize": False}),
        ("cls", {"prompts": {"query": "query: ", "document": "mat: "}}),
    ],
)
def test_vectors_and_fingerprints_are_those_of_the_embedder_in_full(
    tiny_bert: Path, tmp_path: Path, pooling: str, options: dict[str, Any]
) -> None:
    ours, full = both(str(save_sentence_transformer(tiny_bert, tmp_path / "st", pooling, **options)))
    assert isinstance(ours, QuickEmbedder)
    assert isinstance(full, TextEmbedder)
    assert (ours.fingerprint, ours.document_fingerprint, ours.dim, ours.name) == (
        full.fingerprint, full.document_fingerprint, full.dim, full.name
    )  # fmt: skip
    np.testing.assert_allclose(ours.encode_queries(MORE), full.encode_queries(MORE), atol=1e-5)
    raw, expected = ours.encode_raw(MORE, side="query"), full.encode_raw(MORE, side="query")
    np.testing.assert_allclose(raw, expected, atol=1e-4)


def test_a_folder_of_transformers_alone_and_prefixes_are_taken_too(tiny_bert: Path) -> None:
    ours, full = both(f"{tiny_bert},query_prefix=what is ")
    assert isinstance(ours, QuickEmbedder)
    assert ours.fingerprint == full.fingerprint != load_embedder(str(tiny_bert)).fingerprint
    np.testing.assert_allclose(ours.encode_queries(MORE), full.encode_queries(MORE), atol=1e-5)


def test_a_vector_does_not_depend_on_what_is_encoded_with_it(tiny_bert: Path) -> None:
    ours, _ = both(str(tiny_bert))
    together = ours.encode_queries(MORE[:9])
    for text, vector in zip(MORE[:9], together, strict=True):
        assert np.array_equal(ours.encode_queries([text])[0], vector)


def test_a_retriever_is_encoded_as_its_card_says(tiny_bert: Path, tmp_path: Path) -> None:
    folder = save_sentence_transformer(tiny_bert, tmp_path / "st", "mean")
    rendering = {"document": "input+output", "separator": " : ", "instructions": {"red": "what is"},
                 "instruct": ["query"], "radius": 2.5}  # fmt: skip
    (folder / CARD).write_text(json.dumps({"format": 1, "rendering": rendering, "tasks": []}))
    ours, full = both(str(folder))
    assert isinstance(ours, Retriever)
    assert isinstance(ours.inner, QuickEmbedder)
    ours, full = ours.for_task("red"), full.for_task("red")
    assert ours.fingerprint == full.fingerprint
    np.testing.assert_allclose(ours.encode_queries(MORE), full.encode_queries(MORE), atol=1e-5)
    np.testing.assert_allclose(ours.encode_states(MORE), full.encode_states(MORE), atol=1e-4)


def test_documents_and_many_queries_are_left_to_the_embedder_in_full(tiny_bert: Path) -> None:
    ours, full = both(str(tiny_bert))
    assert np.array_equal(ours.encode_documents(MORE), full.encode_documents(MORE))
    many = [f"red {n}" for n in range(quick.FEW + 1)]
    assert np.array_equal(ours.encode_queries(many), full.encode_queries(many))
    assert np.array_equal(ours.encode_queries(["red"]), full.encode_queries(["red"]))  # it is loaded now
    assert ours.encode_tokens(["red mat"])[0][0] == full.encode_tokens(["red mat"])[0][0]


def test_stored_vectors_stay_valid_and_picks_are_the_same(tiny_bert: Path, tmp_path: Path) -> None:
    from iclkit.selectors import Kit, make_selector

    ours, full = both(str(tiny_bert))
    with Pool.open(tmp_path / "demos.db") as pool:
        pool.add(Example(f"the {a} cat sat on {b}", a) for a in ("red", "blue") for b in ("a mat", "what", "the cat"))
        pool.embed(full)
        assert pool.view().count_missing(ours) == 0
        asked = [Query(t, id=f"q{n}") for n, t in enumerate(MORE)]
        chosen = [make_selector("mmr").fit(pool.view(), Kit(e)).select_many(asked, 3) for e in (ours, full)]
    assert [s.ids for s in chosen[0]] == [s.ids for s in chosen[1]]


@pytest.mark.parametrize(
    ("pooling", "options"),
    [("max", {}), ("mean", {"dense": True}), ("mean", {"prompts": {"query": "q: "}, "include_prompt": False}),
     ("mean", {"truncate_dim": 8})],
)  # fmt: skip
def test_folders_of_other_kinds_are_loaded_in_full(
    tiny_bert: Path, tmp_path: Path, home: Path, pooling: str, options: dict[str, Any]
) -> None:
    folder = save_sentence_transformer(tiny_bert, tmp_path / "st", pooling, **options)
    for _ in range(2):
        assert isinstance(load_embedder(str(folder), few=True), TextEmbedder)
    assert notes(home) == []


def test_a_folder_that_changed_is_loaded_in_full_again(tiny_bert: Path, tmp_path: Path, home: Path) -> None:
    folder = save_sentence_transformer(tiny_bert, tmp_path / "st", "mean")
    both(str(folder))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 7}')
    changed, full = both(str(folder))
    assert len(notes(home)) == 2
    np.testing.assert_allclose(changed.encode_queries(MORE), full.encode_queries(MORE), atol=1e-5)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"dim": 3}', None])
def test_a_note_that_is_broken_is_written_again(tiny_bert: Path, home: Path, content: str | None) -> None:
    both(str(tiny_bert))
    (note,) = notes(home)
    good = note.read_text()
    note.write_text(content if content is not None else good.replace('"tokenizer": "', '"tokenizer": "x'))
    both(str(tiny_bert))
    assert note.read_text() == good


def test_no_note_is_left_where_the_two_ways_differ(
    tiny_bert: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quick, "_gelu", lambda x: np.maximum(x, 0))
    for _ in range(2):
        assert isinstance(load_embedder(str(tiny_bert), few=True), TextEmbedder)
    assert notes(home) == []


def test_a_home_that_cannot_be_written_is_no_error(
    tiny_bert: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, content: str) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(quick, "replace_file", refuse)
    assert isinstance(load_embedder(str(tiny_bert), few=True), TextEmbedder)
    assert notes(home) == []


def test_a_broken_folder_is_said_in_one_line(tiny_bert: Path, tmp_path: Path) -> None:
    folder = save_sentence_transformer(tiny_bert, tmp_path / "st", "mean")
    both(str(folder))
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7])
    with pytest.raises(ModelError, match="not a whole safetensors file") as caught:
        load_embedder(str(folder), few=True)
    assert "\n" not in str(caught.value)


def test_selecting_from_an_embedded_pool_imports_nothing_heavy(tiny_bert: Path, tmp_path: Path) -> None:
    both(str(tiny_bert))
    with Pool.open(tmp_path / "demos.db") as pool:
        pool.add([Example("the cat sat", "cat"), Example("on a mat", "mat")])
        pool.embed(load_embedder(str(tiny_bert)))
    heavy = {"torch", "transformers", "sentence_transformers", "scipy", "sklearn", "pandas", "pyarrow", "datasets"}
    code = f"""if True:
        import sys
        from iclkit.cli import main
        try:
            main(["select", {str(tmp_path / "demos.db")!r}, "cat", "-s", sys.argv[1], "--embedder", {str(tiny_bert)!r}])
        finally:
            print({{m.partition(".")[0] for m in sys.modules}} & {heavy!r})
    """
    for selector in ("knn", "mmr", "random"):
        command = [sys.executable, "-c", code, selector]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert "cat" in done.stdout, done.stderr
        assert done.stdout.endswith("set()\n"), done.stdout


def test_the_real_model_is_encoded_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    try:
        models.resolve("all-minilm-l6-v2", "embedder", pull=False)
    except ModelError:
        pytest.skip("all-minilm-l6-v2 is not on this machine")
    load_embedder("all-minilm-l6-v2", few=True)
    ours, full = load_embedder("all-minilm-l6-v2", few=True), load_embedder("all-minilm-l6-v2")
    assert isinstance(ours, QuickEmbedder)
    assert ours.fingerprint == full.fingerprint
    np.testing.assert_allclose(ours.encode_queries(MORE), full.encode_queries(MORE), atol=1e-5)
