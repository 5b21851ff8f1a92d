"""An LM that writes key texts from a few annotated rewritings (see ``iclkit.pool.KeyTransform``)."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from iclkit.errors import DataError, UnknownName
from iclkit.lm import LM, GenerateRequest, ask_each, load_lm
from iclkit.records import Fields, Json, digest

_SHIPPED = Path(__file__).with_name("rewriters.toml")
_VERSION = 1  # of the prompt's layout


@dataclass(frozen=True, slots=True)
class RewriteStyle:
    """What a rewriter is shown: an instruction, and pairs of an input and what is written for it behind ``stem``.

    Inputs of pairs are texts, or all have the same named fields; then every input is shown by these fields, in the
    order of the first pair.
    """

    name: str
    instruction: str
    stem: str
    pairs: tuple[tuple[Fields, str], ...]
    is_file: bool = field(default=False, compare=False)

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the fields that inputs are shown by; () for pairs of texts."""
        first = self.pairs[0][0]
        return () if isinstance(first, str) else tuple(first)

    def check(self, inputs: Iterable[Fields]) -> None:
        """DataError for an input without a field that the annotated pairs have."""
        for given in inputs:
            there = () if isinstance(given, str) else tuple(given)
            if missing := [name for name in self.fields if name not in there]:
                raise DataError(
                    f"style {self.name!r}: its pairs show {', '.join(self.fields)}, and an input has no field "
                    f"{missing[0]!r}; it " + (f"has {', '.join(there)}" if there else "is one text without fields")
                )

    def digest(self) -> list[Json]:
        """All that a rewriter is shown of it, for hashes."""
        pairs: list[Json] = [
            [given if isinstance(given, str) else [[name, text] for name, text in given.items()], rewriting]
            for given, rewriting in self.pairs
        ]
        return [self.instruction, self.stem, pairs]

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
            return replace(cls._of(path.stem, tomllib.loads(path.read_text(encoding="utf-8"))), is_file=True)
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise DataError(f"{path} is not TOML: {error}") from error
        except (KeyError, TypeError, ValueError) as error:
            what = f"there is no {error}" if isinstance(error, KeyError) else str(error)
            raise DataError(
                f'{path}: {what}; a style holds instruction = "…", stem = "…" and pairs = [["input", "rewriting"], …], '
                f'or [[pairs]] with input = {{field = "…"}} and rewriting = "…"'
            ) from error

    @classmethod
    def _of(cls, name: str, data: dict[str, object]) -> RewriteStyle:
        pairs = data["pairs"]
        if not isinstance(pairs, list) or not pairs:
            raise ValueError("pairs is no list of pairs")
        read = [_pair(number, pair) for number, pair in enumerate(pairs, 1)]
        names = [() if isinstance(given, str) else tuple(given) for given, _ in read]
        for number, own in enumerate(names, 1):
            if {*own} != {*names[0]}:
                kinds = [f"the fields {', '.join(n)}" if n else "one text" for n in (own, names[0])]
                raise ValueError(f"the input of pair {number} is {kinds[0]}, and that of pair 1 {kinds[1]}")
        texts = data["instruction"], data["stem"]
        if not all(isinstance(t, str) and t.strip() for t in texts):
            raise ValueError("instruction and stem are texts")
        return cls(name, str(texts[0]), str(texts[1]), tuple(read))


def _pair(number: int, pair: object) -> tuple[Fields, str]:
    """One annotated pair; ValueError says which one is no pair, or lacks its rewriting."""
    given, rewriting = (pair.get("input"), pair.get("rewriting")) if isinstance(pair, dict) else (pair, None)
    if isinstance(pair, list) and len(pair) == 2:
        given, rewriting = pair
    texts = [*given.values()] if isinstance(given, dict) else [given]
    if not texts or not all(isinstance(t, str) for t in texts) or not any(str(t).strip() for t in texts):
        raise ValueError(f"pair {number} is {pair!r}, no input with what is written for it")
    if not isinstance(rewriting, str) or not rewriting.strip():
        raise ValueError(f"pair {number} has no rewriting yet; write one, or take the pair out")
    shown: Any = given
    return shown, rewriting


@lru_cache(maxsize=2)
def second_lm(name: str) -> LM:
    """An LM that a setting names; loaded once for all seeds and sizes of a run."""
    return load_lm(name)


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
        return digest([self.lm.fingerprint, *self.style.digest(), self.max_tokens, _VERSION])

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
        """Everything up to the stem; empty when even that and an answer do not fit into the LM's context.

        DataError for an input without a field of the annotated pairs.
        """
        self.style.check([given])
        names = self.style.fields
        order = np.arange(len(self.style.pairs))
        if number:
            order = np.random.default_rng([number, len(order)]).permutation(len(order))
        blocks = [f"{_lines(self.style.pairs[i][0], names)}\n{self.style.stem} {self.style.pairs[i][1]}" for i in order]
        blocks.append(f"{_lines(given, names)}\n{self.style.stem}")
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


def _lines(given: Fields, names: Sequence[str]) -> str:
    """An input on as many lines as it has fields, by name, so that blank lines separate the pairs.

    ``names``: the fields to show, in their order; all of them, sorted, where there are none.
    """
    fields: Mapping[str, str] = {"Input": given} if isinstance(given, str) else given
    return "\n".join(f"{name}: {' '.join(fields[name].split())}" for name in names or sorted(fields))
