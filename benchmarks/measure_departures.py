"""How often iclkit's departures from the papers and their codes make a difference: counts on real data.

    python benchmarks/measure_departures.py texts TASK… [--queries 300]
    python benchmarks/measure_departures.py scores TASK LEDGER [--positives 3] [--negatives 3]

TASK is a folder of a data set. ``texts`` asks no LM: what is looked for stands in texts and their tokens. ``scores``
reads what a training of EPR, UDR, LLM-R or CEIL left in its ``--ledger``, one demonstration at a time but for the line
about sets. Shares are in per cent of the queries unless a line says otherwise, with 95 % intervals.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from iclkit import models
from iclkit.datasets import load_task
from iclkit.embed import Embedder, encode_checked, load_embedder
from iclkit.eval import estimate
from iclkit.records import Example
from iclkit.trainers._config import Source
from iclkit.trainers._data import TaskData, TrainingData, corpus_of_tasks
from iclkit.trainers._epr import EPRConfig, extremes
from iclkit.trainers._feedback import feedback_value, is_correct
from iclkit.trainers._ledger import LabelScores, Ledger
from iclkit.trainers._mine import Miner
from iclkit.tuners import SearchSpace
from iclkit.tuners._bandit import transports

Candidates = list[tuple[int, LabelScores]]
"""Rows with their scores, in the order of rows."""
Ranking = list[tuple[int, float]]
"""Rows with their values, best first."""
TIED = 1e-9  # nats
DRAWS, CANDIDATES, VALIDATION, LIST, LISTS, KEPT, BATCHES = 5, 100, 20, 5, 50_000, 1_000, 20  # EASE's
SMALL = 128, 256  # tokens: half of what the small presets read of a text, and that
SHOTS, SET, CONTEXT, ENCODER_TOKENS = 3, 16, 2048, 512  # Se²'s demonstrations, CEIL's sets, GPT-Neo's and BERT's texts


class OpenMiner(Miner):
    """Finds the query's own row and its copies, too, as the released codes do before they drop something."""

    def forbidden(self, example: Example) -> list[int]:  # noqa: ARG002
        return []


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sub = ap.add_subparsers(dest="what", required=True)
    texts = sub.add_parser("texts")
    texts.add_argument("tasks", type=Path, nargs="+", metavar="TASK")
    texts.add_argument("--queries", type=int, default=300)
    scores = sub.add_parser("scores")
    scores.add_argument("task", type=Path, metavar="TASK")
    scores.add_argument("ledger", type=Path, metavar="LEDGER")
    scores.add_argument("--positives", type=int, default=3)
    scores.add_argument("--negatives", type=int, default=3)
    args = ap.parse_args()
    if args.what == "texts":
        columns = {}
        for folder in args.tasks:
            corpus = corpus_of_tasks([load_task(folder)], EPRConfig(queries=args.queries, held_out=0, report=0))
            columns[corpus.tasks[0].name] = counts_of_texts(corpus, corpus.tasks[0])
    else:
        corpus = corpus_of_tasks([load_task(args.task)], EPRConfig(report=0))
        columns = {corpus.tasks[0].name: counts_of_scores(corpus, args.ledger, args.positives, args.negatives)}
    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    print("| |" + "".join(f" {task} |" for task in columns))
    print("|---|" + "---:|" * len(columns))
    for name in names:
        print(f"| {name} |" + "".join(f" {column.get(name, '–')} |" for column in columns.values()))


def share(values: Sequence[float]) -> str:
    """Per cent, with its interval."""
    e = estimate(np.array([values], float))
    return f"{100 * e.value:.1f} ({100 * e.low:.1f}–{100 * e.high:.1f})"


def mean(values: Sequence[float]) -> str:
    """Mean with its normal interval."""
    m, half = float(np.mean(values)), 1.96 * float(np.std(values, ddof=1)) / len(values) ** 0.5
    return f"{m:+.2f} ({m - half:+.2f} … {m + half:+.2f})"


# --- what stands in texts ---------------------------------------------------------------------------------------------


def counts_of_texts(corpus: TrainingData, task: TaskData) -> dict[str, str]:
    """Copies, ties, and what does not fit, of the training queries."""
    examples, folded = corpus.examples, corpus.inputs()
    rows = task.queries.tolist()
    queries = [examples[r] for r in rows]
    encoder = load_embedder("all-minilm-l6-v2", dtype="fp32")
    miner = OpenMiner(corpus, 0, encoder)
    by_inputs = miner.mine(task, queries, [Source("bm25", 51)])
    by_outputs = miner.mine(task, queries, [Source("bm25", 51, output=True)])
    nearest = Miner(corpus, 0, encoder).mine(task, queries, [Source("knn", 100)])
    facts = {"queries": f"{len(rows)}"}
    for side, mined in (("inputs", by_inputs), ("outputs", by_outputs)):
        facts[f"BM25 on {side}: the first hit is not the query's own row"] = share(
            [int(hits[0]) != row for row, hits in zip(rows, mined, strict=True)]
        )
        facts[f"BM25 on {side}: with the first hit dropped, one of 50 candidates repeats the query's input"] = share(
            [any(folded[h] == folded[row] for h in hits[1:]) for row, hits in zip(rows, mined, strict=True)]
        )
    if task.labels:
        facts["BM25 on outputs: candidates with the query's own label, of all candidates"] = share(
            [float(np.mean([examples[h].output == q.output for h in hits[1:]]))
             for q, hits in zip(queries, by_outputs, strict=True)]
        )  # fmt: skip
    index = corpus.view.index(encoder.for_task(task.name))
    rng = np.random.default_rng(0)
    twice, sets_twice = [], []
    for hits in nearest:
        unit = index.vectors(corpus.view.rows[hits])
        same = np.triu(unit @ unit.T > 1 - 1e-6, 1)
        twice.append(bool(same.any()))
        drawn = [rng.choice(len(hits), min(SET, len(hits)), replace=False) for _ in range(50)]
        sets_twice.append(float(np.mean([same[np.ix_(s, s)].any() or same[np.ix_(s, s)].T.any() for s in drawn])))
    facts["the 100 nearest hold a direction twice"] = share(twice)
    facts[f"sets of {SET} of these with determinant 0, of all sets"] = share(sets_twice)
    facts |= lengths(corpus, task, rows, nearest, rng)
    facts |= lists_by_transport(corpus, task, encoder, rng)
    return facts


def lengths(
    corpus: TrainingData, task: TaskData, rows: Sequence[int], nearest: Sequence[NDArray[np.int64]],
    rng: np.random.Generator,
) -> dict[str, str]:  # fmt: skip
    """How often texts of several demonstrations are too long."""
    examples = corpus.examples
    prompt = token_counter(str(models.resolve("smollm2-135m", "lm")))
    text = token_counter(str(models.resolve("all-minilm-l6-v2", "embedder")))
    shown = [prompt(f"{e.text}\n{e.output}\n\n") for e in examples]
    read = [text(f"{e.text} {e.output}") for e in examples]
    states = [sum(read[r] for r in rng.choice(task.rows, SHOTS, replace=False)) + text(examples[q].text) for q in rows]
    sets = [sum(shown[r] for r in rng.choice(hits, min(SET, len(hits)), replace=False)) + shown[q]
            for q, hits in zip(rows, nearest, strict=True)]  # fmt: skip
    small = {
        f"{what} more than {limit} tokens, of all": share([n > limit for n in tokens])
        for limit in SMALL
        for what, tokens in (("demonstrations that have", read), (f"states of {SHOTS} that have", states))
    }
    return small | {
        f"a state of {SHOTS} random demonstrations and the query has more than {ENCODER_TOKENS} tokens": share(
            [n > ENCODER_TOKENS for n in states]
        ),
        f"a set of {SET} of the 100 nearest and the query have more than {CONTEXT} tokens": share(
            [n > CONTEXT for n in sets]
        ),
        "tokens of the longest such state, and of the longest such set": f"{max(states)}, {max(sets)}",
    }


def lists_by_transport(
    corpus: TrainingData, task: TaskData, encoder: Embedder, rng: np.random.Generator
) -> dict[str, str]:
    """EASE's filter over 50,000 lists of 5 at once, and over 20 batches of 2,500 of them: what the 1,000 kept cost."""
    template, apart, both = task.template, [], []
    for _ in range(DRAWS):
        drawn = rng.choice(task.rows, CANDIDATES + VALIDATION, replace=False)
        vectors = encode_checked(encoder, [template.render_demo(corpus.examples[r]) for r in drawn], "document")
        moved = 1.0 - np.asarray(vectors[:CANDIDATES] @ vectors[CANDIDATES:].T, float)
        space = SearchSpace(CANDIDATES, LIST, costs=moved)
        lists = np.stack([rng.choice(CANDIDATES, LIST, replace=False) for _ in range(LISTS)])
        at_once = space.nearest(lists, KEPT)
        in_batches = [space.nearest(part, KEPT // BATCHES) for part in np.split(lists, BATCHES)]
        costs = [np.concatenate([transports(moved[kept]) for kept in kinds]).mean()
                 for kinds in ([at_once], in_batches, [lists[:KEPT]])]  # fmt: skip
        apart.append(float((costs[1] - costs[0]) / (costs[2] - costs[0])))
        kept = {*map(tuple, at_once.tolist())}
        both.append(float(np.mean([tuple(row) in kept for part in in_batches for row in part.tolist()])))
    return {
        f"EASE: of {KEPT:,} lists kept in {BATCHES} batches, those kept by one filter over all ({DRAWS} draws)": share(
            both
        ),
        "EASE: what batches lose of the filter's gain on random lists": share(apart),
    }


def token_counter(folder: str) -> Callable[[str], int]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    return lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])


# --- what stands in a ledger ------------------------------------------------------------------------------------------


def counts_of_scores(corpus: TrainingData, ledger: Path, positives: int, negatives: int) -> dict[str, str]:
    """Ties, values and labels among the scored candidates of each query."""
    examples, task = corpus.examples, corpus.tasks[0]
    row_of = {e.id: r for r, e in enumerate(examples)}
    by_query: dict[int, dict[int, LabelScores]] = {}
    of_sets: dict[tuple[int, int], list[LabelScores]] = {}
    opened = Ledger(ledger)
    for scope in opened.scopes():
        for query, shown, scores in opened.rows(scope):
            if query not in row_of:
                continue
            if len(shown) == 1:
                by_query.setdefault(row_of[query], {})[row_of[shown[0]]] = scores
            else:
                of_sets.setdefault((row_of[query], len(shown)), []).append(scores)
    asked = {q: sorted(c.items()) for q, c in sorted(by_query.items()) if len(c) >= positives + negatives}
    n = float(np.median([len(c) for c in asked.values()]))
    facts = {"queries, and candidates of each (median)": f"{len(asked)}, {n:g}"}
    values: dict[str, dict[int, Ranking]] = {
        how: {q: ranking(c, how) for q, c in asked.items()} for how in (("share", "gold") if task.labels else ("gold",))
    }
    for how, ranked in values.items():
        facts[f"{how}: a tie at either end shortens the best {positives} or the worst {negatives}"] = share(
            [tuple(map(len, extremes(r, positives, negatives))) != (positives, negatives) for r in ranked.values()]
        )
    how = "share" if task.labels else "gold"
    ranked = values[how]
    facts[f"{how}: mean of the best {positives} minus the best, nats"] = mean(
        [float(np.mean([v for _, v in r[:positives]])) - r[0][1] for r in ranked.values()]
    )
    facts[f"{how}: best of a random third of the candidates minus the best, nats"] = mean(
        [best_of_a_third([v for _, v in r]) - r[0][1] for r in ranked.values()]
    )
    pairs = [abs(a - b) < TIED for sets in of_sets.values()
             for a, b in combinations([feedback_value(s, how) for s in sets], 2)]  # fmt: skip
    if pairs:
        facts[f"{how}: pairs of a query's sets with equal values, of {len(pairs):,} pairs"] = share(pairs)
    if task.labels:
        facts |= counts_of_labels(examples, asked, values, positives, negatives)
    return facts


def counts_of_labels(
    examples: Sequence[Example], asked: Mapping[int, Candidates], values: Mapping[str, dict[int, Ranking]],
    positives: int, negatives: int,
) -> dict[str, str]:  # fmt: skip
    """What only a task with labels has: other values, the LM's right answers, and the labels of candidates."""
    ranked, gold = values["share"], values["gold"]
    ratio = {q: ranking(c, "ratio") for q, c in asked.items()}
    right = {q: {r: bool(is_correct(s)) for r, s in c} for q, c in asked.items()}
    facts = {}
    for name, other in (("gold (UDR's code)", gold), ("ratio of mean losses (Se²'s code)", ratio)):
        facts[f"share and {name}: Kendall's tau of the two rankings"] = mean(
            [agreement(ranked[q], other[q]) for q in asked]
        )
        facts[f"share and {name}: another best candidate"] = share([ranked[q][0][0] != other[q][0][0] for q in asked])
        facts[f"the LM is right with the best by {name}"] = share([right[q][other[q][0][0]] for q in asked])
    facts["the LM is right with the best by share"] = share([right[q][ranked[q][0][0]] for q in asked])
    facts[f"the LM is right with one of the best {positives} by share, drawn"] = share(
        [float(np.mean([right[q][r] for r, _ in ranked[q][:positives]])) for q in asked]
    )
    facts["the LM is right with a candidate at random"] = share([float(np.mean([*right[q].values()])) for q in asked])
    facts[f"no candidate of a list of {2 * positives} at random makes the LM right"] = share(
        [none_right([*right[q].values()], 2 * positives) for q in asked]
    )
    facts["the best candidate has another label than the query"] = share(
        [examples[ranked[q][0][0]].output != examples[q].output for q in asked]
    )
    facts[f"one of the best {positives} has another label than the query"] = share(
        [any(examples[r].output != examples[q].output for r, _ in ranked[q][:positives]) for q in asked]
    )
    facts[f"one of the worst {negatives} has the query's label"] = share(
        [any(examples[r].output == examples[q].output for r, _ in ranked[q][-negatives:]) for q in asked]
    )
    facts[f"fewer than {negatives} candidates have another label than the query"] = share(
        [sum(examples[r].output != examples[q].output for r, _ in ranked[q]) < negatives for q in asked]
    )
    return facts


def ranking(candidates: Candidates, how: str) -> Ranking:
    """Rows with their values, best first; ``ratio``: 1 minus the gold option's share of the sum of all mean losses."""

    def value(scores: LabelScores) -> float:
        if how != "ratio":
            return feedback_value(scores, how)
        losses = [-v / max(1, t) for v, t in zip(scores.logprobs, scores.tokens, strict=True)]
        return 1 - losses[scores.gold] / sum(losses)

    return sorted(((r, value(s)) for r, s in candidates), key=lambda rv: (-rv[1], rv[0]))


def agreement(one: Ranking, other: Ranking) -> float:
    """Kendall's tau of two rankings of the same rows."""
    place = {r: n for n, (r, _) in enumerate(other)}
    order = [place[r] for r, _ in one]
    return float(np.mean([1.0 if a < b else -1.0 for a, b in combinations(order, 2)]))


def best_of_a_third(values: Sequence[float]) -> float:
    """The expected best of a third of some values, drawn at random without replacement; values come best first."""
    n, size, expected, reached = len(values), max(1, round(len(values) / 3)), 0.0, 1.0
    for k, value in enumerate(values):  # that the best drawn is the k-th best: none before it, then this one
        drawn = size / (n - k)
        expected += reached * min(1.0, drawn) * value
        reached *= 1 - min(1.0, drawn)
    return expected


def none_right(right: Sequence[bool], size: int) -> float:
    """The chance that a random list of some candidates has none with which the LM is right."""
    wrong, n, chance = len(right) - sum(right), len(right), 1.0
    for k in range(min(size, n)):
        chance *= max(0, wrong - k) / (n - k)
    return chance


if __name__ == "__main__":
    main()
