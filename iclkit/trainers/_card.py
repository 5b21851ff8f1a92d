"""The card of a trained folder: ``iclkit.json`` for programs, ``README.md`` for people."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from iclkit import __version__, models
from iclkit.embed import CARD, split_spec
from iclkit.eval import Estimate
from iclkit.trainers._config import TrainConfig
from iclkit.trainers._method import Method, Session
from iclkit.trainers._report import FROM_POOL, TaskReport

_HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@[\w./-]+)?")
_HUB_SET = re.compile(r"(?:huggingface\.co/datasets/|(?:^|\s)hf:)([A-Za-z0-9][\w.-]*(?:/[\w.-]+)?)")


def card_of(
    s: Session[TrainConfig],
    method: Method[Any],
    history: Sequence[Mapping[str, Any]],
    reports: Sequence[TaskReport],
    key: str,
) -> dict[str, Any]:
    """Everything that decided the training, and all its figures."""
    return {
        "format": 1,
        "iclkit": __version__,
        "key": key,
        "method": s.config.method,
        "source": method.source,
        "selector": method.selector(s.config).spec,
        "lm": {"name": s.feedback.lm.name, "fingerprint": s.feedback.lm.fingerprint},
        "rendering": s.rendering.identity(),
        "tasks": [
            {
                "name": c.name, "hash": c.hash, "rows": len(c.rows), "queries": len(c.queries), "license": c.licence,
                "source": c.source,
            } for c in s.corpus.tasks
        ],
        "pool": {"hash": s.corpus.view.hash, "size": len(s.corpus.view)},
        "config": s.config.as_dict(),
        "training": [*history],
        "facts": s.facts,
        "feedback": {
            "prompts known": s.feedback.known, "prompts computed": s.feedback.computed,
            "prompts that did not fit": s.feedback.skipped,
        },
        "report": [r.as_dict() for r in reports],
    }  # fmt: skip


def write_card(folder: Path, card: Mapping[str, Any], reports: Sequence[TaskReport]) -> None:
    """``iclkit.json`` and ``README.md`` into a model's folder."""
    (folder / CARD).write_text(json.dumps(_plain(card), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(_readme(card, reports), encoding="utf-8")


def _plain(value: Any) -> Any:
    """NaN and infinities as null: JSON has neither."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _readme(card: Mapping[str, Any], reports: Sequence[TaskReport]) -> str:
    config, tasks = card["config"], card["tasks"]
    trained_on = ", ".join(f"{t['name']} ({t['queries']} queries from {t['rows']} rows)" for t in tasks)
    terms = [f"{t['name']}: {t['license']}" for t in tasks if t["license"]]
    lines = [
        "---",
        *_metadata(card, reports).splitlines(),
        "---",
        "",
        f"# A demonstration retriever trained by {config['method'].upper()}",
        "",
        f"Chooses demonstrations for in-context learning; trained with iclkit {card['iclkit']} ({card['source']}) from "
        f"the feedback of {card['lm']['name']}, starting at {config['base']}, seed {config['seed']}, preset "
        f"{config['preset']}.",
        "",
        f"- Tasks of the training: {trained_on}. Figures on these tasks are not those of other tasks.",
        *([f"- Licenses of the data, as the sets say: {'; '.join(terms)}."] if terms else []),
        f"- Pool: {card['pool']['size']} examples, hash `{card['pool']['hash']}`.",
        f"- Feedback: {card['feedback']['prompts computed']} prompts scored, {card['feedback']['prompts known']} known "
        "before.",
        "",
        "```console",
        f"$ iclkit eval TASK --selector {card['selector']} --embedder THIS_FOLDER --lm LM",
        "```",
        "",
        "It is a plain sentence-transformers folder; to use it without iclkit, write texts as `iclkit.json` says under "
        "`rendering`.",
        "",
        "## Before and after",
        "",
        "Gain in nats over random candidates, and accuracy, each with its 95 % interval over queries. The oracle adds, "
        "one after another, the candidates with which the right answer is likeliest.",
        "",
        *markdown(reports),
        "",
        "## Settings",
        "",
        "```json",
        json.dumps(config, indent=2),
        "```",
    ]
    return "\n".join(lines) + "\n"


def _metadata(card: Mapping[str, Any], reports: Sequence[TaskReport]) -> str:
    """The card's head as the hub reads it: base model and data sets with ids of the hub, the license of the base where
    that is known, and the figures of the retriever on the whole pool."""
    from huggingface_hub import EvalResult, ModelCardData

    config = card["config"]
    base = models.card_of(split_spec(config["base"])[0])
    results = []
    for report in reports:
        for strategy in report.strategies:
            if strategy.name != config["method"] or strategy.pool != FROM_POOL:
                continue
            for metric, figure in (("lm_gain", strategy.gain), ("accuracy", strategy.accuracy)):
                if figure is None or not math.isfinite(figure.value):
                    continue
                what = "gain over random demonstrations, nats" if metric == "lm_gain" else "accuracy of the LM"
                words = f"{what}; {report.queries} queries, {report.shots} shown, 95 % interval "
                words += f"{figure.low:.3f} to {figure.high:.3f}, feedback and answers of {card['lm']['name']}"
                results.append(
                    EvalResult(
                        task_type="text-retrieval", dataset_type=report.task, dataset_name=report.task,
                        metric_type=metric, metric_value=round(figure.value, 4), metric_name=words,
                    )
                )  # fmt: skip
    sets = [found[1] for t in card["tasks"] if (found := _HUB_SET.search(t["source"]))]
    made = ModelCardData(
        base_model=base.hub if base else hub_id(config["base"]) or None,
        datasets=list(dict.fromkeys(sets)) or None,
        license=base.licence.lower() if base and base.licence else None,
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        tags=["sentence-transformers", "in-context-learning", "demonstration-retrieval", "iclkit", config["method"]],
        model_name=f"{config['method']} retriever",
        metrics=sorted({r.metric_type for r in results}) or None,
        eval_results=results or None,
    )
    return str(made.to_yaml())


def hub_id(name: str) -> str:
    """The id on the hub that an encoder is named by, without its revision; "" for a folder of this machine.

    >>> hub_id("intfloat/e5-base-v2@main"), hub_id("/models/mine")
    ('intfloat/e5-base-v2', '')
    """
    found = _HUB_ID.fullmatch(split_spec(name)[0])
    return found[1] if found and not Path(found[1]).exists() else ""


def markdown(reports: Sequence[TaskReport]) -> list[str]:
    """The report as Markdown tables, one per task."""
    lines: list[str] = []
    for report in reports:
        share = percent(report.oracle_share)
        lines += [f"{headline(report)}; share of the oracle's gain, %: {share}.", ""]
        lines += ["| chosen by | pool | gain, nats | accuracy, % |", "|---|---|---|---|"]
        lines += [
            f"| {s.name} | {s.pool} | {interval(s.gain)} | {percent(s.accuracy) if s.accuracy else '-'} |"
            for s in report.strategies
        ]
        lines.append("")
    return lines[:-1]


def headline(report: TaskReport) -> str:
    """Task, number of demonstrations and number of queries of a report."""
    shots = "one demonstration" if report.shots == 1 else f"{report.shots} demonstrations"
    return f"{report.task} · {shots} · {report.queries} queries"


def interval(e: Estimate) -> str:
    """A gain in nats with its interval."""
    return f"{e.value:+.3f} ({e.low:+.3f} … {e.high:+.3f})"


def percent(e: Estimate) -> str:
    """A share in per cent with its interval; "no gain" for nan, a share of nothing."""
    return f"{100 * e.value:.1f} ({100 * e.low:.1f} … {100 * e.high:.1f})" if math.isfinite(e.value) else "no gain"
