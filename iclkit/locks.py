"""A lock for objects that are copied."""

from __future__ import annotations

import threading


class Lock:
    """``threading.Lock`` as a context manager; what holds one can be pickled and deep-copied, and the copy has its own.

    >>> import pickle
    >>> with Lock() as lock:
    ...     copied = pickle.loads(pickle.dumps(lock))
    >>> with copied:  # it is free
    ...     pass
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> Lock:
        self._lock.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[type[Lock], tuple[()]]:
        return Lock, ()
