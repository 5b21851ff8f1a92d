"""A task as a file: written, read, edited; the same task as the options that made it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iclkit.datasets import TaskFile, check_task, load_task, make_task, record_task
from iclkit.datasets._task_file import Source, Words
from iclkit.errors import DataError, UnknownName, UsageError
from iclkit.pool import Pool
from iclkit.prompts import Template
from iclkit.records import Example


@pytest.fixture
def tickets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "tickets.csv"
    lines = [f"ticket {n} about {n % 7};{['billing', 'delivery'][n % 2]};c{n // 4}" for n in range(40)]
    path.write_text("ticket_text;team;customer\n" + "\n".join(lines) + "\n")
    return path


def options(path: Path, **more: object) -> TaskFile:
    return TaskFile(source=Source(train=str(path))).with_options(input=("ticket_text",), output="team", **more)


def test_what_is_written_reads_back_as_the_same_task(tickets: Path, tmp_path: Path) -> None:
    found, task = record_task(options(tickets, test_size=0.2, system="Be brief.", name="tickets"))
    found.write(tmp_path / "tickets.toml")
    again = load_task("tickets")
    assert again.hash == task.hash
    assert (again.train, again.test, again.labels) == (task.train, task.test, ("billing", "delivery"))
    assert TaskFile.read(tmp_path / "tickets.toml").split == found.split
    assert again.template.instruction == "Be brief."


def test_a_task_file_can_be_moved_with_its_rows_and_read_from_elsewhere(
    tickets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record_task(options(tickets))[0].write(tmp_path / "tickets.toml")
    (tmp_path / "moved").mkdir()
    for name in ("tickets.csv", "tickets.toml"):
        (tmp_path / name).rename(tmp_path / "moved" / name)
    monkeypatch.chdir("/")
    assert len(load_task(tmp_path / "moved" / "tickets.toml").test) == 8


def test_rows_of_one_customer_stay_on_one_side(tickets: Path) -> None:
    task = load_task(options(tickets, test_size=10, split_by="customer"))
    customers = [{e.meta["customer"] for e in rows} for rows in (task.train, task.test)]
    assert not customers[0] & customers[1]
    with pytest.raises(DataError, match="no field 'client'"):
        load_task(options(tickets, split_by="client"))


def test_a_note_says_when_the_data_have_changed_since_the_split_was_drawn(tickets: Path, tmp_path: Path) -> None:
    record_task(options(tickets))[0].write(tmp_path / "tickets.toml")
    assert not any("have changed" in note for note in load_task("tickets").notes)
    tickets.write_text(tickets.read_text() + "one more;billing;c99\n")
    assert any("its data have changed since it was made" in note for note in load_task("tickets").notes)


def test_a_column_that_says_train_and_test_is_followed(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    rows = "".join(f"row {n},{n % 2},{'test' if n > 7 else 'train'}\n" for n in range(10))
    path.write_text("text,label,split\n" + rows)
    task = load_task(path)
    assert (len(task.train), len(task.test)) == (8, 2)
    assert any("split as its column 'split' says" in note for note in task.notes)


def test_a_pool_is_a_task_and_what_a_model_wrote_is_no_test_row(tmp_path: Path) -> None:
    path = tmp_path / "tk.db"
    with Pool.open(path) as pool:
        pool.add(Example(f"row {n}", "ab"[n % 2]) for n in range(20))
        pool.add(Example(f"made {n}", "ab"[n % 2], meta={"generated": "labels"}) for n in range(20))
    task = load_task(path)
    assert (task.name, task.kind, len(task.train), len(task.test)) == ("tk", "classification", 32, 8)
    assert not any("generated" in e.meta for e in task.test)


def test_a_template_of_flags_stands_over_that_of_the_file_and_keeps_its_system_text(tickets: Path) -> None:
    described = options(tickets, system="Be brief.")
    task = load_task(described.with_options(template=Template(demo="{input} -> {output}")))
    assert (task.template.demo, task.template.instruction) == ("{input} -> {output}", "Be brief.")
    chat = Words(demo="{input} -> {output}", system="Be brief.", chat=True).template(Template())
    assert (chat.system, chat.instruction) == ("Be brief.", "")


texts = st.text(st.characters(exclude_categories=["Cs"]))
one_line = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1)


@settings(deadline=None, max_examples=60)
@given(name=one_line, system=texts, labels=st.lists(one_line), names=st.dictionaries(one_line, texts, max_size=3))
def test_any_text_survives_the_way_through_toml(
    name: str, system: str, labels: list[str], names: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    task = TaskFile(name, labels=tuple(labels), source=Source(train="/x/rows.csv")).with_options(
        system=system, label_names=names
    )
    assert TaskFile.parse(task.text(), "text") == task


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("kind = ", "is not TOML"),
        ("kind = 5\n[source]\ntrain = 'x'", "kind should be a text, and is 5"),
        ("[source]\ntrain = 'x'\nfiel = 'y'", "source.fiel should be absent"),
        ("name = 'x'", "source.train is missing"),
        ("[source]\ntrain = 'x.csv'\n[split]\ntest_size = -1", "test_size is -1"),
    ],
)
def test_what_is_wrong_in_a_task_file_is_named_in_one_line(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "t.toml"
    path.write_text(text)
    with pytest.raises((DataError, UsageError), match=told) as caught:
        load_task(path)
    assert "\n" not in str(caught.value)


def test_an_option_that_there_is_not_is_named(tickets: Path) -> None:
    with pytest.raises(UnknownName, match="no option of a task named 'inputs'"):
        load_task(tickets, inputs="x")
    with pytest.raises(DataError, match="no task file nothing\\.toml; make one with: iclkit task new nothing FILE"):
        load_task("nothing.toml")


# --- looking for trouble --------------------------------------------------------------------------------------------


def row(text: str, output: str = "a", choices: tuple[str, ...] = ()) -> Example:
    return Example(text, output, choices=choices)


PLAIN = [row(f"{word} {n}", "ab"[n % 2]) for n, word in enumerate(["one", "two", "three", "four", "five", "six"] * 3)]
LONG = "the parcel was promised for monday and then for tuesday and nobody has been able to tell me where it is now, "
LONG += "although I have called the hotline four times and written two letters to the head office in the meantime"


@pytest.mark.parametrize(
    ("train", "test", "kind"),
    [
        ([row("Un café, s'il vous plaît")], [row("un cafe s’il vous plait!")], "leak"),
        ([row("Which?", "x", ("x", "y", "z"))] * 2, [row("Which?", "x", ("z", "x", "y"))], "leak"),
        ([row(LONG)], [row(LONG.replace("hotline", "hot line"))], "near-leak"),
        ([row("Hello there"), row("hello  there!")], [row("x")], "double"),
        ([row(LONG), row(LONG.replace("hotline", "hot line"))], [row("x")], "near-double"),
        ([row("same", "a"), row("same", "b")], [row("x")], "contradiction"),
        ([row("q", "Crédit"), row("r", "credit")], [row("x", "credit")], "label-spelling"),
        ([row("q", "rare")], [row("x")], "rare-label"),
        ([], [row(f"x{n}") for n in range(9)], "imbalance"),
        ([], [row("x", "?!")], "empty-output"),
        ([], [row("x", "N/A")], "empty-output"),
    ],
)
def test_trouble_is_found_by_kind_and_named(train: list[Example], test: list[Example], kind: str) -> None:
    choices = bool(test[0].choices)
    rows = [*train] if choices else [*PLAIN, *train]
    of = "multiple_choice" if choices else "generation" if kind == "empty-output" else "classification"
    labels = None if choices else sorted({e.output for e in (*rows, *test)})
    task = make_task("t", rows, test, kind=of, labels=labels if of == "classification" else None)
    found = {f.kind: f for f in check_task(task)}
    assert kind in found
    assert found[kind].count >= 1
    assert "\n" not in found[kind].text


def test_a_sound_task_has_no_findings_and_long_rows_are_found_with_a_context() -> None:
    task = make_task("t", PLAIN, [row(f"quite new {n}", "ab"[n % 2]) for n in range(6)])
    assert check_task(task) == []
    assert [f.kind for f in check_task(task, len, 30)] == ["too-long"]
    json.dumps([f.text for f in check_task(task, len, 30)])
