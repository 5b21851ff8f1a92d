"""A lock that is not copied with what holds it."""

from __future__ import annotations

import copy
import pickle
import threading

import pytest

from iclkit.locks import Lock


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, lambda lock: pickle.loads(pickle.dumps(lock))])  # noqa: S301
def test_a_copy_of_a_held_lock_is_free_and_holds_for_itself(copied) -> None:
    entered: list[str] = []

    def enter() -> None:
        with other:
            entered.append("other")

    with Lock() as lock:
        other = copied(lock)
        with other:
            thread = threading.Thread(target=enter)
            thread.start()
            assert entered == []
        thread.join(60)
    assert entered == ["other"]
    assert lock is not other
