"""Instructions to choose from: read from a file, or written by the LM from demonstrations."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from iclkit.errors import DataError, RunError
from iclkit.files import read_text
from iclkit.lm import LM, GenerateRequest
from iclkit.prompts import Template
from iclkit.records import Example

CUE = "All of the above were done by following one instruction. The instruction was:"


def read_instructions(path: Path) -> list[str]:
    """One instruction a line, or one a paragraph where blank lines stand between them; each once, in order.

    DataError for a file that cannot be read or has none.
    """
    lines = [line.removesuffix("\r") for line in read_text(path).strip().split("\n")]
    parts = lines if all(map(str.strip, lines)) else re.split(r"\n(?:[^\S\n]*\n)+", "\n".join(lines))
    found = [*dict.fromkeys(p.strip() for p in parts if p.strip())]
    if not found:
        raise DataError(f"{path} holds no instruction; write one on each line")
    return found


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
    answer counts. RunError when nothing usable comes. After Zhou et al. 2023 (APE, arXiv 2211.01910).
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
    said = (g.text.strip().strip('"').strip() for g in lm.generate(requests))
    found = [*dict.fromkeys(s for s in said if len(s.split()) > 1)]
    if not found:
        raise RunError(f"{lm.name} wrote no instruction in {count} tries; give a list with --instructions FILE")
    return found
