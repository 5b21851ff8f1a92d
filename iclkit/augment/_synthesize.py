"""More demonstrations for a context that the pool cannot fill: written after real ones, rated, and sieved.

After "Revisiting In-Context Learning with Long Context Language Models", arXiv 2412.16926: write from random real
demonstrations, rate on a five-point Likert scale with several prompts, keep what lies above the median.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from iclkit.augment._result import AugmentResult, Provenance, Rejected, SeenInputs
from iclkit.errors import DataError, UsageError
from iclkit.lm import LM
from iclkit.prompts import Template, log_probs, log_softmax, open_prompt, parse_continuation
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

    ``ratings`` of RATING_PROMPTS give each a probability-weighted mean rating; those above the median are kept (all of
    them when ``ratings`` is 0). Rejected are: text that cannot be read by the template, outputs that are not among
    ``labels``, inputs of a real example, of another new one, or of ``avoid`` (give it the texts of test and validation
    rows), and what the median cuts. ``meta`` adds ``generated_rating``. count + 5 * ratings * (what was read) calls, in
    two rounds of the LM. DataError when there is no real example.
    """
    if count < 0 or shots < 1 or not 0 <= ratings <= len(RATING_PROMPTS):
        raise UsageError(
            f"count is {count}, shots {shots}, ratings {ratings}; give at least 0, 1, and 0 to {len(RATING_PROMPTS)}"
        )
    if not real:
        raise DataError("there is no real example to write new ones after; see auto-icl and labels for an empty pool")
    writer, rng = Provenance("synthesise", lm, seed), np.random.default_rng(seed)
    sources = [[real[int(i)] for i in rng.permutation(len(real))[:shots]] for _ in range(count)]
    contexts = [open_prompt(template, own, **writer.settings(max_tokens)) for own in sources]
    requests = [
        GenerateRequest(c, max_tokens, template.stop_strings, temperature=temperature, seed=seed + n)
        for n, c in enumerate(contexts)
    ]
    taken, fresh, allowed = SeenInputs(e.text for e in real), SeenInputs(avoid), {*labels}
    written, rejected = list[tuple[Example, int]](), list[Rejected]()
    for n, reply in enumerate(lm.generate(requests)):
        blocks = parse_continuation(template, reply.text)
        example = blocks[0].example(task=task) if blocks else None
        if reply.finish == "length" and len(blocks) == 1:
            rejected.append(Rejected("cut off", reply.text))
        elif example is None:
            rejected.append(Rejected("not an example of the template", reply.text))
        elif allowed and example.output not in allowed:
            rejected.append(Rejected("an output that is no label", reply.text))
        elif not taken.take(example.text):
            rejected.append(Rejected("repeats a real or a new input", reply.text))
        elif not fresh.take(example.text):
            rejected.append(Rejected("an input to be avoided", reply.text))
        else:
            written.append((example, n))
    values = rate_examples(lm, template, [e for e, _ in written], prompts=RATING_PROMPTS[:ratings])
    kept = above_median(values) if ratings else np.ones(len(written), np.bool_)
    examples = []
    for (example, n), value, keep in zip(written, values, kept, strict=True):
        if keep:
            more = {"rating": round(float(value), 6)} if ratings else {}
            examples.append(writer.signed(example, contexts[n], [e.id for e in sources[n]], **more))
        else:
            rejected.append(Rejected("rated no better than the median", template.render_demo(example)))
    calls = len(requests) + len(_SCALE) * ratings * len(written)
    return AugmentResult("synthesise", tuple(examples), tuple(rejected), calls)


def rate_examples(
    lm: LM, template: Template, examples: Sequence[Example], *, prompts: Sequence[str] = RATING_PROMPTS[:3]
) -> NDArray[np.float64]:
    """(n,) from 1 to 5: mean over the prompts of the LM's rating, each number weighted by its probability."""
    if not prompts:
        return np.full(len(examples), np.nan)
    lead = f"{template.instruction}\n\n" if template.instruction else ""
    requests = [
        ScoreRequest(f"{lead}{template.render_demo(e)}\n\n{prompt}", f" {number}")
        for e in examples
        for prompt in prompts
        for number in _SCALE
    ]
    logprobs = log_probs(lm.score(requests)).reshape(len(examples), len(prompts), len(_SCALE))
    p = np.exp(log_softmax(logprobs))
    means: NDArray[np.float64] = (p @ np.arange(1.0, 6.0)).mean(axis=1)
    return means


def above_median(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(n,): which values are above the median, compared to 1e-6; never more than half."""
    rounded = np.round(values, 6)
    kept: NDArray[np.bool_] = rounded > np.median(rounded) if len(rounded) else np.zeros(0, np.bool_)
    return kept
