"""What the page's server answers, and to whom."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest

from iclkit import chooser
from iclkit.pool import Pool, example_dict
from iclkit.pool._examples import StoredExamples
from iclkit.predictors import Tools
from iclkit.records import Example, Query
from iclkit.report import leaderboard, to_html
from iclkit.testing import FakeLM, HashEmbedder
from iclkit.view._rows import Rows
from iclkit.view._workbench import Side, Workbench
from tests.report.pages import make

from .conftest import HOSTILE, KEY, ROWS

QUERY = "my parcel is lost"


# ---- who is answered


def test_the_page_holds_nothing_of_the_pool_and_asks_for_nothing_from_outside(shared_page):
    answer = httpx.get(f"{shared_page.address}/")
    assert answer.status_code == 200
    assert "parcel" not in answer.text
    assert set(re.findall(r"https?://[^\"' ]+", answer.text)) <= {"http://www.w3.org/2000/svg"}
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert answer.headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize("path", ["/api/about", "/api/rows", "/api/map", "/api/runs", "/api/rows/1"])
def test_without_the_key_nothing_is_told(shared_page, path):
    for headers in ({}, {"X-ICLKIT-Token": "guess"}):
        answer = httpx.get(shared_page.address + path, headers=headers)
        assert answer.status_code == 401
        assert "open the address that iclkit view printed" in answer.json()["error"]["message"]


def test_other_pages_cannot_write_to_the_pool(page):
    change = {"was": example_dict(ROWS[0]), "now": None}
    form = page.client.post("/api/change", content=str(change), headers={"X-ICLKIT-Token": ""})
    assert form.status_code == 401  # what a page can send without being asked has no key
    for headers in ({"Origin": "https://evil.example"}, {"Host": "evil.example"}, {"Host": "[x"}, {"Origin": "null"}):
        assert page.client.post("/api/change", json=change, headers=headers).status_code == 403
    asked_first = page.client.options("/api/change", headers={"Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in asked_first.headers
    assert len(page.pool) == len(ROWS)


def test_our_own_origin_is_answered(page):
    assert page.client.get("/api/rows", headers={"Origin": page.address}).status_code == 200


# ---- a question


def test_both_sides_pick_what_the_selectors_pick_elsewhere(page):
    sides = page.ask(QUERY, "knn", {"selector": "bm25", "settings": {"k1": "0.9"}}, k=3)
    for side, selector in zip(sides, ("knn", "bm25,k1=0.9"), strict=True):
        own = chooser(page.pool, selector=selector, embedder=HashEmbedder(), lm=FakeLM(), chat=False)
        selection = own.select(QUERY, 3)
        assert [(p["id"], p["score"]) for p in side["picks"]] == [(p.example_id, p.score) for p in selection]
        prompt = own.prompt_of(selection)
        assert "".join(piece[1] for piece in side["prompt"]["pieces"]) == prompt.text
        assert (side["prompt"]["shown"], side["prompt"]["tokens"]) == ([*prompt.shown], prompt.tokens)
        assert side["selector"] == selector
    assert all(p["tokens"] > 0 for p in sides[0]["picks"])


def test_each_pick_tells_what_speaks_for_it(page):
    knn, bm25 = page.ask(QUERY, "knn", "bm25")
    first = knn["picks"][0]
    assert first["cosine"] == pytest.approx(first["score"], abs=1e-5)
    assert set(first["words"]) <= set(QUERY.split())
    rank = {p["id"]: p["rank"] for p in bm25["picks"]}
    assert [p["elsewhere"] for p in knn["picks"]] == [rank.get(p["id"]) for p in knn["picks"]]
    (filled,) = page.ask("zebra", "bm25")
    assert {p["random"] for p in filled["picks"]} == {True}
    assert filled["notes"]


def test_only_examples_of_the_task_are_chosen_from_and_turns_are_shown_as_the_model_reads_them(serve_pool):
    rows = [Example(f"parcel {n}", "a", task="one" if n % 2 else "two") for n in range(8)]
    page = serve_pool(rows, task="one", chat=True)
    (side,) = page.ask("parcel", "knn", k=8)
    assert {p["id"] for p in side["picks"]} == {e.id for e in rows if e.task == "one"}
    assert "<|assistant|>" in "".join(piece[1] for piece in side["prompt"]["pieces"])
    new = {"input": "parcel 9", "output": "a", "task": "one", "choices": [], "meta": {}}
    added = page.post("/api/change", {"was": None, "now": new})
    assert added["id"] in {p["id"] for p in page.ask("parcel", "knn", k=8)[0]["picks"]}


def test_an_example_that_asks_is_not_shown_for_itself(page):
    (side,) = page.ask(ROWS[0].text, "knn", exclude=[ROWS[0].id])
    assert ROWS[0].id not in {p["id"] for p in side["picks"]}


@pytest.mark.parametrize(
    ("side", "words"),
    [
        ({"selector": "mrm"}, "Did you mean 'mmr'?"),
        ({"selector": "mmr", "settings": {"trade_of": "1"}}, "Did you mean 'trade_off'?"),
        ({"selector": "mmr", "settings": {"trade_off": "2"}}, "give a number from 0 to 1"),
        ({"selector": "rrf", "settings": {"of": "[bm25,nope]"}}, "no selector named 'nope'"),
        ({"selector": "fixed", "settings": {"file": "none.json"}}, "none.json"),
        ({"selector": "os:system"}, "no selector named 'os:system'"),
        ({"selector": "rerank"}, "--reranker"),
    ],
)
def test_a_wrong_setting_is_one_line_and_the_other_side_answers(shared_page, side, words):
    wrong, right = shared_page.ask(QUERY, side, "knn")
    assert words in wrong["error"]
    assert "\n" not in wrong["error"]
    assert len(right["picks"]) == 2


def test_a_language_model_is_asked_only_after_the_cost_was_said(page):
    (told,) = page.ask(QUERY, {"selector": "cone", "settings": {"candidates": 4}})
    assert told == {"cost": {"task": 0, "query": 4, "texts": 4}}
    (side,) = page.ask(QUERY, {"selector": "cone", "settings": {"candidates": 4}}, paid=[True])
    assert len(side["picks"]) == 2


def test_a_selector_that_chooses_step_by_step_tells_how(page):
    (side,) = page.ask(QUERY, "se2")
    assert side["story"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ([], "the body is an object"),
        ({"query": 3, "sides": []}, "the query is a text"),
        ({"query": {"a": 1}, "sides": []}, "the query is a text"),
        ({"query": "a", "sides": "knn"}, "`sides` is a list"),
        ({"query": "a", "sides": [{}]}, "a side is an object with a `selector`"),
        ({"query": "a", "sides": [], "k": "four"}, "`k` is a whole number"),
        ({"query": "a", "sides": [], "k": 9999}, "from 0 to 256"),
        ({"query": "a", "sides": [], "order": "upside-down"}, "no order policy named"),
        ({"query": "a", "sides": [], "exclude": "x"}, "`exclude` is a list of ids"),
        ({"query": "half \ud800", "sides": []}, "half of a surrogate pair"),
    ],
)
def test_a_question_that_cannot_be_asked_is_one_line(shared_page, body, words):
    status, line = shared_page.refused("/api/select", body)
    assert (status, words in line) == (400, True), line


def test_texts_that_are_no_json_are_refused(shared_page):
    answer = shared_page.client.post("/api/select", content=b"\xff{")
    assert answer.status_code == 400


# ---- the table


def test_rows_come_in_pages_with_filters_and_counts(page):
    first = page.get("/api/rows", limit=4)
    assert [r["id"] for r in first["rows"]] == [e.id for e in ROWS[:4]]
    assert (first["total"], first["all"], first["undo"]) == (len(ROWS), len(ROWS), None)
    assert dict(first["outputs"])["shipping"] == 4
    assert [r["id"] for r in page.get("/api/rows", limit=2, start=8, newest=1)["rows"]] == [ROWS[1].id, ROWS[0].id]
    found = page.get("/api/rows", find="PARCEL late")
    assert [r["id"] for r in found["rows"]] == [ROWS[0].id]
    assert found["rows"][0]["meta"] == [["tenant", "acme"]]
    assert page.get("/api/rows", output="billing", find="invoice")["total"] == 2
    assert page.client.get("/api/rows", params={"start": "x"}).status_code == 400


def test_hostile_texts_come_back_as_they_are(page):
    for example in ROWS:
        row = page.get(f"/api/rows/{example.id}")
        assert {k: row[k] for k in example_dict(example)} == example_dict(example)
    (side,) = page.ask("parcel", "bm25", k=10)
    assert HOSTILE in {p["output"] for p in side["picks"]}


def test_a_row_of_a_megabyte_is_cut_in_lists_and_whole_when_opened(serve_pool):
    long = "parcel " * 150_000
    page = serve_pool([Example(long, "long"), *ROWS])
    row = page.get("/api/rows", limit=1)["rows"][0]
    assert (len(row["input"]), row["cut"]) == (400, True)
    assert page.get(f"/api/rows/{row['id']}")["input"] == long.strip()
    assert len(page.client.get("/api/map").content) < 20_000
    (side,) = page.ask("parcel", "bm25", k=11)
    assert sum(piece[3] for piece in side["prompt"]["pieces"]) > 1_000_000 or side["prompt"]["dropped"]
    was = page.get(f"/api/rows/{row['id']}")
    assert page.post("/api/change", {"was": was, "now": {**was, "output": "changed"}})["undo"].startswith("changed")


def test_edit_remove_add_and_undo(page):
    before = {e.id: e for e in page.pool}
    was = page.get(f"/api/rows/{ROWS[0].id}")
    edited = page.post("/api/change", {"was": was, "now": {**was, "output": "delivery"}})
    assert page.pool.get(edited["id"]).output == "delivery"
    removed = page.post("/api/change", {"was": page.get(f"/api/rows/{ROWS[1].id}"), "now": None})
    assert (removed["id"], removed["all"]) == (None, len(ROWS) - 1)
    new = {"input": "a new one", "output": "other", "task": "", "choices": [], "meta": {"by": "me"}}
    added = page.post("/api/change", {"was": None, "now": new})
    assert [added["undo"], added["all"]] == ["added “a new one”", len(ROWS)]
    (side,) = page.ask("a new one", "knn")
    assert side["picks"][0]["id"] == added["id"]  # what was changed is chosen from at once
    for _ in range(3):
        last = page.post("/api/undo", {})
    assert last["undo"] is None
    assert {e.id: e for e in page.pool} == before
    assert page.refused("/api/undo", {}) == (400, "there is nothing to undo")


def test_an_example_that_was_changed_elsewhere_is_not_written_over(page):
    was = page.get(f"/api/rows/{ROWS[0].id}")
    with Pool.open(page.pool.path) as other:
        now = other.update(ROWS[0].id, output="theirs")
    answer = page.client.post("/api/change", json={"was": was, "now": {**was, "output": "mine"}})
    assert (answer.status_code, answer.json()["now"]) == (409, now.id)
    assert "was changed" in answer.json()["error"]["message"]
    gone = page.client.post("/api/change", json={"was": was, "now": None})
    assert gone.status_code == 409
    opened = page.client.get(f"/api/rows/{ROWS[0].id}")
    assert (opened.status_code, opened.json()["now"]) == (409, now.id)
    assert page.client.get("/api/rows/0123").status_code == 400
    assert page.pool.get(now.id).output == "theirs"


def test_a_change_that_cannot_be_undone_any_more_says_so_and_is_forgotten(page):
    was = page.get(f"/api/rows/{ROWS[0].id}")
    edited = page.post("/api/change", {"was": was, "now": {**was, "output": "delivery"}})
    with Pool.open(page.pool.path) as other:
        other.remove([edited["id"]])
    assert page.refused("/api/undo", {})[0] == 409
    assert page.get("/api/rows")["undo"] is None


@pytest.mark.parametrize(
    ("now", "words"),
    [
        ("text", "an example is an object"),
        ({"input": "a"}, "`output` is missing"),
        ({"input": " \u200b ", "output": "", "task": "", "choices": [], "meta": {}}, "`input` is empty"),
        ({"input": "a", "output": 3, "task": "", "choices": [], "meta": {}}, "`output` is a text"),
        ({"input": 3, "output": "", "task": "", "choices": [], "meta": {}}, "input"),
        ({"input": "a", "output": "", "task": "", "choices": {}, "meta": {}}, "`choices` is a list"),
        (None, "nothing to change"),
    ],
)
def test_what_is_no_example_is_one_line_and_changes_nothing(shared_page, now, words):
    status, line = shared_page.refused("/api/change", {"was": None, "now": now})
    assert (status, words in line) == (400, True), line
    assert len(shared_page.pool) == len(ROWS)


def test_a_pool_that_is_read_only_is_shown_and_not_changed(serve_pool, tmp_path):
    with Pool.open(tmp_path / "fixed.db") as made:
        made.add(ROWS)
    from iclkit.view import Workbench
    from iclkit.view._rows import Rows

    with Pool.open(tmp_path / "fixed.db", create=False, read_only=True) as pool:
        assert Workbench(pool).about()["readOnly"] is True
        assert Rows(pool).page("", None, None, False, 0, 5)["total"] == len(ROWS)
        with pytest.raises(Exception, match="reading only"):
            Rows(pool).change(example_dict(ROWS[0]), None)


# ---- the map


def test_the_map_places_every_example_and_the_picks_where_their_points_are(page):
    drawn = page.get("/api/map")
    at = {p["id"]: p["at"] for p in drawn["points"]}
    assert at.keys() == {e.id for e in ROWS}
    assert drawn["groups"][:2] == ["shipping", "billing"]
    assert 0 < drawn["share"] <= 1
    (side,) = page.ask(QUERY, "knn", k=4)
    assert all(p["at"] == pytest.approx(at[p["id"]], abs=1e-3) for p in side["picks"])


def test_a_query_lies_on_the_example_that_says_the_same(page):
    at = {p["id"]: p["at"] for p in page.get("/api/map")["points"]}
    found = page.post("/api/select", {"query": ROWS[3].text, "k": 1, "sides": [{"selector": "knn"}]})
    assert found["at"] == pytest.approx(at[ROWS[3].id], abs=1e-3)


def test_without_an_embedder_the_map_goes_by_words(serve_pool):
    page = serve_pool(embedder=None, lm=False)
    drawn = page.get("/api/map")
    assert (drawn["by"], len(drawn["points"])) == (None, len(ROWS))
    sides = page.ask(QUERY, "bm25", "knn")
    assert sides[0]["picks"][0]["tokens"] is None
    assert sides[0]["picks"][0]["at"]
    assert "give one with --embedder" in sides[1]["error"]


@pytest.mark.parametrize("rows", [[], [ROWS[0]], [Example("same", "a"), Example("same", "b")], [Example("?", "a")]])
@pytest.mark.parametrize("embedder", [None, HashEmbedder()])
def test_pools_of_hardly_anything_have_a_map(serve_pool, rows, embedder):
    page = serve_pool(rows, embedder=embedder)
    assert len(page.get("/api/map")["points"]) == len(rows)
    (side,) = page.ask("what", "random")
    assert ("error" in side) == (not rows)


def test_what_a_pool_holds_is_counted_once_for_all_its_pages(monkeypatch):
    counted, plain = [], Pool.count_values
    monkeypatch.setattr(Pool, "count_values", lambda self, *what: counted.append(what[0]) or plain(self, *what))
    table = Rows(Pool.of(ROWS))
    pages = [table.page("", None, None, False, start, 2) for start in (0, 2, 4)]
    assert counted == ["output", "task"]
    assert {page["all"] for page in pages} == {len(ROWS)}
    new = example_dict(Example("where is it", "shipping"))
    table.change(None, new)
    page = table.page("", None, "shipping", False, 0, 2)
    assert (page["all"], page["total"], dict(page["outputs"])["shipping"]) == (len(ROWS) + 1, 5, 5)
    assert counted == ["output", "task"] * 2


def test_a_question_after_a_change_reads_no_more_of_a_larger_pool(tmp_path, monkeypatch):
    read, plain = [0], StoredExamples.at
    monkeypatch.setattr("iclkit.pool._sqlite.LARGE", 5)
    monkeypatch.setattr("iclkit.view._map.SAMPLE", 20)
    monkeypatch.setattr(
        StoredExamples, "at", lambda s, rows, at: read.__setitem__(0, read[0] + len(rows)) or plain(s, rows, at)
    )
    work = []
    for rows in (100, 400):
        path = tmp_path / f"{rows}.db"
        with Pool.open(path) as pool:
            pool.add(Example(f"ticket {n} of {n % 7}", "xy"[n % 2]) for n in range(rows))
        with Pool.open(path) as pool:
            bench, table = Workbench(pool, Tools(embedder=HashEmbedder())), Rows(pool)
            sides = [Side("bm25"), Side("knn")]
            bench.ask(Query("ticket 7"), 2, sides, "best-last")
            table.page("", None, None, False, 0, 5)
            read[0] = 0
            table.change(None, example_dict(Example("a new ticket", "x")))
            bench.pool_map()
            bench.ask(Query("ticket 7"), 2, sides, "best-last")
            work.append(read[0])
    assert work[1] <= work[0] + 5


@pytest.mark.slow
def test_a_hundred_thousand_examples_are_paged_searched_and_sampled(serve_pool):
    page = serve_pool([Example(f"ticket {n} about topic-{n % 977}x", f"team {n % 12}") for n in range(100_000)])
    last = page.get("/api/rows", start=99_990, limit=50)
    assert (last["total"], len(last["rows"])) == (100_000, 10)
    assert page.get("/api/rows", find="TOPIC-976X ticket")["total"] == 102
    drawn = page.get("/api/map")
    assert (drawn["total"], len(drawn["points"])) == (100_000, 3_000)
    (side,) = page.ask("ticket 7 about topic-7x", "bm25")
    assert side["picks"][0]["at"]


# ---- runs


def test_runs_are_listed_and_the_board_is_that_of_the_leaderboard(serve_pool, tmp_path, monkeypatch):
    monkeypatch.setenv("ICLKIT_HOME", str(tmp_path / "home"))
    runs, texts = make(tmp_path / "runs", ks=(2,), test=12)
    page = serve_pool(runs=tmp_path / "runs")
    found = page.get("/api/runs")
    assert {r["id"] for r in found["runs"]} == {run.id for run in runs}
    assert {r["selector"] for r in found["runs"]} == {"zero", "random", "knn", "bm25", "balanced"}
    (board,) = found["boards"]
    del page.client.headers["X-ICLKIT-Token"]  # a link brings none; its address is its key
    answer = page.client.get(board["path"])
    ordered = sorted(runs, key=lambda run: run.id)
    assert answer.text == to_html(leaderboard(ordered), ordered, texts)
    assert page.client.get("/board/0123456789abcdef").status_code == 400
    assert KEY not in board["path"]


def test_a_folder_without_runs_says_how_to_make_some(shared_page):
    found = shared_page.get("/api/runs")
    assert found["runs"] == []
    assert "make some with: iclkit eval" in found["notes"][0]


def test_damaged_runs_are_named(serve_pool, tmp_path: Path):
    (tmp_path / "runs" / "broken").mkdir(parents=True)
    (tmp_path / "runs" / "broken" / "run.json").write_text("{")
    found = serve_pool(runs=tmp_path / "runs").get("/api/runs")
    assert (found["boards"], "run broken cannot be used" in found["notes"][0]) == ([], True)
