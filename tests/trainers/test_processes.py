"""Batches for several processes; tests that start some are in test_train.py."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from iclkit.errors import RunError
from iclkit.trainers import _processes
from iclkit.trainers._processes import batches_for, shard_batches

BATCHES = [[1, 2], [3, 4], [5], [6, 7], [8, 9]]


@pytest.fixture
def count(monkeypatch):
    return lambda n: monkeypatch.setattr(_processes, "processes", lambda: SimpleNamespace(num_processes=n))


def test_one_process_takes_every_batch_and_several_the_whole_ones_in_turn(count):
    count(1)
    assert (shard_batches(BATCHES, 2), batches_for(5)) == (BATCHES, 5)
    count(3)
    assert (shard_batches(BATCHES, 2), batches_for(5)) == ([[1, 2], [3, 4], [6, 7]], 15)
    assert shard_batches([], 2) == []


def test_too_few_whole_batches_are_an_error_that_says_what_to_do(count):
    count(5)
    with pytest.raises(RunError, match="4 whole batches of 2 are not enough for 5 processes: start fewer"):
        shard_batches(BATCHES, 2)
