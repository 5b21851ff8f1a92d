"""Embedders: what sentence-transformers computes, the same bits whatever the batch, and the invariants of templates."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iclkit.embed import EmbeddingFormat, SideFormat, bge_icl, load_embedder, prompt_eol, rare
from iclkit.embed._encoder import EncoderBackbone, TextEmbedder, pool_hidden_states
from iclkit.embed._formats import prepare_text
from iclkit.embed._protocol import vector_key
from iclkit.errors import DataError, ModelError, UsageError
from iclkit.pool import Pool
from iclkit.records import Example

TEXTS = [
    "the cat sat on a mat",
    "where",
    "",
    "who sat on the red mat? the blue cat!",
    "Ünïcödé 🦊",
    "the cat sat on a mat",
    "a " * 500,
    "what is red",
]
PAIRS = (("where is the cat", "on the mat"), ("what is blue", "the mat"), ("who sat", "the cat"))


def lm(folder: Path, template: EmbeddingFormat, **options) -> TextEmbedder:
    embedder = load_embedder(f"lm:{folder}", dtype="fp32", template=template)
    assert isinstance(embedder, TextEmbedder)
    if options:
        return TextEmbedder("tiny", embedder._backbone, template, "w", **options)
    return embedder


def save_sentence_transformer(bert: Path, folder: Path, pooling: str, **options) -> Path:
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer

    words = Transformer(str(bert), max_seq_length=options.pop("max_seq_length", 40))
    modules = [words, Pooling(32, pooling_mode=pooling, include_prompt=options.pop("include_prompt", True))]
    if options.pop("dense", False):
        torch.manual_seed(1)
        modules.append(Dense(in_features=32, out_features=12))
    if options.pop("normalize", True):
        modules.append(Normalize())
    SentenceTransformer(modules=modules, device="cpu", **options).save(str(folder))
    return folder


@pytest.mark.parametrize("pooling", ["mean", "cls", "max", "lasttoken", "weightedmean", "mean_sqrt_len_tokens"])
@pytest.mark.parametrize(
    "options", [{}, {"dense": True, "normalize": False}, {"prompts": {"query": "query: ", "document": "mat: "}}]
)
def test_a_sentence_transformers_folder_gives_what_that_library_gives(
    tiny_bert: Path, tmp_path: Path, pooling: str, options: dict
) -> None:
    from sentence_transformers import SentenceTransformer

    folder = save_sentence_transformer(tiny_bert, tmp_path / "st", pooling, **options)
    ours, theirs = load_embedder(str(folder), dtype="fp32"), SentenceTransformer(str(folder), device="cpu")
    assert isinstance(ours, TextEmbedder)
    texts = [t for t in TEXTS if t]  # theirs has no token to pool in an empty text without special tokens
    for mine, expected in (
        (ours.encode_queries(texts), theirs.encode_query(texts, normalize_embeddings=True)),
        (ours.encode_documents(texts), theirs.encode_document(texts, normalize_embeddings=True)),
    ):
        assert mine.dtype == np.float32
        np.testing.assert_allclose(mine, expected, atol=2e-5)


def test_a_prompt_that_is_not_pooled_agrees_too(tiny_bert: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    folder = save_sentence_transformer(
        tiny_bert, tmp_path / "st", "mean", include_prompt=False, prompts={"query": "what is ", "document": ""}
    )
    theirs = SentenceTransformer(str(folder), device="cpu")
    np.testing.assert_allclose(
        load_embedder(str(folder), dtype="fp32").encode_queries(TEXTS[:2]),
        theirs.encode_query(TEXTS[:2], normalize_embeddings=True),
        atol=2e-5,
    )


def test_a_plain_encoder_is_mean_pooled_and_other_kinds_are_run_whole(tiny_bert: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    mean = save_sentence_transformer(tiny_bert, tmp_path / "mean", "mean", max_seq_length=64)
    np.testing.assert_allclose(
        load_embedder(str(tiny_bert), dtype="fp32").encode_documents(TEXTS),
        load_embedder(str(mean), dtype="fp32").encode_documents(TEXTS),
        atol=1e-6,
    )
    backbone = load_embedder(str(tiny_bert), dtype="fp32")._backbone
    SentenceTransformer(modules=[StaticEmbedding(backbone.tokenizer.backend_tokenizer, embedding_dim=8)]).save(
        str(tmp_path / "s")
    )
    static = load_embedder(str(tmp_path / "s"))
    vectors = static.encode_queries(["the cat", "a mat", "the cat"])
    assert vectors.shape == (3, static.dim)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(vectors[0], vectors[2])


ALL = {
    "mean": EmbeddingFormat(),
    "weighted": EmbeddingFormat(pooling=("weighted",)),
    "eol": prompt_eol(),
    "eol with a demonstration": prompt_eol(("the cat sat", "cat")),
    "bge": bge_icl("find the mat", PAIRS),
    "rare": rare("find the mat", PAIRS),
    "text only": EmbeddingFormat(SideFormat("query: ", " response"), SideFormat(), text_only=True),
}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_text_has_the_same_bits_alone_in_a_batch_and_in_any_order(tiny_lm: Path, name: str, dtype: str) -> None:
    embedder = load_embedder(f"lm:{tiny_lm}", dtype=dtype, template=ALL[name])
    for encode in (embedder.encode_queries, embedder.encode_documents):
        together = encode(TEXTS)
        assert together.shape == (len(TEXTS), embedder.dim)
        np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
        np.testing.assert_array_equal(together, np.concatenate([encode([t]) for t in TEXTS]))
        order = np.random.default_rng(0).permutation(len(TEXTS))
        np.testing.assert_array_equal(together[order], encode([TEXTS[i] for i in order]))
    assert embedder.encode_queries([]).shape == (0, embedder.dim)


@pytest.mark.models
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_default_model_gives_the_same_bits_in_any_batch_and_on_any_number_of_threads(
    minilm_path: Path, dtype: str
) -> None:
    embedders = [load_embedder(str(minilm_path), dtype=dtype, threads=n) for n in (1, 2, 3)]
    texts = [" ".join(f"word{i % 7}" for i in range(n % 23)) + f" number {n}" for n in range(60)]
    together = embedders[0].encode_queries(texts)
    for embedder in embedders:
        np.testing.assert_array_equal(together, embedder.encode_queries(texts))
        np.testing.assert_array_equal(together, np.concatenate([embedder.encode_queries([t]) for t in texts]))


@pytest.mark.models
def test_bf16_is_near_fp32(minilm_path: Path) -> None:
    texts = [f"How do I {verb} my {thing}?" for verb in ("pay", "find", "lose") for thing in ("card", "phone", "cat")]
    exact, fast = (load_embedder(str(minilm_path), dtype=d).encode_queries(texts) for d in ("fp32", "bf16"))
    assert ((exact * fast).sum(1) > 0.9995).all()
    np.testing.assert_allclose(np.linalg.norm(fast, axis=1), 1, atol=1e-5)


def test_examples_of_none_equal_the_plain_encoder(tiny_lm: Path) -> None:
    plain = EmbeddingFormat(
        SideFormat("<instruct>t\n<query>", "\n<response>"), SideFormat(), ("last",), max_text_tokens=512
    )
    np.testing.assert_array_equal(
        lm(tiny_lm, bge_icl("t")).encode_queries(TEXTS), lm(tiny_lm, plain).encode_queries(TEXTS)
    )


def test_examples_change_queries_only_and_so_do_fingerprints(tiny_lm: Path) -> None:
    bare, shown = lm(tiny_lm, bge_icl("t")), lm(tiny_lm, bge_icl("t", PAIRS))
    turned = lm(tiny_lm, bge_icl("t", PAIRS[::-1]))
    np.testing.assert_array_equal(bare.encode_documents(TEXTS), shown.encode_documents(TEXTS))
    assert bare.document_fingerprint == shown.document_fingerprint == turned.document_fingerprint
    assert len({bare.fingerprint, shown.fingerprint, turned.fingerprint}) == 3
    vectors = [e.encode_queries(TEXTS[:2]) for e in (bare, shown, turned)]
    assert all(v.shape == vectors[0].shape for v in vectors)
    assert not np.allclose(vectors[0], vectors[1])
    assert not np.allclose(vectors[1], vectors[2])
    with Pool.of([Example("the cat", "x")]) as pool:
        pool.embed(bare)
        assert pool.embed(shown) == 0  # changing the examples does not embed the pool again


def test_what_determines_vectors_is_in_the_fingerprint(tiny_lm: Path, tmp_path: Path) -> None:
    base = EmbeddingFormat(SideFormat("a ", " b"), SideFormat("c "), ("mean",))
    changes = [
        {"query": SideFormat("a ", " c")},
        {"query": SideFormat("A ", " b")},
        {"pooling": ("last",)},
        {"max_tokens": 64},
        {"max_text_tokens": 20},
        {"text_only": True},
        {"prepare": "eol"},
        {"joint": True},
    ]
    marks = {lm(tiny_lm, dataclasses.replace(base, **c)).fingerprint for c in [{}, *changes]}
    marks.add(load_embedder(f"lm:{tiny_lm}", dtype="bf16", template=base).fingerprint)
    assert len(marks) == len(changes) + 2
    assert lm(tiny_lm, base).fingerprint in marks
    copied = shutil.copytree(tiny_lm, tmp_path / "copy")
    assert lm(copied, base).fingerprint == lm(tiny_lm, base).fingerprint  # where it lies does not matter
    raw = (copied / "model.safetensors").read_bytes()
    (copied / "model.safetensors").write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    assert lm(copied, base).fingerprint != lm(tiny_lm, base).fingerprint
    assert (
        load_embedder(f"prompteol:{tiny_lm}").fingerprint == load_embedder(f"prompteol:{tiny_lm}").document_fingerprint
    )


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 300), st.integers(0, 3))
def test_the_end_of_a_query_is_always_the_suffix_and_the_examples_stay_whole(length: int, count: int) -> None:
    embedder = FIXED["tiny"]
    template = bge_icl("t", PAIRS[:count])
    embedder = TextEmbedder("tiny", embedder._backbone, dataclasses.replace(template, max_tokens=120), "w")
    model = embedder._backbone
    ((ids, start, end),) = embedder.plan(["cat " * length], template.query)
    close = model.ids([template.query.close])[0] + model.eos
    assert len(ids) <= 120
    assert ids[-len(close) :] == close
    assert end == len(ids) - len(close)
    front = template.query.front(template.query.examples)
    assert model.tokenizer.decode(ids[:start]) == front
    assert ids[start:end] == model.ids(["cat " * length])[0][: end - start]


FIXED: dict[str, TextEmbedder] = {}


@pytest.fixture(autouse=True)
def fixed(tiny_lm: Path) -> None:
    if not FIXED:
        FIXED["tiny"] = lm(tiny_lm, EmbeddingFormat())


def test_examples_that_do_not_fit_give_way_from_the_far_end(tiny_lm: Path, caplog: pytest.LogCaptureFixture) -> None:
    template = dataclasses.replace(bge_icl("t", PAIRS), max_tokens=90)
    embedder = lm(tiny_lm, template)
    with caplog.at_level(logging.WARNING, logger="iclkit"):
        ((ids, *_),) = embedder.plan(["cat " * 100], template.query)
    assert len(ids) <= 90
    text = embedder._backbone.tokenizer.decode(ids)
    assert PAIRS[-1][0] in text
    assert PAIRS[0][0] not in text
    assert "one fewer is shown" in caplog.text
    with pytest.raises(UsageError, match="the template alone takes"):
        lm(tiny_lm, EmbeddingFormat(SideFormat("word " * 60), SideFormat(), max_tokens=40)).encode_queries(["x"])


@pytest.mark.parametrize("name", ["bge", "eol with a demonstration"])
@pytest.mark.parametrize("pooling", ["last", "mean", "weighted"])
def test_a_front_computed_once_gives_what_computing_it_each_time_gives(tiny_lm: Path, name: str, pooling: str) -> None:
    template = dataclasses.replace(ALL[name], pooling=(pooling,))
    shared, whole = lm(tiny_lm, template), lm(tiny_lm, template, share_front=False)
    assert shared._backbone.causal
    calls = []
    shared._backbone.model.register_forward_hook(
        lambda _m, _a, kw, _o: calls.append(kw["input_ids"].numel()), with_kwargs=True
    )
    np.testing.assert_allclose(shared.encode_queries(TEXTS), whole.encode_queries(TEXTS), atol=1e-5)
    before = sum(calls)
    shared.encode_queries(TEXTS)
    again = sum(calls) - before
    assert again < sum(len(ids) for ids, *_ in shared.plan(list(dict.fromkeys(TEXTS)), template.query))


def test_a_bidirectional_model_is_recognised_and_never_shares_a_front(tiny_bert: Path) -> None:
    template = bge_icl("find the mat", PAIRS[:1])
    embedder = load_embedder(f"lm:{tiny_bert}", dtype="fp32", template=dataclasses.replace(template, max_tokens=64))
    assert not embedder._backbone.causal
    assert embedder.encode_queries(["the cat"]).shape == (1, 32)


class Retrieved:
    """The other texts of a store as examples, never the query itself."""

    fingerprint = "retrieved-1"

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, text: str) -> tuple[tuple[str, str], ...]:
        self.asked.append(text)
        return tuple((q, r) for q, r in PAIRS if q != text)[:2]


def test_a_provider_chooses_per_query_and_its_order_is_kept(tiny_lm: Path) -> None:
    provider = Retrieved()
    template = rare("t", provider)
    embedder = lm(tiny_lm, template)
    texts = [PAIRS[0][0], "something else"]
    plans = [embedder._backbone.tokenizer.decode(ids) for ids, *_ in embedder.plan(texts, template.query)]
    assert plans[0].index("what is blue") < plans[0].index("who sat") < plans[0].index("where is the cat")
    assert plans[0].count("where is the cat") == 1
    assert provider.asked == texts
    vectors = embedder.encode_queries(texts)
    fixed_pairs = lm(tiny_lm, rare("t", PAIRS[1:]))
    np.testing.assert_allclose(vectors[0], fixed_pairs.encode_queries(texts[:1])[0], atol=1e-5)
    assert embedder.document_fingerprint == fixed_pairs.document_fingerprint
    assert embedder.fingerprint != fixed_pairs.fingerprint


def test_braces_and_marks_in_examples_are_plain_text() -> None:
    side = bge_icl("t", [("{response} {query}", "{query}")]).query
    assert (
        side.front(side.examples) == "<instruct>t\n<query>{response} {query}\n<response>{query}\n\n<instruct>t\n<query>"
    )


def test_prompt_eol_reads_as_its_paper_says(tiny_lm: Path) -> None:
    template = prompt_eol(("A man is smoking.", "Smoking"))
    embedder = lm(tiny_lm, template)
    ((ids, *_),) = embedder.plan(['who said "red"?'], template.query)
    assert embedder._backbone.tokenizer.decode(ids) == (
        'This sentence : "A man is smoking." means in one word:"Smoking". '
        'This sentence : "who said \'red\'." means in one word:"'
    )
    assert template.symmetric


@given(st.text(max_size=30), st.sampled_from(["", "eol", "lower"]))
def test_text_preparation_is_idempotent(text: str, how: str) -> None:
    if how == "lower" and text.lower().lower() != text.lower():
        return
    once = prepare_text(text, how)
    assert prepare_text(once, how) == once


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 3), st.integers(0, 3), st.integers(0, 99))
def test_pooling_ignores_pads_on_either_side(n: int, t: int, left: int, right: int, seed: int) -> None:
    import torch

    states = torch.from_numpy(np.random.default_rng(seed).standard_normal((n, t, 3)).astype(np.float32))
    padded = torch.nn.functional.pad(states, (0, 0, left, right), value=99.0)
    mask = torch.nn.functional.pad(torch.ones(n, t, dtype=torch.bool), (left, right), value=False)
    for how in ("mean", "last", "cls", "weighted", "max", "sqrt"):
        plain = pool_hidden_states(states, torch.ones(n, t, dtype=torch.bool), (how,))
        torch.testing.assert_close(pool_hidden_states(padded, mask, (how,)), plain)
    weights = np.arange(1, t + 1) / np.arange(1, t + 1).sum()  # 1/3, 2/3 for two tokens; 1 for one
    expected = (states.numpy() * weights[None, :, None]).sum(1)
    np.testing.assert_allclose(pool_hidden_states(padded, mask, ("weighted",)).numpy(), expected, atol=1e-5)
    np.testing.assert_allclose(pool_hidden_states(padded, mask, ("mean", "last")).numpy()[:, 3:], states[:, -1].numpy())


def test_equal_texts_are_encoded_once_and_progress_is_told(tiny_lm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embedder, told, seen = lm(tiny_lm, EmbeddingFormat()), [], []
    forward = embedder._forward
    monkeypatch.setattr(embedder, "_forward", lambda plans, *how: seen.append(len(plans)) or forward(plans, *how))
    embedder.encode_documents(["a", "b b", "a", "a"], lambda done, total: told.append((done, total)))
    assert sum(seen) == 2
    assert told[-1] == (2, 2)


def test_the_number_of_threads_is_put_back(tiny_lm: Path) -> None:
    import torch

    before = torch.get_num_threads()
    embedder = load_embedder(f"mean:{tiny_lm}", threads=before + 1)
    embedder.encode_documents(["a"])
    assert torch.get_num_threads() == before


def test_bad_embedders_are_one_clear_line(tiny_lm: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is a language model; .* prompteol:"):
        load_embedder(str(tiny_lm))
    with pytest.raises(UsageError, match="known: prompteol, mean"):
        load_embedder(f"maen:{tiny_lm}")
    with pytest.raises(UsageError, match="use auto, fp32 or bf16"):
        load_embedder(f"mean:{tiny_lm}", dtype="fp8")
    broken = shutil.copytree(tiny_lm, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(ModelError, match=r"model\.safetensors is not a whole safetensors file") as caught:
        load_embedder(f"mean:{broken}")
    assert "\n" not in str(caught.value)


def test_special_tokens_are_found_by_looking(tiny_bert: Path, tiny_lm: Path) -> None:
    import torch

    assert (lambda b: (b.bos, b.eos))(EncoderBackbone.load(tiny_bert, torch.float32, torch.device("cpu"))) == ([2], [3])
    assert (lambda b: (b.bos, b.eos))(EncoderBackbone.load(tiny_lm, torch.float32, torch.device("cpu"))) == ([], [])


def test_token_vectors_are_unit_rows_without_special_tokens_and_independent_of_the_batch(
    tiny_bert: Path, tiny_lm: Path
) -> None:
    for embedder in (load_embedder(str(tiny_bert), dtype="fp32"), lm(tiny_lm, bge_icl("t", PAIRS))):
        assert isinstance(embedder, TextEmbedder)
        together = embedder.encode_tokens(TEXTS)
        for text, (tokens, vectors) in zip(TEXTS, together, strict=True):
            assert len(tokens) == len(vectors) >= 1
            assert not {"[CLS]", "[SEP]"} & set(tokens)
            assert "".join(tokens).replace("Ġ", " ") == text or not text.isascii() or len(text) > 100
            np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
            ((alone, other),) = embedder.encode_tokens([text])
            assert alone == tokens
            np.testing.assert_array_equal(other, vectors)


def test_a_reranker_scores_pairs_each_alone(tiny_bert: Path, tmp_path: Path) -> None:
    import torch
    from sentence_transformers import CrossEncoder
    from transformers import BertConfig, BertForSequenceClassification

    from iclkit.embed import load_reranker

    folder = shutil.copytree(tiny_bert, tmp_path / "cross")
    config = BertConfig.from_pretrained(tiny_bert, num_labels=1)
    torch.manual_seed(2)
    BertForSequenceClassification(config).save_pretrained(folder)
    pairs = [("the cat", t) for t in TEXTS if t] + [("where", "who"), ("who", "where")]
    reranker = load_reranker(str(folder), dtype="fp32")
    scores = reranker.score(pairs)
    expected = CrossEncoder(str(folder), device="cpu", max_length=64).predict(pairs, activation_fn=torch.nn.Identity())
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    np.testing.assert_array_equal(scores, np.concatenate([reranker.score([p]) for p in pairs]))
    assert reranker.score([]).shape == (0,)
    BertForSequenceClassification(BertConfig.from_pretrained(tiny_bert, num_labels=3)).save_pretrained(folder)
    with pytest.raises(ModelError, match="is no reranker: it gives 3 values"):
        load_reranker(str(folder))


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_packed_bert_is_that_of_transformers_and_gives_the_same_bits_in_any_batch(
    tiny_bert: Path, dtype: str
) -> None:
    embedder = load_embedder(str(tiny_bert), dtype=dtype)
    assert isinstance(embedder, TextEmbedder)
    packed = embedder._backbone.packed
    assert packed is not None
    texts = [*TEXTS, *(f"the cat {'sat ' * n}" for n in range(30))]
    together = embedder.encode_documents(texts)
    order = np.random.default_rng(0).permutation(len(texts))
    np.testing.assert_array_equal(together, np.concatenate([embedder.encode_documents([t]) for t in texts]))
    np.testing.assert_array_equal(together[order], embedder.encode_documents([texts[i] for i in order]))
    embedder._backbone.packed = None
    plain = embedder.encode_documents(texts)
    if dtype == "fp32":
        np.testing.assert_allclose(together, plain, atol=1e-5)
    assert ((together * plain).sum(1) > 0.999).all()


def test_a_bert_that_computes_something_else_is_run_as_transformers_has_it(
    tiny_bert: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import torch
    from transformers import BertModel

    from iclkit.embed._bert import PackedBert

    model = BertModel.from_pretrained(tiny_bert).eval()
    assert PackedBert.of(model) is not None
    model.encoder.layer[0].register_forward_hook(
        lambda _m, _a, out: -out if isinstance(out, torch.Tensor) else (-out[0],)
    )
    with caplog.at_level(logging.WARNING, logger="iclkit"):
        assert PackedBert.of(model) is None
    assert "differs from the usual one" in caplog.text
    relu = BertModel.from_pretrained(tiny_bert, hidden_act="relu").eval()
    assert PackedBert.of(relu) is None


def test_examples_from_a_file_stand_in_front_of_queries_alone(tiny_bert: Path, tiny_lm: Path, tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps({"input": a, "output": b}) + "\n" for a, b in PAIRS) + "\n")
    for base in (str(tiny_bert), f"mean:{tiny_lm}"):
        plain, shown = load_embedder(base, dtype="fp32"), load_embedder(f"icl:{base}@{file}", dtype="fp32")
        np.testing.assert_array_equal(shown.encode_documents(TEXTS), plain.encode_documents(TEXTS))
        assert vector_key(shown, "document") == vector_key(plain, "document")
        assert shown.fingerprint != plain.fingerprint
        front = "".join(f"{a}\n{b}\n\n" for a, b in PAIRS)
        assert np.abs(shown.encode_queries(["the cat"]) - plain.encode_queries(["the cat"])).max() > 1e-3
        alike = shown.encode_queries(["the cat"]) @ plain.encode_queries([front + "the cat"]).T
        assert float(alike[0, 0]) > 0.99


@pytest.mark.parametrize(
    ("text", "says"), [("", "no examples"), ('{"input": "x"}', "line 1: give"), ("{", "line 1: not JSON")]
)
def test_a_file_of_examples_that_is_none_is_one_line(tiny_bert: Path, tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text(text)
    with pytest.raises(DataError, match=says):
        load_embedder(f"icl:{tiny_bert}@{file}")
    with pytest.raises(UsageError, match="names no examples"):
        load_embedder(f"icl:{tiny_bert}")
