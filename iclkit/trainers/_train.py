"""The pipeline: mine, score, label, train, report, save; every step resumes where a killed one stopped."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from iclkit import models
from iclkit.embed import CARD, RetrieverFormat, load_embedder
from iclkit.errors import DataError, RunError, UsageError
from iclkit.eval import Estimate
from iclkit.files import read_json, replace_file, try_lock
from iclkit.lm import LM, as_lm
from iclkit.records import Progress, digest
from iclkit.trainers._config import BEFORE, TrainConfig
from iclkit.trainers._data import TaskData, TrainingData
from iclkit.trainers._feedback import CostEstimate, Feedback, FeedbackPrompt
from iclkit.trainers._ledger import Ledger
from iclkit.trainers._method import Method, Session, checkpoint_retriever
from iclkit.trainers._prepare import Disk, check_data, check_models, check_place, check_settings
from iclkit.trainers._processes import processes
from iclkit.trainers._report import SelectorSetup, StrategyResult, TaskReport, prompts_of_report, report_on
from iclkit.trainers._whole import SEAL, drop, is_whole

_METHODS = {
    "epr": ("_epr", "EPR"),
    "udr": ("_udr", "UDR"),
    "llm-r": ("_llm_r", "LLMR"),
    "se2": ("_se2", "Se2"),
    "ceil": ("_ceil", "CEIL"),
}
_NOTE = "training.json"
_FACTS = {"iteration", "before", "steps", "judged", "kept", "best", "loss"}
"""What is known of a trained iteration."""


@dataclass(frozen=True)
class Trained:
    """A finished training: its folder, its card, and what it is worth, task by task."""

    folder: Path
    card: Mapping[str, Any]
    reports: tuple[TaskReport, ...]


def make_method(config: TrainConfig) -> Method:
    """The method that a config names."""
    module, name = _METHODS[config.method]
    method: Method = getattr(import_module(f"iclkit.trainers.{module}"), name)()
    return method


class Training:
    """One training, prepared: ``price`` and ``disk`` say what it will cost, ``score`` asks the LM, ``run`` does
    everything.

    Work is kept in ``OUT.work`` beside ``out``: the ledger (or ``ledger``, which trainings may share), checkpoints and
    models of iterations. The same call again goes on where the last one stopped. ``dry``: for a look at the price or
    at the scores; no file is made or changed, and what is scored is forgotten.

    Whatever a training needs is looked at here, before anything is asked or written: DataError when ``out`` holds
    something else, no file can be made there or the disk is too full, and for data that nothing can be learnt from;
    UsageError when its work was begun with other settings and ``restart`` is not given, and for settings or an LM that
    cannot be trained with; NeedError without the extra or the tracker that is asked for; ModelError for a base model
    that cannot be trained.
    """

    @models.without_bars()
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
        lm = as_lm(lm)
        check_settings(config, lm, tracker)
        self.out, self.config, self.say = out, config, say
        self.work = _beside(out, ".work")
        self._kept = ledger or self.work / "ledger.db"
        self.key = digest(
            [config.identity(), corpus.view.hash, [c.hash for c in corpus.courses], lm.fingerprint,
             [[c.instruction, [*c.labels]] for c in corpus.courses]]
        )  # fmt: skip
        self.finished = self._finished()
        if not self.finished:
            self._check_work(restart)
        instructions = {c.name: c.instruction.rstrip(":") + ":" for c in corpus.courses}
        sides = {"none": (), "both": ("query", "document"), "document": ("document",)}[config.instruct]
        rendering = RetrieverFormat(config.document, "\t", instructions if sides else {}, sides)
        self._base_folder = models.resolve(config.base, "embedder")
        self.base = load_embedder(str(self._base_folder), dtype="fp32")
        from iclkit.trainers._mine import Miner

        self.method, self._noted = make_method(config), set[str]()
        self.disk = Disk(0, 0)
        self._announced: CostEstimate | None = None
        self.session = Session(
            config,
            corpus,
            Feedback(lm, Ledger.copy(self._kept) if dry else Ledger(":memory:"), labels=config.value == "share"),
            Miner(corpus, config.data_seed, self.base),
            rendering,
            self.work,
            say,
            bar,
            tracker,
        )
        if not self.finished:
            check_data(self.session, self.method)
            self.disk = check_models(self.session, self.method, self._base_folder)
            check_place(self.work, self.disk)
        if not dry:
            if not self.finished:
                self._open_work(restart)
            self.session.feedback = Feedback(lm, Ledger(self._kept), labels=config.value == "share")

    def price(self) -> CostEstimate:
        """What scoring the first iteration will cost, each prompt counted once.

        Later iterations, judging (Se2, CEIL) and the report ask what cannot be named before: see ``later``.
        """
        asks: dict[str, tuple[TaskData, list[FeedbackPrompt]]] = {}
        for course, some in self.method.plan(self.session):
            asks.setdefault(course.name, (course, []))[1].extend(some)
        parts = [self.session.feedback.price(course, own) for course, own in asks.values()]
        self._announced = CostEstimate(*(sum(getattr(p, n) for p in parts) for n in ("prompts", "unknown", "tokens")))
        return self._announced

    def later(self) -> int:
        """At most how many prompts judging and the report ask beside those of ``price``; a later iteration's are not
        among them."""
        return self.method.judging(self.session) + prompts_of_report(self.session, self.method.chooser(self.config))

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """The work folder is this training's while it runs; RunError when another process is at it.

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
    def score(self) -> CostEstimate:
        """Ask the LM what ``price`` names, no more and no less; the same prompts, with those that are still unknown:
        they do not fit its context, or it refused them.

        No model is trained for that, but the EPR that CEIL starts from, whose neighbours the sets are of. What was
        scored is not asked again by a training afterwards, e.g. under ``accelerate launch`` on several GPUs; judging
        and the report at its end ask more (``later``).
        """
        announced, feedback = self._announced or self.price(), self.session.feedback
        if self.finished:
            return announced
        with self._alone():
            self.method.score(self.session)
        self._notes()
        return CostEstimate(announced.prompts, feedback.skipped + len(feedback.failed), 0)

    def _notes(self) -> None:
        for note in self.session.feedback.notes():
            if note not in self._noted:
                self._noted.add(note)
                self.say(f"note: {note}")

    @models.without_bars()
    def run(self) -> Trained:
        """Everything up to the finished folder; returns at once when it is there."""
        if self.finished:
            return self._read()
        with self._alone():
            return self._read() if self._finished() else self._run()  # another process may have been at it until now

    def _run(self) -> Trained:
        from iclkit.trainers._card import card_of, write_card

        s, history = self.session, list[dict[str, Any]]()
        for iteration in range(self.config.iterations):
            history.append(self._iterate(iteration))
        model = self.work / f"model-{self.config.iterations - 1}"
        retriever = checkpoint_retriever(model, s)
        s.rendering = retriever.rendering
        meant = self.method.chooser(self.config)
        choosers = {"bm25": SelectorSetup("bm25"), "knn, untrained": SelectorSetup("knn", self.base)}
        if meant.spec != "knn":
            choosers["knn, trained"] = SelectorSetup("knn", retriever)
        choosers[self.config.method] = SelectorSetup(meant.spec, retriever)
        reports = tuple(
            report_on(s, c, choosers, self.config.method, meant.count) for c in s.corpus.courses if c.report
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
        """Gather, train, save one iteration; what it measured."""
        import torch

        from iclkit.trainers._fit import TrainingTexts, fit_retriever, load_encoder, save_model

        s, folder = self.session, self.work / f"model-{iteration}"
        before = checkpoint_retriever(self.work / f"model-{iteration - 1}", s) if iteration else None
        gathered = self.method.gather(s, iteration, before)
        self._notes()
        facts = self.work / f"fit-{iteration}.json"
        if is_whole(folder) and (known := _read_json(facts)) is not None and known.keys() >= _FACTS:
            return known
        torch.manual_seed(self.config.seed)
        again = iteration and not self.config.restart
        start = self.work / f"model-{iteration - 1}" if again else self.method.start(s, self._base_folder)
        model = load_encoder(self.config, start)
        before_gain = self.method.measure(s, model)
        self.say(f"LM gain before training: {before_gain:+.4f} nats over a random candidate, on held-out queries")
        told = fit_retriever(
            self.config,
            model,
            self.method.batches(s, gathered),
            TrainingTexts(s.query_text, s.document_text, lambda row: s.miner.forbidden(s.corpus.examples[row])),
            self.method.objective(self.config),
            self.work / f"fit-{iteration}",
            measure=(lambda m: self.method.measure(s, m)) if any(len(c.held_out) for c in s.corpus.courses) else None,
            tracker=s.tracker,
            progress=s.bar(f"training, iteration {iteration + 1}" if self.config.iterations > 1 else "training"),
            say=self.say,
        )
        told = dict(json.loads(json.dumps({"iteration": iteration + 1, "before": before_gain, **told})))  # as read back
        if told["best"] is not None:
            self.say(
                f"LM gain after {told['steps']} steps: {told['best']:+.4f} nats with the model of step {told['kept']}"
            )
            if told["best"] <= before_gain:
                self.say("note: that is not more than before training; see in the report whether it helps at all")
        if processes().is_main_process:
            save_model(model, folder)
            replace_file(facts, json.dumps(told))
            drop(self.work / f"fit-{iteration}" / "checkpoints")
        processes().wait_for_everyone()
        return told

    def _finished(self) -> bool:
        if not self.out.exists() or (self.out.is_dir() and not any(self.out.iterdir())):
            return False
        told = _read_json(self.out / CARD)
        key = told.get("key") if told else None
        if key != self.key:
            what = "a retriever of another training" if key else "something else"
            raise DataError(f"{self.out} holds {what}; give another --out, or remove it")
        return True

    def _read(self) -> Trained:
        card = _read_json(self.out / CARD) or {}

        def number(e: Mapping[str, float | None]) -> Estimate:
            return Estimate(**{k: float("nan") if v is None else v for k, v in e.items()})

        try:
            reports = tuple(
                TaskReport(
                    r["task"],
                    r["queries"],
                    r.get("shots", 1),
                    tuple(
                        StrategyResult(
                            w["name"], w["pool"], number(w["gain"]), number(w["right"]) if w["right"] else None
                        )
                        for w in r["ways"]
                    ),
                    number(r["captured"]),
                )
                for r in card["report"]
            )
        except (LookupError, TypeError, AttributeError) as error:
            raise DataError(
                f"{self.out / CARD} is damaged ({type(error).__name__}: {error}); remove {self.out} and give the same "
                f"command again"
            ) from error
        return Trained(self.out, card, reports)

    def _check_work(self, restart: bool) -> None:
        if restart or not (self.work / _NOTE).is_file():
            return
        told = _read_json(self.work / _NOTE) or {}
        if told.get("key") == self.key:
            return
        config = told.get("config")
        if isinstance(config, dict):
            was = {
                k: config.get(k, BEFORE.get(k)) for k, v in self.config.identity().items() if k in config or k in BEFORE
            }
            differs = {k: v for k, v in was.items() if v != getattr(self.config, k)}
            how = ", ".join(f"{k} was {v}" for k, v in differs.items()) or "other data, LM or instructions"
            what = f"holds a training begun with other settings ({how})"
        else:
            what = f"holds a {_NOTE} that cannot be read"
        raise UsageError(f"{self.work} {what}; give --restart to begin again (scores are kept), or another --out")

    def _open_work(self, restart: bool) -> None:
        note = self.work / _NOTE
        try:
            self.work.mkdir(parents=True, exist_ok=True)
            if restart and note.is_file():
                keep = ["ledger.db", *([self._kept.name] if self._kept.absolute().parent == self.work else [])]
                for path in self.work.iterdir():
                    if path.is_dir():
                        shutil.rmtree(path)
                    elif not path.name.startswith(tuple(keep)):
                        path.unlink()
            replace_file(note, json.dumps({"key": self.key, "config": self.config.as_dict()}))
        except OSError as error:
            raise DataError(f"cannot work in {self.work} ({error.strerror}); give another --out") from error


def _beside(out: Path, ending: str) -> Path:
    """``out`` with an ending; absolute first, for a path like "." that has no name."""
    out = out.absolute()
    return out.with_name(out.name + ending)


def _read_json(file: Path) -> dict[str, Any] | None:
    """An object of JSON; None where there is no such file, or one that is something else."""
    try:
        told = read_json(file)
    except DataError:
        return None
    return told if isinstance(told, dict) else None
