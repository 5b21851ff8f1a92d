"""Any causal LM of ``transformers`` through its own module: what it reads at most, whether it is causal, and writing.

Architectures differ in what they keep between steps: keys and values, recurrent states under other names, or something
inside the module. So keys and values are used only where a probe shows that they give what reading the whole text
again gives; everything else is read again for each token, which is slow and right.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from iclkit.errors import DataError
from iclkit.lm._tokens import TokenIds

UNLIMITED = 1 << 30
"""The context size of a model that names none."""
_LIMITS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "max_sequence_length",
    "max_seq_length",
    "seq_length",
    "context_length",
    "n_ctx",
)
_NO_LIMIT = 1_000_000_000
"""What tokenizers give as their longest text when they know none is beyond this."""
_PROBE = 24


def device_of(module: Any) -> torch.device:
    """Where the module takes its inputs: what lies on disk, or waits in main memory, is on no device now."""
    return next((p.device for p in module.parameters() if p.device.type != "meta"), torch.device("cpu"))


class Float32Head(torch.nn.Module):
    """An output layer whose products and sums are float32 whatever the model's dtype."""

    def __init__(self, head: Any) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(head.weight.detach().float(), requires_grad=False)
        bias = getattr(head, "bias", None)
        self.bias = None if bias is None else torch.nn.Parameter(bias.detach().float(), requires_grad=False)

    def forward(self, hidden: Tensor) -> Tensor:
        return torch.nn.functional.linear(hidden.to(self.weight.device).float(), self.weight, self.bias)


def context_limit(config: Any, tokenizer: Any) -> tuple[int, str]:
    """(tokens that the model reads, a note where nothing says how many). DataError for a limit that is no count."""
    for name in _LIMITS:
        size = getattr(config, name, None)
        if size is None:
            continue
        if not isinstance(size, int) or size < 2:
            raise DataError(f"config.json: {name} is {size!r}, expected a number of tokens")
        return size, ""
    size = getattr(tokenizer, "model_max_length", None)
    if isinstance(size, int) and 2 <= size < _NO_LIMIT:
        return size, ""
    return UNLIMITED, "nothing says how many tokens this model reads: prompts of any length are sent to it"


def keeps_logits(module: Any) -> bool:
    """Whether the module computes the logits of the last positions only when asked to."""
    return "logits_to_keep" in inspect.signature(module.forward).parameters


def probe_ids(module: Any, size: int) -> TokenIds:
    """Some token ids, the same for every model of that vocabulary."""
    vocabulary = module.get_input_embeddings().weight.shape[0]
    return tuple((t * t * 31 + 7 * t + 11) % vocabulary for t in range(size))


@torch.inference_mode()
def refuse_unless_causal(module: Any, context_size: int) -> None:
    """DataError for a model that reads ahead, or whose logits are not finite.

    One batch of rows that begin alike, end in different tokens or in padding, and must agree where they are alike.
    """
    size = min(_PROBE, context_size)
    same = size // 2
    ids = probe_ids(module, 2 * size)
    device = device_of(module)
    rows = torch.tensor([ids[:size], (*ids[:same], *ids[size : 2 * size - same]), ids[:size]], device=device)
    rows[2, same:] = 0
    mask = torch.ones_like(rows)
    mask[2, same:] = 0
    logits = module(input_ids=rows, attention_mask=mask, use_cache=False).logits[:, :same].float()
    if not bool(torch.isfinite(logits).all()):
        raise DataError("its logits are NaN or infinite: the weights or the settings in config.json are broken")
    table = torch.log_softmax(logits, -1)
    gap = float((table - table[:1]).abs().max())
    if gap > (1e-3 if next(module.parameters()).dtype == torch.float32 else 0.1):
        raise DataError("it is no causal LM: what stands after a token changes its score")


class CachedRows:
    """Rows padded on the left that grow behind the module's own keys and values."""

    def __init__(self, module: Any, prompts: Sequence[TokenIds]) -> None:
        self._module, self._cache, device = module, None, device_of(module)
        width = max(map(len, prompts))
        ids = torch.zeros(len(prompts), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for r, row in enumerate(prompts):
            ids[r, width - len(row) :] = torch.tensor(row)
            mask[r, width - len(row) :] = 1
        self._ids, self._mask = ids.to(device), mask.to(device)
        self._position = (self._mask.cumsum(-1) - 1).clamp(min=0)
        self._keep = {"logits_to_keep": 1} if keeps_logits(module) else {}
        self.computed = 0

    def logits(self) -> Tensor:
        """float32 logits (rows, vocabulary) of what comes next."""
        self.computed += self._ids.numel()
        out = self._module(
            input_ids=self._ids,
            attention_mask=self._mask,
            position_ids=self._position,
            past_key_values=self._cache,
            use_cache=True,
            **self._keep,
        )
        self._cache = out.past_key_values
        last: Tensor = out.logits[:, -1].float()
        return last

    def append(self, tokens: Sequence[int]) -> None:
        """A token behind each row."""
        self._ids = torch.tensor(tokens, device=self._ids.device)[:, None]
        self._mask = torch.cat([self._mask, torch.ones_like(self._mask[:, :1])], 1)
        self._position = self._position[:, -1:] + 1


class WholeRows:
    """Rows padded on the right that are read whole again for each token."""

    def __init__(self, module: Any, prompts: Sequence[TokenIds]) -> None:
        self._module, self._device = module, device_of(module)
        self._rows = [[*row] for row in prompts]
        self._keeps = keeps_logits(module)
        self.computed = 0

    def logits(self) -> Tensor:
        """float32 logits (rows, vocabulary) of what comes next."""
        sizes = torch.tensor([len(row) for row in self._rows])
        width, first = int(sizes.max()), int(sizes.min()) - 1
        ids = torch.zeros(len(self._rows), width, dtype=torch.long)
        for r, row in enumerate(self._rows):
            ids[r, : len(row)] = torch.tensor(row)
        mask = (torch.arange(width) < sizes[:, None]).long()
        self.computed += ids.numel()
        keep = {"logits_to_keep": width - first} if self._keeps else {}
        out = self._module(
            input_ids=ids.to(self._device), attention_mask=mask.to(self._device), use_cache=False, **keep
        ).logits
        last: Tensor = out[torch.arange(len(sizes)), sizes - 1 - (first if self._keeps else 0)].float()
        return last

    def append(self, tokens: Sequence[int]) -> None:
        """A token behind each row."""
        for row, token in zip(self._rows, tokens, strict=True):
            row.append(token)


@torch.inference_mode()
def cache_works(module: Any) -> bool:
    """Whether ``CachedRows`` gives what ``WholeRows`` does, for rows of different lengths over a few steps."""
    if "past_key_values" not in inspect.signature(module.forward).parameters:
        return False
    ids = probe_ids(module, _PROBE)
    prompts = (ids[:5], ids[3:14])
    whole, cached = WholeRows(module, prompts), CachedRows(module, prompts)
    exact = next(module.parameters()).dtype == torch.float32
    for step in range(3):
        want = torch.log_softmax(whole.logits(), -1)
        try:
            gap = (torch.log_softmax(cached.logits(), -1) - want).abs()
        except Exception:  # whatever a module makes of arguments that it does not know: the other way is there
            return False
        if not (float(gap.max()) <= (1e-3 if exact else 1.0) and float(gap.mean()) <= (1e-3 if exact else 0.2)):
            return False
        tokens = ids[20 + step], ids[16 + step]
        whole.append(tokens)
        cached.append(tokens)
    return True
