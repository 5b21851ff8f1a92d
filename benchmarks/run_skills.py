"""Skill-KNN with a strong rewriter for a weak task LM: on a task where wording misleads, and on text-to-SQL.

``hidden-skill`` (``iclkit.testing.hidden_skill_task``): what a text is about says nothing about its label. Its sixteen
annotated pairs come from another draw. ``geoquery``: questions to SQL, with the pairs of the style ``parsing``.

Picks are judged without a task LM by *overlap*: the share that has the query's own skill (GeoQuery: the SQL template of
its gold query); and with the task LM by accuracy and the log-probability of the right answer. Rewritings and scores are
kept in the LM cache; what is finished is not done again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from _common import default_data

from iclkit.datasets import Task, load_task
from iclkit.embed import load_embedder
from iclkit.eval import difference, estimate
from iclkit.lm import LM, load_lm
from iclkit.pool import Pool
from iclkit.prompts import answer_requests, assemble
from iclkit.records import Example, Query
from iclkit.selectors import Kit, make_selector
from iclkit.testing import OracleRewriter, hidden_skill_task


def ways(style: str, strong: str, weak: str, rewrites: int, perfect: bool) -> dict[str, tuple[str, Any]]:
    """Selector specs by name, with the rewriter of each that has one."""
    several = f"skill-knn,style={style},rewrites={rewrites}"
    one = f"skill-knn,style={style},variant=base"
    made = {
        "knn": ("knn", None),
        "skill-knn, a stronger LM writes": (one, strong),
        "skill-knn, the task LM writes": (one, weak),
        "bm25": ("bm25", None),
        "random": ("random", None),
    }
    if rewrites > 1:
        made[f"skill-knn, a stronger LM writes {rewrites} keys"] = (several, strong)
    return made | ({"skill-knn, perfect keys": (one, OracleRewriter())} if perfect else {})


def annotated(out: Path) -> str:
    """A style for the hidden-skill task: sixteen texts of another draw, with what they ask for."""
    texts = [e.text for e in hidden_skill_task(seed=99).train[:16]]
    answers = OracleRewriter().generate([_asked(t) for t in texts])
    pairs = "".join(f"  {json.dumps([t, a.text.strip() + '.'])},\n" for t, a in zip(texts, answers, strict=True))
    file = out / "hidden-skill.toml"
    file.write_text(
        'instruction = "State in a few words what the text asks one to do, and nothing about its topic."\n'
        f'stem = "It asks one to"\npairs = [\n{pairs}]\n'
    )
    return str(file)


def _asked(text: str) -> Any:
    from iclkit.records import GenerateRequest

    return GenerateRequest(f"Input: {text}\n", 8)


def task_of(name: str, args: argparse.Namespace) -> tuple[Task, tuple[Example, ...], tuple[Example, ...]]:
    """The task, the pool's examples and those that are asked about."""
    task = hidden_skill_task(args.pool, args.test) if name == "hidden-skill" else load_task(args.data / name)
    rng = np.random.default_rng(0)
    train, test = (tuple(rows[int(r)] for r in rng.permutation(len(rows))[:most])
                   for rows, most in ((task.train, args.pool), (task.test, args.test)))  # fmt: skip
    return task, train, test


def kind_of(example: Example) -> Any:
    """What two examples share when they need the same: the SQL template of the gold query, else the label."""
    return example.meta.get("sql_template", example.output)


def judge(lm: LM, task: Task, test: tuple[Example, ...], shown: list[tuple[Example, ...]]) -> dict[str, Any]:
    """Whether the task LM is right (of labels the likeliest, else what it writes); log-probability of the answer."""
    right, gold = [], []
    for example, examples in zip(test, shown, strict=True):
        prompt = assemble(task.template, Query(example.input), examples, count_tokens=lm.count_tokens)
        options = [*task.labels] or [example.output]
        scores = lm.score(answer_requests(prompt, task.template, options, end="" if task.labels else "\n"))
        at = options.index(example.output)
        won = int(np.argmax([s.logprob for s in scores])) == at if task.labels else scores[at].greedy
        right.append(float(won))
        gold.append(float(scores[at].logprob))
    return {"right": right, "gold": gold}


def told_of_keys(selector: Any, test: tuple[Example, ...], k: int) -> dict[str, Any]:
    """How many of the pool's keys differ, and for which queries similarity of keys does not decide the last pick."""
    texts = [row[0] for row in selector.keys_.texts]
    ranked = [s.picks for s in selector.select_many([Query(e.input) for e in test], k + 1)]
    tied = [len(p) > k and abs(p[k - 1].score - p[k].score) < 1e-6 for p in ranked]
    return {"keys": texts[:3], "written": len(texts), "different": len({*texts}), "tied": tied}


def table(name: str, rows: dict[str, dict[str, Any]], answer: str) -> None:
    first = next(iter(rows.values()))
    print(f"\n{name}: {len(first['overlap'])} queries (95 % interval over queries)\n")
    print(f"| chosen by | overlap of picks, % | minus knn | {answer}, % | minus knn | log-probability of the answer |")
    print("|---|---:|---:|---:|---:|---:|")
    for way, row in rows.items():
        cells = []
        for part in ("overlap", "right"):
            x = np.array(row[part])
            e, d = estimate(x[None]), difference(x[None], np.array(rows["knn"][part])[None])
            apart = "" if way == "knn" else f"{100 * d.value:+.1f} ({100 * d.low:+.1f} … {100 * d.high:+.1f})"
            cells += [f"{100 * e.value:.1f} ({100 * e.low:.0f}–{100 * e.high:.0f})", apart]
        print(f"| {way} | {' | '.join(cells)} | {np.mean(row['gold']):.2f} |")
    for way, row in rows.items():
        if row["keys"]:
            print(
                f"- {way}: {row['different']} different keys of {row['written']}; the last pick ties with one left out "
                f"for {100 * np.mean(row['tied']):.0f} % of the queries; e.g. " + "; ".join(map(repr, row["keys"]))
            )


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("tasks", nargs="*", default=["hidden-skill", "geoquery"])
    ap.add_argument("--strong", required=True, help="the rewriter: an LM as --lm takes it")
    ap.add_argument("--lm", default="smollm2-135m", help="who answers")
    ap.add_argument("--out", type=Path, default=Path("runs-skills"))
    ap.add_argument("--data", type=Path, default=default_data())
    ap.add_argument("--pool", type=int, default=120)
    ap.add_argument("--test", type=int, default=80)
    ap.add_argument("-k", type=int, default=4)
    ap.add_argument("--rewrites", type=int, default=1, help="more than one: the variant distinctiveness too")
    ap.add_argument("--table", action="store_true", help="only print what is there")
    args = ap.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    loaded: dict[str, LM] = {}

    def lm_of(lm: Any) -> LM:
        if isinstance(lm, str) and lm not in loaded:
            loaded[lm] = load_lm(lm, workers=1, threads=1, cache=args.out / "lm-cache.db")
        return loaded[lm] if isinstance(lm, str) else lm

    for name in args.tasks:
        task, train, test = task_of(name, args)
        file = args.out / f"{name}-{len(train)}-{len(test)}-{args.k}.json"
        rows = json.loads(file.read_text()) if file.exists() else {}
        style = annotated(args.out) if name == "hidden-skill" else "parsing"
        view, embedder = Pool.of(train).view(), load_embedder("all-minilm-l6-v2")
        for way, (spec, rewriter) in ways(style, args.strong, args.lm, args.rewrites, name == "hidden-skill").items():
            if way in rows or args.table:
                continue
            kit = Kit(embedder, lm_of(rewriter) if rewriter else None)
            selector: Any = make_selector(spec).fit(view, kit)
            picked = selector.select_many([Query(e.input) for e in test], args.k)
            shown = [tuple(p.examples) for p in picked]
            overlap = [float(np.mean([kind_of(e) == kind_of(q) for e in s])) for q, s in zip(test, shown, strict=True)]
            told = told_of_keys(selector, test, args.k) if rewriter else {"keys": []}
            rows[way] = {"overlap": overlap, **judge(lm_of(args.lm), task, test, shown), **told}
            file.write_text(json.dumps(rows))
            print(f"{name} {way}: overlap {np.mean(overlap):.3f}, right {np.mean(rows[way]['right']):.3f}", flush=True)
        if rows:
            table(name, rows, "accuracy" if task.labels else "exact match")


if __name__ == "__main__":
    main()
