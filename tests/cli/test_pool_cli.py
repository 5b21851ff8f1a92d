"""``iclkit pool``: every command, and each bad input as one clear line that changes nothing."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from iclkit.cli import main
from iclkit.embed import CutTexts
from iclkit.pool import FieldKey, Pool
from iclkit.records import Example
from iclkit.testing import HashEmbedder

ROWS = [{"input": f"question {i}", "output": ["yes", "no"][i % 2]} for i in range(6)]


@pytest.fixture(autouse=True)
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iclkit.embed.load_embedder", lambda name, **_: HashEmbedder())


@pytest.fixture
def iclkit(capsys: pytest.CaptureFixture[str]):
    """Run a command; its exit code, stdout and stderr."""

    def run(*words: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main(["pool", *map(str, words)])
        out, err = capsys.readouterr()
        return stop.value.code, out, err

    return run


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in ROWS))
    return path


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    with Pool.open(tmp_path / "demos.db") as store:
        store.add(Example(r["input"], r["output"], "quiz", meta={"n": i}) for i, r in enumerate(ROWS))
        store.add([Example("Question 0!", "yes", "quiz"), Example("question 00", "yes", "quiz")])
    return tmp_path / "demos.db"


def test_add_makes_the_pool_and_adding_again_adds_nothing(iclkit, tmp_path, rows):
    path = tmp_path / "new.db"
    assert iclkit("add", path, rows, "--task-name", "quiz", "--meta", "source=web")[:2] == (
        0,
        f"added 6 examples; {path} holds 6\n",
    )
    _, out, _ = iclkit("add", path, rows, "--task-name", "quiz", "--json")
    assert json.loads(out) == {"added": 0, "known": 6, "revived": 0, "examples": 6}
    with Pool.open(path) as store:
        assert {(e.task, e.meta["source"]) for e in store} == {("quiz", "web")}


def test_add_takes_columns_by_name(iclkit, tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("premise,claim,verdict,split\nIt rains,It is wet,yes,a\n")
    code, *_ = iclkit(
        "add",
        tmp_path / "p.db",
        table,
        "--input",
        "premise",
        "--input",
        "claim",
        "--output",
        "verdict",
        "--keep",
        "split",
    )
    assert code == 0
    with Pool.open(tmp_path / "p.db") as store:
        (example,) = store
    assert example.input == {"premise": "It rains", "claim": "It is wet"}
    assert (example.output, example.meta["split"]) == ("yes", "a")


def test_ls_lists_and_filters(iclkit, pool):
    code, out, err = iclkit("ls", pool, "-n", "2")
    assert (code, err) == (0, "2 of 8 examples\n")
    assert "question 0" in out
    assert len(out.splitlines()) == 3
    found = json.loads(iclkit("ls", pool, "--where", "n=3", "--json")[1])
    assert [e["input"] for e in found] == ["question 3"]
    assert len(json.loads(iclkit("ls", pool, "--json")[1])) == 8
    assert json.loads(iclkit("ls", pool, "--task-name", "none", "--json")[1]) == []


def test_show_takes_the_beginning_of_an_id(iclkit, pool):
    with Pool.open(pool) as store:
        example = store.get(store.ids[2])
        store.embed(HashEmbedder())
    code, out, _ = iclkit("show", pool, example.id[:10], "--json")
    assert code == 0
    assert json.loads(out) == {
        "id": example.id, "input": "question 2", "output": "yes", "task": "quiz", "choices": [], "meta": {"n": 2},
        "embedded": ["hash"], "keys": {},
    }  # fmt: skip
    assert "input: question 2" in iclkit("show", pool, example.id)[1]


def test_show_prints_the_keys_an_example_is_searched_by(iclkit, tmp_path):
    with Pool.open(tmp_path / "p.db") as store:
        store.add([Example({"question": "how many?", "table": "rivers"}, "3")])
        store.view().keys(FieldKey("table"))
        (example_id,) = store.ids
    code, out, _ = iclkit("show", tmp_path / "p.db", example_id)
    assert code == 0
    assert "keys by field:table: rivers" in out
    assert json.loads(iclkit("show", tmp_path / "p.db", example_id, "--json")[1])["keys"] == {"field:table": ["rivers"]}


def test_rm_takes_ids_or_conditions(iclkit, pool):
    with Pool.open(pool) as store:
        first, second = store.ids[:2]
    assert json.loads(iclkit("rm", pool, first[:12], "--dry-run", "--json")[1])["removed"] == 0
    assert iclkit("rm", pool, first[:12], second)[1] == f"removed 2 examples; {pool} holds 6\n"
    assert json.loads(iclkit("rm", pool, "--where", "n=4", "--json")[1])["examples"] == 5


def test_dedupe_shows_what_it_removes(iclkit, pool):
    code, out, _ = iclkit("dedupe", pool, "--near", "0.7", "--dry-run")
    assert code == 0
    assert "would remove 2 duplicates" in out
    assert json.loads(iclkit("dedupe", pool, "--json")[1])["removed"] == 1
    assert json.loads(iclkit("dedupe", pool, "--near", "--json")[1])["removed"] == 0  # 0.8 when not said
    assert json.loads(iclkit("dedupe", pool, "--near", "0.7", "--json")[1])["examples"] == 6


def test_embed_says_what_was_too_long_once_at_the_end(iclkit, pool, monkeypatch):
    class Short(HashEmbedder):
        cut_texts = CutTexts(4)

        def encode_documents(self, texts, progress=None):
            self.cut_texts.look(texts, lambda some: [len(t.split()) * 3 for t in some])
            return super().encode_documents(texts, progress)

    monkeypatch.setattr("iclkit.embed.load_embedder", lambda name, **_: Short())
    name = HashEmbedder().name
    expected = (
        f"note: {name} reads the first 4 tokens of a text; 8 texts are longer (the longest: 6 tokens), and the rest is "
        f"ignored\n"
    )
    assert iclkit("embed", pool)[2].endswith(expected)
    Short.cut_texts.clear()
    assert "ignored" not in iclkit("embed", pool)[2]  # nothing was read


def test_stats_embed_check_export(iclkit, pool, tmp_path):
    assert json.loads(iclkit("embed", pool, "--json")[1])["embedded"] == 8
    assert iclkit("embed", pool)[1].startswith("embedded 0 texts; all 8 examples")
    found = json.loads(iclkit("stats", pool, "--json")[1])
    assert (found["examples"], found["tasks"], list(found["vectors"].values())) == (8, {"quiz": 8}, [8])
    assert "outputs: yes" in iclkit("stats", pool)[1]
    assert iclkit("check", pool) == (0, "", "no problems\n")
    assert iclkit("export", pool, tmp_path / "out.csv")[1] == f"wrote 8 examples to {tmp_path / 'out.csv'}\n"
    code, out, _ = iclkit("export", pool, "-")
    assert code == 0
    assert len([json.loads(line) for line in out.splitlines()]) == 8


def test_check_prints_problems_and_fails(iclkit, pool):
    with Pool.open(pool) as store:
        store.add([Example("question 1", "yes", "quiz")])
    code, out, err = iclkit("check", pool)
    assert code == 1
    assert "stands with 2 outputs: 'no' and 'yes'" in out
    assert err == f"error: {pool} has 1 problem\n"


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["ls", "{tmp}/none.db"], 1, "iclkit pool add"),
        (["ls", "{rows}"], 1, "not an SQLite file"),
        (["ls", "{foreign}"], 1, "not a pool"),
        (["ls", "{newer}"], 1, "newer iclkit"),
        (["embed", "{newer}"], 1, "upgrade iclkit"),
        (["show", "{pool}", "zzz"], 1, "no example 'zzz'"),
        (["rm", "{pool}", "zzz"], 1, "no example 'zzz'"),
        (["rm", "{pool}"], 2, "say what to remove"),
        (["ls", "{pool}", "--where", "n"], 2, "is not KEY=VALUE"),
        (["add", "{pool}", "{rows}", "--meta", "x"], 2, "is not KEY=VALUE"),
        (["add", "{pool}", "{tmp}/none.jsonl"], 1, "no file"),
        (["add", "{pool}", "{rows}", "--input", "question"], 1, "question"),
        (["add", "{pool}", "{broken}"], 1, "line 17"),
        (["add", "{pool}", "{rows}", "{broken}"], 1, "line 17"),
        (["dedupe", "{pool}", "--near", "2"], 2, "above 0"),
        (["export", "{pool}", "{tmp}/out.xlsx"], 2, "no export format named 'xlsx'"),
        (["export", "{pool}", "{tmp}/no/out.csv"], 1, "cannot write"),
        (["export", "{pool}", "{tmp}"], 1, "is a folder"),
        (["lss", "{pool}"], 2, "lss"),
    ],
)
def test_bad_input_is_one_line_and_changes_nothing(iclkit, tmp_path, rows, pool, words, code, text):
    broken, foreign, newer = tmp_path / "broken.jsonl", tmp_path / "foreign.db", tmp_path / "newer.db"
    broken.write_text("".join(json.dumps({"input": f"new {i}", "output": "x"}) + "\n" for i in range(16)) + "{oops\n")
    with closing(sqlite3.connect(foreign)) as raw:
        raw.execute("CREATE TABLE mine (x)")
    Pool.open(newer).close()
    with closing(sqlite3.connect(newer)) as raw:
        raw.execute("PRAGMA user_version = 999")
    before = {f.name: f.read_bytes() for f in tmp_path.iterdir()}
    names = {"tmp": tmp_path, "rows": rows, "pool": pool, "broken": broken, "foreign": foreign, "newer": newer}
    got, out, err = iclkit(*(w.format(**names) for w in words))
    assert (got, out) == (code, "")
    assert err.startswith("error: ")
    assert text in err
    assert err.count("\n") == 1
    after = {f.name: f.read_bytes() for f in tmp_path.iterdir() if not f.name.endswith(("-wal", "-shm"))}
    assert after == before


def test_index_is_built_shown_and_removed(iclkit, tmp_path):
    path = tmp_path / "large.db"
    with Pool.open(path) as store:
        store.add(Example(f"ticket {n % 23} about parcel {n}", "xy"[n % 2]) for n in range(300))
    assert "looks at all 300 examples" in iclkit("index", path)[1]  # few: no index by itself
    built = json.loads(iclkit("index", path, "--kind", "ivf", "--lists", "10", "--json")[1])["index"]
    assert (built["lists"], built["rows"], [level["k"] for level in built["levels"]]) == (10, 300, [10, 100])
    assert "recall@10" in iclkit("stats", path)[1]
    (file,) = tmp_path.glob("*.lists")
    file.write_bytes(file.read_bytes()[:-1])
    code, out, err = iclkit("embed", path)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "is damaged; make it again: iclkit pool index" in err
    assert "approximate index of 10 lists" in iclkit("index", path, "--kind", "ivf", "--lists", "10")[1]
    assert iclkit("index", path, "--kind", "exact")[1].endswith("the approximate index is gone\n")
    assert "recall" not in iclkit("stats", path)[1]
    assert iclkit("index", path, "--kind", "ivf", "--recall", "2")[0] == 2
