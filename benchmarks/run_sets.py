"""Trained retrievers with several demonstrations: the gain of each, and its share of the oracle's gain.

For each task all selectors choose K demonstrations among the same candidates, and from the whole pool; the oracle adds,
one after another, the candidate behind which the right answer is likeliest. All scores stay in the ledger.

    python benchmarks/run_sets.py trec -k 3 --retriever EPR=runs/epr-trec-0 --retriever Se2=runs/se2-trec-0
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from _common import default_data

from iclkit.datasets import load_task
from iclkit.embed import CARD, load_embedder
from iclkit.lm import load_lm
from iclkit.trainers import (
    SelectorSetup,
    StrategyResult,
    Training,
    corpus_of_tasks,
    interval,
    percent,
    preset,
    report_on,
)


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("task")
    ap.add_argument("--retriever", action="append", default=[], metavar="NAME=FOLDER", help="made by iclkit train")
    ap.add_argument("-k", type=int, default=3)
    ap.add_argument("--queries", type=int, default=60)
    ap.add_argument("--out", type=Path, default=Path("runs-sets"), help="for the ledger")
    ap.add_argument("--ledger", type=Path, help="one that trainings share, instead")
    ap.add_argument("--data", type=Path, default=default_data())
    ap.add_argument("--lm", default="smollm2-135m")
    args = ap.parse_args()
    for given in args.retriever:
        if "=" not in given or not (Path(given.partition("=")[2]) / CARD).is_file():
            ap.error(f"--retriever {given!r}: give NAME=FOLDER, a folder made by iclkit train")
    config = preset("epr", report=args.queries)
    corpus = corpus_of_tasks([load_task(str(args.data / args.task))], config)
    lm = load_lm(args.lm, workers=1, threads=1)
    training = Training(corpus, lm, args.out / args.task, config, ledger=args.ledger).prepare()
    setups = {"`bm25`": SelectorSetup("bm25"), "`knn`, untrained": SelectorSetup("knn", training.base)}
    for given in args.retriever:
        name, _, folder = given.partition("=")
        selector, retriever = json.loads((Path(folder) / CARD).read_text())["selector"], load_embedder(folder)
        setups[name] = SelectorSetup(selector, retriever)
        if selector != "knn":
            setups[f"`knn` with {name}"] = SelectorSetup("knn", retriever)
    head = "accuracy, % | from the whole pool | accuracy, % | share of the oracle's gain, %"
    print(f"| task | k | chosen by | among the candidates | {head} |")
    print("|---|---:|---|---:|---:|---:|---:|---:|")
    for name, setup in setups.items():
        report = report_on(training.session, corpus.tasks[0], {name: setup}, name, args.k)
        random, among, oracle, anywhere = report.strategies
        start = f"| {args.task} | {args.k} |"
        if name == "`bm25`":
            print(f"{start} random | {cells(random)} | – | – | 0 |")
            print(f"{start} oracle | {cells(oracle)} | – | – | 100 |")
        print(f"{start} {name} | {cells(among)} | {cells(anywhere)} | {percent(report.oracle_share)} |", flush=True)


def cells(result: StrategyResult) -> str:
    return f"{interval(result.gain)} | {percent(result.accuracy) if result.accuracy else '–'}"


if __name__ == "__main__":
    main()
