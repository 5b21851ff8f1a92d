"""What a training needs: checked before the first prompt is scored and the first file is written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from iclkit import models
from iclkit.errors import DataError, NeedError, UnknownName, UsageError
from iclkit.extras import install_command
from iclkit.lm import LM, ranks_only
from iclkit.selectors import make_selector
from iclkit.trainers._assumed import Assumed, is_absent
from iclkit.trainers._config import TrainConfig, sources
from iclkit.trainers._llm_r import LLMRConfig, reward_query_text
from iclkit.trainers._method import Method, Session, some_of

_ASIDE = 1 << 26  # bytes of the disk that are left for ledger, cards and logs


@dataclass(frozen=True, slots=True)
class Disk:
    """The bytes that a training takes of the disk, ``peak`` at a time and ``written`` in all. Both are upper bounds."""

    peak: int
    written: int

    def __str__(self) -> str:
        return f"at most {in_words(self.peak)} at a time, {in_words(self.written)} written in all"


def in_words(size: int) -> str:
    """A number of bytes for people.

    >>> in_words(880_000_000), in_words(35_200_000_000), in_words(10_000)
    ('880 MB', '35.2 GB', '0.01 MB')
    """
    if size >= 1e9:
        return f"{size / 1e9:,.1f} GB"
    return f"{size / 1e6:,.0f} MB" if size >= 1e6 else f"{size / 1e6:.2f} MB"


def check_extra() -> None:
    """NeedError unless the extra that the sentence-transformers trainers need is installed."""
    if any(find_spec(name) is None for name in ("datasets", "accelerate")):
        raise NeedError(f"training needs the extra iclkit[train]; install it with: {install_command('train')}")


def check_settings(config: TrainConfig, lm: LM, tracker: str = "none") -> None:
    """Check the settings, the LM and the tracker, without a look at data or models."""
    check_extra()
    if ranks_only(lm):
        raise UsageError(
            f"{lm.name} tells no log-probabilities (scoring generate), and a retriever learns from those; give another "
            f"server or a local model, or scores made elsewhere with --import-scores and the LM that made them"
        )
    for source in sources(config.candidates):
        needs = make_selector(source.spec).needs
        if needs.lm or needs.reranker:
            what = "an LM" if needs.lm else "a reranker"
            raise UsageError(
                f"candidates has {source.spec!r}, which needs {what}; candidates are found without one, e.g. by bm25, "
                f"knn, mmr or random"
            )
    if tracker != "none":
        _check_tracker(tracker)


def check_data(s: Session[Any], method: Method[Any]) -> None:
    """Check that every query has an answer that can be scored, and that there is enough to learn from.

    DataError names the example or the task.
    """
    for task in s.corpus.tasks:
        rows = [s.corpus.examples[int(r)] for r in (*task.queries, *task.held_out)]
        for example in (*rows, *task.report):
            if not task.template.answer(example.output, example.choices).strip():
                raise DataError(
                    f"task {task.name!r}, example {example.id}: the output is empty, and there is nothing to score; "
                    f"fix or remove the example"
                )
            s.feedback.options(task, example)
    method.check(s)


def check_models(
    s: Session[Any], method: Method[Any], base: str, note: Callable[[str], None], assumed: Assumed | None = None
) -> Disk:
    """Load the models that will be trained and make the trainers' arguments; returns what the training takes of the
    disk. ``note`` is told what they will not read whole. ``assumed``: take the sizes of models that are not here by
    their names, and note what was assumed."""
    from iclkit.trainers._fit import KEPT, common_arguments, load_encoder
    from iclkit.trainers._reward import load_reward

    peak = written = models_kept = 0
    for config in method.stages(s):
        size = _encoder_size(config, base, assumed)
        checkpoint = size * (4 if config.keep == "best" else 3)  # weights, two moments of each, the best weights
        runs = config.iterations * len(method.variants(s)) if config is s.config else 1
        peak = max(peak, (KEPT + 1) * checkpoint)  # the new one stands beside those that are kept
        written += runs * (config.checkpoints * checkpoint + size)
        models_kept += runs * size
        _check_arguments(config, s.tracker, common_arguments(config, s.work, 1, s.tracker))
    if isinstance(s.config, LLMRConfig):
        if assumed is not None and is_absent(s.config.reward_base):
            size = 4 * assumed.parameters(s.config.reward_base)
        else:
            judge = load_reward(s.config, models.resolve(s.config.reward_base, "embedder"))
            size = _size(judge)
            for line in _cut_pairs(s, judge):
                note(line)
        peak = max(peak, (KEPT + 1) * 3 * size)
        written += s.config.iterations * s.config.checkpoints * 3 * size
    if assumed is not None and is_absent(base):
        size = _encoder_size(s.config, base, assumed)
    else:
        model = load_encoder(s.config, base)
        size = _size(model)
        for line in _cut_notes(s, method, model):
            note(line)
    return Disk(peak + models_kept + size, written + size)  # the finished folder is a copy


def _cut_notes(s: Session[Any], method: Method[Any], model: Any) -> Iterator[str]:
    """What of the texts the encoder will not read, a line for each kind of text."""
    from iclkit.embed import cuts_of, lengths_of

    for what, side, texts in method.texts(s):
        front = model.prompts.get(side) or ""
        cuts = cuts_of(model, side).look([front + text for text in texts], partial(lengths_of, model, side))
        if not cuts:
            continue
        own = cuts.limit < s.config.max_tokens
        whose = "all that the base takes" if own else f"max_tokens={s.config.max_tokens}"
        remedy = "a base that takes more" if own else f"--set max_tokens={cuts.longest}, or as many as the base takes,"
        yield (
            f"of {len(texts):,} {what} {len(cuts):,} are longer than {cuts.limit:,} tokens ({whose}; the longest: "
            f"{cuts.longest:,}), and the rest is ignored; {remedy} reads more"
        )


def _cut_pairs(s: Session[LLMRConfig], model: Any) -> Iterator[str]:
    """The same for the pairs that LLM-R's reward model reads: of each query with the demonstration of another."""
    from iclkit.embed import CutTexts

    rows = some_of([int(r) for task in s.corpus.tasks for r in task.queries])
    pairs = {f"{q}\0{d}": (q, d) for q, d in zip(
        map(partial(reward_query_text, s), rows), map(s.document_text, [*rows[1:], *rows[:1]]), strict=True
    )}  # fmt: skip

    def lengths(keys: list[str]) -> list[int]:
        questions, documents = zip(*(pairs[key] for key in keys), strict=True)
        return [*map(len, model.tokenizer([*questions], [*documents], verbose=False)["input_ids"])]

    cuts = CutTexts(model.max_seq_length or 0).look([*pairs], lengths)
    if cuts:
        yield (
            f"of {len(pairs):,} pairs of a query and a random demonstration {len(cuts):,} are longer than the "
            f"{cuts.limit:,} tokens of the reward model (the longest: {cuts.longest:,}), and the rest is ignored"
        )


def check_place(work: Path, disk: Disk) -> None:
    """DataError where no folder can be made, or the disk has not what a training takes."""
    place = work
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        raise DataError(f"cannot work in {work} ({place} is a file); give another --out")
    if not os.access(place, os.W_OK | os.X_OK):
        raise DataError(f"cannot work in {work} ({place} is not writable); give another --out")
    free = shutil.disk_usage(place).free
    there = sum(p.stat().st_size for p in work.rglob("*") if p.is_file()) if work.is_dir() else 0
    if free + there < disk.peak + _ASIDE:
        raise DataError(
            f"the disk of {work} has {in_words(free)} free, and the training takes {disk}; free space, give another "
            f"--out, or a smaller base"
        )


def _encoder_size(config: TrainConfig, base: str, assumed: Assumed | None) -> int:
    """Bytes of the weights of the encoder that is trained."""
    from iclkit.trainers._fit import load_encoder

    if assumed is not None and is_absent(base):
        return 4 * config.towers * assumed.parameters(base)
    return _size(load_encoder(config, base))


def _size(model: Any) -> int:
    """Bytes of a model's weights."""
    return sum(int(value.numel() * value.element_size()) for value in model.state_dict().values())


def _check_arguments(config: TrainConfig, tracker: str, arguments: dict[str, Any]) -> None:
    """UsageError for settings that the trainer refuses on this machine, such as fp16 on a CPU."""
    import torch
    from sentence_transformers import SentenceTransformerTrainingArguments

    if config.dtype == "fp16" and not torch.cuda.is_available():
        raise UsageError("dtype=fp16 needs a GPU; set dtype=bf16 or dtype=fp32")
    try:
        SentenceTransformerTrainingArguments(**arguments)
    except (ValueError, ImportError) as error:
        raise UsageError(
            f"dtype={config.dtype} with tracker {tracker} cannot be trained with here: "
            f"{' '.join(str(error).split())[:200]}"
        ) from error


def _check_tracker(tracker: str) -> None:
    from transformers.integrations.integration_utils import (
        INTEGRATION_TO_CALLBACK,
        get_reporting_integration_callbacks,
    )

    if tracker not in INTEGRATION_TO_CALLBACK:
        raise UnknownName("tracker", tracker, ["none", *INTEGRATION_TO_CALLBACK])
    try:
        for callback in get_reporting_integration_callbacks([tracker]):
            callback()
    except (RuntimeError, ImportError) as error:
        raise NeedError(f"tracker {tracker} cannot be used ({' '.join(str(error).split())[:160]})") from error
