"""Files to examples: every format reads the same rows, and everything that is wrong is named in one line."""

from __future__ import annotations

import csv
import json
import os
import re
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iclkit.datasets import load_task, read_examples, read_queries
from iclkit.errors import DataError, UsageError
from iclkit.records import Example, Query, clean_text
from iclkit.text import visible

ROWS = [
    {"input": "good fun", "output": "positive"},
    {"input": 'a "quoted" word, and a comma', "output": "negative"},
    {"input": "two\nlines\tand a tab", "output": "positive"},
    {"input": "Größe, 大きさ, {braces}, \u2028 and 🙂", "output": "negative"},
]


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """The rows in the format that the ending names."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    elif path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


def refusal(path: Path, **settings: Any) -> str:
    """The one-line text of the DataError that reading the file raises."""
    with pytest.raises(DataError) as caught:
        read_examples(path, **settings)
    text = str(caught.value)
    assert "\n" not in text
    assert str(path) in text
    return text


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "tsv", "parquet"])
def test_every_format_reads_the_same_rows(tmp_path: Path, ending: str) -> None:
    examples = read_examples(write(tmp_path / f"rows.{ending}", ROWS), task="t")
    assert examples == [Example(r["input"], r["output"], "t") for r in ROWS]


@settings(deadline=None)
@given(
    rows=st.lists(
        st.tuples(
            st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(visible),
            st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(visible),
        ),
        min_size=1,
        max_size=5,
    ),
    ending=st.sampled_from(["jsonl", "json", "csv", "tsv"]),
)
def test_any_text_survives_the_way_through_a_file(
    rows: list[tuple[str, str]], ending: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = write(tmp_path_factory.mktemp("any") / f"rows.{ending}", [{"input": i, "output": o} for i, o in rows])
    assert [(e.input, e.output) for e in read_examples(path)] == [(clean_text(i), clean_text(o)) for i, o in rows]


def test_a_byte_order_mark_and_windows_line_ends_are_read_over(tmp_path: Path) -> None:
    path = tmp_path / "excel.csv"
    path.write_bytes('input,output\r\n"one\r\ntwo",a\r\nthree,b\r\n'.encode("utf-8-sig"))
    assert [(e.input, e.output) for e in read_examples(path)] == [("one\ntwo", "a"), ("three", "b")]
    path = tmp_path / "marked.jsonl"
    path.write_bytes('{"input": "x", "output": "y"}\r\n'.encode("utf-8-sig"))
    assert read_examples(path)[0].input == "x"


def test_blank_lines_are_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "gaps.jsonl"
    path.write_text('\n{"input": "x", "output": "y"}\n\n  \n{"input": "z", "output": "y"}\n\n')
    assert [e.input for e in read_examples(path)] == ["x", "z"]


def test_json_lines_under_the_name_json_are_read(tmp_path: Path) -> None:
    path = tmp_path / "lines.json"
    path.write_text('{"input": "x", "output": "y"}\n{"input": "z", "output": "y"}\n')
    assert [e.input for e in read_examples(path)] == ["x", "z"]


def test_several_input_columns_become_named_fields(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.csv", [{"premise": "It rains.", "hypothesis": "It is wet.", "gold": "yes"}])
    (example,) = read_examples(path, input=["premise", "hypothesis"], output="gold")
    assert example.input == {"premise": "It rains.", "hypothesis": "It is wet."}
    assert example.text == "It is wet.\nIt rains."  # by field name: hypothesis, premise


def test_an_object_as_input_becomes_named_fields(tmp_path: Path) -> None:
    path = write(tmp_path / "fields.jsonl", [{"input": {"a": "1", "b": "2"}, "output": "3"}])
    assert read_examples(path)[0].input == {"a": "1", "b": "2"}


def test_a_dot_reaches_into_nested_values(tmp_path: Path) -> None:
    row = {"q": "Who?", "answers": {"text": ["Ada", "A. Lovelace"]}}
    (example,) = read_examples(write(tmp_path / "n.jsonl", [row]), input="q", output="answers.text.0")
    assert example.output == "Ada"


def test_own_id_and_meta_are_kept_and_more_columns_on_request(tmp_path: Path) -> None:
    row = {"id": 7, "input": "x", "output": "y", "meta": {"src": 3}, "year": 2004, "note": "n"}
    (example,) = read_examples(write(tmp_path / "m.jsonl", [row]), meta=["year"])
    assert example.meta == {"src": 3, "id": "7", "year": 2004}
    assert example.id == Example("x", "y").id  # meta is no part of the identity


def test_task_and_choices_of_an_exported_example_come_back(tmp_path: Path) -> None:
    example = Example({"q": "Which?"}, "b", "quiz", ("a", "b"))
    row = {"id": example.id, "input": example.input, "output": "b", "task": "quiz", "choices": ["a", "b"]}
    assert read_examples(write(tmp_path / "x.jsonl", [row])) == [example]


@pytest.mark.parametrize("gold", ["B", "1", 1, "blue"])
def test_a_choice_is_named_by_key_by_number_or_in_full(tmp_path: Path, gold: object) -> None:
    row = {"question": "Colour?", "gold": gold, "options": {"label": ["A", "B"], "text": ["red", "blue"]}}
    keys = "options.label" if gold == "B" else None
    path = write(tmp_path / "c.jsonl", [row])
    (example,) = read_examples(path, input="question", output="gold", choices="options.text", choice_keys=keys)
    assert (example.output, example.choices) == ("blue", ("red", "blue"))


def test_a_choice_outside_the_options_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "c.jsonl", [{"input": "q", "output": 2, "choices": ["a", "b"]}])
    assert "line 1: field 'output' is 2, and there are 2 choices from 0" in refusal(path)
    path = write(tmp_path / "k.jsonl", [{"input": "q", "output": "C", "choices": ["a", "b"], "keys": ["A", "B"]}])
    assert "none of the choice keys A, B" in refusal(path, choice_keys="keys")


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_label_ids_become_names(tmp_path: Path, ending: str) -> None:
    path = write(tmp_path / f"ids.{ending}", [{"input": "x", "output": 1}, {"input": "y", "output": 0}])
    assert [e.output for e in read_examples(path, label_names=["bad", "good"])] == ["good", "bad"]
    assert [e.output for e in read_examples(path, label_names={"0": "no", 1: "yes"})] == ["yes", "no"]


def test_a_label_id_without_a_name_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    path = write(tmp_path / "ids.jsonl", [{"input": "x", "output": 2}])
    assert "is 2, not a known label; known: 0 (bad), 1 (good)" in refusal(path, label_names=["bad", "good"])


def test_truth_values_can_be_given_names(tmp_path: Path) -> None:
    path = write(tmp_path / "b.jsonl", [{"input": "x", "output": True}, {"input": "y", "output": False}])
    assert [e.output for e in read_examples(path, label_names={"true": "yes", "false": "no"})] == ["yes", "no"]


def test_parquet_written_by_hugging_face_carries_its_label_names(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["card_arrival", "lost_card"])}
    )
    rows = datasets.Dataset.from_dict({"text": ["where is it", "it is gone"], "label": [0, 1]}, features=features)
    rows.to_parquet(str(tmp_path / "hf.parquet"))
    examples = read_examples(tmp_path / "hf.parquet", input="text", output="label")
    assert [e.output for e in examples] == ["card arrival", "lost card"]
    renamed = read_examples(tmp_path / "hf.parquet", input="text", output="label", label_names=["arrival", "loss"])
    assert [e.output for e in renamed] == ["arrival", "loss"]


def test_a_malformed_line_17_is_named_and_nothing_is_returned(tmp_path: Path) -> None:
    lines = ['{"input": "x", "output": "y"}'] * 20
    lines[16] = '{"input": "x", "output": "y"'
    path = tmp_path / "broken.jsonl"
    path.write_text("\n".join(lines))
    assert f"{path}, line 17: not JSON" in refusal(path)


def test_a_wrong_column_names_those_that_exist_and_the_nearest(tmp_path: Path) -> None:
    path = write(tmp_path / "w.jsonl", [{"body": "x", "subject": "z", "label": "y"}])
    said = refusal(path, output="label")
    assert "no field 'input'; the row has: body, subject, label. Name the field with --input" in said
    path = write(tmp_path / "w.jsonl", [{"text": "x", "label": "y"}])
    assert "no field 'lable'; the row has: text, label. Did you mean 'label'?" in refusal(
        path, input="text", output="lable"
    )


@pytest.mark.parametrize("side", [{}, {"id": "r-1"}, {"idx": 3, "meta": {}}])
def test_two_columns_of_which_one_is_an_answer_need_no_naming(tmp_path: Path, side: dict[str, object]) -> None:
    (example,) = read_examples(write(tmp_path / "two.jsonl", [{**side, "label": "y", "text": "x"}]))
    assert (example.input, example.output) == ("x", "y")


@pytest.mark.parametrize(
    "row", [{"a": "x", "b": "y"}, {"label": "x", "answer": "y"}, {"body": "x", "title": "c", "answer": "y"}]
)
def test_columns_are_not_guessed_where_more_than_one_reading_is_possible(tmp_path: Path, row: dict[str, str]) -> None:
    assert f"no field 'input'; the row has: {', '.join(row)}" in refusal(write(tmp_path / "g.jsonl", [row]))


@pytest.mark.parametrize(("question", "about"), [("q", "background"), ("question", "document"), ("prompt", "context")])
def test_what_a_question_is_about_is_read_with_it(tmp_path: Path, question: str, about: str) -> None:
    (example,) = read_examples(write(tmp_path / "g.jsonl", [{question: "x", about: "c", "n": 3, "answer": "y"}]))
    assert (example.input, example.output) == ({question: "x", about: "c"}, "y")


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "tsv"])
def test_an_empty_file_is_refused(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"empty.{ending}"
    path.write_text("")
    assert "is empty" in refusal(path)


def test_a_table_with_a_header_only_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "head.csv"
    path.write_text("input,output\n")
    assert "has a header (input, output) and no rows" in refusal(path)
    assert "no rows" in refusal(write_empty_parquet(tmp_path / "none.parquet"))


def write_empty_parquet(path: Path) -> Path:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"input": pyarrow.array([], pyarrow.string())}), path)
    return path


def test_a_missing_file_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", ROWS)
    assert f"did you mean {tmp_path / 'train.jsonl'}?" in refusal(tmp_path / "trian.jsonl")


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"input": "x", "output": ""}, "field 'output' is empty"),
        ({"input": "  \n", "output": "y"}, "field 'input' is empty"),
        ({"input": "x", "output": None}, "field 'output' is None, nothing (null), not a text; --null-label NAME"),
        ({"input": "x", "output": float("nan")}, "field 'output' is nan, a number, not a text"),
        ({"input": ["x"], "output": "y"}, "field 'input' is ['x'], a list, not a text"),
        ({"input": {"a": [1]}, "output": "y"}, "field 'input.a' is [1], a list"),
        ({"input": {"a": " "}, "output": "y"}, "field 'input' has no text in it"),
        ({"input": "half \ud83d pair", "output": "y"}, "field 'input' holds half a surrogate pair at character 5"),
        ({"input": "x", "output": "y", "choices": "a"}, "field 'choices' is a text; choices are a list of texts"),
    ],
)
def test_a_value_that_is_no_text_is_named_with_its_line_and_field(
    tmp_path: Path, row: dict[str, object], told: str
) -> None:
    path = tmp_path / "v.jsonl"
    path.write_text(json.dumps({"input": "fine", "output": "fine"}) + "\n" + json.dumps(row) + "\n")
    assert f"{path}, line 2: {told}" in refusal(path)


@pytest.mark.parametrize("line", ["[1, 2]", '"text"', "3"])
def test_a_line_that_is_no_object_is_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "o.jsonl"
    path.write_text(line + "\n")
    assert "line 1: expected a JSON object" in refusal(path)


def test_a_json_file_that_is_no_array_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "o.json"
    path.write_text('{"rows": []}')
    assert "expected an array of objects" in refusal(path)
    path.write_text("[]")
    assert "empty array" in refusal(path)
    path.write_text('[{"input": "x",\n "output": }]')
    assert f"{path}, line 2: not JSON" in refusal(path)


@pytest.mark.parametrize("ending", ["jsonl", "csv", "json"])
def test_a_wrong_encoding_is_named_with_line_and_byte(tmp_path: Path, ending: str) -> None:
    path = write(tmp_path / f"latin.{ending}", [{"input": "ok", "output": "y"}, {"input": "GROESSE", "output": "y"}])
    path.write_bytes(path.read_bytes().replace(b"GROESSE", "Größe".encode("cp1252")))
    line = next(n for n, text in enumerate(path.read_bytes().splitlines(), 1) if b"\xf6" in text)
    told = refusal(path)
    assert f"line {line}: not UTF-8 (byte 0xf6" in told
    assert "--encoding cp1252 (cp1252 reads 'Größe', cp1251 reads 'GrцЯe'" in told
    assert [e.input for e in read_examples(path, encoding="cp1252")] == ["ok", "Größe"]
    assert "is not ascii text" in refusal(path, encoding="ascii")
    with pytest.raises(UsageError, match="no text encoding 'klingon'"):
        read_examples(path, encoding="klingon")


def test_the_first_byte_that_is_not_utf8_is_found_far_into_a_file(tmp_path: Path) -> None:
    path = tmp_path / "far.csv"
    good = "input,output\n" + "ärger,b\n" * 300_000
    path.write_bytes(good.encode() + b"caf\xe9,b\n")
    assert "line 300002: not UTF-8 (byte 0xe9 at byte 4)" in refusal(path)
    path.write_bytes(good.encode() + "é".encode()[:1])
    assert "line 300002: not UTF-8" in refusal(path)


def test_table_rows_of_the_wrong_length_are_named_by_their_first_line(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('input,output\n"two\nlines",a\nx,y,z\n')
    assert f"{path}, line 4: 3 fields where the header names 2 (input, output)" in refusal(path)
    path.write_text("input,output,input\nx,y,z\n")
    assert "the column 'input' is named twice" in refusal(path)


def test_an_open_quote_is_named_by_the_line_it_began_on(tmp_path: Path) -> None:
    path = tmp_path / "q.csv"
    path.write_text('input,output\nfine,a\n"open,b\nmore,c\n')
    assert f"{path}, line 3: unexpected end of data" in refusal(path)


def test_a_field_beyond_the_csv_module_s_own_limit_is_read(tmp_path: Path) -> None:
    limit = csv.field_size_limit()
    path = write(tmp_path / "long.csv", [{"input": "x" * 200_000, "output": "y"}])
    assert len(read_examples(path)[0].text) == 200_000
    assert csv.field_size_limit() == limit


def test_a_broken_parquet_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    path.write_bytes(b"PAR1 this is not it")
    assert "cannot be read as Parquet" in refusal(path)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", ROWS)
    assert "is a folder (it holds train.jsonl); name a file in it" in refusal(tmp_path)


def test_an_unknown_ending_or_format_is_a_usage_error(tmp_path: Path) -> None:
    path = tmp_path / "rows.txt"
    path.write_text('{"input": "x", "output": "y"}\n')
    with pytest.raises(UsageError, match=r"ends in none of \.jsonl"):
        read_examples(path)
    with pytest.raises(UsageError, match="no reader for format 'yaml'; use one of jsonl, json"):
        read_examples(path, format="yaml")
    assert read_examples(path, format="jsonl")[0].output == "y"


# --- hostile files --------------------------------------------------------------------------------------------------

FINE = {"input": "fine", "output": "fine"}


def raw(path: Path, line: str) -> Path:
    """A good line and then this one."""
    path.write_text(json.dumps(FINE) + "\n" + line + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("[" * 100_000 + "]" * 100_000, "JSON is nested too deep"),
        ('{"input": "x", "output": "y", "meta": ' + '{"a":' * 200 + "1" + "}" * 201, "JSON is nested too deep"),
        ('{"input": "x", "output": "y", "meta": {"n": ' + "9" * 5000 + "}}", "an integer of more than 4,300 digits"),
        ('{"input": "x", "output": "y", "meta": {"n": NaN}}', "field 'meta.n' is not a number or infinite"),
        ('{"input": "x", "output": "y", "meta": {"n": [-Infinity]}}', "field 'meta.n' is not a number or infinite"),
        ('{"input": "x", "output": NaN}', "field 'output' is nan, a number, not a text"),
        ('{"input": "x", "output": "y", "input": "z"}', "the field 'input' stands twice in one object"),
        ('{"input": {"a": "x", "a": "z"}, "output": "y"}', "the field 'a' stands twice in one object"),
        ('{"input": {"caf\\u00e9": "x", "cafe\\u0301": "z"}, "output": "y"}', "two fields of an input have one name"),
        ('{"input": {"a\\ud800": "x"}, "output": "y"}', "holds half a surrogate pair"),
        ('{"input": "x", "output": "y", "task": "\\ud800"}', "half of a surrogate pair .* in the task"),
        ('{"input": "x", "output": "y", "id": "\\ud800"}', "field 'meta.id' holds half a surrogate pair"),
        ('{"input": "x", "output": "y", "meta": {"\\udfff": 1}}', "field 'meta' holds half a surrogate pair"),
        ('{"input": "x", "output": "y", "meta": {"a": ["\\udfff"]}}', "field 'meta.a': half of a surrogate pair"),
        ('{"input": "x", "output": "y", "choices": ["y", "\\udfff"]}', "field 'choices' holds half a surrogate pair"),
        ('{"input": "x", "output": "' + "9" * 5000 + '", "choices": ["y", "z"]}', "and there are 2 choices from 0"),
        ('{"input": "x", "output": "\\u200b\\ufeff"}', "field 'output' is empty"),
        ('{"input": "x\0y", "output": "y"}', "not JSON"),
        ('{"id": "a", "input": "x", "output": "y", "task": "t", "choices": [], "meta": {"a": "\\udfff"}}', "surrogate"),
        ('{"id": "\\udfff", "input": "x", "output": "y", "task": "t", "choices": [], "meta": {}}', "surrogate"),
        ('{"id": "a", "input": "x", "output": "y", "task": "\\udfff", "choices": [], "meta": {}}', "surrogate"),
    ],
)
def test_a_hostile_row_is_one_line_that_names_its_place(tmp_path: Path, line: str, told: str) -> None:
    text = refusal(raw(tmp_path / "h.jsonl", line))
    assert text.startswith(f"{tmp_path / 'h.jsonl'}, line 2: ")
    assert re.search(told, text), text
    assert len(text) < 400
    text.encode()


def test_what_is_odd_in_a_column_that_nobody_reads_does_no_harm(tmp_path: Path) -> None:
    path = raw(tmp_path / "x.jsonl", '{"input": "x", "output": "y", "score": NaN, "other": "\\ud800"}')
    assert len(read_examples(path)) == 2


def test_nul_bytes_and_every_line_break_of_unicode_stand_inside_texts(tmp_path: Path) -> None:
    text = "a\0b\u2028c\u2029d\u0085e\x0bf\x0cg\x1ch"
    row = {"input": text, "output": "y"}
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(row, ensure_ascii=False), encoding="utf-8", newline="")  # C0 controls are escaped
    assert read_examples(path)[0].input == text
    assert read_examples(write(tmp_path / "x.csv", [row]))[0].input == text
    assert read_examples(write(tmp_path / "x.parquet", [row]))[0].input == text


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "tsv"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_a_file_in_wide_characters_is_read(tmp_path: Path, ending: str, encoding: str) -> None:
    path = write(tmp_path / f"w.{ending}", [FINE])
    path.write_bytes(path.read_text().encode(encoding))
    assert read_examples(path) == [Example("fine", "fine")]


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"\x1f\x8b\x08\x00rest", "cannot be unpacked"),
        (b"\x28\xb5\x2f\xfdrest", "cannot be unpacked"),
        (b"PK\x03\x04\xff", "zip archive or a spreadsheet"),
        (b"PAR1\xff", "it is a Parquet file"),
        (b"SQLite format 3\0\xff", "perhaps a pool"),
    ],
)
def test_a_file_of_another_kind_under_a_text_s_name_is_told_apart(tmp_path: Path, data: bytes, told: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(data)
    assert told in refusal(path)


def test_lines_that_end_with_carriage_returns_alone_are_read_in_tables_and_named_in_json(tmp_path: Path) -> None:
    path = tmp_path / "mac.csv"
    path.write_bytes(b'input,output\rone,a\r"two\rlines",b\r')
    assert [(e.input, e.output) for e in read_examples(path)] == [("one", "a"), ("two\nlines", "b")]
    path = tmp_path / "mac.jsonl"
    path.write_bytes((json.dumps(FINE) + "\r" + json.dumps(FINE) + "\r").encode())
    assert "carriage returns alone" in refusal(path)


def test_a_carriage_return_in_a_cell_is_a_line_break_and_outside_quotes_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(b'input,output\n"one\rtwo",a\nthree,b\n')
    assert [e.input for e in read_examples(path)] == ["one\ntwo", "three"]
    path.write_bytes(b"input,output\none\rtwo,a\n")
    assert "a field with a line break in it is quoted" in refusal(path)


@pytest.mark.parametrize(
    "metadata",
    [b"{not json", b"[]", b"5", b"", b"\xff", b'{"info": []}', b'{"info": {"features": [1]}}',
     b'{"info": {"features": {"input": 5, "output": {"_type": "ClassLabel", "names": 5}}}}',
     b'{"info": {"features": {"output": {"_type": "ClassLabel"}}}}',
     b'{"info": {"features": {"output": {"_type": "ClassLabel", "names": [1]}}}}'],
)  # fmt: skip
def test_metadata_of_parquet_that_makes_no_sense_is_passed_over(tmp_path: Path, metadata: bytes) -> None:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.Table.from_pylist([FINE]).replace_schema_metadata({b"huggingface": metadata})
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    assert read_examples(tmp_path / "x.parquet") == [Example("fine", "fine")]


def test_parquet_that_holds_no_text_is_one_line(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "x.parquet"
    broken = pyarrow.Array.from_buffers(
        pyarrow.string(), 1, [None, pyarrow.py_buffer(b"\0\0\0\0\1\0\0\0"), pyarrow.py_buffer(b"\xff")]
    )
    pyarrow.parquet.write_table(pyarrow.table({"input": broken, "output": ["y"]}), path)
    assert "cannot be read as Parquet" in refusal(path)
    twice = pyarrow.Table.from_arrays([pyarrow.array(["a"])] * 3, names=["input", "output", "input"])
    pyarrow.parquet.write_table(twice, path)
    assert "the column 'input' is there twice" in refusal(path)


@pytest.mark.parametrize("name", ["x" * 300 + ".jsonl", "nul\0byte.jsonl"])
def test_a_name_that_no_file_can_have_is_no_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="no file"):
        read_examples(tmp_path / name)
    with pytest.raises(DataError, match="cannot read"):
        read_queries(tmp_path / name.removesuffix(".jsonl"))
    with pytest.raises((DataError, UsageError), match=r"no (folder or file|task)"):
        load_task(str(tmp_path / name))


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet"])
def test_a_pipe_is_read_once(tmp_path: Path, ending: str) -> None:
    data = write(tmp_path / f"rows.{ending}", ROWS).read_bytes()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(data))
    writer.start()
    examples = read_examples(pipe, format=ending)
    writer.join()
    assert examples == [Example(r["input"], r["output"]) for r in ROWS]


def test_several_columns_whose_paths_end_alike_keep_their_whole_names(tmp_path: Path) -> None:
    row = {"a": {"text": "x"}, "b": {"text": "z"}, "c": {"other": "w"}, "output": "y"}
    (example,) = read_examples(write(tmp_path / "n.jsonl", [row]), input=["a.text", "b.text", "c.other"])
    assert example.input == {"a.text": "x", "b.text": "z", "other": "w"}


def test_label_names_and_label_cells_may_have_white_space_around_them(tmp_path: Path) -> None:
    rows = [{"input": "x", "output": " 1 "}, {"input": "z", "output": "caf\u00e9 "}]
    examples = read_examples(write(tmp_path / "l.csv", rows), label_names={"1": "bar ", "0": "cafe\u0301"})
    assert [e.output for e in examples] == ["bar", "caf\u00e9"]


# --- queries --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "tsv", "parquet"])
def test_queries_are_read_from_every_format(tmp_path: Path, ending: str) -> None:
    queries = read_queries(
        write(tmp_path / f"q.{ending}", [{"input": "red", "id": "q1"}, {"input": "blue", "id": "q2"}])
    )
    assert queries == [Query("red", id="q1"), Query("blue", id="q2")]


def test_queries_stand_one_a_line_in_other_files_and_only_newlines_end_lines(tmp_path: Path) -> None:
    path = tmp_path / "q.txt"
    path.write_text("\ufeffred\u2028fish\r\n\n {dog} \n", encoding="utf-8", newline="")
    assert [q.input for q in read_queries(path)] == ["red\u2028fish", "{dog}"]


def test_queries_that_are_there_twice_are_two_queries(tmp_path: Path) -> None:
    rows = [
        {"input": "x"},
        {"input": "x "},
        {"input": "y", "id": "a"},
        {"input": "z", "id": "a"},
        {"input": "w", "id": None},
    ]
    path = write(tmp_path / "q.jsonl", rows)
    same = Query("x").id
    assert [q.id for q in read_queries(path)] == [same, f"{same}#2", "a", "a#2", Query("w").id]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"a": "x", "b": "y"}, "line 1: no field 'input'; the row has: a, b. Name the field with --input"),
        ({"input": [5]}, r"line 1: field 'input' is \[5\], a list"),
        ({"input": {"a": [5]}}, r"line 1: field 'input.a' is \[5\]"),
        ({"input": ""}, "line 1: field 'input' is empty"),
        ({"input": "x", "choices": "ab"}, "line 1: field 'choices' is a text; choices are a list of texts"),
    ],
)
def test_a_row_that_is_no_query_is_named(tmp_path: Path, row: dict[str, object], told: str) -> None:
    with pytest.raises(DataError, match=told):
        read_queries(write(tmp_path / "q.jsonl", [row]))
