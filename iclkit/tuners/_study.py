"""The search as an Optuna study: where it is kept, who works on it, and that no trial is lost or done twice."""

from __future__ import annotations

import math
import os
import re
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from iclkit.database import is_damage
from iclkit.errors import DataError, IclkitError, RunError, UsageError
from iclkit.tuners._samplers import OrderedSetSampler, arm_of, distributions
from iclkit.tuners._space import Arm, SearchSpace

BEAT = 5.0
"""Seconds between the signs of life of a worker."""
GRACE = 120.0
"""Seconds without one after which a worker on another machine counts as dead."""

_STORED = {"neighbors": "neighbours"}
"""Settings by the names that studies were first kept under, and are still, so that they go on."""
_DONE = (TrialState.COMPLETE, TrialState.PRUNED)
_LIVE = (TrialState.RUNNING, TrialState.WAITING)


def stored_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A sampler's settings as a study keeps them."""
    return {_STORED.get(name, name): value for name, value in settings.items()}


def stored_spec(sampler: str) -> str:
    """A sampler's spec as a study keeps it."""
    for name, kept in _STORED.items():
        sampler = re.sub(rf"\b{name}\s*=", f"{kept}=", sampler)
    return sampler


def open_study(
    storage: str | None,
    name: str,
    sampler: OrderedSetSampler,
    pruner: optuna.pruners.BasePruner,
    facts: Mapping[str, Any],
) -> optuna.Study:
    """The study of that name, made if it is not there.

    ``storage``: a URL as Optuna takes it (sqlite:///search.db, postgresql://…), ``journal:FILE`` for a log that many
    workers on one file system append to, None for memory. ``facts`` say what is searched for: DataError when the study
    there is about something else, UsageError for a storage that cannot be opened.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = _create(storage, name, sampler, pruner)
    except IclkitError:  # a journal that is damaged or cannot be written
        raise
    except Exception as error:  # whatever the storage's libraries raise is reported, with its cause
        raise _damaged(storage, error) or UsageError(
            f"cannot open the study storage {without_password(storage)}: {_cause(error)}"
        ) from error
    where = without_password(storage)
    if study.direction != optuna.study.StudyDirection.MAXIMIZE:
        raise DataError(
            f"study {name!r} in {without_password(storage)} is none of iclkit's; give another --study or --storage"
        )
    known = study.user_attrs
    if facts and study.get_trials(deepcopy=False) and not facts.keys() & known.keys():
        raise DataError(f"study {name!r} in {where} is none of iclkit's; give another --study")
    for key, value in facts.items():
        if key not in known:
            study.set_user_attr(key, value)
        elif known[key] != value:
            raise DataError(
                f"study {name!r} in {where} is about another search: its {key} is {known[key]!r}, not {value!r}; "
                f"give another --study or --storage"
            )
    return study


def check_trials(study: optuna.Study, space: SearchSpace, queries: int, storage: str | None = None) -> None:
    """DataError for a finished trial that this search cannot have made: damaged, or of another program."""
    for trial in finished(study):
        arm, attrs = arm_of(trial, space), trial.user_attrs
        values, spent = attrs.get("values"), attrs.get("spent")
        whole = trial.state == TrialState.COMPLETE
        sound = {
            "its list": arm is not None and len({*arm.rows}) == space.k and _in(arm.rows, space.rows)
            and _in([arm.instruction], space.instructions),
            "values": isinstance(values, list) and all(_finite(v) for v in values)
            and (len(values) == queries if whole else 0 < len(values) <= queries),
            "spent": isinstance(spent, dict) and all(_finite(v) for v in spent.values()),
            "value": not whole or _finite(trial.value),
        }  # fmt: skip
        for what, good in sound.items():
            if not good:
                raise DataError(
                    f"study {study.study_name!r} in {without_password(storage)}: {what} of trial {trial.number} cannot "
                    f"be of this search; it is damaged or another program wrote it: give another --study or --storage"
                )


def _in(numbers: Iterable[int], end: int) -> bool:
    return all(0 <= n < end for n in numbers)


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _create(
    storage: str | None, name: str, sampler: OrderedSetSampler, pruner: optuna.pruners.BasePruner
) -> optuna.Study:
    for attempt in range(9):
        try:
            return optuna.create_study(
                storage=_storage(storage), study_name=name, sampler=sampler, pruner=pruner, direction="maximize",
                load_if_exists=True,
            )  # fmt: skip
        except Exception as error:
            # of workers that start together one makes the tables, and the others run into it while it does
            if not any(word in str(error) for word in ("UNIQUE", "already exists", "locked", "no such table")):
                raise
            time.sleep(0.2 * (attempt + 1))
    return optuna.load_study(storage=_storage(storage), study_name=name, sampler=sampler, pruner=pruner)


def _storage(text: str | None) -> Any:
    if text is None or not text.startswith("journal:"):
        return text
    from optuna.storages import JournalStorage

    from iclkit.tuners._journal import Journal

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return JournalStorage(Journal(text.removeprefix("journal:")))


@contextmanager
def storage_errors(storage: str | None) -> Iterator[None]:
    """What a database raises while it is worked with, in one line: DataError for one that is damaged, else RunError."""
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (optuna.exceptions.StorageInternalError, SQLAlchemyError) as error:
        raise _damaged(storage, error) or RunError(
            f"the study storage {without_password(storage)} failed: {_cause(error)}; free space or make it reachable, "
            f"then give the same command again: finished trials are kept"
        ) from error


def _damaged(storage: str | None, error: BaseException) -> DataError | None:
    """The error for a storage that holds what cannot be read; None for errors of another kind."""
    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__ or getattr(causes[-1], "orig", None)) is not None:
        causes.append(cause)
    of_file = any(map(is_damage, causes))
    played = storage is not None and storage.startswith("journal:")
    if not of_file and not (played and isinstance(error, LookupError | TypeError | ValueError | AssertionError)):
        return None
    return DataError(
        f"the study storage {without_password(storage)} is damaged ({_cause(error)}); put a copy of it in its place, "
        f"or move it away to search anew"
    )


def _cause(error: BaseException) -> str:
    """The first line of what stands behind an error."""
    while error.__cause__ is not None:
        error = error.__cause__
    return without_password((str(error).strip().splitlines() or [type(error).__name__])[0])


def without_password(text: str | None) -> str:
    """A storage, or what is said of it, without user and password."""
    return re.sub(r"//\S*@", "//…@", text or "memory")


def finished(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that count: complete or pruned, in order of their number."""
    return study.get_trials(deepcopy=False, states=_DONE)


def run_trials(
    study: optuna.Study,
    space: SearchSpace,
    trials: int,
    evaluate: Callable[[list[tuple[Trial, Arm]]], None],
    *,
    batch: int = 1,
    grace: float = GRACE,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Run trials of a study until it has ``trials`` finished trials; any number of processes may do so at once.

    Up to ``batch`` lists are proposed one after the other, each knowing of those before it, and handed together to
    ``evaluate``, which reports, prunes and tells each trial. A trial whose worker died (its process is gone, or has
    shown no sign of life for ``grace`` seconds) is failed and its list put back in the queue. Never are more than
    ``trials`` lists evaluated to the end, nor one twice.
    """
    while True:
        requeue_dead(study, space, grace)
        done, live = len(finished(study)), study.get_trials(deepcopy=False, states=_LIVE)
        if progress:
            progress(min(done, trials), trials)
        if done >= trials:
            return
        waiting = sum(t.state == TrialState.WAITING for t in live)
        free = trials - done - (len(live) - waiting)
        got = [pair for _ in range(min(batch, free)) if (pair := _claim(study, space, trials))]
        if not got:
            time.sleep(0.2)  # others are at it: their trials may yet fail
            continue
        with _alive([trial for trial, _ in got]):
            try:
                evaluate(got)
            except BaseException:
                for trial, _ in got:
                    # where the storage is what failed, a later worker finds the trial of this dead one
                    with suppress(IclkitError, optuna.exceptions.OptunaError, OSError):
                        _requeue(study, trial)
                raise


def _claim(study: optuna.Study, space: SearchSpace, trials: int) -> tuple[Trial, Arm] | None:
    """A trial to run with its list, or None when there is no room for one or another worker has that list."""
    trial = study.ask()
    trial.set_user_attr("worker", f"{host_id()}:{os.getpid()}")
    trial.set_user_attr("beat", time.time())
    for name, dist in distributions(space).items():
        trial.suggest_categorical(name, dist.choices)  # type: ignore[attr-defined]
    arm = arm_of(study._storage.get_trial(trial._trial_id), space)
    assert arm is not None
    # parameters are written before the others are read: of two workers with one list, one at least sees the other
    others = [t for t in study.get_trials(deepcopy=False, states=(*_DONE, *_LIVE)) if t.number != trial.number]
    why = ""
    if any(arm_of(t, space) == arm for t in others if t.state != TrialState.WAITING):
        why = "another worker has this list"
    # a trial counts all with a lower number, so the last of those that go ahead has counted all the rest
    elif sum(t.number < trial.number or t.state in _DONE for t in others) >= trials:
        why = "enough trials are under way"
    if why:
        trial.set_user_attr("why", why)
        study.tell(trial, state=TrialState.FAIL)
        return None
    return trial, arm


def _requeue(study: optuna.Study, trial: Trial) -> None:
    """Fail a trial that could not be finished, and queue its list again."""
    frozen = study._storage.get_trial(trial._trial_id)
    if frozen.state == TrialState.RUNNING:
        study.tell(trial, state=TrialState.FAIL)
        study.enqueue_trial(frozen.params, user_attrs={"again": trial.number})


def requeue_dead(study: optuna.Study, space: SearchSpace, grace: float = GRACE) -> int:
    """Fail the trials of dead workers and queue their lists again; how many. Of several callers one does it."""
    count = 0
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        host, _, pid = str(trial.user_attrs.get("worker", "")).rpartition(":")
        begun = trial.datetime_start.timestamp() if trial.datetime_start else 0.0
        silent = time.time() - float(trial.user_attrs.get("beat", begun)) > grace
        if not silent and not (host == host_id() and pid.isdigit() and not _runs(int(pid))):
            continue
        try:
            study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
        except (optuna.exceptions.UpdateFinishedTrialError, RuntimeError):
            continue  # another worker was quicker, or it lives after all
        count += 1
        if arm_of(trial, space) is not None:
            study.enqueue_trial(trial.params, user_attrs={"again": trial.number})
    return count


@cache
def host_id() -> str:
    """This machine since it was started: names alone are not unique, and process numbers begin anew."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return f"{socket.gethostname()}/{boot.read_text()[:8] if boot.exists() else ''}"


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@contextmanager
def _alive(trials: list[Trial]) -> Iterator[None]:
    """Signs of life for the trials that are still running, from a thread."""
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(BEAT):
            for trial in trials:
                try:
                    trial.set_user_attr("beat", time.time())
                except (optuna.exceptions.OptunaError, IclkitError, RuntimeError, OSError):
                    continue  # finished in the meantime, or the storage fails, which the work itself will find out

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def storage_for(out: Path) -> str:
    """Where a search is kept when nobody says: a journal beside the selector file."""
    return f"journal:{out.with_suffix('.journal')}"
