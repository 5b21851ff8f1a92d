"""A model that reads query and example together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from iclkit import models
from iclkit.embed._cuts import CutTexts
from iclkit.embed._folder import folder_hash
from iclkit.embed._protocol import check_scores
from iclkit.embed._spec import checked_dtype, join_spec, split_spec
from iclkit.embed._torch import (
    BATCH_TOKENS,
    MIN_ROWS,
    by_halves,
    check_ids,
    load_tokenizer,
    load_weights,
    steady,
    token_limit,
)
from iclkit.errors import ModelError, UsageError
from iclkit.records import digest

if TYPE_CHECKING:
    import torch


class CrossEncoder:
    """A sequence classifier with one output, e.g. ms-marco-MiniLM: the higher, the better the second text serves."""

    def __init__(self, name: str, dtype: str = "fp32", device: str | None = None, threads: int | None = None) -> None:
        place = models.find_device(device)
        bare, said = split_spec(name, known=("dtype",))
        numbers = models.resolve_dtype(checked_dtype(said.get("dtype", dtype)), place)
        folder = models.resolve(bare, "embedder")
        with models.load_errors(f"cannot load the reranker {name!r} from {folder}"):
            models.check_folder(folder)
            from transformers import AutoModelForSequenceClassification

            kind = models.torch_dtype(numbers)
            model = load_weights(AutoModelForSequenceClassification, folder, _logits, dtype=kind, device=place)
            self._tokenizer, vocabulary = load_tokenizer(folder)
            if model.config.num_labels != 1:
                raise ModelError(f"{name!r} is no reranker: it gives {model.config.num_labels} values for a pair")
            self._model = steady(model)
            _float64_head(self._model)
            self._limit = token_limit(self._model, self._tokenizer)
            self._cut = CutTexts(self._limit)
            self._rows = int(self._model.get_input_embeddings().weight.shape[0])
            weights = folder_hash(folder, (), vocabulary)
        self.name, self._threads = join_spec(bare, {"dtype": numbers}), threads
        self._budget = BATCH_TOKENS.get(place.type, 1024)
        self.fingerprint = digest([weights, str(models.torch_dtype(numbers)), self._limit])

    @property
    def cut_texts(self) -> CutTexts:
        """The pairs so far of which only the first tokens were read."""
        return self._cut

    def score(self, pairs: Sequence[tuple[str, str]]) -> NDArray[np.float32]:
        """(n,): one logit per pair. Pairs of equal length in tokens go together: a score depends on its pair alone.

        ModelError for a score that is no number.
        """
        import torch

        out = np.empty(len(pairs), np.float32)
        if not pairs:
            return out
        tokens = self._tokenizer([a for a, _ in pairs], [b for _, b in pairs], truncation=True, max_length=self._limit)
        check_ids(tokens["input_ids"], self._rows, self.name)
        for pair, ids in zip(pairs, tokens["input_ids"], strict=True):
            if len(ids) >= self._limit < (whole := len(self._tokenizer(*pair, verbose=False)["input_ids"])):
                self._cut.add("\0".join(pair), whole)
        names = [n for n in ("input_ids", "token_type_ids", "attention_mask") if n in tokens]
        by_length: dict[int, list[int]] = {}
        for n, ids in enumerate(tokens["input_ids"]):
            by_length.setdefault(len(ids), []).append(n)

        def run(some: list[int]) -> NDArray[np.float32]:
            length = len(tokens["input_ids"][some[0]])
            rows = some * (1 + MIN_ROWS // (length * len(some)))  # products of few rows have other last bits
            batch = {n: torch.tensor([tokens[n][i] for i in rows], device=self._model.device) for n in names}
            found: NDArray[np.float32] = self._model(**batch).logits[: len(some), 0].float().cpu().numpy()
            return found

        with torch.inference_mode(), models.torch_threads(self._threads):
            for length, members in sorted(by_length.items()):
                at = 0
                while at < len(members):
                    some = members[at : at + max(1, self._budget // length)]
                    at += len(some)
                    for part, scores in by_halves(some, run, self.name):
                        out[part] = scores
                        if len(part) < len(some):
                            self._budget = min(self._budget, length * len(part))
        check_scores(self.name, out, pairs)
        return out


def _logits(model: Any) -> Any:
    import torch

    x = torch.tensor([[5, 6, 7]], device=model.device)
    return model(input_ids=x, attention_mask=torch.ones_like(x)).logits


def _float64_head(model: Any) -> None:
    """Let what stands after the encoder (a row a pair, cheap) compute in float64.

    The last bits of a product of matrices change with its number of rows; rounded from float64 they do not.
    """
    body = model.base_model
    heads = [child for child in model.children() if child is not body]
    for head in (*heads, getattr(body, "pooler", None)):
        if head is not None:
            head.double().register_forward_pre_hook(_to_float64)


def _to_float64(_: torch.nn.Module, values: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(v.double() if hasattr(v, "is_floating_point") and v.is_floating_point() else v for v in values)


def load_reranker(
    name_or_path: str, *, dtype: str | None = None, device: str | None = None, threads: int | None = None
) -> CrossEncoder:
    """A cross-encoder by hub id or folder, with ``,dtype=bf16`` or ``,dtype=auto`` behind it where not fp32 is wanted.

    UsageError or ModelError, in one line, when it cannot be loaded or is none.
    """
    said = split_spec(name_or_path, known=("dtype",))[1].get("dtype")
    if dtype is not None and said not in (None, dtype):
        raise UsageError(f"{name_or_path!r} says dtype={said!r}, and dtype={dtype!r} was given beside it")
    return CrossEncoder(name_or_path, dtype or "fp32", device, threads)
