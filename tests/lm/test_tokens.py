"""The boundary between context and continuation, for byte-level BPE and for a SentencePiece-like tokenizer."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iclkit.errors import RequestError, UsageError
from iclkit.lm._tokens import PromptTokenizer
from iclkit.records import Message

from .conftest import train_tokenizer

KINDS = [("bpe", False), ("bpe", True), ("unigram", False), ("unigram", True)]


@pytest.fixture(scope="module", params=KINDS, ids=lambda k: f"{k[0]}{'-bos' if k[1] else ''}")
def codec(request):
    return PromptTokenizer(train_tokenizer(*request.param))


def test_ids_of_a_pair_are_the_joint_tokenisation(codec):
    (pair,) = codec.pairs([("Review: the plot is thin . Sentiment:", " negative")])
    assert pair.ids == tuple(codec.tokenizer("Review: the plot is thin . Sentiment: negative")["input_ids"])
    assert pair.ids[: pair.n_context] == tuple(codec.tokenizer("Review: the plot is thin . Sentiment:")["input_ids"])


def test_a_space_at_the_end_of_the_context_belongs_to_the_continuation(codec):
    first, second = codec.pairs([("Sentiment: ", "positive"), ("Sentiment:", " positive")])
    assert first == second


def test_a_token_that_spans_the_boundary_is_scored_whole(codec):
    (pair,) = codec.pairs([("the news", "paper man")])
    whole = codec.tokenizer("the newspaper man")["input_ids"]
    assert pair.ids == tuple(whole)
    head = codec.tokenizer("the news")["input_ids"]
    same = 0
    while same < len(head) and head[same] == whole[same]:
        same += 1
    assert pair.n_context == same
    assert same < len(head), "the case must really merge"
    assert "news" in codec.decode(pair.ids[pair.n_context :])


def test_bos_stands_in_front_once(codec):
    plain = codec.encode(["the dog"])[0]
    marked = codec.encode(["<s>the dog"])[0]
    assert plain.count(1) == len(codec.prefix)
    assert marked.count(1) == 1


def test_an_empty_context_starts_from_bos_or_end_of_text(codec):
    (pair,) = codec.pairs([("", "the dog")])
    assert pair.n_context == 1
    assert pair.ids[0] == 1
    assert codec.decode(pair.ids[1:]).strip() == "the dog"


def test_a_continuation_without_tokens_is_an_error(codec):
    with pytest.raises(RequestError, match="no token"):
        codec.pairs([("the dog", "")])


def test_a_chat_without_a_chat_template_is_a_usage_error(codec):
    with pytest.raises(UsageError, match="chat template"):
        codec.render_chat([Message("user", "hello")])


words = st.text(alphabet="abdeghinoprstw .?:\n", min_size=0, max_size=20)


@settings(max_examples=200, deadline=None)
@given(context=words, continuation=words)
def test_every_pair_is_whole_and_splits_inside(codec, context, continuation):
    kept = context.rstrip()
    try:
        (pair,) = codec.pairs([(context, continuation)])
    except RequestError:
        assert codec.encode([kept]) == codec.encode([context + continuation])
        return
    assert 1 <= pair.n_context < len(pair.ids)
    whole = codec.encode([context + continuation])[0]
    assert pair.ids in (whole, codec.start + whole)


@pytest.mark.models
def test_smollm2_labels_are_single_tokens_after_the_prompt(smollm2_path):
    from transformers import AutoTokenizer

    codec = PromptTokenizer(AutoTokenizer.from_pretrained(smollm2_path))
    pairs = codec.pairs([("Review: fine\nSentiment:", label) for label in (" positive", " negative", " abbreviation")])
    assert [len(p.ids) - p.n_context for p in pairs[:2]] == [1, 1]
    assert len({p.ids[: p.n_context] for p in pairs}) == 1
    chat = codec.render_chat([Message("user", "hello")])
    assert chat.endswith("<|im_start|>assistant\n")
    assert codec.encode([chat])[0] == tuple(codec.tokenizer(chat, add_special_tokens=False)["input_ids"])
