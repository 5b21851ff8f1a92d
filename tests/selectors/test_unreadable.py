"""A prompt that an LM can never answer costs a candidate, and is counted; it never costs the query or the run."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

from iclkit.errors import NeedError, RequestError
from iclkit.pool import Pool
from iclkit.prompts import Template
from iclkit.records import Example, Query
from iclkit.selectors import Kit, make_selector
from iclkit.selectors._order_search import global_entropy
from iclkit.testing import FakeLM, HashEmbedder

TEMPLATE = Template("Text: {input}\nKind: {output}")
TEXTS = ["the soup was hot", "the soup was cold", "a soup with salt", "no soup today", "table for two", "loud tables"]


class Refusing(FakeLM):
    """Refuses every prompt in which one of some words stands, as a server with a content filter does."""

    def __init__(self, *words, **settings):
        super().__init__(**settings)
        self.words = words

    def _refuse(self, ask, requests, on_done):
        bad = next((n for n, r in enumerate(requests) if any(w in r.context for w in self.words)), None)
        if bad is None:
            return ask(requests, on_done)
        ask(requests[:bad], on_done)
        raise RequestError(bad, "refused by the filter")

    def score(self, requests, on_done=None):
        return self._refuse(super().score, requests, on_done)

    def generate(self, requests, on_done=None):
        return self._refuse(super().generate, requests, on_done)


def fitted(selector, lm, texts=TEXTS, labels=("good", "bad"), outputs=("good", "bad")):
    view = Pool.of(Example(t, outputs[zlib.crc32(t.encode()) % len(outputs)]) for t in texts).view()
    return make_selector(selector).fit(view, Kit(HashEmbedder(), lm, TEMPLATE, labels, seed=1))


def picked(one, query, k):
    selection = one.select(Query(query), k)
    return [e.text for e in one.pool_.examples_of(selection.ids)], selection


def test_cone_leaves_out_a_candidate_after_which_the_query_cannot_be_read():
    texts, selection = picked(fitted("cone", Refusing("salt")), "hot soup", 3)
    clean, _ = picked(fitted("cone", FakeLM(), [t for t in TEXTS if "salt" not in t]), "hot soup", 3)
    assert texts == clean
    assert selection.notes == ("1 of 6 candidates were left out: the LM cannot read the query after them",)


def test_cone_takes_what_it_left_out_only_where_nothing_else_is_left():
    texts, selection = picked(fitted("cone", Refusing("salt")), "hot soup", 6)
    assert texts[-1] == "a soup with salt"
    assert selection.picks[-1].score == selection.picks[-2].score


def test_cone_falls_back_to_the_nearest_where_the_query_itself_cannot_be_read():
    for lm in (Refusing("Text:"), FakeLM(context_size=3)):
        selection = fitted("cone", lm).select(Query("hot soup"), 3)
        assert selection.ids == fitted("knn", lm).select(Query("hot soup"), 3).ids
        assert "these are the nearest" in selection.notes[0]


def test_a_demonstration_that_does_not_fit_beside_the_query_is_not_judged_by_a_prompt_without_it():
    long = "soup " * 60
    texts, selection = picked(fitted("cone", FakeLM(context_size=60), [*TEXTS, long.strip()]), "hot soup", 6)
    assert long.strip() not in texts
    assert "1 of 7 candidates were left out" in selection.notes[0]


def test_mdl_leaves_out_the_subsets_after_which_the_lm_cannot_answer():
    one = fitted("mdl,window=12", Refusing("salt"))
    texts, selection = picked(one, "table for five", 2)
    assert "a soup with salt" not in texts
    assert selection.notes[0].endswith("of 12 subsets were left out: the LM cannot answer after them")


def test_mdl_shows_the_nearest_where_the_lm_can_answer_after_no_subset():
    for lm in (Refusing("five"), FakeLM(context_size=4)):
        selection = fitted("mdl", lm).select(Query("table for five"), 3)
        assert selection.ids == fitted("knn", lm).select(Query("table for five"), 3).ids
        assert {p.score for p in selection} == {0.0}
        assert "these are the nearest" in selection.notes[0]


@pytest.mark.parametrize("name", ["globale", "locale"])
def test_an_order_search_compares_orders_by_the_inputs_that_can_be_asked_after_all_of_them(name):
    shuffled = fitted("random-fixed", FakeLM()).select(Query("q"), 6).ids
    view = fitted("random-fixed", FakeLM()).pool_
    probed = [e.text for e in view.examples_of(shuffled[2:])]
    one = fitted(f"{name},probe=pool", Refusing(f"Text: {probed[0]}\nKind:"))
    clean = fitted(f"{name},probe=pool", FakeLM(), [t for t in TEXTS if t != probed[0]])
    ours, theirs = one.select(Query("q"), 2), clean.select(Query("q"), 2)
    assert ours.notes == ("1 of 4 probing inputs were left out: the LM cannot answer them",)
    assert [p.score for p in ours] == [p.score for p in theirs]


def test_an_order_search_shows_the_plain_order_where_nothing_can_be_asked():
    selection = fitted("globale,probe=pool", Refusing("Kind:")).select(Query("q"), 2)
    assert selection.ids == fitted("random-fixed", FakeLM()).select(Query("q"), 2).ids
    assert selection.notes[0].startswith("the plain order: 4 of 4 probing inputs were left out")


def test_an_lm_that_refuses_to_write_is_probed_with_the_pool():
    class Mute(Refusing):
        def score(self, requests, on_done=None):
            return FakeLM.score(self, requests, on_done)

    selection = fitted("globale", Mute("Kind:")).select(Query("q"), 2)
    assert "probed with inputs of the pool: the LM wrote none" in selection.notes


def test_no_answer_is_not_the_first_label():
    same = [[-1.0, -1.0], [-1.0, -1.0]]
    assert global_entropy(np.array([*same, [-2.0, -1.0]])) == 0.0
    assert global_entropy(np.array([[-1.0, -2.0], [-2.0, -1.0]])) == pytest.approx(np.log(2))
    assert global_entropy(np.array([*same, [-1.0, -2.0], [-2.0, -1.0]])) == pytest.approx(np.log(2) / 2)
    assert global_entropy(np.array(same)) == 0.0


def test_pvi_filter_never_drops_what_the_lm_cannot_judge():
    one = fitted("pvi-filter,of=bm25,drop=0.5", Refusing("Text: a soup with salt\nKind:"), [*TEXTS])
    _, selection = picked(one, "soup", 6)
    refused = next(n for n, e in enumerate(one.pool_.examples) if "salt" in e.text)
    assert refused not in one.dropped()
    assert np.isnan(one.values()[refused])
    assert any("examples have no PVI: the LM cannot read them" in note for note in selection.notes)


def test_pvi_weight_puts_what_the_lm_cannot_judge_in_the_middle():
    one = fitted("pvi-weight,of=random,weight=1.0", Refusing("salt"))
    selection = one.select(Query("soup"), 6)
    refused = next(e.id for e in one.pool_.examples if "salt" in e.text)
    assert next(p.score for p in selection if p.example_id == refused) == 0.5


@pytest.mark.parametrize("outputs", [("good", "bad"), tuple(f"answer {n}" for n in range(12))])
def test_vote_k_does_not_have_labeled_what_the_lm_cannot_read(outputs):
    texts = [f"{t} {n}" for n, t in enumerate(TEXTS * 2)]
    labels = outputs if len(outputs) == 2 else ()
    open_one = fitted("vote-k-confidence,budget=10,seeds=2", FakeLM(), texts, labels, outputs)
    seeds = {int(r) for r in open_one.annotated_[:2]}
    refused = next(t for n, t in enumerate(texts) if n not in seeds)
    lm = Refusing(f"Text: {refused}\nKind:")
    one = fitted("vote-k-confidence,budget=10,seeds=2", lm, texts, labels, outputs)
    selection = one.select(Query("soup"), 3)
    assert texts.index(refused) not in one.annotated_
    assert selection.notes == ("1 examples were not considered for a label: the LM cannot read them",)
    for request in lm.generated:
        assert request.stop == ("\n\n", "\n")


def test_the_input_stands_in_for_a_key_that_the_lm_refuses_to_write():
    one = fitted("skill-knn,rewrites=2", Refusing("salt"))
    _, selection = picked(one, "a soup with salt", 2)
    assert one.keys_.fallbacks == 2
    assert "2 keys of the query could not be written; its own text stands in" in selection.notes


@pytest.mark.parametrize("name", ["mdl", "cone", "locale", "pvi-filter", "pvi-weight", "vote-k-confidence"])
def test_an_lm_that_only_ranks_answers_is_refused_where_log_probabilities_are_computed_with(name):
    lm = FakeLM()
    lm.scoring = "generate"
    with pytest.raises(NeedError, match="log-probabilities"):
        fitted(name, lm)
