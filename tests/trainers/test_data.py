"""Settings, corpus, mining, ledger and feedback: what happens before anything is trained."""

from __future__ import annotations

import math
import sqlite3
import struct
from contextlib import suppress
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iclkit.datasets import Task
from iclkit.errors import DataError, ModelError, RequestError, RunError, UnknownName, UsageError
from iclkit.eval import Estimate
from iclkit.pool import Pool
from iclkit.prompts import Template
from iclkit.records import Example, fold_text
from iclkit.settings import describe_settings
from iclkit.testing import FakeLM, HashEmbedder, ScriptedLM
from iclkit.trainers import (
    METHODS,
    Feedback,
    FeedbackPrompt,
    LabelScores,
    Ledger,
    Miner,
    ScoreScope,
    StrategyResult,
    TaskReport,
    corpus_of_pool,
    corpus_of_tasks,
    feedback_value,
    is_correct,
    preset,
)
from iclkit.trainers._config import sources
from iclkit.trainers._epr import extremes, ranks_of


def make_task(n: int = 60, name: str = "t", labels: tuple[str, ...] = ("yes", "no")) -> Task:
    rows = [Example(f"{name} text number {i} about {i % 7}", labels[i % len(labels)]) for i in range(n)]
    return Task(name, "classification", tuple(rows[:-10]), tuple(rows[-10:]), Template(), labels=labels)


SMALL = {"queries": 12, "held_out": 6, "report": 8}


# -- settings --


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_both_presets(method: str) -> None:
    paper, small = preset(method, "paper"), preset(method)
    assert paper.method == small.method == method
    assert paper.queries > small.queries


def test_the_papers_values_stand_in_the_paper_presets() -> None:
    epr, udr, llmr = (preset(m, "paper") for m in ("epr", "udr", "llm-r"))
    assert (epr.batch_size, epr.learning_rate, epr.epochs, epr.positives, epr.candidates) == (
        120, 1e-4, 30, 5, "bm25@output:50",
    )  # fmt: skip
    assert (udr.list_size, udr.rank_weight, udr.iterations, udr.batch_size) == (8, 0.8, 3, 128)
    assert (llmr.temperature, llmr.contrastive_weight, llmr.max_steps, llmr.reward_max_steps) == (0.01, 0.2, 6000, 3000)
    assert (llmr.positives, llmr.negatives, llmr.reward_negatives, llmr.hard_negatives) == (3, 16, 7, 3)


def test_settings_given_as_text_get_their_types() -> None:
    config = preset("llm-r", queries="30", label_rule="true", temperature="0.1", base="12", cross_task=True)
    assert (config.queries, config.label_rule, config.temperature, config.base, config.cross_task) == (
        30, True, 0.1, "12", True,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("method", "setting"),
    [("epr", "trade_off"), ("epr", "list_size"), ("udr", "subsets"), ("llm-r", "shots"), ("se2", "reward_base"),
     ("ceil", "temperature"), ("ceil", "positives")],
)  # fmt: skip
def test_a_setting_of_another_method_is_refused_with_the_methods_own_list(method: str, setting: str) -> None:
    with pytest.raises(UnknownName) as refused:
        preset(method, **{setting: "1"})
    assert f"no setting of training method {method!r} named {setting!r}" in str(refused.value)
    assert {f.name for f in fields(METHODS[method].config_class)} == {*refused.value.known, "preset"}


def test_each_method_declares_what_its_settings_mean() -> None:
    for kind in (METHODS[method].config_class for method in METHODS):
        assert all(setting.meaning and setting.allowed for setting in describe_settings(kind))
        assert kind() == preset(kind.method)


def test_a_report_card_keeps_its_names_and_reads_back() -> None:
    gain = Estimate(0.5, 0.25, 0.75)
    report = TaskReport("t", 3, 2, (StrategyResult("knn", "from the whole pool", gain, None),), gain)
    card = report.as_dict()
    assert {*card} == {"task", "queries", "shots", "ways", "captured"}
    assert TaskReport.from_dict(card) == report


@pytest.mark.parametrize(
    ("call", "needle"),
    [
        (lambda: preset("epr", querys="3"), "Did you mean 'queries'"),
        (lambda: preset("epr", queries="many"), "queries is many; give a whole number of 0 or more"),
        (lambda: preset("epr", towers="3"), "choose from 1, 2"),
        (lambda: preset("epr", "big"), "no preset named 'big'"),
        (lambda: preset("eprr"), "Did you mean 'epr'"),
        (lambda: preset("epr", batch_size=0), "batch_size is 0"),
        (lambda: preset("epr", candidates="bm25"), "write SELECTOR:COUNT"),
        (lambda: preset("epr", candidates="bm25@inputs:3"), "only output"),
        (lambda: preset("epr", temperature=0.0), "temperature is 0.0"),
        (lambda: preset("epr", temperature=1.0), "cosines need one well below 1"),
        (lambda: preset("epr", epochs=0.0), "epochs and max_steps are both 0"),
        (lambda: preset("llm-r", reward_epochs=0.0), "reward_epochs and reward_max_steps are both 0"),
        (lambda: preset("epr", preset="paper"), "no setting of training method 'epr' named 'preset'"),
    ],
)
def test_a_bad_setting_says_what_is_wrong(call, needle: str) -> None:
    with pytest.raises(UsageError, match=needle.replace("(", r"\(")):
        call()


# -- corpus --


def test_queries_held_out_and_report_never_overlap() -> None:
    task = make_task()
    corpus = corpus_of_tasks([task], preset("epr", **SMALL))
    (course,) = corpus.tasks
    asked, held = {*course.queries.tolist()}, {*course.held_out.tolist()}
    assert len(asked) == 12
    assert len(held) == 6
    assert not asked & held
    assert len(course.report) == 8
    assert {e.id for e in course.report} <= {e.id for e in task.test}
    inputs = corpus.inputs()
    assert not {fold_text(e.text) for e in course.report} & {inputs[r] for r in (*asked, *held)}


def test_a_pool_without_test_rows_sets_report_rows_apart() -> None:
    pool = Pool.of(make_task().train)
    corpus = corpus_of_pool(pool.view(), preset("epr", **SMALL))
    (course,) = corpus.tasks
    apart = {e.id for e in course.report}
    assert len(apart) == 8
    assert course.labels == ("no", "yes")
    assert not apart & {corpus.examples[r].id for r in (*course.queries, *course.held_out)}


def test_the_data_seed_draws_the_queries_and_the_seed_does_not() -> None:
    task = make_task()
    drawn = [
        corpus_of_tasks([task], preset("epr", **SMALL, **seeds)).tasks[0].queries.tolist()
        for seeds in ({"seed": 0}, {"seed": 1}, {"data_seed": 1})
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_too_few_rows_is_one_clear_error() -> None:
    with pytest.raises(DataError, match="task 't' has 20 different inputs"):
        corpus_of_tasks([make_task(30)], preset("epr", queries=5, held_out=15, report=0))


def test_two_tasks_of_one_name_are_refused() -> None:
    with pytest.raises(DataError, match="two tasks are named 't'"):
        corpus_of_tasks([make_task(), make_task()], preset("epr", **SMALL))


# -- mining --


def test_a_query_is_never_its_own_candidate_even_with_duplicates() -> None:
    rows = [Example(f"the same words {i % 5}", f"label {i}") for i in range(40)]
    rows += [Example(f"The same words {i % 5}!", f"other {i}") for i in range(20)]
    rows += [Example(f"unlike anything {i}", "x") for i in range(30)]
    corpus = corpus_of_pool(Pool.of(rows).view(), preset("epr", queries=20, held_out=2, report=2))
    (course,) = corpus.tasks
    miner, inputs = Miner(corpus, 0, HashEmbedder()), corpus.inputs()
    queries = [corpus.examples[int(r)] for r in course.queries]
    for text in ("bm25:50", "bm25@output:50", "knn:50", "random:50"):
        for query, found in zip(queries, miner.mine(course, queries, sources(text)), strict=True):
            assert fold_text(query.text) not in {inputs[r] for r in found}, text
            assert len({*found.tolist()}) == len(found)


def test_candidates_stay_in_the_task_unless_cross_task() -> None:
    a, b = make_task(60, "a"), make_task(60, "b", ("left", "right"))
    corpus = corpus_of_tasks([a, b], preset("udr", **SMALL))
    miner = Miner(corpus, 0)
    for number, course in enumerate(corpus.tasks):
        queries = [corpus.examples[int(r)] for r in course.queries]
        kinds = corpus.task_numbers()
        own = miner.mine(course, queries, sources("random:20"))
        assert all((kinds[rows] == number).all() for rows in own)
        mixed = miner.mine(course, queries, sources("random:20"), cross_task=True)
        assert any((kinds[rows] != number).any() for rows in mixed)


def test_mining_does_not_depend_on_what_else_is_asked() -> None:
    corpus = corpus_of_tasks([make_task()], preset("epr", **SMALL))
    (course,) = corpus.tasks
    miner = Miner(corpus, 0, HashEmbedder())
    queries = [corpus.examples[int(r)] for r in course.queries]
    together = miner.mine(course, queries, sources("bm25:4+knn:3+random:3"))
    alone = [miner.mine(course, [q], sources("bm25:4+knn:3+random:3"))[0] for q in queries]
    assert all(np.array_equal(x, y) for x, y in zip(together, alone, strict=True))


def test_encoding_demonstrations_is_told_once_and_by_task() -> None:
    corpus = corpus_of_tasks([make_task(60, "a"), make_task(60, "b", ("left", "right"))], preset("epr", **SMALL))
    told: dict[str, list[tuple[int, int]]] = {}
    miner = Miner(corpus, 0, HashEmbedder(), lambda title: lambda *at: told.setdefault(title, []).append(at))
    for course in corpus.tasks:
        queries = [corpus.examples[int(r)] for r in course.queries]
        miner.mine(course, queries, sources("bm25:4+random:3"))
        assert f"{course.name}: demonstrations encoded" not in told  # nothing looks at a vector
        for _ in range(2):
            miner.mine(course, queries, sources("knn:3"))
        texts = len({corpus.examples[int(r)].text for r in course.rows})
        assert told[f"{course.name}: demonstrations encoded"] == [(texts, texts)]


def test_searching_outputs_finds_what_is_answered_alike() -> None:
    rows = [Example(f"input {i}", f"SELECT name FROM table{i % 6} WHERE x = {i}") for i in range(60)]
    corpus = corpus_of_pool(Pool.of(rows).view(), preset("epr", queries=10, held_out=2, report=2))
    (course,) = corpus.tasks
    queries = [corpus.examples[int(r)] for r in course.queries]
    for query, found in zip(queries, Miner(corpus, 0).mine(course, queries, sources("bm25@output:5")), strict=True):
        table = query.output.split()[3]
        assert all(corpus.examples[int(r)].output.split()[3] == table for r in found)


# -- ledger and feedback --


def asks_for(corpus, n: int = 6, m: int = 4) -> list[FeedbackPrompt]:
    (course,) = corpus.tasks
    rows = course.rows.tolist()
    return [
        FeedbackPrompt(corpus.examples[int(q)], (corpus.examples[r],))
        for q in course.queries[:n]
        for r in rows[:m]
        if r != int(q)
    ]


def test_a_score_is_asked_once_and_survives(tmp_path) -> None:
    corpus = corpus_of_tasks([make_task()], preset("epr", **SMALL))
    (course,) = corpus.tasks
    asks, lm = asks_for(corpus), FakeLM()
    first = Feedback(lm, Ledger(tmp_path / "l.db")).score(course, [*asks, asks[0]])
    asked = len(lm.scored)
    again = Feedback(lm, Ledger(tmp_path / "l.db"))
    assert again.score(course, [*reversed(asks)])[::-1] == first[:-1]
    assert len(lm.scored) == asked == 2 * len(asks)
    assert again.computed == 0
    assert again.known == len(asks)
    assert again.estimate(course, asks).calls == 0


def test_another_template_lm_or_label_set_is_another_scope(tmp_path) -> None:
    corpus = corpus_of_tasks([make_task()], preset("epr", **SMALL))
    (course,) = corpus.tasks
    asks, ledger = asks_for(corpus), Ledger(tmp_path / "l.db")
    Feedback(FakeLM(), ledger).score(course, asks)
    before = len(ledger)
    for other in (
        replace(course, template=Template("Q: {input}\nA: {output}")),
        replace(course, labels=("yes", "no", "?")),
    ):
        Feedback(FakeLM(), ledger).score(other, asks)
    Feedback(FakeLM(name="other"), ledger).score(course, asks)
    assert len(ledger) == 4 * before
    assert [s.options for s in ledger.scopes()] == [("yes", "no"), ("yes", "no"), ("yes", "no", "?"), ("yes", "no")]


def test_a_killed_scoring_keeps_every_finished_prompt(tmp_path) -> None:
    class Dying(FakeLM):
        def score(self, requests, on_done=None):
            for n, request in enumerate(requests):
                if n == 7:
                    raise KeyboardInterrupt
                (score,) = super().score([request])
                on_done([(n, score)])
            raise AssertionError

    corpus = corpus_of_tasks([make_task()], preset("epr", **SMALL))
    (course,) = corpus.tasks
    asks = asks_for(corpus)
    with pytest.raises(KeyboardInterrupt):
        Feedback(Dying(), Ledger(tmp_path / "l.db")).score(course, asks)
    ledger = Ledger(tmp_path / "l.db")
    assert len(ledger) == 3  # prompts of two labels each; the fourth had one of two

    class Served(FakeLM):
        scoring = "completions"

    served = Served()
    served.fingerprint = FakeLM().fingerprint
    Feedback(served, Ledger.copy(tmp_path / "l.db")).score(course, asks)
    assert len(served.scored) == 2 * (len(asks) - 3)
    # a model of our own may score a little otherwise beside other prompts: it is asked the same ones together, through
    # its cache if it has one
    lm = FakeLM()
    feedback = Feedback(lm, ledger)
    feedback.score(course, asks)
    assert len(lm.scored) == 2 * len(asks)
    assert (feedback.known, feedback.computed) == (3, len(asks) - 3)


def test_mean_log_probability_covers_exactly_the_answer() -> None:
    lm = ScriptedLM(lambda context, continuation: -1.0 * FakeLM().count_tokens(continuation))
    rows = [Example(f"say {i}", " ".join("word" for _ in range(1 + i % 9))) for i in range(40)]
    corpus = corpus_of_pool(Pool.of(rows).view(), preset("epr", queries=10, held_out=2, report=2))
    (course,) = corpus.tasks
    assert not course.labels or len(course.labels) == 9
    for told in Feedback(lm, Ledger(":memory:"), labels=False).score(course, asks_for(corpus)):
        assert feedback_value(told, "gold", "mean") == pytest.approx(-1.0)
        assert feedback_value(told, "gold", "sum") == pytest.approx(-told.tokens[0])


@given(st.lists(st.floats(-30, 0), min_size=2, max_size=8), st.floats(-50, 50), st.data())
@settings(max_examples=200, deadline=None)
def test_shares_sum_to_one_and_ignore_a_common_factor(logprobs, shift, data) -> None:
    tokens = tuple(1 for _ in logprobs)
    shares = [math.exp(feedback_value(LabelScores(tuple(logprobs), tokens, g), "share")) for g in range(len(logprobs))]
    assert sum(shares) == pytest.approx(1.0)
    assert all(0 <= s <= 1 for s in shares)
    g = data.draw(st.integers(0, len(logprobs) - 1))
    moved = LabelScores(tuple(v + shift for v in logprobs), tokens, g)
    assert feedback_value(moved, "share") == pytest.approx(
        math.log(shares[g]) if shares[g] else feedback_value(moved, "share"), abs=1e-6
    )
    assert is_correct(moved) == (len({*moved.logprobs}) > 1 and int(np.argmax(moved.logprobs)) == g)


def test_equal_scores_of_all_labels_are_no_answer_and_not_the_first_label() -> None:
    tied = LabelScores((-2.0, -2.0, -2.0), (1, 1, 1), 0)
    assert is_correct(tied) is False
    assert is_correct(LabelScores((-2.0, -2.0, -3.0), (1, 1, 1), 0)) is True
    assert is_correct(LabelScores((-2.0, -2.0, -3.0), (1, 1, 1), 1)) is False


def test_a_prompt_that_does_not_fit_is_left_out_not_cut() -> None:
    rows = [Example(f"short {i}", "yes" if i % 2 else "no") for i in range(30)]
    rows.append(Example("long " * 300, "yes"))
    corpus = corpus_of_pool(Pool.of(rows).view(), preset("epr", queries=5, held_out=2, report=2))
    (course,) = corpus.tasks
    feedback = Feedback(FakeLM(context_size=100), Ledger(":memory:"))
    query = corpus.examples[int(course.queries[0])]
    told = feedback.score(course, [FeedbackPrompt(query, (rows[-1],)), FeedbackPrompt(query, (rows[0],))])
    assert told[0] is None
    assert told[1] is not None
    assert feedback.skipped == 1


def test_an_answer_that_is_no_label_names_the_example() -> None:
    corpus = corpus_of_tasks([make_task()], preset("epr", **SMALL))
    course = replace(corpus.tasks[0], labels=("yes", "perhaps"))
    with pytest.raises(DataError, match="is none of the labels yes, perhaps"):
        Feedback(FakeLM(), Ledger(":memory:")).score(course, asks_for(corpus))


def test_a_file_that_is_no_ledger_is_refused(tmp_path) -> None:
    file = tmp_path / "l.db"
    file.write_text("not a database, and long enough to be taken for one " * 30)
    with pytest.raises(DataError, match="cannot be used as a ledger"):
        Ledger(file)
    assert sqlite3.sqlite_version  # the file is as it was
    assert file.read_text().startswith("not a database")


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path) -> None:
    corpus = corpus_of_tasks([make_task()], preset("epr", **SMALL))
    asks, ledger = asks_for(corpus), Ledger(tmp_path / "l.db")
    Feedback(FakeLM(), ledger).score(corpus.tasks[0], asks[:3])
    (pages,) = ledger._db.read("PRAGMA page_count")[0]
    ledger._db.read(f"PRAGMA max_page_count = {pages}")  # to SQLite the same as a disk that is full
    scope = ScoreScope("another", corpus.tasks[0].template, ())
    more = [(f"q{i}", ["d"], LabelScores((-1.0,), (1,), 0)) for i in range(5000)]
    with pytest.raises(RunError, match=r"l\.db cannot be used \(database or disk is full\); free space"):
        ledger.put(scope, more)
    again = Feedback(FakeLM(), Ledger(tmp_path / "l.db"))
    again.score(corpus.tasks[0], asks[:3])
    assert again.computed == 0


# -- ledgers that are damaged or of something else --


def scored(path) -> tuple[Feedback, list[FeedbackPrompt]]:
    corpus = corpus_of_tasks([make_task()], preset("epr", **SMALL))
    feedback, asks = Feedback(FakeLM(), Ledger(path)), asks_for(corpus)
    feedback.score(corpus.tasks[0], asks)
    return feedback, asks


@pytest.mark.parametrize(
    ("column", "stored"),
    [
        ("told", struct.pack("<dIdI", math.nan, 1, -1.0, 1)),  # what earlier versions took from a broken LM
        ("told", struct.pack("<dIdI", -math.inf, 1, -1.0, 1)),
        ("told", b"short"),
        ("told", b""),
        ("told", "text"),
        ("gold", 7),
        ("gold", -1),
        ("gold", "first"),
    ],
)
def test_a_stored_score_that_is_none_is_said_asked_again_and_replaced(column, stored, tmp_path) -> None:
    file = tmp_path / "l.db"
    corpus = corpus_of_tasks([make_task()], preset("epr", **SMALL))
    feedback, asks = scored(file)
    scope, before = feedback.scope(corpus.tasks[0]), feedback.score(corpus.tasks[0], asks)
    with sqlite3.connect(file) as db:
        db.execute(f"UPDATE scores SET {column} = ? WHERE query = ?", (stored, asks[0].query.id))
    touched = sum(a.query.id == asks[0].query.id for a in asks)
    lm = FakeLM()
    again = Feedback(lm, Ledger(file))
    assert len(list(again.ledger.rows(scope))) == len(asks) - touched  # never exported
    assert again.score(corpus.tasks[0], asks) == before
    assert again.computed == touched
    whole = Feedback(FakeLM(), Ledger(file))
    assert whole.score(corpus.tasks[0], asks) == before
    assert (whole.computed, whole.notes()) == (0, [])


def test_a_score_that_is_set_aside_is_counted_in_a_note(tmp_path) -> None:
    _, asks = scored(tmp_path / "l.db")
    with sqlite3.connect(tmp_path / "l.db") as db:
        db.execute("UPDATE scores SET told = ?", (struct.pack("<dIdI", math.nan, 1, -1.0, 1),))
    dry = Feedback(FakeLM(), Ledger.copy(tmp_path / "l.db"))
    corpus = corpus_of_tasks([make_task()], preset("epr", **SMALL))
    assert dry.estimate(corpus.tasks[0], asks).calls == 2 * len(asks)
    assert dry.notes() == [
        f"{len(asks)} scores in {tmp_path / 'l.db'} are damaged or not finite (NaN); they count as not there"
    ]


@pytest.mark.parametrize("where", [0, 40, 5000, -3000])
@pytest.mark.parametrize("how", ["cut", "zeroes"])
def test_a_damaged_ledger_is_one_line_that_names_it(where, how, tmp_path) -> None:
    file = tmp_path / "l.db"
    feedback, _ = scored(file)
    scope = feedback.scope(corpus_of_tasks([make_task()], preset("epr", **SMALL)).tasks[0])
    feedback.ledger.put(scope, [(f"q{i}", ["d" * 50], LabelScores((-1.0, -2.0), (1, 1), 0)) for i in range(500)])
    feedback.ledger.close()
    data = bytearray(file.read_bytes())
    where %= len(data)
    data = data[:where] if how == "cut" else data[:where] + bytes(3000) + data[where + 3000 :]
    file.write_bytes(data)

    def use() -> None:
        ledger = Ledger(file)
        found = ledger.get(scope, [(f"q{i}", ["d" * 50]) for i in range(500)])
        assert {*found.values()} <= {LabelScores((-1.0, -2.0), (1, 1), 0)}
        list(ledger.rows(scope))
        ledger.put(scope, [("new", ["d"], LabelScores((-1.0, -2.0), (1, 1), 0))])

    if where == 0 and how == "cut":  # an empty file is an empty ledger
        use()
        return
    if where in (0, 40):
        with pytest.raises(DataError, match=r"l\.db"):
            use()
        return
    with suppress(DataError):  # further behind a cut may have hit what nobody reads; never is it another kind of error
        use()


def test_a_file_of_something_else_is_no_ledger_and_stays_as_it_is(tmp_path) -> None:
    with Pool.open(tmp_path / "demos.db") as pool:
        pool.add([Example("a", "b")])
    with sqlite3.connect(tmp_path / "other.db") as db:
        db.execute("CREATE TABLE scores (a, b)")
    for name in ("demos.db", "other.db"):
        before = (tmp_path / name).read_bytes()
        for opened in (Ledger, Ledger.copy):
            with pytest.raises(DataError, match=f"{name} cannot be used as a ledger .*of something else"):
                opened(tmp_path / name)
        assert (tmp_path / name).read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["demos.db", "other.db"]


def test_a_look_at_a_ledger_changes_nothing_beside_it(tmp_path) -> None:
    feedback, asks = scored(tmp_path / "l.db")
    for change in ("DROP TABLE failed", "PRAGMA user_version = 0"):  # a ledger of before
        with feedback.ledger._db.writing() as connection:
            connection.execute(change)
    feedback.ledger.close()
    before = (tmp_path / "l.db").read_bytes()
    copy = Ledger.copy(tmp_path / "l.db")
    assert len(copy) == len(asks)
    assert (tmp_path / "l.db").read_bytes() == before
    assert len(Ledger(tmp_path / "l.db")) == len(asks)  # ... and can be gone on with


# -- an LM that refuses, or that gives no numbers --


class Refusing(FakeLM):
    """Never answers prompts that a test points at, one request at a time as servers do."""

    def __init__(self, bad) -> None:
        super().__init__()
        self.bad = bad

    def score(self, requests, on_done=None):
        done = []
        for n, request in enumerate(requests):
            if self.bad(request):
                raise RequestError(n, "filtered by the server")
            done += super().score([request])
            on_done([(n, done[-1])])
        return done


def test_a_refused_prompt_costs_its_candidate_and_a_rerun_asks_that_alone(tmp_path) -> None:
    corpus = corpus_of_tasks([make_task()], preset("epr", **SMALL))
    (course,) = corpus.tasks
    asks = asks_for(corpus)
    fine = Feedback(FakeLM(), Ledger(":memory:")).score(course, asks)
    shown = asks[0].demonstrations[0].text
    lm = Refusing(lambda r: f"{shown}\n" in r.context and r.continuation.strip() == "no")  # half-way through a prompt
    feedback = Feedback(lm, Ledger(tmp_path / "l.db"))
    told = feedback.score(course, asks)
    refused = [n for n, a in enumerate(asks) if a.demonstrations[0].text == shown]
    assert 1 < len(refused) < len(asks)
    assert [n for n, t in enumerate(told) if t is None] == refused
    assert [t for t in told if t] == [t for n, t in enumerate(fine) if n not in refused]
    scope = feedback.scope(course)
    assert feedback.ledger.failures(scope) == sorted(
        (asks[n].query.id, (asks[n].demonstrations[0].id,), "filtered by the server") for n in refused
    )
    assert feedback.notes() == [
        f"fake refused {len(refused)} prompts (the first: filtered by the server); they are left out and stand in the "
        "ledger as failed; the same command tries them again"
    ]
    lm = FakeLM()
    again = Feedback(lm, Ledger(tmp_path / "l.db"))
    assert again.estimate(course, asks).calls == 2 * len(refused)
    assert again.score(course, asks) == fine
    assert len(lm.scored) == 2 * len(refused)
    assert again.ledger.failures(scope) == []


def test_what_is_refused_again_and_again_stops_no_rerun_but_an_lm_that_refuses_everything_does(tmp_path) -> None:
    corpus = corpus_of_tasks([make_task()], preset("epr", **SMALL))
    (course,) = corpus.tasks
    asks = asks_for(corpus)
    some = Refusing(lambda r: "about 3" in r.context.split("Input: ")[1])
    for _ in range(2):
        told = Feedback(some, Ledger(tmp_path / "l.db")).score(course, asks)
        assert 0 < sum(t is None for t in told) < len(asks)
    with pytest.raises(RunError, match=f"refused all of {len(asks)} prompts: filtered by the server"):
        Feedback(Refusing(lambda _: True), Ledger(tmp_path / "other.db")).score(course, asks)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 3.0])
def test_what_is_no_log_probability_never_enters_the_ledger(bad, tmp_path) -> None:
    corpus = corpus_of_tasks([make_task()], preset("epr", **SMALL))
    (course,) = corpus.tasks
    asks = asks_for(corpus)
    lm = ScriptedLM(lambda context, _: bad if asks[5].demonstrations[0].text in context else -1.0)
    feedback = Feedback(lm, Ledger(tmp_path / "l.db"))
    with pytest.raises(ModelError, match=f"gave {bad:g} as the log-probability"):
        feedback.score(course, asks)
    assert len(feedback.ledger) == 0
    if not math.isfinite(bad):
        with pytest.raises(ModelError, match="a log-probability is finite"):
            feedback.ledger.put(feedback.scope(course), [("q", ["d"], LabelScores((bad,), (1,), 0))])


def test_a_query_that_is_too_long_by_itself_is_left_out_too() -> None:
    rows = [Example(f"short {i}", "yes" if i % 2 else "no") for i in range(30)]
    corpus = corpus_of_pool(Pool.of(rows).view(), preset("epr", queries=5, held_out=2, report=2))
    feedback = Feedback(FakeLM(context_size=100), Ledger(":memory:"))
    long = Example("long " * 300, "yes")
    assert feedback.score(corpus.tasks[0], [FeedbackPrompt(long, (rows[0],))]) == [None]
    assert feedback.notes() == ["1 prompts do not fit the 100 tokens of fake; left out"]
    assert (
        feedback.estimate(
            corpus.tasks[0], [FeedbackPrompt(long, (rows[0],)), FeedbackPrompt(rows[1], (rows[0],))]
        ).calls
        == 4
    )


def test_report_rows_are_a_sample_of_the_test_rows_however_they_are_sorted() -> None:
    task = make_task(60)
    test = tuple(Example(f"test row {i}", "yes" if i < 30 else "no") for i in range(60))
    config = preset("epr", **SMALL)
    (course,) = corpus_of_tasks([replace(task, test=test)], config).tasks
    (turned,) = corpus_of_tasks([replace(task, test=test[::-1])], config).tasks
    (other,) = corpus_of_tasks([replace(task, test=test)], replace(config, data_seed=1)).tasks
    assert {e.output for e in course.report} == {"yes", "no"}
    assert {e.id for e in course.report} == {e.id for e in turned.report} != {e.id for e in other.report}
    assert len(course.report) == 8


# -- labels --


@given(
    st.lists(st.floats(-9, 0).map(lambda v: round(v, 1)), min_size=0, max_size=30), st.integers(1, 6), st.integers(1, 6)
)
@settings(max_examples=300, deadline=None)
def test_best_and_worst_never_overlap_and_never_tie(values, positives, negatives) -> None:
    ranked = sorted(enumerate(values), key=lambda rv: (-rv[1], rv[0]))
    best, worst = extremes(ranked, positives, negatives)
    of = dict(ranked)
    assert not {*best} & {*worst}
    assert len(best) <= positives
    assert len(worst) <= negatives
    assert bool(best) == bool(worst)
    if best:
        assert min(of[r] for r in best) > max(of[r] for r in worst)
        assert max(values) == max(of[r] for r in best)
        assert min(values) == min(of[r] for r in worst)
    distinct = len({*values}) == len(values)
    if distinct and len(values) >= positives + negatives:
        assert (len(best), len(worst)) == (positives, negatives)


@given(st.lists(st.integers(-5, 0), min_size=1, max_size=12))
@settings(max_examples=200, deadline=None)
def test_ranks_are_competition_ranks(values) -> None:
    ordered = sorted(map(float, values), reverse=True)
    assert ranks_of(ordered) == [1 + sum(w > v for w in ordered) for v in ordered]
