"""Hugging Face sets without a network: objects in memory, saved folders, and a hub that does not answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from iclkit.datasets import catalogue, is_pulled, load_task, pull, read_examples
from iclkit.errors import DataError, UnknownName, UsageError

datasets = pytest.importorskip("datasets")


def intents(count: int = 12) -> Any:
    """A classification set with label ids, train and validation."""
    features = datasets.Features(
        {"text": datasets.Value("string"), "intent": datasets.ClassLabel(names=["card_arrival", "lost_card", "oos"])}
    )

    def split(n: int, word: str) -> Any:
        data = {"text": [f"{word} number {i}" for i in range(n)], "intent": [i % 3 for i in range(n)]}
        return datasets.Dataset.from_dict(data, features=features)

    return datasets.DatasetDict({"train": split(count, "shown"), "validation": split(6, "asked")})


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str | None], Any]:
    """A hub in memory: (id, config) -> splits. What is not in it cannot be reached."""
    sets: dict[tuple[str, str | None], Any] = {}

    def load_dataset(name: str, config: str | None, revision: str | None = None) -> Any:
        if (name, config) not in sets:
            raise ConnectionError(f"Couldn't reach\n'{name}' on the Hub")
        return sets[name, config]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return sets


def test_a_hub_set_becomes_a_task_with_label_names(hub: dict[tuple[str, str | None], Any]) -> None:
    hub["owner/intents", "plus"] = intents()
    task = load_task("hf:owner/intents:plus", input="text", output="intent")
    assert (task.kind, task.labels) == ("classification", ("card arrival", "lost card", "oos"))
    assert [len(task.split(s)) for s in ("train", "dev", "test")] == [12, 0, 6]  # validation is the test
    assert {e.text for e in task.test} == {f"asked number {i}" for i in range(6)}


def test_a_hub_set_that_is_sorted_by_label_is_shuffled_always_alike(hub: dict[tuple[str, str | None], Any]) -> None:
    rows = datasets.Dataset.from_dict({"text": [f"row {i}" for i in range(100)], "label": ["bad"] * 50 + ["good"] * 50})
    hub["owner/sorted", None] = datasets.DatasetDict({"train": rows, "test": rows})
    task = load_task("hf:owner/sorted")
    assert sorted(e.text for e in task.test) == sorted(f"row {i}" for i in range(100))
    assert {e.output for e in task.test[:10]} == {"bad", "good"}
    assert load_task("hf:owner/sorted").test == task.test


def test_of_a_hub_set_without_test_rows_some_are_held_out_and_a_note_says_so(
    hub: dict[tuple[str, str | None], Any],
) -> None:
    hub["owner/one", None] = datasets.DatasetDict({"train": intents(30)["train"]})
    task = load_task("hf:owner/one", input="text", output="intent")
    assert len(task.test) == 6
    assert any("6 of 30 rows drawn as test rows by seed 0" in note for note in task.notes)
    assert len(load_task("hf:owner/one", input="text", output="intent", test=5).test) == 5


def test_a_hub_that_cannot_be_reached_is_told_in_one_line(hub: dict[tuple[str, str | None], Any]) -> None:
    with pytest.raises(DataError) as caught:
        load_task("hf:owner/nothing")
    assert "hf:owner/nothing cannot be loaded" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_saved_folder_is_read_split_by_split_and_as_a_task(tmp_path: Path) -> None:
    intents().save_to_disk(str(tmp_path / "saved"))
    examples = read_examples(tmp_path / "saved", input="text", output="intent", split="validation")
    assert [e.output for e in examples[:3]] == ["card arrival", "lost card", "oos"]
    assert len(load_task(tmp_path / "saved", input="text", output="intent").train) == 12
    with pytest.raises(DataError, match="has no split 'test'; it has: train, validation"):
        read_examples(tmp_path / "saved", input="text", output="intent", split="test")


def test_objects_in_memory_are_read_as_they_are() -> None:
    sets = intents()
    examples = read_examples(sets["validation"], input="text", output="intent", task="t")
    assert [(e.text, e.output, e.task) for e in examples[:2]] == [
        ("asked number 0", "card arrival", "t"),
        ("asked number 1", "lost card", "t"),
    ]
    assert read_examples(sets, split="validation", input="text", output="intent", task="t") == examples
    assert load_task(sets).labels == ("card arrival", "lost card", "oos")
    with pytest.raises(DataError, match="dataset, row 1: no field 'words'; the row has: text, intent"):
        read_examples(sets["train"], input="words")


def test_pull_writes_a_folder_that_load_task_reads(hub: dict[tuple[str, str | None], Any], home: Path) -> None:
    rows = {"text": ["How far ?", "Who ?"], "label_coarse_original": ["NUM", "HUM"], "label": [1, 2]}
    hub["SetFit/TREC-QC", None] = datasets.DatasetDict({s: datasets.Dataset.from_dict(rows) for s in ("train", "test")})
    assert not is_pulled("trec")
    with pytest.raises(DataError, match=r"not on this machine .* run: iclkit datasets pull trec"):
        load_task("trec")
    folder = pull("trec")
    assert sorted(p.name for p in folder.iterdir()) == ["card.md", "test.jsonl", "train.jsonl"]
    task = load_task("trec")
    item = catalogue()["trec"]
    assert (task.name, task.kind, task.metric) == ("trec", item.kind, item.metric)
    assert {e.text: e.output for e in task.train} == {"How far ?": "number", "Who ?": "human"}
    assert task.template.demo == item.template
    assert (task.card.licence, task.card.citation, task.card.homepage) == (item.licence, item.citation, item.homepage)
    assert task.queries()[0].id == "trec-test-00001"


def test_pull_maps_choices_cuts_what_a_card_says_and_skips_hidden_labels(
    hub: dict[tuple[str, str | None], Any], home: Path
) -> None:
    quiz = {"question": ["Colour?"], "answerKey": ["B"], "choices": [{"label": ["A", "B"], "text": ["red", "blue"]}]}
    hub["tau/commonsense_qa", None] = datasets.DatasetDict(
        {s: datasets.Dataset.from_dict(quiz) for s in ("train", "validation")}
    )
    pull("commonsense_qa")
    task = load_task("commonsense_qa")
    assert (task.kind, task.test[0].output, task.test[0].choices) == ("multiple_choice", "blue", ("red", "blue"))

    sums = {"question": ["2*3?"], "answer": ["2*3 = <<2*3=6>>6\n#### 6"]}
    hub["openai/gsm8k", "main"] = datasets.DatasetDict({s: datasets.Dataset.from_dict(sums) for s in ("train", "test")})
    pull("gsm8k")
    task = load_task("gsm8k")
    assert (task.kind, task.metric, task.train[0].output) == ("reasoning", "number_match", "2*3 = 6\n#### 6")

    pairs = {"premise": ["a", "b"], "hypothesis": ["c", "d"], "label": [1, -1]}
    features = datasets.Features({
        "premise": datasets.Value("string"), "hypothesis": datasets.Value("string"),
        "label": datasets.ClassLabel(names=["entailment", "neutral", "contradiction"]),
    })  # fmt: skip
    hub["stanfordnlp/snli", None] = datasets.DatasetDict(
        {s: datasets.Dataset.from_dict(pairs, features=features) for s in ("train", "validation", "test")}
    )
    pull("snli")
    assert [(e.input, e.output) for e in load_task("snli").test] == [({"premise": "a", "hypothesis": "c"}, "neutral")]


def test_a_catalogue_set_by_its_hub_name_needs_no_mapping(hub: dict[tuple[str, str | None], Any], home: Path) -> None:
    sums = {"question": ["2*3?"], "answer": ["2*3 = <<2*3=6>>6\n#### 6"]}
    hub["openai/gsm8k", "main"] = datasets.DatasetDict({s: datasets.Dataset.from_dict(sums) for s in ("train", "test")})
    task = load_task("hf:openai/gsm8k:main")
    assert (task.name, task.kind, task.card.licence) == ("gsm8k", "reasoning", "MIT")
    pull("gsm8k")
    assert load_task("gsm8k").hash == task.hash
    turned = load_task("hf:openai/gsm8k:main", input="answer", output="question")
    assert turned.train[0].output == "2*3?"


def test_a_pull_that_fails_leaves_nothing_and_a_second_one_fetches_nothing(
    hub: dict[tuple[str, str | None], Any], home: Path
) -> None:
    with pytest.raises(DataError, match="cannot be loaded from the Hugging Face hub"):
        pull("trec")
    hub["SetFit/TREC-QC", None] = datasets.DatasetDict(
        {s: datasets.Dataset.from_dict({"text": ["x"], "renamed": ["NUM"]}) for s in ("train", "test")}
    )
    with pytest.raises(DataError, match="no field 'label_coarse_original'; the row has: text, renamed"):
        pull("trec")
    assert not (home / "datasets" / "trec").exists()
    rows = datasets.Dataset.from_dict({"text": ["x"], "label_coarse_original": ["NUM"]})
    hub["SetFit/TREC-QC", None] = datasets.DatasetDict({"train": rows, "test": rows})
    pull("trec")
    hub.clear()
    assert pull("trec") == home / "datasets" / "trec"
    with pytest.raises(DataError, match="cannot be loaded"):
        pull("trec", again=True)
    assert len(load_task("trec").train) == 1
    assert [p.name for p in (home / "datasets").iterdir()] == ["trec"]


def test_a_home_that_cannot_be_written_is_told(hub: dict[tuple[str, str | None], Any], home: Path) -> None:
    rows = datasets.Dataset.from_dict({"text": ["x"], "label_coarse_original": ["NUM"]})
    hub["SetFit/TREC-QC", None] = datasets.DatasetDict({"train": rows, "test": rows})
    home.write_text("a file where the folder should be")
    with pytest.raises(DataError, match=r"cannot write .* set ICLKIT_HOME"):
        pull("trec")


def test_an_unknown_catalogue_name_offers_the_nearest(home: Path) -> None:
    with pytest.raises(UnknownName, match="Did you mean 'banking77'"):
        pull("bankin77")


def test_without_the_extra_a_hub_set_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(UsageError, match=r"pip install .*\[datasets\]'"):
        load_task("hf:owner/name")
