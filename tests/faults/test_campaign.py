"""A small, seeded part of the campaign (``make test-faults`` runs all of it)."""

from __future__ import annotations

import random
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
    import torch

    torch.set_num_threads(1)  # children are forked: no thread may hold a lock then
    return make_models(tmp_path_factory.mktemp("models"))


def all_held(trials: object) -> None:
    wrong = [f"{t.kind} · {t.name}: {t.wrong}" for t in trials if t.wrong]  # type: ignore[attr-defined]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", ["pool add", "eval, labels", "eval, batch calibration", "tune ease"])
def test_a_killed_command_ends_where_an_unbroken_one_does(name: str, models: tuple[Path, Path], tmp_path: Path) -> None:
    world = next(w for w in worlds(*models) if w.name == name)
    all_held(kill_trials(world, tmp_path, 3, random.Random(f"0{name}")))


def test_hostile_inputs_are_taken_or_refused_in_one_line(models: tuple[Path, Path], tmp_path: Path) -> None:
    all_held(input_trials(tmp_path / "inputs", random.Random(0), 60))


def test_damaged_run_folders_are_named_and_hide_no_other(models: tuple[Path, Path], tmp_path: Path) -> None:
    all_held(run_trials(tmp_path / "runs", models[0], [*DAMAGES][::4]))


def test_damaged_models_are_refused(models: tuple[Path, Path], tmp_path: Path) -> None:
    all_held(model_trials(tmp_path / "models", *models, [*MODELS][::3]))


def test_servers_that_misbehave_give_one_line_or_the_right_figure(models: tuple[Path, Path], tmp_path: Path) -> None:
    names = ("plain", "nan", "positive", "html", "filter", "echo-key", "retry-nan", "blank")
    all_held(server_trials(tmp_path / "servers", names))


def test_two_processes_may_run_the_same_command(models: tuple[Path, Path], tmp_path: Path) -> None:
    all_held(writer_trials(tmp_path / "writers", worlds(*models), ("pool add", "eval, labels")))


def test_little_memory_is_one_line(models: tuple[Path, Path], tmp_path: Path) -> None:
    all_held(memory_trials(tmp_path / "memory", models[0]))


def test_the_table_counts_what_held() -> None:
    trials = [Trial("kill", "eval", count=3), Trial("kill", "eval", "lost", 2)]
    assert table(trials).split("\n")[2:] == ["| kill | eval | 5 | 3 |", "| **all** | | **5** | **3** |"]
