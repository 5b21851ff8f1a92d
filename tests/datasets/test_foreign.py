"""Files of other tools, as they come: each taken in by one command, or refused with the way out."""

from __future__ import annotations

import copy
import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iclkit.cli import main
from iclkit.datasets import (
    LAYOUTS,
    Columns,
    Reading,
    TaskFile,
    load_task,
    open_rows,
    read_examples,
    read_queries,
    read_rows,
)
from iclkit.errors import DataError, UsageError
from iclkit.pool import Pool
from iclkit.records import Example

FOREIGN = Path(__file__).parent / "foreign"
CASES: dict[str, tuple[str, tuple[Any, str]]] = {
    # file: (options of the command, first input and output)
    "semicolons.csv": ("", ("It came late, again", "delivery")),
    "cp1252.csv": ("--encoding cp1252", ("Die Größe passt nicht", "Rückgabe")),
    "utf16.tsv": ("", ("Größe passt", "gut")),
    "no_header.csv": ("--header question,A,B,C,D,answer", ("What is 2+2?", "4")),
    "mmlu.csv": ("", ("What is 2+2?", "4")),
    "arc.jsonl": ("", ("What pulls a ball down?", "gravity")),
    "alpaca.json": ("", ("Translate to French.\n\nGood morning", "Bonjour")),
    "sharegpt.json": (
        "",
        ({"context": "User: Hi\nAssistant: Hello! How can I help?", "input": "Capital of Peru?"}, "Lima"),
    ),
    "openai_chat.jsonl": ("", ("My card was charged twice", "billing")),
    "openai_tools.jsonl": (
        "",
        ("Weather in Oslo?", '{"name": "weather", "arguments": {"city": "Oslo", "days": 1}}'),
    ),
    "squad_v1.json": (
        "",
        ({"context": "Oslo is the capital of Norway.", "question": "What is the capital of Norway?"}, "Oslo"),
    ),
    "squad_v2.jsonl": (
        "--on-bad-row skip",
        ({"context": "Oslo is in Norway.", "question": "Where is Oslo?"}, "Norway"),
    ),
    "bigbench.json": ("", ("Is fire hot?", "Yes")),
    "bigbench_free.json": ("", ("2 + 2 =", "4")),
    "dspy_program.json": ("", ("Capital of Peru?", "Lima")),
    "promptfoo.csv": ("--on-bad-row skip", ({"country": "Peru", "language": "English"}, "Lima")),
    "flagembedding.jsonl": ("", ("where is my parcel", "Parcels are tracked online.")),
    "argilla.json": ("", ("Card charged twice", "billing")),
    "gsm8k.jsonl": (
        "",
        ("Tom has 0 apples and buys 2. How many?", "Tom has 0+2=<<0+2=2>>2 apples.\n#### 2"),
    ),
    "labels_as_numbers.ndjson": ("--label-names bad,good", ("great", "good")),
    "truth_values.jsonl": ("--label-names true=spam,false=ham --null-label unsure", ("buy now!!!", "spam")),
    "multi_label.jsonl": ("", ("a red car", "red, car")),
    "function_calls.jsonl": (
        "",
        ("Oslo tomorrow", '{"name": "weather", "arguments": {"city": "Oslo", "days": 1}}'),
    ),
    "three_labels.csv": ("", ("fine", "good")),
    "nested.json": ("--rows data.items --input q --output a", ("Where is it?", "delivery")),
    "pandas_columns.json": ("", ("fine", "good")),
    "ragged.csv": ("--on-bad-row skip", ("fine", "good")),
    "preference.jsonl": ("", ("Say hi", "Hi!")),
    "dolly.jsonl": ("", ("Which team won?\n\nBrann beat Viking 2-1.", "Brann")),
    "copa.jsonl": ("", ({"premise": "The glass fell.", "question": "effect"}, "It broke.")),
    "race.jsonl": ("", ({"article": "Ane moved to Oslo in May.", "question": "When did Ane move?"}, "in May")),
    "logiqa.jsonl": ("", ({"context": "All cats sleep.", "query": "What follows?"}, "Tom sleeps.")),
    "winogrande.jsonl": ("", ("The cup is not in the bag since _ is too big.", "cup")),
    "prodigy.jsonl": ("--on-bad-row skip", ("Card charged twice", "billing")),
    "label_studio.json": ("", ("Card charged twice", "billing")),
    "openai_evals.jsonl": ("", ("Capital of Peru?", "Lima")),
    "triviaqa.jsonl": ("", ("Capital of Norway?", "Oslo")),
    "mnli.jsonl": (
        "--on-bad-row skip",
        ({"sentence1": "A dog runs.", "sentence2": "A dog moves."}, "entailment"),
    ),
    "excel.csv": ("", ("It came late; again", "delivery")),
    "by_key.json": ("", ("Where is my parcel?", "delivery")),
    "glue.tsv": (
        "",
        ({"sentence1": '"Bare quote at the start', "sentence2": 'She said "no'}, "equal"),
    ),
    "langsmith.jsonl": ("", ("Capital of Peru?", "Lima")),
    "langfuse.jsonl": ("", ("Capital of Peru?", "Lima")),
    "viewer.json": ("", ("fine", "pos")),
    "pandas_split.json": ("", ("fine", "good")),
    "gemini.jsonl": ("", ("My card was charged twice", "billing")),
    "quora.csv": (
        "--label-names other,same",
        ({"question1": "How do I sleep well?", "question2": "How can I sleep better?"}, "same"),
    ),
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def iclkit(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main([*words])
    return int(ended.value.code or 0)


def test_every_foreign_file_has_a_case() -> None:
    assert {path.name for path in FOREIGN.iterdir()} == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_a_foreign_file_is_taken_in_by_one_command(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    options, first = CASES[name]
    assert iclkit("pool", "add", "demos.db", str(FOREIGN / name), *options.split()) == 0, capsys.readouterr().err
    with Pool.open("demos.db") as pool:
        example = next(iter(pool))
    assert (example.input, example.output) == first


@pytest.mark.parametrize(
    ("name", "way_out"),
    [
        ("cp1252.csv", "--encoding cp1252 (cp1252 reads 'Größe'"),
        ("no_header.csv", "Name the field with --input"),
        ("squad_v2.jsonl", "--on-bad-row skip"),
        ("promptfoo.csv", "--on-bad-row skip"),
        ("truth_values.jsonl", "--null-label"),
        ("ragged.csv", "--on-bad-row skip"),
        ("prodigy.jsonl", "the annotator chose nothing (answer 'ignore'); --on-bad-row skip"),
        ("mnli.jsonl", "the annotators did not agree; --on-bad-row skip"),
    ],
)
def test_a_file_that_is_refused_says_the_way_out_and_changes_nothing(
    name: str, way_out: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert iclkit("pool", "add", "demos.db", str(FOREIGN / name)) == 1
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.startswith("error: ")
    assert way_out in told
    assert [*here.iterdir()] == []


def test_rows_that_are_left_out_are_counted_and_written_down(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert iclkit("pool", "add", "demos.db", str(FOREIGN / "squad_v2.jsonl"), "--on-bad-row", "skip") == 0
    assert "1 bad rows were left out; they are in demos.skipped.jsonl" in capsys.readouterr().err
    (line,) = (here / "demos.skipped.jsonl").read_text().splitlines()
    skipped = json.loads(line)
    assert skipped["where"].endswith("squad_v2.jsonl, line 2")
    assert "no answer" in skipped["reason"]
    assert skipped["row"]["question"] == "Where is Rome?"


@pytest.mark.parametrize(
    ("name", "note"),
    [
        ("mmlu.csv", "left out: column subject (--keep subject keeps it as metadata)"),
        ("squad_v1.json", "rows read from 'data.paragraphs.qas' (--rows)"),
        ("semicolons.csv", "columns parted by ';' (--delimiter)"),
        ("alpaca.json", "instruction and input as one text"),
        ("three_labels.csv", "input text; output label (--input, --output)"),
        ("copa.jsonl", "input premise, question; options choice1, choice2, answer 'label' (--choices, --output)"),
        ("copa.jsonl", "answers are numbers of options, from 0"),
        ("winogrande.jsonl", "answers are numbers of options, from 1"),
        ("glue.tsv", "quotes are letters"),
    ],
)
def test_what_is_inferred_is_said_with_the_flag_that_changes_it(name: str, note: str) -> None:
    assert any(note in said for said in read_rows(FOREIGN / name, Columns()).notes)


@pytest.mark.parametrize(
    ("name", "kind", "metric"),
    [
        ("three_labels.csv", "classification", "accuracy"),
        ("gsm8k.jsonl", "reasoning", "number_match"),
        ("mmlu.csv", "multiple_choice", "accuracy"),
        ("multi_label.jsonl", "generation", "set_f1"),
        ("function_calls.jsonl", "generation", "json_match"),
        ("squad_v1.json", "generation", "token_f1"),
        ("labels_as_numbers.ndjson", "classification", "accuracy"),
    ],
)
def test_kind_and_metric_follow_from_the_rows_and_are_said(name: str, kind: str, metric: str) -> None:
    task = load_task(FOREIGN / name, test=1)
    assert (task.kind, task.metric) == (kind, metric)
    assert any(f"kind {kind}" in note and f"metric {metric} (--kind" in note for note in task.notes)


def test_a_chat_is_read_by_role_and_its_system_text_heads_the_prompt() -> None:
    rows = [e for _, e in read_rows(FOREIGN / "sharegpt.json", Columns()).located()]
    assert rows[1].input == {"context": "", "input": "Capital of Chile?"}
    assert rows[1].meta["system"] == "Be brief."
    task = load_task(FOREIGN / "openai_chat.jsonl", test=1)
    assert task.template.instruction == "Answer with the team."


def test_letters_of_options_are_told_from_options_that_are_letters() -> None:
    rows = read_examples(FOREIGN / "mmlu.csv")
    assert rows[2] == Example("Which is blood type first listed?", "B", choices=("B", "A", "O", "AB"))


def test_options_may_be_numbered_from_one(tmp_path: Path) -> None:
    rows = [{"question": f"q{n}", "options": ["a", "b", "c"], "answer": 1 + n % 3} for n in range(6)]
    path = tmp_path / "one.json"
    path.write_text(json.dumps(rows))
    reading = read_rows(path, Columns())
    assert [e.output for _, e in reading] == ["a", "b", "c", "a", "b", "c"]
    assert "answers are numbers of options, from 1" in reading.notes


@pytest.mark.parametrize("header", ["Question,A,B,C,D,Answer", " question ,Option A,Option B,Option C,Option D,ANSWER"])
def test_how_the_names_of_columns_are_written_does_not_count(tmp_path: Path, header: str) -> None:
    path = tmp_path / "sheet.csv"
    path.write_text(f"{header}\nWhat is 2+2?,3,4,5,6,B\nWhat is 1+1?,2,3,4,5,A\n")
    assert read_examples(path)[0] == Example("What is 2+2?", "4", choices=("3", "4", "5", "6"))
    path.write_text("Instruction,Output,Source\nSay hi,Hi!,me\n")
    reading = read_rows(path, Columns())
    assert [(e.input, e.output) for _, e in reading] == [("Say hi", "Hi!")]
    assert "left out: column Source (--keep Source keeps it as metadata)" in reading.notes


def test_an_answer_that_names_no_option_is_refused_and_case_alone_is_forgiven(tmp_path: Path) -> None:
    rows = [{"question": f"q{n}", "options": ["Ann", "Bea"], "answer": a} for n, a in enumerate(["ann", "Bea", "Cid"])]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows))
    with pytest.raises(DataError, match="item 3: field 'answer' is 'Cid', none of the choices Ann, Bea"):
        read_examples(path)
    assert [e.output for e in read_examples(path, on_bad_row="skip")] == ["Ann", "Bea"]


def test_the_label_minus_one_is_no_label_where_names_say_so_and_said_where_none_do(tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    path.write_text("".join(json.dumps({"text": f"t{n}", "label": n - 1}) + "\n" for n in range(3)))
    assert any("label -1 is taken as a label" in note for note in read_rows(path, Columns()).notes)
    assert [e.output for e in read_examples(path)] == ["-1", "0", "1"]
    skipped = read_examples(path, label_names=["no", "yes"], on_bad_row="skip")
    assert [e.output for e in skipped] == ["no", "yes"]
    names = {"info": {"features": {"label": {"_type": "ClassLabel", "names": ["no", "yes"]}}}}
    table = pyarrow.table({"text": ["a", "b"], "label": [1, -1]})
    pyarrow.parquet.write_table(
        table.replace_schema_metadata({"huggingface": json.dumps(names)}), tmp_path / "hub.parquet"
    )
    with pytest.raises(DataError, match=r"row 2: field 'label' is -1, which stands for no label.*--on-bad-row skip"):
        read_examples(tmp_path / "hub.parquet")
    assert [e.output for e in read_examples(tmp_path / "hub.parquet", on_bad_row="skip")] == ["yes"]
    assert [q.text for q in read_queries(tmp_path / "hub.parquet")] == ["a", "b"]


def test_what_stands_inside_an_object_is_named_with_its_path(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"translation": {"en": "tea", "no": "te"}}\n{"translation": {"en": "milk", "no": "melk"}}\n')
    with pytest.raises(DataError, match=r"the row has: translation\.en, translation\.no"):
        read_examples(path)
    assert read_examples(path, input="translation.en", output="translation.no")[1] == Example("milk", "melk")


@pytest.mark.parametrize("quoted", ['"a, b",x\n"c ""d""",y\n', '"two\nlines",x\nplain,y\n', 'plain,x\n"all",y\n'])
def test_quotes_that_quote_are_never_letters(tmp_path: Path, quoted: str) -> None:
    path = tmp_path / "sheet.csv"
    path.write_text(f"text,label\n{quoted}")
    reading = read_rows(path, Columns())
    assert not any("letters" in note for note in reading.notes)
    assert all('"' not in str(e.input).strip('"') or e.input == 'c "d"' for _, e in reading)


def test_splits_in_one_json_file_are_the_task_s(tmp_path: Path) -> None:
    rows = {split: [{"text": f"{split} {n}", "label": "ab"[n % 2]} for n in range(6)] for split in ("train", "test")}
    path = tmp_path / "both.json"
    path.write_text(json.dumps({**rows, "validation": rows["test"][:2]}))
    task = load_task(path)
    assert [len(task.split(name)) for name in ("train", "dev", "test")] == [6, 2, 6]
    assert load_task(path, test=2).split("test")[0].input[:5] == "train"  # the user draws


@pytest.mark.parametrize("name", ["sheet.xlsx", "rows.zip"])
def test_an_archive_is_called_one(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"PK\x03\x04" + bytes(30))
    with pytest.raises(DataError, match="zip archive or a spreadsheet; unpack it, or save the sheet as CSV"):
        read_examples(tmp_path / name)


def test_columns_without_a_name_are_none_while_they_are_empty(tmp_path: Path) -> None:
    path = tmp_path / "sheet.csv"
    path.write_text("text,label,,\nfine,good,,\nbad,poor,oops,\n")
    with pytest.raises(DataError, match="line 3: 3 fields where the header names 2"):
        read_examples(path)
    assert [e.output for e in read_examples(path, on_bad_row="skip")] == ["good"]


def test_negatives_and_other_answers_are_kept() -> None:
    assert read_examples(FOREIGN / "triviaqa.jsonl")[0].meta["answers"] == ["Oslo", "Kristiania"]
    assert read_examples(FOREIGN / "openai_evals.jsonl")[0].meta == {
        "system": "Answer with a city.", "answers": ["Lima", "lima"],
    }  # fmt: skip
    assert read_examples(FOREIGN / "flagembedding.jsonl")[0].meta["neg"] == ["We sell shoes."]
    assert read_examples(FOREIGN / "squad_v1.json")[1].meta["answers"] == ["Norway", "of Norway"]


@pytest.mark.parametrize("packing", ["gz", "zst"])
@pytest.mark.parametrize("name", ["semicolons.csv", "alpaca.json", "arc.jsonl"])
def test_packed_files_are_read_as_they_are(tmp_path: Path, name: str, packing: str) -> None:
    import pyarrow

    data = (FOREIGN / name).read_bytes()
    packed = gzip.compress(data) if packing == "gz" else pyarrow.compress(data, "zstd", asbytes=True)
    (tmp_path / f"{name}.{packing}").write_bytes(packed)
    assert read_examples(tmp_path / f"{name}.{packing}") == read_examples(FOREIGN / name)
    (tmp_path / f"cut.{name}.{packing}").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(DataError, match=r"cannot be unpacked|not JSON|is empty|cannot be read"):
        read_examples(tmp_path / f"cut.{name}.{packing}")


def test_an_object_with_several_lists_of_rows_lists_the_places(tmp_path: Path) -> None:
    path = tmp_path / "two.json"
    path.write_text(json.dumps({"a": {"x": [{"q": 1}]}, "b": [{"q": 2}, {"q": 3}]}))
    with pytest.raises(DataError, match=r"say which rows are meant: --rows b \(2\), --rows a\.x \(1\)"):
        read_examples(path)
    with pytest.raises(DataError, match=r"--rows a\.y: there is no 'y' at a; it has: x"):
        read_examples(path, rows="a.y")
    with pytest.raises(DataError, match=r"--rows a leads to an object; expected a list of rows"):
        read_examples(path, rows="a")


def test_queries_are_read_from_a_table_by_its_columns(tmp_path: Path) -> None:
    assert [q.text for q in read_queries(FOREIGN / "semicolons.csv")][:2] == [
        "It came late, again",
        "The card was charged twice",
    ]
    assert [q.text for q in read_queries(FOREIGN / "openai_chat.jsonl")] == [
        "My card was charged twice",
        "Where is my parcel?",
    ]
    path = tmp_path / "q.csv"
    path.write_text("a,b\nx,y\n")
    assert [q.text for q in read_queries(path, input="b")] == ["y"]


def test_a_table_is_read_without_holding_it_whole(tmp_path: Path) -> None:
    import tracemalloc

    path = tmp_path / "long.csv"
    with path.open("w") as file:
        file.write("text,label\n")
        for n in range(200_000):
            file.write(f"row {n} with some words in it that take some room,{n % 3}\n")

    def peak(rows: int) -> int:
        tracemalloc.start()
        reading = iter(read_rows(path, Columns()))
        for _ in range(rows):
            next(reading)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert peak(20_000) < 1.5 * peak(2_000)


def test_every_layout_has_a_file_here() -> None:
    seen = set()
    for name in CASES:
        options = TaskFile().with_options(encoding="cp1252" if name == "cp1252.csv" else "").file_options
        seen.add(read_rows(FOREIGN / name, Columns(), options).layout)
    assert {layout.name for layout in LAYOUTS} <= seen


def test_an_encoding_or_delimiter_that_there_is_not_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="no text encoding 'klingon'"):
        read_examples(FOREIGN / "cp1252.csv", encoding="klingon")
    with pytest.raises(UsageError, match="--rows is for one JSON value that holds rows"):
        read_examples(FOREIGN / "semicolons.csv", rows="data.items")
    with pytest.raises(UsageError, match="must be one character"):
        read_examples(FOREIGN / "semicolons.csv", delimiter=";;")


def file_rows(name: str) -> list[dict[str, Any]]:
    columns = CASES[name][0].split()
    given = TaskFile().with_options(
        encoding="cp1252" if name == "cp1252.csv" else "", rows="data.items" if name == "nested.json" else ""
    )
    options = replace(given.file_options, columns=tuple(columns[1].split(",")) if "--header" in columns else ())
    return [dict(row) for _, row in open_rows(FOREIGN / name, options).records if isinstance(row, dict)]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, inner in inside for place in places(inner, (*path, key)))]


leaves = st.none() | st.booleans() | st.integers(-3, 9) | st.sampled_from(["user", "A", "equals: x", "a b", "", "{"])
values = leaves | st.lists(leaves, max_size=2) | st.dictionaries(st.sampled_from(["text", "role", "value"]), leaves)


@settings(deadline=None, max_examples=200)
@given(name=st.sampled_from(sorted(CASES)), data=st.data())
def test_a_row_with_any_value_in_any_place_is_an_example_or_one_line(name: str, data: st.DataObject) -> None:
    rows = copy.deepcopy(file_rows(name))
    path = data.draw(st.sampled_from([place for place in places(rows) if len(place) > 1]))
    node: Any = rows
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = data.draw(values)
    records = [(f"row {n}", row) for n, row in enumerate(rows)]
    told = ""
    try:
        examples = Reading(records, Columns(), on_bad_row=data.draw(st.sampled_from(["stop", "skip"]))).located()
        assert all(e.output and e.text for _, e in examples)
    except DataError as error:
        told = str(error)
    assert "\n" not in told
