"""The harness with a selector in the place of its sampler; the model is the harness's own dummy."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from iclkit.errors import DataError, UsageError

lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'iclkit[lm-eval]'")

from lm_eval.models.dummy import DummyLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

TRAIN = [
    {"text": f"the {a} {b} is {c}", "label": int(c == "good")}
    for a in ("old", "new", "red")
    for b in ("cat", "dog", "house")
    for c in ("good", "bad")
]
TEST = [*TRAIN[:3], {"text": "The old cat is good!", "label": 1}, {"text": "a house, red and good", "label": 1}]
STOCK = """
dataset_path: json
dataset_kwargs: {{data_files: {{train: {folder}/train.jsonl, test: {folder}/test.jsonl}}}}
{splits}
output_type: multiple_choice
doc_to_text: "Text: {{{{text}}}}\\nLabel:"
doc_to_target: label
doc_to_choice: [bad, good]
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
task: stock
"""
SOCKET = """
include: stock.yaml
task: socket
class: !function iclkit.integrations.lm_eval.SelectorTask
num_fewshot: 3
metadata: {version: 1.0, iclkit: {selector: bm25, input: text}}
"""


def write_rows(file: Path, rows: list[Mapping[str, Any]]) -> None:
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))


def run(folder: Path, splits: str = "training_split: train\ntest_split: test", **given: Any) -> list[dict[str, Any]]:
    write_rows(folder / "train.jsonl", TRAIN)
    write_rows(folder / "test.jsonl", TEST)
    (folder / "stock.yaml").write_text(STOCK.format(folder=folder, splits=splits))
    (folder / "socket.yaml").write_text(given.pop("yaml", SOCKET))
    tasks = TaskManager(include_path=str(folder), include_defaults=False)
    # simple_evaluate would look up a tokenizer on the network
    found = lm_eval.evaluate(lm=DummyLM(), task_dict=tasks.load(["socket"]), bootstrap_iters=0, **given)
    return sorted(found["samples"]["socket"], key=lambda s: s["doc_id"])


def test_each_document_gets_its_own_demonstrations_never_itself_and_they_are_logged(tmp_path: Path) -> None:
    samples = run(tmp_path)
    assert [s["doc"]["text"] for s in samples] == [r["text"] for r in TEST]
    for sample, row in zip(samples, TEST, strict=True):
        prompt, about = sample["arguments"][0][0], sample["doc"]["iclkit"]
        *shots, query = prompt.split("\n\n")
        assert query == f"Text: {row['text']}\nLabel:"
        assert shots == [
            f"Text: {TRAIN[r]['text']}\nLabel: {('bad', 'good')[TRAIN[r]['label']]}" for r in about["rows"]
        ]
        assert len(about["ids"]) == 3
        assert about["selector"].startswith("bm25")
        assert row["text"].lower().rstrip("!") not in " ".join(shots).lower()
    assert len({tuple(s["doc"]["iclkit"]["rows"]) for s in samples}) > 1


def test_a_task_with_test_rows_alone_is_never_shown_its_own_answers(tmp_path: Path) -> None:
    for sample in run(tmp_path, "test_split: test\nfewshot_split: test"):
        *shots, query = sample["arguments"][0][0].split("\n\n")
        inputs = [shot.split("\n")[0].lower().rstrip("!") for shot in shots]
        assert query.split("\n")[0].lower().rstrip("!") not in inputs


def test_a_run_on_some_of_the_documents_chooses_the_same(tmp_path: Path) -> None:
    everything = run(tmp_path)
    for sample in run(tmp_path, limit=2):
        assert sample["arguments"] == everything[sample["doc_id"]]["arguments"]


def test_what_cannot_be_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--cache_requests does not tell selectors"):
        run(tmp_path, cache_requests=True)
    with pytest.raises(UsageError, match=r"under metadata.iclkit named 'selektor'. Did you mean 'selector'"):
        run(tmp_path, yaml=SOCKET.replace("selector: bm25", "selektor: bm25"))
    with pytest.raises(DataError, match=r"metadata.iclkit of task 'socket'"):
        run(tmp_path, yaml=SOCKET.replace("selector: bm25", "seed: one"))
    with pytest.raises(DataError, match=r"30 few-shot documents are asked for, and 1[67] can be shown"):
        run(tmp_path, yaml=SOCKET.replace("num_fewshot: 3", "num_fewshot: 30"))
