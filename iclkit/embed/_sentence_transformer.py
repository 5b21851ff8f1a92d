"""sentence-transformers folders of kinds that are not taken apart here: routers, static embeddings, T5 …"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from iclkit import models
from iclkit.embed._cuts import CutTexts
from iclkit.embed._folder import TRANSFORMERS, Module, folder_hash
from iclkit.embed._protocol import BaseEmbedder, FloatArray, check_rows
from iclkit.embed._torch import by_halves, last_states, load_tokenizer
from iclkit.errors import ModelError
from iclkit.records import Json, Progress, digest

if TYPE_CHECKING:
    from sentence_transformers.sentence_transformer.modules import Transformer

log = logging.getLogger(__name__)
BATCH = 32


class SentenceTransformerEmbedder(BaseEmbedder):
    """A sentence-transformers model of a kind that is not taken apart here: run as it is, normalized again in fp32.

    ``prompts``: what stands in front of queries and of documents. ``usual``: what the library would put there.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        modules: Sequence[Module],
        prompts: tuple[str, str],
        usual: tuple[str, str],
        dtype: str,
        device: Any,
        threads: int | None,
    ) -> None:
        self.name, self._threads, self._batch = name, threads, BATCH
        self._query_prompt, self._document_prompt = prompts
        self._model, vocabulary = load_sentence_transformer(folder, modules, dtype, device)
        identity: list[Json] = [folder_hash(folder, modules, vocabulary), str(models.torch_dtype(dtype)), "whole"]
        if prompts != usual:
            identity.append([*prompts])
        self.fingerprint = digest(identity)
        self.dim = int(self._model.encode_document(["a"], show_progress_bar=False).shape[1])
        self._cuts = {side: cuts_of(self._model, side) for side in ("query", "document")}

    @property
    def cut_texts(self) -> CutTexts:
        """The texts so far of which only the first tokens were read; none is known of for a model without a limit."""
        return self._cuts["query"] | self._cuts["document"]

    def encode_queries(self, texts: Sequence[str], progress: Progress | None = None) -> FloatArray:
        """(n, dim) float32, unit rows."""
        return self._encode(texts, "query", progress)

    def encode_documents(self, texts: Sequence[str], progress: Progress | None = None) -> FloatArray:
        """(n, dim) float32, unit rows."""
        return self._encode(texts, "document", progress)

    def encode_raw(
        self, texts: Sequence[str], progress: Progress | None = None, *, side: Literal["query", "document"] = "document"
    ) -> FloatArray:
        """(n, dim) float32: documents (or, ``side="query"``, queries) as the model gives them."""
        return self._encode(texts, side, progress, unit=False)

    def _encode(self, texts: Sequence[str], side: str, progress: Progress | None, unit: bool = True) -> FloatArray:
        unique = list(dict.fromkeys(texts))
        if not unique:
            return np.empty((0, self.dim), np.float32)
        encode = self._model.encode_query if side == "query" else self._model.encode_document
        prompt = self._query_prompt if side == "query" else self._document_prompt
        self._cuts[side].look([prompt + text for text in unique], partial(lengths_of, self._model, side))
        found = np.empty((len(unique), self.dim), np.float32)

        def run(rows: list[int]) -> Any:
            return encode([unique[n] for n in rows], prompt=prompt, batch_size=len(rows), show_progress_bar=False)

        order, done = np.argsort([-len(t) for t in unique]), 0  # as the library sorts them
        with models.torch_threads(self._threads):
            while done < len(unique):
                some = order[done : done + self._batch].tolist()
                for rows, vectors in by_halves(some, run, self.name):
                    found[rows] = np.asarray(vectors, dtype=np.float32)
                    done += len(rows)
                    if len(rows) < len(some):
                        self._batch = min(self._batch, len(rows))
                    if progress:
                        progress(done, len(unique))
        if unit:
            found /= np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
        check_rows(self.name, found, unique, unit=unit)
        at = {t: n for n, t in enumerate(unique)}
        return found[[at[t] for t in texts]]


def cuts_of(model: Any, side: str) -> CutTexts:
    """Where the texts of one side will be counted that a ``SentenceTransformer`` does not read to their end.

    Known of transformers alone: a table of word vectors has no limit.
    """
    part = _reader(model, side)
    return CutTexts(part.max_seq_length or 0 if part else 0)


def lengths_of(model: Any, side: str, texts: list[str]) -> list[int]:
    """The tokens of texts of one side, special ones with them. For a side with a limit (``cuts_of``)."""
    part = _reader(model, side)
    assert part is not None, "a side without a transformer has no limit"
    assert part.tokenizer is not None, "no text was encoded without a tokenizer"
    return [*map(len, part.tokenizer([*texts], truncation=False, verbose=False)["input_ids"])]


def _reader(model: Any, side: str) -> Transformer | None:
    """The transformer that reads the texts of one side: the first module, of a router the first of that side."""
    from sentence_transformers.base.modules import Router
    from sentence_transformers.sentence_transformer.modules import Transformer

    first = model[0]
    if isinstance(first, Router):
        first = first.sub_modules[side][0]
    return first if isinstance(first, Transformer) else None


def load_sentence_transformer(
    folder: Path, modules: Sequence[Module], dtype: str, device: Any
) -> tuple[Any, tuple[Path, ...]]:
    """The ``SentenceTransformer`` of a folder with these modules (see ``read_modules``), and the files that its
    tokenizers were read from. ModelError when a transformer in it lacks weights or its tokenizer."""
    from sentence_transformers import SentenceTransformer

    models.check_memory(folder)
    with models.quiet_transformers():
        model = SentenceTransformer(
            str(folder),
            device=str(device),
            local_files_only=True,
            trust_remote_code=False,
            model_kwargs={"dtype": models.torch_dtype(dtype), "use_safetensors": True},
        )
        return model, _check_transformers(model, modules or [Module("Transformer", folder)])


def _check_transformers(model: Any, modules: Sequence[Module]) -> tuple[Path, ...]:
    """The files their tokenizers were read from. ModelError when a transformer inside lacks weights or its tokenizer.

    The library has loaded each without saying what was missing, so the same class looks at the same files again; on
    the device "meta", where nothing is read but names and shapes.
    """
    from transformers import AutoConfig

    parts = [p.auto_model for p in model.modules() if hasattr(p, "auto_model")]
    read: list[Path] = []
    for module in (m for one in modules for m in one.walk() if m.kind in TRANSFORMERS):
        config = AutoConfig.from_pretrained(module.path, trust_remote_code=False)
        part = next((p for p in parts if type(p.config) is type(config)), None)
        if part is None:
            raise ModelError(f"{module.path} holds a {type(config).__name__}, and no such model was loaded")
        _, info = type(part).from_pretrained(
            module.path,
            device_map="meta",
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
        uses = (lambda _, p=part: last_states(p)) if module.kind == "Transformer" else None
        for note in models.check_loaded(part, info, module.path, uses):
            log.warning("%s: %s", module.path, note)
        read += load_tokenizer(module.path)[1]
    return tuple(read)
