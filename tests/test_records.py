"""Examples and queries: one spelling for all that enters, one text for fields in any order, names that stay apart."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iclkit.errors import DataError
from iclkit.records import Example, Query, clean_text, unique_names

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
fields = st.dictionaries(texts.map(clean_text), texts, min_size=1, max_size=4)


@pytest.mark.parametrize(
    "other", ["cafe\u0301", " caf\u00e9", "caf\u00e9\n", "caf\u00e9\u00a0", "\u3000caf\u00e9\u2028", "caf\u00e9\r\n"]
)
def test_what_a_metric_does_not_see_is_gone_when_an_example_is_made(other: str) -> None:
    plain = Example("caf\u00e9", "caf\u00e9", "caf\u00e9", ("caf\u00e9",))
    assert Example(other, other, other, (other,)) == plain
    assert Example(other, other, other, (other,)).output == "caf\u00e9"
    assert Query(other, (other,)) == Query("caf\u00e9", ("caf\u00e9",))
    assert Example({other: other}, "y").input == {"caf\u00e9": "caf\u00e9"}


@given(texts, texts, fields)
def test_an_example_made_of_an_example_s_texts_is_the_same(
    given_input: str, output: str, named: dict[str, str]
) -> None:
    for value in (given_input, named):
        example = Example(value, output, choices=(output,))
        assert Example(example.input, example.output, choices=example.choices) == example
        assert unicodedata.is_normalized("NFC", example.output)
        assert example.output == example.output.strip()


def test_ids_of_content_are_those_they_were() -> None:
    assert Example("an input", "an output").id == "87b7cd27d7d536fed5579e2c3927fb75"
    assert Example(" an input\r\n", "an output ").id == "87b7cd27d7d536fed5579e2c3927fb75"
    assert (
        Example({"premise": "p", "hypothesis": "h"}, "yes", "nli", ("yes", "no")).id
        == "d1d150b9bda79e08ef71cb0869b96ab7"
    )
    assert Query("an input", ("a", "b")).id == "6fbc40807bc7f833c6402434373ce8f3"


@given(fields, st.randoms())
def test_the_text_of_named_fields_does_not_depend_on_their_order(named: dict[str, str], random) -> None:  # type: ignore[no-untyped-def]
    items = [*named.items()]
    random.shuffle(items)
    assert Query(dict(items)).text == Query(named).text == Example(dict(items), "y").text
    assert Query(dict(items)) == Query(named)


def test_fields_keep_the_order_of_their_row_for_templates() -> None:
    assert [*Example({"premise": "p", "hypothesis": "h"}, "y").input] == ["premise", "hypothesis"]
    assert Example({"premise": "p", "hypothesis": "h"}, "y").text == "h\np"


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Example("half \ud83d", "y"), "half of a surrogate pair .* in the input is no character"),
        (lambda: Example({"half \ud83d": "x"}, "y"), "half of a surrogate pair .* in the input is no character"),
        (lambda: Example("x", "y", "\ud83d"), "half of a surrogate pair .* in the task is no character"),
        (lambda: Query("x", ("\udc00",)), "half of a surrogate pair .* in the choices is no character"),
        (lambda: Example({"a": 3}, "y"), "3 in the input is not a text or named texts"),  # type: ignore[dict-item]
        (lambda: Example("x", None), "None in the output is not a text"),  # type: ignore[arg-type]
        (lambda: Query(b"x"), "b'x' in the input is not a text"),  # type: ignore[arg-type]
        (lambda: Query({"caf\u00e9": "a", "cafe\u0301": "b"}), "two fields of an input have one name"),
    ],
)
def test_content_that_is_no_text_is_told_in_one_line(make, told: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(DataError, match=told) as caught:
        make()
    str(caught.value).encode()


@given(st.lists(st.sampled_from(["a", "b", "a#2", "a#3", "a#2#2"])))
def test_names_are_made_unique_and_the_first_of_each_is_kept(names: list[str]) -> None:
    made = unique_names(names)
    assert len(set(made)) == len(names)
    assert all(new.startswith(old) for new, old in zip(made, names, strict=True))
    assert {made[names.index(n)] for n in names} == set(names)
