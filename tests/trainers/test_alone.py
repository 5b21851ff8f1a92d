"""Two processes at one training folder: one trains, the other says so."""

from __future__ import annotations

import pytest

from iclkit.errors import RunError
from iclkit.files import try_lock
from iclkit.trainers import Training, corpus_of_tasks, preset


def test_a_folder_that_another_process_is_making_is_left_to_it(mode_task, bag, tmp_path) -> None:
    task, judge = mode_task
    config = preset("epr", base=str(bag), candidates="random:8", queries=8, held_out=4, report=0, batch_size=4)
    training = Training(corpus_of_tasks([task], config), judge, tmp_path / "out", config)
    (tmp_path / "out.work").mkdir()
    with (tmp_path / "out.work" / "lock").open("a") as lock:  # a lock of its own, as another process has it
        assert try_lock(lock)
        for work in (training.score, training.run):
            with pytest.raises(RunError, match="is being made by another process"):
                work()
    assert not (tmp_path / "out").exists()
