"""The catalogue is consistent: whatever it says can be used as it stands."""

from __future__ import annotations

import re

import pytest

from iclkit.datasets import KINDS, SPLITS, Card, Entry, catalogue
from iclkit.datasets._catalogue import card_text
from iclkit.prompts import Template
from iclkit.records import Example

ENTRIES = list(catalogue().values())
WANTED = {"sst2", "agnews", "trec", "subj", "banking77", "gsm8k", "clinc150", "mnli", "commonsense_qa", "nl2bash"}


def test_the_sets_the_field_uses_are_there() -> None:
    assert set(catalogue()) >= WANTED


@pytest.mark.parametrize("item", ENTRIES, ids=lambda e: e.name)
def test_an_entry_can_be_used_as_it_stands(item: Entry) -> None:
    assert re.fullmatch(r"[\w.-]+/[\w.-]+", item.hub)
    assert item.kind in KINDS
    assert {"train", "test"} <= set(item.splits) <= set(SPLITS)
    assert item.licence
    assert re.search(r"\b(19|20)\d\d\b", item.citation)
    assert len(set(item.labels.values())) == len(item.labels)
    assert all(label == label.strip() and "_" not in label for label in item.labels.values())
    assert bool(item.choices) == (item.kind == "multiple_choice")
    fields: str | dict[str, str] = "text" if len(item.input) == 1 else dict.fromkeys(item.input, "text")
    shown = Template.parse(item.template).render_demo(Example(fields, "the answer", choices=("the answer",)))
    assert shown.count("text") >= len(item.input)
    assert shown.endswith("the answer")


@pytest.mark.parametrize("item", ENTRIES, ids=lambda e: e.name)
def test_the_card_of_a_pulled_set_reads_back(item: Entry) -> None:
    card = Card.parse(card_text(item, dict.fromkeys(item.splits, 1000)))
    assert (card.description, card.kind, card.metric) == (item.description, item.kind, item.metric)
    assert (card.licence, card.citation, card.template) == (item.licence, item.citation, item.template)
