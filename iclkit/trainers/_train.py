"""The pipeline: mine, score, train, report, save; every step resumes where a killed one stopped."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from iclkit import models
from iclkit.embed import CARD, Embedder, RetrieverFormat, load_embedder
from iclkit.errors import DataError, RunError, UsageError
from iclkit.files import read_json, replace_file, try_lock
from iclkit.lm import LM, as_lm
from iclkit.records import CostEstimate, Progress, ScoreRequest, digest
from iclkit.trainers._assumed import Assumed, is_absent
from iclkit.trainers._config import TrainConfig
from iclkit.trainers._data import TaskData, TrainingData
from iclkit.trainers._feedback import Feedback, FeedbackPrompt
from iclkit.trainers._ledger import Ledger
from iclkit.trainers._method import Session, checkpoint_retriever
from iclkit.trainers._mine import Miner
from iclkit.trainers._prepare import Disk, check_data, check_models, check_place, check_settings
from iclkit.trainers._processes import processes
from iclkit.trainers._registry import make_method
from iclkit.trainers._report import SelectorSetup, TaskReport, report_on, report_prompts
from iclkit.trainers._whole import SEAL, drop, is_whole

_NOTE = "training.json"
_FACTS = {"iteration", "before", "steps", "judged", "kept", "best", "loss"}
"""What is stored of a trained iteration."""
_INSTRUCTED = {"none": (), "both": ("query", "document"), "document": ("document",)}


@dataclass(frozen=True)
class Trained:
    """A finished training: its folder, its card, and the report of each task."""

    folder: Path
    card: Mapping[str, Any]
    reports: tuple[TaskReport, ...]


class Training:
    """One training: ``estimate`` and ``disk`` give its cost, ``score`` has the LM score prompts, ``run`` does all.

    Work is kept in ``OUT.work`` beside ``out``: the ledger (or ``ledger``, which trainings may share), checkpoints and
    models of iterations. The same call again goes on where the last one stopped. ``dry``: for the estimate or for a
    look at the scores; no file is written, and new scores are forgotten.

    Nothing is opened before ``prepare``, which the methods call themselves; ``close`` (or a ``with`` block) closes the
    ledger.
    """

    def __init__(
        self,
        corpus: TrainingData,
        lm: LM,
        out: Path,
        config: TrainConfig,
        *,
        ledger: Path | None = None,
        restart: bool = False,
        dry: bool = False,
        tracker: str = "none",
        say: Callable[[str], None] = lambda text: None,  # noqa: ARG005
        bar: Callable[[str], Progress | None] = lambda title: None,  # noqa: ARG005
    ) -> None:
        self.corpus, self.lm, self.out, self.config = corpus, as_lm(lm), out, config
        self.say, self.method = say, make_method(config)
        self.work = _beside(out, ".work")
        self._ledger_file = ledger or self.work / "ledger.db"
        self._restart, self._dry, self._tracker, self._bar = restart, dry, tracker, bar
        self._noted = set[str]()
        self._assumed = Assumed()
        self._estimate: CostEstimate | None = None
        self._session: Session[Any] | None = None

    @property
    def session(self) -> Session[Any]:
        """Data, feedback and settings of the prepared training."""
        assert self._session is not None, "call prepare() first"
        return self._session

    @property
    def assumed(self) -> list[str]:
        """What a dry run has assumed about models that are not here, a line each."""
        return self._assumed.notes

    @models.without_bars()
    def prepare(self) -> Self:
        """Check all that the training needs, then open its work folder and ledger. Once prepared, it does nothing.

        Before any prompt is scored or file written it raises: DataError when ``out`` holds something else, no file can
        be made there or the disk is too full, and for data that nothing can be learned from; UsageError when the work
        was begun with other settings and ``restart`` is not given, and for settings or an LM that cannot be trained
        with; NeedError without the extra or the tracker that is asked for; ModelError for a base model that cannot be
        trained.
        """
        if self._session is not None:
            return self
        check_settings(self.config, self.lm, self._tracker)
        assumed = self._assumed if self._dry else None
        if assumed is not None and is_absent(self.config.base):
            self.base: Embedder = assumed.embedder(self.config.base)
        else:
            self.base = load_embedder(self.config.base, dtype="fp32")
        self.key, *self._former_keys = training_keys(self.config, self.corpus, self.lm, self.base)
        self.finished = self._is_finished()
        if not self.finished:
            self._check_work()
        session = Session(
            self.config,
            self.corpus,
            self._feedback(Ledger.copy(self._ledger_file) if self._dry else Ledger(":memory:")),
            Miner(self.corpus, self.config.data_seed, self.base, self._bar),
            self._text_format(),
            self.work,
            self.say,
            self._bar,
            self._tracker,
        )
        self.disk = Disk(0, 0)
        if not self.finished:
            check_data(session, self.method)
            self.disk = check_models(session, self.method, self.config.base, self._note, assumed)
            check_place(self.work, self.disk)
        if not self._dry:
            if not self.finished:
                self._open_work()
            session.feedback = self._feedback(Ledger(self._ledger_file))
        self._session = session
        return self

    def close(self) -> None:
        """Close the ledger; what was scored stays."""
        if self._session is not None:
            self._session.feedback.ledger.close()
            self._session = None

    def __enter__(self) -> Self:
        return self.prepare()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def estimate(self) -> CostEstimate:
        """The cost of scoring the first iteration, each prompt counted once.

        Later iterations, evaluations (Se2, CEIL) and the report have prompts that cannot be named before: see
        ``later``.
        """
        parts = [self.session.feedback.estimate(task, prompts) for task, prompts in self._first_prompts()]
        estimate = sum(parts, CostEstimate())
        self._estimate = estimate
        if estimate.calls == estimate.requests and (note := self._ledger_of_others()):
            self._note(note)
        return estimate

    def lacking(self) -> list[ScoreRequest]:
        """What the LM will be asked for those prompts, for a batch."""
        first = self._first_prompts()
        return [request for task, prompts in first for request in self.session.feedback.lacking(task, prompts)]

    def _first_prompts(self) -> list[tuple[TaskData, list[FeedbackPrompt]]]:
        self.prepare()
        by_task: dict[str, tuple[TaskData, list[FeedbackPrompt]]] = {}
        for task, prompts in self.method.prompts(self.session):
            by_task.setdefault(task.name, (task, []))[1].extend(prompts)
        return [*by_task.values()]

    def _ledger_of_others(self) -> str:
        """Why a ledger with scores knows none of these prompts, in words; "" for an empty one."""
        ledger, lm = self.session.feedback.ledger, self.session.feedback.lm
        known = ledger.scopes()
        wanted = [self.session.feedback.scope(task) for task in self.corpus.tasks]
        if not len(ledger):
            return ""
        if all(scope.lm != lm.fingerprint for scope in known):
            what = f"by another LM, or by {lm.name} in another precision"
        elif all(scope.template not in [w.template for w in wanted] for scope in known):
            what = "with another template"
        elif not any(scope in wanted for scope in known):
            what = "with other labels"
        else:
            what = "of other examples: another pool, or queries or candidates drawn otherwise"
        return f"{self._ledger_file} holds {len(ledger):,} scores, and none of these prompts: they are {what}"

    def later(self) -> int:
        """The most prompts that evaluations and the report have scored beside those of ``estimate``, without those of
        later iterations."""
        self.prepare()
        selector = self.method.selector(self.config)
        return self.method.evaluation_prompts(self.session) + report_prompts(self.session, selector)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Lock the work folder; RunError when another process has it.

        The lock ends with the process, however it ends. Of several processes of one training the first holds it.
        """
        if not processes().is_main_process:
            yield
            return
        self.work.mkdir(parents=True, exist_ok=True)
        with (self.work / "lock").open("a") as lock:
            if not try_lock(lock):
                raise RunError(f"{self.out} is being made by another process; wait for it, or give another --out")
            yield

    @models.without_bars()
    def score(self) -> int:
        """Score the prompts of ``estimate``, no more and no less; returns how many are without a score after all: they
        do not fit the LM's context, or it refused them.

        No model is trained for that, but the EPR that CEIL starts from, whose neighbors the sets are of. A training
        afterwards, e.g. under ``accelerate launch`` on several GPUs, scores none of these again; evaluations and the
        report at its end have more (``later``).
        """
        self.prepare()
        feedback = self.session.feedback
        if self.finished:
            return 0
        with self._alone():
            self.method.score(self.session)
        self._notes()
        return feedback.skipped + len(feedback.failed)

    def _notes(self) -> None:
        for note in self.session.feedback.notes():
            self._note(note)

    def _note(self, note: str) -> None:
        """Say it, once."""
        if note not in self._noted:
            self._noted.add(note)
            self.say(f"note: {note}")

    @models.without_bars()
    def run(self) -> Trained:
        """Everything up to the finished folder; returns at once when it is there."""
        self.prepare()
        if self.finished:
            return self._read()
        with self._alone():
            return self._read() if self._is_finished() else self._run()  # another process may have had it until now

    def _run(self) -> Trained:
        from iclkit.trainers._card import card_of, write_card

        s, history = self.session, list[dict[str, Any]]()
        for iteration in range(self.config.iterations):
            history.append(self._iterate(iteration))
        s.config = replace(s.config, **history[-1].get("settings", {}))
        model = self.work / f"model-{self.config.iterations - 1}"
        retriever = checkpoint_retriever(model, s)
        s.rendering = retriever.rendering
        selector = self.method.selector(s.config)
        setups = {"bm25": SelectorSetup("bm25"), "knn, untrained": SelectorSetup("knn", self.base)}
        if selector.spec != "knn":
            setups["knn, trained"] = SelectorSetup("knn", retriever)
        setups[self.config.method] = SelectorSetup(selector.spec, retriever)
        reports = tuple(
            report_on(s, task, setups, self.config.method, selector.count) for task in s.corpus.tasks if task.report
        )
        if not processes().is_main_process:
            return Trained(self.out, {}, reports)
        card = card_of(s, self.method, history, reports, self.key)
        part = _beside(self.out, ".part")
        drop(part)
        shutil.copytree(model, part, ignore=shutil.ignore_patterns(SEAL))
        write_card(part, card, reports)
        part.rename(self.out)
        for folder in self.work.glob("*/checkpoints"):
            drop(folder)
        self._notes()
        return Trained(self.out, card, reports)

    def _iterate(self, iteration: int) -> dict[str, Any]:
        """Gather, train and save one iteration; returns its facts. Of several variants the best is kept."""
        s, folder, file = self.session, self.work / f"model-{iteration}", self.work / f"fit-{iteration}.json"
        before = checkpoint_retriever(self.work / f"model-{iteration - 1}", s) if iteration else None
        gathered = self.method.gather(s, iteration, before)
        self._notes()
        if is_whole(folder) and (known := _read_json(file)) is not None and known.keys() >= _FACTS:
            return known
        variants = self.method.variants(s)
        if variants == [s.config]:
            return self._fit(s, gathered, iteration, f"{iteration}")
        tried = [
            self._fit(replace(s, config=config), gathered, iteration, f"{iteration}-{n}")
            for n, config in enumerate(variants)
        ]
        best = max(range(len(tried)), key=lambda n: (tried[n]["best"], -n))
        _, *settings = _differing([s.config, *variants])
        facts = _as_read({
            **tried[best], "settings": settings[best],
            "tried": [[known, facts["best"]] for known, facts in zip(settings, tried, strict=True)],
        })  # fmt: skip
        self.say(f"kept: {', '.join(f'{k}={v}' for k, v in settings[best].items())}, the best on held-out queries")
        if processes().is_main_process:
            part = _beside(folder, ".part")
            drop(part)
            shutil.copytree(self.work / f"model-{iteration}-{best}", part)
            drop(folder)
            part.rename(folder)
            replace_file(file, json.dumps(facts))
        processes().wait_for_everyone()
        return facts

    def _fit(self, s: Session[Any], gathered: Any, iteration: int, name: str) -> dict[str, Any]:
        """Train one model on what was gathered, as the session's config says, and save it under a name; its facts."""
        import torch

        from iclkit.trainers._fit import fit_retriever, load_encoder, save_model, training_texts

        config, folder, file = s.config, self.work / f"model-{name}", self.work / f"fit-{name}.json"
        if is_whole(folder) and (known := _read_json(file)) is not None and known.keys() >= _FACTS:
            return known
        torch.manual_seed(config.seed)
        goes_on = iteration and not config.from_base
        start = self.work / f"model-{iteration - 1}" if goes_on else self.method.start_from(s, config.base)
        model = load_encoder(config, start)
        before_gain = self.method.gain(s, model)
        self.say(f"LM gain before training: {before_gain:+.4f} nats over a random candidate, on held-out queries")
        fitted = fit_retriever(
            config,
            model,
            self.method.batches(s, gathered),
            training_texts(s),
            self.method.loss,
            self.work / f"fit-{name}",
            gain=(lambda m: self.method.gain(s, m)) if s.corpus.has_held_out else None,
            tracker=s.tracker,
            progress=s.bar(f"training, iteration {iteration + 1}" if config.iterations > 1 else "training"),
            say=self.say,
        )
        facts = _as_read({"iteration": iteration + 1, "before": before_gain, **fitted})
        if facts["best"] is not None:
            self.say(
                f"LM gain after {facts['steps']} steps: {facts['best']:+.4f} nats with the model of step "
                f"{facts['kept']}"
            )
            if facts["best"] <= before_gain:
                self.say("note: that is not more than before training; see in the report whether it helps at all")
        if processes().is_main_process:
            save_model(model, folder)
            replace_file(file, json.dumps(facts))
            drop(self.work / f"fit-{name}" / "checkpoints")
        processes().wait_for_everyone()
        return facts

    def _feedback(self, ledger: Ledger) -> Feedback:
        return Feedback(self.lm, ledger, labels=self.config.value == "share")

    def _text_format(self) -> RetrieverFormat:
        """How queries and demonstrations are written for the encoder, in training and in use."""
        sides = _INSTRUCTED[self.config.instruct]
        instructions = {task.name: task.instruction.rstrip(":") + ":" for task in self.corpus.tasks}
        return RetrieverFormat(self.config.document, "\t", instructions if sides else {}, sides)

    def _is_finished(self) -> bool:
        if not self.out.exists() or (self.out.is_dir() and not any(self.out.iterdir())):
            return False
        card = _read_json(self.out / CARD)
        key = card.get("key") if card else None
        if key not in (self.key, *self._former_keys):
            what = "a retriever of another training" if key else "something else"
            raise DataError(f"{self.out} holds {what}; give another --out, or remove it")
        return True

    def _read(self) -> Trained:
        card = _read_json(self.out / CARD) or {}
        try:
            reports = tuple(TaskReport.from_dict(report) for report in card["report"])
        except (LookupError, TypeError, AttributeError) as error:
            raise DataError(
                f"{self.out / CARD} is damaged ({type(error).__name__}: {error}); remove {self.out} and give the same "
                f"command again"
            ) from error
        return Trained(self.out, card, reports)

    def _check_work(self) -> None:
        if self._restart or not (self.work / _NOTE).is_file():
            return
        note = _read_json(self.work / _NOTE) or {}
        if note.get("key") in (self.key, *self._former_keys):
            return
        begun, config = note.get("config"), _as_read(self.config.as_dict())
        if isinstance(begun, dict):
            if begun.get("method") == self.config.method and begun.keys() <= config.keys():
                # settings that the note lacks came later
                different = {k: v for k, v in begun.items() if v != config[k] and k != "checkpoints"}
                different |= {k: "not there" for k in self.config.identity() if k not in begun}
                how = (
                    ", ".join(f"{k} was {v}" for k, v in different.items())
                    or "other data, templates, LM, base or instructions"
                )
            else:
                how = f"method was {begun.get('method')}" if begun.get("method") != self.config.method else (
                    "those of an earlier version")  # fmt: skip
            what = f"holds a training begun with other settings ({how})"
        else:
            what = f"holds a {_NOTE} that cannot be read"
        raise UsageError(f"{self.work} {what}; give --restart to begin again (scores are kept), or another --out")

    def _open_work(self) -> None:
        note = self.work / _NOTE
        try:
            self.work.mkdir(parents=True, exist_ok=True)
            if self._restart and note.is_file():
                keep = [
                    "ledger.db",
                    *([self._ledger_file.name] if self._ledger_file.absolute().parent == self.work else []),
                ]
                for path in self.work.iterdir():
                    if path.is_dir():
                        shutil.rmtree(path)
                    elif not path.name.startswith(tuple(keep)):
                        path.unlink()
            replace_file(note, json.dumps({"key": self.key, "config": self.config.as_dict()}))
        except OSError as error:
            raise DataError(f"cannot work in {self.work} ({error.strerror}); give another --out") from error


def training_keys(config: TrainConfig, corpus: TrainingData, lm: LM, base: Embedder) -> list[str]:
    """What a training is known by, and what it was known by in earlier versions, newest first.

    All that decides the result: settings, data, templates, LM, and the base with its weights and prefixes. Earlier keys
    had neither the base's weights and prefixes nor the templates, and no training asked in chat form.
    """
    tasks = [
        {"hash": t.hash, "instruction": t.instruction, "labels": [*t.labels], "template": t.template.identity()}
        for t in corpus.tasks
    ]
    key = digest(
        {
            "config": config.identity(), "pool": corpus.view.hash, "tasks": tasks, "lm": lm.fingerprint,
            "base": [base.fingerprint, base.document_fingerprint],
        }
    )  # fmt: skip
    if any(t.template.chat for t in corpus.tasks):
        return [key]
    former = digest(
        [config.identity(), corpus.view.hash, [task.hash for task in corpus.tasks], lm.fingerprint,
         [[task.instruction, [*task.labels]] for task in corpus.tasks]]
    )  # fmt: skip
    return [key, former]


def _differing(configs: Sequence[TrainConfig]) -> list[dict[str, Any]]:
    """The settings of each config that are not the same in all."""
    every = [config.as_dict() for config in configs]
    names = [name for name in every[0] if any(one[name] != every[0][name] for one in every)]
    return [{name: one[name] for name in names} for one in every]


def _as_read(value: Mapping[str, Any]) -> dict[str, Any]:
    """Facts as they come back from a file."""
    return dict(json.loads(json.dumps(value)))


def _beside(out: Path, ending: str) -> Path:
    """``out`` with an ending; absolute first, for a path like "." that has no name."""
    out = out.absolute()
    return out.with_name(out.name + ending)


def _read_json(file: Path) -> dict[str, Any] | None:
    """An object of JSON; None where there is no such file, or one that is something else."""
    try:
        content = read_json(file)
    except DataError:
        return None
    return content if isinstance(content, dict) else None
