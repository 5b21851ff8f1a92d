"""Writing with the packed forward pass: prompts are read through the plan of the scorer, so what they share is read
once; then all rows grow together, one token a step, each behind its own keys and values."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iclkit.errors import ModelError
from iclkit.lm._llama import KV, ROUND, PackedLlama
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

    def step(self, logits: Any) -> int:
        """Choose the next token from float32 ``logits`` (vocabulary,); returns it, or 0 when already finished."""
        if self.finish:
            return 0
        if not np.isfinite(logits.max()):  # NaN and +inf come through; argmax would take them for the best token
            raise ModelError("the language model gave NaN or infinite logits: its weights or its arithmetic are broken")
        if self.request.temperature > 0:
            # Gumbel-max with noise keyed by seed, prompt and step: a sample does not depend on its neighbours
            seed = np.random.SeedSequence(entropy=self._key.entropy, spawn_key=(len(self._ids),))
            noise = np.random.Generator(np.random.Philox(seed)).gumbel(size=logits.shape)
            token = int(np.argmax(logits / self.request.temperature + noise))
        else:
            token = int(np.argmax(logits))
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


class KVCache:
    """Rows that grow, and their keys and values: the prompts stand flush right in the first columns, and each step
    takes one column more. Per layer (rows * kv heads, room, head size), twice."""

    def __init__(self, llama: PackedLlama, lengths: Sequence[int], steps: int) -> None:
        self.llama, self._at = llama, max(lengths)
        self._positions = torch.tensor(lengths, device=llama.device)
        self._first = (self._at - self._positions)[:, None]
        room = -(-(self._at + steps) // ROUND) * ROUND
        self._columns = torch.arange(room, device=llama.device)
        shape = (len(lengths) * llama.kv_heads, room, llama.size)
        empty = torch.zeros(shape, dtype=llama.dtype, device=llama.device)
        self._held = [(empty.clone(), empty.clone()) for _ in llama.layers]

    def fill(self, row: int, held: KV, index: Tensor) -> None:
        """Before the first step: a prompt's keys and values, which are ``index`` in ``held``, first to last."""
        heads = slice(row * self.llama.kv_heads, (row + 1) * self.llama.kv_heads)
        for (keys, values), (k, v) in zip(self._held, held, strict=True):
            keys[heads, self._at - len(index) : self._at] = k[:, index]
            values[heads, self._at - len(index) : self._at] = v[:, index]

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all other rows."""
        index = torch.tensor(rows, device=self.llama.device)
        self._positions, self._first = self._positions[index], self._first[index]
        heads = torch.arange(self.llama.kv_heads, device=self.llama.device)
        index = (index[:, None] * self.llama.kv_heads + heads).flatten()
        self._held = [(k[index], v[index]) for k, v in self._held]

    @torch.inference_mode()
    def step(self, tokens: Sequence[int]) -> Tensor:
        """Append a token to each row; float32 logits (rows, vocabulary) of what comes next."""
        b, g, d = len(tokens), self.llama.kv_heads, self.llama.size
        at, n = self._at, -(-(self._at + 1) // ROUND) * ROUND  # oneDNN keeps a kernel per shape: few of them
        columns = self._columns[:n]
        mask = torch.zeros(b, n, dtype=self.llama.dtype, device=self.llama.device)
        mask.masked_fill_((columns < self._first) | (columns > at), float("-inf"))
        mask = mask.repeat_interleave(g, 0)[:, None]

        def attend(number: int, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            held_keys, held_values = self._held[number]
            held_keys[:, at] = keys[:, :b].transpose(0, 1).reshape(-1, d)
            held_values[:, at] = values[:, :b].transpose(0, 1).reshape(-1, d)
            scores = torch.baddbmm(mask, q[:b].reshape(b * g, -1, d), held_keys[:, :n].transpose(1, 2))
            out = torch.zeros(q.shape[0], q.shape[1] * d, dtype=q.dtype, device=q.device)
            out[:b] = torch.bmm(torch.softmax(scores, -1), held_values[:, :n]).view(b, -1)
            return out

        hidden = self.llama.grow(torch.tensor(tokens, device=self.llama.device), self._positions, attend)
        self._at += 1
        self._positions = self._positions + 1
        return self.llama.logits(hidden)
