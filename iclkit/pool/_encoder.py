"""Texts to unit vectors with a transformer: the same text gives the same bits, whatever it is batched with.

Nothing is ever padded: texts of equal length in tokens are batched together, and a BERT takes texts of all lengths in
one row (``_bert.py``). No work is wasted, and on a CPU texts do not depend on each other, not even in the last bit.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from iclkit.errors import IclkitError, ModelError, UsageError
from iclkit.pool._bert import PackedBert
from iclkit.pool._embedder import Embedder, FloatArray, Progress
from iclkit.pool._retriever import as_retriever, read_card
from iclkit.pool._shown import ShownExamples, read_pairs
from iclkit.pool._template import EmbedTemplate, Pair, Pooling, Side, lm_template, prepare_text, template_mark
from iclkit.records import Json, digest

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)
Dtype = Literal["auto", "fp32", "bf16"]
SHORTEST = 16  # tokens a text must keep; examples give way before that
SHARED = 8  # tokens of a common front from which on its keys and values are computed once
FEWEST = 8  # tokens per forward pass below which rows are repeated
TOKENS = {"cpu": 1024, "cuda": 32768}  # per forward pass; beyond about 1k a CPU falls out of its cache
POOLINGS: dict[str, Pooling] = {
    "mean": "mean",
    "cls": "cls",
    "max": "max",
    "lasttoken": "last",
    "weightedmean": "weighted",
    "mean_sqrt_len_tokens": "sqrt",
}


def load_embedder(
    name_or_path: str,
    *,
    dtype: Dtype = "auto",
    device: str | None = None,
    threads: int | None = None,
    template: EmbedTemplate | None = None,
) -> Embedder:
    """An embedder by catalogue name, hub id or folder.

    A sentence-transformers folder is used with its own pooling and its own query and document prompts, any other
    encoder with mean pooling. ``prompteol:MODEL``, ``mean:MODEL``, ``weighted:MODEL`` and ``last:MODEL`` embed with a
    language model; ``icl:EMBEDDER@FILE`` shows any of these the examples of FILE (lines of JSON with ``input`` and
    ``output``) in front of each query. ``template`` replaces prompts and pooling. ``dtype`` "auto" is bf16 where the
    hardware computes in it, else fp32; pooling and normalisation are always fp32. UsageError, DataError or ModelError,
    in one line.
    """
    from iclkit import models

    way, colon, rest = name_or_path.partition(":")
    if way == "icl" and colon and template is None:
        return _load_shown(name_or_path, rest, dtype, device, threads)
    is_lm = bool(colon) and not Path(name_or_path).exists()
    if is_lm and template is None:
        template = lm_template(way)
    folder = models.resolve(rest if is_lm else name_or_path, "lm" if is_lm else "embedder")
    try:
        card = read_card(folder) if template is None else None
        loaded = _load(name_or_path, folder, dtype, device, threads, template)
        return as_retriever(loaded, card) if card else loaded
    except IclkitError:
        raise
    except Exception as error:  # whatever the libraries raise over a broken folder is reported, with its cause
        why = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(f"cannot load the embedder {name_or_path!r} from {folder}: {why[0]}") from error


def _load_shown(name: str, spec: str, dtype: Dtype, device: str | None, threads: int | None) -> Embedder:
    inner, at, file = spec.rpartition("@")
    if not at:
        raise UsageError(f"{name!r} names no examples; write icl:EMBEDDER@FILE, e.g. icl:{spec}@pairs.jsonl")
    documents = load_embedder(inner, dtype=dtype, device=device, threads=threads)
    if not isinstance(documents, TextEmbedder):
        raise UsageError(f"{inner!r} does not take its texts one by one as they are, and cannot be shown examples")
    return ShownExamples(name, documents.showing(read_pairs(Path(file))), documents)


def _load(
    name: str, folder: Path, dtype: Dtype, device: str | None, threads: int | None, template: EmbedTemplate | None
) -> Embedder:
    import torch

    if dtype not in ("auto", "fp32", "bf16"):
        raise UsageError(f"dtype is {dtype!r}; use auto, fp32 or bf16")
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    exact = torch.bfloat16 if dtype == "bf16" or (dtype == "auto" and computes_in_bf16(place)) else torch.float32
    weights = files_mark(folder)
    steps = _json(folder / "modules.json", [])
    kinds = [str(s["type"]).rpartition(".")[2] for s in steps]
    config = _json(folder / steps[0]["path"] / "config.json" if steps else folder / "config.json", {})
    plain = (
        kinds[:1] == ["Transformer"]
        and set(kinds[1:]) <= {"Pooling", "Dense", "Normalize"}
        and kinds.count("Pooling") == 1
    )
    if steps and template is None and (not plain or config.get("is_encoder_decoder")):
        return WholeModel(name, folder, weights, exact, place, threads)
    if not steps and template is None and any("CausalLM" in a for a in config.get("architectures") or ()):
        raise UsageError(f"{name!r} is a language model; to embed with it, write e.g. prompteol:{name}")
    heads = []
    if template is None:
        parts = {k: folder / s["path"] for k, s in zip(kinds, steps, strict=True) if k in ("Transformer", "Pooling")}
        template = _folder_template(folder, parts)
        heads = [_dense(folder / s["path"]) for k, s in zip(kinds, steps, strict=True) if k == "Dense"]
    backbone = Backbone.load(folder / steps[0]["path"] if steps else folder, exact, place)
    return TextEmbedder(name, backbone, template, weights, threads=threads, heads=heads)


def computes_in_bf16(device: torch.device) -> bool:
    """Whether bf16 products are done by the hardware there, rather than emulated."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return False
    checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(bool(getattr(torch.cpu, c, lambda: False)()) for c in checks)


def files_mark(folder: Path) -> str:
    """Hash of all that determines a model's vectors: weights, settings, tokenizer."""
    files = [f for f in folder.rglob("*") if f.is_file() and f.suffix in (".safetensors", ".json", ".txt", ".model")]
    files = [f for f in files if not {"onnx", "openvino"} & set(f.relative_to(folder).parts)]
    marks = []
    for file in sorted(files):
        with file.open("rb") as content:
            marks.append([str(file.relative_to(folder)), hashlib.file_digest(content, "blake2b").hexdigest()])
    return digest(marks)


def _json(path: Path, default: Any) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else default


def _folder_template(folder: Path, parts: dict[str, Path]) -> EmbedTemplate:
    settings = _json(folder / "config_sentence_transformers.json", {})
    prompts = settings.get("prompts") or {}
    default = prompts.get(settings.get("default_prompt_name") or "", "")
    query = prompts.get("query", default)
    document = next((prompts[n] for n in ("document", "passage", "corpus") if n in prompts), default)
    pooling = _json(parts["Pooling"] / "config.json", {}) if "Pooling" in parts else {}
    modes = pooling.get("pooling_mode") or [
        mode
        for flag, mode in (
            ("cls_token", "cls"),
            ("max_tokens", "max"),
            ("mean_tokens", "mean"),
            ("mean_sqrt_len_tokens", "mean_sqrt_len_tokens"),
            ("weightedmean_tokens", "weightedmean"),
            ("lasttoken", "lasttoken"),
        )
        if pooling.get(f"pooling_mode_{flag}")
    ]
    own = _json(parts.get("Transformer", folder) / "sentence_bert_config.json", {})
    return EmbedTemplate(
        Side(query),
        Side(document),
        tuple(POOLINGS[m] for m in ([modes] if isinstance(modes, str) else modes)) or ("mean",),
        text_only=not pooling.get("include_prompt", True),
        joint=True,
        max_tokens=own.get("max_seq_length") or 0,
        prepare="lower" if own.get("do_lower_case") else "",
    )


def _dense(folder: Path) -> Callable[[torch.Tensor], torch.Tensor]:
    import torch
    from safetensors.torch import load_file

    settings = _json(folder / "config.json", {})
    file = folder / "model.safetensors"
    if not file.is_file():
        raise ModelError(f"{folder} has no model.safetensors; pickled weights are never loaded: convert them first")
    weights = load_file(file)
    activation = getattr(torch.nn, str(settings.get("activation_function", "Identity")).rpartition(".")[2])()
    bias = weights.get("linear.bias")

    def apply(x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = activation(
            torch.nn.functional.linear(x, weights["linear.weight"].to(x), None if bias is None else bias.to(x))
        )
        return y

    return apply


class Backbone:
    """A transformer without a head, its tokenizer, and how many tokens it takes."""

    def __init__(self, model: Any, tokenizer: Any, max_tokens: int) -> None:
        self.model, self.tokenizer, self.max_tokens = model, tokenizer, max_tokens
        self.causal = self._is_causal()
        self.bos, self.eos = self._special_tokens()
        self.packed = PackedBert.of(model)

    @classmethod
    def load(cls, folder: Path, dtype: torch.dtype, device: torch.device) -> Backbone:
        from transformers import AutoModel, AutoTokenizer

        with quiet():
            model = AutoModel.from_pretrained(folder, dtype=dtype, use_safetensors=True).eval().to(device)
            tokenizer = AutoTokenizer.from_pretrained(folder)
        limits = (getattr(model.config, "max_position_embeddings", None), tokenizer.model_max_length)
        limit = min((int(m) for m in limits if m and 0 < m < 1 << 24), default=512)
        if model.config.model_type in ("roberta", "xlm-roberta", "camembert", "mpnet"):
            limit = min(limit, model.config.max_position_embeddings - 2)  # their positions start after the pad token's
        return cls(model, tokenizer, limit)

    @property
    def device(self) -> torch.device:
        device: torch.device = next(self.model.parameters()).device
        return device

    @property
    def dtype(self) -> str:
        return str(next(self.model.parameters()).dtype).removeprefix("torch.")

    def ids(self, texts: Sequence[str], *, special: bool = False, limit: int | None = None) -> list[list[int]]:
        """Token ids of each text; ``limit`` cuts the end, special tokens apart."""
        if not texts:
            return []
        cut = {"truncation": True, "max_length": limit} if limit else {}
        found: list[list[int]] = self.tokenizer([*texts], add_special_tokens=special, verbose=False, **cut)["input_ids"]
        return found

    def _special_tokens(self) -> tuple[list[int], list[int]]:
        bare, dressed = self.ids(["a"])[0], self.ids(["a"], special=True)[0]
        at = next(i for i in range(len(dressed) - len(bare) + 1) if dressed[i : i + len(bare)] == bare)
        return dressed[:at], dressed[at + len(bare) :]

    def _is_causal(self) -> bool:
        """Whether a token's state ignores what comes after it: looked at, not guessed from the name."""
        import torch

        with torch.inference_mode():
            x = torch.tensor([[5, 6, 7], [5, 6, 8]], device=self.device)
            a, b = self.model(input_ids=x, attention_mask=torch.ones_like(x)).last_hidden_state[:, :2].float()
        return bool(torch.allclose(a, b, atol=1e-6))


def pool_states(states: torch.Tensor, mask: torch.Tensor, how: Sequence[Pooling]) -> torch.Tensor:
    """states (n, t, d) fp32, mask (n, t) bool, at least one True per row -> (n, d * len(how)).

    Weighted: token i of the kept ones weighs i / (1 + 2 + …), counted from 1 (Muennighoff 2022, SGPT).
    """
    import torch

    keep, out = mask.to(states.dtype), []
    count = keep.sum(1, keepdim=True)
    rows = torch.arange(len(states), device=states.device)
    for way in how:
        if way == "cls":
            out.append(states[rows, mask.int().argmax(1)])
        elif way == "last":
            out.append(states[rows, mask.shape[1] - 1 - mask.flip(1).int().argmax(1)])
        elif way == "max":
            out.append(states.masked_fill(~mask[..., None], -torch.inf).amax(1))
        else:
            weight = keep.cumsum(1) * keep if way == "weighted" else keep
            below = count.sqrt() if way == "sqrt" else weight.sum(1, keepdim=True)
            out.append((states * weight[..., None]).sum(1) / below)
    return torch.cat(out, 1)


class TextEmbedder:
    """A backbone with a template. See ``Embedder``; ``document_fingerprint`` does not change with query examples."""

    def __init__(
        self,
        name: str,
        backbone: Backbone,
        template: EmbedTemplate,
        weights: str,
        *,
        threads: int | None = None,
        heads: Sequence[Callable[[torch.Tensor], torch.Tensor]] = (),
        share_front: bool = True,
    ) -> None:
        self.name, self.template, self._weights = name, template, weights
        self._backbone, self._threads, self._heads, self._share = backbone, threads, heads, share_front
        limit = min(filter(None, (template.max_tokens, backbone.max_tokens)))
        self._limit = limit
        packed = backbone.packed is not None
        facts: dict[str, Json] = {
            "packed": packed,
            "weights": weights,
            "dtype": backbone.dtype,
            "limit": limit,
            "heads": len(heads),
        }
        self.fingerprint = template_mark(template, "query", **facts)
        self.document_fingerprint = template_mark(template, "document", **facts)
        self._fronts: dict[tuple[int, ...], tuple[Any, torch.Tensor]] = {}
        self.dim = int(self._encode([""], template.document, None).shape[1])

    def showing(self, pairs: Sequence[Pair]) -> TextEmbedder:
        """The same model with examples in front of each query, a line for each text of a pair."""
        query = replace(self.template.query, example="{query}\n{response}\n\n", examples=tuple(pairs))
        template = replace(self.template, query=query, joint=False)
        return TextEmbedder(
            self.name, self._backbone, template, self._weights, threads=self._threads, heads=self._heads
        )

    def encode_queries(self, texts: Sequence[str], progress: Progress | None = None) -> FloatArray:
        """(n, dim) float32, unit rows."""
        return self._encode(texts, self.template.query, progress)

    def encode_documents(self, texts: Sequence[str], progress: Progress | None = None) -> FloatArray:
        """(n, dim) float32, unit rows."""
        return self._encode(texts, self.template.document, progress)

    def encode_raw(
        self, texts: Sequence[str], progress: Progress | None = None, *, side: str = "document"
    ) -> FloatArray:
        """(n, dim) float32: documents (or, ``side="query"``, queries), not normalised."""
        own = self.template.query if side == "query" else self.template.document
        return self._encode(texts, own, progress, unit=False)

    def _encode(self, texts: Sequence[str], side: Side, progress: Progress | None, unit: bool = True) -> FloatArray:
        unique = {t: n for n, t in enumerate(dict.fromkeys(texts))}  # equal texts are encoded once
        if not unique:
            return np.empty((0, self.dim), np.float32)
        plans = list(self.plan([*unique], side))
        out: dict[int, FloatArray] = {}
        with self._batches([ids for ids, _, _ in plans]) as batches:
            for some in batches:
                out.update(zip(some, self._forward([plans[n] for n in some], side, unit), strict=True))
                if progress:
                    progress(len(out), len(unique))
        return np.stack([out[unique[t]] for t in texts])

    @contextmanager
    def _batches(self, ids: Sequence[Sequence[int]]) -> Iterator[Iterator[list[int]]]:
        """Numbers of texts, short ones first, a token budget at a time; with torch set up for them.

        Texts of different lengths come together only where the model takes them without padding.
        """
        import torch

        budget = TOKENS.get(self._backbone.device.type, 1024)

        def batches() -> Iterator[list[int]]:
            some, tokens = list[int](), 0
            for n in sorted(range(len(ids)), key=lambda n: len(ids[n])):
                length = len(ids[n])
                apart = self._backbone.packed is None and some and len(ids[some[-1]]) != length
                if some and (apart or tokens + length > budget):
                    yield some
                    some, tokens = [], 0
                some.append(n)
                tokens += length
            if some:
                yield some

        with torch.inference_mode(), torch_threads(self._threads):
            yield batches()

    def encode_tokens(self, texts: Sequence[str]) -> list[tuple[list[str], FloatArray]]:
        """Per text its tokens, special ones apart, and their contextual vectors (tokens, d): float32, unit rows.

        The text stands alone, without prompt or examples. A text without tokens has one, the empty one.
        """
        import torch

        model = self._backbone
        every = [ids or self._nothing() for ids in model.ids([*texts], special=True, limit=self._limit)]
        out: dict[int, tuple[list[str], FloatArray]] = {}
        with self._batches(every) as batches:
            for some in batches:
                groups = _runs([every[n] for n in some])
                rows = [r for states in self._states([self._tensor(g) for g in groups], 0) for r in states]
                for n, states in zip(some, rows, strict=True):
                    inside = slice(len(model.bos), len(every[n]) - len(model.eos))
                    if not every[n][inside]:
                        inside = slice(0, 1)
                    words = model.tokenizer.convert_ids_to_tokens(every[n][inside]) if texts[n] else [""]
                    unit = torch.nn.functional.normalize(states[inside].float(), dim=-1)
                    out[n] = (words, unit.cpu().numpy())
        return [out[n] for n in range(len(texts))]

    def plan(self, texts: Sequence[str], side: Side) -> Iterator[tuple[list[int], int, int]]:
        """For each text its token ids, and where the text itself begins and ends in them."""
        texts = [prepare_text(t, self.template.prepare) for t in texts]
        model = self._backbone
        if self.template.joint:
            start = len(model.bos) + len(model.ids([side.open])[0]) if side.open else len(model.bos)
            for ids in model.ids([side.open + t for t in texts], special=True, limit=self._limit):
                ids = ids or self._nothing()
                yield ids, start, len(ids)
            return
        # a space at the end of the front belongs to the text's first token in most vocabularies
        space = side.open[len(side.open.rstrip(" ")) :]
        close = model.ids([side.close])[0] + model.eos
        fronts: dict[tuple[Pair, ...], list[int]] = {}
        for text, words in zip(texts, model.ids([space + t for t in texts]), strict=True):
            pairs = side.pairs(text)
            while (front := fronts.get(pairs)) is None or len(front) + len(close) + SHORTEST > self._limit:
                if front is None:
                    fronts[pairs] = model.bos + model.ids([side.front(pairs).removesuffix(space)])[0]
                elif pairs:
                    log.warning(
                        "%s: %d examples do not fit into %d tokens; one fewer is shown",
                        self.name,
                        len(pairs),
                        self._limit,
                    )
                    pairs = pairs[1:]
                else:
                    raise UsageError(f"{self.name}: the template alone takes {len(front)} of {self._limit} tokens")
            room = self._limit - len(front) - len(close)
            words = words[: min(room, self.template.max_text_tokens or room)]
            ids = front + words + close
            yield ids or self._nothing(), len(front), len(front) + len(words)

    def _nothing(self) -> list[int]:
        tokenizer = self._backbone.tokenizer
        return [next(i for i in (tokenizer.eos_token_id, tokenizer.pad_token_id, 0) if i is not None)]

    def _forward(self, plans: Sequence[tuple[list[int], int, int]], side: Side, unit: bool = True) -> FloatArray:
        """Vectors of texts that are sorted by length."""
        import torch

        model, pooled, at = self._backbone, [], 0
        xs = [self._tensor(ids) for ids in _runs([ids for ids, _, _ in plans])]
        shared = self._share and model.causal and not self.template.joint and side.provider is None
        front = plans[0][1] if shared and SHARED <= plans[0][1] < xs[0].shape[1] else 0
        for x, states in zip(xs, self._states(xs, front), strict=True):
            mask = torch.ones_like(x, dtype=torch.bool)
            if self.template.text_only:
                where = torch.arange(x.shape[1], device=x.device)
                bounds = torch.tensor([[s, e] for _, s, e in plans[at : at + len(x)]], device=x.device)
                mask = (where >= bounds[:, :1]) & (where < bounds[:, 1:])
                mask |= ~mask.any(1, keepdim=True)  # an empty text: everything is pooled
            pooled.append(pool_states(states.float(), mask, self.template.pooling))
            at += len(x)
        vectors = torch.cat(pooled)
        for head in self._heads:
            vectors = head(vectors)
        found: FloatArray = (torch.nn.functional.normalize(vectors, dim=-1) if unit else vectors).cpu().numpy()
        return found

    def _tensor(self, ids: Sequence[Sequence[int]]) -> torch.Tensor:
        import torch

        return torch.tensor(ids, device=self._backbone.device)

    def _states(self, xs: Sequence[torch.Tensor], front: int) -> list[torch.Tensor]:
        """Last hidden states (n, t, d) of token ids (n, t), one tensor per length.

        The first ``front`` tokens, equal in all rows, go through the model once. Rows are repeated where there are few
        tokens: products of one or two rows are computed in another way, and their last bits differ.
        """
        import torch

        model = self._backbone
        if model.packed is not None:
            return model.packed(xs, FEWEST)
        (x,) = xs
        tokens, rows = len(x) * (x.shape[1] - front), len(x)
        if tokens < FEWEST:
            x = x.repeat(-(-FEWEST // tokens), 1)
        if not front:
            return [model.model(input_ids=x, attention_mask=torch.ones_like(x)).last_hidden_state[:rows]]
        key = tuple(x[0, :front].tolist())
        if key not in self._fronts:
            head = model.model(input_ids=x[:1, :front], use_cache=True)
            self._fronts = {key: (head.past_key_values, head.last_hidden_state)}
        past, before = self._fronts[key]
        past = copy.deepcopy(past)  # a forward pass appends to it
        past.batch_repeat_interleave(len(x))
        after = model.model(
            input_ids=x[:, front:], attention_mask=torch.ones_like(x), past_key_values=past, use_cache=True
        ).last_hidden_state
        return [torch.cat([before.expand(len(x), -1, -1), after], 1)[:rows]]


def _runs(ids: Sequence[list[int]]) -> list[list[list[int]]]:
    """Neighbours of equal length together."""
    return [list(group) for _, group in itertools.groupby(ids, key=len)]


class WholeModel:
    """A sentence-transformers model of a kind that is not taken apart here: run as it is, normalised again in fp32."""

    def __init__(
        self, name: str, folder: Path, weights: str, dtype: torch.dtype, device: torch.device, threads: int | None
    ) -> None:
        from sentence_transformers import SentenceTransformer

        self.name, self._threads = name, threads
        self._model = SentenceTransformer(
            str(folder), device=str(device), model_kwargs={"dtype": dtype, "use_safetensors": True}
        )
        self.fingerprint = digest([weights, str(dtype), "whole"])
        self.dim = int(self._model.encode([""], show_progress_bar=False).shape[1])

    def encode_queries(self, texts: Sequence[str], progress: Progress | None = None) -> FloatArray:
        """(n, dim) float32, unit rows."""
        return self._unit(texts, self._model.encode_query, progress)

    def encode_documents(self, texts: Sequence[str], progress: Progress | None = None) -> FloatArray:
        """(n, dim) float32, unit rows."""
        return self._unit(texts, self._model.encode_document, progress)

    def encode_raw(
        self, texts: Sequence[str], progress: Progress | None = None, *, side: str = "document"
    ) -> FloatArray:
        """(n, dim) float32: documents (or, ``side="query"``, queries) as the model gives them."""
        encode = self._model.encode_query if side == "query" else self._model.encode_document
        return self._unit(texts, encode, progress, unit=False)

    def _unit(
        self, texts: Sequence[str], encode: Callable[..., Any], progress: Progress | None, unit: bool = True
    ) -> FloatArray:
        unique = list(dict.fromkeys(texts))
        if not unique:
            return np.empty((0, self.dim), np.float32)
        with torch_threads(self._threads):
            found = np.asarray(encode(unique, show_progress_bar=False), dtype=np.float32)
        if unit:
            found /= np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
        if progress:
            progress(len(unique), len(unique))
        at = {t: n for n, t in enumerate(unique)}
        return found[[at[t] for t in texts]]


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    if count is None or count == before:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def quiet() -> Iterator[None]:
    """transformers without its progress bars and its reports of weights that are not used."""
    from transformers.utils import logging as talk

    shown, level = talk.is_progress_bar_enabled(), talk.get_verbosity()
    talk.disable_progress_bar()
    talk.set_verbosity_error()
    try:
        yield
    finally:
        talk.set_verbosity(level)
        if shown:
            talk.enable_progress_bar()
