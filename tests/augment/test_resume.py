"""A generation that is killed goes on from the LM's cache and ends as the unbroken one would have."""

from __future__ import annotations

import pytest

from iclkit.augment import Document, auto_icl, bootstrap, recycle, synthesize, write_for_labels
from iclkit.lm._cache import Cache
from iclkit.lm._cached import cached
from iclkit.prompts import Template
from iclkit.records import Example, Query
from iclkit.testing import ScriptedLM

TEMPLATE = Template("Q: {input}\nA: {output}")
TRAIN = [Example(f"number {n}", str(n % 2)) for n in range(12)]
DOCUMENT = Document(tuple(f"Paragraph {n} is here. It has two sentences." for n in range(6)))


class Mortal(ScriptedLM):
    """Answers one request after the other and dies after ``life`` of them."""

    def __init__(self, life=10**9):
        super().__init__(reply=lambda c: f" new {len(c)} {hash_of(c)}\nA: 1\nAnswer: yes\n")
        self.life = life

    def generate(self, requests, on_done=None):
        return self._one_by_one(super().generate, requests, on_done)

    def score(self, requests, on_done=None):
        return self._one_by_one(super().score, requests, on_done)

    def _one_by_one(self, call, requests, on_done):
        results = []
        for n, request in enumerate(requests):
            if self.life == 0:
                raise KeyboardInterrupt
            self.life -= 1
            results += call([request])
            if on_done:
                on_done([(n, results[-1])])
        return results


def hash_of(text):
    return sum(ord(c) * (n + 1) for n, c in enumerate(text)) % 9973


METHODS = {
    "auto-icl": lambda lm: auto_icl(lm, TEMPLATE, [Query("number 3"), Query("number 44")], questions=1),
    "labels": lambda lm: write_for_labels(lm, TEMPLATE, ("0", "1"), per_label=4),
    "recycle": lambda lm: recycle(lm, [DOCUMENT], k=4),
    "bootstrap": lambda lm: bootstrap(lm, TEMPLATE, TRAIN, lambda out, gold: float(gold == "1"), most=4, rounds=2),
    "synthesize": lambda lm: synthesize(lm, TEMPLATE, TRAIN, count=8, shots=3, ratings=2),
}


@pytest.mark.parametrize("method", METHODS)
def test_a_killed_generation_asks_only_for_what_is_missing(method, tmp_path):
    unbroken = METHODS[method](whole := Mortal())
    asked = len(whole.generated) + len(whole.scored)
    assert unbroken.examples
    first, second = Mortal(life=3), Mortal()
    with pytest.raises(KeyboardInterrupt):
        METHODS[method](cached(first, Cache(tmp_path / "cache.db")))
    resumed = METHODS[method](cached(second, Cache(tmp_path / "cache.db")))
    assert resumed == unbroken
    assert len(second.generated) + len(second.scored) == asked - 3
