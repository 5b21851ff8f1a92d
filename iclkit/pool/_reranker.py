"""A model that reads query and example together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from iclkit.errors import IclkitError, ModelError
from iclkit.pool._encoder import FEWEST, TOKENS, computes_in_bf16, files_mark, quiet, torch_threads
from iclkit.records import digest

if TYPE_CHECKING:
    import torch


class CrossEncoder:
    """A sequence classifier with one output, e.g. ms-marco-MiniLM: the higher, the better the second text serves."""

    def __init__(self, name: str, dtype: str = "auto", device: str | None = None, threads: int | None = None) -> None:
        from iclkit import models

        folder = models.resolve(name, "embedder")
        try:
            import torch
            from transformers import AutoModelForSequenceClassification, AutoTokenizer

            place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
            exact = (
                torch.bfloat16 if dtype == "bf16" or (dtype == "auto" and computes_in_bf16(place)) else torch.float32
            )
            with quiet():
                self._model = AutoModelForSequenceClassification.from_pretrained(
                    folder, dtype=exact, use_safetensors=True
                )
                self._model.eval().to(place)
                _exact_head(self._model)
                self._tokenizer = AutoTokenizer.from_pretrained(folder)
        except IclkitError:
            raise
        except Exception as error:  # whatever the libraries raise over a broken folder is reported, with its cause
            why = str(error).strip().splitlines() or [type(error).__name__]
            raise ModelError(f"cannot load the reranker {name!r} from {folder}: {why[0]}") from error
        if self._model.config.num_labels != 1:
            raise ModelError(
                f"{name!r} is no reranker: it gives {self._model.config.num_labels} values for a pair, not one"
            )
        limits = (self._tokenizer.model_max_length, self._model.config.max_position_embeddings)
        self._limit = min(int(m) for m in limits if m)
        self.name, self._threads = name, threads
        self.fingerprint = digest([files_mark(folder), str(exact), self._limit])

    def score(self, pairs: Sequence[tuple[str, str]]) -> NDArray[np.float32]:
        """(n,): one logit per pair. Pairs of equal length in tokens go together: a score depends on its pair alone."""
        import torch

        out = np.empty(len(pairs), np.float32)
        if not pairs:
            return out
        tokens = self._tokenizer([a for a, _ in pairs], [b for _, b in pairs], truncation=True, max_length=self._limit)
        names = [n for n in ("input_ids", "token_type_ids", "attention_mask") if n in tokens]
        by_length: dict[int, list[int]] = {}
        for n, ids in enumerate(tokens["input_ids"]):
            by_length.setdefault(len(ids), []).append(n)
        with torch.inference_mode(), torch_threads(self._threads):
            for length, members in sorted(by_length.items()):
                step = max(1, TOKENS.get(self._model.device.type, 1024) // length)
                for some in (members[i : i + step] for i in range(0, len(members), step)):
                    rows = some * (1 + FEWEST // (length * len(some)))  # products of few rows have other last bits
                    batch = {n: torch.tensor([tokens[n][i] for i in rows], device=self._model.device) for n in names}
                    out[some] = self._model(**batch).logits[: len(some), 0].float().cpu().numpy()
        return out


def _exact_head(model: Any) -> None:
    """Let what stands after the encoder (a row a pair, cheap) compute in float64.

    The last bits of a product of matrices change with its number of rows; rounded from float64 they do not.
    """
    body = model.base_model
    heads = [child for child in model.children() if child is not body]
    for head in (*heads, getattr(body, "pooler", None)):
        if head is not None:
            head.double().register_forward_pre_hook(_doubled)


def _doubled(_: torch.nn.Module, values: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(v.double() if hasattr(v, "is_floating_point") and v.is_floating_point() else v for v in values)


def load_reranker(
    name_or_path: str, *, dtype: str = "auto", device: str | None = None, threads: int | None = None
) -> CrossEncoder:
    """A cross-encoder by hub id or folder. ModelError, in one line, when it cannot be loaded or is none."""
    return CrossEncoder(name_or_path, dtype, device, threads)
