"""More demonstrations for a context that the pool cannot fill: written after real ones, rated, and sieved.

After "Revisiting In-Context Learning with Long Context Language Models", arXiv 2412.16926: write from random real
demonstrations, rate on a five-point Likert scale with several prompts, keep what lies above the median.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from iclkit.augment._result import AugmentResult, Provenance, Rejected, SeenInputs, no_answer
from iclkit.errors import DataError, UsageError
from iclkit.lm import LM, ask_each, ranks_only
from iclkit.prompts import Template, answer_stops, best_option, log_softmax, open_prompt, parse_continuation
from iclkit.records import Example, GenerateRequest, ScoreRequest

RATING_PROMPTS = (
    "How good is this example of the task, from 1 (very bad) to 5 (very good)?\nRating:",
    "Rate how well the output fits the input, from 1 (not at all) to 5 (perfectly).\nRating:",
    "On a scale from 1 to 5, where 5 is best, how useful is this example for learning the task?\nScore:",
    "Is this example correct and natural? Answer with a number from 1 (no) to 5 (yes).\nNumber:",
    "Grade the example above: 1 is poor, 3 is fair, 5 is excellent.\nGrade:",
)
_SCALE = ("1", "2", "3", "4", "5")


def synthesize(
    lm: LM,
    template: Template,
    real: Sequence[Example],
    *,
    count: int = 100,
    shots: int = 8,
    ratings: int = 3,
    labels: Sequence[str] = (),
    avoid: Iterable[str] = (),
    temperature: float = 1.0,
    max_tokens: int = 128,
    seed: int = 0,
    task: str = "",
) -> AugmentResult:
    """Ask for ``count`` new examples, each after its own ``shots`` random real ones, and keep the better half.

    ``ratings`` of RATING_PROMPTS give each a rating (see ``rate_examples``); those above the median are kept (all of
    them when ``ratings`` is 0). Rejected are: no answer, text that cannot be read by the template, outputs that are not
    among ``labels``, inputs of a real example, of another new one, or of ``avoid`` (give it the texts of test and
    validation rows), and examples that are not above the median. ``meta`` adds ``generated_rating``.
    count + 5 * ratings * (examples read) calls, in two rounds of the LM. DataError when there is no real example.
    """
    if count < 0 or shots < 1 or not 0 <= ratings <= len(RATING_PROMPTS):
        raise UsageError(
            f"count is {count}, shots {shots}, ratings {ratings}; give at least 0, 1, and 0 to {len(RATING_PROMPTS)}"
        )
    if not real:
        raise DataError("there is no real example to write new ones after; see auto-icl and labels for an empty pool")
    writer, rng = Provenance("synthesize", lm, seed), np.random.default_rng(seed)
    sources = [[real[int(i)] for i in rng.permutation(len(real))[:shots]] for _ in range(count)]
    contexts = [open_prompt(template, own, **writer.settings(max_tokens)) for own in sources]
    # what is written goes on like the demonstrations, so no stop may stand in one of them; a chat is continued as text
    stops = answer_stops(replace(template, chat=False), [template.render_demo(e) for e in real], one_line=False)
    requests = [
        GenerateRequest(c, max_tokens, stops, temperature=temperature, seed=seed + n) for n, c in enumerate(contexts)
    ]
    taken, fresh, allowed = SeenInputs(e.text for e in real), SeenInputs(avoid), {*labels}
    written, rejected = list[tuple[Example, int]](), list[Rejected]()
    for n, reply in enumerate(writer.generate(requests)):
        if not reply.text.strip():
            rejected.append(no_answer(reply, contexts[n]))
            continue
        blocks = parse_continuation(template, reply.text)
        example = blocks[0].example(task=task) if blocks else None
        if reply.finish == "length" and len(blocks) == 1:
            rejected.append(Rejected("cut off", reply.text))
        elif example is None:
            rejected.append(Rejected("not an example of the template", reply.text))
        elif allowed and example.output not in allowed:
            rejected.append(Rejected("an output that is no label", reply.text))
        elif not taken.add(example.text):
            rejected.append(Rejected("repeats a real or a new input", reply.text))
        elif not fresh.add(example.text):
            rejected.append(Rejected("an input to be avoided", reply.text))
        else:
            written.append((example, n))
    values = rate_examples(lm, template, [e for e, _ in written], prompts=RATING_PROMPTS[:ratings])
    kept = above_median(values) if ratings else np.ones(len(written), np.bool_)
    examples = []
    for (example, n), value, keep in zip(written, values, kept, strict=True):
        if keep:
            more = {"rating": round(float(value), 6)} if ratings else {}
            examples.append(writer.stamp(example, contexts[n], [e.id for e in sources[n]], **more))
        elif np.isnan(value):
            rejected.append(Rejected("not rated: no answer", template.render_demo(example)))
        else:
            rejected.append(Rejected("rated no better than the median", template.render_demo(example)))
    calls = len(requests) + len(_SCALE) * ratings * len(written)
    return AugmentResult("synthesize", tuple(examples), tuple(rejected), calls)


def rate_examples(
    lm: LM, template: Template, examples: Sequence[Example], *, prompts: Sequence[str] = RATING_PROMPTS[:3]
) -> NDArray[np.float64]:
    """(n,) from 1 to 5: the LM's rating, averaged over the prompts that it answers; NaN where it answers none.

    A rating is the mean of the numbers weighted by their probabilities, or the number that was written, by an LM that
    gives no log-probabilities. A prompt that is refused, or whose numbers all score the same, has no answer.
    """
    lead = f"{template.instruction}\n\n" if template.instruction else ""
    requests = [
        ScoreRequest(f"{lead}{template.render_demo(e)}\n\n{prompt}", f" {number}")
        for e in examples
        for prompt in prompts
        for number in _SCALE
    ]
    scores, _ = ask_each(lm.score, requests, [n // len(_SCALE) for n in range(len(requests))])
    logprobs = np.array([scores[n].logprob if n in scores else np.nan for n in range(len(requests))])
    ratings = np.array([_rating(row, ranks_only(lm)) for row in logprobs.reshape(-1, len(_SCALE))])
    ratings = ratings.reshape(len(examples), len(prompts))
    answered = ~np.isnan(ratings)
    total: NDArray[np.float64] = np.where(answered, ratings, 0.0).sum(axis=1)
    return np.where(answered.any(axis=1), total / np.maximum(1, answered.sum(axis=1)), np.nan)


def _rating(logprobs: NDArray[np.float64], ranks: bool) -> float:
    """One prompt's rating by the scores of the five numbers; NaN without an answer."""
    best = None if np.isnan(logprobs).any() else best_option(logprobs.tolist())
    if best is None:
        return float("nan")
    if ranks:
        return float(_SCALE[best])
    return float(np.exp(log_softmax(logprobs)) @ np.arange(1.0, 6.0))


def above_median(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(n,): which values are above the median, compared to 1e-6; never more than half. NaN counts for nothing."""
    rounded = np.round(values, 6)
    known = rounded[~np.isnan(rounded)]
    kept: NDArray[np.bool_] = rounded > np.median(known) if len(known) else np.zeros(len(rounded), np.bool_)
    return kept
