"""A few queries to vectors without torch or transformers, whose import takes longer than the queries themselves.

For sentence-transformers folders of type ``bert`` with mean or cls pooling in fp32 (MiniLM, BGE, E5, GTE …). What only
transformers can tell of a folder, the tokenizer that it makes of it above all, is read from a note in
``ICLKIT_HOME/encoders``: whoever loads the folder in full (``leave_note``) writes it, after both ways have given the
same vectors. Without a note, and for what is not a query, the embedder is loaded in full.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from iclkit import models
from iclkit.embed._cuts import CutTexts
from iclkit.embed._formats import EmbeddingFormat, SideFormat, prepare_text
from iclkit.embed._protocol import BaseEmbedder, Embedder, FloatArray, check_rows
from iclkit.embed._torch import check_ids
from iclkit.files import read_json, replace_file
from iclkit.records import Progress, digest

log = logging.getLogger(__name__)
FORMAT = 1
FEW = 64
"""Texts in all from which on loading the embedder in full takes less time."""
TOLERANCE = 1e-5
PROBES = (
    "",
    "a",
    "The quick brown fox jumps over the lazy dog, twice.",
    "ÉCOLE naïve façade Übergröße — “quoted” … 50 % off!",
    "東京は日本の首都です。 안녕하세요 Привет, мир",
    "[CLS] not a mark [SEP] [MASK] ##ing \t two\u00a0spaces\u200b and\na line",
    "SELECT name FROM t WHERE x >= 3.14e-2; -- 🦊 https://example.org/a?b=c",
    "supercalifragilisticexpialidocious " * 12,
    "word " * 700,
)
_WORDS, _KINDS, _PLACES = (f"embeddings.{kind}_embeddings.weight" for kind in ("word", "token_type", "position"))


@dataclass(frozen=True, slots=True)
class QuickFolder:
    """A folder that may be run here: its transformer, its format, and the hash of all its files."""

    folder: Path
    template: EmbeddingFormat
    weights: str

    @classmethod
    def of(cls, folder: Path, template: EmbeddingFormat, weights: Callable[[], str]) -> Self | None:
        """None for a folder of another kind. ``folder``: that of the transformer, which has been checked."""
        config = models.read_object(folder / "config.json")
        plain = (
            config.get("model_type") == "bert"
            and config.get("hidden_act") == "gelu"
            and not config.get("is_decoder")
            and config.get("position_embedding_type", "absolute") == "absolute"
            and template.joint
            and not template.text_only
            and {*template.pooling} <= {"mean", "cls"}
            and all(facts.dtype == "F32" for facts in models.check_folder(folder).values() if facts.dtype != "I64")
        )
        return cls(folder, template, weights()) if plain else None

    @property
    def note(self) -> Path:
        """Where the note of this folder is, as these versions of the libraries read it."""
        sides = [self.template.identity(side) for side in ("query", "document")]
        read_by = [_version(package) for package in ("transformers", "tokenizers")]
        return models.home() / "encoders" / f"{digest([FORMAT, self.weights, *sides, *read_by])}.json"


@dataclass(frozen=True, slots=True)
class Note:
    """What loading an embedder in full has told of it. ``tokenizer``: as the library ``tokenizers`` writes it."""

    fingerprint: str
    document_fingerprint: str
    dim: int
    limit: int
    tokenizer: str

    @classmethod
    def read(cls, file: Path) -> Self | None:
        """None where there is none, or none that can be used."""
        if not file.is_file():
            return None
        try:
            note = cls(**read_json(file))
            note.make_tokenizer()
        except Exception as error:  # tokenizers raises bare ones
            log.info("%s cannot be used (%s); the embedder is loaded in full", file, error)
            return None
        return note

    def make_tokenizer(self) -> Any:
        """The tokenizer, which cuts texts at the limit."""
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_str(self.tokenizer)
        tokenizer.no_padding()
        tokenizer.enable_truncation(self.limit)
        return tokenizer


def leave_note(folder: QuickFolder, embedder: Embedder, tokenizer: Any, limit: int) -> None:
    """Write the note of an embedder that was loaded in full, where both ways give the same vectors for some texts.

    ``tokenizer``: the one of the library ``tokenizers`` that it uses; ``limit``: tokens it takes.
    """
    from tokenizers import Tokenizer

    own = Tokenizer.from_str(tokenizer.to_str())
    own.no_padding()
    own.no_truncation()
    note = Note(embedder.fingerprint, embedder.document_fingerprint, embedder.dim, limit, own.to_str())
    quick = QuickEmbedder(embedder.name, folder, note, lambda: embedder)
    off = float(np.abs(quick.encode_queries(PROBES) - embedder.encode_queries(PROBES)).max())
    embedder.cut_texts.clear()  # some probes are too long: they are no texts of the user
    if not off < TOLERANCE:
        log.info("%s: the quick way is off by %.1e and is not used", folder.folder, off)
        return
    try:
        folder.note.parent.mkdir(parents=True, exist_ok=True)
        replace_file(folder.note, json.dumps(asdict(note)))
    except OSError as error:
        log.info("no note of %s is kept (%s); it will be loaded in full again", folder.folder, error)


class QuickEmbedder(BaseEmbedder):
    """An embedder that encodes a few queries itself and is otherwise loaded in full, by ``load``, when first needed.

    Vectors of queries agree with those of the embedder in full to 1e-5. Those of documents, which pools keep, are
    always made by the embedder in full.
    """

    gives_token_vectors = True

    def __init__(self, name: str, folder: QuickFolder, note: Note, load: Callable[[], Embedder]) -> None:
        self.name, self.fingerprint, self.dim = name, note.fingerprint, note.dim
        self._note, self._folder, self._load, self._done = note, folder, load, 0
        self._cut = CutTexts(note.limit)

    @property
    def document_fingerprint(self) -> str:
        """Of the document side alone."""
        return self._note.document_fingerprint

    @property
    def cut_texts(self) -> CutTexts:
        """Those that it read itself, and those of the embedder in full."""
        return self._cut | self._whole.cut_texts if "_whole" in vars(self) else self._cut

    @cached_property
    def _whole(self) -> Embedder:
        return self._load()

    @cached_property
    def _bert(self) -> NumpyBert:
        return NumpyBert(self._folder.folder)

    @cached_property
    def _tokenizer(self) -> Any:
        return self._note.make_tokenizer()

    @cached_property
    def _uncut(self) -> Any:
        """The tokenizer, of whole texts."""
        tokenizer = self._note.make_tokenizer()
        tokenizer.no_truncation()
        return tokenizer

    def encode_queries(self, texts: Sequence[str], progress: Progress | None = None) -> FloatArray:
        """(n, dim) float32, unit rows."""
        if self._is_few(texts):
            return self._encode(texts, self._folder.template.query, progress)
        return self._whole.encode_queries(texts, progress)

    def encode_documents(self, texts: Sequence[str], progress: Progress | None = None) -> FloatArray:
        """(n, dim) float32, unit rows, by the embedder in full."""
        return self._whole.encode_documents(texts, progress)

    def encode_raw(
        self, texts: Sequence[str], progress: Progress | None = None, *, side: Literal["query", "document"] = "document"
    ) -> FloatArray:
        """(n, dim) float32, not normalized; documents by the embedder in full."""
        if side == "query" and self._is_few(texts):
            return self._encode(texts, self._folder.template.query, progress, unit=False)
        return self._whole.encode_raw(texts, progress, side=side)

    def encode_tokens(self, texts: Sequence[str]) -> list[tuple[list[str], FloatArray]]:
        """By the embedder in full."""
        return self._whole.encode_tokens(texts)

    def _lengths(self, texts: list[str]) -> list[int]:
        """Tokens of texts that are not cut."""
        return [len(self._uncut.encode(text).ids) for text in texts]

    def _is_few(self, texts: Sequence[str]) -> bool:
        self._done += len(texts)
        return self._done <= FEW

    def _encode(
        self, texts: Sequence[str], side: SideFormat, progress: Progress | None, unit: bool = True
    ) -> FloatArray:
        """One text at a time: the last bits of a product change with the rows that are computed together."""
        found = np.empty((len(texts), self.dim), np.float32)
        for n, text in enumerate(texts):
            written = side.open + prepare_text(text, self._folder.template.prepare)
            ids = self._tokenizer.encode(written).ids
            if len(ids) >= self._note.limit:
                self._cut.look([written], self._lengths)
            check_ids([ids], self._bert.words, self.name)
            states = self._bert(ids)
            pooled = [states[0] if way == "cls" else states.mean(axis=0) for way in self._folder.template.pooling]
            found[n] = np.concatenate(pooled)
        if unit:
            found /= np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
        check_rows(self.name, found, texts, unit=unit)
        if progress:
            progress(len(texts), len(texts))
        return found


class NumpyBert:
    """The encoder of a BERT, for the tokens of one text; float32. ``words``: how many word embeddings there are."""

    def __init__(self, folder: Path) -> None:
        config = models.read_object(folder / "config.json")
        self._heads, self._eps = int(config["num_attention_heads"]), float(config.get("layer_norm_eps", 1e-12))
        tensors = _Tensors(models.weight_files(folder))
        self._tensors, self.words = tensors, tensors.count(_WORDS)
        self._places, self._kind = tensors.whole(_PLACES), tensors.whole(_KINDS)[0]
        self._norm = tensors.pair("embeddings.LayerNorm")
        parts = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
                 "attention.output.LayerNorm", "intermediate.dense", "output.dense", "output.LayerNorm")  # fmt: skip
        self._layers = [
            [tensors.pair(f"encoder.layer.{n}.{part}") for part in parts]
            for n in range(int(config["num_hidden_layers"]))
        ]

    def __call__(self, ids: Sequence[int]) -> FloatArray:
        """ids: token ids of one text (t) -> last hidden states (t, d)."""
        t = len(ids)
        h = self._normed(self._tensors.rows(_WORDS, ids) + self._kind + self._places[:t], *self._norm)
        for query, key, value, out, norm, up, down, last in self._layers:
            q, k, v = (
                (h @ weight.T + bias).reshape(t, self._heads, -1).swapaxes(0, 1) for weight, bias in (query, key, value)
            )
            weights = q @ k.swapaxes(1, 2) / np.float32(np.sqrt(q.shape[-1]))
            weights = np.exp(weights - weights.max(axis=-1, keepdims=True))
            weights /= weights.sum(axis=-1, keepdims=True)
            mixed = (weights @ v).swapaxes(0, 1).reshape(t, -1)
            h = self._normed(mixed @ out[0].T + out[1] + h, *norm)
            h = self._normed(_gelu(h @ up[0].T + up[1]) @ down[0].T + down[1] + h, *last)
        return h

    def _normed(self, x: FloatArray, weight: FloatArray, bias: FloatArray) -> FloatArray:
        x = x - x.mean(axis=-1, keepdims=True)
        scale = np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + np.float32(self._eps))
        return np.asarray(x / scale * weight + bias, dtype=np.float32)


class _Tensors:
    """The tensors of safetensors files by name, with or without ``bert.`` in front."""

    def __init__(self, files: Sequence[Path]) -> None:
        import safetensors

        self._file_of: dict[str, tuple[Any, str]] = {}
        for path in files:
            file = safetensors.safe_open(path, framework="numpy")
            self._file_of |= {name.removeprefix("bert."): (file, name) for name in file.keys()}  # type: ignore[no-untyped-call]  # noqa: SIM118

    def whole(self, name: str) -> FloatArray:
        file, stored = self._file_of[name]
        return np.asarray(file.get_tensor(stored), dtype=np.float32)

    def pair(self, name: str) -> tuple[FloatArray, FloatArray]:
        return self.whole(f"{name}.weight"), self.whole(f"{name}.bias")

    def count(self, name: str) -> int:
        """How many rows it has."""
        file, stored = self._file_of[name]
        return int(file.get_slice(stored).get_shape()[0])

    def rows(self, name: str, numbers: Sequence[int]) -> FloatArray:
        """(len(numbers), d): some rows, without reading the others."""
        file, stored = self._file_of[name]
        part = file.get_slice(stored)
        return np.concatenate([part[n : n + 1] for n in numbers]).astype(np.float32)


def _gelu(x: FloatArray) -> FloatArray:
    """x * Φ(x), with the error function of Abramowitz & Stegun 7.1.26, which is off by less than 2e-7."""
    z = np.abs(x) * np.float32(np.sqrt(0.5))
    t = 1 / (1 + np.float32(0.3275911) * z)
    series = np.zeros_like(t)
    for factor in (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592):
        series = (series + np.float32(factor)) * t
    erf = np.copysign(1 - series * np.exp(-z * z), x)
    return np.asarray(np.float32(0.5) * x * (1 + erf), dtype=np.float32)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
