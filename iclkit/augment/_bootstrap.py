"""Traces of the model's own that lead to the right answer, as demonstrations (DSPy's BootstrapFewShot, one predictor).

After stanfordnlp/dspy, ``teleprompt/bootstrap.py``, with one difference: one round of the LM serves several examples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from iclkit.augment._result import AugmentResult, Provenance, Rejected, no_answer
from iclkit.errors import UsageError
from iclkit.lm import LM, GenerateRequest
from iclkit.prompts import Template, answer_stops, assemble
from iclkit.records import Example, Query

Judge = Callable[[str, str], float]
"""The value of an output, given the gold output; a metric's ``judge``."""


def bootstrap(
    lm: LM,
    template: Template,
    train: Sequence[Example],
    judge: Judge,
    *,
    most: int = 4,
    threshold: float = 1.0,
    shots: int = 16,
    rounds: int = 1,
    cue: str = "",
    shuffle: bool = False,
    max_tokens: int = 256,
    seed: int = 0,
) -> AugmentResult:
    """The first ``most`` train examples, in order, for whose trace ``judge`` gives at least ``threshold``.

    A trace is what the model generates after ``cue`` (e.g. "Let's think step by step."), shown ``shots`` random
    labeled examples without the one in question; cue and trace become the output. ``shuffle`` draws the order by
    seed instead of the order of rows. In rounds after the first, examples that failed are sampled at
    temperature 1 with another seed. ``meta`` adds ``generated_score`` and ``generated_gold``; ``generated_from`` is
    the train example, and must not be shown beside its trace (see ``with_labeled``).
    """
    if most < 0 or rounds < 1 or shots < 0:
        raise UsageError(f"most is {most}, rounds {rounds}, shots {shots}; give at least 0, 1 and 0")
    writer, rng = Provenance("bootstrap", lm, seed), np.random.default_rng(seed)
    drawn = [train[int(i)] for i in rng.permutation(len(train))[: shots + 1]]
    order = [train[int(i)] for i in rng.permutation(len(train))] if shuffle else [*train]
    stops = answer_stops(template, [e.output for e in train], one_line=False)
    kept, rejected, calls = list[Example](), list[Rejected](), 0
    for number in range(rounds):
        failed, at = list[Example](), 0
        while at < len(order) and len(kept) < most:
            wave = order[at : at + 2 * (most - len(kept))]
            at += len(wave)
            contexts = [_prompt(writer, template, e, drawn, shots, cue, max_tokens) for e in wave]
            sampled = 1.0 if number else 0.0
            requests = [
                GenerateRequest(c, max_tokens, stops, temperature=sampled, seed=seed + number) for c in contexts
            ]
            calls += len(requests)
            for example, context, reply in zip(wave, contexts, writer.generate(requests), strict=True):
                trace = reply.text.strip()
                if len(kept) == most:  # generated in the same wave as the last one that was kept
                    rejected.append(Rejected("not needed", trace))
                elif not trace:
                    failed.append(example)
                    rejected.append(no_answer(reply, example.text))
                elif (score := judge(trace, example.output)) < threshold:
                    failed.append(example)
                    rejected.append(Rejected("not accepted by the metric", trace))
                else:
                    solved = Example(example.input, f"{cue} {trace}".strip(), example.task, example.choices)
                    kept.append(writer.stamp(solved, context, [example.id], score=float(score), gold=example.output))
        order = failed
    return AugmentResult("bootstrap", tuple(kept), tuple(rejected), calls)


def with_labeled(result: AugmentResult, train: Sequence[Example], total: int, *, seed: int = 0) -> list[Example]:
    """The traces, then random train examples that have none, up to ``total`` together."""
    traced = {source for e in result.examples for source in _sources(e)}
    rest = [e for e in train if e.id not in traced]
    order = np.random.default_rng(seed).permutation(len(rest))
    return [*result.examples, *(rest[int(i)] for i in order)][:total]


def _sources(example: Example) -> list[str]:
    sources = example.meta.get("generated_from", [])
    return [str(s) for s in sources] if isinstance(sources, list) else []


def _prompt(
    writer: Provenance,
    template: Template,
    example: Example,
    drawn: Sequence[Example],
    shots: int,
    cue: str,
    max_tokens: int,
) -> str:
    others = [d for d in drawn if d.id != example.id][:shots]
    render = writer.lm.render_chat if template.chat else None
    query = Query(example.input, example.choices)
    prompt = assemble(template, query, others, render_chat=render, **writer.settings(max_tokens))
    return prompt.text + (prompt.answer_prefix + cue if cue else "")
