"""Instructions to choose from: read from a file, or written by the LM from demonstrations."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from iclkit.errors import DataError, RunError
from iclkit.files import read_text
from iclkit.lm import LM, GenerateRequest, ask_each
from iclkit.prompts import Template
from iclkit.records import Example

CUE = "All of the above were done by following one instruction. The instruction was:"


def read_instructions(path: Path) -> list[str]:
    """One instruction a line, or one a paragraph where blank lines stand between them; each once, in order.

    DataError for a file that cannot be read or has none.
    """
    lines = [line.removesuffix("\r") for line in read_text(path).strip().split("\n")]
    parts = lines if all(map(str.strip, lines)) else re.split(r"\n(?:[^\S\n]*\n)+", "\n".join(lines))
    instructions = [*dict.fromkeys(p.strip() for p in parts if p.strip())]
    if not instructions:
        raise DataError(f"{path} holds no instruction; write one on each line")
    return instructions


def write_instructions(
    lm: LM,
    template: Template,
    examples: Sequence[Example],
    count: int,
    *,
    seed: int = 0,
    shots: int = 10,
    temperature: float = 0.7,
    max_tokens: int = 48,
) -> list[str]:
    """At most ``count`` different instructions that the LM thinks ``shots`` random demonstrations followed.

    Each is asked for with demonstrations of its own draw, as many of them as the context holds; the first line of the
    answer counts; a prompt that is refused, or answered with nothing, gives no instruction. RunError when there is none
    at all. After Zhou et al. 2023 (APE, arXiv 2211.01910).
    """
    requests = []
    for n in range(count):
        rng = np.random.default_rng([seed, n])
        drawn = [template.render_demo(examples[int(r)]) for r in rng.permutation(len(examples))[:shots]]
        text = template.separator.join([*drawn, CUE])
        while len(drawn) > 1 and lm.count_tokens(text) + max_tokens > lm.context_size:
            drawn.pop()
            text = template.separator.join([*drawn, CUE])
        requests.append(GenerateRequest(text, max_tokens, ("\n",), temperature=temperature, seed=seed + n))
    answers, refused = ask_each(lm.generate, requests)
    texts = (answers[n].text.strip().strip('"').strip() for n in sorted(answers))
    instructions = [*dict.fromkeys(t for t in texts if len(t.split()) > 1)]
    if not instructions:
        why = f" (refused: {next(iter(refused.values()))})" if refused else ""
        raise RunError(f"{lm.name} wrote no instruction in {count} tries{why}; give a list with --instructions FILE")
    return instructions
