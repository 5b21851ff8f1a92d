"""Trained retrievers as embedders: how they write texts, and what of a card they believe."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from iclkit.embed import Retriever, RetrieverFormat, load_embedder
from iclkit.embed._retriever import mips_to_cosine, read_card, retriever_from_card
from iclkit.errors import ModelError
from iclkit.pool import Pool, Scope
from iclkit.records import Example, Query
from iclkit.selectors import Kit, make_selector
from iclkit.testing import HashEmbedder

RAIN = Example("is it raining", "yes", task="weather")
FILM = Example("a dull film", "bad", task="film")
BARE = Example("some words", "some answer")
TOLD = {"weather": "Weather question:", "film": "Sentiment of the film:"}
CARD = {
    "format": 1,
    "rendering": {"document": "input", "separator": " -> ", "instructions": {"film": "Film:"}, "instruct": ["query"],
                  "radius": 0.0},
    "tasks": [{"name": "film"}, {"name": "weather"}],
}  # fmt: skip


class Raw(HashEmbedder):
    """Its vectors are as long as their texts."""

    def encode_raw(self, texts, progress=None, *, side="document"):
        lengths = np.array([len(t) for t in texts], dtype=np.float32)
        return self.encode_documents(texts, progress) * lengths[:, None]


# -- inner products as cosines --


finite = st.floats(-3, 3, width=32)


@given(hnp.arrays(np.float32, (7, 4), elements=finite), hnp.arrays(np.float32, (4,), elements=finite))
def test_cosines_of_lifted_documents_rank_as_inner_products(documents, query) -> None:
    radius = 1.1 * max(float(np.linalg.norm(documents, axis=1).max()), 1.0)
    length = float(np.linalg.norm(query))
    unit = query / length if length else np.eye(4, dtype=np.float32)[0]
    lifted = mips_to_cosine(documents, radius)
    np.testing.assert_allclose(np.linalg.norm(lifted, axis=1), 1, atol=1e-5)
    cosines = lifted @ np.append(unit, np.float32(0))
    naive = [sum(float(a) * float(b) for a, b in zip(d, unit, strict=True)) for d in documents]
    np.testing.assert_allclose(cosines, np.array(naive) / radius, atol=1e-5)
    for i, one in enumerate(naive):
        for j, other in enumerate(naive):
            if one > other + 1e-3:
                assert cosines[i] > cosines[j]


def test_rows_longer_than_the_radius_are_cut_and_keep_their_direction() -> None:
    lifted = mips_to_cosine(np.array([[3.0, 4.0], [0.6, 0.8], [0.0, 0.0]], dtype=np.float32), 2.0)
    np.testing.assert_allclose(lifted, [[0.6, 0.8, 0.0], [0.3, 0.4, 0.75**0.5], [0.0, 0.0, 1.0]], atol=1e-3)
    assert lifted.dtype == np.float32


def test_a_retriever_for_inner_products_finds_the_longer_of_two_alike() -> None:
    retriever = Retriever(Raw(), RetrieverFormat("input", radius=50.0), {})
    pool = Pool.of([Example("cat", "a"), Example("cat cat cat cat", "b"), Example("dog", "c")])
    view = pool.view()
    assert retriever.dim == 65
    (best,) = view.index(retriever).nearest(retriever.encode_queries(["cat"]), 3, [Scope()])
    assert view.outputs(best.rows[:2]) == ["b", "a"]


def test_inner_products_need_an_embedder_that_gives_raw_vectors() -> None:
    with pytest.raises(ModelError, match="gives unit vectors only; load one with load_embedder"):
        Retriever(HashEmbedder(), RetrieverFormat(radius=1.0), {}).encode_documents(["x"])


# -- how texts are written --


def test_a_demonstration_is_its_input_with_or_without_its_output() -> None:
    assert RetrieverFormat("input").example(RAIN) == "is it raining"
    assert RetrieverFormat("input+output", " = ").example(RAIN) == "is it raining = yes"
    fields = Example({"premise": "it rains", "claim": "it is wet"}, "entailed")
    assert RetrieverFormat().example(fields) == "it is wet\nit rains\tentailed"  # fields by name


def test_the_query_stands_in_front_of_what_is_chosen_newest_first() -> None:
    written = RetrieverFormat().query("will it snow", chosen=[RAIN, FILM, BARE])
    assert written.split("\n") == ["will it snow", "some words\tsome answer", "a dull film\tbad", "is it raining\tyes"]
    assert RetrieverFormat().query("will it snow") == "will it snow"


def test_instructions_stand_on_the_sides_that_are_named_and_nowhere_else() -> None:
    both, one = (
        RetrieverFormat("input", instructions=TOLD),
        RetrieverFormat("input", instructions=TOLD, instruct=("document",)),
    )
    assert both.query("will it snow", "weather") == "Weather question: will it snow"
    assert both.example(RAIN, "weather") == "Weather question: is it raining"
    assert one.query("will it snow", "weather") == "will it snow"
    assert one.example(RAIN, "weather") == "Weather question: is it raining"
    assert both.query("will it snow", "unheard of") == both.query("will it snow") == "will it snow"


def test_what_is_chosen_is_shown_without_instructions() -> None:
    written = RetrieverFormat(instructions=TOLD).query("will it snow", "weather", [RAIN])
    assert written == "Weather question: will it snow\nis it raining\tyes"


def test_the_task_of_an_example_goes_before_the_one_asked_about() -> None:
    rendering = RetrieverFormat("input", instructions=TOLD)
    assert rendering.example(FILM, "weather") == "Sentiment of the film: a dull film"
    assert rendering.example(BARE, "weather") == "Weather question: some words"
    assert rendering.example(BARE) == "some words"


def test_a_retriever_that_learned_with_instructions_says_for_which_tasks_it_has_none() -> None:
    told = Retriever(HashEmbedder(), RetrieverFormat(instructions=TOLD), {})
    assert not told.lacks_instruction("weather")
    assert told.lacks_instruction("unheard of")
    silent = (RetrieverFormat(), RetrieverFormat(instructions=TOLD, instruct=()))
    assert not any(Retriever(HashEmbedder(), r, {}).lacks_instruction("unheard of") for r in silent)


# -- fingerprints --


def test_fingerprints_differ_by_task_only_where_there_are_instructions() -> None:
    bare = Retriever(HashEmbedder(), RetrieverFormat(), {})
    told = Retriever(HashEmbedder(), RetrieverFormat(instructions=TOLD), {})
    assert bare.fingerprint == bare.for_task("film").fingerprint
    marks = {told.fingerprint, told.for_task("film").fingerprint, told.for_task("weather").fingerprint}
    assert len(marks) == 3
    assert told.for_task("film").for_task("").fingerprint == told.fingerprint


@pytest.mark.parametrize(
    "other", [{"document": "input"}, {"separator": " "}, {"radius": 2.0}, {"instructions": TOLD}, {"instruct": ()}]
)
def test_fingerprints_differ_by_how_texts_are_written_and_by_the_model(other) -> None:
    one = Retriever(HashEmbedder(), RetrieverFormat(), {}).fingerprint
    assert one == Retriever(HashEmbedder(), RetrieverFormat(), {"tasks": [{"name": "x"}]}).fingerprint
    assert one != Retriever(HashEmbedder(), replace(RetrieverFormat(), **other), {}).fingerprint
    assert one != Retriever(HashEmbedder(32), RetrieverFormat(), {}).fingerprint
    assert one != HashEmbedder().fingerprint


# -- in a pool and in selectors --


def test_a_pool_embeds_what_the_retriever_writes() -> None:
    retriever = Retriever(HashEmbedder(), RetrieverFormat("input+output", instructions=TOLD), {}, "weather")
    pool = Pool.of([RAIN, FILM, BARE])
    texts = ["Weather question: is it raining\tyes", "Sentiment of the film: a dull film\tbad",
             "Weather question: some words\tsome answer"]  # fmt: skip
    np.testing.assert_array_equal(pool.view().vectors(retriever), HashEmbedder().encode_documents(texts))
    (best,) = pool.view().index(retriever).nearest(retriever.encode_queries(["some words answer"]), 1, [Scope()])
    rows, scores = pool.view().positions(best.rows), best.scores
    assert (rows.tolist(), scores.shape) == ([2], (1,))


def test_one_pool_keeps_apart_what_tasks_and_embedders_make_of_it() -> None:
    pool = Pool.of([RAIN, BARE])
    plain, retriever = HashEmbedder(), Retriever(HashEmbedder(), RetrieverFormat("input", instructions=TOLD), {})
    view = pool.view()
    film, weather = retriever.for_task("film"), retriever.for_task("weather")
    texts = [["Weather question: is it raining", f"{TOLD[t]} some words"] for t in ("film", "weather")]
    for _ in range(2):
        np.testing.assert_array_equal(view.vectors(plain), plain.encode_documents([RAIN.text, BARE.text]))
        np.testing.assert_array_equal(view.vectors(film), plain.encode_documents(texts[0]))
        np.testing.assert_array_equal(view.vectors(weather), plain.encode_documents(texts[1]))


def test_documents_are_embedded_once() -> None:
    pool, retriever = Pool.of([RAIN, FILM, BARE]), Retriever(HashEmbedder(), RetrieverFormat(), {})
    pool.view().vectors(retriever)
    calls = retriever.inner.calls["documents"]
    pool.view().vectors(retriever.for_task("film"))
    assert (calls, retriever.inner.calls["documents"]) == (3, 3)


def test_a_selector_gives_the_instruction_of_the_task_it_is_fitted_for() -> None:
    retriever = Retriever(HashEmbedder(), RetrieverFormat("input", instructions=TOLD, instruct=("query",)), {})
    pool = Pool.of([Example("weather question", "w"), Example("sentiment of the film", "f")])
    for task, output in (("weather", "w"), ("film", "f")):
        chooser = make_selector("knn").fit(pool.view(), Kit(embedder=retriever, task=task))
        picks = chooser.select(Query("some words"), 1)
        assert pool.get(picks.ids[0]).output == output
        assert chooser.kit_.embedder.task == task
    assert retriever.task == ""


def test_a_selector_leaves_other_embedders_as_they_are() -> None:
    embedder = HashEmbedder()
    chooser = make_selector("knn").fit(Pool.of([RAIN, FILM]).view(), Kit(embedder=embedder, task="film"))
    assert chooser.kit_.embedder is embedder


# -- cards --


def test_a_card_says_how_texts_are_written_and_what_was_seen(tmp_path) -> None:
    (tmp_path / "iclkit.json").write_text(json.dumps(CARD))
    retriever = retriever_from_card(HashEmbedder(), read_card(tmp_path))
    assert retriever.rendering == RetrieverFormat("input", " -> ", {"film": "Film:"}, ("query",))
    assert retriever.trained_on == ("film", "weather")
    assert read_card(tmp_path / "elsewhere") is None


def broken(**changes) -> str:
    return json.dumps({**CARD, **changes})


def drawn(**changes) -> str:
    return broken(rendering={**CARD["rendering"], **changes})


BROKEN = [
    ("{", "is no retriever's card"),
    ("[1]", "is no retriever's card"),
    ("null", "is no retriever's card"),
    ("{}", "no field 'format'"),
    (broken(format="x"), "is no retriever's card"),
    (broken(format=2), "has format 2, made by a newer iclkit; this one reads up to 1"),
    (json.dumps({"format": 1}), "no field 'rendering'"),
    (broken(rendering=None), "is no retriever's card"),
    (broken(tasks=[{}]), "no field 'name'"),
    (broken(tasks=["film"]), "is no retriever's card"),
    (drawn(colour="red"), "colour"),
    (drawn(document="output"), "document is 'output'"),
    (drawn(separator=7), "separator is 7"),
    (drawn(instructions=None), "is no retriever's card"),
    (drawn(instructions={"film": 3}), "instructions is"),
    (drawn(instruct=["queries"]), "instruct is"),
    (drawn(instruct="query"), "instruct is"),
    (drawn(radius=-1), "radius is -1"),
    (drawn(radius="wide"), "is no retriever's card"),
]


@pytest.mark.parametrize(("text", "says"), BROKEN)
def test_a_broken_card_is_one_error_that_names_the_file(text: str, says: str, tmp_path) -> None:
    (tmp_path / "iclkit.json").write_text(text)
    with pytest.raises(ModelError) as caught:
        read_card(tmp_path)
    told = str(caught.value)
    assert told.startswith(str(tmp_path / "iclkit.json"))
    assert says in told
    assert "\n" not in told


def test_a_folder_with_a_card_loads_as_a_retriever_and_one_without_as_before(tmp_path, tiny_bert) -> None:
    import shutil

    plain = load_embedder(str(tiny_bert), dtype="fp32")
    assert not isinstance(plain, Retriever)
    folder = Path(shutil.copytree(tiny_bert, tmp_path / "trained"))
    (folder / "iclkit.json").write_text(json.dumps(CARD))
    retriever = load_embedder(str(folder), dtype="fp32")
    assert isinstance(retriever, Retriever)
    np.testing.assert_array_equal(
        retriever.for_task("film").encode_queries(["the cat sat"]), plain.encode_queries(["Film: the cat sat"])
    )
    np.testing.assert_array_equal(
        retriever.encode_documents([retriever.document_text(FILM)]), plain.encode_documents(["a dull film"])
    )
    (folder / "iclkit.json").write_text(broken(format=99))
    with pytest.raises(ModelError, match=r"iclkit\.json has format 99, made by a newer iclkit"):
        load_embedder(str(folder))
    (folder / "iclkit.json").write_text("{}")
    with pytest.raises(ModelError, match=r"iclkit\.json is no retriever's card"):
        load_embedder(str(folder))
