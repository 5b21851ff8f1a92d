"""Generation: greedy against a plain loop, stop strings, sampling that ignores its neighbours, constrained choice."""

import pytest
import torch

from iclkit.errors import RequestError
from iclkit.lm import GenerateRequest, ScoreRequest
from iclkit.lm._cascade import plain
from iclkit.lm._load import load_torch
from iclkit.lm._packed import PackedForward

CONTEXTS = ["the quick brown", "Review: the plot is thin . Sentiment:", "what is", "a joy to remember and a"]


@pytest.fixture(scope="module")
def lm(tiny_folder):
    return load_torch(str(tiny_folder(initializer_range=0.6)), dtype="fp32", device="cpu")


def plain_greedy(lm, context, n):
    """The whole sequence again for each token: no cache, no batch."""
    ids = list(lm.codec.encode([context])[0])
    start = len(ids)
    for _ in range(n):
        with torch.inference_mode():
            token = int(lm.model.module(torch.tensor([ids])).logits[0, -1].argmax())
        if token == lm.codec.eos:
            break
        ids.append(token)
    return lm.codec.decode(ids[start:])


def test_greedy_batches_equal_the_plain_loop(lm):
    got = lm.generate([GenerateRequest(c, 12) for c in CONTEXTS])
    assert [g.text for g in got] == [plain_greedy(lm, c, 12) for c in CONTEXTS]


@pytest.mark.parametrize("attention", ["flash", "rows", plain], ids=["flash", "rows", "cascade"])
@pytest.mark.parametrize("batch_tokens", [8, 24, 2048])
def test_shared_beginnings_and_rows_that_end_early_change_nothing(tiny_folder, batch_tokens, attention):
    lm = load_torch(str(tiny_folder(initializer_range=0.6)), dtype="fp32", device="cpu", batch_tokens=batch_tokens)
    lm.model.packed = PackedForward(lm.model.packed.architecture, attention=attention)
    shared = " ".join(CONTEXTS[:2])
    asks = [GenerateRequest(shared + end, n) for end in ("", *(f" {c}" for c in CONTEXTS)) for n in (1, 3, 40)]
    asks.append(asks[4])
    got = lm.generate(asks)
    assert [g.text for g in got] == [plain_greedy(lm, a.context, a.max_tokens) for a in asks]
    if batch_tokens == 2048:
        assert lm.usage.tokens_computed < 0.6 * sum(map(len, lm.encode_prompts(asks))) + sum(g.tokens for g in got)


def test_the_packed_pass_writes_what_the_module_does(lm):
    asks = [GenerateRequest(c, 12) for c in CONTEXTS]
    prompts = lm.encode_prompts(asks)
    assert lm.model._generate(prompts, asks) == lm.model._generate_by_module(prompts, asks, whole=False)


@pytest.mark.parametrize("ahead", [2, 7])
def test_writing_ahead_of_looking_changes_no_text(tiny_folder, ahead, lm):
    other = load_torch(str(tiny_folder(initializer_range=0.6)), dtype="fp32", device="cpu")
    asks = [GenerateRequest(c, n) for c in CONTEXTS[:2] for n in (1, 8, 21)]
    stops = [GenerateRequest(a.context, 21, stop=(g.text[3:5],)) for a, g in zip(asks, lm.generate(asks), strict=True)]
    other.model.steps_ahead = ahead
    assert other.generate([*asks, *stops]) == lm.generate([*asks, *stops])


def test_generation_ends_before_a_stop_string(lm):
    (free,) = lm.generate([GenerateRequest(CONTEXTS[0], 20)])
    stop = free.text[4:7]
    (cut,) = lm.generate([GenerateRequest(CONTEXTS[0], 20, stop=("never this", stop))])
    assert cut.text == free.text[: free.text.index(stop)]
    assert cut.finish == "stop"
    assert cut.tokens < 20


def test_finish_says_why_it_ended(lm):
    long, none = lm.generate([GenerateRequest(CONTEXTS[0], 2), GenerateRequest(CONTEXTS[1], 0)])
    assert (long.finish, long.tokens) == ("length", 2)
    assert (none.finish, none.tokens, none.text) == ("length", 0, "")


def test_a_sample_depends_on_its_seed_and_not_on_its_neighbours(lm):
    asks = [GenerateRequest(c, 10, temperature=1.5, seed=s) for c in CONTEXTS for s in range(3)]
    together = lm.generate(asks)
    assert [lm.generate([a])[0] for a in asks] == together
    assert lm.generate(asks[::-1])[::-1] == together
    assert len({g.text for g in together}) > len(CONTEXTS)


def test_sampling_follows_the_distribution(lm):
    logits = lm.model.module(torch.tensor([lm.codec.encode([CONTEXTS[0]])[0]])).logits[0, -1]
    top = float(torch.softmax(logits / 2, -1).max())
    best = lm.codec.decode([int(logits.argmax())])
    got = lm.generate([GenerateRequest(CONTEXTS[0], 1, temperature=2.0, seed=s) for s in range(600)])
    assert sum(g.text == best for g in got) / 600 == pytest.approx(top, abs=4 * (top * (1 - top) / 600) ** 0.5)


def test_a_choice_is_the_likeliest_of_the_choices(lm):
    choices = (" negative", " positive", " the lazy dog")
    (got,) = lm.generate([GenerateRequest(CONTEXTS[1], choices=choices)])
    scores = lm.score([ScoreRequest(CONTEXTS[1], c) for c in choices])
    assert got.text == choices[max(range(3), key=lambda i: scores[i].logprob)]
    assert got.finish == "choice"


def test_a_prompt_and_answer_beyond_the_context_are_an_error(lm):
    with pytest.raises(RequestError, match="reads 512"):
        lm.generate([GenerateRequest("dog", 600)])


@pytest.mark.models
def test_smollm2_generates_what_its_module_does(smollm2_path):
    lm = load_torch(str(smollm2_path), dtype="fp32", device="cpu")
    asks = ["The capital of France is", "Q: What is two plus two?\nA:"]
    got = lm.generate([GenerateRequest(a, 8) for a in asks])
    assert [g.text for g in got] == [plain_greedy(lm, a, 8) for a in asks]
