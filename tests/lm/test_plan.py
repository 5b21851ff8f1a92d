"""The plan: every request answered once, every read where a plain reading of the sequence would put it."""

from hypothesis import given, settings
from hypothesis import strategies as st

from iclkit.lm._plan import PASS_OVERHEAD, build_layout, common_length, make_plan
from iclkit.lm._tokens import TokenPair


@st.composite
def pair_lists(draw):
    alphabet = draw(st.integers(1, 3))
    pairs = []
    for _ in range(draw(st.integers(1, 14))):
        ids = draw(st.lists(st.integers(0, alphabet), min_size=2, max_size=40))
        pairs.append(TokenPair(tuple(ids), draw(st.integers(1, len(ids) - 1))))
    return pairs


def check_layout(pairs, depth):
    """Walk from each read up to its root: the path must be the sequence's own tokens."""
    layout = build_layout(pairs, depth)
    expected = {(u, i) for u, p in enumerate(pairs) for i in range(p.n_context, len(p.ids))}
    for row, token, sequence in zip(layout.read_row, layout.read_token, layout.read_sequence, strict=True):
        at = layout.rows[row]
        segment = max((s for s in layout.segments if s.at <= at), key=lambda s: s.at)
        path = list(segment.ids[: at - segment.at + 1])
        while segment.parent >= 0:
            segment = layout.segments[segment.parent]
            path = [*segment.ids, *path]
        length = depth + len(path)
        assert tuple(path) == pairs[sequence].ids[depth:length]
        assert pairs[sequence].ids[length] == token
        assert layout.positions[at] == length - 1
        expected.remove((sequence, length))
    assert not expected
    assert len(layout.tokens) <= sum(len(p.ids) - 1 - depth for p in pairs)
    return layout


@settings(max_examples=300, deadline=None)
@given(pairs=pair_lists())
def test_reads_of_a_layout_follow_each_sequence(pairs):
    check_layout(list(dict.fromkeys(pairs)), 0)


@settings(max_examples=300, deadline=None)
@given(pairs=pair_lists(), budget=st.integers(1, 60), share=st.booleans())
def test_a_plan_answers_every_request_exactly_once(pairs, budget, share):
    plan = make_plan(pairs, budget, share=share)
    assert sorted(u for b in plan.batches for u in b.sequences) == list(range(len(plan.sequences)))
    assert sorted(i for requests in plan.requests_of for i in requests) == list(range(len(pairs)))
    for u, requests in enumerate(plan.requests_of):
        assert all(pairs[i] == plan.sequences[u] for i in requests)
    assert plan.tokens_asked == sum(len(p.ids) for p in pairs)
    for batch in plan.batches:
        depth = 0
        if batch.prefix >= 0:
            prefix = plan.prefixes[batch.prefix]
            depth = len(prefix.ids)
            assert prefix.parent < batch.prefix
            assert prefix.start == (len(plan.prefixes[prefix.parent].ids) if prefix.parent >= 0 else 0)
            assert all(plan.sequences[u].ids[:depth] == prefix.ids for u in batch.sequences)
            assert all(plan.sequences[u].n_context > depth for u in batch.sequences)
        if share:
            check_layout([plan.sequences[u] for u in batch.sequences], depth)


@settings(max_examples=200, deadline=None)
@given(pairs=pair_lists(), budget=st.integers(1, 60), data=st.data())
def test_what_is_known_leaves_the_other_batches_as_they_were(pairs, budget, data):
    plan = make_plan(pairs, budget)
    whole = data.draw(st.sets(st.sampled_from(range(len(plan.batches)))))
    known = {i for b in whole for u in plan.batches[b].sequences for i in plan.requests_of[u]}
    left = plan.without(known)
    assert left.batches == tuple(b for n, b in enumerate(plan.batches) if n not in whole)
    assert left.tokens_cached == sum(len(pairs[i].ids) for i in known)
    assert plan.without(set(range(len(pairs)))).tokens_computed == 0


def test_the_plan_does_not_depend_on_the_order_of_requests():
    pairs = [TokenPair((1, 2, 3, t, t + 1), 4) for t in range(40)]
    batches = [
        {frozenset(p.sequences[u].ids for u in b.sequences) for b in p.batches}
        for p in (make_plan(pairs, 20), make_plan(pairs[::-1], 20))
    ]
    assert batches[0] == batches[1]


def test_a_long_prefix_of_many_sequences_is_computed_once_and_kept():
    prefix = tuple(range(100, 400))
    pairs = [TokenPair((*prefix, *([q] * 30), 1), 330) for q in range(50)]
    plan = make_plan(pairs, 512)
    assert len(plan.prefixes) == 1
    assert plan.prefixes[0].ids == prefix
    assert plan.tokens_computed == 300 + 50 * 30
    assert all(b.tokens <= 512 for b in plan.batches)


def test_labels_of_one_prompt_cost_one_pass_over_it():
    prompt = tuple(range(200))
    pairs = [TokenPair((*prompt, label), 200) for label in (5, 6, 7)] * 2
    plan = make_plan(pairs, 512)
    assert (plan.calls, plan.tokens_asked, plan.tokens_computed) == (3, 6 * 201, 200)


def test_a_growing_context_does_not_exhaust_the_stack():
    ids = tuple(i % 7 for i in range(3000))
    pairs = [TokenPair((*ids[:n], 9), n) for n in range(1, 3000, 2)]
    plan = make_plan(pairs, 64)
    assert plan.calls == 1500


@given(a=st.lists(st.integers(0, 2)), b=st.lists(st.integers(0, 2)))
def test_common_length_counts_equal_leading_tokens(a, b):
    n = common_length(tuple(a), tuple(b))
    assert a[:n] == b[:n]
    assert n == min(len(a), len(b)) or a[n] != b[n]


def test_a_prefix_nearly_as_long_as_a_batch_is_computed_once():
    prefix = tuple(range(100, 1000))
    pairs = [TokenPair((*prefix, *([q] * 30), 1), 930) for q in range(20)]
    assert make_plan(pairs, 1000).tokens_computed == 900 + 20 * 30


@settings(max_examples=100, deadline=None)
@given(size=st.integers(1, 300), labels=st.integers(1, 8), budget=st.integers(1, 200), queries=st.integers(1, 3))
def test_a_prompt_is_computed_once_for_all_its_labels_however_long_it_is(size, labels, budget, queries):
    pairs = [TokenPair((q, *range(10, 9 + size), 400 + label), size) for q in range(queries) for label in range(labels)]
    assert make_plan(pairs, budget).tokens_computed == queries * size


@settings(max_examples=100, deadline=None)
@given(size=st.integers(1, 300), budget=st.integers(1, 200), lengths=st.lists(st.integers(1, 4), min_size=1))
def test_labels_of_several_tokens_never_repeat_a_long_prompt(size, budget, lengths):
    labels = [tuple(400 + 10 * n + i for i in range(length)) for n, length in enumerate(lengths)]
    prompt = tuple(range(2 * PASS_OVERHEAD + size))
    pairs = [TokenPair((*prompt, *label), len(prompt)) for label in labels]
    # a prefix is repeated only where keeping it would cost more than a pass of its own
    assert make_plan(pairs, budget).tokens_computed < 2 * len(prompt) + sum(lengths)
