from __future__ import annotations

import json
from pathlib import Path

import pytest

from iclkit.cli import main
from iclkit.cli._select import _rounded
from iclkit.errors import DataError
from iclkit.pool import Pool
from iclkit.records import Example, Query
from iclkit.selectors import BUILTINS, Kit, make_selector, selectors_table
from iclkit.testing import FakeLM, HashEmbedder

EXAMPLES = [
    Example("the red fish swims", "fish", meta={"lang": "en"}),
    Example("a dog {barks} loudly", "dog", meta={"lang": "en"}),
    Example("ein Hund bellt", "dog", meta={"lang": "de"}),
    Example("my blue fish", "fish", meta={"lang": "en"}),
]


@pytest.fixture(autouse=True)
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iclkit.embed.load_embedder", lambda *a, **k: HashEmbedder())
    monkeypatch.setattr("iclkit.models.resolve", lambda *a, **k: Path())
    monkeypatch.setattr("iclkit.lm.load_lm", lambda *a, **k: FakeLM(context_size=100))


@pytest.fixture
def pool(tmp_path: Path) -> str:
    with Pool.open(tmp_path / "demos.db") as store:
        store.add(EXAMPLES)
    return str(tmp_path / "demos.db")


@pytest.fixture
def iclkit(capsys: pytest.CaptureFixture[str]):
    """Run a command; its exit code, stdout and stderr."""

    def run(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main([*words])
        out, err = capsys.readouterr()
        return stop.value.code, out, err

    return run


def test_picks_are_printed_best_first(iclkit, pool):
    code, out, err = iclkit("select", pool, "red fish", "-s", "bm25", "-k", "2")
    assert code == 0
    assert err == ""
    assert out.splitlines()[0].strip() == "red fish"
    assert "the red fish swims" in out.splitlines()[2]
    assert "my blue fish" in out.splitlines()[3]


def test_json_is_one_list_of_picks_and_equals_the_library(iclkit, pool):
    code, out, _ = iclkit("select", pool, "red fish", "a dog", "--selector", "knn", "-f", "3", "--json")
    rows = json.loads(out)
    assert code == 0
    with Pool.open(pool) as store:
        knn = make_selector("knn").fit(store.view(), Kit(embedder=HashEmbedder()))
        expected = [(q.id, i) for q in (Query("red fish"), Query("a dog")) for i in knn.select(q, 3).ids]
    assert [(r["query"], r["id"]) for r in rows] == expected
    assert [r["rank"] for r in rows] == [1, 2, 3, 1, 2, 3]
    assert rows[0]["output"] == "fish"


def test_the_prompt_is_printed_as_the_lm_would_read_it(iclkit, pool):
    words = ("select", pool, "big {dog}", "-s", "bm25", "-k", "1", "--prompt")
    code, out, _ = iclkit(*words, "--template", r"Say what it is.\n\nText: {input}\nAnimal: {output}")
    assert code == 0
    assert out == "Say what it is.\n\nText: a dog {barks} loudly\nAnimal: dog\n\nText: big {dog}\nAnimal:\n"


def test_a_chat_prompt_needs_no_lm_and_with_one_shows_its_template(iclkit, pool):
    words = ("select", pool, "dog", "-s", "bm25", "-k", "1", "--prompt", "--chat")
    code, out, err = iclkit(*words)
    assert (code, err) == (0, "")
    assert out.startswith("[user]\nInput: ")
    code, out, _ = iclkit(*words, "--json")
    assert [m["role"] for m in json.loads(out)[0]["prompt"]["messages"]] == ["user", "assistant", "user"]
    code, out, _ = iclkit(*words, "--lm", "any")
    assert out.startswith("<|user|>\nInput: ")
    assert code == 0


def test_prompt_json_has_spans_picks_and_what_was_dropped(iclkit, tmp_path):
    with Pool.open(tmp_path / "big.db") as store:
        store.add(Example(f"fish number {n} in the long line", "fish") for n in range(30))
    code, out, err = iclkit(
        "select", str(tmp_path / "big.db"), "fish 3", "-s", "bm25", "-k", "max", "--lm", "x", "--prompt", "--json"
    )
    (answer,) = json.loads(out)
    assert code == 0
    assert len(answer["picks"]) == 30
    assert 0 < len(answer["prompt"]["shown"]) < 30
    assert len(answer["prompt"]["shown"]) + len(answer["prompt"]["dropped"]) == 30
    assert answer["prompt"]["tokens"] <= 100 - 64
    assert "are not shown: over the budget of 100 tokens" in err


def test_what_the_lm_will_be_asked_is_said_before_it_is_asked(iclkit, pool, monkeypatch):
    class Broken(FakeLM):
        def generate(self, requests, on_done=None):
            raise DataError("the LM was asked")

    monkeypatch.setattr("iclkit.lm.load_lm", lambda *a, **k: Broken(context_size=1000))
    code, out, err = iclkit("select", pool, "red fish", "-s", "skill-knn,rewrites=3", "--lm", "x", "-k", "1")
    assert (code, out) == (1, "")
    assert err.split("\n")[-3:-1] == ["the LM reads at most 15 texts (12 once, 3 per query)", "error: the LM was asked"]


def test_where_and_exclude_narrow_the_pool(iclkit, pool):
    _, out, err = iclkit("select", pool, "dog", "-s", "bm25", "-k", "4", "--where", "lang=de", "--json")
    assert [r["input"] for r in json.loads(out)] == ["ein Hund bellt"]
    assert "1 of 4 demonstrations" in err
    _, out, _ = iclkit("select", pool, "fish", "-s", "bm25", "-k", "4", "--exclude", EXAMPLES[0].id, "--json")
    assert EXAMPLES[0].id not in out


def test_queries_come_from_a_file_too(iclkit, pool, tmp_path):
    (tmp_path / "q.jsonl").write_text('{"input": "red fish", "id": "q1"}\n\n{"input": {"a": "dog"}}\n')
    (tmp_path / "q.txt").write_text("red fish\n{dog}\n")
    code, out, _ = iclkit("select", pool, "--queries", str(tmp_path / "q.jsonl"), "-s", "bm25", "-k", "1", "--json")
    rows = json.loads(out)
    assert code == 0
    assert [r["query"] for r in rows] == ["q1", Query({"a": "dog"}).id]
    _, out, _ = iclkit("select", pool, "--queries", str(tmp_path / "q.txt"), "-s", "bm25", "-k", "1", "--json")
    assert [r["output"] for r in json.loads(out)] == ["fish", "dog"]


def test_queries_that_are_there_twice_have_picks_of_their_own(iclkit, pool, tmp_path):
    (tmp_path / "q.jsonl").write_text('{"input": "red fish"}\n{"input": "red fish "}\n{"input": "a dog", "id": "d"}\n')
    words = ["select", pool, "a dog", "a dog", "--queries", str(tmp_path / "q.jsonl"), "-s", "bm25", "-k", "2"]
    code, out, _ = iclkit(*words, "--json")
    rows = json.loads(out)
    assert code == 0
    assert [len([r for r in rows if r["query"] == q]) for q in dict.fromkeys(r["query"] for r in rows)] == [2] * 5
    _, out, _ = iclkit(*words, "--prompt", "--json")
    made = json.loads(out)
    assert [len(m["picks"]) for m in made] == [2] * 5
    assert len({m["query"]["id"] for m in made}) == 5
    assert made[0]["picks"][0]["id"] == made[1]["picks"][0]["id"] == made[4]["picks"][0]["id"]


def test_named_fields_are_printed_as_the_text_they_are_searched_by(iclkit, tmp_path):
    with Pool.open(tmp_path / "pairs.db") as store:
        store.add([Example({"premise": "It  rains.", "hypothesis": "It is wet."}, "yes")])
    (tmp_path / "q.jsonl").write_text('{"input": {"premise": "It rains.", "hypothesis": "Dry."}}\n')
    code, out, _ = iclkit(
        "select", str(tmp_path / "pairs.db"), "--queries", str(tmp_path / "q.jsonl"), "-s", "knn", "-k", "1"
    )
    assert code == 0
    assert out.splitlines()[0].strip() == "Dry. It rains."
    assert "It is wet. It rains." in out.splitlines()[2]


def test_exclude_takes_the_beginning_of_an_id_and_names_one_that_is_not_there(iclkit, pool):
    short = EXAMPLES[0].id[:12]
    code, out, _ = iclkit("select", pool, "red fish", "-s", "bm25", "-k", "4", "--exclude", short, "--json")
    assert (code, EXAMPLES[0].id in out) == (0, False)
    code, _, err = iclkit("select", pool, "red fish", "-s", "bm25", "--exclude", "zz")
    assert (code, "no example 'zz'" in err) == (1, True)


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["-s", "mrm", "q"], 2, "no selector named 'mrm'. Did you mean 'mmr'?"),
        (["-s", "mmr,tradeoff=1", "q"], 2, "Did you mean 'trade_off'?"),
        (["-s", "mmr,trade_off=much", "q"], 2, "trade_off is much; give a number"),
        (["-s", "mmr,trade_off", "q"], 2, "is not key=value"),
        (["--order", "best", "q"], 2, "no order policy named 'best'"),
        (["-k", "-1", "q"], 2, "less than 0"),
        (["-k", "many", "q"], 2, "neither a number nor max"),
        (["-k", "max", "-s", "bm25", "q"], 2, "--lm"),
        ([], 2, "no query"),
        (["--where", "lang", "q"], 2, "not KEY=VALUE"),
        (["--template", "no fields", "q"], 2, "names its fields"),
        (["--queries", "absent.txt"], 1, "absent.txt"),
    ],
)
def test_bad_input_is_one_clear_line_and_the_right_exit_code(iclkit, pool, words, code, says):
    got, out, err = iclkit("select", pool, *words)
    assert (got, out) == (code, "")
    assert says in err
    assert len(err.splitlines()) == 1


def test_a_bad_line_of_queries_is_named(iclkit, pool, tmp_path):
    (tmp_path / "q.jsonl").write_text('{"input": "x"}\n{"text": "y"}\n')
    code, _, err = iclkit("select", pool, "--queries", str(tmp_path / "q.jsonl"))
    assert code == 1
    assert "q.jsonl, line 2: no field 'input'; the row has: text. Name the field with --input\n" in err
    (tmp_path / "q.jsonl").write_text("{oops\n")
    code, _, err = iclkit("select", pool, "--queries", str(tmp_path / "q.jsonl"))
    assert "line 1: not JSON" in err


def test_a_missing_and_an_empty_pool_are_told_apart(iclkit, tmp_path):
    code, _, err = iclkit("select", str(tmp_path / "none.db"), "q", "-s", "bm25")
    assert (code, "no pool at" in err) == (1, True)
    assert not (tmp_path / "none.db").exists()
    Pool.open(tmp_path / "empty.db").close()
    code, _, err = iclkit("select", str(tmp_path / "empty.db"), "q", "-s", "bm25")
    assert (code, "pool is empty" in err) == (1, True)


@pytest.mark.parametrize("typed", ["sst2/", "./sst2"])
def test_a_folder_named_like_a_set_of_the_catalogue_is_the_folder_where_its_name_says_so(
    iclkit, tmp_path, monkeypatch, typed
):
    (tmp_path / "sst2").mkdir()
    (tmp_path / "sst2" / "train.jsonl").write_text('{"input": "from the folder", "output": "a"}\n' * 2)
    monkeypatch.chdir(tmp_path)
    code, out, err = iclkit("select", typed, "from where", "-s", "bm25", "-k", "1")
    assert (code, "from the folder" in out) == (0, True), err


def test_selectors_ls_lists_every_built_in_with_needs_and_source(iclkit):
    code, out, _ = iclkit("selectors", "ls", "--json")
    rows = {r["name"]: r for r in json.loads(out)}
    assert code == 0
    assert {*BUILTINS} <= {*rows}
    assert rows["mmr"]["needs"] == ["embedder"]
    assert rows["mmr"]["settings"] == {"trade_off": 0.5, "candidates": 100}
    assert all(r["summary"] and r["source"] for r in rows.values())
    _, out, _ = iclkit("selectors", "ls")
    assert all(f"\n{name} " in out for name in BUILTINS)
    _, out, _ = iclkit("selectors", "ls", "--markdown")
    assert out.strip() == selectors_table()
    assert all(f"| `{name}` |" in out for name in BUILTINS)


def test_selectors_show_tells_all_about_one(iclkit):
    code, out, _ = iclkit("selectors", "show", "mmr")
    assert code == 0
    for said in ("Carbonell", "Use it where", "Cost:", "--selector mmr,trade_off=0.3", "a number from 0 to 1"):
        assert said in out
    code, out, _ = iclkit("selectors", "show", "mmr", "--json")
    about = json.loads(out)
    assert about["settings"][0] == {
        "name": "trade_off",
        "default": 0.5,
        "meaning": "1: relevance only (knn), 0: diversity only",
        "allowed": "a number from 0 to 1",
    }
    code, _, err = iclkit("selectors", "show", "mrm")
    assert (code, "Did you mean 'mmr'" in err) == (2, True)
    assert "It has no settings." in iclkit("selectors", "show", "zero")[1]


def test_small_scores_are_not_printed_as_zero():
    assert [_rounded(s) for s in (0.12345678, -12.3456789, 3.21e-7, 0.0123456789, 0.0)] == [
        0.123457, -12.345679, 3.21e-7, 0.0123457, 0.0,
    ]  # fmt: skip


def test_a_selector_is_kept_and_asked_again_without_its_pool_or_settings(iclkit, pool, tmp_path):
    kept = str(tmp_path / "kept")
    words = ("-s", "mmr,trade_off=0.3", "-k", "2", "--template", r"Text: {input}\nAnimal: {output}")
    code, before, err = iclkit("select", pool, "red fish", *words, "--prompt", "--save", kept, "--with-pool")
    assert (code, f"kept in {kept}" in err) == (0, True)
    Path(pool).unlink()
    code, after, _ = iclkit("select", kept, "red fish", "--prompt")
    assert (code, after) == (0, before)
    _, filtered, _ = iclkit("select", kept, "red fish", "-k", "3", "--where", "lang=de", "--json")
    assert [r["input"] for r in json.loads(filtered)] == ["ein Hund bellt"]
    code, _, err = iclkit("select", kept, "red fish", "--seed", "3")
    assert (code, "was kept with its own --seed" in err) == (2, True)


def test_keeping_needs_no_query_and_what_cannot_be_kept_is_said(iclkit, pool, tmp_path):
    kept = str(tmp_path / "kept")
    assert iclkit("select", pool, "-s", "bm25", "--save", kept)[:2] == (0, "")
    Pool.open(pool).add([Example("red fish red fish", "fish")])
    code, _, err = iclkit("select", kept, "red fish")
    assert (code, "has changed since" in err, "--follow" in err) == (1, True, True)
    code, out, _ = iclkit("select", kept, "red fish", "--follow", "--json")
    assert (code, json.loads(out)[0]["input"]) == (0, "red fish red fish")
    assert iclkit("select", pool, "-s", "bm25", "--save", pool)[0] == 1
    assert iclkit("select", pool, "red fish", "--with-pool")[0] == 2
    assert iclkit("select", pool, "-s", "bm25", "-k", "max", "--lm", "x", "--save", kept)[0] == 2
    assert iclkit("select", pool)[0] == 2
