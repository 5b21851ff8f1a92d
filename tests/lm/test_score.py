"""Scores against the naive reference: one float32 forward per label, full logits, batch of one."""

import json
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from iclkit.errors import ModelError, RequestError, UsageError
from iclkit.lm import LM, ModelShape, ScoreRequest, load_lm
from iclkit.lm._cascade import plain
from iclkit.lm._forward import ScoreReader, default_batch_tokens
from iclkit.lm._load import load_torch
from iclkit.lm._packed import PackedForward
from iclkit.lm._plan import build_layout
from iclkit.lm._tokens import TokenPair

ARCHITECTURES = {
    "llama": ("llama", {}),
    "llama-rope-scaled": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500.0,
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "llama-biased": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "mistral": ("mistral", {"sliding_window": None}),
}
OTHERS = {
    "llama-dynamic": ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 500.0, "factor": 2.0}}),
    "stablelm": ("stablelm", {}),
    "opt": ("opt", {"ffn_dim": 80, "word_embed_proj_dim": 48, "hidden_act": "relu"}),
}


def branching_pairs(seed=0, n=24, vocabulary=100):
    """Sequences that share prefixes of many lengths, with continuations of one to four tokens."""
    r = random.Random(seed)
    stem = [r.randrange(3, vocabulary) for _ in range(200)]
    pairs = []
    for _ in range(n):
        own = [r.randrange(3, vocabulary) for _ in range(r.randint(5, 60))]
        ids = (*stem[: r.choice([0, 7, 50, 170, 200])], *own)
        for _ in range(r.randint(1, 3)):
            tail = tuple(r.randrange(3, vocabulary) for _ in range(r.randint(1, 4)))
            pairs.append(TokenPair((*ids, *tail), len(ids)))
    return pairs


def scores_of(lm, pairs):
    found = dict(lm.score_encoded(pairs))
    return [found[i].logprob for i in range(len(pairs))]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_packed_forward_equals_the_naive_reference(arch, tiny_folder, naive):
    name, config = ARCHITECTURES[arch]
    folder = tiny_folder(name, **config)
    lm = load_torch(str(folder), dtype="fp32", device="cpu", batch_tokens=256)
    assert lm.model.packed is not None, "this architecture must take the packed path"
    pairs = branching_pairs(vocabulary=lm.model.module.config.vocab_size)
    assert lm.plan_encoded(pairs).prefixes, "the case must have a kept prefix"
    assert scores_of(lm, pairs) == pytest.approx(naive(folder, pairs), abs=1e-4)


@pytest.mark.parametrize("arch", OTHERS)
def test_any_other_model_runs_through_its_module_and_equals_the_reference(arch, tiny_folder, naive):
    name, config = OTHERS[arch]
    folder = tiny_folder(name, **config)
    lm = load_torch(str(folder), dtype="fp32", device="cpu", batch_tokens=256)
    assert lm.model.packed is None
    pairs = branching_pairs(vocabulary=lm.model.module.config.vocab_size)
    assert scores_of(lm, pairs) == pytest.approx(naive(folder, pairs), abs=1e-4)


@pytest.mark.parametrize("attention", ["blocks", "rows", plain], ids=["blocks", "rows", "cascade"])
def test_every_other_way_of_attention_equals_the_reference(attention, tiny_folder, naive):
    folder = tiny_folder()
    lm = load_torch(str(folder), dtype="fp32", device="cpu", batch_tokens=256)
    lm.model.packed = PackedForward(lm.model.packed.architecture, attention=attention)
    pairs = branching_pairs(vocabulary=lm.model.module.config.vocab_size)
    assert scores_of(lm, pairs) == pytest.approx(naive(folder, pairs), abs=1e-4)


def test_a_prompt_of_several_strips_and_blocks_equals_the_reference(tiny_folder, naive, monkeypatch):
    monkeypatch.setattr("iclkit.lm._packed.STRIP", 32)
    monkeypatch.setattr("iclkit.lm._packed.BLOCK", 16)
    folder = tiny_folder()
    pairs = branching_pairs()
    want = naive(folder, pairs)
    for attention, tile in (("flash", 1), ("flash", 12), ("blocks", 1)):
        lm = load_torch(str(folder), dtype="fp32", device="cpu", batch_tokens=256)
        lm.model.packed = PackedForward(lm.model.packed.architecture, attention=attention)
        lm.model.packed.tile = tile
        assert scores_of(lm, pairs) == pytest.approx(want, abs=1e-4)


def test_a_long_prompt_that_gives_no_numbers_leaves_the_one_before_it_in_its_batch_alone(tiny_folder, monkeypatch):
    monkeypatch.setattr("iclkit.lm._packed.BLOCK", 8)
    lm = load_torch(str(tiny_folder()), dtype="fp32", device="cpu", batch_tokens=256)
    good, bad = [TokenPair((*range(1, 12), n), 11) for n in (20, 21)], TokenPair((*range(30, 47), 3), 17)
    packed = lm.model.packed = PackedForward(lm.model.packed.architecture, attention="flash")
    packed.tile = 8
    want = scores_of(lm, good)
    packed.embedding[40] = float("nan")
    layout = build_layout([*good, bad])
    hidden, _ = packed.forward(layout)
    finite = torch.isfinite(packed.logits(hidden)).all(-1)[torch.from_numpy(layout.read_row)]
    assert finite.tolist() == [True, True, False]
    assert scores_of(lm, good) == want


def test_logits_are_read_as_torch_reads_them_with_ties_and_without_some_tokens():
    logits = torch.randn(5, 11, generator=torch.Generator().manual_seed(0)) * 30
    logits[1, 3] = logits[1, 7] = 200.0
    logits[2] = -torch.inf
    logits[2, 4] = 1.0
    row, token = np.array([4, 1, 1, 2, 3, 0, 0]), np.array([6, 7, 3, 4, 2, int(logits[0].argmax()), 1])
    want = torch.log_softmax(logits.double(), -1)[row, token]
    best = logits.argmax(-1)[row] == torch.from_numpy(token)
    reader = ScoreReader(row, token, np.arange(7), 7)
    for at in (0, 3):
        reader.take(at, logits[at : at + 3].clone())
    got = reader.scores()
    assert [s.logprob for s in got] == pytest.approx(want.tolist(), abs=1e-4)
    assert [s.greedy for s in got] == best.tolist()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), budget=st.integers(8, 600), n=st.integers(1, 12))
def test_sharing_and_batching_never_change_a_score(tiny_folder, naive, seed, budget, n):
    folder = tiny_folder()
    lm = _LOADED.setdefault(folder, load_torch(str(folder), dtype="fp32", device="cpu"))
    lm.model.batch_tokens = budget
    pairs = branching_pairs(seed, n, lm.model.module.config.vocab_size)
    assert scores_of(lm, pairs) == pytest.approx(naive(folder, pairs), abs=1e-4)


_LOADED: dict = {}


def test_bf16_is_near_the_reference(tiny_folder, naive):
    folder = tiny_folder(initializer_range=0.1)
    lm = load_torch(str(folder), dtype="bf16", device="cpu")
    pairs = branching_pairs(vocabulary=lm.model.module.config.vocab_size)
    assert scores_of(lm, pairs) == pytest.approx(naive(folder, pairs), abs=0.5)


def test_equal_request_lists_give_bit_equal_scores_in_any_order(tiny_folder):
    folder = tiny_folder()
    lm = load_torch(str(folder), dtype="bf16", device="cpu", batch_tokens=128)
    pairs = branching_pairs(vocabulary=lm.model.module.config.vocab_size)
    assert scores_of(lm, pairs) == scores_of(lm, pairs) == scores_of(lm, pairs[::-1])[::-1]


def test_an_identical_request_is_computed_once(tiny_folder):
    lm = load_lm(str(tiny_folder()), dtype="fp32", device="cpu", cache=False)
    request = ScoreRequest("the quick brown fox", " jumps")
    assert isinstance(lm, LM)
    first, *others = lm.score([request] * 5)
    assert others == [first] * 4
    assert (lm.usage.requests, lm.usage.calls) == (5, 1)


def test_greedy_says_whether_the_continuation_was_the_likeliest(tiny_folder):
    from iclkit.lm import GenerateRequest

    lm = load_lm(str(tiny_folder()), dtype="fp32", device="cpu", cache=False)
    context = "Review: a warm and funny story . Sentiment:"
    text = lm.generate([GenerateRequest(context, max_tokens=1)])[0].text
    likeliest, other = lm.score([ScoreRequest(context, text), ScoreRequest(context, " the lazy dog")])
    assert likeliest.greedy
    assert not other.greedy


def test_a_request_that_does_not_fit_is_an_error_before_anything_is_computed(tiny_folder):
    lm = load_lm(str(tiny_folder()), dtype="fp32", device="cpu", cache=False)
    with pytest.raises(RequestError, match=r"a request takes \d+ tokens, .* reads 512") as caught:
        lm.score([ScoreRequest("the dog", " jumps"), ScoreRequest("quick " * 600, "fox")])
    assert caught.value.index == 1
    assert lm.usage.calls == 0


def test_running_out_of_memory_halves_the_batch_and_goes_on(tiny_folder, monkeypatch):
    lm = load_torch(str(tiny_folder()), dtype="fp32", device="cpu", batch_tokens=256)
    pairs = branching_pairs(vocabulary=lm.model.module.config.vocab_size)
    expected = scores_of(lm, pairs)
    forward = type(lm.model.packed).forward

    def small(self, layout, *args, **kwargs):
        if len(layout.tokens) > 300:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 GB")
        return forward(self, layout, *args, **kwargs)

    monkeypatch.setattr(type(lm.model.packed), "forward", small)
    lm.model.batch_tokens = 1024
    assert scores_of(lm, pairs) == pytest.approx(expected, abs=1e-4)


def test_one_sequence_too_large_for_memory_is_one_clear_error(tiny_folder, monkeypatch):
    lm = load_torch(str(tiny_folder()), dtype="fp32", device="cpu")

    def never(*_, **__):
        raise MemoryError

    monkeypatch.setattr(type(lm.model.packed), "forward", never)
    with pytest.raises(RequestError, match="out of memory on one sequence of 3 tokens") as caught:
        scores_of(lm, [TokenPair((5, 6, 7), 1)])
    assert caught.value.index == 0


def test_wrong_settings_and_broken_folders_are_clear_errors(tiny_folder, tmp_path):
    folder = tiny_folder()
    with pytest.raises(UsageError, match="dtype is 'fp8'"):
        load_lm(str(folder), dtype="fp8", cache=False)
    with pytest.raises(UsageError, match="cuda"):
        load_lm(str(folder), device="cuda:7", cache=False)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ModelError, match=r"is no language model that can be loaded: .* has no model\.safetensors"):
        load_lm(str(tmp_path), cache=False)


def test_the_fingerprint_names_weights_and_dtype(tiny_folder):
    prints = {
        load_torch(str(tiny_folder()), dtype=d, device="cpu", packed=packed).fingerprint
        for d in ("fp32", "bf16")
        for packed in (True, False)
    } | {load_torch(str(tiny_folder(initializer_range=0.2)), dtype="fp32", device="cpu").fingerprint}
    assert len(prints) == 5


def test_a_time_estimate_grows_with_the_plan(tiny_folder):
    lm = load_torch(str(tiny_folder()), dtype="fp32", device="cpu")
    short = lm.estimate([ScoreRequest("the dog", " jumps")])
    long = lm.estimate([ScoreRequest(f"{i} the dog jumps over the fox", " and") for i in range(50)])
    assert 0 < short.seconds < long.seconds


LABELS = {
    "sst2": [" negative", " positive"],
    "trec": [" description", " entity", " abbreviation", " human being", " numeric value", " location of a place"],
}


def real_prompts(shared_data, task, n, shots):
    r = random.Random(7)
    train, test = (
        [json.loads(line) for line in (shared_data / task / f"{split}.jsonl").open()] for split in ("train", "test")
    )
    out = []
    for row in r.sample(test, n):
        shown = "".join(f"Input: {d['input']}\nOutput: {d['output']}\n\n" for d in r.sample(train, shots))
        out.append(f"{shown}Input: {row['input']}\nOutput:")
    return out


def check_real_prompts(path, shared_data, naive, per_task, shots):
    lm = load_torch(str(path), dtype="fp32", device="cpu")
    for task, labels in LABELS.items():
        prompts = real_prompts(shared_data, task, per_task, shots)
        requests = [ScoreRequest(p, label) for p in prompts for label in labels]
        got = [s.logprob for s in lm.score(requests)]
        want = naive(path, lm.encode_scores(requests))
        assert got == pytest.approx(want, abs=1e-3)
        k = len(labels)
        picked = [max(range(k), key=got[i : i + k].__getitem__) for i in range(0, len(got), k)]
        wanted = [max(range(k), key=want[i : i + k].__getitem__) for i in range(0, len(want), k)]
        assert picked == wanted


@pytest.mark.parametrize("tied", [True, False])
def test_the_shape_leaves_words_out_whether_they_are_tied_or_not(tiny_folder, tied):
    lm = load_lm(str(tiny_folder("llama", tie_word_embeddings=tied)), cache=False, workers=1)
    attention, feed_forward, norms = 48 * 48 * 2 + 48 * 16 * 2, 3 * 48 * 80, 2 * 48
    assert lm.shape == ModelShape(2 * (attention + feed_forward + norms) + 48, 2, 48)
    by_module = load_lm(str(tiny_folder("opt", **OTHERS["opt"][1])), cache=False, workers=1, packed=False)
    assert (by_module.shape.layers, by_module.shape.width) == (2, 48)
    assert by_module.shape.parameters < 2 * 12 * 48 * 48 + 48 * 600


@pytest.mark.models
@pytest.mark.data
def test_real_prompts_score_as_the_naive_reference_does(smollm2_path, shared_data, naive):
    check_real_prompts(smollm2_path, shared_data, naive, per_task=5, shots=1)


@pytest.mark.slow
@pytest.mark.models
@pytest.mark.data
def test_sixty_four_real_prompts_score_as_the_naive_reference_does(smollm2_path, shared_data, naive):
    check_real_prompts(smollm2_path, shared_data, naive, per_task=32, shots=4)


def test_the_size_of_a_pass_is_a_setting_with_a_default_by_device(tiny_folder):
    assert load_torch(str(tiny_folder()), device="cpu").model.batch_tokens == 2048
    assert load_torch(str(tiny_folder()), device="cpu", batch_tokens=300).model.batch_tokens == 300


def test_the_size_of_a_pass_on_a_gpu_follows_its_free_memory(monkeypatch, tiny_folder):
    module = load_torch(str(tiny_folder()), device="cpu").model.module
    monkeypatch.setattr(module, "parameters", lambda: iter([OnGpu()]))
    sizes = []
    for free in (1 << 20, 1 << 27, (1 << 27) + (1 << 20), 1 << 40):
        monkeypatch.setattr("torch.cuda.mem_get_info", lambda device, free=free: (free, free))
        sizes.append(default_batch_tokens(module, packed=True))
    assert sizes[0] == 2048 < sizes[1] == sizes[2] < sizes[3] == 32768


class OnGpu:
    device = torch.device("cuda")

    def element_size(self):
        return 2
