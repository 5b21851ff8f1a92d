"""Commands in child processes that share this process's loaded libraries: killed, squeezed or watched as needed."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

STEERING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
BUG = 70  # what a child exits with when an exception got past the command line: a traceback for the user


@dataclass(frozen=True)
class Outcome:
    """``code`` is None for a child that was killed, by us or by its time limit (``late``)."""

    code: int | None
    out: str
    err: str
    seconds: float
    late: bool = False

    @property
    def fault(self) -> str:
        """What is wrong with how the command ended, or nothing."""
        if self.late:
            return f"still running after {self.seconds:.0f} s"
        if self.code == BUG or "Traceback (most recent call last)" in self.err:
            return "a traceback: " + self.err.strip().splitlines()[-1]
        if self.code not in (0, 1, 2):
            return f"exit code {self.code}"
        said = [line for line in self.err.splitlines() if line.startswith("error:")]
        if self.code and len(said) != 1:
            return f"exit code {self.code} with {len(said)} error lines: {self.err[-200:]!r}"
        if self.code == 0 and said:
            return f"exit code 0 with an error: {said[0]}"
        if found := STEERING.search(self.out + self.err):
            return f"control character {found.group()!r} in what it prints"
        return ""


@contextmanager
def started(words: list[str], folder: Path, home: Path, before: Callable[[], None] | None = None) -> Iterator[int]:
    """The process id of ``iclkit WORDS`` in ``folder``; the process and its children are gone afterwards."""
    sys.stdout.flush()
    sys.stderr.flush()
    for name in (".out", ".err"):
        (folder / name).write_bytes(b"")
    pid = os.fork()
    if pid == 0:
        _run(words, folder, home, before)
    try:
        yield pid
    finally:
        _kill(pid)


def _kill(pid: int) -> None:
    """A child and its children; one that has not become the leader of its group yet is killed alone."""
    for kill in (os.killpg, os.kill):
        with suppress(ProcessLookupError, PermissionError):
            kill(pid, signal.SIGKILL)


def call(
    words: list[str],
    folder: Path,
    home: Path,
    *,
    kill_after: float | None = None,
    before: Callable[[], None] | None = None,
    limit: float = 120.0,
) -> Outcome:
    """Run a command to its end, to its SIGKILL after ``kill_after`` seconds, or to its limit."""
    begun = time.monotonic()
    with started(words, folder, home, before) as pid:
        code, late = None, False
        end = begun + (limit if kill_after is None else kill_after)
        while True:
            done, status = os.waitpid(pid, os.WNOHANG)
            now = time.monotonic()
            if done:
                code = os.waitstatus_to_exitcode(status)
                break
            if now >= end:
                _kill(pid)
                os.waitpid(pid, 0)
                late = kill_after is None
                break
            time.sleep(min(0.002 if kill_after is not None else 0.01, end - now))
    texts = [(folder / name).read_bytes().decode("utf-8", "replace") for name in (".out", ".err")]
    return Outcome(code, *texts, time.monotonic() - begun, late)


def together(words: list[str], folder: Path, home: Path, count: int = 2, limit: float = 120.0) -> list[Outcome]:
    """The same command in ``count`` processes at once."""
    import threading

    outcomes: list[Outcome] = []

    def one(number: int) -> None:
        own = folder / f".process{number}"
        own.mkdir(exist_ok=True)
        outcomes.append(call(words, own, home, before=lambda: os.chdir(folder), limit=limit))

    threads = [threading.Thread(target=one, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def _run(words: list[str], folder: Path, home: Path, before: Callable[[], None] | None) -> None:
    code = BUG
    try:
        os.setsid()
        for number, name in ((1, ".out"), (2, ".err")):
            handle = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            os.dup2(handle, number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        # new streams on the new handles: this process's own belong to the test runner
        sys.stdout = sys.__stdout__ = os.fdopen(1, "w", encoding="utf-8")  # type: ignore[misc]
        sys.stderr = sys.__stderr__ = os.fdopen(2, "w", encoding="utf-8")  # type: ignore[misc]
        sys.stdin = os.fdopen(0, encoding="utf-8")
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        os.chdir(folder)
        os.environ["ICLKIT_HOME"] = str(home)
        if before is not None:
            before()
        from iclkit.cli import main

        main(words)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):
                code = code or 1
        os._exit(code)
