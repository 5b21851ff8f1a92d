"""``--preset paper`` of the selectors that have a paper's set-up, and dry runs without any model."""

from __future__ import annotations

import json

import pytest

from iclkit.pool import Pool
from iclkit.records import Example
from iclkit.selectors import BUILTINS, make_selector, paper_setup

from .eval_worlds import call, fakes, write_task

__all__ = ["fakes"]


@pytest.fixture
def no_models(home, monkeypatch):
    """Nothing is here, and nothing may be fetched or loaded."""
    for place in ("iclkit.lm.load_lm", "iclkit.embed.load_embedder", "iclkit.models.resolve", "iclkit.models.pull"):
        monkeypatch.setattr(place, lambda *a, **k: pytest.fail("a model was fetched or loaded"))


@pytest.mark.parametrize("name", BUILTINS)
def test_a_papers_set_up_is_one_that_the_selector_takes_and_gives_way_to_what_is_typed(name):
    spec, setup = paper_setup(name)
    if setup is None:
        assert spec == name
        return
    recorded = make_selector(spec).spec.settings
    assert {key: recorded[key] for key in setup.settings} == setup.settings
    other = {"skill-knn": "rewrites=2", "se2": "width=1", "ceil": "candidates=20"}[name]
    assert f"{name},{other}" in paper_setup(f"{name},{other}")[0]


def test_the_preset_of_skill_knn_shows_four_by_the_papers_encoder(tmp_path, fakes, capsys):
    task, out = write_task(tmp_path / "things"), tmp_path / "runs"
    command = ("eval", str(task), "-s", "skill-knn,rewrites=1", "-s", "bm25", "--preset", "paper", "--limit", "3",
               "--predictor", "none", "--out", str(out), "--json")  # fmt: skip
    code, _, stderr = call(*command, capsys=capsys)
    assert code == 0, stderr
    assert "a stronger LM writes the keys" in stderr
    assert "loading all-mpnet-base-v2" in stderr
    for file in out.glob("*/rows.jsonl"):
        assert {len(json.loads(line)["shown"]) for line in file.read_text().splitlines()} == {4}
    code, _, stderr = call(*command, "-k", "2", "--embedder", "all-minilm-l6-v2", capsys=capsys)
    assert code == 0, stderr
    assert "loading all-minilm-l6-v2" in stderr
    shown = {len(json.loads(line)["shown"]) for f in out.glob("*/rows.jsonl") for line in f.read_text().splitlines()}
    assert shown == {2, 4}


def test_select_takes_the_preset_too(tmp_path, fakes, capsys):
    with Pool.open(tmp_path / "p.db") as pool:
        pool.add([Example(f"text {n}", "ab"[n % 2]) for n in range(9)])
    code, stdout, stderr = call(
        "select", str(tmp_path / "p.db"), "text 3", "-s", "se2", "--preset", "paper", "--json", capsys=capsys
    )
    assert (code, len(json.loads(stdout))) == (0, 3), stderr


@pytest.mark.parametrize(
    ("selectors", "says"),
    [
        (["knn"], "--preset paper is for skill-knn, ceil, se2, and no selector here is one of them (given: knn)"),
        (["skill-knn", "se2"], "the selectors' papers have -k [3, 4]; give one"),
    ],
)
def test_a_preset_that_says_nothing_or_two_things_is_one_line(selectors, says, tmp_path, fakes, capsys):
    named = [part for name in selectors for part in ("-s", name)]
    code, stdout, stderr = call("eval", str(write_task(tmp_path / "things")), *named, "--preset", "paper",
                                "--out", str(tmp_path / "runs"), capsys=capsys)  # fmt: skip
    assert (code, stdout) == (2, "")
    assert says in stderr.splitlines()[-1]
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("name", "says"), [("skill-knn", "iclkit eval TASK -s skill-knn"), ("ease", "iclkit tune ease")]
)
def test_train_names_the_command_of_a_method_that_is_not_trained(name, says, tmp_path, capsys):
    code, _, stderr = call("train", name, "none.db", "--preset", "paper", "--out", str(tmp_path / "o"), capsys=capsys)
    assert (code, says in stderr) == (2, True)


def test_a_dry_run_prices_the_papers_skill_knn_without_a_model(tmp_path, no_models, capsys):
    task = write_task(tmp_path / "things", train=30, test=10)
    code, stdout, stderr = call(
        "eval", str(task), "-s", "skill-knn,rewriter=there/rewriter-7b", "-s", "set-bsr", "--preset", "paper", "--lm",
        "not/there", "--out", str(tmp_path / "runs"), "--dry-run", "--json", capsys=capsys,
    )  # fmt: skip
    assert code == 0, stderr
    price = json.loads(stdout)["not/there"]
    # 5 keys for each of 30 examples and 10 queries, then 10 queries with 2 labels for each of 2 selectors
    assert price["requests"] == 5 * (30 + 10) + 2 * 10 * 2
    assert price["tokens_generated"] == 5 * (30 + 10) * 48
    for absent in ("not/there", "there/rewriter-7b", "all-mpnet-base-v2"):
        assert stderr.count(f"assumed: {absent} is not on this machine") == 1
    assert not (tmp_path / "runs").exists()
