"""The bundled set: what its card says of it is true of its files."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from iclkit.datasets import Task, find_leaks, load_task
from iclkit.datasets._leaks import near_pairs
from iclkit.records import fold_text

LABELS = (
    "cancel order", "change address", "close account", "damaged item", "discount code", "double charge", "exchange",
    "late delivery", "login problem", "payment failed", "refund", "track order",
)  # fmt: skip


@pytest.fixture(scope="module")
def support() -> Task:
    return load_task("support")


def test_it_is_a_classification_of_twelve_intents_with_rows_enough(support: Task) -> None:
    assert (support.name, support.kind, support.metric, support.labels) == (
        "support",
        "classification",
        "accuracy",
        LABELS,
    )
    assert min(Counter(e.output for e in support.train).values()) >= 40
    assert min(Counter(e.output for e in support.test).values()) >= 15
    assert set(Counter(e.output for e in support.train)) == set(Counter(e.output for e in support.test)) == set(LABELS)
    assert f"train {len(support.train)} (the pool), test {len(support.test)}." in support.card.facts["splits"]
    assert support.card.licence.startswith("Apache-2.0")
    assert support.template.demo == "Message: {input}\nIntent: {output}"


def test_no_message_is_there_twice_and_none_of_test_is_in_train(support: Task) -> None:
    folded = [fold_text(e.text) for e in support.train + support.test]
    assert len(set(folded)) == len(folded)
    assert find_leaks(support.train, support.test, near=0.6) == []
    assert len({q.id for q in support.queries()}) == len(support.test)
    rows, columns, _ = near_pairs(folded, folded, 0.7)
    assert [(i, j) for i, j in zip(rows.tolist(), columns.tolist(), strict=True) if i < j] == []


def test_the_messages_differ_in_length_and_kind(support: Task) -> None:
    words = np.array([len(e.text.split()) for e in support.train])
    assert words.min() <= 4
    assert words.max() >= 30
    assert np.percentile(words, 75) >= 1.8 * np.percentile(words, 25)
    assert len({e.text.split()[0].casefold() for e in support.train}) >= 150  # no few openings, as templates have
    assert any("?" not in e.text and "!" not in e.text for e in support.train)
    assert sum(e.text == e.text.lower() for e in support.train) >= 20


def test_the_near_misses_name_another_intent_of_the_set(support: Task) -> None:
    near = [(e.output, e.meta["near"]) for e in support.train + support.test if e.meta.get("near")]
    assert len(near) >= 100
    assert all(other in LABELS and other != own for own, other in near)


def test_the_rows_are_shuffled(support: Task) -> None:
    assert len({e.output for e in support.train[:48]}) >= 10
    assert len({e.output for e in support.test[:36]}) >= 10


def test_choosing_by_words_beats_chance_and_leaves_room(support: Task) -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = TfidfVectorizer().fit([e.text for e in support.train])
    nearest = np.asarray(
        (words.transform([e.text for e in support.test]) @ words.transform([e.text for e in support.train]).T).todense()
    ).argmax(1)
    right = np.mean([support.train[j].output == e.output for j, e in zip(nearest, support.test, strict=True)])
    assert 3 / 12 < right < 0.7
