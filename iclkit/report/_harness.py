"""Runs in the layout of EleutherAI's lm-evaluation-harness: what it writes with ``--output_path --log_samples``.

A folder per model, ``results_<date>.json`` and ``samples_<task>_<date>.jsonl`` in it (its
``lm_eval/loggers/evaluation_tracker.py``, version 0.4). A selector, k, order and seed make a "model" of their own here,
because the readers of that layout tell results of one task apart by model.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from iclkit import __version__
from iclkit.errors import DataError
from iclkit.prompts import Template, assemble, template_of
from iclkit.records import Example, Message, Query, Run, digest
from iclkit.report._condensed import metric_of
from iclkit.report._drafts import answered
from iclkit.report._rows import Texts, prompt_parts, values_of

_NAME_BYTES = 160  # of 255 that file systems take; a date and an ending are added
_NAMES = {"accuracy": "acc"}  # what that harness calls a metric of ours


def write_harness(runs: Iterable[Run], folder: str | Path, texts: Texts | None = None, *, date: datetime) -> list[Path]:
    """Write finished runs under ``folder`` and return the files, results first in each folder.

    ``texts`` as for the page; a prompt whose words are not there is "". Chat prompts are written as JSON messages.
    ``is_greedy`` is "None" for runs of before it was recorded; failed rows are left out. DataError when the folder
    cannot be written.
    """
    stamp = date.isoformat().replace(":", "-")
    models: dict[str, dict[str, Run]] = {}
    for whole in runs:
        (run,), _ = answered([whole])
        if not run.facts.get("done", True) or not run.rows:
            continue
        name, task = _model(run), _task(run)
        if task in models.get(name, {}):  # e.g. the same task with another pool
            name = f"{name}__{run.id[:8]}"
        models.setdefault(name, {})[task] = run
    written = []
    for name, tasks in sorted(models.items()):
        place, hashes, files = Path(folder) / name, dict[str, str](), list[Path]()
        for task, run in tasks.items():
            samples, seen = _samples(run, (texts or {}).get(run.spec.task.hash, {})), hashlib.sha256()
            files.append(place / f"samples_{task}_{stamp}.jsonl")
            _write(files[-1], (_line(sample, seen) for sample in samples))
            hashes[task] = seen.hexdigest()
        results = place / f"results_{stamp}.json"
        _write(results, [json.dumps(_results(name, tasks, hashes, date), indent=2, ensure_ascii=False)])
        written += [results, *files]
    return written


def _line(sample: Mapping[str, Any], seen: hashlib._Hash) -> str:
    """A sample as a line; ``seen`` is the hash of a task's samples, taken as they are written."""
    seen.update("".join(sample[part] for part in ("doc_hash", "prompt_hash", "target_hash")).encode())
    return json.dumps(sample, ensure_ascii=False) + "\n"


def _write(path: Path, parts: Iterable[str]) -> None:
    """Write a file part by part: the samples of a run, with their prompts, are never held together."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(parts)
    except OSError as error:
        raise DataError(f"cannot write {path} ({error.strerror}); give another folder") from error


def _safe(text: str) -> str:
    """A name as a file name; that harness replaces the same characters. One that is too long ends in a hash."""
    name = re.sub(r"[\"<>:/|\\?*\[\]\s\x00-\x1f\x7f-\x9f]+", "__", text)
    return name if len(name.encode()) <= _NAME_BYTES else f"{name[: _NAME_BYTES // 4]}__{digest(text, 8)}"


def _task(run: Run) -> str:
    return _safe(run.spec.task.name)


def _selector(run: Run) -> str:
    return str(run.facts.get("selector") or run.spec.selector.name)


def _model(run: Run) -> str:
    s = run.spec
    parts = [s.lm.name if s.lm else "no-lm", _selector(run), f"k{s.k}", f"seed{s.seed}"]
    parts += [s.order] if s.order != "best-last" else []
    parts += [s.calibrate] if s.calibrate != "none" else []
    return _safe("__".join(parts))


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


def _metric(run: Run) -> str:
    name: str = run.spec.task.metric
    return _NAMES.get(name, name)


def _kind(run: Run) -> str:
    return "multiple_choice" if any(row.label_logprobs for row in run.rows) else "generate_until"


def _render(messages: Sequence[Message]) -> str:
    return json.dumps([{"role": m.role, "content": m.content} for m in messages], ensure_ascii=False)


def _samples(run: Run, texts: Mapping[str, Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    metric, kind = _metric(run), _kind(run)
    values = values_of(run.rows, metric_of(run).name)
    for number, (row, value) in enumerate(zip(run.rows, values, strict=True)):
        template, query, demos = prompt_parts(run, row, texts)
        prompt, prefix = _prompt(template, query, demos), template.answer_prefix
        choices = [*row.label_logprobs]
        doc = {
            "id": row.query_id,
            "input": query.text if query else "",
            "output": row.gold,
            "demonstrations": [*row.shown],
        }
        if kind == "multiple_choice":
            options = query.choices if query else ()
            continuations = [
                prefix + (template.answer(c, options) if c in options or not options else c) for c in choices
            ]
            arguments: list[dict[str, Any]] = [{"arg_0": prompt, "arg_1": c} for c in continuations]
            greedy = [None if row.greedy is None else c in row.greedy for c in choices]
            answers = [[str(row.label_logprobs[c]), str(g)] for c, g in zip(choices, greedy, strict=True)]
            resps: list[Any] = [[a] for a in answers]
            filtered: list[Any] = answers
            target = str(choices.index(row.gold)) if row.gold in choices else row.gold
            doc["choices"] = choices
        else:
            stops = template.stop_strings if run.spec.stop is None else run.spec.stop
            arguments = [{"arg_0": prompt, "arg_1": {"until": [*stops]}}]
            resps, filtered, target = [[row.output]], [row.output], row.gold
        yield {
            "doc_id": number, "doc": doc, "target": target,
            "arguments": {f"gen_args_{i}": a for i, a in enumerate(arguments)},
            "resps": resps, "filtered_resps": filtered, "filter": "none", "metrics": [metric],
            "doc_hash": _sha(json.dumps(doc, indent=2, ensure_ascii=False)), "prompt_hash": _sha(prompt),
            "target_hash": _sha(target), metric: value,
        }  # fmt: skip


def _prompt(template: Template, query: Query | None, demos: Sequence[Example | None]) -> str:
    known = [d for d in demos if d is not None]
    if query is None or len(known) < len(demos):
        return ""
    return assemble(template, query, known, order="best-first", render_chat=_render).text


def _figure(run: Run) -> tuple[float, float | str]:
    """The task's metric and its standard error as that harness takes it: over queries, "N/A" for whole-run metrics."""
    metric = metric_of(run)
    if metric.whole is not None:
        return metric.figure([r.output for r in run.rows], [r.gold for r in run.rows]), "N/A"
    values = values_of(run.rows, metric.name)
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, "N/A"
    spread = math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1)
    return mean, math.sqrt(spread / len(values))


def _results(name: str, tasks: Mapping[str, Run], hashes: Mapping[str, str], date: datetime) -> dict[str, Any]:
    first = next(iter(tasks.values())).spec
    results, configs = {}, {}
    for task, run in tasks.items():
        metric, template = _metric(run), template_of(run)
        value, error = _figure(run)
        results[task] = {"alias": task, f"{metric},none": value, f"{metric}_stderr,none": error}
        configs[task] = {
            "task": task,
            "output_type": _kind(run),
            "doc_to_text": template.demo,
            "description": template.instruction,
            "fewshot_delimiter": template.behind_demos,
            "target_delimiter": "",
            "num_fewshot": run.spec.k,
            "metric_list": [{"metric": metric, "aggregation": "mean", "higher_is_better": True}],
            "repeats": 1,
            "should_decontaminate": False,
            "metadata": {"version": run.spec.task.hash, "iclkit_run": run.id, "selector": _selector(run)},
        }
    spent = sum(run.usage.get(k, 0.0) for run in tasks.values() for k in ("select_s", "assemble_s", "score_s"))
    return {
        "results": results,
        "group_subtasks": {task: [] for task in tasks},
        "configs": configs,
        "versions": {task: run.spec.task.hash for task, run in tasks.items()},
        "n-shot": {task: run.spec.k for task, run in tasks.items()},
        "higher_is_better": {task: {_metric(run): True} for task, run in tasks.items()},
        "n-samples": {task: {"original": r.spec.task.queries, "effective": len(r.rows)} for task, r in tasks.items()},
        "config": {
            "model": "iclkit",
            "model_args": f"pretrained={first.lm.name if first.lm else None},selector={first.selector.name}",
            "batch_size": None,
            "limit": None,
            "random_seed": first.seed,
            "fewshot_seed": first.seed,
        },
        "git_hash": None,
        "date": date.timestamp(),
        "iclkit_version": __version__,
        "task_hashes": dict(hashes),
        "model_source": "iclkit",
        "model_name": name,
        "model_name_sanitized": name,
        "start_time": 0.0,
        "end_time": spent,
        "total_evaluation_time_seconds": str(spent),
    }
