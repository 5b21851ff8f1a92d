"""Writing with the packed forward pass: prompts are read through the plan of the scorer, so what they share is read
once; then all rows grow together, one token a step, each behind its own keys and values."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from iclkit.errors import ModelError
from iclkit.lm._packed import KV, ROUND, PackedForward
from iclkit.lm._tokens import PromptTokenizer, TokenIds
from iclkit.records import GenerateRequest, Generation


class Decoder:
    """One growing continuation: picks each next token and knows when to stop."""

    def __init__(
        self, codec: PromptTokenizer, prompt: TokenIds, request: GenerateRequest, eos: Collection[int]
    ) -> None:
        self.request, self.finish = request, ""
        self._codec, self._eos, self._ids, self._text = codec, eos, list[int](), ""
        self._key = np.random.SeedSequence([request.seed & (2**63 - 1), len(prompt), *prompt])
        if request.max_tokens <= 0:
            self.finish = "length"

    @property
    def samples(self) -> bool:
        """Whether it draws its tokens and is not finished."""
        return self.request.temperature > 0 and not self.finish

    @property
    def tokens(self) -> int:
        """Tokens written so far."""
        return len(self._ids)

    def step(self, likeliest: int, logits: Any) -> int:
        """Choose the next token: the ``likeliest``, or one drawn by its float32 ``logits`` (vocabulary,), which are
        needed only where ``samples``. Returns it, or 0 when already finished."""
        if self.finish:
            return 0
        token = likeliest
        if self.samples:
            # Gumbel-max with noise keyed by seed, prompt and step: a sample does not depend on its neighbours
            seed = np.random.SeedSequence(entropy=self._key.entropy, spawn_key=(len(self._ids),))
            noise = np.random.Generator(np.random.Philox(seed)).gumbel(size=logits.shape)
            token = int(np.argmax(logits / self.request.temperature + noise))
        if token in self._eos:
            self.finish = "stop"
            return token
        self._ids.append(token)
        if self.request.stop:
            self._text = self._codec.decode(self._ids)
            if any(stop in self._text for stop in self.request.stop):
                self.finish = "stop"
        if not self.finish and len(self._ids) >= self.request.max_tokens:
            self.finish = "length"
        return token

    def result(self) -> Generation:
        """The text up to the first stop string."""
        text = self._codec.decode(self._ids)
        ends = [at for stop in self.request.stop if (at := text.find(stop)) >= 0]
        return Generation(text[: min(ends)] if ends else text, len(self._ids), self.finish)


def likeliest_tokens(logits: Tensor) -> Tensor:
    """(2, rows): the likeliest token of each row, and 1 where its logits are numbers. On their device, unread."""
    highest, tokens = logits.max(-1)
    return torch.stack([tokens, highest.isfinite().long()])


def take_all(writers: Sequence[Decoder], steps: Tensor) -> None:
    """Steps of each, none of which samples, by ``steps`` (n, 2, rows) of ``likeliest_tokens``; what comes after its end
    is nobody's. ModelError for logits that are no numbers."""
    for tokens, finite in steps.tolist():  # the one transfer
        for writer, token, ok in zip(writers, tokens, finite, strict=True):
            if not ok and not writer.finish:
                raise ModelError(_NO_NUMBERS)
            writer.step(token, None)


_NO_NUMBERS = "the language model gave NaN or infinite logits: its weights or its arithmetic are broken"


def step_all(writers: Sequence[Decoder], logits: Tensor) -> list[int]:
    """A step of each: its next token by its row of the float32 ``logits`` (rows, vocabulary), which stay where they
    are but for the rows that are sampled. ModelError for logits that are no numbers."""
    highest, likeliest = logits.max(-1)
    finite = highest.isfinite().tolist()
    if any(not ok and not w.finish for ok, w in zip(finite, writers, strict=True)):
        # NaN and +inf come through the maximum; argmax would take them for the best token
        raise ModelError(_NO_NUMBERS)
    drawn = [n for n, w in enumerate(writers) if w.samples]
    rows = dict(zip(drawn, logits[drawn].cpu().numpy() if drawn else (), strict=True))
    return [w.step(t, rows.get(n)) for n, (w, t) in enumerate(zip(writers, likeliest.tolist(), strict=True))]


class KVCache:
    """Rows that grow, and their keys and values: the prompts stand flush right in the first columns, and each step
    takes one column more. Per layer (rows * kv heads, room, head size), twice."""

    def __init__(self, packed: PackedForward, lengths: Sequence[int], steps: int, *, long: bool = False) -> None:
        self.packed, self._at, self._long = packed, max(lengths), long
        self._positions = torch.tensor(lengths, device=packed.device)
        self._first = (self._at - self._positions)[:, None]
        room = -(-(self._at + steps) // ROUND) * ROUND
        self._columns = torch.arange(room, device=packed.device)
        shape = (len(lengths) * packed.kv_heads, room, packed.size)
        empty = torch.zeros(shape, dtype=packed.dtype, device=packed.device)
        self._held = [(empty.clone(), empty.clone()) for _ in packed.layers]

    def fill(self, rows: Sequence[int], held: KV, source: Sequence[NDArray[np.int64]]) -> None:
        """Before the first step: the prompts of ``rows``, whose keys and values are ``source`` in ``held``, each first
        to last."""
        sizes = np.array([len(s) for s in source])
        row = np.repeat(np.array(rows), sizes)
        column = np.concatenate([np.arange(self._at - n, self._at) for n in sizes])
        index = torch.from_numpy(np.stack([row, column, np.concatenate(source)])).to(self.packed.device)
        for (keys, values), (k, v) in zip(self._held, held, strict=True):
            for here, there in ((keys, k), (values, v)):
                by_row = here.view(-1, self.packed.kv_heads, *here.shape[1:])
                by_row[index[0], :, index[1]] = there[:, index[2]].transpose(0, 1)

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all other rows."""
        index = torch.tensor(rows, device=self.packed.device)
        self._positions, self._first = self._positions[index], self._first[index]
        heads = torch.arange(self.packed.kv_heads, device=self.packed.device)
        index = (index[:, None] * self.packed.kv_heads + heads).flatten()
        self._held = [(k[index], v[index]) for k, v in self._held]

    @property
    def room(self) -> int:
        """Steps that can still be made."""
        return len(self._columns) - self._at

    @torch.inference_mode()
    def step(self, tokens: Tensor) -> Tensor:
        """Append a token (rows,) to each row; float32 logits (rows, vocabulary) of what comes next."""
        b, g, d = len(tokens), self.packed.kv_heads, self.packed.size
        at, n = self._at, -(-(self._at + 1) // ROUND) * ROUND  # oneDNN keeps a kernel per shape: few of them
        columns = self._columns[:n]
        softcap = self.packed.architecture.softcap
        unseen = (columns < self._first) | (columns > at)
        masks: dict[int | None, Tensor] = {}
        for window in {layer.says.window for layer in self.packed.layers}:
            mask = torch.zeros(b, n, dtype=self.packed.dtype, device=self.packed.device)
            mask.masked_fill_(unseen if window is None else unseen | (columns <= at - window), float("-inf"))
            masks[window] = mask.repeat_interleave(g, 0)[:, None]

        def attend(number: int, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            held_keys, held_values = self._held[number]
            held_keys[:, at] = keys[:, :b].transpose(0, 1).reshape(-1, d)
            held_values[:, at] = values[:, :b].transpose(0, 1).reshape(-1, d)
            mask = masks[self.packed.layers[number].says.window]
            queries, rows = q[:b].reshape(b * g, -1, d), held_keys[:, :n].transpose(1, 2)
            if softcap is None:
                scores = torch.baddbmm(mask, queries, rows)
            else:
                scores = torch.bmm(queries, rows).float().div_(softcap).tanh_().mul_(softcap).add_(mask)
            out = torch.zeros(q.shape[0], q.shape[1] * d, dtype=q.dtype, device=q.device)
            out[:b] = torch.bmm(torch.softmax(scores, -1).to(q.dtype), held_values[:, :n]).view(b, -1)
            return out

        hidden = self.packed.grow(tokens, self._positions, attend, long=self._long)
        self._at += 1
        self._positions = self._positions + 1
        return self.packed.logits(hidden)
