"""A fact in a catalogue that no code reads misleads whoever fills it in: E5 ran without its prefixes that way."""

from __future__ import annotations

import ast
from dataclasses import fields
from pathlib import Path

import pytest

from iclkit.datasets import Entry
from iclkit.models import ModelCard, Wheel

PACKAGE = Path(__file__).resolve().parents[2] / "iclkit"
OWNERS = {"card", "c", "item", "entry", "wheel", "self"}
"""What a card or an entry is called where it is read."""
SHOWN = {"parameters", "note"}
"""Facts for people alone: ``iclkit models ls --json`` prints the whole card."""


def reads(where: str) -> set[str]:
    """Attributes read of something called by one of ``OWNERS`` in the files of these rooms."""
    found = set()
    for room in where.split():
        for file in (PACKAGE / room).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                    owner = node.value
                    name = owner.id if isinstance(owner, ast.Name) else getattr(owner, "attr", "")
                    if name in OWNERS:
                        found.add(node.attr)
    return found


@pytest.mark.parametrize("kind", [ModelCard, Wheel])
def test_every_field_of_the_models_catalogue_is_read(kind: type) -> None:
    assert {f.name for f in fields(kind)} - reads("models embed lm cli") <= SHOWN


def test_every_field_of_the_data_catalogue_is_read() -> None:
    assert {f.name for f in fields(Entry)} <= reads("datasets cli")


def test_what_an_embedder_was_trained_with_is_read_where_it_is_loaded() -> None:
    assert {"query_prefix", "document_prefix", "context"} <= reads("embed")
