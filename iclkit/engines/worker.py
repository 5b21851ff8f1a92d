"""A worker process: ``python -m iclkit.engines.worker``, with pipes to its parent as standard input and output.

It is a program of its own, which never imports the script that the user runs: a script needs no ``__main__`` guard,
and what it does at its top happens once.
"""

from __future__ import annotations

import os
import signal
from typing import Any

from iclkit.engines._protocol import Channel, WorkerFailed, answer, in_a_line, load_compute


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
        compute = load_compute(loader, settings)
    except Exception as error:  # whatever it is, the parent hears of it with the first job and does the work alone
        reason = in_a_line(error)
    while True:
        job = channel.receive()
        answered = WorkerFailed(reason) if compute is None else answer(compute, job)
        channel.send(answered)
        if isinstance(answered, WorkerFailed):
            return


if __name__ == "__main__":
    main()
