"""Retrievers and kept selectors on a hub: with a card, pinned by commit, and nothing in them that could run."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from huggingface_hub import ModelCard

from iclkit.cli import cli
from iclkit.errors import DataError, ModelError, RunError, UsageError
from iclkit.integrations import hub
from iclkit.pool import Pool
from iclkit.records import Example
from iclkit.selectors import Kit, load_selector, make_selector

from ..report.worlds import make_run
from .conftest import EXAMPLES, TEXTS, World
from .hub_server import Hub

REPO = "ann/tickets"
KEY = "hf_0123456789abcdefghij"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, home: Path) -> Iterator[Hub]:
    server = Hub()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", KEY)
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    yield server
    server.close()


@pytest.fixture
def pushed(server: Hub, world: World) -> hub.Pushed:
    runs = [make_run("random", [1, 0, 1, 0], k=4), make_run("bm25", [1, 1, 1, 0], k=4)]
    return hub.push(world.kept, REPO, license="apache-2.0", datasets=["ann/rows"], runs=runs)


def change(server: Hub, file: str, **values: Any) -> str:
    """The repository with other fields in one of its JSON files, as a commit."""
    data = json.loads(server.repos[REPO][0][1][file])
    return f"{REPO}@{server.commit(REPO, {file: json.dumps(data | values).encode()})}"


def test_a_selector_comes_back_as_the_same_and_pinned_to_its_commit(
    server: Hub, pushed: hub.Pushed, world: World, home: Path
) -> None:
    assert server.made[0]["visibility"] == "private"
    assert f"Bearer {KEY}" in server.tokens
    first = hub.load_selector(pushed.name)
    assert first.source == f"hub:{pushed.name}"
    before = [s.ids for s in load_selector(world.kept).select_many(TEXTS)]
    assert [s.ids for s in first.select_many(TEXTS)] == before
    asked = len(server.asked)
    server.commit(REPO, {"selector.json": b"{}"})  # what others do to it later
    assert [s.ids for s in hub.load_selector(pushed.name).select_many(TEXTS)] == before
    assert len(server.asked) == asked
    assert first.save(home / "again").name == "again"
    assert load_selector(home / "again").source == first.source


def test_the_card_says_what_it_is_made_of_in_the_hubs_format(server: Hub, pushed: hub.Pushed) -> None:
    card = ModelCard(server.repos[REPO][0][1]["README.md"].decode())
    assert card.data.license == "apache-2.0"
    assert card.data.datasets == ["ann/rows"]
    assert card.data.library_name == "iclkit"
    (result,) = card.data.eval_results
    assert (result.dataset_name, result.metric_type, result.metric_value) == ("toy", "accuracy", 0.75)
    assert "4 queries, k = 4, fake" in result.metric_name
    assert "hub.load_selector" in card.text or "load_selector(" in card.text


def test_only_the_examples_that_it_can_show_are_published(server: Hub, tmp_path: Path) -> None:
    with Pool.open(tmp_path / "all.db") as pool:
        pool.add([*EXAMPLES, Example("a secret text", "shipping", meta={"lang": "xx"})])
        pool.remove(pool.view(where={"lang": "xx"}).ids, reason="not for others")
        make_selector("random").fit(pool.view(where={"lang": "de"}), Kit()).save(tmp_path / "kept", k=2)
    sent = hub.push(tmp_path / "kept", REPO, license="mit")
    files = server.repos[REPO][0][1]
    assert {*files} == {"README.md", "examples.jsonl", "selector.json"}
    assert len(files["examples.jsonl"].splitlines()) == 30
    assert not any(b"secret" in data or str(tmp_path).encode() in data for data in files.values())
    again, before = hub.load_selector(sent.name), load_selector(tmp_path / "kept")
    assert [s.ids for s in again.select_many(TEXTS)] == [s.ids for s in before.select_many(TEXTS)]


def test_a_retriever_is_published_as_it_stands_and_loaded_by_its_name(server: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "retriever"
    (folder / "1_Pooling").mkdir(parents=True)
    right = {"value": 0.8, "low": 0.7, "high": 0.9}
    ways = [{"name": "epr", "pool": "from the whole pool", "gain": right, "right": right},
            {"name": "bm25", "pool": "from the whole pool", "gain": right, "right": right}]  # fmt: skip
    card = {"format": 1, "config": {"method": "epr", "base": "all-minilm-l6-v2"},
            "report": [{"task": "trec", "queries": 9, "shots": 4, "ways": ways}]}  # fmt: skip
    (folder / "iclkit.json").write_text(json.dumps(card))
    (folder / "README.md").write_text("---\ntags: [x]\n---\n\n# A retriever\n\nIt retrieves.\n")
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "1_Pooling" / "config.json").write_text("{}")
    hub.push(folder, REPO, license="mit")
    files = server.repos[REPO][0][1]
    assert files["model.safetensors"] == b"weights"
    assert "1_Pooling/config.json" in files
    told = ModelCard(files["README.md"].decode())
    assert told.data.base_model == "sentence-transformers/all-MiniLM-L6-v2"
    assert [(r.dataset_name, r.metric_value) for r in told.data.eval_results] == [("trec", 0.8)]
    assert "# A retriever" in told.text
    assert "It retrieves." in told.text
    with pytest.raises(DataError, match=f"{REPO} is a retriever; load it by its name: --embedder {REPO}"):
        hub.pull(REPO)
    (folder / "train.py").write_text("print()")
    with pytest.raises(DataError, match=r"holds train\.py, which nothing of iclkit loads"):
        hub.push(folder, REPO, license="mit")


@pytest.mark.parametrize("file", ["modeling.py", "weights.bin", "model.pkl", "model.pt", "deep/selector.json"])
def test_a_repository_with_what_could_run_is_refused_before_anything_is_fetched(
    server: Hub, pushed: hub.Pushed, home: Path, file: str
) -> None:
    commit = server.commit(REPO, {file: b"cos\nsystem\n"})
    server.asked.clear()
    with pytest.raises(DataError, match=f"holds {file}: a selector is JSON alone"):
        hub.pull(f"{REPO}@{commit}")
    assert not any("resolve" in path for path in server.asked)
    assert [*(home / "hub").glob("*")] == []


def test_a_selector_that_reaches_out_of_its_folder_is_refused(server: Hub, pushed: hub.Pushed, home: Path) -> None:
    lm = {"name": "openai:m@http://127.0.0.1:9/v1", "fingerprint": "x"}
    spec = {"name": "fixed", "settings": {"file": "../../other.json"}, "version": 1}
    for fields, said in [
        ({"lm": lm}, "the lm of this selector is 'openai:m@http://127.0.0.1:9/v1', which is of one machine"),
        ({"embedder": {"name": "/etc", "fingerprint": "x"}}, "the embedder of this selector is '/etc'"),
        ({"selector": spec}, "which is no file of its folder"),
        ({"pool": {"hash": "0"}}, "its examples are not those that the selector was kept with"),
    ]:
        with pytest.raises(DataError, match=said.replace("/", ".")):
            hub.pull(change(server, "selector.json", **fields))
    assert [*(home / "hub").glob("*")] == []


def test_what_cannot_be_done_is_one_line(
    server: Hub, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelError, match=r"bob/none could not be fetched: bob/none does not exist at http"):
        hub.pull("bob/none")
    with pytest.raises(UsageError, match="write owner/name"):
        hub.push(world.kept, "tickets", license="mit")
    with pytest.raises(DataError, match="neither a kept selector"):
        hub.push(tmp_path, REPO, license="mit")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UsageError, match="HF_HUB_OFFLINE is set"):
        hub.push(world.kept, REPO, license="mit")
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE is set"):
        hub.pull(REPO)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(RunError, match=r"did not take ann/tickets.*hf auth login"):
        hub.push(world.kept, REPO, license="mit")


def test_the_commands_publish_and_fetch(server: Hub, world: World, tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["hub", "push", str(world.kept), REPO, "--license", "mit", "--public"], obj={})
    assert done.exit_code == 0, done.output
    assert server.made[0]["visibility"] == "public"
    name = done.stdout.strip()
    done = CliRunner().invoke(cli, ["hub", "pull", name, str(tmp_path / "here")], obj={})
    assert done.exit_code == 0, done.output
    assert load_selector(tmp_path / "here").source == f"hub:{name}"
    done = CliRunner().invoke(cli, ["hub", "pull", name, str(tmp_path / "here")], obj={})
    assert "is there already; name a new folder" in str(done.exception)
    assert KEY not in done.output
    assert os.environ["HF_TOKEN"] == KEY
