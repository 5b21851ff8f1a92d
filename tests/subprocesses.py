"""Programs that tests start, none of which outlives its time."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from subprocess import PIPE, CompletedProcess, Popen
from typing import Any


def run_python(code: str, *arguments: object, timeout: float = 120, **settings: Any) -> CompletedProcess[str]:
    """``python -c CODE ARGUMENTS``, its output and its errors as text.

    After ``timeout`` seconds it is killed with all that it started. (``subprocess.run`` kills the program alone, and
    then waits for whatever else holds its pipes.)
    """
    command = [sys.executable, "-c", code, *map(str, arguments)]
    with Popen(command, stdout=PIPE, stderr=PIPE, text=True, start_new_session=True, **settings) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except BaseException:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
    return CompletedProcess(command, process.returncode, out, err)
