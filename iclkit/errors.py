"""Every error iclkit raises on purpose, and the exit code the command line gives it.

    IclkitError (1)
    ├── UsageError (2)        the command or the call must change
    │   ├── UnknownName       a selector, order, model or task that is not registered; offers the nearest name
    │   └── NeedError         a selector was not given what it declares in ``needs``
    ├── DataError (1)         a file, a row or a pool is not what it should be
    │   ├── OverBudget        instruction and query alone are more than a prompt may hold
    │   ├── PoolError         the pool file cannot be used (newer version, not a pool, corrupted)
    │   │   └── ChangedElsewhere  an example is not as it was when it was read
    │   └── LeakError         test rows were found in the pool and the user asked to stop
    ├── ModelError (1)        a model cannot be found, fetched, verified or loaded, or gives what is no score
    │   └── RequestError      one request that an LM can never answer; costs its row, not the run
    └── RunError (1)          work that had started could not be finished
        └── NothingAnswered   every query of a run failed

The text of an error is one line: what was expected, what came, what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from iclkit.secrets import redact


class IclkitError(Exception):
    """Base class. ``exit_code`` is what the command line returns: 1 (data or run) or 2 (usage).

    Its text holds no secret: API keys and passwords that a server or a library has put into it are taken out here.
    """

    exit_code = 1

    def __init__(self, *args: object) -> None:
        super().__init__(*(redact(a) if isinstance(a, str) else a for a in args))

    def __reduce__(
        self,
    ) -> tuple[Any, ...]:  # between processes whole: Exception's own would call __init__ with the text
        return _rebuild, (type(self), self.args, self.__dict__)


def _rebuild(kind: type[IclkitError], args: tuple[Any, ...], attributes: dict[str, Any]) -> IclkitError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(attributes)
    return error


class UsageError(IclkitError):
    """The command or the call has to be changed."""

    exit_code = 2


class UnknownName(UsageError):
    """``name`` is not one of ``known``; the nearest known name is offered."""

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        self.kind, self.name, self.known = kind, name, tuple(sorted(known))
        near = difflib.get_close_matches(name, self.known, n=1, cutoff=0.5)
        offer = f" Did you mean {near[0]!r}?" if near else ""
        listing = ", ".join(self.known) or "none"
        super().__init__(f"no {kind} named {name!r}.{offer} Known: {listing}.{' ' + hint if hint else ''}")


class NeedError(UsageError):
    """A selector needs something (an embedder, an LM, labels) that it was not given."""


class DataError(IclkitError):
    """A file, a row or a value is not what it should be; the text names file, line, field and remedy."""


class OverBudget(DataError):
    """Instruction and query alone take more tokens than a prompt may hold."""


class PoolError(DataError):
    """A pool file cannot be used as it is."""


class ChangedElsewhere(PoolError):
    """An example was changed or removed after it was read; ``now`` is the id it has become, None where it is gone."""

    def __init__(self, example_id: str, now: str | None) -> None:
        self.example_id, self.now = example_id, now
        what = "removed" if now is None else "changed" if now == example_id else f"changed, and is {now} now,"
        super().__init__(f"{example_id} was {what} after it was read; look at it again")


class LeakError(DataError):
    """Test rows stand in the pool and ``--on-leak stop`` was asked for."""


class ModelError(IclkitError):
    """A model cannot be found, fetched, verified or loaded."""


class RequestError(ModelError):
    """Request number ``index`` of a call can never be answered (over the context, refused by the server).

    The one error of an LM that costs a row and not the run: whoever asked leaves that request out, records why, and
    asks again for the others. What was answered before it has been handed to ``on_done`` and cached.
    """

    def __init__(self, index: int, reason: str) -> None:
        self.index = index
        super().__init__(reason)


class RunError(IclkitError):
    """A run that had started cannot go on; what was computed is kept."""


class RunBusy(RunError):
    """Another process works on the same run, and the caller does not want to wait for it."""


class NothingAnswered(RunError):
    """Every query of a run failed, so that there is nothing to judge; the text gives the first one's reason."""
