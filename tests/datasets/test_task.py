"""Tasks: kinds and metrics, label sets, splits, hashes, and the folders people have."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from iclkit.datasets import Card, Task, find_leaks, load_task, make_task
from iclkit.errors import DataError, UnknownName, UsageError
from iclkit.prompts import Template
from iclkit.records import Example, Query, fold_text

SHARED = {  # kind, metric, rows (train, dev, test), labels
    "agnews": ("classification", "accuracy", (4000, 0, 1000), 4),
    "antonyms": ("generation", "exact_match", (2073, 519, 100), 0),
    "banking77": ("classification", "accuracy", (8000, 0, 1000), 77),
    "geoquery": ("generation", "sql_match", (549, 49, 279), 0),
    "gsm8k": ("reasoning", "number_match", (5000, 0, 1000), 0),
    "larger_animal": ("generation", "exact_match", (2422, 606, 100), 0),
    "multi30k_en_de": ("generation", "chrf", (8000, 1000, 1000), 0),
    "object_counting": ("generation", "exact_match", (560, 140, 100), 0),
    "sentence_similarity": ("classification", "accuracy", (2972, 740, 99), 6),
    "sst2": ("classification", "accuracy", (6920, 871, 1000), 2),
    "subj": ("classification", "accuracy", (8000, 0, 1000), 2),
    "taxonomy_animal": ("generation", "set_match", (2400, 600, 100), 0),
    "trec": ("classification", "accuracy", (5452, 0, 489), 6),
    "word_sorting": ("generation", "exact_match", (1136, 284, 100), 0),
}


@pytest.mark.data
@pytest.mark.parametrize("name", SHARED)
def test_every_shared_set_loads_with_its_kind_metric_and_card(shared_data: Path, name: str) -> None:
    task = load_task(shared_data / name)
    kind, metric, rows, labels = SHARED[name]
    assert (task.name, task.kind, task.metric, len(task.labels)) == (name, kind, metric, labels)
    assert (len(task.train), len(task.dev), len(task.test)) == rows
    assert {e.task for e in task.train} == {name}
    assert len({q.id for q in task.queries()}) == len(task.test)
    assert f"```\n{task.card.template}\n```" in (shared_data / name / "card.md").read_text(encoding="utf-8")
    assert task.template.demo == task.card.template
    assert task.card.licence
    assert "20" in task.card.citation or "19" in task.card.citation
    assert task.template.render_demo(task.train[0]).endswith(task.train[0].output)
    assert task.max_answer_tokens is None


@pytest.mark.data
def test_the_shared_folder_holds_no_set_that_the_table_misses(shared_data: Path) -> None:
    assert {p.name for p in shared_data.iterdir() if p.is_dir()} == set(SHARED)


def rows(count: int, labels: Sequence[str] = ("yes", "no"), word: str = "row") -> list[Example]:
    return [Example(f"{word} {i}", labels[i % len(labels)]) for i in range(count)]


def lines(path: Path, examples: Sequence[Example]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"input": e.input, "output": e.output}) + "\n" for e in examples))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A set without a card: 40 train and 10 test rows, two labels."""
    lines(tmp_path / "mine" / "train.jsonl", rows(40))
    lines(tmp_path / "mine" / "test.jsonl", rows(10, word="asked"))
    return tmp_path / "mine"


def test_a_folder_without_a_card_is_understood(folder: Path) -> None:
    task = load_task(folder)
    assert (task.name, task.kind, task.metric, task.labels) == ("mine", "classification", "accuracy", ("no", "yes"))
    assert task.template.demo == "Input: {input}\nLabel: {output}"


def test_what_is_understood_can_be_overridden(folder: Path) -> None:
    template = Template(demo="{input} -> {output}")
    task = load_task(folder, kind="generation", metric="token_f1", template=template, max_answer_tokens=3)
    assert (task.kind, task.labels, task.metric, task.max_answer_tokens) == ("generation", (), "token_f1", 3)
    assert task.template == template
    assert load_task(folder, labels=["yes", "no", "perhaps"]).labels == ("yes", "no", "perhaps")
    with pytest.raises(UsageError, match="no task kind 'regression'; use one of classification"):
        load_task(folder, kind="regression")


@pytest.mark.parametrize(
    ("outputs", "kind"),
    [
        (["yes", "no"] * 20, "classification"),
        ([f"class {i % 77}" for i in range(400)], "classification"),
        ([f"word{i}" for i in range(200)], "generation"),
        (["a longer answer that nobody would call a label, for it runs on and on"] * 40, "generation"),
        (["two\nlines"] * 40, "generation"),
        ([f"row {i % 4}" for i in range(40)], "generation"),  # half and more are pieces of their input
        (["yes", "no", "no"], "generation"),  # too few rows to call a repeated output a label
    ],
)
def test_the_kind_is_inferred_from_the_outputs(outputs: list[str], kind: str) -> None:
    train = [Example(f"row {i % 4} of it, {i}", o) for i, o in enumerate(outputs)]
    assert make_task("t", train, [Example("asked", outputs[0])]).kind == kind


def test_a_label_set_makes_a_classification_of_a_few_rows() -> None:
    task = make_task("few", rows(3), rows(1), labels=["yes", "no"])
    assert (task.kind, task.labels) == ("classification", ("yes", "no"))


def test_rows_with_choices_are_a_multiple_choice_task() -> None:
    train = [Example(f"q {i}", "b", choices=("a", "b")) for i in range(3)]
    task = make_task("quiz", train, [Example("q", "a", choices=("a", "c"))])
    assert (task.kind, task.metric, task.labels) == ("multiple_choice", "accuracy", ())
    assert task.queries()[0].choices == ("a", "c")
    with pytest.raises(
        DataError, match=r"quiz test, row 1: the answer 'd' is not among the row's choices \['a', 'c'\]"
    ):
        make_task("quiz", train, [Example("q", "d", choices=("a", "c"))])


def test_named_fields_make_a_template_of_their_own() -> None:
    train = [Example({"premise": f"p {i}", "hypothesis": "h"}, "yes") for i in range(8)]
    task = make_task("nli", train, train[:1])
    assert task.template.demo == "Premise: {premise}\nHypothesis: {hypothesis}\nLabel: {output}"


def test_one_line_answers_stop_at_the_line_s_end() -> None:
    train = [Example(f"say {i}", f"thing {i}") for i in range(20)]
    assert make_task("g", train, train[:1]).template.stop == ("\n",)
    many = [Example(f"say {i}", f"thing\n{i}") for i in range(20)]
    assert make_task("g", many, many[:1]).template.stop == ()


def test_an_unknown_label_in_test_is_named_with_file_line_and_the_known_ones(folder: Path) -> None:
    with (folder / "test.jsonl").open("a") as file:
        file.write('{"input": "x", "output": "maybe"}\n')
    with pytest.raises(DataError) as caught:
        load_task(folder)
    told = str(caught.value)
    assert f"{folder / 'test.jsonl'}, line 11: unknown label 'maybe'; known labels: no, yes" in told
    assert "\n" not in told
    with pytest.raises(DataError, match="unknown label 'maybe'"):  # also where a limit would have left the row out
        load_task(folder, limit=1)


def test_a_long_list_of_known_labels_is_cut() -> None:
    train = rows(400, [f"label {i:02d}" for i in range(30)])
    with pytest.raises(DataError, match=r"label 19 and 10 more;"):
        make_task("many", train, [Example("x", "other")])


def test_a_template_that_names_a_missing_field_is_refused() -> None:
    with pytest.raises(DataError, match="the template names the field 'text', the examples have input"):
        make_task("t", rows(8), rows(1), template=Template(demo="{text}: {output}"))


def test_a_limit_draws_test_rows_by_seed_and_smaller_limits_are_nested(folder: Path) -> None:
    whole = load_task(folder)
    three, five, again = (load_task(folder, limit=n) for n in (3, 5, 5))
    assert [len(three.test), len(five.test)] == [3, 5]
    assert five.test == again.test
    assert set(three.test) < set(five.test) < set(whole.test)
    order = [whole.test.index(e) for e in five.test]
    assert order == sorted(order)
    assert load_task(folder, limit=5, seed=1).test != five.test
    assert load_task(folder, limit=99).test == whole.test
    assert five.train == whole.train
    with pytest.raises(UsageError, match="limit is 0"):
        load_task(folder, limit=0)


def test_nothing_is_held_out_unless_asked_and_then_by_seed(folder: Path) -> None:
    assert load_task(folder).dev == ()
    task = load_task(folder, dev=8)
    assert len(task.dev) == 8
    assert sorted(e.text for e in task.train + task.dev) == sorted(e.text for e in load_task(folder).train)
    assert task.dev == load_task(folder, dev=8).dev
    assert task.dev != load_task(folder, dev=8, seed=1).dev


def test_rows_that_are_held_out_have_no_twin_left_in_train() -> None:
    from iclkit.datasets._task import split_holdout

    located = [(str(i), Example(f"Row {i // 3}{'!' * (i % 3)}", "yes")) for i in range(60)]
    rest, held = split_holdout(located, 10, seed=0)
    assert 10 <= len(held) <= 12
    assert len(rest) + len(held) == 60
    assert not {fold_text(e.text) for _, e in rest} & {fold_text(e.text) for _, e in held}
    with pytest.raises(DataError, match="cannot hold out 60 of 60 train rows"):
        split_holdout(located, 60, seed=0)


def test_of_a_single_file_a_fifth_is_held_out_and_a_note_says_so(tmp_path: Path) -> None:
    lines(tmp_path / "all.jsonl", rows(40))
    task = load_task(tmp_path / "all.jsonl")
    assert (len(task.train), len(task.test)) == (32, 8)
    assert any("8 of 40 rows drawn as test rows by seed 0 (--test FILE, --test-size" in note for note in task.notes)
    whole = load_task(tmp_path / "all.jsonl", need_test=False)
    assert (len(whole.train), len(whole.test)) == (40, 0)
    task = load_task(tmp_path / "all.jsonl", test=10)
    assert (len(task.train), len(task.test)) == (30, 10)


def test_repeated_test_rows_keep_unique_query_ids(folder: Path) -> None:
    twice = [Example("same", "yes"), Example("same", "no"), Example("same", "yes"), Example("other", "no")]
    queries = make_task("t", rows(8), twice).queries()
    assert len({q.id for q in queries}) == 4
    assert [q.id.partition("#")[2] for q in queries] == ["", "2", "3", ""]
    named = [Example("a", "yes", meta={"id": "t-1"}), Example("b", "no", meta={"id": "t-1"})]
    assert [q.id for q in make_task("t", rows(8), named).queries()] == ["t-1", "t-1#2"]


def test_query_ids_are_unique_whatever_ids_a_file_gives() -> None:
    given = ["a", "a", "a#2", "a", "", "a#2"]
    test = [Example(f"x{n % 5}", "y", meta={"id": g} if g else {}) for n, g in enumerate(given)]
    ids = [q.id for q in make_task("t", rows(3), [*test, test[4]], kind="generation").queries()]
    assert len({*ids}) == 7
    assert [ids[0], ids[2], ids[4] + "#2"] == ["a", "a#2", ids[6]]


def test_a_task_knows_where_its_test_rows_were_read(folder: Path) -> None:
    task = load_task(folder, limit=2)
    lines = (folder / "test.jsonl").read_text().splitlines()
    for example in task.test:
        (where,) = task.places[example.id]
        assert "test.jsonl, line " in where
        assert example.text in lines[int(where.rsplit(" ", 1)[1]) - 1]


def test_without_a_bound_of_its_own_a_task_hashes_as_it_always_has() -> None:
    train = [Example(f"say {i}", "one\ntwo " * i) for i in range(9)]
    free = make_task("g", train, train[:1], kind="generation")
    bound = make_task("g", train, train[:1], kind="generation", max_answer_tokens=8 + 21)  # a third of 63 characters
    assert free.max_answer_tokens is None
    assert free.hash == bound.hash
    with pytest.raises(UsageError, match="max_answer_tokens is 0"):
        make_task("g", train, train[:1], max_answer_tokens=0)


def test_a_reasoning_task_may_write_more_than_a_line_though_its_answers_are_numbers() -> None:
    train = [Example(f"{i} and {i}", str(2 * i)) for i in range(9)]
    assert make_task("sum", train, train[:1], kind="reasoning").template.stop == ()


def test_the_hash_sees_everything_that_decides_a_result_and_nothing_else() -> None:
    def task(**changed: Any) -> Task:
        return make_task(**{"name": "t", "train": rows(8), "test": rows(2, word="q"), **changed})

    base = task().hash
    assert task(name="other").hash == base
    assert task(card=Card(licence="MIT")).hash == base
    changes: list[dict[str, Any]] = [
        {"train": rows(9)},
        {"train": rows(8)[::-1]},
        {"test": rows(3, word="q")},
        {"dev": rows(1)},
        {"metric": "macro_f1"},
        {"labels": ["no", "yes", "perhaps"]},
        {"template": Template(demo="{input}: {output}")},
        {"max_answer_tokens": 1},
    ]
    assert len({base, *(task(**c).hash for c in changes)}) == len(changes) + 1


def test_a_task_needs_train_and_test_rows() -> None:
    with pytest.raises(DataError, match="task 't' has no train rows"):
        make_task("t", [], rows(1))
    with pytest.raises(DataError, match="task 't' has no test rows"):
        make_task("t", rows(1), [])
    with pytest.raises(UsageError, match="no split 'tset'"):
        make_task("t", rows(1), rows(1)).split("tset")


def test_splits_may_be_tables_and_go_by_other_names(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(
        "text,label\n" + "".join(f"row {i},{'yes' if i % 2 else 'no'}\n" for i in range(20))
    )
    (tmp_path / "validation.tsv").write_text("text\tlabel\nv\tyes\n")
    (tmp_path / "test.csv").write_text("text,label\nq,no\n")
    task = load_task(tmp_path, input="text", output="label")
    assert (len(task.train), len(task.dev), len(task.test), task.labels) == (20, 1, 1, ("no", "yes"))
    (tmp_path / "train.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match=r"has train.jsonl and train.csv; keep one"):
        load_task(tmp_path)


@pytest.mark.parametrize("inside", ["", "data"])
def test_a_split_may_be_in_shards_as_the_hub_has_them(tmp_path: Path, inside: str) -> None:
    folder = tmp_path / "mine" / inside
    folder.mkdir(parents=True)
    for split, count, first in (("train", 2, 0), ("test", 1, 100)):
        for n in range(count):
            rows = [{"text": f"row {first + 10 * n + i}", "label": "ab"[i % 2]} for i in range(10)]
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / f"{split}-{n:05d}-of-{count:05d}.jsonl").write_text(lines)
    task = load_task(tmp_path / "mine")
    assert [e.input for e in task.train] == [f"row {n}" for n in range(20)]
    assert len(task.test) == 10
    (folder / "train-00001-of-00002.jsonl").unlink()
    with pytest.raises(DataError, match="has 1 of 2 files train-…-of-00002; fetch the set again"):
        load_task(tmp_path / "mine")


def test_test_rows_are_read_by_the_columns_of_the_train_rows_where_they_have_them(tmp_path: Path) -> None:
    def write(name: str, **row: str) -> None:
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({**row, "n": i}) + "\n" for i in range(4)))

    write("train", text="fine", label="good")
    write("test", text="so so", label="good", annotation="unsure")  # by itself it would have two answers
    assert (load_task(tmp_path).test[0].input, load_task(tmp_path).test[0].output) == ("so so", "good")
    write("test", text="so so")
    with pytest.raises(DataError, match=r"test\.jsonl, line 1: no field 'label'; the row has: text, n"):
        load_task(tmp_path)
    write("test", sentence="so so", target="good")
    assert (load_task(tmp_path).test[0].input, load_task(tmp_path).test[0].output) == ("so so", "good")


def test_a_folder_without_train_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "data.txt").write_text("x")
    with pytest.raises(DataError, match=r"has no train.jsonl .* it holds data.txt"):
        load_task(tmp_path)


def test_names_go_to_the_catalogue_and_paths_to_folders(
    folder: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UnknownName, match=r"no task named 'trek'\. Did you mean 'trec'"):
        load_task("trek")
    with pytest.raises(DataError, match="no folder or file here/trec"):
        load_task("here/trec")
    folder.rename(folder.with_name("trec"))
    monkeypatch.chdir(folder.parent)
    with pytest.raises(DataError, match=r"run: iclkit datasets pull trec; for the folder here write ./trec"):
        load_task("trec")
    assert load_task("./trec").name == "trec"


def test_a_card_is_read_line_by_line() -> None:
    card = Card.parse(
        "# x\n- Task: what it is; nested; ordinal classification, 6 labels.\n- Licence: MIT.\n"
        "- Suggested metric: accuracy; mean absolute error of the digit.\n- Citation: A 2020, B.\n"
        "- Prompt template:\n```\n- Q: {input}\n\n- A: {output}\n```\n- After: yes\n"
    )
    assert (card.description, card.kind, card.metric) == ("what it is; nested", "classification", "accuracy")
    assert (card.licence, card.citation, card.facts["after"]) == ("MIT", "A 2020, B", "yes")
    assert card.template == "- Q: {input}\n\n- A: {output}"
    assert Card.parse("no card at all") == Card()
    assert Card.parse("- Suggested metric: my_metric").metric == "my_metric"
    assert Card.parse("- Task: only words").description == "only words"


def label_rows(*labels: str, each: int = 4) -> list[Example]:
    return [Example(f"row {i} of {label!r}", label) for label in labels for i in range(each)]


@pytest.mark.parametrize("other", ["cafe\u0301", "caf\u00e9 ", "\u00a0caf\u00e9", "caf\u00e9\r\n", "\u3000caf\u00e9"])
def test_labels_that_differ_by_outer_white_space_or_unicode_form_are_one_label(folder: Path, other: str) -> None:
    for split, label in (("train", "caf\u00e9"), ("test", other)):
        lines = [json.dumps({"input": f"{split} {i}", "output": o}) for i in range(4) for o in (label, "bar")]
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    task = load_task(folder)
    assert task.labels == ("bar", "caf\u00e9")
    assert {e.output for e in task.test} == {"bar", "caf\u00e9"}
    given = make_task(
        "t", label_rows("caf\u00e9", "bar"), label_rows(other, each=1), labels=[other, "bar", "caf\u00e9"]
    )
    assert given.labels == ("caf\u00e9", "bar")


@pytest.mark.parametrize(
    "other",
    ["not  good", "not\u00a0good", "not\ngood", "not good\u200b", "\ufeffnot good", "not\u00ad good", "not good\ufe0f"],
)
def test_labels_that_look_alike_are_refused(other: str) -> None:
    with pytest.raises(DataError, match="differ only by white space or by characters that do not show") as caught:
        make_task("t", label_rows("not good", other), label_rows("not good"), kind="classification")
    assert "\\u" in str(caught.value) or "\\x" in str(caught.value) or "\\n" in str(caught.value) or "  " in other
    with pytest.raises(DataError, match="differ only by"):
        make_task("t", label_rows("not good"), label_rows("not good"), labels=["not good", other])


def test_choices_of_a_row_that_look_alike_are_refused() -> None:
    fine = [Example("q", "a", choices=("a", "b"))]
    with pytest.raises(DataError, match="t test, row 1: the choices 'a b' and 'a  b' differ only by white space"):
        make_task("t", fine, [Example("q", "a b", choices=("a b", "a  b"))])
    assert make_task("t", fine, [Example("q", "a ", choices=("a", " b"))]).test[0].choices == ("a", "b")


@pytest.mark.parametrize("other", ["Positive", "\uff50\uff4f\uff53\uff49\uff54\uff49\uff56\uff45"])
def test_labels_that_differ_only_by_case_or_width_are_kept_with_a_word(other: str) -> None:
    task = make_task("t", label_rows("positive", other), label_rows("positive", other, each=1), kind="classification")
    assert len(task.labels) == 2
    (note,) = task.notes
    assert "differ only by case or by width" in note
    assert make_task("t", label_rows("C", "C++"), label_rows("C", "C++", each=1), kind="classification").notes == ()


def test_a_task_of_one_label_says_that_every_answer_is_right() -> None:
    task = make_task("t", label_rows("yes", "yes "), label_rows("yes", each=1), kind="classification")
    assert task.labels == ("yes",)
    assert "there is one label alone, 'yes': every answer is right" in task.notes[0]
    sorted_by_label = make_task("t", label_rows("yes", "no"), label_rows("yes", each=6), kind="classification")
    assert "every test row has the label 'yes'" in sorted_by_label.notes[0]
    assert (
        sorted_by_label.hash
        == make_task(
            "t", label_rows("yes", "no"), label_rows("yes", each=6), kind="classification", labels=("no", "yes")
        ).hash
    )


def test_the_order_of_fields_in_a_row_changes_neither_leaks_nor_held_out_groups() -> None:
    pool = [Example({"premise": "It rains today.", "hypothesis": "It is wet."}, "yes")]
    (leak,) = find_leaks(pool, [Query({"hypothesis": "It is wet.", "premise": "It rains today."})])
    assert leak.kind == "exact"
