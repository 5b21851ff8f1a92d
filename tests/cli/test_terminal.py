"""Nothing that stands in data or in a name reaches the terminal as a command to it, and signals end a command well."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import iclkit.cli
from iclkit.cli import _terminal, main
from iclkit.pool import Pool
from iclkit.records import Example
from iclkit.text import printable

HOSTILE = "a\x1b]0;owned\x07b\x1b[2J\x1b[8mc\x9b31md\r\x08e\u202ef\x7f\x00"
STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    with Pool.open(tmp_path / "demos.db") as store:
        store.add([Example(f"late parcel {HOSTILE}", f"late {HOSTILE}", task=f"t{HOSTILE}", meta={HOSTILE: HOSTILE})])
        store.add([Example({f"field {HOSTILE}": "late text"}, "x")])
    return tmp_path / "demos.db"


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "iclkit", *words], capture_output=True, text=True, errors="replace")


@pytest.mark.parametrize(
    "command",
    [
        ("pool", "ls", "{pool}"),
        ("pool", "ls", "{pool}", "--json"),
        ("pool", "stats", "{pool}"),
        ("pool", "check", "{pool}"),
        ("select", "{pool}", f"late {HOSTILE}".replace("\x00", ""), "--selector", "bm25", "-k", "1"),
        ("select", "{pool}", "late", "--selector", "bm25", "-k", "1", "--json"),
        ("select", "{pool}", "late", "--selector", "bm\x1b[2J25"),
        ("eval", "no\x1b]0;x\x07task", "--selector", "zero"),
        ("nothing\x1b[2J",),
    ],
    ids=lambda c: " ".join(c)[:20].encode("unicode_escape").decode(),
)
def test_no_output_of_a_command_holds_what_a_terminal_would_obey(pool: Path, command: tuple[str, ...]) -> None:
    done = run(*(word.format(pool=pool) if word == "{pool}" else word for word in command))
    assert done.stdout or done.stderr
    assert not STEERING.search(done.stdout), done.stdout
    assert not STEERING.search(done.stderr), done.stderr


def test_json_of_hostile_text_reads_back_equal(pool: Path) -> None:
    done = run("pool", "ls", str(pool), "--json")
    texts = json.dumps([json.loads(line) for line in [done.stdout]])
    assert json.dumps(HOSTILE.replace("\r", "\n"))[1:-1].split("\\n")[0] in texts


def test_data_that_is_piped_is_exact(capsys: pytest.CaptureFixture[str]) -> None:
    _terminal.emit(HOSTILE, nl=False)
    assert capsys.readouterr().out == HOSTILE


def test_numbers_that_json_has_not_are_null(capsys: pytest.CaptureFixture[str]) -> None:
    _terminal.emit_json({"a": [float("nan"), 1.5, (float("inf"),)]})
    assert capsys.readouterr().out == '{"a": [null, 1.5, [null]]}\n'


def test_tables_and_styles_are_made_after_the_text_is_printable(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from rich.table import Table

    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    table = Table("head" + HOSTILE, title=HOSTILE)
    table.add_row(HOSTILE, style="bold")
    _terminal.console().print(table)
    out = capsys.readouterr().out
    assert "\x1b[1m" in out  # our own bold
    assert not STEERING.search(re.sub(r"\x1b\[[0-9;]*m", "", out))
    assert "\x1b[8m" not in out
    assert "\x1b[2J" not in out


def test_commands_print_through_the_one_door() -> None:
    for file in Path(iclkit.cli.__file__).parent.glob("*.py"):
        if file.name != "_terminal.py":
            for call in re.findall(r"click\.secho|click\.echo|(?<![\w.])print\(|[^_]Console\(", file.read_text()):
                pytest.fail(f"{file.name} prints with {call}")


def test_printable_keeps_letters_of_all_scripts_and_line_ends() -> None:
    text = "naïve 中文 हिन्दी עברית\tx\ny 👩‍👩‍👧"
    assert printable(text) == text


def test_half_a_surrogate_pair_in_a_name_can_be_told() -> None:
    assert printable("column a\ud800b").encode() == "column a\ufffdb".encode()


NOT_IGNORED = (  # as SIGINT is in a test run behind &, and SIGHUP in one under nohup
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "signal.signal(signal.SIGHUP, signal.SIG_DFL)"
)
SLEEPER = """
import sys, time
from iclkit.cli import cli, main
import click
@click.command()
def slow():
    try:
        print("ready", flush=True)
        time.sleep(30)
    finally:
        print("closed", flush=True)
cli.get_command = lambda ctx, name: slow
main(["slow"])
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_a_command_like_ctrl_c(number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", NOT_IGNORED + SLEEPER], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert out == "closed\n"
    assert err.strip() == "error: interrupted; what was finished is kept, and the same command resumes"
    assert process.returncode == 128 + number


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    code = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + SLEEPER.replace("30", "0.5")
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGHUP)
    time.sleep(0)
    assert process.communicate(timeout=20)[0] == "closed\n"
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "not enough memory"),
        (PermissionError(13, "Permission denied", "some/file"), "some/file"),
        (OSError(28, "No space left on device"), "free space"),
    ],
)
def test_errors_of_the_machine_are_one_line(
    error: Exception, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(iclkit.cli.cli, "main", lambda *a, **k: fail())
    with pytest.raises(SystemExit) as stop:
        main(["pool"])
    assert stop.value.code == 1
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


def test_a_full_disk_is_named_where_a_library_hides_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    class Full:
        free = 100

    def fail() -> None:
        raise RuntimeError("unexpected pos 48896 vs 48784")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda place: Full())
    monkeypatch.setattr(iclkit.cli.cli, "main", lambda *a, **k: fail())
    with pytest.raises(SystemExit):
        main(["pool"])
    assert f"the disk of {tmp_path} is full" in capsys.readouterr().err


def test_a_bug_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(iclkit.cli.cli, "main", lambda *a, **k: fail())
    with pytest.raises(ValueError, match="a bug"):
        main(["pool"])
