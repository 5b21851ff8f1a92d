"""SIGKILL at random moments of every long command; afterwards the same command gives what an unbroken one gives."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from .children import call
from .trials import Trial
from .worlds import World, fresh


def kill_trials(world: World, folder: Path, kills: int, rng: random.Random) -> Iterator[Trial]:
    """At least ``kills`` kills, up to three before each unbroken run."""
    work, home = fresh(world, folder / "whole")
    unbroken = call([*world.words], work, home)
    if unbroken.code != 0:
        yield Trial("kill", world.name, f"the unbroken command fails: {unbroken.fault or unbroken.err[-300:]}")
        return
    expected = world.result(work, home)
    done = 0
    while done < kills:
        work, home = fresh(world, folder / "broken")
        moments = [rng.uniform(0.0, 1.0) * unbroken.seconds for _ in range(min(rng.randint(1, 3), kills - done))]
        landed = 0
        for moment in moments:
            outcome = call([*world.words], work, home, kill_after=moment)
            landed += outcome.code is None  # a resumed command may be through before its kill
            if outcome.code not in (None, 0):
                yield Trial("kill", world.name, outcome.fault or f"exit code {outcome.code}: {outcome.err[-300:]}")
        again = call([*world.words], work, home)
        at = ", ".join(f"{m:.3f}" for m in moments)
        wrong = again.fault or (f"exit code {again.code}: {again.err[-300:]}" if again.code else "")
        if not wrong and world.result(work, home) != expected:
            wrong = "the result is not that of the unbroken command"
        yield Trial(
            "kill", world.name, f"{wrong} (killed after {at} s of {unbroken.seconds:.2f})" if wrong else "", landed
        )
        done += max(landed, 1)
