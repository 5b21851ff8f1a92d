"""An LM that writes key texts from a few annotated rewritings (see ``iclkit.pool.KeyTransform``)."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from iclkit.errors import DataError, UnknownName
from iclkit.lm import LM, GenerateRequest, ask_each
from iclkit.records import Fields, digest

_SHIPPED = Path(__file__).with_name("rewriters.toml")
_VERSION = 1  # of the prompt's layout


@dataclass(frozen=True, slots=True)
class RewriteStyle:
    """What a rewriter is shown: an instruction, and pairs of an input and what is written for it behind ``stem``."""

    name: str
    instruction: str
    stem: str
    pairs: tuple[tuple[str, str], ...]

    @classmethod
    def load(cls, name: str) -> RewriteStyle:
        """A style that comes with iclkit, or a TOML file with ``instruction``, ``stem`` and ``pairs``.

        UnknownName for a name that is neither; DataError, naming the file, for one that lacks a part.
        """
        shipped = tomllib.loads(_SHIPPED.read_text(encoding="utf-8"))
        if name in shipped:
            return cls._of(name, shipped[name])
        path = Path(name)
        if not path.is_file():
            raise UnknownName("rewriting style", name, shipped, "Or give a TOML file with instruction, stem and pairs.")
        try:
            return cls._of(path.stem, tomllib.loads(path.read_text(encoding="utf-8")))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise DataError(f"{path} is not TOML: {error}") from error
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f'{path} has to hold instruction = "…", stem = "…" and pairs = [["input", "rewriting"], …]; '
                f"{type(error).__name__}: {error}"
            ) from error

    @classmethod
    def _of(cls, name: str, data: dict[str, object]) -> RewriteStyle:
        pairs = data["pairs"]
        if not isinstance(pairs, list) or not pairs:
            raise ValueError("pairs is no list of pairs")
        for pair in pairs:
            if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(t, str) and t.strip() for t in pair)):
                raise ValueError(f"{pair!r} is no pair of two texts")
        texts = data["instruction"], data["stem"]
        if not all(isinstance(t, str) and t.strip() for t in texts):
            raise ValueError("instruction and stem are texts")
        return cls(name, str(texts[0]), str(texts[1]), tuple((a, b) for a, b in pairs))


@dataclass(frozen=True)
class LMRewriter:
    """Key ``number`` of an input: what an LM writes after seeing the pairs in order ``number`` (0: as they are given).

    Greedy, one line. The LM sees inputs only, never outputs. Pairs that do not fit into its context are left out from
    the far end; an input that does not fit alone gets no key, and neither does one about which the LM writes nothing.
    """

    lm: LM
    style: RewriteStyle
    count: int = 5
    max_tokens: int = 48

    @property
    def name(self) -> str:
        """Style and LM."""
        return f"{self.style.name} by {self.lm.name}"

    @property
    def fingerprint(self) -> str:
        """Of the LM, the style and the decoding; not of ``count``."""
        s = self.style
        return digest([self.lm.fingerprint, s.instruction, s.stem, [*map(list, s.pairs)], self.max_tokens, _VERSION])

    def write(self, inputs: Sequence[Fields], number: int) -> list[str]:
        """One line per input, without the stem; empty where nothing could be written."""
        prompts = [self.prompt(i, number) for i in inputs]
        places = [place for place, prompt in enumerate(prompts) if prompt]
        answers, _ = ask_each(
            self.lm.generate, [GenerateRequest(prompts[place], self.max_tokens, stop=("\n",)) for place in places]
        )
        texts = [""] * len(inputs)
        for position, answer in answers.items():
            texts[places[position]] = self.clean(answer.text)
        return texts

    def prompt(self, given: Fields, number: int) -> str:
        """Everything up to the stem; empty when even that and an answer do not fit into the LM's context."""
        order = np.arange(len(self.style.pairs))
        if number:
            order = np.random.default_rng([number, len(order)]).permutation(len(order))
        blocks = [f"{_lines(self.style.pairs[i][0])}\n{self.style.stem} {self.style.pairs[i][1]}" for i in order]
        blocks.append(f"{_lines(given)}\n{self.style.stem}")
        for start in range(len(blocks)):
            text = "\n\n".join([self.style.instruction, *blocks[start:]])
            if self.lm.count_tokens(text) + self.max_tokens <= self.lm.context_size:
                return text
        return ""

    def clean(self, answer: str) -> str:
        """The first line, without a stem that was said again; empty for one of signs alone, which tells nothing."""
        line = answer.strip().split("\n")[0].strip()
        line = line[len(self.style.stem) :].strip() if line.lower().startswith(self.style.stem.lower()) else line
        return line if any(c.isalnum() for c in line) else ""


def _lines(given: Fields) -> str:
    """An input on as many lines as it has fields, by name, so that blank lines separate the pairs."""
    fields = {"Input": given} if isinstance(given, str) else given
    return "\n".join(f"{name}: {' '.join(fields[name].split())}" for name in sorted(fields))
