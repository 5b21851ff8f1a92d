"""Texts to unit vectors with a transformer: the same text gives the same bits, whatever it is batched with.

Nothing is ever padded: texts of equal length in tokens are batched together, and a BERT takes texts of all lengths in
one row (``_bert.py``). No work is wasted, and on a CPU texts do not depend on each other, not even in the last bit.
"""

from __future__ import annotations

import copy
import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

from iclkit import models
from iclkit.embed._bert import PackedBert
from iclkit.embed._cuts import CutTexts
from iclkit.embed._formats import (
    EmbeddingFormat,
    Pair,
    Pooling,
    SideFormat,
    format_fingerprint,
    prepare_text,
)
from iclkit.embed._protocol import BaseEmbedder, FloatArray, check_rows
from iclkit.embed._torch import (
    BATCH_TOKENS,
    MIN_ROWS,
    by_halves,
    check_ids,
    last_states,
    load_tokenizer,
    load_weights,
    steady,
    token_limit,
)
from iclkit.errors import UsageError
from iclkit.locks import Lock
from iclkit.models import read_object
from iclkit.records import Json, Progress

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)
Dtype = Literal["auto", "fp32", "bf16"]
T = TypeVar("T")
SHORTEST = 16  # tokens a text must keep; examples give way before that
SHARED = 8  # tokens of a common front from which on its keys and values are computed once


class EncoderBackbone:
    """A transformer without a head, its tokenizer, and how many tokens it takes.

    ``vocabulary``: the files that the tokenizer was read from.
    """

    def __init__(
        self, model: Any, tokenizer: Any, max_tokens: int, vocabulary: Sequence[Path] = (), name: str = ""
    ) -> None:
        self.model, self.tokenizer, self.max_tokens = model, tokenizer, max_tokens
        self.vocabulary, self.name = tuple(vocabulary), name
        self._rows = int(model.get_input_embeddings().weight.shape[0])
        self._tokenizing = Lock()
        self.causal = self._is_causal()
        self.bos, self.eos = self._special_tokens()
        self.packed = PackedBert.of(model)
        steady(model)

    @classmethod
    def load(cls, folder: Path, dtype: torch.dtype, device: torch.device) -> EncoderBackbone:
        """The model and the tokenizer of a transformers folder that ``models.check_folder`` has passed.

        Of a model with encoder and decoder (T5) it is the encoder.
        """
        import transformers
        from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES

        kind = read_object(folder / "config.json").get("model_type")
        auto = transformers.AutoModel
        if kind in MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES:
            auto = transformers.AutoModelForTextEncoding
        model = load_weights(auto, folder, last_states, dtype=dtype, device=device)
        tokenizer, vocabulary = load_tokenizer(folder)
        return cls(model, tokenizer, token_limit(model, tokenizer), vocabulary, str(folder))

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
        with self._tokenizing:  # where it is to cut is a state of the tokenizer, which two threads would take in turn
            done = self.tokenizer([*texts], add_special_tokens=special, verbose=False, **cut)
        found: list[list[int]] = done["input_ids"]
        check_ids(found, self._rows, self.name)
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


def pool_hidden_states(states: torch.Tensor, mask: torch.Tensor, how: Sequence[Pooling]) -> torch.Tensor:
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


class TextEmbedder(BaseEmbedder):
    """A backbone with a template. ``document_fingerprint`` does not change with query examples."""

    gives_token_vectors = True

    def __init__(
        self,
        name: str,
        backbone: EncoderBackbone,
        template: EmbeddingFormat,
        weights: str,
        *,
        threads: int | None = None,
        heads: Sequence[Callable[[torch.Tensor], torch.Tensor]] = (),
        tail: Sequence[Callable[[torch.Tensor], torch.Tensor]] = (),
        notes: Mapping[str, Json] | None = None,
        share_front: bool = True,
    ) -> None:
        self.name, self.template, self._weights = name, template, weights
        self._backbone, self._threads, self._heads, self._share = backbone, threads, heads, share_front
        self._tail, self._notes = tail, dict(notes or {})
        self._budget = BATCH_TOKENS.get(backbone.device.type, 1024)
        limit = min(filter(None, (template.max_tokens, backbone.max_tokens)))
        self._limit, self._cut = limit, CutTexts(limit)
        packed = backbone.packed is not None
        facts: dict[str, Json] = {
            "packed": packed,
            "weights": weights,
            "dtype": backbone.dtype,
            "limit": limit,
            "heads": len(heads),
            **self._notes,
        }
        self.fingerprint = format_fingerprint(template, "query", **facts)
        self._document_fingerprint = format_fingerprint(template, "document", **facts)
        self._fronts: dict[tuple[int, ...], tuple[Any, torch.Tensor]] = {}
        self.dim = int(self._encode([""], template.document, None).shape[1])

    @property
    def document_fingerprint(self) -> str:
        """Of the document side alone."""
        return self._document_fingerprint

    @property
    def weights(self) -> str:
        """Hash of the files that it was loaded from."""
        return self._weights

    @property
    def limit(self) -> int:
        """Tokens of a text, special ones counted, that it reads."""
        return self._limit

    @property
    def cut_texts(self) -> CutTexts:
        """The texts so far of which only the first tokens were read."""
        return self._cut

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer, as the library ``tokenizers`` has it."""
        return self._backbone.tokenizer.backend_tokenizer

    def with_examples(self, pairs: Sequence[Pair]) -> TextEmbedder:
        """The same model with examples in front of each query, a line for each text of a pair."""
        query = replace(self.template.query, example="{query}\n{response}\n\n", examples=tuple(pairs))
        template = replace(self.template, query=query, joint=False)
        return TextEmbedder(
            self.name, self._backbone, template, self._weights, threads=self._threads, heads=self._heads,
            tail=self._tail, notes=self._notes,
        )  # fmt: skip

    def encode_queries(self, texts: Sequence[str], progress: Progress | None = None) -> FloatArray:
        """(n, dim) float32, unit rows."""
        return self._encode(texts, self.template.query, progress)

    def encode_documents(self, texts: Sequence[str], progress: Progress | None = None) -> FloatArray:
        """(n, dim) float32, unit rows."""
        return self._encode(texts, self.template.document, progress)

    def encode_raw(
        self, texts: Sequence[str], progress: Progress | None = None, *, side: Literal["query", "document"] = "document"
    ) -> FloatArray:
        """(n, dim) float32: documents (or, ``side="query"``, queries), not normalized."""
        own = self.template.query if side == "query" else self.template.document
        return self._encode(texts, own, progress, unit=False)

    def _encode(
        self, texts: Sequence[str], side: SideFormat, progress: Progress | None, unit: bool = True
    ) -> FloatArray:
        unique = {t: n for n, t in enumerate(dict.fromkeys(texts))}  # equal texts are encoded once
        if not unique:
            return np.empty((0, self.dim), np.float32)
        every = [*unique]
        plans = list(self.plan(every, side))
        out: dict[int, FloatArray] = {}
        with self._batches([ids for ids, _, _ in plans]) as batches:
            for some in batches:
                for part, vectors in self._fitting(
                    some, lambda part: self._forward([plans[n] for n in part], side, unit)
                ):
                    check_rows(self.name, vectors, [every[n] for n in part], unit=unit)
                    out.update(zip(part, vectors, strict=True))
                if progress:
                    progress(len(out), len(unique))
        return np.stack([out[unique[t]] for t in texts])

    def _fitting(self, some: Sequence[int], run: Callable[[list[int]], T]) -> Iterator[tuple[list[int], T]]:
        """``by_halves``; where the memory did not do for a batch, later ones are smaller from the start."""
        for part, found in by_halves(some, run, self.name):
            if len(part) < len(some):
                self._budget = max(1, min(self._budget, self._budget * len(part) // len(some)))
            yield part, found

    @contextmanager
    def _batches(self, ids: Sequence[Sequence[int]]) -> Iterator[Iterator[list[int]]]:
        """Numbers of texts, short ones first, a token budget at a time; with torch set up for them.

        Texts of different lengths come together only where the model takes them without padding.
        """
        import torch

        def batches() -> Iterator[list[int]]:
            some, tokens = list[int](), 0
            for n in sorted(range(len(ids)), key=lambda n: len(ids[n])):
                length = len(ids[n])
                apart = self._backbone.packed is None and some and len(ids[some[-1]]) != length
                if some and (apart or tokens + length > self._budget):
                    yield some
                    some, tokens = [], 0
                some.append(n)
                tokens += length
            if some:
                yield some

        with torch.inference_mode(), models.torch_threads(self._threads):
            yield batches()

    def encode_tokens(self, texts: Sequence[str]) -> list[tuple[list[str], FloatArray]]:
        """Per text its tokens, special ones apart, and their contextual vectors (tokens, d): float32, unit rows.

        The text stands alone, without prompt or examples. A text without tokens has one, the empty one.
        """
        import torch

        model = self._backbone
        every = [ids or self._empty_ids() for ids in model.ids([*texts], special=True, limit=self._limit)]
        self._cut.look(
            [t for t, ids in zip(texts, every, strict=True) if len(ids) >= self._limit],
            lambda some: map(len, model.ids(some, special=True)),
        )
        out: dict[int, tuple[list[str], FloatArray]] = {}
        with self._batches(every) as batches:
            parts = (part for some in batches for part in self._fitting(some, lambda ns: self._rows_of(every, ns)))
            for n, states in (pair for part, rows in parts for pair in zip(part, rows, strict=True)):
                inside = slice(len(model.bos), len(every[n]) - len(model.eos))
                if not every[n][inside]:
                    inside = slice(0, 1)
                words = model.tokenizer.convert_ids_to_tokens(every[n][inside]) if texts[n] else [""]
                unit = torch.nn.functional.normalize(states[inside].float(), dim=-1).cpu().numpy()
                check_rows(self.name, unit, [texts[n]] * len(unit))
                out[n] = (words, unit)
        return [out[n] for n in range(len(texts))]

    def _rows_of(self, ids: Sequence[list[int]], some: Sequence[int]) -> list[torch.Tensor]:
        """The last hidden states (t, d) of some texts, which are sorted by length."""
        groups = _runs([ids[n] for n in some])
        return [row for states in self._states([self._tensor(g) for g in groups], 0) for row in states]

    def plan(self, texts: Sequence[str], side: SideFormat) -> Iterator[tuple[list[int], int, int]]:
        """For each text its token ids, and where the text itself begins and ends in them."""
        texts = [prepare_text(t, self.template.prepare) for t in texts]
        model = self._backbone
        if self.template.joint:
            start = len(model.bos) + len(model.ids([side.open])[0]) if side.open else len(model.bos)
            written = [side.open + t for t in texts]
            every = model.ids(written, special=True, limit=self._limit)
            full = [text for text, ids in zip(written, every, strict=True) if len(ids) >= self._limit]
            self._cut.look(full, lambda some: map(len, model.ids(some, special=True)))
            for ids in every:
                ids = ids or self._empty_ids()
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
            room = min(room, self.template.max_text_tokens or room)
            if len(words) > room:
                self._cut.add(text, self._limit - room + len(words))
            words = words[:room]
            ids = front + words + close
            yield ids or self._empty_ids(), len(front), len(front) + len(words)

    def _empty_ids(self) -> list[int]:
        tokenizer = self._backbone.tokenizer
        return [next(i for i in (tokenizer.eos_token_id, tokenizer.pad_token_id, 0) if i is not None)]

    def _forward(self, plans: Sequence[tuple[list[int], int, int]], side: SideFormat, unit: bool = True) -> FloatArray:
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
            pooled.append(pool_hidden_states(states.float(), mask, self.template.pooling))
            at += len(x)
        vectors = torch.cat(pooled)
        for head in (*self._heads, *self._tail):
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
            return model.packed(xs)
        (x,) = xs
        tokens, rows = len(x) * (x.shape[1] - front), len(x)
        if tokens < MIN_ROWS:
            x = x.repeat(-(-MIN_ROWS // tokens), 1)
        if not front:
            return [model.model(input_ids=x, attention_mask=torch.ones_like(x)).last_hidden_state[:rows]]
        key = tuple(x[0, :front].tolist())
        known = self._fronts.get(key)
        if known is None:
            head = model.model(input_ids=x[:1, :front], use_cache=True)
            known = head.past_key_values, head.last_hidden_state
            self._fronts = {key: known}
        past, before = copy.deepcopy(known[0]), known[1]  # a forward pass appends to the past
        past.batch_repeat_interleave(len(x))
        after = model.model(
            input_ids=x[:, front:], attention_mask=torch.ones_like(x), past_key_values=past, use_cache=True
        ).last_hidden_state
        return [torch.cat([before.expand(len(x), -1, -1), after], 1)[:rows]]


def _runs(ids: Sequence[list[int]]) -> list[list[list[int]]]:
    """Neighbours of equal length together."""
    return [list(group) for _, group in itertools.groupby(ids, key=len)]
