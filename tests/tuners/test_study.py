"""Many workers, one storage: nothing lost, nothing done twice, also when a worker is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from iclkit.errors import DataError, RunError, UsageError
from iclkit.tuners import SearchSpace, arm_of, distributions, make_sampler
from iclkit.tuners import _study as study_of
from iclkit.tuners._journal import Journal, _locked

SPACE = SearchSpace(30, 3)

WORKER = """
import json, sys, time
from pathlib import Path
from iclkit.testing import OrderedSetProblem
from iclkit.tuners import PositionFeatures, SearchSpace, make_sampler
from iclkit.tuners._study import open_study, run_trials
import optuna

storage, log, sampler, trials, batch, hang = sys.argv[1:]
problem = OrderedSetProblem(30, 3, dim=4)
space = SearchSpace(30, 3, features=PositionFeatures(problem.vectors, 3))
study = open_study(storage, "shared", make_sampler(sampler, space, 0), optuna.pruners.NopPruner(), {"about": "test"})

def judge(got):
    for trial, arm in got:
        if Path(log).exists() and len(Path(log).read_text().splitlines()) == int(hang):
            time.sleep(3600)  # until it is killed, with this trial and the rest of the batch under way
        trial.set_user_attr("values", [problem.value(arm.rows)])
        study.tell(trial, problem.value(arm.rows), skip_if_finished=True)
        with Path(log).open("a") as file:
            file.write(json.dumps([trial.number, arm.rows]) + chr(10))

print("ready", flush=True)
run_trials(study, space, int(trials), judge, batch=int(batch))
"""


def start(storage, log, *, sampler="ease,warmup=5,steps=20,domain=300", trials=14, batch=3, hang=-1):
    words = [storage, str(log), sampler, str(trials), str(batch), str(hang)]
    root = Path(__file__).resolve().parents[2]
    env = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    return subprocess.Popen([sys.executable, "-c", WORKER, *words], stdout=subprocess.PIPE, text=True, env=env)


def until(what, seconds=120):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def lines(log):
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def load(storage):
    return optuna.load_study(study_name="shared", storage=study_of._storage(storage))


@pytest.fixture(params=["sqlite", "journal"])
def storage(request, tmp_path):
    return f"sqlite:///{tmp_path}/s.db" if request.param == "sqlite" else f"journal:{tmp_path}/s.journal"


def test_two_workers_one_of_them_killed_lose_and_double_nothing(storage, tmp_path):
    one, other = tmp_path / "a.log", tmp_path / "b.log"
    first = start(storage, one, hang=4)
    until(lambda: len(lines(one)) == 4)
    second = start(storage, other)
    until(lambda: lines(other))
    hanging = [t for t in load(storage).trials if t.state == TrialState.RUNNING and t.number < 6]
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert second.wait(timeout=120) == 0
    study = load(storage)
    arms = [arm_of(t, SPACE) for t in study_of.finished(study)]
    assert len(arms) == len({*arms}) == 14
    assert not study.get_trials(states=(TrialState.RUNNING, TrialState.WAITING))
    assert hanging  # the killed worker had trials under way, and the other has done their lists
    assert all(study.trials[t.number].state == TrialState.FAIL for t in hanging)
    assert {arm_of(t, SPACE) for t in hanging} <= {*arms}
    done = [tuple(rows) for _, rows in (*lines(one), *lines(other))]
    assert len(done) == len({*done}) == 14
    assert max(t.value for t in study_of.finished(study)) > 0.7


def test_three_workers_do_no_more_than_was_asked_for(storage, tmp_path):
    logs = [tmp_path / f"{n}.log" for n in range(3)]
    workers = [start(storage, log, sampler="evolution", trials=12, batch=2) for log in logs]
    assert [w.wait(timeout=120) for w in workers] == [0, 0, 0]
    assert sum(len(lines(log)) for log in logs) == 12 == len(study_of.finished(load(storage)))


def memory(sampler="best-of-n"):
    return study_of.open_study(None, "s", make_sampler(sampler, SPACE), optuna.pruners.NopPruner(), {})


def test_a_worker_that_is_gone_or_silent_is_found_dead_and_a_living_one_is_not():
    study = memory()
    living, gone, silent, unknown = (study.ask(distributions(SPACE)) for _ in range(4))
    host_id = study_of.host_id()
    child = subprocess.Popen(["true"])
    child.wait()
    for trial, worker, beat in (
        (living, f"{host_id}:{os.getpid()}", time.time()),
        (gone, f"{host_id}:{child.pid}", time.time()),
        (silent, "elsewhere:1", time.time() - 1000),
        (unknown, "elsewhere:1", time.time() - 1),
    ):
        trial.set_user_attr("worker", worker)
        trial.set_user_attr("beat", beat)
    assert study_of.requeue_dead(study, SPACE) == 2
    assert study_of.requeue_dead(study, SPACE) == 0
    states = [t.state.name for t in study.trials]
    assert states == ["RUNNING", "FAIL", "FAIL", "RUNNING", "WAITING", "WAITING"]
    again = study.trials[4]
    assert arm_of(again, SPACE) == arm_of(study.trials[1], SPACE)
    assert again.user_attrs["again"] == 1


def test_a_list_that_another_worker_took_meanwhile_is_not_done_twice():
    study = memory()
    other = study.ask(distributions(SPACE))
    rows = dict(other.params)
    study.enqueue_trial(rows)
    assert study_of._claim(study, SPACE, 10) is None
    assert study.trials[1].user_attrs["why"] == "another worker has this list"
    claimed = study_of._claim(study, SPACE, 10)
    assert claimed is not None
    assert study_of._claim(study, SPACE, 2) is None
    assert study.trials[-1].user_attrs["why"] == "enough trials are under way"


def test_an_error_gives_the_trials_back_and_the_next_call_does_them():
    study, seen = memory(), []

    def broken(got):
        seen.extend(arm for _, arm in got)
        raise RuntimeError("the LM is gone")

    with pytest.raises(RuntimeError, match="gone"):
        study_of.run_trials(study, SPACE, 6, broken, batch=3)
    assert [t.state.name for t in study.trials] == ["FAIL"] * 3 + ["WAITING"] * 3

    def fine(got):
        for trial, _ in got:
            study.tell(trial, 0.5)

    study_of.run_trials(study, SPACE, 6, fine, batch=4)
    arms = [arm_of(t, SPACE) for t in study_of.finished(study)]
    assert len(arms) == 6
    assert {*seen} <= {*arms}


def test_signs_of_life_are_written_while_a_trial_runs(monkeypatch):
    monkeypatch.setattr(study_of, "BEAT", 0.02)
    study = memory()
    trial = study.ask(distributions(SPACE))
    written = set[float]()
    with study_of._alive([trial]):
        end = time.monotonic() + 60
        while len(written) < 3:
            assert time.monotonic() < end, "written in vain"
            written |= {study.trials[0].user_attrs.get("beat", 0.0)}
            time.sleep(0.005)
    first = study.trials[0].user_attrs["beat"]
    assert first >= max(written)
    time.sleep(0.1)
    assert study.trials[0].user_attrs["beat"] == first


def test_a_study_about_something_else_and_a_storage_that_cannot_be_opened_are_one_line(tmp_path):
    url = f"sqlite:///{tmp_path}/s.db"
    make = make_sampler("random", SPACE)
    none = optuna.pruners.NopPruner()
    study_of.open_study(url, "s", make, none, {"lm": "a"})
    study_of.open_study(url, "s", make, none, {"lm": "a"})
    with pytest.raises(DataError, match=r"its lm is 'a', not 'b'; give another --study"):
        study_of.open_study(url, "s", make, none, {"lm": "b"})
    for bad in ("nonsense", f"sqlite:///{tmp_path}/none/s.db", f"journal:{tmp_path}/none/s"):
        with pytest.raises(UsageError, match="cannot open the study storage") as caught:
            study_of.open_study(bad, "s", make, none, {})
        assert "\n" not in str(caught.value)


# -- a storage that a kill, a full disk or another program has spoilt --


HOLDER = """
import sys, time
from iclkit.tuners import _journal
append = _journal._append
def hang(file, data):
    file.seek(0, 2)
    file.write(data[: len(data) // 2])  # half of a line, with the lock held
    print("holding", flush=True)
    time.sleep(3600)
_journal._append = hang
_journal.Journal(sys.argv[1]).append_logs([{"op_code": 2, "worker_id": "w", "user_attr": {"a": "b"}, "study_id": 0}])
"""


def test_a_worker_killed_with_the_lock_in_its_hand_keeps_nobody_waiting_and_spoils_nothing(tmp_path, monkeypatch):
    path = tmp_path / "s.journal"
    study = study_of.open_study(f"journal:{path}", "s", make_sampler("random", SPACE), optuna.pruners.NopPruner(), {})
    before = path.read_bytes()
    child = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    )  # fmt: skip
    assert child.stdout.readline() == "holding\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not path.read_bytes().endswith(b"\n")
    Path(f"{path}.lock").symlink_to(path)  # what a version with Optuna's own lock leaves behind

    def waited(seconds):
        raise AssertionError(f"waited {seconds} s")

    monkeypatch.setattr(time, "sleep", waited)
    study.set_user_attr("after", "the kill")
    after = path.read_bytes()
    assert after.startswith(before)
    assert after[len(before) :].count(b"\n") == 1
    assert study_of._storage(f"journal:{path}").get_all_studies()[0].user_attrs == {"after": "the kill"}
    assert optuna.load_study(  # Optuna's own reader takes the file, too
        study_name="s",
        storage=optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path))),
    ).user_attrs == {"after": "the kill"}


def test_a_writer_waits_for_a_living_one(tmp_path):
    path, order = tmp_path / "s.journal", []
    journal = Journal(str(path))
    with path.open("r+b", buffering=0) as file, _locked(file, str(path)):
        thread = threading.Thread(target=lambda: (journal.append_logs([ENTRY]), order.append("second")))
        thread.start()
        thread.join(0.3)
        order.append("first")
        assert path.read_bytes() == b""
    thread.join()
    assert order == ["first", "second"]
    assert [*journal.read_logs(0)] == [ENTRY]


ENTRY = {"op_code": 2, "worker_id": "w", "user_attr": {"a": "b"}, "study_id": 0}


def test_a_journal_reads_on_where_it_stopped_and_leaves_out_what_is_not_whole_yet(tmp_path):
    path = tmp_path / "s.journal"
    writer, reader = Journal(str(path)), Journal(str(path))
    entries = [{**ENTRY, "n": n, "text": "\u2028" * n} for n in range(5)]
    for n, entry in enumerate(entries):
        writer.append_logs([entry])
        assert [*reader.read_logs(n)] == [entry]
    with path.open("ab") as file:
        file.write(b'{"op_code"')
    assert [*reader.read_logs(2)] == entries[2:]
    assert [*Journal(str(path)).read_logs(0)] == entries
    writer.append_logs(entries[:2])
    assert [*reader.read_logs(0)] == [*entries, *entries[:2]]


@pytest.mark.parametrize("line", ["{oops", "[]", "5", '{"op_code": "2"}', '{"op_code": 2}', "", "\xff", "[" * 100_000])
def test_a_damaged_journal_is_one_line_with_its_place(line, tmp_path):
    path = tmp_path / "s.journal"
    make, none = make_sampler("random", SPACE), optuna.pruners.NopPruner()
    study_of.open_study(f"journal:{path}", "s", make, none, {"lm": "a"})
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([lines[0], line.encode("latin-1"), *lines[1:]]))
    with pytest.raises(DataError, match=r"s\.journal, line 2: ") as caught:
        study_of.open_study(f"journal:{path}", "s", make, none, {"lm": "a"})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "line", ['{"op_code": 99, "worker_id": "w"}', '{"op_code": 4, "worker_id": "w"}', '{"op_code": 2, "worker_id": 5}']
)
def test_a_journal_that_cannot_be_played_back_is_one_line(line, tmp_path):
    path = tmp_path / "s.journal"
    make, none = make_sampler("random", SPACE), optuna.pruners.NopPruner()
    study_of.open_study(f"journal:{path}", "s", make, none, {})
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(DataError, match=r"s\.journal is damaged .*; put a copy of it in its place"):
        study_of.open_study(f"journal:{path}", "s", make, none, {})


FULL = """
import resource, signal, sys
from iclkit.errors import RunError
from iclkit.tuners._journal import Journal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
path, entry = sys.argv[1], {"op_code": 2, "worker_id": "w", "text": "x" * 1000}
journal = Journal(path)
journal.append_logs([entry])
resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))
try:
    journal.append_logs([entry])
except RunError as error:
    print(error)
assert [*journal.read_logs(0)] == [entry]
assert open(path, "rb").read().endswith(b"}" + bytes([10]))
"""


def test_a_full_disk_is_one_line_and_leaves_no_half_entry(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path / "s.journal")], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "cannot write the search's journal" in done.stdout
    assert "finished trials are kept" in done.stdout


@pytest.mark.parametrize("how", ["text", "cut", "zeroes"])
def test_a_damaged_database_is_one_line(how, tmp_path):
    path = tmp_path / "s.db"
    make, none = make_sampler("random", SPACE), optuna.pruners.NopPruner()
    study = study_of.open_study(f"sqlite:///{path}", "s", make, none, {"lm": "a"})
    study.enqueue_trial({"pos_0": 1})
    data = path.read_bytes()
    path.write_bytes(
        {"text": b"no database " * 400, "cut": data[:5000], "zeroes": data[:3000] + bytes(len(data) - 3000)}[how]
    )

    def use():
        with study_of.storage_errors(f"sqlite:///{path}"):
            again = study_of.open_study(f"sqlite:///{path}", "s", make, none, {"lm": "a"})
            study_of.check_trials(again, SPACE, 1)

    with pytest.raises((DataError, UsageError, RunError)) as caught:
        use()
    assert "s.db" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("params", "values", "spent", "value", "says"),
    [
        ({"pos_0": 0, "pos_1": 1}, [1.0, 0.0], {}, 0.5, "its list of trial 0"),
        ({"pos_0": 0, "pos_1": 1, "pos_2": 1}, [1.0, 0.0], {}, 0.5, "its list of trial 0"),
        ({"pos_0": 0, "pos_1": 1, "pos_2": 30}, [1.0, 0.0], {}, 0.5, "its list of trial 0"),
        ({"pos_0": 0, "pos_1": 1, "pos_2": 2}, None, {}, 0.5, "values of trial 0"),
        ({"pos_0": 0, "pos_1": 1, "pos_2": 2}, [1.0], {}, 0.5, "values of trial 0"),
        ({"pos_0": 0, "pos_1": 1, "pos_2": 2}, [1.0, "x"], {}, 0.5, "values of trial 0"),
        ({"pos_0": 0, "pos_1": 1, "pos_2": 2}, [1.0, float("nan")], {}, 0.5, "values of trial 0"),
        ({"pos_0": 0, "pos_1": 1, "pos_2": 2}, [1.0, 0.0], 5, 0.5, "spent of trial 0"),
        ({"pos_0": 0, "pos_1": 1, "pos_2": 2}, [1.0, 0.0], {}, float("inf"), "value of trial 0"),
    ],
)
def test_a_trial_that_this_search_cannot_have_made_is_named(params, values, spent, value, says):
    study = memory()
    dist = optuna.distributions.CategoricalDistribution([*range(31)])
    study.add_trial(
        optuna.trial.create_trial(
            params=params,
            distributions=dict.fromkeys(params, dist),
            value=value,
            user_attrs={"values": values, "spent": spent},
        )
    )
    with pytest.raises(DataError, match=says):
        study_of.check_trials(study, SPACE, 2)


def test_a_study_of_another_program_is_not_taken_over(tmp_path):
    url = f"sqlite:///{tmp_path}/s.db"
    optuna.create_study(storage=url, study_name="theirs").optimize(lambda trial: trial.suggest_float("x", 0, 1), 1)
    optuna.create_study(storage=url, study_name="up", direction="maximize").optimize(lambda _: 1.0, 1)
    for name in ("theirs", "up"):
        with pytest.raises(DataError, match=f"study '{name}' in .* is none of iclkit's"):
            study_of.open_study(url, name, make_sampler("random", SPACE), optuna.pruners.NopPruner(), {"lm": "a"})
        assert optuna.load_study(storage=url, study_name=name).user_attrs == {}


def test_a_password_stands_in_no_message():
    assert study_of.without_password("postgresql://me:se@cr/et@host:1/db") == "postgresql://…@host:1/db"
    assert study_of.without_password("sqlite:///search.db") == "sqlite:///search.db"
    assert study_of.without_password(None) == "memory"
    url = "postgresql://me:secret@127.0.0.1:1/db"
    with pytest.raises(UsageError, match="cannot open the study storage") as caught:
        study_of.open_study(url, "s", make_sampler("random", SPACE), optuna.pruners.NopPruner(), {})
    assert "secret" not in str(caught.value)
