"""Experiment trackers: finished runs, their board and a kept selector, written to MLflow, W&B or Trackio.

from iclkit.eval import load_runs
from iclkit.integrations.tracking import export_runs

export_runs(load_runs("runs"), "mlflow", project="tickets", selector="kept/")

Nothing is written while a run is made: what is exported is what stands in the run's folder, so that a tracker that
is away costs no run. All three write to this machine; only ``online`` lets anything leave it. A run that a tracker
has is not written again.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from iclkit.errors import DataError, IclkitError, RunError, UnknownName, UsageError
from iclkit.eval import METRICS
from iclkit.integrations._extras import require
from iclkit.records import Json, Progress, Row, Run, canonical_json, digest
from iclkit.report import Board, Texts, leaderboard, to_csv, to_html, to_json
from iclkit.secrets import redact_addresses
from iclkit.selectors import is_saved_selector

TRACKERS = ("mlflow", "wandb", "trackio")
"""What runs can be exported to."""
_LONGEST = 500  # characters of a setting; the whole stands in run.json
_BLOCK = 32768  # bytes of a block in W&B's files
_BATCH = 100  # settings of one request to MLflow, which takes no more


@dataclass(frozen=True, slots=True)
class Exported:
    """One entry of a tracker. ``name`` is what it shows, ``id`` what it is found by; ``new``: whether it was written
    now, or was there before."""

    name: str
    id: str
    new: bool


@dataclass(frozen=True, slots=True)
class _Table:
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]


@dataclass(frozen=True, slots=True)
class _Entry:
    """What a tracker calls a run. ``id`` is taken of the content, so that the same content is the same entry."""

    id: str
    name: str
    group: str
    config: Mapping[str, str | int | float]
    figures: Mapping[str, float]
    table: _Table
    table_name: str
    files: Mapping[str, str]  # name -> text
    folder: Path | None = None  # a kept selector
    date: datetime | None = None
    tags: Mapping[str, str] = field(default_factory=dict)

    def texts(self) -> dict[str, str]:
        """The files, with no secret that this process knows."""
        return {name: redact_addresses(text) for name, text in self.files.items()}


class _Tracker(Protocol):
    def has(self, entry_id: str) -> bool:
        """Whether this entry was written as a whole."""
        ...

    def write(self, entry: _Entry) -> None:
        """Write it; what an interrupted export has left of it is removed first."""
        ...

    def upload(self) -> None:
        """Send what was written, where that is a step of its own."""
        ...


def export_runs(
    runs: Sequence[Run],
    to: str,
    *,
    project: str = "iclkit",
    at: str = "",
    texts: Texts | None = None,
    board: Board | None = None,
    selector: str | Path | None = None,
    online: bool = False,
    progress: Progress | None = None,
) -> list[Exported]:
    """Write runs to a tracker: one entry for each, with its settings, figures, cost and rows, and one for their board.

    ``to``: ``mlflow``, ``wandb`` or ``trackio``. ``at``: MLflow's tracking URI, or the folder in which ``wandb/``
    stands; as these tools have it where it is empty. ``texts``: the words of queries, from ``iclkit.eval.load_texts``,
    by task hash; without them the table of rows has ids. ``board``: that of these runs, made here where it is None.
    ``selector``: the folder of a kept selector, which goes along with the board. ``online``: whether anything may leave
    this machine: MLflow to a server, and ``wandb sync``. Trackio's own command uploads its projects.

    Runs that are not finished are left out. What is there with the same content is not written again.
    UsageError for a tracker that is unknown or not installed, and for a server without ``online``; DataError without a
    finished run; RunError where the tracker fails.
    """
    if to not in TRACKERS:
        raise UnknownName("tracker", to, TRACKERS)
    done = [run for run in runs if run.facts.get("done", True) and run.rows]
    if not done:
        raise DataError("no finished run to export; finish them with the same iclkit eval command")
    folder = _kept(selector) if selector is not None else None
    made = board or leaderboard(done)
    exported = []
    try:
        with _tracker(to, project, at, online) as tracker:
            for number, entry in enumerate(_entries(done, made, texts or {}, folder), 1):
                new = not tracker.has(entry.id)
                if new:
                    tracker.write(entry)
                exported.append(Exported(entry.name, entry.id, new))
                if progress is not None:
                    progress(number, len(done) + 1)
            tracker.upload()
    except IclkitError:
        raise
    except Exception as error:  # each tool raises its own, and those of what it is made of
        raise RunError(
            f"{to} failed ({type(error).__name__}: {' '.join(str(error).split())[:300]}); what was written is kept, "
            "and the same command goes on"
        ) from error
    return exported


# ---- what is exported


def _entries(runs: Sequence[Run], board: Board, texts: Texts, folder: Path | None) -> Iterator[_Entry]:
    """One after the other, so that the rows of one run are held at a time."""
    for run in runs:
        yield _run_entry(run, texts.get(run.spec.task.hash, {}))
    yield _board_entry(board, runs, texts, folder)


def _run_entry(run: Run, texts: Mapping[str, Mapping[str, Any]]) -> _Entry:
    spec, rows = run.spec, tuple(run.rows)
    content = digest([run.id, [row.to_json() for row in rows], dict(run.facts)], 4)
    answered = [row for row in rows if not row.failure]
    metric = METRICS.get(spec.task.metric)
    figures = {name: _mean(answered, name) for name in sorted({m for row in answered for m in row.metrics})}
    if answered:
        golds = [row.gold for row in answered]
        figures[metric.name] = metric.figure([row.output for row in answered], golds, spec.task.labels)
    figures |= {"queries": len(rows), "failed": len(rows) - len(answered)}
    figures |= {f"spent {name}": float(value) for name, value in run.usage.items()}
    state = {"id": run.id, "spec": spec.identity(), "facts": dict(run.facts), "spent": dict(run.usage)}
    shots = f"@{spec.k}" if spec.k else ""
    seed = f" seed {spec.seed}" if spec.seed else ""
    return _Entry(
        id=f"{run.id}-{content}",
        name=f"{spec.task.name} {run.facts.get('selector') or spec.selector}{shots}{seed}",
        group=spec.task.name,
        config=_config(run),
        figures=figures,
        table=_rows(rows, texts),
        table_name="rows",
        files={"run.json": json.dumps(state, ensure_ascii=False, indent=1, default=dict) + "\n"},
        date=_date(run),
        tags={"run": run.id, "kind": "run"},
    )


def _board_entry(board: Board, runs: Sequence[Run], texts: Texts, folder: Path | None) -> _Entry:
    told = to_json(board)
    head, *lines = csv.reader(io.StringIO(to_csv(board)))
    content = digest([told, sorted(run.id for run in runs), _hash_of(folder) if folder else ""], 8)
    files = {"board.html": to_html(board, runs, texts), "leaderboard.json": told}
    config: dict[str, str | int | float] = {"runs": len(runs), "baseline": board.baseline}
    if folder is not None:
        files["selector.json"] = (folder / "selector.json").read_text(encoding="utf-8")
        config["selector folder"] = folder.name
    return _Entry(
        id=f"board-{content}",
        name=f"board of {len(runs)} run" + ("s" if len(runs) > 1 else ""),
        group="boards",
        config=config,
        figures={"runs": len(runs)},
        table=_Table(tuple(head), tuple(tuple(_number(value) for value in line) for line in lines)),
        table_name="board",
        files=files,
        folder=folder,
        tags={"kind": "board"},
    )


def _config(run: Run) -> dict[str, str | int | float]:
    """Everything that determines the run, flat: ``task.name``, ``selector.settings.trade_off``."""
    found: dict[str, str | int | float] = {}

    def put(name: str, value: Json | Mapping[str, Any]) -> None:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                put(f"{name}.{key}" if name else str(key), inner)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[name] = value
        elif value is not None:
            text = redact_addresses(value if isinstance(value, str) else canonical_json(value))
            found[name] = text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"

    identity = run.spec.identity()
    parts, conditions = identity.pop("parts"), identity.pop("conditions")
    put("", {"run": run.id, **identity})
    put("", parts)
    put("condition", conditions)
    for name in ("iclkit", "date"):
        put(name, run.facts.get(name))
    put("command", (run.facts.get("source") or {}).get("command"))
    return found


def _rows(rows: Sequence[Row], texts: Mapping[str, Mapping[str, Any]]) -> _Table:
    metrics = sorted({name for row in rows for name in row.metrics})
    columns = ("query", "input", "gold", "output", *metrics, "shown", "prompt tokens", "failure")
    found = []
    for row in rows:
        text = texts.get(row.query_id, {}).get("input", "")
        found.append(
            (
                row.query_id,
                text if isinstance(text, str) else canonical_json(text),
                row.gold,
                row.output,
                *(row.metrics.get(name) for name in metrics),
                " ".join(row.shown),
                row.prompt_tokens,
                row.failure,
            )
        )
    return _Table(columns, tuple(found))


def _mean(rows: Sequence[Row], name: str) -> float:
    values = [row.metrics[name] for row in rows if name in row.metrics]
    return sum(values) / len(values)


def _date(run: Run) -> datetime | None:
    try:
        return datetime.fromisoformat(str(run.facts.get("date", "")))
    except ValueError:
        return None


def _number(text: str) -> str | float:
    try:
        return float(text)
    except ValueError:
        return text


def _kept(folder: str | Path) -> Path:
    folder = Path(folder)
    if not is_saved_selector(folder):
        raise DataError(f"{folder} is no kept selector; make one with: iclkit select POOL --save {folder}")
    return folder


def _files_of(folder: Path) -> list[Path]:
    return sorted(f for f in folder.rglob("*") if f.is_file())


def _artifact_name(folder: Path) -> str:
    """The folder's name, in characters that all trackers take."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "_-.") else "-" for c in folder.resolve().name) or "kept"


def _hash_of(folder: Path) -> str:
    """A hash of all files of a folder."""
    total = hashlib.sha256()
    for file in _files_of(folder):
        total.update(str(file.relative_to(folder)).encode() + b"\0")
        with file.open("rb") as handle:
            while part := handle.read(1 << 20):
                total.update(part)
    return total.hexdigest()


# ---- the trackers


@contextlib.contextmanager
def _tracker(to: str, project: str, at: str, online: bool) -> Iterator[_Tracker]:
    if to == "mlflow":
        require("mlflow", "mlflow-skinny", "3.0")
        yield _MLflow(project, at, online)
    elif to == "wandb":
        require("wandb", "wandb", "0.20")
        yield _WandB(project, Path(at or "."), online)
    else:
        require("trackio", "trackio", "0.30")
        if at or online:
            raise UsageError(
                "Trackio writes to this machine (TRACKIO_DIR says where); upload what stands there with its own "
                f"command: trackio sync --project {project} --space-id NAME"
            )
        yield _Trackio(project)


class _MLflow:
    """An experiment with a run for each entry; the store is asked what it has."""

    def __init__(self, project: str, at: str, online: bool) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
        from mlflow.tracking import MlflowClient

        self.client = MlflowClient(tracking_uri=at or None)
        _check_local(self.client.tracking_uri, online)
        found = self.client.get_experiment_by_name(project)
        self.experiment = found.experiment_id if found else self.client.create_experiment(project)
        _check_local(self.client.get_experiment(self.experiment).artifact_location, online)

    def has(self, entry_id: str) -> bool:
        return any(run.info.status == "FINISHED" for run in self._found(entry_id))

    def write(self, entry: _Entry) -> None:
        with _environment("MLFLOW_ENABLE_ASYNC_LOGGING", "false"):  # or a run is marked FINISHED before it is written
            self._write(entry)

    def _write(self, entry: _Entry) -> None:
        from mlflow.entities import Metric, Param

        client = self.client
        for part in self._found(entry.id):
            client.delete_run(part.info.run_id)
        date = int(entry.date.timestamp() * 1000) if entry.date else None
        tags = {"iclkit.id": entry.id, **{f"iclkit.{name}": value for name, value in entry.tags.items()}}
        tags["mlflow.user"] = "iclkit"
        run_id = client.create_run(self.experiment, start_time=date, tags=tags, run_name=entry.name).info.run_id
        params = [Param(_mlflow_name(name), str(value)) for name, value in entry.config.items()]
        when = date or int(time.time() * 1000)
        metrics = [Metric(_mlflow_name(name), figure, when, 0) for name, figure in entry.figures.items()]
        for at in range(0, max(len(params), len(metrics)), _BATCH):
            client.log_batch(run_id, metrics[at : at + _BATCH], params[at : at + _BATCH])
        columns = zip(*entry.table.rows, strict=True) if entry.table.rows else ([] for _ in entry.table.columns)
        table = {name: [*column] for name, column in zip(entry.table.columns, columns, strict=True)}
        client.log_table(run_id, table, f"{entry.table_name}.json")
        for name, text in entry.texts().items():
            client.log_text(run_id, text, name)
        if entry.folder is not None:
            client.log_artifacts(run_id, str(entry.folder), "selector")
        client.set_terminated(run_id, "FINISHED", date)

    def upload(self) -> None:
        """Nothing: a server has it already."""

    def _found(self, entry_id: str) -> Sequence[Any]:
        found: Sequence[Any] = self.client.search_runs([self.experiment], f"tags.`iclkit.id` = '{entry_id}'")
        return found


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _mlflow_name(name: str) -> str:
    """What MLflow takes as the name of a parameter or metric."""
    return "".join(c if c.isalnum() or c in "_-./ " else "_" for c in name)[:250]


def _check_local(uri: str, online: bool) -> None:
    scheme = urlsplit(uri).scheme
    local = scheme in ("", "file", "sqlite") or len(scheme) == 1  # C:\\...
    if not local and not online:
        raise UsageError(f"MLflow keeps this experiment at {redact_addresses(uri)}; --online lets runs be sent there")


class _WandB:
    """A folder ``wandb/offline-run-…`` for each entry, as ``wandb sync`` reads it; a mark in it says it is whole.

    A process of W&B's own writes the file, and may still be at it when ``finish`` returns: the mark waits for the
    file's last record.
    """

    _MARK = "iclkit-exported"
    _PATIENCE = 60.0  # seconds for W&B to write what it was given

    def __init__(self, project: str, at: Path, online: bool) -> None:
        self.project, self.at, self.online = project, at, online
        self.ids: list[str] = []

    def has(self, entry_id: str) -> bool:
        self.ids.append(entry_id)
        return any((folder / self._MARK).exists() for folder in self._folders(entry_id))

    def write(self, entry: _Entry) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        for folder in self._folders(entry.id):
            shutil.rmtree(folder)
        self.at.mkdir(parents=True, exist_ok=True)
        place = self.at.absolute()  # W&B's process stays in the folder in which it was started
        import wandb

        quiet = wandb.Settings(
            silent=True, console="off", disable_git=True, disable_code=True, save_code=False, x_disable_meta=True,
            x_disable_stats=True, x_save_requirements=False,
        )  # fmt: skip
        run = wandb.init(
            project=self.project, id=entry.id, name=entry.name, group=entry.group, dir=str(place), mode="offline",
            config={**entry.config, **{f"iclkit.{n}": v for n, v in entry.tags.items()}}, settings=quiet,
            reinit="create_new",
        )  # fmt: skip
        try:
            run.summary.update(dict(entry.figures))
            rows = [[*row] for row in entry.table.rows]
            run.log({entry.table_name: wandb.Table(columns=[*entry.table.columns], data=rows, allow_mixed_types=True)})
            kept = wandb.Artifact(f"{entry.tags['kind']}-{entry.id}", type=entry.tags["kind"])
            for name, text in entry.texts().items():
                if name.endswith(".html"):
                    run.log({name: wandb.Html(text, inject=False)})
                with kept.new_file(name, encoding="utf-8") as file:
                    file.write(text)
            run.log_artifact(kept)
            if entry.folder is not None:
                selector = wandb.Artifact(_artifact_name(entry.folder), type="selector")
                for path in _files_of(entry.folder):
                    selector.add_file(str(path), str(path.relative_to(entry.folder)))
                run.log_artifact(selector)
            run.finish()
        except BaseException:
            run.finish(exit_code=1)
            raise
        for folder in self._folders(entry.id):
            self._wait_for_end(folder)
            (folder / self._MARK).touch()

    def _wait_for_end(self, folder: Path) -> None:
        until = time.monotonic() + self._PATIENCE
        while not any(_wandb_ended(file) for file in folder.glob("*.wandb")):
            if time.monotonic() > until:
                raise RunError(
                    f"W&B has not written {folder} to its end within {self._PATIENCE:g} s; the same command writes "
                    "it anew"
                )
            time.sleep(0.01)

    def upload(self) -> None:
        if not self.online:
            return
        for entry_id in self.ids:
            for folder in self._folders(entry_id):
                if any(folder.glob("*.synced")):
                    continue
                command = [sys.executable, "-m", "wandb", "sync", str(folder)]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode or not any(folder.glob("*.synced")):
                    said = " ".join((done.stderr or done.stdout).split())[-300:]
                    raise RunError(
                        f"wandb sync {folder} failed: {redact_addresses(said)}; all runs are written, and the same "
                        "command goes on with the upload"
                    )

    def _folders(self, entry_id: str) -> list[Path]:
        return sorted((self.at / "wandb").glob(f"offline-run-*-{entry_id}"))


def _wandb_ended(file: Path) -> bool:
    """Whether a W&B file has its last record, which says how the run ended.

    The file is a LevelDB log (https://github.com/google/leveldb/blob/main/doc/log_format.md) after a header of 7
    bytes, which count in the first block: parts of at most 32 KiB, each after (checksum, length, kind).
    """
    from wandb.proto import wandb_internal_pb2

    data, at, record = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        left = _BLOCK - at % _BLOCK
        if left < 7:  # no room for a part's header: zeros
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if at > len(data):  # a part that is still being written
            return False
        if kind in (1, 4):  # a whole record, or the last part of one
            if wandb_internal_pb2.Record.FromString(record).HasField("exit"):
                return True
            record = b""
    return False


class _Trackio:
    """A project in Trackio's folder with a run for each entry, its id at the end of its name.

    Trackio keeps a run's settings with the first figures that it is given: these are written last, so that a run with
    settings is whole.
    """

    _REMOTE = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "TRACKIO_DATASET_ID", "TRACKIO_BUCKET_ID")

    def __init__(self, project: str) -> None:
        for name in self._REMOTE:
            if os.environ.get(name):
                raise UsageError(f"{name} is set, so that Trackio would send runs away; unset it for this command")
        import trackio

        self.trackio, self.project = trackio, project

    def has(self, entry_id: str) -> bool:
        return any((run.config or {}).get("iclkit.id") == entry_id for run in self._found(entry_id))

    def write(self, entry: _Entry) -> None:
        for part in self._found(entry.id):
            part.delete()
        with contextlib.redirect_stdout(io.StringIO()):  # its talk
            self._write(entry)
        if not self.has(entry.id):  # it warns of what fails, and goes on
            raise RunError(f"Trackio did not keep {entry.name}")

    def _write(self, entry: _Entry) -> None:
        trackio = self.trackio
        run = trackio.init(
            self.project,
            name=f"{entry.name} {entry.id}",
            group=entry.group,
            config={**entry.config, **{f"iclkit.{n}": v for n, v in entry.tags.items()}, "iclkit.id": entry.id},
            resume="never",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        try:
            with tempfile.TemporaryDirectory(prefix="iclkit-") as work:
                for name, text in entry.texts().items():
                    Path(work, name).write_text(text, encoding="utf-8")
                kept = trackio.Artifact(f"{entry.tags['kind']}-{entry.id}", type=entry.tags["kind"])
                kept.add_dir(work)
                run.log_artifact(kept)
            if entry.folder is not None:
                selector = trackio.Artifact(_artifact_name(entry.folder), type="selector")
                selector.add_dir(entry.folder)
                run.log_artifact(selector)
            rows = [dict(zip(entry.table.columns, row, strict=True)) for row in entry.table.rows]
            run.log({**entry.figures, entry.table_name: trackio.Table(data=rows)})
        finally:
            trackio.finish()

    def upload(self) -> None:
        """Nothing: ``trackio sync`` is the user's."""

    def _found(self, entry_id: str) -> list[Any]:
        try:
            runs = self.trackio.Api().runs(self.project)
        except ValueError:  # no such project yet
            return []
        return [run for run in runs if run.name.endswith(f" {entry_id}")]
