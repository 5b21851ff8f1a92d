"""What a causal LM of ``transformers`` computes, as data: one description for all the families that run packed.

A ``Family`` says where a family keeps its weights and which of a few variations its layers have; ``describe`` reads a
loaded module by it. What comes out is checked against the module four ways, and whatever does not hold makes it None,
so that the model runs through its own module: the class is the one of ``transformers`` for that family; every setting
of its configuration that is not accounted for has its default; every weight is used; every product is a plain linear
layer. ``_forward.matches_module`` then compares what both compute.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(slots=True)
class Norm:
    """A norm over the last dimension, in float32: RMS, or layer norm where ``centered``."""

    weight: Tensor
    bias: Tensor | None
    eps: float
    centered: bool

    def __call__(self, x: Tensor) -> Tensor:
        if self.centered:
            return F.layer_norm(x, (len(self.weight),), self.weight, self.bias, self.eps)
        if x.device.type != "cpu":
            return F.rms_norm(x, (len(self.weight),), self.weight, self.eps)
        # torch has no kernel of its own for CPUs: what it does there takes three times as long
        length: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = length.square_().div_(x.shape[-1]).add_(self.eps).rsqrt_()
        return (x * scale).mul_(self.weight)


@dataclass(slots=True)
class Weights:
    """Of a product x W^T + b. The parts, one below the other, are the module's own, put together when asked for.

    ``by_head``: the rows go head by head, of so many heads (query, key and value of the first, then of the second), and
    come out as all queries, all keys, all values.
    """

    parts: tuple[Tensor, ...]
    biases: tuple[Tensor, ...] = ()
    by_head: int = 0

    @property
    def rows(self) -> int:
        """Numbers that come out."""
        return sum(map(len, self.parts))

    @property
    def matrix(self) -> Tensor:
        """W, which is new where it is put together."""
        return self._whole(self.parts)

    @property
    def bias(self) -> Tensor | None:
        """b, None for none."""
        return self._whole(self.biases) if self.biases else None

    def _whole(self, parts: tuple[Tensor, ...]) -> Tensor:
        whole = parts[0] if len(parts) == 1 else torch.cat(parts)
        if not self.by_head:
            return whole
        return whole.view(self.by_head, 3, -1, *whole.shape[1:]).transpose(0, 1).flatten(0, 2)


@dataclass(slots=True)
class Layer:
    """One layer. ``qkv``: queries, keys and values of all heads, one below the other. A norm that is None is not there.

    ``parallel``: attention and MLP read the same residual stream. ``gate`` None: the MLP is ``down(act(up(x)))``.
    ``rope``: which rotary table turns queries and keys, None for none. ``window``: tokens that a token sees, itself
    included; None for all before it. ``scale``: of the products of queries and keys.
    """

    before_attention: Norm | None
    qkv: Weights
    q_norm: Norm | None
    k_norm: Norm | None
    out: Weights
    after_attention: Norm | None
    before_mlp: Norm | None
    gate: Weights | None
    up: Weights
    down: Weights
    after_mlp: Norm | None
    parallel: bool
    rope: str | None
    window: int | None
    scale: float


@dataclass(slots=True)
class Architecture:
    """A model as its packed pass computes it.

    ``positions``: learned ones, added to the embeddings. ``softcap``, ``final_softcap``: c tanh(x / c) of attention
    scores and of logits. ``long_from``: sequences of more tokens than this are turned by other angles from their first
    token on (longrope); None where length changes nothing.
    """

    heads: int
    kv_heads: int
    size: int
    embedding: Tensor
    embedding_scale: float
    positions: Tensor | None
    layers: list[Layer]
    final_norm: Norm
    head: Weights
    activation: tuple[str, str]
    softcap: float | None
    final_softcap: float | None
    rotary: Any
    long_from: int | None

    @property
    def ropes(self) -> list[str]:
        """The rotary tables that layers use: one, "", or one for each kind of layer."""
        return [*dict.fromkeys(layer.rope for layer in self.layers if layer.rope is not None)]


ACTIVATIONS = {
    "silu": ("swish", ""),
    "swish": ("swish", ""),
    "gelu": ("gelu", "none"),
    "gelu_new": ("gelu", "tanh"),
    "gelu_fast": ("gelu", "tanh"),
    "gelu_pytorch_tanh": ("gelu", "tanh"),
    "relu": ("relu", ""),
}
"""Names of transformers: the function and its variant, as oneDNN calls them."""
_FIXED_ROPES = frozenset({"default", "linear", "llama3", "yarn"})
"""Rotary embeddings whose angles depend on the position alone."""

# Settings that are read here, or seen in the shapes of the weights, or of no effect on what is computed.
_COMMON = """
    vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim
    max_position_embeddings original_max_position_embeddings initializer_range use_cache pad_token_id bos_token_id
    eos_token_id tie_word_embeddings pretraining_tp rope_parameters attention_bias mlp_bias rms_norm_eps
    layer_norm_eps layer_norm_epsilon hidden_act hidden_activation activation_function attention_dropout resid_pdrop
    embd_pdrop attn_pdrop hidden_dropout resid_dropout embed_dropout classifier_dropout
    num_layers num_heads n_positions n_embd n_layer n_head n_inner
    summary_type summary_use_proj summary_activation summary_proj_to_labels summary_first_dropout
"""
_ACCOUNTED_FOR = frozenset(_COMMON.split())

Window = Callable[[Any, int], int | None]
"""(configuration, layer number) -> the window of that layer."""
Rope = Callable[[Any, int], str | None]
"""(configuration, layer number) -> the rotary table of that layer."""


def _no_window(config: Any, number: int) -> int | None:  # noqa: ARG001
    return None


def _of_all(config: Any, number: int) -> int | None:  # noqa: ARG001
    window: int | None = config.sliding_window
    return window


def _by_type(config: Any, number: int) -> int | None:
    kinds: dict[str, int | None] = {"full_attention": None, "sliding_attention": config.sliding_window}
    return kinds[config.layer_types[number]]


def _of_local_layers(config: Any, number: int) -> int | None:
    kinds: dict[str, int | None] = {"global": None, "local": config.window_size}
    return kinds[config.attention_layers[number]]


def _one_rope(config: Any, number: int) -> str | None:  # noqa: ARG001
    return ""


def _no_rope(config: Any, number: int) -> str | None:  # noqa: ARG001
    return None


def _rope_of_some(config: Any, number: int) -> str | None:
    return "" if config.no_rope_layers[number] else None


def _rope_by_type(config: Any, number: int) -> str | None:
    return str(config.layer_types[number])


@dataclass(frozen=True, slots=True)
class Family:
    """Where a family keeps things (paths from the module, its body, a layer or the attention) and how it varies.

    The defaults are Llama's. ``settings``: those of its configuration that are accounted for beside the common ones.
    """

    package: str
    body: str = "model"
    embedding: str = "embed_tokens"
    scaled_embedding: bool = False
    positions: str = ""
    layers: str = "layers"
    final_norm: str = "norm"
    rotary: str = "rotary_emb"
    attention: str = "self_attn"
    qkv: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    by_head: bool = False
    """The rows of a fused ``qkv`` go head by head: query, key and value of the first, then of the second."""
    qk_norms: tuple[str, str] = ("", "")
    out: str = "o_proj"
    gate: str = "mlp.gate_proj"
    up: str = "mlp.up_proj"
    gate_up: str = ""
    """Both in one, the gate first."""
    down: str = "mlp.down_proj"
    before_attention: str = "input_layernorm"
    after_attention: str = ""
    before_mlp: str = "post_attention_layernorm"
    after_mlp: str = ""
    norm_offset: float = 0.0
    """Added to the weights of norms."""
    linear: str = "Linear"
    """The class of its products; "Conv1D" holds them transposed."""
    activation: str = "hidden_act"
    parallel: str = ""
    """The setting that says whether attention and MLP read the same stream."""
    window: Window = _no_window
    rope: Rope = _one_rope
    scale: float | None = None
    """None: what the attention says itself."""
    softcap: str = ""
    final_softcap: str = ""
    settings: frozenset[str] = frozenset()


_SLIDING = frozenset({"sliding_window", "use_sliding_window", "max_window_layers", "layer_types"})
_GEMMA = Family("gemma", scaled_embedding=True, norm_offset=1.0)
_GEMMA_2 = dataclasses.replace(
    _GEMMA,
    package="gemma2",
    activation="hidden_activation",
    after_attention="post_attention_layernorm",
    before_mlp="pre_feedforward_layernorm",
    after_mlp="post_feedforward_layernorm",
    window=_by_type,
    softcap="attn_logit_softcapping",
    final_softcap="final_logit_softcapping",
    settings=_SLIDING | {"query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping"},
)
_GPT_2 = Family(
    "gpt2",
    body="transformer",
    embedding="wte",
    positions="wpe",
    layers="h",
    final_norm="ln_f",
    rotary="",
    attention="attn",
    qkv=("c_attn",),
    out="c_proj",
    gate="",
    up="mlp.c_fc",
    down="mlp.c_proj",
    before_attention="ln_1",
    before_mlp="ln_2",
    linear="Conv1D",
    activation="activation_function",
    rope=_no_rope,
    settings=frozenset({"scale_attn_weights", "scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn"}),
)
FAMILIES = {
    "llama": Family("llama"),
    "mistral": Family("mistral", window=_of_all, settings=_SLIDING),
    "qwen2": Family("qwen2", window=_by_type, settings=_SLIDING),
    "qwen3": Family("qwen3", qk_norms=("q_norm", "k_norm"), window=_by_type, settings=_SLIDING),
    "olmo2": Family(
        "olmo2",
        qk_norms=("q_norm", "k_norm"),
        before_attention="",
        after_attention="post_attention_layernorm",
        before_mlp="",
        after_mlp="post_feedforward_layernorm",
    ),
    "smollm3": Family(
        "smollm3",
        window=_by_type,
        rope=_rope_of_some,
        settings=_SLIDING | {"no_rope_layers", "no_rope_layer_interval"},
    ),
    "phi3": Family("phi3", qkv=("qkv_proj",), gate_up="mlp.gate_up_proj", window=_of_all, settings=_SLIDING),
    "gemma": _GEMMA,
    "gemma2": _GEMMA_2,
    "gemma3_text": dataclasses.replace(
        _GEMMA_2,
        package="gemma3",
        qk_norms=("q_norm", "k_norm"),
        rope=_rope_by_type,
        softcap="",  # a setting that its attention does not read
    ),
    "gpt_neox": Family(
        "gpt_neox",
        body="gpt_neox",
        embedding="embed_in",
        final_norm="final_layer_norm",
        attention="attention",
        qkv=("query_key_value",),
        by_head=True,
        out="dense",
        gate="",
        up="mlp.dense_h_to_4h",
        down="mlp.dense_4h_to_h",
        parallel="use_parallel_residual",
        settings=frozenset({"use_parallel_residual"}),
    ),
    "gpt_neo": dataclasses.replace(
        _GPT_2,
        package="gpt_neo",
        attention="attn.attention",
        qkv=("q_proj", "k_proj", "v_proj"),
        out="out_proj",
        linear="Linear",
        window=_of_local_layers,
        scale=1.0,
        settings=frozenset({"attention_types", "window_size"}),
    ),
    "gpt2": _GPT_2,
}
"""By ``model_type``."""


class _Unknown(Exception):
    """Something about the module that its family does not say."""


def describe(module: Any) -> Architecture | None:
    """What the loaded ``…ForCausalLM`` computes; None for one that is not known in every detail."""
    family = FAMILIES.get(module.config.model_type)
    if family is None or not _is_plain(module, family):
        return None
    try:
        return _read(module, family)
    except (_Unknown, AttributeError, LookupError):  # laid out otherwise than this family is here
        return None


def _is_plain(module: Any, family: Family) -> bool:
    """Whether the module is the library's own, whole on one device, and its settings are known or at their defaults."""
    import transformers

    config = module.config
    if type(module).__module__ != f"transformers.models.{family.package}.modeling_{family.package}":
        return False
    devices = {p.device for p in module.parameters()}
    if len(devices) != 1 or devices == {torch.device("meta")} or not dataclasses.is_dataclass(config):
        return False
    common = {f.name for f in dataclasses.fields(transformers.PreTrainedConfig)}
    return all(
        _is_default(setting, getattr(config, setting.name))
        for setting in dataclasses.fields(config)
        if setting.name not in _ACCOUNTED_FOR | family.settings | common
    )


def _is_default(setting: Any, value: Any) -> bool:
    default = None if setting.default is dataclasses.MISSING else setting.default
    return bool(value == default or not (value or default))


class _Reader:
    """Takes weights out of a module and remembers which."""

    def __init__(self, family: Family) -> None:
        self.family, self.used = family, set[int]()

    def take(self, parameter: Any) -> Tensor:
        """A weight as it is."""
        self.used.add(id(parameter))
        tensor: Tensor = parameter.detach()
        return tensor

    def norm(self, module: Any, path: str) -> Norm | None:
        """The norm at a path; None for no path."""
        if not path:
            return None
        at = attrgetter(path)(module)
        centered = type(at) is torch.nn.LayerNorm
        if not (centered or type(at).__name__.endswith("RMSNorm")):
            raise _Unknown(path)
        bias = self.take(at.bias).float() if centered and at.bias is not None else None
        eps = vars(at)["eps" if "eps" in vars(at) else "variance_epsilon"]
        return Norm(self.take(at.weight).float() + self.family.norm_offset, bias, float(eps), centered)

    def product(self, module: Any, *paths: str) -> Weights:
        """Products of one input, one below the other."""
        parts = [attrgetter(path)(module) for path in paths]
        if any(type(part).__name__ != self.family.linear for part in parts):
            raise _Unknown(paths)
        matrices = [self.take(part.weight) for part in parts]
        if self.family.linear == "Conv1D":
            matrices = [m.T for m in matrices]
        biases = [self.take(part.bias) for part in parts if part.bias is not None]
        if len(biases) not in (0, len(parts)):
            raise _Unknown(paths)
        return Weights(tuple(matrices), tuple(biases))


def _read(module: Any, family: Family) -> Architecture:
    config, body, read = module.config, attrgetter(family.body)(module), _Reader(family)
    table, head = attrgetter(family.embedding)(body), module.get_output_embeddings()
    if (type(table) is torch.nn.Embedding) == family.scaled_embedding or type(head) is not torch.nn.Linear:
        raise _Unknown("embeddings")
    embedding = read.take(table.weight)
    layers = [_layer(m, n, config, family, read) for n, m in enumerate(attrgetter(family.layers)(body))]
    attention = vars(attrgetter(family.attention)(attrgetter(family.layers)(body)[0]))
    heads, size = (
        int(config.num_attention_heads),
        int(attention["head_dim" if "head_dim" in attention else "head_size"]),
    )
    kv_heads, rest = divmod(layers[0].qkv.rows - heads * size, 2 * size)
    final_norm = read.norm(body, family.final_norm)
    if rest or final_norm is None or len(layers) != config.num_hidden_layers:
        raise _Unknown("heads")
    architecture = Architecture(
        heads=heads,
        kv_heads=kv_heads,
        size=size,
        embedding=embedding,
        # rounded as the module rounds it
        embedding_scale=float(table.embed_scale.to(embedding.dtype)) if family.scaled_embedding else 1.0,
        positions=read.take(attrgetter(family.positions)(body).weight) if family.positions else None,
        layers=layers,
        final_norm=final_norm,
        head=Weights((read.take(head.weight),), () if head.bias is None else (read.take(head.bias),)),
        activation=ACTIVATIONS[getattr(config, family.activation)],
        softcap=getattr(config, family.softcap) if family.softcap else None,
        final_softcap=getattr(config, family.final_softcap) if family.final_softcap else None,
        rotary=attrgetter(family.rotary)(body) if family.rotary else None,
        long_from=None,
    )
    architecture.long_from = _long_from(config, architecture.ropes)
    if any(id(p) not in read.used for p in module.parameters()):
        raise _Unknown("weights")
    return architecture


def _layer(module: Any, number: int, config: Any, family: Family, read: _Reader) -> Layer:
    attention = attrgetter(family.attention)(module)
    qkv = read.product(attention, *family.qkv)
    if family.by_head:
        qkv = Weights(qkv.parts, qkv.biases, config.num_attention_heads)
    if family.gate_up:
        both = read.product(module, family.gate_up)
        matrices, biases = both.parts[0].chunk(2), [b.chunk(2) for b in both.biases]
        gate, up = (Weights((m,), tuple(b[n] for b in biases)) for n, m in enumerate(matrices))
    else:
        gate = read.product(module, family.gate) if family.gate else None  # type: ignore[assignment]
        up = read.product(module, family.up)
    q_norm, k_norm = (read.norm(attention, path) for path in family.qk_norms)
    window = family.window(config, number)
    if family.window is _of_local_layers:
        _check_local(attention.bias, window)
    return Layer(
        before_attention=read.norm(module, family.before_attention),
        qkv=qkv,
        q_norm=q_norm,
        k_norm=k_norm,
        out=read.product(attention, family.out),
        after_attention=read.norm(module, family.after_attention),
        before_mlp=read.norm(module, family.before_mlp),
        gate=gate,
        up=up,
        down=read.product(module, family.down),
        after_mlp=read.norm(module, family.after_mlp),
        parallel=bool(getattr(config, family.parallel)) if family.parallel else False,
        rope=family.rope(config, number),
        window=window,
        scale=float(attention.scaling if family.scale is None else family.scale),
    )


def _check_local(mask: Tensor, window: int | None) -> None:
    """That a mask which the module keeps, (1, 1, size, size), is that of the window: by the rows where it shows."""
    size = len(mask[0, 0])
    columns = torch.arange(size, device=mask.device)
    for row in {0, size // 2, size - 1, *(() if window is None else (window - 1, window))} & {*range(size)}:
        first = 0 if window is None else row - window + 1
        if not torch.equal(mask[0, 0, row], (columns <= row) & (columns >= first)):
            raise _Unknown("mask")


def _long_from(config: Any, ropes: Sequence[str]) -> int | None:
    """From how many tokens on the angles are others; None for angles of the position alone."""
    if not ropes:
        return None
    settings = [config.rope_parameters if rope == "" else config.rope_parameters[rope] for rope in ropes]
    kinds = {s["rope_type"] for s in settings}
    if kinds == {"longrope"} and ropes == [""]:
        return int(settings[0]["original_max_position_embeddings"])
    if not kinds <= _FIXED_ROPES:
        raise _Unknown("rope")
    return None


@contextmanager
def small_windows(module: Any, architecture: Architecture, window: int) -> Iterator[bool]:
    """Module and architecture with windows of a few tokens, so that a short text shows them; False where neither has.

    Masks that the module keeps were compared when it was read, and stay (GPT-Neo).
    """
    config, windows = module.config, [layer.window for layer in architecture.layers]
    before = vars(config).get("sliding_window")
    if before is None or not any(windows):
        yield False
        return
    config.sliding_window = window
    try:
        for layer in architecture.layers:
            layer.window = window if layer.window else None
        yield True
    finally:
        config.sliding_window = before
        for layer, own in zip(architecture.layers, windows, strict=True):
            layer.window = own
