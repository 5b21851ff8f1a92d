"""Scores out of one ledger and into another, in three layouts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from iclkit.datasets import Task
from iclkit.embed import RetrieverFormat
from iclkit.errors import DataError, UnknownName
from iclkit.pool import Pool
from iclkit.prompts import Template
from iclkit.records import Example
from iclkit.testing import FakeLM
from iclkit.trainers import (
    LAYOUTS,
    Feedback,
    FeedbackPrompt,
    Ledger,
    Miner,
    Session,
    TrainingData,
    corpus_of_pool,
    corpus_of_tasks,
    export_scores,
    feedback_value,
    import_scores,
    preset,
)
from iclkit.trainers._method import candidate_prompts

SMALL = {"queries": 4, "held_out": 2, "report": 2, "positives": 2}


def some_task(name: str = "t", labels: tuple[str, ...] = ("yes", "no"), n: int = 24) -> Task:
    rows = [Example(f"{name} text {i} about {i % 5}", (labels or ("a b", "c"))[i % 2], task=name) for i in range(n)]
    return Task(name, "classification", tuple(rows[:-4]), tuple(rows[-4:]), Template(), labels=labels)


def session(corpus: TrainingData, **changes: Any) -> Session:
    config = preset("epr", **{**SMALL, **changes})
    feedback = Feedback(FakeLM(), Ledger(":memory:"), labels=config.value == "share")
    return Session(config, corpus, feedback, Miner(corpus, 0), RetrieverFormat(), Path("work"))


def reward_query_text(s: Session, count: int = 5) -> Session:
    """The session with a few scores of each course's queries and report rows."""
    for course in s.corpus.tasks:
        queries = [*(s.corpus.examples[r] for r in course.queries.tolist()), *course.report]
        rows = course.rows.tolist()[:count]
        s.feedback.score(course, candidate_prompts(s, queries, [[r for r in rows if s.corpus.examples[r].id != q.id]
                                                     for q in queries]))  # fmt: skip
    return s


def held(s: Session) -> list[list[Any]]:
    return [[*s.feedback.ledger.rows(s.feedback.scope(c))] for c in s.corpus.tasks]


def values(s: Session) -> dict[tuple[str, tuple[str, ...]], float]:
    return {
        (query, shown): feedback_value(told, s.config.value, s.config.normalize)
        for own in held(s)
        for query, shown, told in own
    }  # fmt: skip


@pytest.fixture(scope="module")
def corpus() -> TrainingData:
    return corpus_of_tasks([some_task(), some_task("free", ())], preset("epr", **SMALL))


# -- round trips --


@pytest.mark.parametrize("changes", [{}, {"value": "gold"}])
def test_our_own_layout_loses_nothing(changes, corpus, tmp_path) -> None:
    first, second = reward_query_text(session(corpus, **changes)), session(corpus, **changes)
    lines = export_scores(first, tmp_path / "s.jsonl")
    assert lines == len(first.feedback.ledger) == import_scores(second, tmp_path / "s.jsonl")
    assert held(second) == held(first)
    assert second.feedback.ledger.scopes() == first.feedback.ledger.scopes()
    assert len((tmp_path / "s.jsonl").read_text().splitlines()) == lines


def test_imported_scores_are_not_asked_again(corpus, tmp_path) -> None:
    first, second = reward_query_text(session(corpus)), session(corpus)
    export_scores(first, tmp_path / "s.jsonl")
    import_scores(second, tmp_path / "s.jsonl")
    reward_query_text(second)
    assert second.feedback.lm.scored == []


def test_prompts_of_several_demonstrations_keep_their_order_in_our_layout_and_stay_out_of_the_others(
    corpus, tmp_path
) -> None:
    s, again = session(corpus), session(corpus)
    course = corpus.tasks[0]
    query, a, b = (corpus.examples[int(r)] for r in (course.queries[0], *course.rows[:2]))
    s.feedback.score(
        course, [FeedbackPrompt(query, (a, b)), FeedbackPrompt(query, (b, a)), FeedbackPrompt(query, (a,))]
    )
    export_scores(s, tmp_path / "s.jsonl")
    import_scores(again, tmp_path / "s.jsonl")
    assert held(again) == held(s)
    for layout in LAYOUTS[1:]:
        alone = session(corpus)
        export_scores(s, tmp_path / "s.jsonl", layout)
        assert import_scores(alone, tmp_path / "s.jsonl") == 1
        assert {*values(alone)} == {(query.id, (a.id,))}


@pytest.mark.parametrize("layout", LAYOUTS[1:])
@pytest.mark.parametrize("how", ["share", "gold"])
def test_other_layouts_keep_values_and_so_the_ranking(layout, how, corpus, tmp_path) -> None:
    first, second = reward_query_text(session(corpus, value=how)), session(corpus, value=how)
    lines = export_scores(first, tmp_path / "s.jsonl", layout)
    assert lines == sum(len(c.queries) + len(c.report) for c in corpus.tasks)
    assert import_scores(second, tmp_path / "s.jsonl") == len(first.feedback.ledger)
    assert values(second) == pytest.approx(values(first), abs=1e-12)


def test_the_best_are_positives_and_the_rest_negatives(corpus, tmp_path) -> None:
    s = reward_query_text(session(corpus))
    export_scores(s, tmp_path / "a.jsonl", "llm-r")
    export_scores(s, tmp_path / "b.jsonl", "flagembedding")
    examples = {e.id: e for c in corpus.tasks for e in (*corpus.examples, *c.report)}
    worth, tasks = values(s), []
    a, b = ([json.loads(x) for x in (tmp_path / f"{n}.jsonl").read_text().splitlines()] for n in "ab")
    for one, other in zip(a, b, strict=True):
        tasks.append(one["task_name"])
        own = sorted((v for (q, _), v in worth.items() if q == one["query_id"]), reverse=True)
        assert one["positives"]["score"] + one["negatives"]["score"] == own
        assert len(one["positives"]["score"]) == 2
        assert one["answers"] == [examples[one["query_id"]].output]
        assert one["query"] == other["query"] == examples[one["query_id"]].text
        for mine, part in (("pos", "positives"), ("neg", "negatives")):
            shown = [examples[i] for i in one[part]["doc_id"]]
            assert other[mine] == [f"{e.text}\n{e.output}" for e in shown]
            assert other[f"{mine}_scores"] == one[part]["score"]
            assert all(worth[one["query_id"], (e.id,)] == v for e, v in zip(shown, one[part]["score"], strict=True))
    assert tasks == ["t"] * 6 + ["free"] * 6


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tasks_that_share_template_and_labels_are_kept_apart(layout, tmp_path) -> None:
    """They share a scope of the ledger; each line must be written once, under its own task."""
    both = corpus_of_tasks([some_task("a"), some_task("b")], preset("epr", **SMALL))
    s, again = reward_query_text(session(both)), session(both)
    assert s.feedback.scope(both.tasks[0]) == s.feedback.scope(both.tasks[1])
    lines = export_scores(s, tmp_path / "s.jsonl", layout)
    rows = [json.loads(x) for x in (tmp_path / "s.jsonl").read_text().splitlines()]
    queries = {e.id: c.name for c in both.tasks for e in (*(both.examples[int(r)] for r in c.rows), *c.report)}
    for row in rows:
        query = row.get("query_id", row["query"])
        assert row.get("task", row.get("task_name", queries[query])) == queries[query]
    assert lines == len(rows) == len({json.dumps(r) for r in rows})
    assert import_scores(again, tmp_path / "s.jsonl") == len(s.feedback.ledger)
    assert values(again) == pytest.approx(values(s), abs=1e-12)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_inputs_that_stand_in_the_pool_with_several_outputs_find_their_own_row(layout, tmp_path) -> None:
    rows = [Example(f"the same {i % 12}", ("yes", "no", "both")[i // 12]) for i in range(36)]
    twice = corpus_of_pool(Pool.of(rows).view(), preset("epr", queries=4, held_out=1, report=1))
    s, again = reward_query_text(session(twice), 30), session(twice)
    export_scores(s, tmp_path / "s.jsonl", layout)
    import_scores(again, tmp_path / "s.jsonl")
    assert values(again) == pytest.approx(values(s), abs=1e-12)


def test_lines_of_others_without_ids_mean_the_row_that_is_asked_about(tmp_path) -> None:
    rows = [Example(f"the same {i % 12}", ("yes", "no", "both")[i // 12]) for i in range(36)]
    twice = corpus_of_pool(Pool.of(rows).view(), preset("epr", queries=8, held_out=1, report=1))
    s, again = reward_query_text(session(twice), 30), session(twice)
    export_scores(s, tmp_path / "s.jsonl", "flagembedding")
    lines = [json.loads(x) for x in (tmp_path / "s.jsonl").read_text().splitlines()]
    bare = [json.dumps({k: v for k, v in line.items() if k != "query_id"}) for line in lines]
    (tmp_path / "s.jsonl").write_text("\n".join(bare))
    import_scores(again, tmp_path / "s.jsonl")
    assert values(again) == pytest.approx(values(s), abs=1e-12)


odd = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12).filter(str.strip)


@given(texts=st.lists(odd, min_size=2, max_size=4, unique=True))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_survives_a_round_trip(texts, tmp_path) -> None:
    """Among them texts with line separators that are no line ends in JSONL."""
    rows = [Example(f"{i} {t}\u2028\x85{t}", t) for i, t in enumerate(texts * 6)]
    corpus = corpus_of_pool(Pool.of(rows).view(), preset("epr", queries=1, held_out=1, report=1, value="gold"))
    for layout in LAYOUTS:
        s, again = reward_query_text(session(corpus, value="gold"), 3), session(corpus, value="gold")
        export_scores(s, tmp_path / "s.jsonl", layout)
        import_scores(again, tmp_path / "s.jsonl")
        assert values(again) == pytest.approx(values(s), abs=1e-12)


def test_a_file_that_was_made_elsewhere_may_have_blank_lines_and_scores_known_already(corpus, tmp_path) -> None:
    s = reward_query_text(session(corpus))
    before = held(s)
    export_scores(s, tmp_path / "s.jsonl")
    (tmp_path / "s.jsonl").write_text("\n" + (tmp_path / "s.jsonl").read_text() + "\n\n")
    import_scores(s, tmp_path / "s.jsonl")
    assert held(s) == before


# -- what cannot be used --


BAD: list[tuple[str, Any, Any, str]] = [
    # layout, field (a dotted path), what stands there instead (None: taken out), what the error says
    ("iclkit", "query", None, "field query is missing"),
    ("iclkit", "query", "none such", "field query names 'none such', which the pool does not hold"),
    ("iclkit", "query", 7, "field query is '7', not a text"),
    ("iclkit", "task", None, "field task is missing"),
    ("iclkit", "task", "free", "field task is 'free', and the query is of task 't'"),
    ("iclkit", "shown", ["none such"], "field shown names 'none such'"),
    ("iclkit", "shown", "abc", "field shown is 'abc', not a list of texts"),
    ("iclkit", "options", ["no", "yes"], "field options is ['no', 'yes'], and for task 't' it is ['yes', 'no']"),
    ("iclkit", "options", None, "field options is missing"),
    ("iclkit", "logprobs", ["low", "high"], "field logprobs is \"['low', 'high']\", not a list of numbers"),
    ("iclkit", "logprobs", [-1.0], "field logprobs has 1 numbers; 2 are wanted"),
    ("iclkit", "logprobs", [-1.0, float("nan")], "field logprobs is '[-1.0, nan]'"),
    ("iclkit", "logprobs", [-1.0, -float("inf")], "field logprobs is '[-1.0, -inf]'"),
    ("iclkit", "logprobs", [-1.0, 3.0], "field logprobs is [-1.0, 3.0]; log-probabilities are at most 0"),
    ("iclkit", "logprobs", [-1.0, True], "field logprobs is '[-1.0, True]'"),
    ("iclkit", "tokens", [1, 1 << 40], "give whole numbers from 1 on"),
    ("iclkit", "tokens", [1], "field tokens has 1 numbers"),
    ("iclkit", "tokens", [1, -1], "field tokens is [1, -1]; give whole numbers from 1 on"),
    ("iclkit", "tokens", None, "field tokens is missing"),
    ("iclkit", "gold", 2, "field gold is 2"),
    ("iclkit", "gold", None, "field gold is missing"),
    ("llm-r", "query_id", None, "field query_id is missing"),
    ("llm-r", "query_id", "0", "field query_id names '0'"),
    ("llm-r", "positives", [1], "field positives is '[1]', not an object"),
    ("llm-r", "negatives", None, "field negatives is missing"),
    ("llm-r", "positives.doc_id", None, "field positives.doc_id is missing"),
    ("llm-r", "negatives.doc_id", ["x", "y"], "field negatives.doc_id names 'x'"),
    ("llm-r", "negatives.score", [0.5], "field negatives.score has 1 numbers"),
    ("llm-r", "positives.score", ["1", "2"], "field positives.score is"),
    ("llm-r", "negatives.score", [0.5, -float("inf")], "field negatives.score is"),
    ("flagembedding", "query", "not there", "field query is 'not there', which the pool does not hold"),
    ("flagembedding", "pos", ["unheard of", "x"], "field pos names 'unheard of'"),
    ("flagembedding", "neg", None, "field neg is missing"),
    ("flagembedding", "pos_scores", [1.0], "field pos_scores has 1 numbers; 2 are wanted"),
    ("flagembedding", "neg_scores", None, "field neg_scores is missing"),
]


@pytest.mark.parametrize(("layout", "field", "instead", "says"), BAD)
def test_a_bad_line_names_file_line_and_field_and_nothing_is_taken(
    layout, field, instead, says, corpus, tmp_path
) -> None:
    alone = replace(corpus, tasks=corpus.tasks[:1])
    file = tmp_path / "scores.jsonl"
    export_scores(reward_query_text(session(alone)), file, layout)
    lines = [json.loads(x) for x in file.read_text().splitlines()]
    if layout == "flagembedding":
        lines = [{k: v for k, v in line.items() if k != "query_id"} for line in lines]
    *path, last = field.split(".")
    spoilt = lines[3][path[0]] if path else lines[3]
    spoilt.pop(last)
    if instead is not None:
        spoilt[last] = instead
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    s = session(corpus)
    reward_query_text(s, 2)
    before = held(s)
    with pytest.raises(DataError) as caught:
        import_scores(s, file)
    assert str(caught.value).startswith(f"{file}, line 4: ")
    assert says in str(caught.value)
    assert held(s) == before


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "line 1: not JSON"),
        ('{"pos": ["\\ud800"]}', "line 1: half of a surrogate pair"),
        ("[" * 100_000, "line 1: JSON is nested too deep"),
        ("[]", "line 1: not an object with fields"),
        ('{"score": 1}', "line 1: has neither field logprobs, positives nor pos"),
    ],
)
def test_a_line_of_no_layout_says_so(line, says, corpus, tmp_path) -> None:
    (tmp_path / "s.jsonl").write_text(line)
    s = session(corpus)
    with pytest.raises(DataError, match=says):
        import_scores(s, tmp_path / "s.jsonl")
    assert len(s.feedback.ledger) == 0


def test_a_layout_that_does_not_exist_offers_the_nearest(corpus, tmp_path) -> None:
    with pytest.raises(UnknownName, match="Did you mean 'flagembedding'"):
        export_scores(session(corpus), tmp_path / "s.jsonl", "flagembeding")
    assert not (tmp_path / "s.jsonl").exists()


def test_a_file_that_cannot_be_read_or_written_is_one_error(corpus, tmp_path) -> None:
    s = session(corpus)
    with pytest.raises(DataError, match=r"cannot read .*none\.jsonl"):
        import_scores(s, tmp_path / "none.jsonl")
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"bytes\.jsonl, line 1: not UTF-8"):
        import_scores(s, tmp_path / "bytes.jsonl")
    for place in (tmp_path / "nowhere" / "s.jsonl", tmp_path):
        with pytest.raises(DataError, match=f"cannot write {place}"):
            export_scores(s, place)
