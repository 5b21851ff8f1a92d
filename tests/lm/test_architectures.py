"""Architectures whose module keeps other things between steps than keys and values, or names its context otherwise."""

import pytest
import torch

from iclkit.errors import DataError, ModelError, RequestError
from iclkit.lm import GenerateRequest, ScoreRequest
from iclkit.lm._load import load_torch
from iclkit.lm._module import CachedRows, cache_works, context_limit

from .test_generate import plain_greedy
from .test_score import branching_pairs, scores_of

RECURRENT = {
    "mamba": {"state_size": 4, "expand": 2},
    "mamba2": {"num_heads": 12, "state_size": 8, "n_groups": 1, "expand": 2, "chunk_size": 8},
    "rwkv": {"attention_hidden_size": 48, "context_length": 256},
    "recurrent_gemma": {"attention_window_size": 16, "lru_width": 48, "num_hidden_layers": 3},
}
ATTENDING = {
    "bloom": {"n_head": 6, "n_layer": 2},
    "mpt": {"d_model": 48, "n_heads": 6, "n_layers": 2, "max_seq_len": 256},
    "gpt2": {"n_embd": 48, "n_head": 6, "n_layer": 2, "n_positions": 256, "n_inner": 80},
    "gemma2": {"sliding_window": 16},
    "jamba": {"mamba_d_state": 4, "num_experts": 2, "attn_layer_period": 2, "attn_layer_offset": 1},
}
CONTEXTS = ["the quick", "Review: the plot is thin . Sentiment:", "a joy"]


ALL = {**RECURRENT, **ATTENDING}


@pytest.fixture(params=ALL)
def arch(request):
    return request.param


def test_rows_written_together_equal_the_plain_loop(arch, tiny_folder):
    lm = load_torch(str(tiny_folder(arch, **ALL[arch])), dtype="fp32", device="cpu", packed=False)
    got = lm.generate([GenerateRequest(c, 6) for c in CONTEXTS])
    assert [g.text for g in got] == [plain_greedy(lm, c, 6) for c in CONTEXTS]
    assert lm.model._cache_works == (arch in ATTENDING)


def test_rows_scored_together_equal_the_reference(arch, tiny_folder, naive):
    folder = tiny_folder(arch, **ALL[arch])
    lm = load_torch(str(folder), dtype="fp32", device="cpu", batch_tokens=256, packed=False)
    pairs = branching_pairs(n=6, vocabulary=100)
    assert scores_of(lm, pairs) == pytest.approx(naive(folder, pairs), abs=1e-4)
    assert lm.estimate([ScoreRequest("the dog", " jumps")]).seconds > 0
    assert min(lm.shape.parameters, lm.shape.layers, lm.shape.width) > 0


def test_keys_and_values_that_give_something_else_are_not_used(tiny_folder, monkeypatch):
    lm = load_torch(str(tiny_folder("gpt2", **ATTENDING["gpt2"])), dtype="fp32", device="cpu", packed=False)
    assert cache_works(lm.model.module)
    monkeypatch.setattr(CachedRows, "append", lambda self, tokens: None)  # the rows do not grow
    assert not cache_works(lm.model.module)
    assert lm.generate([GenerateRequest(CONTEXTS[0], 6)])[0].text == plain_greedy(lm, CONTEXTS[0], 6)


def test_a_sample_is_the_same_with_and_without_keys_and_values(tiny_folder):
    lm = load_torch(str(tiny_folder("gpt2", **ATTENDING["gpt2"])), dtype="fp32", device="cpu", packed=False)
    asks = [GenerateRequest(c, 6, temperature=1.0, seed=s) for c in CONTEXTS for s in range(2)]
    lm.model._cache_works = True
    cached = lm.generate(asks)
    lm.model._cache_works = False
    assert lm.generate(asks) == cached


def test_what_a_module_raises_in_the_middle_of_work_is_one_line(tiny_folder, monkeypatch):
    lm = load_torch(str(tiny_folder("mamba", **RECURRENT["mamba"])), dtype="fp32", device="cpu")

    def fail(*_, **__):
        raise AttributeError("'MambaOutput' object has no attribute\n 'past_key_values'")

    monkeypatch.setattr(lm.model.module, "forward", fail)
    for work in (lambda: lm.score([ScoreRequest("a", " dog")]), lambda: lm.generate([GenerateRequest("a", 2)])):
        with pytest.raises(ModelError, match=r"the architecture of .* fails") as caught:
            work()
        assert "\n" not in str(caught.value)


# -- how much they read ------------------------------------------------------------------------------------------------


class Settings:
    def __init__(self, **fields):
        self.__dict__.update(fields)


class NoTokenizer:
    model_max_length = 10**30


@pytest.mark.parametrize(
    "field",
    ["max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_sequence_length", "context_length"],
)
def test_the_context_is_read_under_every_name_it_has(field):
    assert context_limit(Settings(**{field: 77}), NoTokenizer) == (77, "")


def test_a_model_that_names_no_context_takes_its_tokenizers_or_says_so():
    assert context_limit(Settings(), Settings(model_max_length=99)) == (99, "")
    size, note = context_limit(Settings(max_seq_len=None), NoTokenizer)
    assert size > 10**9
    assert note.startswith("nothing says how many tokens this model reads")


@pytest.mark.parametrize("value", [0, 1, -5, "512", 2.5, [512]])
def test_a_context_that_is_no_count_is_refused(value):
    with pytest.raises(DataError, match="max_seq_len"):
        context_limit(Settings(max_seq_len=value), NoTokenizer)


def test_mpt_reads_its_max_seq_len_and_bloom_its_seq_length(tiny_folder):
    mpt = load_torch(str(tiny_folder("mpt", **ATTENDING["mpt"], max_position_embeddings=None)), device="cpu")
    bloom = load_torch(
        str(tiny_folder("bloom", **ATTENDING["bloom"], seq_length=300, max_position_embeddings=None)), device="cpu"
    )
    assert (mpt.context_size, bloom.context_size) == (256, 300)
    for lm in (mpt, bloom):
        with pytest.raises(RequestError, match=f"reads {lm.context_size}"):
            lm.score([ScoreRequest("quick " * 400, "fox")])


def test_a_model_without_a_limit_says_so_in_a_note(tiny_folder):
    lm = load_torch(
        str(tiny_folder("mamba", **RECURRENT["mamba"], max_position_embeddings=None)), dtype="fp32", device="cpu"
    )
    assert "nothing says how many tokens" in lm.notes[0]
    assert torch.isfinite(torch.tensor(lm.score([ScoreRequest("quick " * 600, "fox")])[0].logprob))
