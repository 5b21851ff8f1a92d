"""A small, seeded part of the campaign (``make test-faults`` runs all of it)."""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from .campaign import table
from .inputs import input_trials
from .kills import kill_trials
from .machine import MODELS, memory_trials, model_trials, writer_trials
from .runs import DAMAGES, run_trials
from .servers import server_trials
from .trials import Trial
from .worlds import make_models, worlds


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def apart() -> Iterator[ProcessPoolExecutor]:
    """A process that has computed nothing: commands are forked from it, and no thread of an earlier test may hold a
    lock then."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_loaded) as pool:
        yield pool


def _loaded() -> None:
    """What commands import is imported once, so that a forked command need not; nothing is computed."""
    import faiss  # noqa: F401
    import optuna  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import sentence_transformers  # noqa: F401
    import torch
    import transformers

    import iclkit.cli
    from iclkit import embed, eval, lm, pool, report, selectors, trainers, tuners  # noqa: F401

    transformers.AutoModelForCausalLM, transformers.AutoModel, transformers.LlamaForCausalLM, transformers.BertModel  # noqa: B018
    for name in iclkit.cli.COMMANDS:
        importlib.import_module(f"iclkit.cli._{name}")
    torch.set_num_threads(1)


def all_held(apart: ProcessPoolExecutor, trials: Callable[..., list[Trial]], *args: object) -> None:
    wrong = [f"{t.kind} · {t.name}: {t.wrong}" for t in apart.submit(trials, *args).result() if t.wrong]
    assert not wrong, "\n".join(wrong)


def kills(name: str, models: tuple[Path, Path], folder: Path) -> list[Trial]:
    world = next(w for w in worlds(*models) if w.name == name)
    return [*kill_trials(world, folder, 3, random.Random(f"0{name}"))]


def inputs(folder: Path) -> list[Trial]:
    return [*input_trials(folder, random.Random(0), 60)]


def run_folders(folder: Path, lm: Path) -> list[Trial]:
    return [*run_trials(folder, lm, [*DAMAGES][::4])]


def damaged_models(folder: Path, models: tuple[Path, Path]) -> list[Trial]:
    return [*model_trials(folder, *models, [*MODELS][::3])]


def servers(folder: Path) -> list[Trial]:
    names = ("plain", "nan", "positive", "html", "filter", "echo-key", "retry-nan", "blank")
    return [*server_trials(folder, names)]


def writers(folder: Path, models: tuple[Path, Path]) -> list[Trial]:
    return [*writer_trials(folder, worlds(*models), ("pool add", "eval, labels"))]


def little_memory(folder: Path, lm: Path) -> list[Trial]:
    return [*memory_trials(folder, lm)]


@pytest.mark.parametrize("name", ["pool add", "eval, labels", "eval, batch calibration", "tune ease"])
def test_a_killed_command_ends_where_an_unbroken_one_does(name, apart, models, tmp_path) -> None:
    all_held(apart, kills, name, models, tmp_path)


def test_hostile_inputs_are_taken_or_refused_in_one_line(apart, models, tmp_path) -> None:
    all_held(apart, inputs, tmp_path / "inputs")


def test_damaged_run_folders_are_named_and_hide_no_other(apart, models, tmp_path) -> None:
    all_held(apart, run_folders, tmp_path / "runs", models[0])


def test_damaged_models_are_refused(apart, models, tmp_path) -> None:
    all_held(apart, damaged_models, tmp_path / "models", models)


def test_servers_that_misbehave_give_one_line_or_the_right_figure(apart, models, tmp_path) -> None:
    all_held(apart, servers, tmp_path / "servers")


def test_two_processes_may_run_the_same_command(apart, models, tmp_path) -> None:
    all_held(apart, writers, tmp_path / "writers", models)


def test_little_memory_is_one_line(apart, models, tmp_path) -> None:
    all_held(apart, little_memory, tmp_path / "memory", models[0])


def test_the_table_counts_what_held() -> None:
    trials = [Trial("kill", "eval", count=3), Trial("kill", "eval", "lost", 2)]
    assert table(trials).split("\n")[2:] == ["| kill | eval | 5 | 3 |", "| **all** | | **5** | **3** |"]
