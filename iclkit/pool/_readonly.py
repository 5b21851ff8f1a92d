"""Foreign SQL on a foreign SQLite file, without harm: read-only, SELECT only, in a process that can be ended.

SQLite counts steps of its virtual machine, but one step can take for ever (a LIKE with many wildcards) or all memory
(sorting rows that are a megabyte each), and no handler is called within it. So a query runs in a process of its own,
which is bounded in memory, cannot write a file, and is killed when it takes too long.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from iclkit.errors import DataError, RunError

_MEGABYTES = 256
_SCRIPT = Path(__file__).with_name("_readonly_worker.py")


class _Worker:
    """The process, started with the first query and again after it was killed; one query at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """The answer to a question; an error where there was none in its time or the process has died of it."""
        line, seconds = json.dumps(question).encode() + b"\n", question["seconds"]
        with self._lock:
            process = self._started()
            assert process.stdin is not None
            assert process.stdout is not None
            late = threading.Event()

            def stop() -> None:
                late.set()
                process.kill()

            timer = threading.Timer(seconds, stop)
            timer.daemon = True
            timer.start()
            try:
                process.stdin.write(line)
                process.stdin.flush()
                reply = process.stdout.readline()
            except OSError:
                reply = b""
            except BaseException:  # interrupted: the answer would be taken for that of the next question
                self._end()
                raise
            finally:
                timer.cancel()
            if reply.endswith(b"\n"):
                found: dict[str, Any] = json.loads(reply)
                return found
            self._end()
            return {"error": f"takes longer than {seconds:g} s" if late.is_set() else "ends the process that runs it"}

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            command = [sys.executable, "-I", "-S", str(_SCRIPT), str(_MEGABYTES)]
            try:
                self._process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
                )
            except OSError as error:
                raise RunError(f"cannot start a process for foreign SQL ({error.strerror})") from error
            atexit.register(self._end)
        return self._process

    def _end(self) -> None:
        process, self._process = self._process, None
        atexit.unregister(self._end)
        if process is not None:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):
                    if stream is not None:
                        stream.close()


_WORKER = _Worker()


def _forget() -> None:
    """A forked process starts its own: two must not talk to one."""
    global _WORKER
    _WORKER = _Worker()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def run_read_only(
    database: str | Path,
    sql: str,
    *,
    budget: int = 50_000_000,
    max_rows: int = 100_000,
    max_bytes: int = 16_000_000,
    seconds: float = 20.0,
) -> list[tuple[Any, ...]]:
    """The rows that one SELECT returns. DataError when it is no single SELECT, fails, or exceeds a bound.

    ``budget``: steps of SQLite's virtual machine, about 50 million a second: the bound that judges alike on a loaded
    machine. ``seconds`` of time and 256 MB of memory bound what is done within a step; ``max_rows`` and ``max_bytes``
    what is returned. Nothing but reading is allowed: no other file can be attached, no extension loaded, nothing
    written.
    """
    question = {
        "uri": f"{Path(database).resolve().as_uri()}?mode=ro",
        "sql": sql,
        "budget": budget,
        "max_rows": max_rows,
        "max_bytes": max_bytes,
        "seconds": seconds,
    }
    found = _WORKER.ask(question)
    if "error" in found:
        raise DataError(f"{database}: {found['error']}")
    return [tuple(bytes.fromhex(v["blob"]) if isinstance(v, dict) else v for v in row) for row in found["rows"]]
