"""Python as people write it: plain values where plain values are meant, and the guide's blocks run as they stand."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import pytest

import iclkit
from iclkit.errors import DataError, IclkitError, UsageError
from iclkit.pool import Pool
from iclkit.prompts import Template
from iclkit.records import Example, Prompt, Query
from iclkit.report import leaderboard
from iclkit.selectors import Kit, make_selector
from iclkit.testing import FakeLM, HashEmbedder

GUIDE = Path(__file__).parent.parent / "docs" / "guides" / "put-it-live.md"
ROWS = [{"text": "my parcel is late", "team": "delivery"}, {"text": "charged twice", "team": "billing"}] * 4
ROWS = [{**row, "text": f"{row['text']} {n}"} for n, row in enumerate(ROWS)]
TICKETS = "ticket_text,team\n" + "".join(f"{r['text']},{r['team']}\n" for r in ROWS)


def test_the_python_of_the_guide_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", GUIDE.read_text(), re.M | re.S)
    assert len(blocks) == 3
    names: dict[str, object] = {}
    exec("\n".join(blocks), names)
    assert names["messages"][-1]["content"].startswith("Input: my parcel is late\n")
    assert "delivery" in capsys.readouterr().out


def _tables():
    import pandas as pd
    import pyarrow as pa
    from datasets import ClassLabel, Dataset, Features, Value

    yield "dicts", ROWS
    yield "pandas", pd.DataFrame(ROWS)
    yield "arrow", pa.Table.from_pylist(ROWS)
    yield "datasets", Dataset.from_list(ROWS)
    features = Features({"text": Value("string"), "team": ClassLabel(names=["delivery", "billing"])})
    numbered = [{**r, "team": ["delivery", "billing"].index(r["team"])} for r in ROWS]
    yield "classes", Dataset.from_list(numbered, features=features)


def test_a_pool_is_made_of_whatever_holds_rows() -> None:
    expected = [Example(r["text"], r["team"]).id for r in ROWS]
    for name, table in _tables():
        assert [*Pool.of(table, input="text", output="team").ids] == expected, name
    assert [*Pool.of([(r["text"], r["team"]) for r in ROWS]).ids] == expected
    fields = Pool.of(ROWS, input=["text"], output="team").view().examples[0]
    assert fields.input == {"text": ROWS[0]["text"]}
    assert Pool.of([{"input": "x", "output": True}, {"input": "y", "output": 2}]).view().examples[0].output == "true"


@pytest.mark.parametrize(
    ("data", "kind", "said"),
    [
        ("tickets.csv", UsageError, "not of the text 'tickets.csv'"),
        (3, UsageError, "not of int"),
        ({"input": ["x"]}, UsageError, "not of dict"),
        ([3], UsageError, "row 1 is of type int; expected an Example"),
        (ROWS, DataError, "row 1 has no column 'input', it has: text, team; say which"),
        ([{"input": "x", "output": None}], DataError, "column 'output' is empty"),
        ([{"input": object(), "output": "x"}], DataError, "holds a object, which is no text"),
    ],
)
def test_what_is_no_examples_is_said_with_what_was_expected(data, kind, said) -> None:
    with pytest.raises(kind, match=re.escape(said)):
        make_selector("bm25").fit(data) if data is not ROWS else Pool.of(data)


def test_names_stand_for_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iclkit.embed._load.load_embedder", lambda name, **_: HashEmbedder())
    monkeypatch.setattr("iclkit.lm._load.load_lm", lambda name, **_: FakeLM())
    fitted = make_selector("knn").fit(
        [(r["text"], r["team"]) for r in ROWS], Kit(embedder="all-minilm-l6-v2", lm="some")
    )
    assert fitted.select("late parcel", 2).ids == asyncio.run(fitted.aselect("late parcel", 2)).ids
    with pytest.raises(UsageError, match="is no embedder: it lacks"):
        Kit(embedder=3)


def test_a_chooser_is_made_of_anything_and_shows_what_the_task_shows(tmp_path: Path) -> None:
    file = tmp_path / "tickets.csv"
    file.write_text(TICKETS)
    made = iclkit.chooser(str(file), input="ticket_text", output="team", selector="bm25", k=2)
    task = iclkit.load_task(str(file), input="ticket_text", output="team", need_test=False)
    for data in (task, Pool.of(task.train), Pool.of(task.train).view(), list(task.train)):
        same = iclkit.chooser(data, selector="bm25", k=2)
        assert same.messages("late parcel") == made.messages("late parcel")
    assert asyncio.run(made.amessages("late parcel")) == made.messages("late parcel")
    assert [m["role"] for m in made.messages("late parcel")] == ["user", "assistant"] * 2 + ["user"]
    assert made.messages("late")[-1]["content"].endswith("\nLabel:")
    told = iclkit.chooser(task, selector="bm25", k=0, template="One of: {labels}.\n\nT: {input}\nL: {output}")
    assert told.messages("late")[0] == {"role": "system", "content": "One of: billing, delivery."}
    assert "bm25" in repr(made)
    with Pool.open(tmp_path / "demos.db") as pool:
        pool.add(task.train)
        follows = iclkit.chooser(str(tmp_path / "demos.db"), selector="bm25", k=1, follow=True)
        pool.add([Example("unheard of thing", "billing")])
        assert follows.select("unheard of thing").examples[0].text == "unheard of thing"
    with pytest.raises(DataError, match="no examples"):
        iclkit.chooser(task, selector="bm25", where={"no": "such"})
    with pytest.raises(IclkitError, match="absent"):
        iclkit.chooser(tmp_path / "absent.csv")


EVIL = "<script>alert(1)</script>"


def test_kept_columns_are_metadata_that_filters_reach(tmp_path: Path) -> None:
    file = tmp_path / "tickets.csv"
    file.write_text("text,team,tenant\nlate,delivery,acme\nlate too,delivery,beta\n")
    rows = [{"text": "late", "team": "delivery", "tenant": "acme"}, {"text": "too", "team": "x", "tenant": "beta"}]
    for data in (file, rows):
        asked = iclkit.chooser(data, input="text", output="team", keep=["tenant"], selector="bm25", k=2)
        assert [e.meta["tenant"] for e in asked.select("late", where={"tenant": "beta"}).examples] == ["beta"]
    with pytest.raises(DataError, match="has no column 'owner'"):
        Pool.of(rows, input="text", output="team", keep=["owner"])


def test_notebooks_show_text_as_text(tmp_path: Path) -> None:
    pool = Pool.of([(EVIL, EVIL), ("x", "y")])
    selection = make_selector("bm25").fit(pool).select(EVIL, 2)
    plain = Prompt(EVIL)
    shown = iclkit.assemble(Template(chat=True, system=EVIL), Query(EVIL), selection.examples)
    task = iclkit.load_task("support", limit=4)
    run = iclkit.evaluate(task, "random", FakeLM(), k=1)
    board = leaderboard([run])
    for thing in (selection, plain, shown, board):
        html = thing._repr_html_()
        assert html.startswith("<")
        assert "<script" not in html
    assert "&lt;script&gt;" in shown._repr_html_()


def test_results_are_data_frames() -> None:
    selection = make_selector("bm25").fit([("red fish", "a"), ("blue bird", "b")]).select("red", 2)
    assert [*selection.to_pandas()["output"]] == ["a", "b"]
    run = iclkit.evaluate(iclkit.load_task("support", limit=4), "random", FakeLM(), k=1)
    assert len(run.to_pandas()) == 4
    assert "metric accuracy" in run.to_pandas().columns
    assert [*leaderboard([run]).to_pandas()["selector"]] == ["random"]


def test_metadata_is_changed_in_place() -> None:
    pool = Pool.of([Example("a", "x", meta={"attrs": {"tenant": "acme"}, "n": 1}), Example("b", "y")])
    ids = pool.ids
    before = pool.revision
    assert pool.annotate(ids, {"attrs.tenant": "beta"}, ["n"]) == 2
    assert json.loads(json.dumps([dict(e.meta) for e in pool])) == [
        {"attrs": {"tenant": "beta"}}, {"attrs.tenant": "beta"},
    ]  # fmt: skip
    assert (pool.ids, len(pool.view(where={"attrs.tenant": "beta"}))) == (ids, 2)
    assert pool.revision > before
    assert pool.annotate(ids, {"attrs.tenant": "beta"}) == 0
    with pytest.raises(DataError, match="no example"):
        pool.annotate([*ids, "zz"], {"n": 2})
    assert not len(pool.view(where={"n": 2}))
