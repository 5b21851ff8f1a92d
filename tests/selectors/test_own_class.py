"""A class that is not published yet: named on the command line, tested by the contract, written as the guide says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from iclkit.cli import cli
from iclkit.errors import UnknownName, UsageError
from iclkit.registry import Registry
from iclkit.selectors import SELECTORS, import_selectors, make_selector

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the two files of the guide, typed as they stand there."""
    text = (ROOT / "docs" / "guides" / "write-a-selector.md").read_text(encoding="utf-8")
    for code in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        name = re.match(r"# (\S+\.py)\n", code)
        assert name
        (tmp_path / name.group(1)).write_text(code, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(SELECTORS, "_added", {})
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    sys.modules.pop("my_selectors", None)


def test_the_guides_selector_passes_the_guides_test(guide: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_my_selectors.py"]
    done = subprocess.run(command, cwd=guide, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_a_class_of_a_module_is_taken_on_the_command_line(guide: Path) -> None:
    (guide / "rows.jsonl").write_text('{"input": "a", "output": "x"}\n{"input": "a b c", "output": "y"}\n')
    assert CliRunner().invoke(cli, ["pool", "add", "demos.db", "rows.jsonl"]).exit_code == 0
    words = ["select", "demos.db", "one two three", "-k", "1", "--json", "-s"]
    one = CliRunner().invoke(cli, [*words, "my_selectors:NearLengthSelector,per_word=true"])
    assert one.exit_code == 0, one.exception
    assert '"output": "y"' in one.stdout


def test_it_is_known_by_its_own_name_from_then_on_also_inside_others(guide: Path) -> None:
    sys.path.append(str(guide))
    assert import_selectors("rrf,of=[bm25,my_selectors:NearLengthSelector]") == "rrf,of=[bm25,near-length]"
    assert make_selector("near-length,per_word=true").spec.name == "near-length"


def test_what_is_not_typed_by_a_user_is_never_imported() -> None:
    with pytest.raises(UnknownName):
        make_selector("os:system,command=true")


@pytest.mark.parametrize("text", ["knn", 'filter,where={"a":"b"},of=knn', "tuned.json", "mmr,trade_off=0.3"])
def test_other_specs_stay_as_they_are_typed(text: str) -> None:
    assert import_selectors(text) == text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("no_such_module:Thing", "does not load: ModuleNotFoundError"),
        ("iclkit.selectors:NoSuchSelector", "does not load: AttributeError"),
        ("a-b:c", "write module:Name"),
        ("iclkit.selectors._knn:KNNSelector", "calls itself 'knn', which is a selector of iclkit"),
    ],
)
def test_what_cannot_be_taken_is_one_line(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=re.escape(said)):
        import_selectors(text)


class _Entry:
    def __init__(self, name: str, value: str) -> None:
        self.name, self.value = name, value

    def load(self) -> object:
        return self.value


def test_a_plug_in_under_a_name_of_ours_is_not_used_and_a_line_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("iclkit.registry.entry_points", lambda group: [_Entry("length", "theirs:Length")])
    registry = Registry("selector", "iclkit.selectors", {"length": "operator:length_hint"})
    assert registry.get("length").__name__ == "length_hint"
    registry.names()
    assert [r.getMessage() for r in caplog.records] == [
        "note: the selector 'length' of an installed package (theirs:Length) is not used: iclkit has one of that name"
    ]


def test_a_name_of_ours_is_looked_for_among_the_plug_ins_once(monkeypatch: pytest.MonkeyPatch) -> None:
    scans = []
    monkeypatch.setattr("iclkit.registry.entry_points", lambda group: scans.append(group) or [])
    registry = Registry("selector", "iclkit.selectors", {"length": "operator:length_hint"})
    for _ in range(100):
        registry.get("length")
    assert len(scans) == 1


def test_two_plug_ins_of_one_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [_Entry("mine", "one:Mine"), _Entry("mine", "two:Mine")]
    monkeypatch.setattr("iclkit.registry.entry_points", lambda group: entries)
    with pytest.raises(UsageError, match="'mine' stands for one:Mine and two:Mine: two packages use the name"):
        Registry("selector", "iclkit.selectors", {}).get("mine")
