"""``iclkit datasets``: data on stdout, talk on stderr, no network unless told to pull."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from iclkit import datasets
from iclkit.cli import main

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], home: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """Run ``iclkit datasets …`` without a network: (exit code, stdout, stderr)."""

    def no_network(*_: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", no_network)

    def run(*args: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["datasets", *args])
        out, err = capsys.readouterr()
        code = ended.value.code
        assert isinstance(code, int)
        return code, out, err

    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "mine"
    folder.mkdir()
    for split, count in (("train", 20), ("test", 4)):
        rows = [{"input": f"{split} {i}", "output": ("yes", "no")[i % 2]} for i in range(count)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder


def test_ls_names_the_bundled_set_and_the_catalogue(call: Call) -> None:
    code, out, err = call("ls")
    assert code == 0
    assert all(name in out for name in ["support", *datasets.catalogue()])
    assert "iclkit datasets pull NAME" in err
    assert "pull NAME" not in out


def test_ls_as_json_says_what_is_here(call: Call, home: Path) -> None:
    (home / "datasets" / "trec").mkdir(parents=True)
    (home / "datasets" / "trec" / "train.jsonl").write_text("{}\n")
    code, out, err = call("ls", "--json")
    states = {row["name"]: row["state"] for row in json.loads(out)}
    assert (code, err) == (0, "")
    assert (states["support"], states["trec"], states["sst2"]) == ("bundled", "here", "on the hub")
    assert all(row["licence"] for row in json.loads(out) if row["name"] != "support")


def test_show_of_a_folder_counts_rows_and_shows_a_prompt(call: Call, folder: Path) -> None:
    code, out, _ = call("show", str(folder), "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts["splits"] == {"train": 20, "dev": 0, "test": 4}
    assert facts["labels"] == {"no": 10, "yes": 10}
    assert facts["example"] == "Input: train 0\nLabel: yes"
    code, out, _ = call("show", str(folder))
    assert "labels: no (10), yes (10)" in out
    assert "example: \n    Input: train 0\n    Label: yes\n" in out


def test_show_of_a_set_that_is_not_here_shows_its_card_without_a_network(call: Call) -> None:
    code, out, _ = call("show", "gsm8k")
    assert code == 0
    assert "licence: MIT" in out
    assert "iclkit datasets pull gsm8k" in out


@pytest.mark.parametrize(
    ("args", "told", "status"),
    [
        (["show", "gsm8"], "error: no task named 'gsm8'. Did you mean 'gsm8k'?", 2),
        (["show", "no/folder"], "error: no folder or file no/folder", 1),
        (["pull", "trek"], "error: no data set named 'trek'. Did you mean 'trec'?", 2),
        (["pull", "sst2", "trek"], "error: no data set named 'trek'.", 2),
        (["pull", "support"], "error: 'support' is bundled", 1),
        (["pull"], "error: Missing argument 'NAME...'", 2),
    ],
)
def test_what_is_wrong_is_one_line_on_stderr(call: Call, args: list[str], told: str, status: int) -> None:
    code, out, err = call(*args)
    assert (code, out, err.count("\n")) == (status, "", 1)
    assert err.startswith(told)


def test_pull_prints_where_the_set_lies(call: Call, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = pytest.importorskip("datasets")
    rows = library.Dataset.from_dict({"text": ["Who ?"], "label_coarse_original": ["HUM"]})
    monkeypatch.setattr(library, "load_dataset", lambda *_, **__: library.DatasetDict({"train": rows, "test": rows}))
    code, out, _ = call("pull", "trec")
    assert (code, out) == (0, f"trec\t{home / 'datasets' / 'trec'}\n")
    code, out, _ = call("pull", "trec", "--json")
    assert json.loads(out) == [{"name": "trec", "path": str(home / "datasets" / "trec")}]
    code, out, _ = call("show", "trec", "--json")
    assert json.loads(out)["splits"] == {"train": 1, "dev": 0, "test": 1}


def test_pull_without_a_hub_is_one_line(call: Call, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = pytest.importorskip("datasets")

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach\nthe hub")

    monkeypatch.setattr(library, "load_dataset", unreachable)
    code, out, err = call("pull", "trec")
    assert (code, out) == (1, "")
    assert (
        err.strip().splitlines()[-1].startswith("error: hf:SetFit/TREC-QC cannot be loaded from the Hugging Face hub")
    )
    assert not home.exists()
