"""The packed pass of every family it knows against the module of transformers; and what it must leave to the module."""

import dataclasses
import random

import pytest
import torch

from iclkit.lm import GenerateRequest
from iclkit.lm._architecture import FAMILIES, describe
from iclkit.lm._cascade import plain
from iclkit.lm._forward import ForwardModel, matches_module
from iclkit.lm._load import load_codec, load_torch, packed_forward
from iclkit.lm._packed import PackedForward
from iclkit.lm._plan import make_plan
from iclkit.lm._tokens import TokenPair
from iclkit.lm._torch import TorchLM

from .test_generate import CONTEXTS, plain_greedy
from .test_score import branching_pairs, scores_of

LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 500.0,
    "short_factor": [1.0, 1.5],
    "long_factor": [2.0, 7.0],
    "original_max_position_embeddings": 60,
    "partial_rotary_factor": 0.5,
}
CASES = {
    "mistral": ("mistral", {"sliding_window": 16}),
    "qwen2": ("qwen2", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}),
    "qwen3": ("qwen3", {"use_sliding_window": True, "sliding_window": 300, "max_window_layers": 1}),
    "gemma": ("gemma", {}),
    "gemma2": ("gemma2", {"sliding_window": 16, "query_pre_attn_scalar": 20, "attn_logit_softcapping": 3.0}),
    "gemma3": ("gemma3_text", {"sliding_window": 16, "query_pre_attn_scalar": 20, "sliding_window_pattern": 2}),
    "gemma3-capped": ("gemma3_text", {"final_logit_softcapping": 2.0, "layer_types": ["full_attention"] * 2}),
    "phi3": ("phi3", {"sliding_window": 20}),
    "phi3-longrope": ("phi3", {"rope_parameters": LONGROPE, "original_max_position_embeddings": 60}),
    "olmo2": ("olmo2", {"attention_bias": True}),
    "smollm3": ("smollm3", {"no_rope_layer_interval": 2, "mlp_bias": True}),
    "smollm3-sliding": (
        "smollm3",
        {"no_rope_layers": [1, 0], "use_sliding_window": True, "sliding_window": 16},
    ),
    "gpt_neox": ("gpt_neox", {"num_key_value_heads": None}),
    "gpt_neox-serial": (
        "gpt_neox",
        {"num_key_value_heads": None, "use_parallel_residual": False, "attention_bias": False, "hidden_act": "relu"},
    ),
    "gpt_neo": ("gpt_neo", {"attention_types": [[["global", "local"], 1]], "window_size": 16}),
    "gpt2": ("gpt2", {"n_inner": 80, "scale_attn_by_inverse_layer_idx": True}),
}


def shake(module, scale=0.2):
    """Give norms and biases other weights than ones and zeros."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 1:
                parameter += scale * torch.randn_like(parameter)


def random_module(arch, **settings):
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 6, "max_position_embeddings": 512}
    grouped = {"num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 80, "pad_token_id": 0}
    extra = {} if arch in ("gpt2", "gpt_neo") else grouped
    config = AutoConfig.for_model(arch, **{"vocab_size": 300, "initializer_range": 0.3, **sizes, **extra, **settings})
    torch.manual_seed(0)
    module = AutoModelForCausalLM.from_config(config).eval()
    shake(module)
    return module


@pytest.fixture(scope="session")
def codec(tiny_folder):
    return load_codec(tiny_folder())


def lm_of(module, codec, packed, batch_tokens=256):
    return TorchLM(ForwardModel(module, codec, name="tiny", packed=packed, batch_tokens=batch_tokens), fingerprint="t")


@torch.inference_mode()
def reference(module, pairs):
    """One float32 forward per pair of what is fed, full logits, a plain sum."""
    out = []
    for pair in pairs:
        table = torch.log_softmax(module(torch.tensor([pair.ids[:-1]])).logits[0], -1)
        out.append(sum(float(table[i - 1, pair.ids[i]]) for i in range(pair.n_context, len(pair.ids))))
    return out


def test_every_family_is_among_the_cases():
    assert {arch for arch, _ in CASES.values()} | {"llama"} == {*FAMILIES}


@pytest.mark.parametrize("case", CASES)
def test_scores_and_texts_are_those_of_the_module(case, codec):
    arch, settings = CASES[case]
    module = random_module(arch, **settings)
    lm = lm_of(module, codec, packed_forward(module))
    assert lm.model.packed is not None, "this architecture must take the packed path"
    pairs = branching_pairs(n=8)
    want = reference(module, pairs)
    assert lm.plan_encoded(pairs).prefixes, "the case must have a kept prefix"
    assert scores_of(lm, pairs) == pytest.approx(want, abs=1e-4)
    asks = [GenerateRequest(" ".join(CONTEXTS[:n]), 6 + 9 * (n % 2)) for n in (1, 2, 3)]
    assert [g.text for g in lm.generate(asks)] == [plain_greedy(lm, a.context, a.max_tokens) for a in asks]
    some = slice(0, 6)
    for attention, tile in (("flash", 16), ("blocks", 1), ("rows", 1), (plain, 1)):
        lm.model.packed = PackedForward(lm.model.packed.architecture, attention=attention)
        lm.model.packed.tile = tile
        assert scores_of(lm, pairs[some]) == pytest.approx(want[some], abs=1e-4)


@pytest.mark.parametrize("seed", [*range(4), *(pytest.param(n, marks=pytest.mark.slow) for n in range(4, 13))])
def test_random_settings_of_a_family_change_nothing(seed, codec):
    r = random.Random(seed)
    arch = sorted(FAMILIES)[seed % len(FAMILIES)]
    heads, size = r.choice([(4, 8), (6, 8), (4, 16)])
    settings = {"num_hidden_layers": r.randint(1, 3), "num_attention_heads": heads, "hidden_size": heads * size}
    if arch not in ("gpt2", "gpt_neo", "gpt_neox"):
        settings |= {"num_key_value_heads": r.choice([1, 2, heads]), "head_dim": size}
        settings |= {"sliding_window": r.choice([1, 2, 9, 33, 129, 400])}
    else:
        settings |= {"num_key_value_heads": None, "head_dim": None}
    own = {
        "qwen2": {"use_sliding_window": True, "max_window_layers": 1},
        "gpt_neo": {
            "attention_types": [[["local"], settings["num_hidden_layers"]]],
            "window_size": r.choice([1, 5, 130]),
        },
        "smollm3": {"no_rope_layer_interval": r.randint(1, 3), "use_sliding_window": True},
        "gpt_neox": {
            "rope_parameters": {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": r.choice([0.5, 1.0])}
        },
        "phi3": {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
    }
    module = random_module(arch, **settings, **own.get(arch, {}))
    lm = lm_of(module, codec, packed_forward(module), r.choice([32, 200, 2048]))
    assert lm.model.packed is not None
    pairs = branching_pairs(seed, n=5)
    assert scores_of(lm, pairs) == pytest.approx(reference(module, pairs), abs=1e-4)


def test_longrope_reads_long_texts_apart_and_from_one_to_the_other_as_the_module_does(codec):
    module = random_module(*CASES["phi3-longrope"][:1], **CASES["phi3-longrope"][1])
    pairs = branching_pairs(n=8)
    plan = make_plan(pairs, 4096, apart=60)
    kinds = [{len(plan.sequences[u].ids) - 1 > 60 for u in b.sequences} for b in plan.batches]
    assert sorted(map(sorted, kinds)) == [[False], [True]]
    for packed in (packed_forward(module), None):
        lm = lm_of(module, codec, packed, batch_tokens=4096)
        assert scores_of(lm, pairs) == pytest.approx(reference(module, pairs), abs=1e-4)
        stem = "the quick brown fox jumps over the lazy dog a film that is"
        asks = [GenerateRequest(f"{stem} {' '.join(CONTEXTS * n)}", 16) for n in range(4)]
        sizes = [len(p) for p in lm.encode_prompts(asks)]
        assert min(sizes) + 16 <= 60 < max(sizes), "the case must have short and long ones"
        assert any(n <= 60 < n + 15 for n in sizes), "and one that crosses"
        assert [g.text for g in lm.generate(asks)] == [plain_greedy(lm, a.context, 16) for a in asks]


# -- what is left to the module -------------------------------------------------------------------------------------


def dynamic(module):
    module.config.rope_parameters["rope_type"] = "dynamic"


def more_weights(module):
    module.model.layers[1].self_attn.sinks = torch.nn.Parameter(torch.zeros(6))


def other_class(module):
    module.__class__ = type("LlamaForCausalLM", (type(module),), {})


def other_activation(module):
    module.config.hidden_act = "mish"


def quantised(module):
    module.model.layers[0].mlp.up_proj.__class__ = type("Linear4bit", (torch.nn.Linear,), {})


def other_norm(module):
    module.model.norm.__class__ = type("CentredNorm", (type(module.model.norm),), {})


def on_two_devices(module):
    module.model.layers[1].to("meta")


def renamed(module):
    module.model.layers[1].self_attn.query = module.model.layers[1].self_attn.q_proj
    del module.model.layers[1].self_attn.q_proj


@pytest.mark.parametrize(
    "change", [dynamic, more_weights, other_class, other_activation, quantised, other_norm, on_two_devices, renamed]
)
def test_a_variation_that_is_not_known_is_left_to_the_module(change):
    module = random_module("llama")
    assert describe(module) is not None
    change(module)
    assert describe(module) is None


def test_a_setting_that_is_not_known_must_have_its_default():
    from transformers import LlamaConfig

    module = random_module("gemma")
    module.config.use_bidirectional_attention = False
    assert describe(module) is not None
    module.config.use_bidirectional_attention = True
    assert describe(module) is None

    module = random_module("llama")
    fields = [("qk_clip", float | None, dataclasses.field(default=None))]
    with_more = dataclasses.make_dataclass("LlamaConfig", fields, bases=(LlamaConfig,))
    module.config.__class__ = with_more
    module.config.qk_clip = None
    assert describe(module) is not None
    module.config.qk_clip = 8.0
    assert describe(module) is None


@pytest.mark.parametrize("kind", ["chunked_attention", "linear_attention"])
def test_a_kind_of_layer_that_is_not_known_is_left_to_the_module(kind):
    module = random_module("qwen3")
    module.config.layer_types[1] = kind
    assert describe(module) is None


def test_a_mask_that_is_not_the_settings_is_left_to_the_module():
    module = random_module("gpt_neo", attention_types=[[["global", "local"], 1]], window_size=16)
    assert describe(module) is not None
    module.transformer.h[1].attn.attention.bias[..., 0] = True  # an attention sink
    assert describe(module) is None


@pytest.mark.parametrize(
    ("case", "wrong"),
    [
        ("mistral", {"window": 6}),
        ("gemma2", {"window": None}),
        ("gemma2", {"scale": 0.9}),
        ("olmo2", {"after_mlp": None}),
        ("smollm3", {"rope": ""}),
        ("gpt_neox", {"parallel": False}),
    ],
)
def test_a_wrong_description_does_not_pass_the_comparison(case, wrong):
    arch, settings = CASES[case]
    module = random_module(arch, **settings)
    architecture = describe(module)
    assert matches_module(module, PackedForward(architecture))
    if wrong.get("window"):  # wrong by one, and beyond the probe's length as configured
        module.config.sliding_window = 400
        for layer in architecture.layers:
            layer.window = 400
        packed = PackedForward(architecture)
        forward = packed.forward

        def off_by_one(layout, *args, **kwargs):
            for layer in architecture.layers:
                layer.window -= 1
            try:
                return forward(layout, *args, **kwargs)
            finally:
                for layer in architecture.layers:
                    layer.window += 1

        packed.forward = off_by_one
    else:
        for layer in architecture.layers:
            for name, value in wrong.items():
                setattr(layer, name, value)
        packed = PackedForward(architecture)
    assert not matches_module(module, packed)


def test_a_folder_of_another_family_is_loaded_packed_and_says_so_in_its_fingerprint(tiny_folder):
    folder = str(tiny_folder("gemma2", sliding_window=16))
    packed, whole = (load_torch(folder, dtype="fp32", device="cpu", packed=p) for p in (True, False))
    assert packed.model.packed is not None
    assert "|lean" in packed.fingerprint
    assert "|module" in whole.fingerprint
    pairs = [TokenPair(p.ids, p.n_context) for p in branching_pairs(n=6, vocabulary=100)]
    assert scores_of(packed, pairs) == pytest.approx(scores_of(whole, pairs), abs=1e-4)
