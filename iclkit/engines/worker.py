"""A worker process: ``python -m iclkit.engines.worker``, with pipes to its parent as standard input and output.

It is a program of its own, which never imports the script that the user runs: a script needs no ``__main__`` guard,
and what it does at its top happens once.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from importlib import import_module
from traceback import format_exception_only
from typing import Any

from iclkit.engines._protocol import Channel, JobFailed, Result, WorkerFailed
from iclkit.errors import IclkitError


def main() -> None:
    """Load what the parent names, then answer its jobs until it hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    channel = Channel(os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb"))
    os.dup2(2, 1)  # what libraries print must not come between the answers
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    try:
        loader, settings = channel.receive()
        _serve(channel, loader, settings)
    except (EOFError, BrokenPipeError):  # the parent has closed, or is gone
        return


def _serve(channel: Channel, loader: str, settings: dict[str, Any]) -> None:
    reason, compute = "", None
    try:
        compute = _function(loader)(**settings)
    except Exception as error:  # whatever it is, the parent hears of it with the first job and does the work alone
        reason = _in_a_line(error)
    while True:
        job = channel.receive()
        if compute is None:
            channel.send(WorkerFailed(reason))
            return
        try:
            channel.send(Result(compute(job)))
        except IclkitError as error:
            channel.send(JobFailed(error))
        except BrokenPipeError:
            raise
        except Exception as error:  # the job may be innocent: the parent does it, and meets the error where it is not
            channel.send(WorkerFailed(_in_a_line(error)))
            return


def _function(loader: str) -> Callable[..., Callable[[Any], Any]]:
    module, _, name = loader.partition(":")
    function: Callable[..., Callable[[Any], Any]] = vars(import_module(module))[name]
    return function


def _in_a_line(error: Exception) -> str:
    text = str(error) if isinstance(error, IclkitError) else "".join(format_exception_only(error))
    return " ".join(text.split())[:300]


if __name__ == "__main__":
    main()
