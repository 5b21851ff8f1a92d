"""Which of EASE's parts earn their place: one factor changed at a time, over many seeds, with the transport filter on.

Ordered lists of 4 of 100 made-up items whose best is known and has the value 1, the worst 0
(``iclkit.testing.OrderedSetProblem``), order-sensitive and order-free. What a sampler is told has noise of 0.1, as the
accuracy on 20 questions has; the transport costs say something of the items' worth. A way is judged by the true value
of the list that it would hand over, the one that was told the highest. What is finished is not done again; ``--table``
only prints.

With ``--texts FILE`` the items are demonstrations of that file, 100 drawn by each seed, and what one is worth lies in
the four main directions of the texts' embeddings. Then a list has a text, so that features of the whole block can be
compared with the embeddings side by side.

``--confirm`` prints something else of the same searches: how far the highest told value lies above the truth, and what
becomes of it when the three best lists meet 60 fresh questions, three times as many as the search asked. ``Below 0``
counts the proposals of which no list had a prediction with its bonus above zero.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from scipy.stats import t as student
from scipy.stats import ttest_1samp

from iclkit.embed import Embedder, encode_checked, load_embedder
from iclkit.prompts import Template
from iclkit.records import Example
from iclkit.testing import OrderedSetProblem
from iclkit.tuners import (
    Arm,
    BlockFeatures,
    EaseSampler,
    PositionFeatures,
    SearchSpace,
    SetSampler,
    arm_of,
    distributions,
    make_sampler,
    tune_preset,
)

PAPER = tune_preset("paper").sampler
NETWORK = "hidden=3,width=100,rate=0.001,steps=1000"
OURS = "ease,warmup=10,nu=0.01,neighbors=0.5,targets=standard,hidden=1,width=256,rate=0.01,steps=100,domain=2000"
WAYS = {
    "ease": OURS,
    "no bonus": OURS.replace("nu=0.01", "nu=1e-12"),
    "bonus x 3": OURS.replace("nu=0.01", "nu=0.1"),
    "bonus x 10": OURS.replace("nu=0.01", "nu=1.0"),
    "forty at random first": OURS.replace("warmup=10", "warmup=40"),
    "no neighbors": OURS.replace("neighbors=0.5", "neighbors=0.0"),
    "raw targets": OURS.replace("targets=standard", "targets=raw"),
    "raw targets, no neighbors": OURS.replace("targets=standard", "targets=raw").replace(
        "neighbors=0.5", "neighbors=0.0"
    ),
    "network of the paper": OURS.replace("hidden=1,width=256,rate=0.01,steps=100", NETWORK),
    "first weights of seed 0": OURS,
    "features of the block": OURS,
    "no transport": OURS.replace("domain=2000", "domain=250"),
    "confidence of the code": OURS + ",update=batch",
    "paper, warm-up 10": PAPER.replace("warmup=40", "warmup=10"),
    "evolution": "evolution",
    "tpe": "tpe",
    "best-of-n": "best-of-n",
}
SAME_WEIGHTS, BLOCK = "first weights of seed 0", ["features of the block"]
DEAR = [way for way, spec in WAYS.items() if NETWORK in spec or "steps=1000" in spec] + BLOCK
TOP, ASKED, FRESH = 3, 20, 60  # lists that meet fresh questions, questions of the search, fresh ones: the presets
ORDERED = {"ordered": True, "order-free": False}


@dataclass(frozen=True)
class TextProblem(OrderedSetProblem):
    """Items that are demonstrations, ``seen`` (n, d) their embeddings; worth lies in the main directions of these."""

    demos: tuple[Example, ...] = ()
    seen: Any = None

    @cached_property
    def vectors(self) -> Any:
        """(n, dim) unit rows."""
        centered = self.seen - self.seen.mean(0)
        made = centered @ np.linalg.svd(centered, full_matrices=False)[2][: self.dim].T
        made = made / made.std(0)
        return made / np.linalg.norm(made, axis=1, keepdims=True)


def text_problem(
    file: Path, embedder: Embedder, n: int, k: int, dim: int, seed: int, ordered: bool, noise: float
) -> TextProblem:
    """A problem over ``n`` demonstrations of the file."""
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    drawn = np.random.default_rng([seed, 3]).permutation(len(rows))[:n]
    demos = tuple(Example(rows[i]["input"], rows[i]["output"]) for i in drawn)
    seen = encode_checked(embedder, [Template().render_demo(e) for e in demos], "document").astype(np.float64)
    return TextProblem(n, k, dim, seed, ordered, noise, demos, seen)


def features_of(problem: OrderedSetProblem, way: str, embedder: Embedder | None) -> Any:
    """What the bandit sees of a list."""
    if not isinstance(problem, TextProblem):
        return PositionFeatures(problem.vectors, problem.k)
    if way not in BLOCK:
        return PositionFeatures(problem.seen, problem.k)
    assert embedder is not None
    written, template = [Template().render_demo(e) for e in problem.demos], Template()
    return BlockFeatures(embedder, lambda arm: template.separator.join(written[row] for row in arm.rows))


class WatchedEase(EaseSampler):
    """EASE that keeps the highest acquisition of each proposal."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.highest: list[float] = []
        self._of_one: list[float] = []

    def propose(self, tried: Any, waiting: Any, rng: np.random.Generator) -> Arm:
        self._of_one = []
        arm = super().propose(tried, waiting, rng)
        self.highest += [max(self._of_one)] if self._of_one else []
        return arm

    def _scores(self, *args: Any) -> Any:
        found = super()._scores(*args)
        self._of_one.append(float(found.max()))
        return found


def search(problem: OrderedSetProblem, way: str, trials: int, embedder: Embedder | None) -> dict[str, Any]:
    """True and told values of the lists tried, and CPU seconds of a trial."""
    seed, features = problem.seed, features_of(problem, way, embedder)
    space = SearchSpace(problem.n, problem.k, features=features, costs=problem.costs())
    sampler = make_sampler(WAYS[way], space, 0 if way == SAME_WEIGHTS else seed)  # proposals draw from rng below
    if isinstance(sampler, EaseSampler):
        sampler = WatchedEase(space, seed=sampler.seed, **asdict(sampler.options))
    study = optuna.create_study(direction="maximize", sampler=sampler)
    rng, true, told, start = np.random.default_rng([seed, 99]), [], [], time.process_time()
    tried: list[tuple[Arm, float]] = []
    for number in range(trials):
        if isinstance(sampler, SetSampler):  # asked as its study would ask it, without the study's own work
            arm = sampler.propose(tried, [], np.random.default_rng([seed, number]))
        else:
            trial = study.ask(distributions(space))
            found = arm_of(study._storage.get_trial(trial._trial_id), space)
            assert found is not None
            arm = found
        true.append(problem.value(arm.rows))
        told.append(problem.value(arm.rows, rng))
        tried.append((arm, told[-1]))
        if not isinstance(sampler, SetSampler):
            study.tell(trial, told[-1])
    highest = sampler.highest if isinstance(sampler, WatchedEase) else []
    spent = (time.process_time() - start) / trials
    return {"true": true, "told": told, "cpu": spent, "proposals": len(highest), "below": sum(h < 0 for h in highest)}


def half(values: np.ndarray) -> float:
    """Half of the 95 % interval of a mean."""
    n = len(values)
    return float(student.ppf(0.975, n - 1) * values.std(ddof=1) / n**0.5) if n > 1 else float("nan")


def holm(p: list[float]) -> list[float]:
    made, low = [0.0] * len(p), 0.0
    for place, n in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        low = made[n] = max(low, min(1.0, (len(p) - place) * p[n]))
    return made


def show(rows: list[dict[str, Any]], against: str, trials: int) -> None:
    """For each case, what each way found, and paired differences from one of them over the seeds that both have."""
    for case in dict.fromkeys(r["case"] for r in rows):
        own = {way: {r["seed"]: r for r in rows if (r["case"], r["way"]) == (case, way)} for way in WAYS}
        own = {way: runs for way, runs in own.items() if runs}
        if against not in own:
            continue
        found = {way: {s: _found(r, trials) for s, r in runs.items()} for way, runs in own.items()}
        gaps = {way: np.array([found[way][s] - found[against][s] for s in sorted({*runs} & {*own[against]})])
                for way, runs in own.items() if way != against}  # fmt: skip
        p = [float(ttest_1samp(g, 0).pvalue) if len(g) > 1 and g.std() > 0 else 1.0 for g in gaps.values()]
        corrected = dict(zip(gaps, holm(p), strict=True))
        print(f"\n{case}, {trials} trials\n")
        print(f"| way | seeds | value found | minus *{against}* | p, Holm | trials to 0.95 | never | CPU ms a trial |")
        print("|---|---:|---:|---:|---:|---:|---:|---:|")
        for way, runs in own.items():
            values = np.array([*found[way].values()])
            hits = [np.flatnonzero(np.array(r["true"][:trials]) >= 0.95) for r in runs.values()]
            first = np.array([float(h[0] + 1) if len(h) else trials + 1.0 for h in hits])
            ms = 1000 * np.mean([r["cpu"] for r in runs.values()])
            gap = gaps.get(way)
            apart = " | " if gap is None else f"{gap.mean():+.3f} ± {half(gap):.3f} | {corrected[way]:.3f}"
            print(f"| {way} | {len(runs)} | {values.mean():.3f} ± {half(values):.3f} | {apart} | {first.mean():.1f} ± "
                  f"{half(first):.1f} | {int((first > trials).sum())} | {ms:.0f} |")  # fmt: skip


def show_confirmed(rows: list[dict[str, Any]], trials: int, noise: float) -> None:
    """What the highest told value promises, and what is left of it after three lists met fresh questions."""
    for case in dict.fromkeys(r["case"] for r in rows):
        print(f"\n{case}, {trials} trials\n")
        print("| way | seeds | told the highest, minus its truth | truth after confirmation, minus before "
              "| confirmed figure minus its truth | proposals below 0 |")  # fmt: skip
        print("|---|---:|---:|---:|---:|---:|")
        for way in WAYS:
            runs = [r for r in rows if (r["case"], r["way"]) == (case, way)]
            if not runs:
                continue
            luck, gain, left = [], [], []
            for r in runs:
                true, told = (np.array(r[name][:trials]) for name in ("true", "told"))
                best = np.argsort(-told, kind="stable")[:TOP]
                fresh = np.random.default_rng([r["seed"], 7]).normal(true[best], noise / (FRESH / ASKED) ** 0.5)
                kept = int(np.argmax(fresh))
                luck.append(told[best[0]] - true[best[0]])
                gain.append(true[best[kept]] - true[best[0]])
                left.append(fresh[kept] - true[best[kept]])
            below, proposals = (sum(r.get(name, 0) for r in runs) for name in ("below", "proposals"))
            cells = " | ".join(f"{np.mean(v):+.3f} ± {half(np.array(v)):.3f}" for v in (luck, gain, left))
            print(f"| {way} | {len(runs)} | {cells} | {below} of {proposals} |")


def _found(run: dict[str, Any], trials: int) -> float:
    """The true value of the list that was told the highest."""
    return float(run["true"][int(np.argmax(run["told"][:trials]))])


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("--out", type=Path, default=Path("runs-ease"))
    ap.add_argument("--seeds", type=int, default=20)
    ap.add_argument("--first", type=int, default=0, help="the first seed, to share the work")
    ap.add_argument("--trials", type=int, default=40)
    ap.add_argument("--cases", nargs="*", default=[*ORDERED], choices=[*ORDERED])
    ap.add_argument("--noise", type=float, default=0.1, help="standard deviation of what the sampler is told")
    ap.add_argument("--ways", nargs="*", default=[w for w in WAYS if w not in DEAR], choices=[*WAYS])
    ap.add_argument("--against", default="ease")
    ap.add_argument("--texts", type=Path, help="lines of input and output: the items are demonstrations of these")
    ap.add_argument("--embedder", default="all-minilm-l6-v2,dtype=bf16")
    ap.add_argument("--table", action="store_true", help="only print what is there")
    ap.add_argument("--confirm", action="store_true", help="print what confirmation changes, not what was found")
    args = ap.parse_args()
    if not args.texts and {*args.ways} & {*BLOCK}:
        ap.error("made-up items have no text whose features could be seen; give --texts")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    args.out.mkdir(parents=True, exist_ok=True)
    log = args.out / "searches.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    done = {(r["case"], r["way"], r["seed"]) for r in rows if len(r["true"]) >= args.trials}
    embedder = load_embedder(args.embedder) if args.texts and not args.table else None
    of = f"{args.texts.parent.name}, " if args.texts else ""
    for seed in range(args.first, args.first if args.table else args.seeds):
        for name in args.cases:
            made = (100, 4, 4, seed, ORDERED[name], args.noise)
            problem = text_problem(args.texts, embedder, *made) if embedder else OrderedSetProblem(*made)
            for way in args.ways:
                case = f"{of}{name}, noise {args.noise:g}"
                if (case, way, seed) not in done:
                    row = {"case": case, "way": way, "seed": seed, **search(problem, way, args.trials, embedder)}
                    rows.append(row)
                    with log.open("a") as file:
                        file.write(json.dumps(row) + "\n")
    cases = {f"{of}{name}, noise {args.noise:g}" for name in args.cases}
    meant = [r for r in rows if r["case"] in cases and r["way"] in args.ways]
    if args.confirm:
        show_confirmed(meant, args.trials, args.noise)
    else:
        show(meant, args.against, args.trials)


if __name__ == "__main__":
    main()
