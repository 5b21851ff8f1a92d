"""What embedders and rerankers share of torch and transformers: weights, tokenizers, steady products, memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from iclkit import models
from iclkit.errors import ModelError

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)
T = TypeVar("T")
MIN_ROWS = 8  # tokens per forward pass below which rows are repeated
BLOCK = 32  # rows of a product of matrices on a CPU
STEP, MOST_ROWS = 256, 1024  # rows are taken in multiples of STEP up to MOST_ROWS, and what is left by itself
SIZES = (*range(2 * BLOCK, STEP, BLOCK), *range(STEP, MOST_ROWS + 1, STEP))
BATCH_TOKENS = {"cpu": 1024, "cuda": 32768}  # per forward pass; beyond about 1k a CPU falls out of its cache


def row_products(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, *, room: torch.Tensor | None = None
) -> torch.Tensor:
    """``x @ weight.T + bias`` for x (…, in), weight (out, in); on a CPU a row's bits do not depend on the other rows.

    The libraries below choose how to add up by the number of rows, and each way has other last bits. So what counts is
    always the product of 32 rows. More rows go together, in few sizes, where that has been seen to give the same bits;
    rows that make up no such size are filled up to one, unless that would be more than twice as many.
    Not for tensors that gradients are wanted of.

    ``room``: (rows, out) to put the result in, as new memory takes time of its own; for a multiple of 32 rows.
    """
    import torch
    from torch.nn.functional import linear, pad

    if x.device.type != "cpu":
        return linear(x, weight, bias) if room is None else room.copy_(linear(x, weight, bias))
    rows = x.reshape(-1, x.shape[-1])
    count = len(rows)
    if count % BLOCK:
        rows = pad(rows, (0, 0, 0, -count % BLOCK))
    found = torch.empty((len(rows), len(weight)), dtype=rows.dtype) if room is None else room
    together = _sizes_together(weight, bias) if len(rows) > BLOCK else frozenset()
    start = 0
    while start < len(rows):
        taken, size = _next_rows(len(rows) - start, together)
        part = slice(start, start + taken)
        if size <= taken:
            _put_products(rows[part], weight, bias, found[part], size)
        else:
            more = torch.empty((size, len(weight)), dtype=rows.dtype)
            _put_products(pad(rows[part], (0, 0, 0, size - taken)), weight, bias, more, size)
            found[part] = more[:taken]
        start += taken
    return found[:count].view(*x.shape[:-1], -1)


def _next_rows(left: int, together: frozenset[int]) -> tuple[int, int]:
    """How many of the ``left`` rows to take next, and how many to multiply at once: more than these to fill up.

    >>> _next_rows(600, frozenset({512}))
    (512, 512)
    >>> _next_rows(448, frozenset({512}))
    (448, 512)
    >>> _next_rows(448, frozenset())
    (256, 32)
    """
    size = min(left, MOST_ROWS) // STEP * STEP or left
    if size in together or size == BLOCK:
        return size, size
    for more in sorted(together):
        if size < more <= 2 * min(left, more):
            return min(left, more), more
    return size, BLOCK


def _put_products(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor, at: int) -> None:
    """``x @ weight.T + bias`` into ``out``, ``at`` so many rows a time."""
    import torch

    for rows, place in zip(torch.split(x, at), torch.split(out, at), strict=True):
        if bias is None:
            torch.mm(rows, weight.t(), out=place)
        else:
            torch.addmm(bias, rows, weight.t(), out=place)


def _sizes_together(weight: torch.Tensor, bias: torch.Tensor | None) -> frozenset[int]:
    """Which of ``SIZES`` rows may be multiplied at once; looked at once for each shape of a weight, with random rows.

    All sizes at once, which takes less time than a batch does: else a service would be slow until it has met them all.
    """
    import torch

    key = (*weight.shape, *weight.stride(), str(weight.dtype), bias is None, torch.get_num_threads())
    known = _TOGETHER.get(key)
    if known is None:
        rows = torch.randn((MOST_ROWS, weight.shape[1]), generator=torch.Generator().manual_seed(0)).to(weight.dtype)
        right, whole = (torch.empty((MOST_ROWS, len(weight)), dtype=weight.dtype) for _ in range(2))
        _put_products(rows, weight, bias, right, BLOCK)
        same = set()
        for size in SIZES:
            _put_products(rows[:size], weight, bias, whole[:size], size)
            if torch.equal(whole[:size], right[:size]):
                same.add(size)
        known = _TOGETHER[key] = frozenset(same)
    return known


_TOGETHER: dict[tuple[object, ...], frozenset[int]] = {}


def steady(model: Any) -> Any:
    """The model with its dense layers computed by ``row_products``."""
    import torch
    from transformers.pytorch_utils import Conv1D

    def computed(part: Any, turned: bool) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda x: row_products(x, part.weight.t() if turned else part.weight, part.bias)

    for part in model.modules():
        kind = type(part)
        if kind in (torch.nn.Linear, Conv1D):
            part.forward = computed(part, kind is Conv1D)
    return model


def load_weights(auto: Any, folder: Path, uses: Callable[[Any], Any], **options: Any) -> Any:
    """``models.load_weights`` of a folder that ``read_modules`` has passed, with its notes as warnings."""
    model, notes = models.load_weights(auto, folder, uses, own_code="ignore", **options)
    for note in notes:
        log.warning("%s: %s", folder, note)
    return model


def load_tokenizer(folder: Path) -> tuple[Any, tuple[Path, ...]]:
    """The tokenizer of a folder and the files its vocabulary is read from.

    ModelError when the folder has no vocabulary: transformers would go on with one that knows no words.
    """
    from transformers import AutoTokenizer

    with models.quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    whole = folder / "tokenizer.json"
    names = {*getattr(tokenizer, "vocab_files_names", {}).values()} - {whole.name}
    files = tuple(folder / name for name in sorted(names))
    missing = [f.name for f in files if not f.is_file()]
    if missing and not whole.is_file():
        raise ModelError(
            f"{folder} lacks its tokenizer: {' or '.join([whole.name, ' with '.join(missing)])}; fetch or copy the "
            "model again"
        )
    return tokenizer, tuple(f for f in (whole, *files) if f.is_file())


def check_ids(ids: Sequence[Sequence[int]], rows: int, name: str) -> None:
    """ModelError when a token id lies beyond the ``rows`` of a model's word embeddings."""
    highest = max((max(row) for row in ids if row), default=-1)
    if highest >= rows:
        raise ModelError(
            f"{name}: the tokenizer gives the id {highest}, and the model has {rows} word embeddings: the two do not "
            "belong together; fetch or copy the model again"
        )


def last_states(model: Any) -> Any:
    """The last hidden states of a few tokens: all that pooling reads of a transformer."""
    import torch

    x = torch.tensor([[5, 6, 7]], device=next(model.parameters()).device)
    return model(input_ids=x, attention_mask=torch.ones_like(x)).last_hidden_state


def token_limit(model: Any, tokenizer: Any) -> int:
    """Tokens that a model takes, special ones counted; 512 where neither model nor tokenizer says."""
    places = getattr(model.config, "max_position_embeddings", None)
    limits = (places, getattr(tokenizer, "model_max_length", None))
    limit = min((int(m) for m in limits if m and 0 < m < 1 << 24), default=512)
    if model.config.model_type in ("roberta", "xlm-roberta", "camembert", "mpnet"):
        limit = min(limit, model.config.max_position_embeddings - 2)  # their positions start after the pad token's
    return limit


def by_halves(rows: Sequence[int], run: Callable[[list[int]], T], name: str) -> Iterator[tuple[list[int], T]]:
    """``run`` over the rows, in order, in as few parts as the memory allows: each part and what it gave.

    A part for which there is no memory is halved. ModelError when there is none for a single row.
    """
    pending = [[*rows]]
    while pending:
        some = pending.pop()
        full = None
        try:
            found = run(some)
        except Exception as error:
            if not out_of_memory(error):
                raise
            full = error
        if full is None:
            yield some, found
            continue
        if len(some) == 1:
            raise ModelError(
                f"{name}: no memory is left for a single text ({' '.join(str(full).split())[:120]}); shorten it, or "
                "take a smaller model or another --device"
            ) from full
        log.warning("%s: no memory for %d texts at once; going on with half as many", name, len(some))
        full = None  # its traceback holds what the failed pass had allocated
        _release()
        middle = len(some) // 2
        pending += [some[middle:], some[:middle]]


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of the GPU or of the machine is used up."""
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(
        sign in text for sign in ("out of memory", "not enough memory", "can't allocate memory", "bad alloc")
    )


def _release() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
