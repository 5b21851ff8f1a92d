"""The whole campaign: ``make test-faults``, or ``python -m tests.faults.campaign --only kills --kills 30``.

Prints a table of what was tried and held, and every trial that did not hold; exits with 1 when there is one.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from .trials import Trial


def sections(folder: Path, seed: int, kills: int, inputs: int) -> dict[str, Callable[[], Iterator[Trial]]]:
    """Name -> trials. Models are made once and shared."""
    from .inputs import input_trials
    from .kills import kill_trials
    from .machine import disk_trials, memory_trials, model_trials, writer_trials
    from .runs import run_trials
    from .servers import server_trials
    from .worlds import make_models, worlds

    lm, encoder = make_models(folder / "models")
    all_worlds = worlds(lm, encoder)

    def killing() -> Iterator[Trial]:
        per_world = -(-kills // len(all_worlds))
        for world in all_worlds:
            yield from kill_trials(world, folder / "kills", per_world, random.Random(f"{seed}{world.name}"))

    return {
        "kills": killing,
        "inputs": lambda: input_trials(folder / "inputs", random.Random(f"{seed}inputs"), inputs),
        "servers": lambda: server_trials(folder / "servers"),
        "runs": lambda: run_trials(folder / "runs", lm),
        "models": lambda: model_trials(folder / "damaged", lm, encoder),
        "disk": lambda: disk_trials(folder / "disk", all_worlds),
        "memory": lambda: memory_trials(folder / "memory", lm),
        "writers": lambda: writer_trials(folder / "writers", all_worlds),
    }


def table(trials: list[Trial]) -> str:
    """Markdown: what was tried, how often, how often it held."""
    lines = ["| what was tried | on | faults | held |", "|---|---|---:|---:|"]
    names = dict.fromkeys((t.kind, t.name) for t in trials)
    for kind, name in names:
        own = [t for t in trials if (t.kind, t.name) == (kind, name)]
        total = sum(t.count for t in own)
        lines.append(f"| {kind} | {name} | {total} | {sum(t.count for t in own if not t.wrong)} |")
    total = sum(t.count for t in trials)
    lines.append(f"| **all** | | **{total}** | **{sum(t.count for t in trials if not t.wrong)}** |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=225)
    parser.add_argument("--inputs", type=int, default=400, help="hostile inputs, at least")
    parser.add_argument("--only", action="append", help="a section; may repeat")
    parser.add_argument("--table", type=Path, help="write the table to this file too")
    given = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    trials: list[Trial] = []
    with tempfile.TemporaryDirectory(prefix="iclkit-faults-") as where:
        chosen = sections(Path(where), given.seed, given.kills, given.inputs)
        unknown = set(given.only or ()) - set(chosen)
        if unknown:
            parser.error(f"no section {', '.join(sorted(unknown))}; known: {', '.join(chosen)}")
        for name in given.only or chosen:
            begun, before = time.monotonic(), len(trials)
            for trial in chosen[name]():
                trials.append(trial)
                if trial.wrong:
                    print(f"NOT HELD  {trial.kind} · {trial.name}: {trial.wrong}", file=sys.stderr, flush=True)
            print(
                f"{name}: {len(trials) - before} trials in {time.monotonic() - begun:.0f} s",
                file=sys.stderr,
                flush=True,
            )
    print(table(trials))
    if given.table:
        given.table.write_text(table(trials) + "\n", encoding="utf-8")
    return int(any(t.wrong for t in trials))


if __name__ == "__main__":
    sys.exit(main())
