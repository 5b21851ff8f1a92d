"""What a training costs before its models are here: stand-ins that know names and sizes, and say what they assume."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from iclkit import models
from iclkit.embed import BaseEmbedder, split_spec
from iclkit.errors import ModelError
from iclkit.lm import BaseLM, OnDone
from iclkit.records import GenerateRequest, Generation, Message, Progress, Score, ScoreRequest, digest

CHARACTERS_PER_TOKEN = 4.0
_CONTEXT = 2048
_DIM = 16
_BASE = 110_000_000
PARAMETERS: Mapping[str, int] = {
    "all-minilm-l6-v2": 22_713_216,
    "sentence-transformers/all-minilm-l6-v2": 22_713_216,
    "google-bert/bert-base-uncased": 109_482_240,
    "intfloat/e5-base-v2": 109_482_240,
    "google/electra-base-discriminator": 108_891_648,
}
"""Weights of the encoders that presets name, by name in small letters."""


class Assumed:
    """What is assumed about models that are not here; ``notes`` says it, each once, and so does ``tell`` at once."""

    def __init__(self, tell: Callable[[str], None] = lambda note: None) -> None:  # noqa: ARG005
        self._notes, self._tell = dict[str, None](), tell

    @property
    def notes(self) -> list[str]:
        """Each assumption in a line."""
        return [*self._notes]

    def embedder(self, name: str) -> AssumedEmbedder:
        """A stand-in for an encoder."""
        return AssumedEmbedder(name, self._note)

    def parameters(self, name: str) -> int:
        """How many weights an encoder has, by its name."""
        bare, _ = split_spec(name)
        known = PARAMETERS.get(bare.partition("@")[0].lower())
        count = _BASE if known is None else known
        how = "as BERT-base has" if known is None else "as its card says"
        self._note(f"{name} is not on this machine: {count / 1e6:,.0f} million weights, {how}")
        return count

    def _note(self, text: str) -> None:
        if text not in self._notes:
            self._notes[text] = None
            self._tell(text)


def is_absent(name: str) -> bool:
    """Whether an encoder is a catalogue name or a hub id of which nothing is here."""
    return models.must_be_fetched(split_spec(name)[0])


def named_parameters(name: str) -> int | None:
    """The number of weights that a model's name tells; None where it tells none.

    >>> named_parameters("EleutherAI/gpt-neo-2.7B"), named_parameters("smollm2-135m"), named_parameters("gpt2")
    (2700000000, 135000000, None)
    """
    found = re.findall(r"(?<![\w.])(\d+(?:\.\d+)?)([bm])(?![a-z0-9])", name.lower())
    if not found:
        return None
    number, unit = found[-1]
    return round(float(number) * (1e9 if unit == "b" else 1e6))


class AssumedLM(BaseLM):
    """Stands for an LM that is not here: it counts tokens by characters and answers nothing."""

    def __init__(self, name: str) -> None:
        self.name, self.fingerprint, self.context_size = name, f"assumed:{name}", _CONTEXT
        self._notes = (
            f"{name} is not on this machine: counted with {CHARACTERS_PER_TOKEN:g} characters per token and a context "
            f"of {_CONTEXT:,} tokens",
        )

    def count_tokens(self, text: str) -> int:
        """A guess by length."""
        return 1 + int(len(text) / CHARACTERS_PER_TOKEN)

    def render_chat(self, messages: Sequence[Message]) -> str:
        """The messages with their roles in front."""
        return "".join(f"<|{m.role}|>\n{m.content}\n" for m in messages) + "<|assistant|>\n"

    def score(self, requests: Sequence[ScoreRequest], on_done: OnDone[Score] | None = None) -> list[Score]:  # noqa: ARG002
        """ModelError: there is nobody to ask."""
        raise ModelError(f"model {self.name} is not on this machine; run: iclkit models pull {self.name}")

    def generate(
        self,
        requests: Sequence[GenerateRequest],  # noqa: ARG002
        on_done: OnDone[Generation] | None = None,  # noqa: ARG002
    ) -> list[Generation]:
        """ModelError: there is nobody to ask."""
        raise ModelError(f"model {self.name} is not on this machine; run: iclkit models pull {self.name}")


class AssumedEmbedder(BaseEmbedder):
    """Stands for an encoder that is not here: neighbors are drawn by hash, as many as there would be."""

    gives_token_vectors = True

    def __init__(self, name: str, note: Callable[[str], None]) -> None:
        self.name, self.fingerprint, self.dim = name, f"assumed:{name}", _DIM
        self._note = note

    def _encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self._note(f"{self.name} is not on this machine: its neighbors are drawn at random, as many as there would be")
        rows = [np.random.default_rng(int(digest(text, 8), 16)).standard_normal(_DIM) for text in texts]
        vectors = np.array(rows, dtype=np.float32).reshape(-1, _DIM)
        made: NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return made

    def encode_tokens(self, texts: Sequence[str]) -> list[tuple[list[str], NDArray[np.float32]]]:
        """A unit row for each word."""
        return [(words, self._encode(words)) for words in (text.split() for text in texts)]

    def encode_queries(self, texts: Sequence[str], progress: Progress | None = None) -> NDArray[np.float32]:  # noqa: ARG002
        """(n, dim) float32, unit rows."""
        return self._encode(texts)

    def encode_documents(self, texts: Sequence[str], progress: Progress | None = None) -> NDArray[np.float32]:  # noqa: ARG002
        """(n, dim) float32, unit rows."""
        return self._encode(texts)
