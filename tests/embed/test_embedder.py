"""What an embedder gives is looked at before it is used or stored, and what a user says of it is part of it."""

from __future__ import annotations

import json
import logging
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iclkit import models
from iclkit.embed import (
    EmbeddingFormat,
    Retriever,
    SideFormat,
    encode_checked,
    load_embedder,
    load_reranker,
    split_spec,
)
from iclkit.embed._encoder import TextEmbedder
from iclkit.embed._protocol import vector_key
from iclkit.embed._spec import SETTINGS, join_spec
from iclkit.embed._torch import BLOCK, by_halves, out_of_memory, row_products
from iclkit.errors import ModelError, UsageError
from iclkit.pool import Pool
from iclkit.records import Example, Query
from iclkit.selectors import Kit, make_selector
from iclkit.testing import HashEmbedder

TEXTS = ["the cat sat on a mat", "where", "what is red"]


# -- vectors that are none --


class Odd(HashEmbedder):
    """A foreign embedder that gives something odd for texts with the word bad in them."""

    def __init__(self, change: Callable[[Any], Any]) -> None:
        super().__init__()
        self.change = change

    def encode_documents(self, texts, progress=None):
        vectors = super().encode_documents(texts, progress)
        for n, text in enumerate(texts):
            if "bad" in text:
                vectors[n] = self.change(vectors[n])
        return vectors

    encode_queries = encode_documents


ODD = {
    "nan": (lambda v: v * np.nan, "no numbers"),
    "one nan": (lambda v: np.where(np.arange(len(v)) == 3, np.nan, v), "no numbers"),
    "inf": (lambda v: v + np.inf, "no numbers"),
    "zeros": (lambda v: v * 0, "a vector of zeros, which has no direction"),
    "long": (lambda v: v * 2, "a vector of length 2, not of unit length"),
}


@pytest.mark.parametrize("name", ODD)
def test_what_is_no_unit_vector_is_refused_by_text_and_never_stored(tmp_path: Path, name: str) -> None:
    change, says = ODD[name]
    pool = Pool.open(tmp_path / "p.db")
    pool.add([Example("good", "a"), Example("a bad one", "b"), Example("a second bad one", "c")])
    with pytest.raises(ModelError, match=rf"{says}.*; 2 of 3 texts, the first is 'a bad one'"):
        pool.embed(Odd(change))
    pool.close()
    with sqlite3.connect(tmp_path / "p.db") as file:
        assert file.execute("SELECT count(*) FROM vectors").fetchone() == (0,)
    assert not [*tmp_path.glob("*.vectors")]


@pytest.mark.parametrize(
    "selector", ["knn", "mmr", "dpp", "ceil", "se2", "mix-knn", "many-labels", "field-knn,field=q", "rrf,of=[knn,bm25]"]
)
def test_a_query_vector_that_is_none_chooses_nothing(selector: str) -> None:
    view = Pool.of([Example({"q": f"text {n}"}, "ab"[n % 2]) for n in range(12)]).view()
    chooser = make_selector(selector).fit(view, Kit(embedder=Odd(lambda v: v * np.nan), labels=("a", "b")))
    assert len(chooser.select(Query({"q": "a good query"}), 2)) == 2
    with pytest.raises(ModelError, match="no numbers"):
        chooser.select(Query({"q": "a bad query"}), 2)


def test_an_array_of_another_shape_is_refused() -> None:
    class Flat(HashEmbedder):
        def encode_queries(self, texts, progress=None):
            return super().encode_queries(texts)[:, :5]

    with pytest.raises(ModelError, match=r"says it has 64 dimensions and gave an array of shape \(2, 5\) for 2 texts"):
        encode_checked(Flat(), ["a", "b"], "query")


def test_stored_vectors_that_are_damaged_are_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, embedder = tmp_path / "p.db", HashEmbedder()
    with Pool.open(path) as pool:
        pool.add([Example(f"text {n}", "a") for n in range(20)])
        pool.embed(embedder)
        sound = np.array(pool.view().vectors(embedder))
    for damage in (np.full(64, np.nan, "<f4"), np.zeros(64, "<f4"), np.full(64, np.inf, "<f4")):
        with sqlite3.connect(path) as file:
            file.execute("UPDATE vectors SET vector = ? WHERE text % 3 = 0", (damage.tobytes(),))
        for stale in tmp_path.glob("*.vectors"):
            stale.unlink()
        with Pool.open(path, read_only=True) as pool:
            np.testing.assert_array_equal(pool.view().vectors(embedder), sound)
        with Pool.open(path) as pool, caplog.at_level(logging.WARNING):
            np.testing.assert_array_equal(pool.view().vectors(embedder), sound)
            assert pool.check() == []
        assert "stored vectors of embedder 'hash' are damaged; they are made again" in caplog.text


def test_a_model_whose_weights_are_no_numbers_is_refused(tiny_bert: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for n, (key, row, value) in enumerate(
        [("encoder.layer.1.output.LayerNorm.weight", 3, np.nan), ("embeddings.LayerNorm.bias", 0, np.inf)]
    ):
        folder = Path(shutil.copytree(tiny_bert, tmp_path / str(n)))
        weights = {k: v.clone() for k, v in load_file(folder / "model.safetensors").items()}
        weights[key][row] = value
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ModelError, match=r"gave no numbers .*: its weights are damaged"):
            load_embedder(str(folder))


def test_a_word_whose_row_is_no_number_costs_the_texts_that_have_it(tiny_bert: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(tiny_bert, tmp_path / "m"))
    plain = load_embedder(str(tiny_bert))
    assert isinstance(plain, TextEmbedder)
    weights = {k: v.clone() for k, v in load_file(folder / "model.safetensors").items()}
    weights["embeddings.word_embeddings.weight"][plain._backbone.ids([" mat"])[0][-1]] = np.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    embedder = load_embedder(str(folder))
    assert isinstance(embedder, TextEmbedder)
    np.testing.assert_array_equal(embedder.encode_queries(["who"]), plain.encode_queries(["who"]))
    for encode in (embedder.encode_queries, embedder.encode_documents, embedder.encode_raw, embedder.encode_tokens):
        with pytest.raises(ModelError, match=r"no numbers .*'a mat'"):
            encode(["who", "a mat"])


def test_a_reranker_whose_weights_are_no_numbers_is_refused(tiny_bert: Path, tmp_path: Path) -> None:
    from transformers import BertConfig, BertForSequenceClassification

    folder = Path(shutil.copytree(tiny_bert, tmp_path / "cross"))
    model = BertForSequenceClassification(BertConfig.from_pretrained(tiny_bert, num_labels=1))
    model.classifier.weight.data[0, 3] = np.nan
    model.save_pretrained(folder)
    with pytest.raises(ModelError, match=r"gave no number .* for 2 of 2 pairs, the first is 'mat'"):
        load_reranker(str(folder)).score([("the cat", "mat"), ("a", "b")])


# -- bits and memory --


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_row_of_a_product_has_the_same_bits_whatever_stands_around_it(dtype: str, threads: int) -> None:
    import torch

    from iclkit.models import torch_threads

    torch.manual_seed(0)
    with torch.inference_mode(), torch_threads(threads):
        for wide, deep in ((384, 1536), (1536, 384), (32, 96)):
            weight, bias = (
                torch.randn(deep, wide).to(getattr(torch, dtype)),
                torch.randn(deep).to(getattr(torch, dtype)),
            )
            x = torch.randn(700, wide).to(weight)
            whole = row_products(x, weight, bias)
            torch.testing.assert_close(whole, torch.nn.functional.linear(x, weight, bias), rtol=2e-2, atol=2e-2)
            for some in (slice(0, 1), slice(3, 8), slice(0, BLOCK), slice(5, 70), slice(7, 455), slice(0, 699)):
                for _ in range(2):  # the second time what was learned about the shape is used
                    assert torch.equal(row_products(x[some], weight, bias), whole[some])
            assert torch.equal(row_products(x.view(7, 100, wide), weight).view(700, deep), row_products(x, weight))


def test_a_shape_of_a_product_is_looked_at_once_however_many_rows_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from iclkit.models import torch_threads

    looked_at: dict[tuple[object, ...], frozenset[int]] = {}
    monkeypatch.setattr("iclkit.embed._torch._TOGETHER", looked_at)
    with torch.inference_mode(), torch_threads(1):
        torch.manual_seed(0)
        weight, x = torch.randn(48, 32), torch.randn(2100, 32)
        before = torch.get_rng_state()
        whole = row_products(x, weight)
        for rows in range(1, 2100, 53):
            assert torch.equal(row_products(x[:rows], weight), whole[:rows])
        assert torch.equal(torch.get_rng_state(), before)
    assert len(looked_at) == 1


class Small:
    """Memory for so many rows at once."""

    def __init__(self, room: int, error: Exception) -> None:
        self.room, self.error, self.calls = room, error, list[int]()

    def __call__(self, rows: list[int]) -> list[int]:
        self.calls.append(len(rows))
        if len(rows) > self.room:
            raise self.error
        return [10 * r for r in rows]


def errors() -> list[Exception]:
    import torch

    return [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried to …"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 40 bytes."),
        RuntimeError("std::bad_alloc: bad allocation"),
    ]


@given(st.integers(0, 40), st.integers(1, 50), st.integers(0, 4))
def test_rows_that_do_not_fit_are_halved_and_all_come_back_in_order(count: int, room: int, which: int) -> None:
    run = Small(room, errors()[which])
    found = [pair for rows, values in by_halves(range(count), run, "m") for pair in zip(rows, values, strict=True)]
    assert found == [(n, 10 * n) for n in range(count)]


def test_a_single_row_that_does_not_fit_is_one_line_and_other_errors_stay_what_they_are() -> None:
    with pytest.raises(ModelError, match=r"m: no memory is left for a single text .* shorten it") as caught:
        [*by_halves(range(3), Small(0, errors()[1]), "m")]
    assert "\n" not in str(caught.value)
    assert not out_of_memory(RuntimeError("shapes do not match"))
    assert not out_of_memory(ValueError("out of memory"))
    with pytest.raises(ZeroDivisionError):
        [*by_halves(range(3), Small(0, ZeroDivisionError()), "m")]


@pytest.mark.parametrize("kind", ["packed", "plain", "whole"])
def test_an_embedder_that_runs_out_of_memory_goes_on_with_half_and_gives_the_same(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    texts = [f"the cat number {n} sat " + "on a mat " * (n % 5) for n in range(40)]
    embedder: Any = load_embedder(str(_static(tmp_path) if kind == "whole" else tiny_bert))
    if kind == "plain":
        embedder._backbone.packed = None
    expected = embedder.encode_documents(texts)
    name = "encode_document" if kind == "whole" else "_forward"
    target = embedder._model if kind == "whole" else embedder
    true, sizes = getattr(target, name), list[int]()

    def tight(some: Any, *args: Any, **kwargs: Any) -> Any:
        sizes.append(len(some))
        if len(some) > 3:
            raise MemoryError
        return true(some, *args, **kwargs)

    monkeypatch.setattr(target, name, tight)
    told: list[tuple[int, int]] = []
    found = embedder.encode_documents(texts, lambda done, total: told.append((done, total)))
    np.testing.assert_array_equal(found, expected)
    assert told[-1] == (40, 40)
    assert "going on with half as many" in caplog.text
    failed = sum(n > 3 for n in sizes)
    assert failed < len(sizes) / 2  # the size that fits is kept, not found again for each batch


def test_a_reranker_that_runs_out_of_memory_goes_on_with_half_and_gives_the_same(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import BertConfig, BertForSequenceClassification

    folder = Path(shutil.copytree(tiny_bert, tmp_path / "cross"))
    BertForSequenceClassification(BertConfig.from_pretrained(tiny_bert, num_labels=1)).save_pretrained(folder)
    reranker = load_reranker(str(folder))
    pairs = [("the cat", f"text {n % 10} on a mat") for n in range(60)]
    expected, forward = reranker.score(pairs), reranker._model.forward

    def tight(input_ids: Any, **more: Any) -> Any:
        if len(input_ids) > 4:
            raise MemoryError
        return forward(input_ids=input_ids, **more)

    monkeypatch.setattr(reranker._model, "forward", tight)
    np.testing.assert_array_equal(reranker.score(pairs), expected)


def _static(folder: Path) -> Path:
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers.models import WordLevel

    words = ["[UNK]", *(f"{n}" for n in range(50)), *TEXTS[0].split(), "number", "where", "what", "is", "red"]
    tokenizer = Tokenizer(WordLevel({w: n for n, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    torch.manual_seed(0)
    model = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=16)], device="cpu")
    model.save_pretrained(str(folder / "static"), create_model_card=False)
    return folder / "static"


def test_a_text_in_which_a_model_knows_nothing_is_named(tmp_path: Path) -> None:
    embedder = load_embedder(str(_static(tmp_path)))
    with pytest.raises(ModelError, match=r"a vector of zeros, .*; 1 of 2 texts, the first is ''"):
        embedder.encode_documents(["the cat", ""])


# -- settings behind the name --


names = st.text(alphabet="abc/-.:@é", min_size=1, max_size=12)
values = st.text(alphabet="ab =,:\n!é", max_size=8).filter(lambda v: "\\" not in v)


@given(names, st.fixed_dictionaries({}, optional={"query_prefix": values, "document_prefix": values}))
def test_a_name_with_settings_is_taken_apart_as_it_was_put_together(name: str, settings: dict[str, str]) -> None:
    assert split_spec(join_spec(name, settings)) == (name, settings)


def test_settings_that_are_none_are_one_line(tmp_path: Path) -> None:
    for text, says in (
        ("m,colour=red", "no setting is called 'colour'; known: dtype, query_prefix, document_prefix"),
        ("m, dtype=bf16", "no setting is called 'dtype'"),
        ("m,dtype=bf16,dtype=fp32", "dtype is given twice"),
    ):
        with pytest.raises(UsageError, match=says):
            split_spec(text)
    with pytest.raises(UsageError, match="query_prefix cannot be set here; known: dtype"):
        load_reranker("m,query_prefix=x")
    odd = tmp_path / "a,b=c"
    odd.mkdir()
    assert split_spec(str(odd)) == (str(odd), {})
    assert split_spec(f"{odd},dtype=bf16") == (str(odd), {"dtype": "bf16"})
    assert {*SETTINGS} == {"dtype", "query_prefix", "document_prefix"}


def test_fp32_is_what_is_loaded_and_bf16_is_asked_for(tiny_bert: Path) -> None:
    plain, exact, fast = (load_embedder(f"{tiny_bert}{more}") for more in ("", ",dtype=fp32", ",dtype=bf16"))
    assert plain.fingerprint == exact.fingerprint == load_embedder(str(tiny_bert), dtype="fp32").fingerprint
    assert fast.fingerprint == load_embedder(str(tiny_bert), dtype="bf16").fingerprint != plain.fingerprint
    assert fast.fingerprint in (load_embedder(str(tiny_bert), dtype="auto").fingerprint, fast.fingerprint)
    assert plain.name == exact.name == str(tiny_bert)
    assert fast.name == f"{tiny_bert},dtype=bf16"
    with Pool.of([Example("the cat", "x")]) as pool:
        assert (pool.embed(plain), pool.embed(fast), pool.embed(exact)) == (1, 1, 0)
    with pytest.raises(UsageError, match="says dtype='bf16', and dtype='fp32' was given beside it"):
        load_embedder(f"{tiny_bert},dtype=bf16", dtype="fp32")
    with pytest.raises(UsageError, match="dtype is 'fp8'; use auto, fp32 or bf16"):
        load_embedder(f"{tiny_bert},dtype=fp8")


def test_auto_is_recorded_as_what_it_came_to(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for has, behind in ((True, ",dtype=bf16"), (False, "")):
        monkeypatch.setattr("iclkit.models._device.supports_bf16", lambda _, has=has: has)
        assert load_embedder(f"{tiny_bert},dtype=auto").name == f"{tiny_bert}{behind}"


def test_a_reranker_is_loaded_in_fp32_too(tiny_bert: Path, tmp_path: Path) -> None:
    from transformers import BertConfig, BertForSequenceClassification

    folder = Path(shutil.copytree(tiny_bert, tmp_path / "cross"))
    BertForSequenceClassification(BertConfig.from_pretrained(tiny_bert, num_labels=1)).save_pretrained(folder)
    plain, fast = load_reranker(str(folder)), load_reranker(f"{folder},dtype=bf16")
    assert plain.fingerprint == load_reranker(str(folder), dtype="fp32").fingerprint != fast.fingerprint
    assert (plain.name, fast.name) == (str(folder), f"{folder},dtype=bf16")
    with pytest.raises(UsageError, match="says dtype='bf16'"):
        load_reranker(f"{folder},dtype=bf16", dtype="fp32")


# -- prefixes --


def fronts(embedder: Any) -> tuple[str, str]:
    return embedder.template.query.open, embedder.template.document.open


@pytest.mark.parametrize("kind", ["packed", "whole", "mean"])
def test_prefixes_stand_in_front_of_their_side_and_are_part_of_the_fingerprint(
    tiny_bert: Path, tiny_lm: Path, tmp_path: Path, kind: str
) -> None:
    bare = {"packed": str(tiny_bert), "whole": str(_static(tmp_path)), "mean": f"mean:{tiny_lm}"}[kind]
    plain = load_embedder(bare)
    embedder = load_embedder(f"{bare},query_prefix=what is red ,document_prefix=where is ")
    tolerance = 1e-5 if kind == "mean" else 0  # a front of its own ids, joined to the text's
    np.testing.assert_allclose(
        embedder.encode_queries(TEXTS), plain.encode_queries([f"what is red {t}" for t in TEXTS]), atol=tolerance
    )
    np.testing.assert_allclose(
        embedder.encode_documents(TEXTS), plain.encode_documents([f"where is {t}" for t in TEXTS]), atol=tolerance
    )
    same = load_embedder(bare, query_prefix="what is red ", document_prefix="where is ")
    assert same.fingerprint == embedder.fingerprint
    assert same.name == embedder.name == f"{bare},query_prefix=what is red ,document_prefix=where is "
    assert load_embedder(same.name).fingerprint == same.fingerprint
    one = load_embedder(f"{bare},query_prefix=what is red ")
    marks = {(e.fingerprint, vector_key(e, "document")) for e in (plain, embedder, one)}
    assert len(marks) == 3
    if kind != "whole":
        assert vector_key(plain, "document") != vector_key(embedder, "document")


def make_st(bert: Path, folder: Path, **config: Any) -> Path:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    SentenceTransformer(modules=[Transformer(str(bert)), Pooling(32)], device="cpu").save(str(folder))
    file = folder / "config_sentence_transformers.json"
    file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != "prompts"} | config))
    return folder


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, ("", "")),
        ({"prompts": {"query": "", "document": ""}}, ("", "")),
        ({"prompts": {"query": "q: ", "document": "d: "}}, ("q: ", "d: ")),
        ({"prompts": {"query": "q: ", "passage": "p: "}}, ("q: ", "p: ")),
        ({"prompts": {"query": "q: ", "corpus": "c: ", "sts": "s: "}}, ("q: ", "c: ")),
        ({"prompts": {"sts": "s: "}, "default_prompt_name": "sts"}, ("s: ", "s: ")),
        ({"prompts": {"query": "q: ", "sts": "s: "}, "default_prompt_name": "sts"}, ("q: ", "s: ")),
        ({"prompts": {"query": "q: ", "document": None}}, ("q: ", "")),
    ],
)
def test_a_folders_own_prompts_hold_unless_others_are_asked_for(
    tiny_bert: Path, tmp_path: Path, config: dict, expected: tuple[str, str]
) -> None:
    folder = make_st(tiny_bert, tmp_path / "st", **config)
    assert fronts(load_embedder(str(folder))) == expected
    assert fronts(load_embedder(f"{folder},query_prefix=mine ")) == ("mine ", expected[1])
    assert fronts(load_embedder(f"{folder},query_prefix=,document_prefix=")) == ("", "")


@pytest.fixture
def e5(tiny_bert: Path, home: Path) -> str:
    """The catalogue's e5-small-v2, small and random, where a pull would have put it."""
    make_st(tiny_bert, home / "models" / "e5-small-v2")
    return "e5-small-v2"


def test_what_the_catalogue_knows_a_model_was_trained_with_is_put_in_front(e5: str, home: Path) -> None:
    embedder = load_embedder(e5)
    folder = home / "models" / e5
    assert fronts(embedder) == ("query: ", "passage: ")
    assert fronts(load_embedder(str(folder))) == ("", "")  # a folder is whatever it says itself
    assert fronts(load_embedder(f"{e5},document_prefix=query: ")) == ("query: ", "query: ")
    bare = load_embedder(f"{e5},query_prefix=,document_prefix=")
    assert fronts(bare) == ("", "")
    np.testing.assert_array_equal(embedder.encode_queries(["red"]), bare.encode_queries(["query: red"]))
    assert bare.document_fingerprint != embedder.document_fingerprint
    file = folder / "config_sentence_transformers.json"
    file.write_text('{"prompts": {"query": "Q ", "document": ""}}')
    assert fronts(load_embedder(e5)) == ("Q ", "")


def test_a_hub_id_is_known_by_its_card(home: Path) -> None:
    for name in ("e5-small-v2", "intfloat/e5-small-v2", "intfloat/e5-small-v2@main"):
        card = models.card_of(name)
        assert card is not None
        assert card.query_prefix == "query: "
    for name in ("owner/name", "nothing", str(home), "."):
        assert models.card_of(name) is None


def test_prefixes_that_can_have_no_place_are_refused(tiny_bert: Path, tiny_lm: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="prompteol writes a prompt of its own; prefixes go with mean, weighted, last"):
        load_embedder(f"prompteol:{tiny_lm},query_prefix=x")
    with pytest.raises(UsageError, match="give it, or the prefixes, not both"):
        load_embedder(str(tiny_bert), template=EmbeddingFormat(SideFormat("a")), query_prefix="b")
    folder = Path(shutil.copytree(tiny_bert, tmp_path / "trained"))
    (folder / "iclkit.json").write_text('{"format": 1, "rendering": {"instruct": ["query"]}, "tasks": []}')
    with pytest.raises(UsageError, match="writes texts as its training did; it takes no prefixes"):
        load_embedder(f"{folder},query_prefix=x")
    fast = load_embedder(f"{folder},dtype=bf16")
    assert isinstance(fast, Retriever)
    assert fast.name == f"{folder},dtype=bf16"


def test_shown_examples_pass_settings_on(tiny_bert: Path, tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"input": "where is the cat", "output": "on the mat"}\n')
    spec = f"icl:{tiny_bert}@{file}"
    plain, fast = load_embedder(spec), load_embedder(f"{spec},dtype=bf16,document_prefix=what ")
    assert fast.name == f"{spec},dtype=bf16,document_prefix=what "
    inner = load_embedder(f"{tiny_bert},dtype=bf16,document_prefix=what ")
    assert vector_key(fast, "document") == vector_key(inner, "document")
    assert fast.fingerprint != plain.fingerprint
