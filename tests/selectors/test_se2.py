from __future__ import annotations

import math
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iclkit.embed import BaseEmbedder, Retriever, RetrieverFormat
from iclkit.errors import UsageError
from iclkit.pool import Pool
from iclkit.prompts import order_picks
from iclkit.records import Example, Query
from iclkit.selectors import Kit, make_selector
from iclkit.selectors._se2 import beam_search
from iclkit.testing import HashEmbedder, SelectorContract


class TestSe2(SelectorContract):
    @pytest.fixture(params=["se2,width=1", "se2,width=2,normalize=log-softmax"])
    def selector(self, request):
        return make_selector(request.param)


def scorer(seed, n, coarse=False):
    """A made-up model: the score of a next row depends on the query and on all rows chosen before it, in order."""
    known = {}

    def score(q, chosen, row):
        key = (q, chosen, row)
        if key not in known:
            draw = np.random.default_rng([seed, q, len(chosen), *chosen, row]).standard_normal()
            known[key] = float(np.round(draw, 0 if coarse else 6))
        return known[key]

    def extend(states, most):
        out = []
        for q, chosen in states:
            rows = [r for r in range(n) if r not in chosen]
            rows.sort(key=lambda r: (-score(q, chosen, r), r))
            out.append((rows[:most], [score(q, chosen, r) for r in rows[:most]]))
        return out

    return score, extend


def total(score, q, rows):
    return round(sum(score(q, rows[:t], r) for t, r in enumerate(rows)), 6)


def plain_beam(score, q, n, width, depth):
    """Beam search as it is usually written, without batches and without narrower searches beside it."""
    beams = [()]
    for _ in range(depth):
        longer = [(*b, r) for b in beams for r in range(n) if r not in b]
        if not longer:
            break
        beams = sorted(longer, key=lambda b: (-total(score, q, b), b))[:width]
    return beams[0]


@settings(max_examples=250)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 7), width=st.integers(1, 4), depth=st.integers(1, 4),
       coarse=st.booleans())  # fmt: skip
def test_the_best_of_all_widths_of_plain_beam_search_is_found(seed, n, width, depth, coarse):
    score, extend = scorer(seed, n, coarse)
    found = beam_search(3, extend, width, depth)
    for q in range(3):
        plain = [plain_beam(score, q, n, v, depth) for v in range(1, width + 1)]
        best = min(plain, key=lambda b: (-total(score, q, b), b))
        assert found[q][0].total == total(score, q, best)
        assert all(len({*b.rows}) == len(b.rows) == min(n, depth) for b in found[q])
        totals = [b.total for b in found[q]]
        assert totals == sorted(totals, reverse=True)


@settings(max_examples=200)
@given(seed=st.integers(0, 10**6), n=st.integers(2, 8), depth=st.integers(1, 4))
def test_width_one_is_greedy_and_a_wider_beam_is_never_worse(seed, n, depth):
    score, extend = scorer(seed, n)
    greedy = ()
    while len(greedy) < min(n, depth):
        greedy = (*greedy, max((r for r in range(n) if r not in greedy), key=lambda r: score(0, greedy, r)))
    totals = [beam_search(1, extend, width, depth)[0][0].total for width in range(1, 7)]
    assert beam_search(1, extend, 1, depth)[0][0].rows == greedy
    assert totals == sorted(totals)


def test_plain_beam_search_can_end_worse_with_more_beams():
    def worse(seed):
        score, _ = scorer(seed, 6)
        return total(score, 0, plain_beam(score, 0, 6, 2, 3)) < total(score, 0, plain_beam(score, 0, 6, 1, 3))

    assert any(map(worse, range(300)))  # else keeping narrower searches would be of no use


@pytest.mark.parametrize("seed", range(6))
def test_a_width_that_holds_every_sequence_finds_the_best_of_all_orders(seed):
    score, extend = scorer(seed, 6)
    best = max(total(score, 0, rows) for rows in permutations(range(6), 3))
    (found,) = beam_search(1, extend, 31, 3)  # 30 pairs can lie ahead of the last step
    assert found[0].total == best


def test_states_of_a_step_are_asked_together_and_each_once():
    asked = []
    _, extend = scorer(5, 9)

    def counting(states, most):
        asked.append([*states])
        return extend(states, most)

    beam_search(4, counting, 3, 4)
    assert len(asked) == 4
    assert all(len({*states}) == len(states) for states in asked)
    assert {q for q, _ in asked[2]} == {0, 1, 2, 3}


def test_states_that_are_the_same_take_one_place():
    def extend(states, most):
        return [([r for r in range(4) if r not in rows][:most], [1.0, 1.0, 0.5, 0.1][:most]) for _, rows in states]

    (plain,) = beam_search(1, extend, 3, 2)
    (merged,) = beam_search(1, extend, 3, 2, lambda state: frozenset(state[1]))
    assert {frozenset(b.rows) for b in plain} != {frozenset(b.rows) for b in merged}
    assert len({frozenset(b.rows) for b in merged}) == len(merged)


def pool_of(n=12):
    words = ["soup", "fish", "bread", "wine", "cake", "table", "waiter", "bill", "garden", "dog", "cream", "salt"]
    rng = np.random.default_rng(3)
    texts = [" ".join(rng.choice(words, 5, replace=False)) for _ in range(n)]
    return [Example(text, f"label {i % 3}") for i, text in enumerate(texts)]


def retriever(document="input+output"):
    return Retriever(HashEmbedder(48), RetrieverFormat(document), {})


@pytest.mark.parametrize("make", [HashEmbedder, retriever])
def test_one_demonstration_is_the_nearest_whatever_the_width(make):
    embedder, view = make(), Pool.of(pool_of()).view()
    kit = Kit(embedder)
    for text in ("fish and cream", "the bill for the wine"):
        nearest = make_selector("knn").fit(view, kit).select(Query(text), 1)
        for width in (1, 4):
            found = make_selector(f"se2,width={width}").fit(view, kit).select(Query(text), 1)
            assert found.ids == nearest.ids
            assert found.picks[0].score == nearest.picks[0].score


@pytest.mark.parametrize("normalize", ["none", "log-softmax"])
def test_the_pool_of_six_is_searched_to_the_end(normalize):
    examples, embedder, query = pool_of(6), retriever(), "garden wine and a dog"
    view = Pool.of(examples).view()
    documents = view.vectors(embedder).astype(np.float64)
    hidden = examples[2].id

    def step(chosen, row):
        text = embedder.rendering.query(query, "", [examples[c] for c in chosen])
        sim = documents @ embedder.encode_states([text])[0].astype(np.float64)
        if normalize == "none":
            return sim[row]
        others = [r for r in range(6) if r not in chosen and r != 2]
        return sim[row] / 0.05 - math.log(sum(math.exp(sim[r] / 0.05) for r in others))

    def score(rows):
        return sum(step(rows[:t], row) for t, row in enumerate(rows))

    best = max(permutations([0, 1, 3, 4, 5], 3), key=score)
    found = make_selector(f"se2,width=60,normalize={normalize}").fit(view, Kit(embedder))
    picks = found.select(Query(query, exclude=frozenset({hidden})), 3)
    assert sum(p.score for p in picks) == pytest.approx(score(best), abs=1e-5)
    assert [view.ids.index(i) for i in picks.ids] == [*best]
    assert hidden not in picks.ids


def test_a_query_that_is_in_the_pool_is_excluded_by_its_content_wherever_it_stands():
    examples = pool_of()
    for turned in (examples, examples[::-1]):
        view = Pool.of(turned).view()
        chooser = make_selector("se2").fit(view, Kit(retriever()))
        for example in examples:
            query = Query(example.input, exclude=frozenset({example.id}))
            assert example.id not in chooser.select(query, 5).ids


def test_the_state_that_is_encoded_is_the_prompt_that_is_shown():
    examples, seen = pool_of(), []

    class Spy(HashEmbedder):
        def encode_queries(self, texts, progress=None):
            seen.extend(texts)
            return super().encode_queries(texts, progress)

    embedder = Retriever(Spy(48), RetrieverFormat(), {})
    view = Pool.of(examples).view()
    found = make_selector("se2,width=1").fit(view, Kit(embedder)).select(Query("a dog in the soup"), 3)
    chosen = [view.examples_of([i])[0] for i in found.ids]
    shown = order_picks(chosen, "best-last", seed=0, query_id="")
    assert shown[-1] == chosen[0]  # the first chosen stands next to the query
    for t in range(3):
        question, *demos = seen[t].split("\n")
        assert question == "a dog in the soup"  # in front: no cut at the end can lose it
        before = shown[len(shown) - t :]
        assert demos == [f"{e.text}\t{e.output}" for e in before]


def test_a_cut_text_keeps_the_query_and_loses_the_oldest(minilm_path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(minilm_path)
    chosen = [Example(f"{word} " * 40, "yes") for word in ("first", "second", "third")]
    text = RetrieverFormat().query("where is the harbour master's office", "", chosen)
    kept = tokenizer.decode(tokenizer(text, truncation=True, max_length=64)["input_ids"])
    assert "where is the harbour master's office" in kept.replace(" ' ", "'")
    assert "third" in kept
    assert "first" not in kept


def test_a_plain_embedder_reads_the_chosen_inputs():
    embedder, seen = HashEmbedder(), []
    inner = embedder.encode_queries
    embedder.encode_queries = lambda texts, progress=None: seen.extend(texts) or inner(texts, progress)
    view = Pool.of(pool_of()).view()
    found = make_selector("se2,width=1").fit(view, Kit(embedder)).select(Query("wine"), 2)
    assert seen == ["wine", "wine\n" + view.examples_of([found.ids[0]])[0].text]


def test_its_explanation_has_the_sequence_its_scores_and_the_beams_that_came_next():
    view = Pool.of(pool_of()).view()
    chooser = make_selector("se2,width=3").fit(view, Kit(retriever()))
    query = Query("a dog in the soup")
    head, *lines = chooser.explain(query, 3)
    picks = chooser.select(query, 3).picks
    assert f"{sum(p.score for p in picks):.4f}" in head
    for n, pick in enumerate(picks, 1):
        assert lines[n - 1].startswith(f"step {n}: score {pick.score:.4f}")
        assert view.examples_of([pick.example_id])[0].text in lines[n - 1]
    others = [line for line in lines if line.startswith("runner-up beam")]
    assert len(others) == 2
    sums = [float(line.split("sum ")[1].split(":")[0]) for line in others]
    assert sums == sorted(sums, reverse=True)
    assert sums[0] <= sum(p.score for p in picks) + 1e-4


def test_settings_are_checked():
    for spec in ("se2,width=0", "se2,normalize=softmax", "se2,temperature=0"):
        with pytest.raises(UsageError, match=r"give|choose from"):
            make_selector(spec)


class DotEmbedder(BaseEmbedder):
    """Queries and documents on two towers, of lengths that depend on the text: what a model of inner products gives."""

    def __init__(self):
        self.inner = HashEmbedder(48)
        self.name, self.fingerprint, self.dim = "dot", "dot-1", 48

    def encode_raw(self, texts, progress=None, *, side="document"):
        lengths = [(2 if side == "query" else 9) * (1 + sum(map(ord, t)) % 13) for t in texts]
        return (self.inner.encode_queries(texts) * np.array(lengths)[:, None]).astype(np.float32)

    def encode_queries(self, texts, progress=None):
        return self.inner.encode_queries(texts)

    encode_documents = encode_queries


def dot_retriever(examples, card=None):
    inner, rendering = DotEmbedder(), RetrieverFormat()
    lengths = np.linalg.norm(inner.encode_raw([rendering.example(e) for e in examples]), axis=1)
    return Retriever(inner, replace(rendering, radius=1.1 * float(lengths.max())), card or {})


def product_steps(examples, embedder, text, normalize, temperature):
    """What each row adds after the rows chosen, from the towers' own inner products."""
    documents = embedder.inner.encode_raw([embedder.document_text(e) for e in examples]).astype(np.float64)

    def step(chosen, row):
        state = embedder.rendering.query(text, "", [examples[c] for c in chosen])
        dots = documents @ embedder.inner.encode_raw([state], side="query")[0].astype(np.float64)
        if normalize == "none":
            return float(dots[row])
        left = np.delete(dots, [*chosen]) / temperature
        return float(dots[row] / temperature - np.logaddexp.reduce(left))

    return step


QUESTIONS = [f"{a} and {b}" for a in ("fish", "cream", "the bill", "wine") for b in ("soup", "a dog", "salt", "cake")]


@pytest.mark.parametrize(("normalize", "temperature"), [("none", 0.05), ("log-softmax", 1.0), ("log-softmax", 200.0)])
def test_a_retriever_of_inner_products_is_searched_by_their_sum(normalize, temperature):
    examples = pool_of(6)
    view, embedder = Pool.of(examples).view(), dot_retriever(examples)
    spec = f"se2,width=60,normalize={normalize},temperature={temperature}"
    for picks in make_selector(spec).fit(view, Kit(embedder)).select_many([Query(q) for q in QUESTIONS], 3):
        step = product_steps(examples, embedder, picks.query.text, normalize, temperature)
        totals = {rows: sum(step(rows[:t], r) for t, r in enumerate(rows)) for rows in permutations(range(6), 3)}
        found = tuple(view.ids.index(i) for i in picks.ids)
        assert totals[found] == pytest.approx(max(totals.values()), rel=1e-5)
        assert [p.score for p in picks] == pytest.approx(
            [step(found[:t], r) for t, r in enumerate(found)], rel=1e-5, abs=2e-6
        )


def test_lengths_of_queries_decide_between_beams():
    examples = pool_of(6)
    view, embedder = Pool.of(examples).view(), dot_retriever(examples)
    documents, changed = embedder.encode_documents([embedder.document_text(e) for e in examples]), 0
    for selection in make_selector("se2,width=60").fit(view, Kit(embedder)).select_many([*map(Query, QUESTIONS)], 3):

        def cosines(rows, text=selection.query.text):
            states = [embedder.rendering.query(text, "", [examples[c] for c in rows[:t]]) for t in range(3)]
            vectors = embedder.encode_states(states)
            units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
            return sum(documents[r] @ v for r, v in zip(rows, units, strict=True))

        changed += tuple(view.ids.index(i) for i in selection.ids) != max(permutations(range(6), 3), key=cosines)
    assert changed > len(QUESTIONS) / 4


def test_the_first_of_a_sequence_is_the_one_of_largest_inner_product():
    examples = pool_of(12)
    view, embedder = Pool.of(examples).view(), dot_retriever(examples)
    for text in QUESTIONS:
        nearest = make_selector("knn").fit(view, Kit(embedder)).select(Query(text), 1)
        assert make_selector("se2,width=1").fit(view, Kit(embedder)).select(Query(text), 1).ids == nearest.ids


def test_sequences_by_inner_products_do_not_depend_on_the_queries_beside_them():
    examples = pool_of(12)
    view, embedder = Pool.of(examples).view(), dot_retriever(examples)
    chooser, queries = make_selector("se2,width=3").fit(view, Kit(embedder)), [*map(Query, QUESTIONS)]
    assert chooser.select_many(queries, 4) == [chooser.select(q, 4) for q in queries]


def test_a_temperature_that_is_not_the_one_trained_with_is_noted():
    examples = pool_of(6)
    view, embedder = Pool.of(examples).view(), dot_retriever(examples, {"config": {"temperature": 1.0}})
    for added, notes in (
        ("", ()),
        (",normalize=log-softmax,temperature=1", ()),
        (",normalize=log-softmax", ("temperature is 0.05, and the retriever was trained with 1",)),
    ):
        assert make_selector("se2" + added).fit(view, Kit(embedder)).select(Query("fish"), 2).notes == notes
