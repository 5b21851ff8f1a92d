"""Runs in MLflow, W&B and Trackio: everything there, once, on this machine, and nothing secret."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from iclkit.cli import cli
from iclkit.errors import DataError, RunError, UnknownName, UsageError
from iclkit.integrations import tracking
from iclkit.integrations.tracking import TRACKERS, Exported, export_runs
from iclkit.records import Run
from iclkit.secrets import remember

from ..report.worlds import make_run
from .conftest import World

KEY = "plainkey-0123456789"
TEXTS = {"htoy": {f"q{n}": {"id": f"q{n}", "input": f"the text {n}"} for n in range(4)}}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One MLflow store, which takes seconds to make."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: str) -> Path:
    """An empty folder in which all trackers keep what they have, and no network."""
    import trackio.sqlite_storage as storage
    import trackio.utils

    monkeypatch.chdir(tmp_path)
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "wandb-own"))
    for module in (storage, trackio.utils):
        monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path / "trackio")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    connect = socket.socket.connect

    def local(self: socket.socket, address: Any) -> None:
        assert self.family == socket.AF_UNIX or str(address[0]).startswith("127."), f"a call to {address}"
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", local)
    return tmp_path


@pytest.fixture
def runs() -> list[Run]:
    made = [make_run("random", [1, 0, 1, 0], k=2), make_run("knn,key=input", [1, 1, 1, 0], k=2)]
    command = f"iclkit eval toy --lm openai:m@http://ann:{KEY}@127.0.0.1/v1"
    remember(KEY)
    dated = {"date": "2026-11-02T10:00:00+00:00", "source": {"command": command}}
    return [replace(run, facts={**run.facts, **dated}) for run in made]


def in_mlflow(
    place: Path, name: str, project: str = "iclkit"
) -> tuple[dict[str, Any], dict[str, Any], list[list[Any]], set[str]]:
    """(settings, figures, rows of the table, names of files) of an entry."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient()
    found = client.search_runs([client.get_experiment_by_name(project).experiment_id])
    (run,) = [r for r in found if r.info.run_name == name]
    folder = Path(run.info.artifact_uri)
    table = json.loads(next(f for f in (folder / "rows.json", folder / "board.json") if f.exists()).read_text())
    files = {str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()}
    return run.data.params, run.data.metrics, table.get("data", []), files


def records_of(file: Path) -> Iterator[bytes]:
    """The records of a file as W&B writes it: a header, then the blocks of a LevelDB log."""
    data, at, parts = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        if kind == 0:  # the rest of a block of 32 kB, too short for a record
            at += 32768 - at % 32768
            continue
        parts += data[at + 7 : at + 7 + length]
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""
        at += 7 + length
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768


def in_wandb(place: Path, name: str) -> tuple[dict[str, Any], dict[str, Any], list[list[Any]], set[str]]:
    from wandb.proto import wandb_internal_pb2

    for file in (place / "wandb").glob("offline-run-*/*.wandb"):
        config, figures, files, shown = dict[str, Any](), dict[str, Any](), set[str](), ""
        for record in map(wandb_internal_pb2.Record.FromString, records_of(file)):
            shown = record.run.display_name or shown
            config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
            figures |= {item.key or ".".join(item.nested_key): json.loads(item.value_json)
                        for item in record.summary.update}  # fmt: skip
            files |= {c.path for c in record.artifact.manifest.contents}
            files |= {c.path for c in record.request.log_artifact.artifact.manifest.contents}
        if shown == name:
            (table,) = (file.parent / "files" / "media" / "table").iterdir()
            return config, figures, json.loads(table.read_text())["data"], files
    raise AssertionError(f"no {name}")


def in_trackio(place: Path, name: str) -> tuple[dict[str, Any], dict[str, Any], list[list[Any]], set[str]]:
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    (run,) = [r for r in trackio.Api().runs("iclkit") if r.name.startswith(f"{name} ")]
    (logged,) = SQLiteStorage.get_logs("iclkit", run.name, run_id=run.id)
    table = next(v for v in logged.values() if isinstance(v, dict) and v.get("_type") == "trackio.table")
    rows = [[*row.values()] for row in table["_value"]]
    blobs = {b.read_bytes()[:20] for b in (place / "trackio" / "artifacts").rglob("*") if b.is_file()}
    return run.config or {}, logged, rows, {str(b) for b in blobs}


READ: dict[str, Callable[[Path, str], tuple[dict[str, Any], dict[str, Any], list[list[Any]], set[str]]]] = {
    "mlflow": in_mlflow,
    "wandb": in_wandb,
    "trackio": in_trackio,
}


@pytest.mark.parametrize("to", TRACKERS)
def test_a_run_its_board_and_its_selector_are_written_once(to: str, place: Path, runs: list[Run], world: World) -> None:
    first = export_runs(runs, to, texts=TEXTS, selector=world.kept)
    assert [e.name for e in first] == ["toy random@2", "toy knn,key=input@2", "board of 2 runs"]
    assert all(e.new for e in first)
    config, figures, rows, _ = READ[to](place, "toy knn,key=input@2")
    assert config["run"] == runs[1].id
    assert config["selector.settings.key"] == "input"
    assert int(config["k"]) == 2
    assert figures["accuracy"] == 0.75
    assert figures["spent calls"] == 10
    assert next(row[:4] for row in rows) == ["q0", "the text 0", "no", "no"]
    assert len(rows) == 4
    _, _, lines, files = READ[to](place, "board of 2 runs")
    assert {"random", "knn,key=input"} <= {str(v) for line in lines for v in line}
    if to != "trackio":
        assert {"board.html", "selector.json"} <= {Path(f).name for f in files}
    written = {f: f.stat().st_mtime_ns for f in place.rglob("*") if f.is_file() and f.suffix in (".json", ".wandb")}
    again = export_runs(runs, to, texts=TEXTS, selector=world.kept)
    assert [replace(e, new=True) for e in again] == first
    assert not any(e.new for e in again)
    assert {f: f.stat().st_mtime_ns for f in written} == written
    for file in place.rglob("*"):
        assert not file.is_file() or KEY.encode() not in file.read_bytes(), f"a key in {file}"


def test_files_of_wandb_stand_where_it_was_asked_after_a_change_of_folder(
    place: Path, runs: list[Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    export_runs(runs[:1], "wandb")  # W&B's process starts here at the latest
    (place / "other").mkdir()
    monkeypatch.chdir(place / "other")
    export_runs(runs[1:], "wandb")
    assert len(in_wandb(place / "other", "toy knn,key=input@2")[2]) == 4


def test_the_mark_waits_for_the_end_of_the_file_of_wandb(
    place: Path, runs: list[Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """W&B's own process writes the file, and was seen to be late: a kill in between left an empty run marked whole."""
    long = replace(runs[0], facts={**runs[0].facts, "source": {"command": "x" * 100_000}})
    export_runs([long], "wandb")
    (file,) = (place / "wandb").glob(f"offline-run-*{long.id}*/*.wandb")
    data = file.read_bytes()
    assert tracking._wandb_ended(file)
    bounds = [0, 7]
    for record in records_of(file):
        bounds.append(bounds[-1] + len(record))
    for size in {*bounds, *range(0, len(data), 997), *range(len(data) - 50, len(data))}:
        file.write_bytes(data[:size])
        assert not tracking._wandb_ended(file), size

    monkeypatch.setattr(tracking, "_wandb_ended", lambda file: False)
    monkeypatch.setattr(tracking._WandB, "_PATIENCE", 0.05)
    with pytest.raises(RunError, match=r"W&B has not written .* to its end within 0\.05 s; the same command"):
        export_runs(runs, "wandb")
    monkeypatch.undo()
    monkeypatch.chdir(place)
    assert all(e.new for e in export_runs(runs, "wandb"))


def test_mlflow_has_all_before_a_run_is_marked_finished(
    place: Path, runs: list[Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    def later(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("written later, in a thread")

    monkeypatch.setenv("MLFLOW_ENABLE_ASYNC_LOGGING", "true")
    monkeypatch.setattr("mlflow.store.tracking.abstract_store.AbstractStore.log_batch_async", later)
    export_runs(runs[:1], "mlflow", project="at once")
    assert in_mlflow(place, "toy random@2", "at once")[1]["accuracy"] == 0.5


def test_what_an_interrupted_export_left_is_made_whole(
    place: Path, runs: list[Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.tracking import MlflowClient

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(MlflowClient, "log_table", full)
        with pytest.raises(RunError, match=r"mlflow failed.*No space left.*goes on"):
            export_runs(runs, "mlflow", project="again")
    assert [e.new for e in export_runs(runs, "mlflow", project="again")] == [True] * 3
    assert len(in_mlflow(place, "toy random@2", "again")[2]) == 4


def test_a_run_that_has_changed_is_another_entry(runs: list[Run]) -> None:
    changed = replace(runs[0], rows=(replace(runs[0].rows[0], output="yes"), *runs[0].rows[1:]))
    entries = [tracking._run_entry(run, {}) for run in (runs[0], changed)]
    assert len({e.id for e in entries}) == 2
    assert {e.id.partition("-")[0] for e in entries} == {runs[0].id}


def test_nothing_goes_to_a_server_unless_it_is_said(
    place: Path, runs: list[Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match=r"MLflow keeps this experiment at http://\*\*\*@127\.0\.0\.1:9.*--online"):
        export_runs(runs, "mlflow", at=f"http://ann:{KEY}@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(UsageError, match="--online"):
        export_runs(runs, "mlflow")
    with pytest.raises(UsageError, match="trackio sync --project iclkit"):
        export_runs(runs, "trackio", online=True)
    monkeypatch.setenv("TRACKIO_SPACE_ID", "ann/space")
    with pytest.raises(UsageError, match="TRACKIO_SPACE_ID is set"):
        export_runs(runs, "trackio")
    assert [*place.iterdir()] == []


def test_what_cannot_be_exported_is_one_line(place: Path, runs: list[Run], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnknownName, match=r"no tracker named 'mlflows'\. Did you mean 'mlflow'"):
        export_runs(runs, "mlflows")
    with pytest.raises(DataError, match="no finished run to export"):
        export_runs([replace(runs[0], facts={"done": False})], "mlflow")
    with pytest.raises(DataError, match=r"is no kept selector; make one with: iclkit select POOL --save"):
        export_runs(runs, "mlflow", selector=place)
    monkeypatch.setattr("iclkit.integrations._extras.metadata.version", lambda package: "2.9")
    with pytest.raises(UsageError, match=r"iclkit needs mlflow-skinny 3\.0 or newer, and 2\.9 is installed"):
        export_runs(runs, "mlflow")


def test_the_command_says_what_is_new_and_what_to_do_next(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def export(runs: list[Run], to: str, **how: Any) -> list[Exported]:
        asked.append((len(runs), to, how["project"], how["texts"]))
        return [Exported("a run", "0123", True), Exported("board of 1 run", "4567", False)]

    from ..cli.eval_worlds import write_task

    monkeypatch.setenv("ICLKIT_HOME", str(place / "home"))
    task, out = str(write_task(place / "words")), str(place / "runs")
    made = CliRunner().invoke(cli, ["eval", task, "--predictor", "majority", "--limit", "5", "--out", out], obj={})
    assert made.exit_code == 0, made.output
    monkeypatch.setattr("iclkit.integrations.tracking.export_runs", export)
    done = CliRunner().invoke(cli, ["runs", "export", out, "--to", "trackio", "--project", "mine"], obj={})
    assert done.exit_code == 0, done.output
    assert done.stdout == "new\t0123\ta run\nthere\t4567\tboard of 1 run\n"
    assert "1 written, 1 were there; look at them with: trackio show --project mine" in done.stderr
    (told,) = asked
    assert told[:3] == (1, "trackio", "mine")
    assert len(next(iter(told[3].values()))) >= 5
