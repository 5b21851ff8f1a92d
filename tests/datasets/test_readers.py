"""Files to examples: every format reads the same rows, and everything that is wrong is named in one line."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iclkit.datasets import read_examples
from iclkit.errors import DataError, UsageError
from iclkit.records import Example, clean_text
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
    path = write(tmp_path / "w.jsonl", [{"text": "x", "label": "y"}])
    said = refusal(path, output="label")
    assert "no field 'input'; the row has: text, label. Name the field with --input (iclkit pool add)" in said
    assert said.endswith("or input= (load_task), or rename it")
    assert "no field 'lable'; the row has: text, label. Did you mean 'label'?" in refusal(
        path, input="text", output="lable"
    )


@pytest.mark.parametrize("side", [{}, {"id": "r-1"}, {"idx": 3, "meta": {}}])
def test_two_columns_of_which_one_is_an_answer_need_no_naming(tmp_path: Path, side: dict[str, object]) -> None:
    (example,) = read_examples(write(tmp_path / "two.jsonl", [{**side, "label": "y", "text": "x"}]))
    assert (example.input, example.output) == ("x", "y")


@pytest.mark.parametrize(
    "row", [{"a": "x", "b": "y"}, {"label": "x", "answer": "y"}, {"q": "x", "context": "c", "answer": "y"}]
)
def test_columns_are_not_guessed_where_more_than_one_reading_is_possible(tmp_path: Path, row: dict[str, str]) -> None:
    assert f"no field 'input'; the row has: {', '.join(row)}" in refusal(write(tmp_path / "g.jsonl", [row]))


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
        ({"input": "x", "output": 5}, "field 'output' is 5, a number, not a text; write it in quotes"),
        ({"input": "x", "output": None}, "field 'output' is None, nothing (null), not a text"),
        ({"input": ["x"], "output": "y"}, "field 'input' is ['x'], a list, not a text"),
        ({"input": {"a": 1}, "output": "y"}, "field 'input.a' is 1, a number"),
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
    assert "iconv -f CP1252" in told
    path.write_bytes("input,output\nx,y\n".encode("utf-16"))
    assert "iconv -f UTF-16" in refusal(path)


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
