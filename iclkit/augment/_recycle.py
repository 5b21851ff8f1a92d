"""A long context makes its own demonstrations: questions about single paragraphs of it (DoubleDipper).

After "Can Few-shot Work in Long-Context? Recycling the Context to Generate Demonstrations", arXiv 2406.13632.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from iclkit.augment._result import AugmentResult, Provenance, Rejected, no_answer
from iclkit.errors import UsageError
from iclkit.lm import LM, GenerateRequest
from iclkit.records import Example, clean_text, digest, fold_text
from iclkit.text import count_words

_CLOSING = "[\"')\\]”’»」』）]*"
# the stops of other scripts end a sentence without a space behind them
_SENTENCE_END = re.compile(
    rf"[.!?…]{_CLOSING}(?=\s|$)|[。！？｡．।॥؟۔։።፧။។៕]{_CLOSING}"
)  # the latter need no space after them
_PARAGRAPHS = re.compile(r"\n[ \t]*\n")
_ASK = "Read the paragraph. Write one question that it answers, then the answer in a few words."
_SHOWN = (  # small models need to see the form once
    "Paragraph: The bridge at Lunden was opened in 1904. It replaced a ferry that two brothers had rowed for years.\n"
    "Question: When was the bridge at Lunden opened?\nAnswer: 1904"
)


@dataclass(frozen=True, slots=True)
class Document:
    """A long context as paragraphs. They are numbered from 1, everywhere."""

    paragraphs: tuple[str, ...]

    @classmethod
    def of(cls, text: str) -> Document:
        """Paragraphs are parted by blank lines."""
        return cls(tuple(clean_text(p) for p in _PARAGRAPHS.split(clean_text(text)) if p.strip()))

    @property
    def id(self) -> str:
        """Hash of the paragraphs."""
        return digest([*self.paragraphs])


def recycle(
    lm: LM,
    documents: Sequence[Document],
    *,
    k: int = 3,
    evidence: bool = True,
    sentences: int = 2,
    max_words: int = 15,
    verbatim: bool = False,
    max_tokens: int = 80,
    chat: bool = False,
    seed: int = 0,
    task: str = "",
) -> AugmentResult:
    """For each document ``k`` questions with short answers, each made from one random paragraph alone.

    Paragraphs have at least ``sentences`` sentences; one whose question cannot be read, or whose answer is empty or
    longer than ``max_words`` (or, with ``verbatim``, not in the paragraph), is rejected and another is drawn. Fewer
    than k come back when the paragraphs run out. The questions depend on document and seed only. Greedy; k calls per
    document when nothing is rejected, one round of the LM for all documents together, and one more for each redraw.
    ``chat`` asks in the model's own chat template. ``meta`` adds ``generated_paragraph``.
    """
    if k < 0 or max_words < 1:
        raise UsageError(f"k is {k}, max_words {max_words}; give at least 0 and 1")
    writer, rejected, calls = Provenance("recycle", lm, seed), list[Rejected](), 0
    left = [_sampled(d, sentences, seed) for d in documents]
    written: list[list[Example]] = [[] for _ in documents]
    while wave := [(n, number) for n in range(len(documents)) for number in _next(left[n], k - len(written[n]))]:
        contexts = [
            writer.request(_ask_about(documents[n].paragraphs[number - 1]), "Question:", chat) for n, number in wave
        ]
        replies = writer.generate([GenerateRequest(c, max_tokens, ("\n\n",)) for c in contexts])
        calls += len(contexts)
        for (n, number), context, reply in zip(wave, contexts, replies, strict=True):
            if not reply.text.strip():
                rejected.append(no_answer(reply, documents[n].paragraphs[number - 1]))
                continue
            question, answer, problem = _read(reply.text, max_words, reply.finish == "length")
            if verbatim and fold_text(answer) not in fold_text(documents[n].paragraphs[number - 1]):
                problem = problem or "an answer that is not in the paragraph"
            if problem:
                rejected.append(Rejected(problem, reply.text))
                continue
            output = f"[{number}]\nAnswer: {answer}" if evidence else answer
            example = Example(question, output, task)
            written[n].append(writer.stamp(example, context, [documents[n].id], paragraph=number))
    return AugmentResult("recycle", tuple(e for examples in written for e in examples), tuple(rejected), calls)


def _sampled(document: Document, sentences: int, seed: int) -> list[int]:
    """Paragraph numbers in random order, keyed by the document, those with too few sentences left out."""
    long = [n for n, p in enumerate(document.paragraphs, 1) if len(_SENTENCE_END.findall(p)) >= sentences]
    rng = np.random.default_rng([seed, int(document.id[:12], 16)])
    return [long[int(i)] for i in rng.permutation(len(long))]


def _next(numbers: list[int], count: int) -> list[int]:
    taken = numbers[:count]
    del numbers[:count]
    return taken


def _ask_about(paragraph: str) -> str:
    return f"{_ASK}\n\n{_SHOWN}\n\nParagraph: {paragraph}"


def _read(text: str, max_words: int, cut: bool) -> tuple[str, str, str]:
    """Question, answer, and what is wrong with them ("" if nothing); ``cut``: the text ended for want of tokens."""
    question, mark, answer = text.partition("Answer:")
    question, (answer, *more) = " ".join(question.removeprefix("Question:").split()), answer.strip().split("\n")
    answer = " ".join(answer.split())
    if not question or not mark:
        return "", "", "no question and answer"
    if not answer:
        return "", "", "a question without an answer"
    if cut and not more:
        return "", "", "cut off"
    if count_words(answer) > max_words:
        return "", "", f"an answer of more than {max_words} words"
    return question, answer, ""
