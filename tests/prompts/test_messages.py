"""Messages for a chat API are made without a model."""

from __future__ import annotations

from iclkit.prompts import Template, assemble
from iclkit.records import Example, Message, Query
from iclkit.selectors import Chooser, Kit, make_selector

SHOTS = [Example("late parcel", "delivery"), Example("no refund", "billing")]
CHAT = Template("Text: {input}\nLabel: {output}", "Sort the ticket.", chat=True, system="You are brief.")


def test_a_chat_is_messages_and_a_text_for_people_without_a_model() -> None:
    prompt = assemble(CHAT, Query("where is it"), SHOTS)
    assert prompt.messages == (
        Message("system", "You are brief.\n\nSort the ticket."),
        Message("user", "Text: no refund\nLabel:"),
        Message("assistant", "billing"),
        Message("user", "Text: late parcel\nLabel:"),
        Message("assistant", "delivery"),
        Message("user", "Text: where is it\nLabel:"),
    )
    assert prompt.text.startswith("[system]\nYou are brief.\n\nSort the ticket.\n[user]\n")
    assert "".join(prompt.text[s.start : s.end] for s in prompt.spans) == prompt.text
    assert prompt.to_openai() == [{"role": m.role, "content": m.content} for m in prompt.messages]


def test_a_model_without_a_system_role_gets_its_text_in_the_first_user_turn() -> None:
    turns = assemble(CHAT, Query("where is it"), SHOTS).to_openai(system=False)
    assert [t["role"] for t in turns] == ["user", "assistant", "user", "assistant", "user"]
    assert turns[0]["content"] == "You are brief.\n\nSort the ticket.\n\nText: no refund\nLabel:"


def test_a_plain_prompt_is_one_user_message() -> None:
    prompt = assemble(Template(), Query("where is it"), SHOTS[:1])
    assert prompt.to_openai() == [{"role": "user", "content": prompt.text}]


def test_a_selection_holds_its_examples_and_a_chooser_its_messages() -> None:
    fitted = make_selector("bm25").fit(SHOTS, Kit(template=CHAT))
    selection = fitted.select("parcel", 1)
    assert selection.examples == (SHOTS[0],)
    chooser = Chooser(fitted, fitted.pool_, fitted.kit_, k=1)
    assert chooser.messages("parcel") == assemble(CHAT, Query("parcel"), SHOTS[:1]).to_openai()
    assert [m["role"] for m in chooser.messages("parcel", 0)] == ["system", "user"]


class _Own:
    def fit(self, pool, kit) -> None:
        self.ids = pool.ids

    def select(self, query, k):
        from iclkit.records import Pick, Selection, Spec

        return Selection(query, tuple(Pick(i, 0.0, n) for n, i in enumerate(self.ids[:k], 1)), Spec("own"))


def test_a_foreign_selectors_selection_holds_its_examples_too() -> None:
    assert make_selector(_Own()).fit(SHOTS).select("x", 2).examples == tuple(SHOTS)
