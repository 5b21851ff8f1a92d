"""The advisor: what it concludes from known worlds, and that its pilot keeps to budget and away from the test rows."""

from __future__ import annotations

import numpy as np
import pytest

from iclkit.errors import UsageError
from iclkit.eval import advise, decide
from iclkit.eval._advise import pilot_bench
from iclkit.testing import FakeLM, HashEmbedder, ScriptedLM

from .worlds import classification, copying_lm


@pytest.fixture(autouse=True)
def _own_home(home):
    return home


def world(queries=150, key=0, **chances):
    """Values of a pilot from the chance of being right: names like ``random_4`` or ``knn_8``."""
    rng = np.random.default_rng([key, queries])
    ease = rng.normal(0, 0.1, queries)
    found = {}
    for name, chance in chances.items():
        way, _, k = name.partition("_")
        found[way, int(k or 0)] = (rng.random((1, queries)) < np.clip(chance + ease, 0.02, 0.98)).astype(float)
    return found


FLAT = {"random_1": 0.5, "random_4": 0.5, "random_8": 0.5}


def test_where_nothing_helps_zero_shot_is_advised():
    advice = decide(world(zero=0.5, **FLAT, balanced_4=0.5, knn_4=0.5), pool_size=1000)
    assert (advice.choice, advice.k, advice.enough, advice.train) == ("zero", 0, 0, False)
    assert "Zero-shot" in advice.reasons[0]
    assert "stop helping at k = 0" in advice.reasons[1]


def test_where_shots_help_up_to_four_it_says_so():
    advice = decide(world(zero=0.3, random_1=0.5, random_4=0.75, random_8=0.75, knn_4=0.75), pool_size=1000)
    assert (advice.choice, advice.k, advice.enough) == ("random", 4, 4)
    assert "stop helping at k = 4" in advice.reasons[1]
    assert "could have been missed" in advice.reasons[1]


def test_where_shots_help_to_the_end_it_says_try_more():
    advice = decide(world(zero=0.2, random_1=0.4, random_4=0.6, random_8=0.85), pool_size=1000)
    assert (advice.choice, advice.enough) == ("random", 8)
    assert "Try more" in advice.reasons[1]


@pytest.mark.parametrize("way", ["knn", "bm25", "balanced"])
def test_where_a_way_of_choosing_helps_it_is_advised(way):
    advice = decide(world(zero=0.4, **FLAT, **{f"{way}_8": 0.85}), pool_size=1000)
    assert (advice.choice, advice.k) == (way, 8)
    assert f"k = 8: {100 * advice.figures[way, 8].value:.1f} %" in advice.reasons[0]


def test_training_is_advised_only_where_likeness_helps_and_much_is_left():
    values = world(zero=0.3, **FLAT, knn_8=0.75)
    assert decide(values, pool_size=1000).train
    assert not decide(values, pool_size=50).train
    assert not decide(world(zero=0.3, **FLAT, balanced_8=0.8), pool_size=1000).train
    assert not decide(world(zero=0.3, **FLAT, knn_8=1.0), pool_size=1000).train


def test_what_is_worse_is_named():
    advice = decide(world(zero=0.4, **FLAT, knn_8=0.1), pool_size=1000)
    assert any("knn k = 8 did worse" in r for r in advice.reasons)
    assert advice.choice == "zero"


def test_equal_ways_are_rarely_told_apart():
    wrong = sum(
        decide(world(key=n, zero=0.5, **FLAT, balanced_4=0.5, knn_4=0.5), pool_size=9).choice != "zero"
        for n in range(60)
    )
    assert wrong <= 60 * 0.05 + 3 * (60 * 0.05 * 0.95) ** 0.5


def test_the_pilot_asks_train_rows_that_never_see_themselves():
    task = classification(train=60, test=30)
    lm = FakeLM()
    advise(task, lm, embedder=HashEmbedder(), prompts=7 * 30, shots=(1, 4, 8))
    tests = {e.text for e in task.test}
    for request in lm.scored:
        *demos, query = request.context.split("\n\n")
        assert all(query.split("\n")[0] not in d for d in demos)
        assert query.split("\n")[0].removeprefix("Text: ") not in tests


def test_the_pilot_keeps_to_its_budget():
    lm = FakeLM()
    advise(classification(train=60), lm, embedder=HashEmbedder(), prompts=300, shots=(1, 4))
    assert 250 * 3 < len(lm.scored) <= 300 * 3  # three labels a prompt
    with pytest.raises(UsageError, match="give at least"):
        advise(classification(train=60), lm, embedder=HashEmbedder(), prompts=100, shots=(1, 4))


def test_the_pilot_finds_that_likeness_helps_an_lm_that_copies():
    advice = advise(classification(train=90), copying_lm(), embedder=HashEmbedder(), prompts=1000, shots=(2, 4))
    assert advice.choice in ("knn", "bm25")
    assert advice.queries == 90


def test_a_pilot_query_excludes_its_doubles():
    from iclkit.datasets import make_task
    from iclkit.records import Example

    task = classification(train=6)
    double = make_task("double", [*task.train, Example(task.train[0].text.upper(), "tool")], task.test)
    bench = pilot_bench(double, 10)
    assert {len(q.exclude) for q in bench.queries} == {1, 2}


def test_an_lm_that_ignores_its_prompt_gets_zero_shot():
    from .worlds import WORDS

    def knows(context, continuation):
        return -99 + float(sum(w in WORDS[continuation.strip()] for w in context.split("\n\n")[-1].split()))

    advice = advise(classification(train=60), ScriptedLM(knows), embedder=HashEmbedder(), prompts=600, shots=(1, 4))
    assert advice.choice == "zero"
