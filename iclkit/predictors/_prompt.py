"""An LM with a selector and a template."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Self

import numpy as np

from iclkit.datasets import sample_rows
from iclkit.errors import DataError, UsageError
from iclkit.lm import LM, ranks_only
from iclkit.predictors._calibrate import (
    CALIBRATIONS,
    OVER_ROWS,
    Floats,
    check_prior,
    content_free_inputs,
    content_free_query,
    divide_by_prior,
    label_shares,
    mean_prior,
)
from iclkit.predictors._protocol import Prediction, TaskContext, largest_texts
from iclkit.predictors._read import Question, Reading, read_options, read_texts
from iclkit.predictors._stages import (
    Failures,
    PromptInput,
    Shape,
    assemble_prompt,
    content_free_inputs_of,
    demonstrations_of,
    leave_one_out,
    select,
)
from iclkit.predictors._tools import Tools
from iclkit.prompts import (
    NORMALIZATIONS,
    ORDERS,
    Template,
    answer_options,
    answer_stops,
    best_option,
    log_probs,
)
from iclkit.records import CostEstimate, Generation, Json, ModelName, Prompt, Query, Selection, Spec
from iclkit.selectors import SELECTORS, Needs, Selector, make_selector, selector_info

NO_ANSWER = "no answer: the LM wrote nothing, or nothing that names an option"
CUT = "the answer ended by length, after"
"""How the notes of a row begin whose answer is none, or was cut; every other note is the selector's."""
PROMPT_VERSION = 1  # raised when the same parts give other answers
POOL_ROWS = 100  # rows of the pool that the prior of ``pool`` calibration is taken over
_SIZED = 8  # prompts that are made to estimate the size of all
_LEAST_ROOM = 16  # tokens that an answer has beyond those that the longest one shown would need, and a quarter of these
_REASONING = 256  # tokens for an answer that may be reasoned out, however short the answers that are shown


@dataclass(frozen=True, slots=True)
class Settings:
    """How an LM is prompted; all of it is part of a run's identity.

    ``budget`` in tokens for prompt and answer (None: the LM's context). ``normalize``: ``sum`` compares labels by their
    summed log-probability, ``mean`` by that divided by the label's tokens. ``calibrate``: see ``CALIBRATIONS``;
    ``prior``: probability of each label, for the calibration ``given``, as a mapping or as (label, probability) pairs,
    which are kept sorted. ``answer_tokens`` and ``stop`` bound an answer that is written (None: see ``answer_bounds``).
    """

    k: int = 8
    seed: int = 0
    order: str = "best-last"
    budget: int | None = None
    normalize: str = "sum"
    calibrate: str = "none"
    prior: Mapping[str, float] | tuple[tuple[str, float], ...] | None = ()
    answer_tokens: int | None = None
    stop: Sequence[str] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "prior", tuple(sorted(dict(self.prior or ()).items())))
        object.__setattr__(self, "stop", None if self.stop is None else tuple(self.stop))
        if self.k < 0:
            raise UsageError(f"k is {self.k}; give 0 or more")
        if self.calibrate not in CALIBRATIONS:
            raise UsageError(f"calibrate is {self.calibrate!r}; choose from {', '.join(CALIBRATIONS)}")
        if self.normalize not in NORMALIZATIONS:
            raise UsageError(f"normalize is {self.normalize!r}; choose from {', '.join(NORMALIZATIONS)}")
        if (self.calibrate == "given") != bool(self.prior):
            raise UsageError(
                "the calibration 'given' needs a prior, a probability for each label"
                if self.calibrate == "given"
                else f"a prior is for the calibration 'given', and calibrate is {self.calibrate!r}"
            )
        if self.answer_tokens is not None and self.answer_tokens < 1:
            raise UsageError(f"answer_tokens is {self.answer_tokens}; it must be at least 1")
        if self.stop and "" in self.stop:
            raise UsageError("a stop string is empty; give some text")
        ORDERS.get(self.order)

    @property
    def given_prior(self) -> dict[str, float]:
        """``prior`` by label."""
        return dict(self.prior or ())


@dataclass(frozen=True, slots=True)
class AnswerBounds:
    """Where a written answer ends: at one of ``stops``, or after so many ``tokens``."""

    tokens: int
    stops: tuple[str, ...]


def answer_bounds(context: TaskContext, template: Template, lm: LM, settings: Settings) -> AnswerBounds:
    """Where the written answers of a run end, unless the settings or the task say it.

    Tokens: what the longest output that may be shown takes, and a quarter and 16 more; at least 256 for a reasoning
    task, whose answers may be short where the way to them is not; at most half of what the LM reads. Stops: see
    ``iclkit.prompts.answer_stops``; a reasoning may take several lines.
    """
    reasons = context.kind == "reasoning"
    stops = settings.stop
    if stops is None:
        stops = answer_stops(template, context.outputs, one_line=not reasons)
    tokens = settings.answer_tokens or context.answer_tokens
    if tokens is None:
        longest = most_tokens(context.largest_outputs, lm)
        wanted = max(_LEAST_ROOM + math.ceil(1.25 * longest), _REASONING if reasons else 0)
        tokens = max(1, min(wanted, (settings.budget or lm.context_size) // 2))
    return AnswerBounds(tokens, tuple(stops))


def most_tokens(texts: Iterable[str], lm: LM) -> int:
    """Tokens of the text that has the most, found among those with the most bytes; 0 for no texts."""
    return max((lm.count_tokens(text) for text in largest_texts(texts)), default=0)


def display_name(spec: Spec) -> str:
    """A selector's spec without the settings that are its defaults."""
    if spec.name not in SELECTORS.names():
        return str(spec)
    defaults: Any = selector_info(SELECTORS.get(spec.name))["settings"]
    return str(Spec(spec.name, {k: v for k, v in spec.settings.items() if k not in defaults or defaults[k] != v}))


@dataclass(eq=False)
class PromptPredictor:
    """An LM that answers prompts with the demonstrations of a selector.

    A batch goes through stages, each in one place: select, shape, assemble, read, combine with the content-free prompts
    (``answer_of``); ``finish`` calibrates over all rows. ``template`` None: the task's, or the selector's own words.
    ``shapes`` change what is shown, in their order. Without demonstrations (k = 0, selector ``zero``) seed and order
    mean nothing, and all such predictors are one.
    """

    selector: Selector
    tools: Tools
    settings: Settings = field(default_factory=Settings)
    template: Template | None = None
    shapes: tuple[Shape, ...] = ()

    def __post_init__(self) -> None:
        self.selector = make_selector(self.selector)  # completes a foreign object
        if self.settings.k == 0 or self.selector.spec.name == "zero":
            self.settings = replace(self.settings, k=0, seed=0, order="best-last")
        self._context: TaskContext | None = None

    # -- what it is ----------------------------------------------------------------------------------------------

    @property
    def spec(self) -> Spec:
        """A prompt; what it is made of stands in ``parts``."""
        return Spec("prompt", {}, PROMPT_VERSION)

    @property
    def needs(self) -> Needs:
        """The selector's, and an LM."""
        return replace(self.selector.needs, lm=True)

    @property
    def lm(self) -> LM:
        """The LM. NeedError when there is none."""
        self.tools.check(Needs(lm=True), "a prompt")
        assert self.tools.lm is not None
        return self.tools.lm

    @property
    def context(self) -> TaskContext:
        """The task. DataError before ``fit``."""
        if self._context is None:
            raise DataError("this predictor has not seen a task yet; call fit(context) first")
        return self._context

    @property
    def shown_template(self) -> Template:
        """The template that prompts are made with."""
        template = self.selector.template_for(self.template or self.context.template)
        return template.with_labels(self.context.labels, self.context.fields)

    @property
    def parts(self) -> dict[str, Json]:
        """Selector, models, template and settings."""
        s = self.settings
        parts: dict[str, Any] = {
            "selector": self.selector.spec.identity(),
            "lm": ModelName(self.lm.name, self.lm.fingerprint).identity(),
            **self.tools.identities(self.selector.needs, self.context),
            "template": self._template.identity(),
            "k": s.k,
            "seed": s.seed,
            "order": s.order,
            "budget": s.budget,
            "normalize": s.normalize,
            "calibrate": s.calibrate,
        }
        if s.calibrate in OVER_ROWS:
            of_pool = {"pool rows": min(POOL_ROWS, len(self.context.view))}
            parts["prior"] = {"given": s.given_prior, "batch": "all rows", "pool": of_pool}[s.calibrate]
        if self.context.writes:
            parts |= {"answer_tokens": self.bounds.tokens, "stop": list(self.bounds.stops)}
        if self.shapes:
            parts["shapes"] = [str(shape.spec) for shape in self.shapes]
        return parts

    @property
    def facts(self) -> dict[str, Json]:
        """Its name on a board, whether its retriever has learnt from this task, and the prior over all rows."""
        name = display_name(self.selector.spec)
        shapes = "".join(f" + {shape.spec}" for shape in self.shapes)
        facts: dict[str, Json] = {"selector": name + shapes, "trained on": self._trained_on_task}
        return facts | ({"prior": self._prior} if self._prior else {})

    @property
    def usage(self) -> Mapping[str, float]:
        """Seconds of each stage, and what the LM was asked."""
        return self._usage

    @property
    def _trained_on_task(self) -> bool:
        embedder = self.tools.embedder
        return self.selector.needs.embedder and embedder is not None and self.context.name in embedder.trained_on

    # -- fit ----------------------------------------------------------------------------------------------------

    def fit(self, context: TaskContext) -> Self:
        """Get to know a task; the selector is fitted with the first query. UsageError for settings that do not fit."""
        self._context, self._fitted = context, False
        self._usage: dict[str, float] = {}
        self._prior: dict[str, Json] = {}
        self._template = self.shown_template
        for name in ("bounds", "_reserve", "_content_free"):
            self.__dict__.pop(name, None)
        self._check_calibration()
        return self

    def _check_calibration(self) -> None:
        calibrate, context = self.settings.calibrate, self.context
        if calibrate != "none" and context.writes:
            raise UsageError(f"task {context.name!r} has no labels to calibrate; leave --calibrate out")
        if calibrate in OVER_ROWS and context.kind == "multiple_choice":
            raise UsageError(f"{calibrate} calibration needs one label set for all queries; use contextual or domain")
        lm, plain = self.tools.lm, (calibrate, self.settings.normalize) == ("none", "sum")
        if lm is not None and ranks_only(lm) and not context.writes and not plain:
            what = f"calibrate {calibrate}" if calibrate != "none" else "normalize mean"
            raise UsageError(
                f"{lm.name} tells no log-probabilities: its answers are compared with the labels, and such ranks "
                f"cannot be averaged or calibrated; leave {what!r} out"
            )
        if calibrate == "given":
            check_prior(self.settings.given_prior, context.labels)

    @cached_property
    def bounds(self) -> AnswerBounds:
        """Where a written answer ends."""
        return answer_bounds(self.context, self._template, self.lm, self.settings)

    @cached_property
    def _reserve(self) -> int:
        """Tokens that are kept for the answer."""
        if self.tools.lm is None:
            return 0
        return self.bounds.tokens if self.context.writes else most_tokens(self.context.answers, self.lm)

    @cached_property
    def _content_free(self) -> tuple[str, ...]:
        return content_free_inputs(self.settings.calibrate, self.context.view.examples, self.settings.seed)

    def fitted_selector(self) -> Selector:
        """The selector, fitted to the task's pool; asks no LM."""
        if not self._fitted:
            s = self.settings
            kit = self.tools.kit(
                self.context, template=self._template, seed=s.seed, order=s.order, reserve=self._reserve
            )
            self.selector.fit(self.context.view, kit)
            self._fitted = True
        return self.selector

    def cost(self, queries: Sequence[Query]) -> CostEstimate:
        """Each prompt has the mean size of a few, and is read once however many labels are scored after it."""
        context, blanks = self.context, len(self._content_free)
        of_pool = min(POOL_ROWS, len(context.view)) if self.settings.calibrate == "pool" else 0
        prompts = len(queries) * (1 + blanks) + of_pool
        answers = [1 if context.writes else len(set(answer_options(query, context.labels))) for query in queries]
        requests = sum(answers) * (1 + blanks) + of_pool * len(context.labels)
        mean = self.mean_tokens(queries) if prompts else 0.0
        return CostEstimate(
            requests=requests,
            prompts=prompts,
            calls=requests,
            tokens_asked=round(mean * requests),
            tokens_computed=round(mean * prompts),
            tokens_generated=prompts * self.bounds.tokens if context.writes else 0,
            seconds=None,
        )

    def mean_tokens(self, queries: Sequence[Query]) -> float:
        """Mean tokens of a prompt, from a few of the queries with evenly spaced examples of the pool; 0 where none of
        them has a prompt."""
        s, examples = self.settings, self.context.view.examples
        queries = queries[:: max(1, len(queries) // _SIZED)][:_SIZED]
        limit = s.budget or self.lm.context_size
        key = (self._template, self.lm.fingerprint, s.k, limit, self._reserve, tuple(query.id for query in queries))
        known = self.context.prompt_sizes
        if key not in known:
            sizes = []
            for n, query in enumerate(queries):
                shown = [examples[(n + i * max(1, len(examples) // max(1, s.k))) % len(examples)] for i in range(s.k)]
                with suppress(DataError):  # a query that fits no prompt costs nothing; its run will say so
                    sizes.append(self._prompt(PromptInput(query, tuple(dict.fromkeys(shown)))).tokens)
            known[key] = sum(sizes) / max(1, len(sizes))
        return known[key]

    # -- predict ------------------------------------------------------------------------------------------------

    def predict(self, queries: Sequence[Query]) -> list[Prediction]:
        """Select, shape, assemble, read and answer, all queries of a stage together."""
        failures = Failures()
        with self._timed("select"):
            selections = self._select(queries, failures)
        with self._timed("assemble"):
            inputs = self._shape(selections, failures)
            prompts = self._assemble(inputs, failures)
        with self._timed("score"):
            ask = self._write if self.context.writes else self._score
            answers = ask(inputs, prompts, failures)
        return [
            replace(
                answers.get(at, Prediction(query.id)),
                selection=selection,
                prompt=prompts.get(at),
                failure=failures.get(at, ""),
            )
            for at, (query, selection) in enumerate(zip(queries, selections, strict=True))
        ]

    def prompts(self, queries: Sequence[Query]) -> list[Prompt]:
        """What the LM is sent for each query, without asking it. DataError for a query that has no prompt.

        Without an LM there is no budget, so that every demonstration is shown, and a chat is its messages.
        """
        failures = Failures()
        prompts = self._assemble(self._shape(self._select(queries, failures), failures), failures)
        if failures:
            raise DataError(next(iter(failures.values())))
        return [prompts[at] for at in range(len(queries))]

    def _select(self, queries: Sequence[Query], failures: Failures) -> list[Selection]:
        return select(self.fitted_selector(), queries, self.settings.k, failures)

    def _shape(self, selections: Sequence[Selection], failures: Failures) -> dict[int, PromptInput]:
        inputs: dict[int, PromptInput] = {}
        for at, selection in enumerate(selections):
            if at not in failures:
                with failures.of(at):
                    inputs[at] = demonstrations_of(selection, self.context.view)
        for shape in self.shapes:
            inputs = dict(zip(inputs, shape([*inputs.values()]), strict=True))
        return inputs

    def _assemble(self, inputs: Mapping[int, PromptInput], failures: Failures) -> dict[int, Prompt]:
        prompts: dict[int, Prompt] = {}
        for at, shown in inputs.items():
            with failures.of(at):
                prompts[at] = self._prompt(shown)
        return prompts

    def _prompt(self, shown: PromptInput) -> Prompt:
        s = self.settings
        return assemble_prompt(
            shown, self._template, self.tools.lm, order=s.order, seed=s.seed, budget=s.budget, reserve=self._reserve
        )

    def _score(
        self, inputs: Mapping[int, PromptInput], prompts: Mapping[int, Prompt], failures: Failures
    ) -> dict[int, Prediction]:
        questions: dict[int, Question] = {}
        for at, prompt in prompts.items():
            with failures.of(at):
                questions[at] = self._question(inputs[at], prompt)
        readings = read_options(self.lm, self._template, questions, failures)
        return {at: self._answer_of(inputs[at].query.id, reading) for at, reading in readings.items()}

    def _question(self, shown: PromptInput, prompt: Prompt) -> Question:
        query = shown.query
        options = answer_options(query, self.context.labels)
        if not options:
            raise DataError(f"query {query.id} of {self.context.name!r} has no choices to score")
        blanks = content_free_inputs_of(shown, prompt, [content_free_query(query, text) for text in self._content_free])
        return Question(prompt, options, query.choices, tuple(map(self._prompt, blanks)))

    def _answer_of(self, query_id: str, reading: Reading) -> Prediction:
        s = self.settings
        over_rows = s.normalize == "mean" and s.calibrate in OVER_ROWS
        return answer_of(query_id, reading, s.normalize, ranks=ranks_only(self.lm), keep_tokens=over_rows)

    def _write(
        self, inputs: Mapping[int, PromptInput], prompts: Mapping[int, Prompt], failures: Failures
    ) -> dict[int, Prediction]:
        bounds, query_ids = self.bounds, {at: shown.query.id for at, shown in inputs.items()}
        texts = read_texts(self.lm, prompts, bounds.tokens, bounds.stops, failures)
        return {at: written_answer(query_ids[at], text, bounds.tokens) for at, text in texts.items()}

    # -- finish --------------------------------------------------------------------------------------------------

    @property
    def finishes(self) -> bool:
        """Whether the calibration has one prior for all rows."""
        return self.settings.calibrate in OVER_ROWS

    def finish(self, predictions: Sequence[Prediction]) -> list[Prediction]:
        """Divide all label scores by the prior of the run; as they are where fewer than two queries tell one."""
        scored = [p for p in predictions if p.logprobs]
        if not self.finishes or not scored:
            return [*predictions]
        log_prior = self._log_prior(scored)
        if log_prior is None:
            return [*predictions]
        labels = self.context.labels
        self._prior = {label: float(p) for label, p in zip(labels, np.exp(log_prior), strict=True)}
        return [self._calibrated(p, log_prior) if p.logprobs else p for p in predictions]

    def _log_prior(self, predictions: Sequence[Prediction]) -> Floats | None:
        """(L,) log prior over the labels in the task's order; None where one query alone would tell it, after which
        all labels come out alike."""
        if self.settings.calibrate == "given":
            given = self.settings.given_prior
            return np.asarray(np.log([given[label] for label in self.context.labels]))
        told = self._of_pool_rows() if self.settings.calibrate == "pool" else predictions
        scores = [self._judged(p) for p in told if p.logprobs]
        scores = [of_query for of_query in scores if best_option([*of_query]) is not None]
        return mean_prior(np.stack(scores)) if len(scores) > 1 else None

    def _of_pool_rows(self) -> list[Prediction]:
        """Some rows of the pool, asked as the queries are, never seeing themselves."""
        view = self.context.view
        return self.predict(leave_one_out(view, sample_rows(view.examples, POOL_ROWS, seed=self.settings.seed)))

    def _judged(self, prediction: Prediction) -> Floats:
        """(L,) scores of the labels in the task's order, after normalization."""
        return np.array([prediction.logprobs[name] / prediction.tokens.get(name, 1) for name in self.context.labels])

    def _calibrated(self, prediction: Prediction, log_prior: Floats) -> Prediction:
        labels, scores = self.context.labels, self._judged(prediction)
        best = best_option(scores.tolist())
        if best is None:
            return prediction
        shares = divide_by_prior(scores, log_prior)
        output = labels[int(np.argmax(shares))]
        return replace(prediction, output=output, raw=labels[best], shares=_by_label(labels, shares))

    # -- cost ---------------------------------------------------------------------------------------------------

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        before = self.lm.usage
        start = time.perf_counter()
        try:
            yield
        finally:  # what was answered before a stop was paid for
            self._add(f"{stage}_s", time.perf_counter() - start)
            for key, value in (self.lm.usage - before).as_dict().items():
                self._add("lm_s" if key == "seconds" else key, value)

    def _add(self, key: str, value: float) -> None:
        self._usage[key] = round(self._usage.get(key, 0) + value, 9 if key == "cost" else 6)


def answer_of(query_id: str, reading: Reading, normalize: str, *, ranks: bool, keep_tokens: bool) -> Prediction:
    """The answer that scores give, combined with those after content-free prompts. Ties go to the first option.

    ``ranks``: the scores only rank the options, and are kept no further. ``keep_tokens``: a later step divides by the
    tokens of each option.
    """
    options, scores = reading.options, reading.scores
    sets = np.stack([log_probs(one, normalize) for one in (scores, *reading.content_free)])
    greedy = tuple(option for option, score in zip(options, scores, strict=True) if score.greedy)
    logprobs = {} if ranks else _by_label(options, log_probs(scores))
    best = best_option(sets[0].tolist())
    if best is None:
        return Prediction(query_id, logprobs=logprobs, greedy=greedy, notes=(NO_ANSWER,))
    shares = label_shares(sets)
    output, raw = options[int(np.argmax(shares))], options[best]
    if ranks:
        return Prediction(query_id, output, raw, greedy=greedy)
    tokens = {option: max(1, score.tokens) for option, score in zip(options, scores, strict=True)}
    return Prediction(
        query_id, output, raw, logprobs, _by_label(options, shares), greedy, tokens if keep_tokens else {}
    )


def written_answer(query_id: str, generation: Generation, max_tokens: int) -> Prediction:
    """The answer that an LM wrote, with a note where it is none or was cut."""
    text = generation.text.strip()
    cut = (f"{CUT} {max_tokens} tokens",) if generation.finish == "length" else ()
    return Prediction(query_id, text, text, notes=(*cut, *(() if text else (NO_ANSWER,))))


def _by_label(labels: Sequence[str], values: Floats) -> dict[str, float]:
    return {label: float(value) for label, value in zip(labels, values, strict=True)}
