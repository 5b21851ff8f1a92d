"""The pipeline: mine, score, label, train, report, save; every step resumes where a killed one stopped."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from iclkit import models
from iclkit.errors import DataError, NeedError, UsageError
from iclkit.eval import Estimate
from iclkit.lm import LM, Progress
from iclkit.pool import CARD, Rendering, Retriever, load_embedder
from iclkit.records import digest
from iclkit.trainers._config import TrainConfig
from iclkit.trainers._corpus import Corpus
from iclkit.trainers._feedback import Feedback, Price
from iclkit.trainers._ledger import Ledger
from iclkit.trainers._method import Method, Session, live_retriever
from iclkit.trainers._processes import processes
from iclkit.trainers._report import Chooser, TaskReport, Way, report_on

_METHODS = {
    "epr": ("_epr", "EPR"),
    "udr": ("_udr", "UDR"),
    "llm-r": ("_llm_r", "LLMR"),
    "se2": ("_se2", "Se2"),
    "ceil": ("_ceil", "CEIL"),
}
_NOTE = "training.json"
_RADIUS_ROWS = 2000  # rows looked at for the longest vector


@dataclass(frozen=True)
class Trained:
    """A finished training: its folder, its card, and what it is worth, task by task."""

    folder: Path
    card: Mapping[str, Any]
    reports: tuple[TaskReport, ...]


def check_extra() -> None:
    """NeedError unless the extra that the sentence-transformers trainers need is installed."""
    if find_spec("datasets") is None:
        raise NeedError("training needs the extra iclkit[train]; install it with: pip install 'iclkit[train]'")


def make_method(config: TrainConfig) -> Method:
    """The method that a config names."""
    module, name = _METHODS[config.method]
    method: Method = getattr(import_module(f"iclkit.trainers.{module}"), name)()
    return method


class Training:
    """One training, prepared: ``price`` says what it will cost, ``score`` asks the LM, ``run`` does everything.

    Work is kept in ``OUT.work`` beside ``out``: the ledger (or ``ledger``, which trainings may share), checkpoints and
    models of iterations. The same call again goes on where the last one stopped. ``dry``: for a look at the price or
    at the scores; no file is made or changed, and what is scored is forgotten. DataError when ``out`` holds something
    else; UsageError when its work was begun with other settings and ``restart`` is not given; NeedError without the
    extra that training needs.
    """

    def __init__(
        self,
        corpus: Corpus,
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
        check_extra()
        self.out, self.config, self.say = out, config, say
        self.work = _beside(out, ".work")
        self._kept = ledger or self.work / "ledger.db"
        self.key = digest(
            [config.as_dict(), corpus.view.hash, [c.hash for c in corpus.courses], lm.fingerprint,
             [[c.instruction, [*c.labels]] for c in corpus.courses]]
        )  # fmt: skip
        self.finished = self._finished()
        if not self.finished:
            self._check_work(restart)
        instructions = {c.name: c.instruction.rstrip(":") + ":" for c in corpus.courses}
        sides = {"none": (), "both": ("query", "document"), "document": ("document",)}[config.instruct]
        rendering = Rendering(config.document, "\t", instructions if sides else {}, sides)
        self._base_folder = models.resolve(config.base, "embedder")
        self.base = load_embedder(str(self._base_folder), dtype="fp32")
        if not self.finished and not dry:
            self._open_work(restart)
        from iclkit.trainers._mine import Miner

        self.session = Session(
            config,
            corpus,
            Feedback(lm, Ledger.copy(self._kept) if dry else Ledger(self._kept), labels=config.value == "share"),
            Miner(corpus, config.data_seed, self.base),
            rendering,
            self.work,
            say,
            bar,
            tracker,
        )
        self.method = make_method(config)

    def price(self) -> Price:
        """What scoring the first iteration will cost."""
        parts = [self.session.feedback.price(course, asks) for course, asks in self.method.plan(self.session)]
        return Price(*(sum(getattr(p, n) for p in parts) for n in ("prompts", "unknown", "tokens")))

    def score(self) -> int:
        """Ask the LM what the first iteration needs, train nothing; how many scores the ledger then holds.

        Training afterwards asks nothing again, e.g. under ``accelerate launch`` on several GPUs.
        """
        self.method.gather(self.session, 0, None)
        return len(self.session.feedback.ledger)

    def run(self) -> Trained:
        """Everything up to the finished folder; returns at once when it is there."""
        from iclkit.trainers._card import card_of, write_card

        if self.finished:
            return self._read()
        s, history = self.session, list[dict[str, Any]]()
        for iteration in range(self.config.iterations):
            history.append(self._iterate(iteration))
        model = self.work / f"model-{self.config.iterations - 1}"
        retriever = self._retriever(model)
        s.rendering = retriever.rendering
        meant = self.method.chooser(self.config)
        choosers = {"bm25": Chooser("bm25"), "knn, untrained": Chooser("knn", self.base)}
        if meant.spec != "knn":
            choosers["knn, trained"] = Chooser("knn", retriever)
        choosers[self.config.method] = Chooser(meant.spec, retriever)
        reports = tuple(
            report_on(s, c, choosers, self.config.method, meant.count) for c in s.corpus.courses if c.report
        )
        if not processes().is_main_process:
            return Trained(self.out, {}, reports)
        card = card_of(s, self.method, history, reports, self.key)
        part = _beside(self.out, ".part")
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(model, part)
        write_card(part, card, reports)
        part.rename(self.out)
        for folder in self.work.glob("*/checkpoints"):
            shutil.rmtree(folder)
        return Trained(self.out, card, reports)

    def _iterate(self, iteration: int) -> dict[str, Any]:
        """Gather, train, save one iteration; what it measured."""
        import torch

        from iclkit.trainers._fit import Texts, fit_retriever, load_encoder, save_model

        s, folder = self.session, self.work / f"model-{iteration}"
        before = live_retriever(self.work / f"model-{iteration - 1}", s) if iteration else None
        gathered = self.method.gather(s, iteration, before)
        facts = self.work / f"fit-{iteration}.json"
        if folder.is_dir() and facts.is_file():
            return dict(json.loads(facts.read_text()))
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
            Texts(s.query_text, s.document_text, lambda row: s.miner.forbidden(s.corpus.examples[row])),
            self.method.objective(self.config),
            self.work / f"fit-{iteration}",
            measure=lambda m: self.method.measure(s, m),
            tracker=s.tracker,
            progress=s.bar(f"training, iteration {iteration + 1}" if self.config.iterations > 1 else "training"),
        )
        told = {"iteration": iteration + 1, "before": before_gain, **told}
        if told["best"] is not None:
            self.say(f"LM gain after {told['steps']} steps: {told['best']:+.4f} nats")
            if told["best"] <= before_gain:
                self.say("note: that is not more than before training; see in the report whether it helps at all")
        if processes().is_main_process:
            facts.write_text(json.dumps(told))
            save_model(model, folder)
        processes().wait_for_everyone()
        return told

    def _retriever(self, model: Path) -> Retriever:
        """The trained retriever; for inner products, with a radius that holds the pool."""
        s = self.session
        found = live_retriever(model, s)
        if self.config.similarity == "cos":
            return found
        rows = np.linspace(0, len(s.corpus.view) - 1, min(_RADIUS_ROWS, len(s.corpus.view))).astype(int)
        raw = found.inner.encode_raw([s.document_text(int(r)) for r in rows])  # type: ignore[attr-defined]
        radius = 1.1 * float(np.linalg.norm(raw, axis=1).max())
        return Retriever(found.inner, replace(found.rendering, radius=radius), {})

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
        card = json.loads((self.out / CARD).read_text(encoding="utf-8"))

        def number(e: Mapping[str, float | None]) -> Estimate:
            return Estimate(**{k: float("nan") if v is None else v for k, v in e.items()})

        reports = tuple(
            TaskReport(
                r["task"],
                r["queries"],
                r.get("shots", 1),
                tuple(
                    Way(w["name"], w["pool"], number(w["gain"]), number(w["right"]) if w["right"] else None)
                    for w in r["ways"]
                ),
                number(r["captured"]),
            )
            for r in card["report"]
        )
        return Trained(self.out, card, reports)

    def _check_work(self, restart: bool) -> None:
        if restart or not (self.work / _NOTE).is_file():
            return
        told, settings = _read_json(self.work / _NOTE) or {}, self.config.as_dict()
        if told.get("key") != self.key:
            was = {k: v for k, v in told.get("config", {}).items() if settings.get(k) != v}
            how = ", ".join(f"{k} was {v}" for k, v in was.items()) or "other data, LM or instructions"
            raise UsageError(
                f"{self.work} holds a training begun with other settings ({how}); give --restart to begin again "
                f"(scores are kept), or another --out"
            )

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
            part = note.with_suffix(f".{os.getpid()}.part")  # several processes may begin at once
            part.write_text(json.dumps({"key": self.key, "config": self.config.as_dict()}), encoding="utf-8")
            part.replace(note)
        except OSError as error:
            raise DataError(f"cannot work in {self.work} ({error.strerror}); give another --out") from error


def _beside(out: Path, ending: str) -> Path:
    """``out`` with an ending; absolute first, for a path like "." that has no name."""
    out = out.absolute()
    return out.with_name(out.name + ending)


def _read_json(file: Path) -> dict[str, Any] | None:
    """An object of JSON; None where there is no such file, or one that is something else."""
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return told if isinstance(told, dict) else None
