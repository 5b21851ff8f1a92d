"""Chat templates: what belongs to the context and what to the answer, and templates that refuse."""

import copy
import functools

import pytest

from iclkit.errors import ModelError, UsageError
from iclkit.lm import ScoreRequest, load_lm
from iclkit.lm._tokens import PromptTokenizer
from iclkit.records import Message, without_system

from .broken import copy as copy_folder
from .broken import setting
from .conftest import train_tokenizer

TURN = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
CHATML = TURN + "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
BLANK_LINE = TURN + "{% if add_generation_prompt %}<|assistant|>\n\n{% endif %}"
SPACE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: "
INSTRUCT = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %}{{ m.content }}{% endif %}{% endfor %}"
)
TRIMMED = INSTRUCT.replace("{{ m.content }}", "{{ m.content | trim }}").replace("[/INST]", "[/INST]\n")
PLAIN = "{% for m in messages %}{{ m.content }}\n{% endfor %}"
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHATML
)
DROPS_SYSTEM = CHATML.replace("{% for m in messages %}", "{% for m in messages if m.role != 'system' %}")
CHATS = [
    [Message("user", "good film")],
    [Message("system", "Judge."), Message("user", "good film")],
    [Message("user", "bad film"), Message("assistant", "negative"), Message("user", "good film")],
]


trained = functools.cache(train_tokenizer)  # a second training of a unigram tokenizer gives another one


def codec(template, kind="bpe", bos=False):
    tokenizer = copy.deepcopy(trained(kind, bos))
    tokenizer.chat_template = template
    return PromptTokenizer(tokenizer)


@pytest.fixture(params=[("bpe", False), ("bpe", True), ("unigram", True)], ids=str)
def kind(request):
    return request.param


@pytest.mark.parametrize("template", [CHATML, BLANK_LINE, TRIMMED, NO_SYSTEM, DROPS_SYSTEM])
@pytest.mark.parametrize("chat", CHATS)
def test_the_white_space_that_a_template_ends_with_is_context(kind, template, chat):
    own = codec(template, *kind)
    text = own.render_chat(chat)
    assert text != text.rstrip()
    (pair,) = own.pairs([(text, "positive")])
    head, whole = own.encode([text, text + "positive"])
    assert pair.ids == whole
    if whole[: len(head)] == head:
        assert pair.n_context == len(head)
    scored = own.decode(pair.ids[pair.n_context :])
    assert scored.strip() == "positive"
    if kind[0] == "bpe":
        assert scored == "positive", "the newline is not scored"


def test_the_answer_has_as_many_tokens_as_its_text(kind):
    own = codec(CHATML, *kind)
    text = own.render_chat(CHATS[0])
    for label in ("positive", "negative", "the lazy dog"):
        (pair,) = own.pairs([(text, label)])
        assert len(pair.ids) - pair.n_context == len(own.encode([text + label])[0]) - len(own.encode([text])[0])


def test_a_template_that_ends_in_a_space_gives_it_to_the_token_that_spans_the_boundary():
    own = codec(SPACE)
    text = own.render_chat(CHATS[0])
    assert text.endswith("assistant: ")
    (pair,) = own.pairs([(text, "positive")])
    assert pair.ids == own.encode([text + "positive"])[0]
    assert own.decode(pair.ids[pair.n_context :]).strip() == "positive"


@pytest.mark.parametrize("template", [None, INSTRUCT, PLAIN, "{{ oops", 5])
def test_plain_prompts_are_read_as_before_whatever_the_template(kind, template):
    own, plain = codec(template, *kind), codec(None, *kind)
    asks = [("Sentiment: ", "positive"), ("Sentiment:\n", "positive"), ("Sentiment:", " positive"), ("a\n\n", " b")]
    assert own.pairs(asks) == plain.pairs(asks)


def test_plain_prompts_of_a_chat_model_are_read_as_before(kind):
    own, plain = codec(CHATML, *kind), codec(None, *kind)
    asks = [("Sentiment: ", "positive"), ("Sentiment:\n", "positive"), ("assistant\n", "positive"), ("", "the dog")]
    assert own.pairs(asks) == plain.pairs(asks)


@pytest.mark.parametrize("template", [NO_SYSTEM, DROPS_SYSTEM])
def test_a_template_without_a_system_role_gets_its_text_in_the_first_user_turn_and_a_note(template):
    own = codec(template)
    assert own.render_chat(CHATS[1]) == codec(CHATML).render_chat([Message("user", "Judge.\n\ngood film")])
    assert own.notes == ("the chat template takes no system message: its text is put before the first user message",)
    assert codec(CHATML).notes == codec(None).notes == ()


def test_a_system_text_goes_before_the_first_user_message():
    s, u, a = Message("system", "S"), Message("user", "U"), Message("assistant", "A")
    assert without_system([s, u, a, u]) == [Message("user", "S\n\nU"), a, u]
    assert without_system([u, a]) == [u, a]
    assert without_system([s]) == [Message("user", "S")]
    assert without_system([a, u, s]) == [a, Message("user", "S\n\nU")]


BROKEN = {
    "no template at all": "{{ oops",
    "raises": "{{ raise_exception('no\nchats') }}",
    "unknown field": "{% for m in messages %}{{ m.content + m.name.first }}{% endfor %}",
    "endless": "{% for i in range(10**12) %}x{% endfor %}",
    "division": "{{ 1 / 0 }}",
    "forbidden": "{{ messages.__class__.__mro__[1].__subclasses__() }}",
}


@pytest.mark.parametrize("template", BROKEN.values(), ids=BROKEN)
def test_a_template_that_fails_is_one_line_when_a_chat_is_asked_for_and_none_before(template):
    own = codec(template)
    assert own.notes == ()
    with pytest.raises(ModelError, match=r"chat template fails .*; use a plain-text prompt template") as caught:
        own.render_chat(CHATS[0])
    assert "\n" not in str(caught.value)


def test_a_template_that_wants_other_turns_is_one_line():
    own = codec(
        CHATML.replace("{% for", "{% if messages | length > 1 %}{{ raise_exception('one turn') }}{% endif %}{% for")
    )
    own.render_chat(CHATS[0])
    with pytest.raises(ModelError, match="one turn"):
        own.render_chat(CHATS[2])
    with pytest.raises(UsageError, match="no chat template"):
        codec(None).render_chat(CHATS[0])


def test_a_loaded_lm_scores_the_answer_alone_and_passes_the_note_on(tiny_folder, tmp_path):
    folder = copy_folder(tiny_folder(), tmp_path / "chat", setting("tokenizer_config.json", chat_template=NO_SYSTEM))
    lm = load_lm(str(folder), dtype="fp32", device="cpu", workers=1, cache=tmp_path / "c.db")
    text = lm.render_chat(CHATS[1])
    (score,) = lm.score([ScoreRequest(text, "positive")])
    tokenizer = lm.inner.codec
    assert score.tokens == len(tokenizer.encode([text + "positive"])[0]) - len(tokenizer.encode([text])[0])
    assert "system message" in lm.notes[0]


@pytest.mark.models
def test_smollm2_scores_a_chat_label_of_one_token_as_one(smollm2_path):
    lm = load_lm(str(smollm2_path), dtype="fp32", device="cpu", workers=1, cache=False)
    text = lm.render_chat(CHATS[0])
    assert text.endswith("<|im_start|>assistant\n")
    assert [s.tokens for s in lm.score([ScoreRequest(text, label) for label in ("positive", "negative")])] == [1, 1]
    assert lm.notes == ()
