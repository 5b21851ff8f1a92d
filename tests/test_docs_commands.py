"""Shell commands of README, start page and guides are run, page by page, as a reader would: one after another.

Each command of a block (``console``, ``bash``, ``sh``) is typed as it stands: under the names of data sets and files
lie made-up rows (``furnish``), and only what no reader could type is replaced (``Reader.in_the_place_of``). Where a
page shows what a command prints, that is compared. The quick test has fakes behind the names of models; the slow one
has the models, and also runs what takes longer. A command that is not run here stands in ``ELSEWHERE`` (with the test
that runs it) or in ``NOT_RUN`` (with what it would need): a new command in a page is in neither, so it is run.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from queue import Empty, Queue

import pytest

from iclkit.cli import main
from iclkit.datasets import load_task
from iclkit.pool import Pool
from iclkit.records import Example
from iclkit.testing import FakeLM, HashEmbedder

ROOT = Path(__file__).resolve().parent.parent
SOURCES = [ROOT / "README.md", ROOT / "docs" / "index.md", *sorted((ROOT / "docs" / "guides").glob("*.md"))]
BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
PROMPT = re.compile(r"(\w*)\$ (.*)", re.DOTALL)


@dataclass(frozen=True)
class Command:
    """A command as it stands in a page; ``shown`` is what the page says it prints ("" where it says nothing)."""

    page: str
    text: str
    shown: str = ""
    machine: str = ""  # in front of the prompt, where a page speaks of several


@dataclass(frozen=True)
class File:
    """A block that begins with the name of the file to write it to."""

    name: str
    text: str


def steps(page: Path) -> Iterator[Command | File]:
    """What a reader does, in the order of the page."""
    for _, kind, text in BLOCK.findall(page.read_text(encoding="utf-8")):
        block = textwrap.dedent(text)
        if named := re.match(r"# (\w+\.\w+)\n", block):
            yield File(named[1], block)
        elif kind in ("console", "bash", "sh"):
            yield from commands(page.stem, block, kind)


def commands(page: str, block: str, kind: str) -> Iterator[Command]:
    """The commands of a block: behind prompts, or, in a script, every line that does not go on from the one before."""
    typed: list[tuple[str, list[str], list[str]]] = []
    until = ""  # the word that ends the lines given to a command (<<END)
    for line in block.splitlines():
        goes_on = bool(typed) and (bool(until) or typed[-1][1][-1].endswith("\\"))
        if goes_on:
            typed[-1][1].append(line)
            until = "" if line == until else until
            continue
        prompt = PROMPT.fullmatch(line)
        if kind == "console" and prompt:
            typed.append((prompt[1], [prompt[2]], []))
        elif kind == "console":
            assert typed, f"{page}: a console block begins with a prompt: {line}"
            typed[-1][2].append(line)
        elif line.strip() and not line.startswith("#"):
            typed.append(("", [line], []))
        if typed and (here := re.search(r"<<'?(\w+)", typed[-1][1][-1])) and not typed[-1][2]:
            until = here[1]
    for machine, lines, shown in typed:
        yield Command(page, "\n".join(lines), "\n".join(shown).strip("\n"), machine)


STEPS = {page.stem: [*steps(page)] for page in SOURCES}
ALL = [step for page in STEPS.values() for step in page if isinstance(step, Command)]

ELSEWHERE = {
    ("README", "make demo"): "tests/cli/test_demo_cli.py::test_the_demo_with_real_models_finds_that_choosing_helps",
    ("README", "python - > tickets.csv"): "tests/test_docs.py::test_the_commands_of_your_own_data_run_as_typed",
    ("README", "iclkit task "): "tests/test_docs.py::test_the_commands_of_your_own_data_run_as_typed",
    ("README", "iclkit eval tickets "): "tests/test_docs.py::test_the_commands_of_your_own_data_run_as_typed",
    ("README", "iclkit prompt tickets "): "tests/test_docs.py::test_the_commands_of_your_own_data_run_as_typed",
    ("index", "iclkit demo"): "tests/cli/test_demo_cli.py::test_the_demo_with_real_models_finds_that_choosing_helps",
    ("integrations", "python -m tests.integrations.doors"):
        "tests/integrations/test_equality.py::test_the_same_queries_give_the_same_demonstrations",
    ("integrations", "iclkit hub "): "tests/integrations/test_hub.py::test_the_commands_publish_and_fetch",
    ("use-your-vllm-server", "iclkit "): "tests/test_server_guides.py::test_the_commands_for_vllm",
    ("use-openai-or-azure", "iclkit "): "tests/test_server_guides.py::test_the_commands_for_openai",
    ("use-openai-or-azure", "export "): "tests/test_server_guides.py::test_the_commands_for_openai",
    ("use-ollama-or-llama-cpp", "iclkit "): "tests/test_server_guides.py::test_the_commands_for_llama_cpp",
    ("use-ollama-or-llama-cpp", "llama-server "): "tests/test_server_guides.py::test_the_commands_for_llama_cpp",
}  # fmt: skip
"""(page, how a command begins) -> the test that runs it."""

MEASURES = "a measurement; make bench runs it small"
INSTALLS = "changes what is installed"
NOT_RUN = {
    ("README", "make test"): "is what runs this",
    ("index", "pip install"): INSTALLS,
    ("use-a-cluster", "pip install"): INSTALLS,
    ("use-ollama-or-llama-cpp", "pip install"): INSTALLS,
    ("use-a-cluster", "ray start --head"): "several machines",
    ("use-a-cluster", "ray start --address"): "several machines",
    ("use-a-cluster", "iclkit models pull"): "several machines",
    ("use-a-cluster", "iclkit eval trec -s knn"): "several machines",
    ("use-gpus", "iclkit eval trec -s random -k 2 --lm MODEL --device cuda"): "GPUs",
    ("use-gpus", "iclkit eval trec -s random -k 2 --lm MODEL --gpus 2"): "GPUs",
    ("use-gpus", "iclkit eval trec -s random -k 2 --lm vllm:MODEL"): "GPUs, and vLLM",
    ("use-your-vllm-server", "vllm serve"): "a GPU, and vLLM",
    ("many-shots", "OMP_NUM_THREADS=1 python benchmarks/"): MEASURES,
    ("serve", "OMP_NUM_THREADS="): MEASURES,
    ("use-ollama-or-llama-cpp", "python benchmarks/"): "a measurement of the four-bit weights that a reader has",
}
"""(page, how a command begins) -> what it would need."""

SLOW = {
    ("integrations", "iclkit"): "what it prints names the model",
    ("large-pools", "iclkit"): "embeds 6,911 sentences",
    ("look-around", "iclkit view"): "a process of its own",
    ("many-shots", "iclkit eval trec"): "counts tokens of the model",
    ("measure-the-gain", "iclkit eval --file"): "two tasks and ten runs of each",
    ("one-prompt-for-all", "iclkit tune ease sst2/ --lm"): "60 trials",
    ("one-prompt-for-all", "iclkit tune ease demos.db"): "60 trials",
    ("one-prompt-for-all", "iclkit tune ease sst2/ -k 4"): "60 trials",
    ("one-prompt-for-all", "iclkit tune demos"): "reads what they find",
    ("one-prompt-for-all", "iclkit eval"): "reads what they find",
    ("one-prompt-for-all", "iclkit select"): "reads what they find",
    ("one-prompt-for-all", "iclkit diagnose"): "reads what they find",
    ("one-prompt-for-all", "iclkit pool"): "reads what they find",
    ("serve", "iclkit"): "a process of its own",
    ("serve", "curl"): "asks it",
    ("train-a-retriever", "iclkit"): "trains",
    ("use-a-cluster", "iclkit"): "starts a cluster",
    ("use-gpus", "iclkit"): "loads the model as torch does it",
    ("use-your-own-embedder", "iclkit select demos.db \"my parcel is late\" --embedder prompteol"): "loads the LM",
    ("use-your-own-embedder", "iclkit eval my-task/ --selector random"): "loads the LM",
    ("your-own-data", "iclkit eval tickets.csv"): "holds out 200 rows",
    ("use-your-own-embedder", "mkdir"): "real data",
    ("use-your-own-embedder", "python"): "real data",
    ("use-your-own-embedder", "iclkit diagnose trec400"): "real data",
}  # fmt: skip
"""(page, how a command begins) -> why the quick test leaves it to the slow one."""


def listed(command: Command, table: dict[tuple[str, str], str]) -> str | None:
    found = [said for (page, begins), said in table.items() if command.page == page and command.text.startswith(begins)]
    return found[0] if found else None


def runs_here(command: Command) -> bool:
    return listed(command, ELSEWHERE) is None and listed(command, NOT_RUN) is None


def test_what_is_listed_is_there() -> None:
    """A line of a table whose command has gone, or whose test has, is taken out of it."""
    for table in (ELSEWHERE, NOT_RUN, SLOW):
        for key in table:
            assert any(listed(c, {key: "-"}) for c in ALL), f"no command begins so: {key}"
    for key, test in ELSEWHERE.items():
        file, name = test.split("::")
        assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), f"{key}: no {test}"
    made = (ROOT / "Makefile").read_text(encoding="utf-8")
    for command in ALL:
        if listed(command, NOT_RUN) == MEASURES:
            script = re.search(r"benchmarks(/\w+\.py)", command.text)
            assert script, command
            assert script[1] in made, f"{command}: make bench does not run it"


class Reader:
    """Somebody who follows a page in an empty folder, with what the page says that they have."""

    def __init__(self, page: str, folder: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.page, self.folder, self.home, self.capsys = page, folder, home, capsys
        self.servers: list[Server] = []

    def type(self, command: Command) -> tuple[str, ...]:
        """What a command prints: data, talk, or one before the other. It has to end well; a server is left running."""
        text = command.text.replace("\\\n", " ")
        for named, own in self.in_the_place_of().items():
            text = re.sub(named, own, text)
        if text.startswith(("iclkit serve ", "iclkit view ")):
            return (self.start(text, command.shown),)
        if not text.startswith("iclkit "):
            return (self.in_a_shell(text),)
        text, _, file = text.partition(" > ")
        with pytest.raises(SystemExit) as ended:
            main(shlex.split(text, comments=True)[1:])
        out, err = self.capsys.readouterr()
        assert ended.value.code in ((0, None) if " check " not in text else (0, 1, None)), f"{text}\n{err}"
        if file:
            (self.folder / file).write_text(out, encoding="utf-8")
        return out, err, err + out, out + err

    def in_the_place_of(self) -> dict[str, str]:
        """What a page names -> what stands here in its place."""
        recorded = [f.parent.name for f in self.folder.glob("runs/*/run.json") if '"name": "knn"' in f.read_text()]
        return {
            r"runs/[0-9a-f]{16}\b": f"runs/{recorded[0]}" if recorded else "no runs yet",
            r"intfloat/e5-base-v2\b": "all-minilm-l6-v2",
            r"\bMODEL\b": "smollm2-135m",
            r"\.\./shared/data\b": os.environ.get("ICLKIT_TEST_DATA", str(ROOT.parent / "shared" / "data")),
            r"\blocalhost:8000\b": self.servers[-1].address if self.servers else "localhost:8000",
        }

    def in_a_shell(self, text: str) -> str:
        place = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        with subprocess.Popen(
            ["bash", "-c", text], cwd=self.folder, env={**os.environ, "PATH": place}, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        ) as process:  # fmt: skip
            try:
                out, _ = process.communicate(timeout=120)
            finally:
                end(process)
        assert process.returncode == 0, f"{text}\n{out}"
        return out

    def start(self, text: str, shown: str) -> str:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        words = [sys.executable, "-m", *shlex.split(text, comments=True), "--port", str(port)]
        self.servers.append(Server(words + ["--no-open"] * (words[3] == "view"), port))
        return self.servers[-1].says_until(shown.splitlines()[-1] if shown else "listening on")

    def close(self) -> None:
        for server in self.servers:
            server.close()


class Server:
    """A command that goes on until it is ended."""

    def __init__(self, words: list[str], port: int) -> None:
        self.address = f"127.0.0.1:{port}"
        self.lines: Queue[str] = Queue()
        self.process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, start_new_session=True)
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.put(line)

    def says_until(self, last: str) -> str:
        """Its lines up to the one that reads so."""
        said = ""
        while not said or last.split("127.0.0.1")[0] not in said.splitlines()[-1]:
            try:
                said += self.lines.get(timeout=90)
            except Empty:
                pytest.fail(f"{self.process.args} did not say {last!r} but: {said}")
        return said

    def close(self) -> None:
        end(self.process)
        self.process.wait(20)
        assert self.process.stderr is not None
        self.process.stderr.close()


def end(process: subprocess.Popen[str]) -> None:
    """The process and whatever it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def as_shown(printed: str, shown: str) -> bool:
    """Whether this is what the page shows: ``…`` stands for anything, a port for any; long lines may be broken."""
    said, *parts = (
        re.sub(r"\s+", "", re.sub(r"(127\.0\.0\.1):\d+", r"\1:N", text)) for text in (printed, *shown.split("…"))
    )
    return re.fullmatch(".*?".join(map(re.escape, parts)), said, re.DOTALL) is not None


def write_csv(file: Path, rows: list[dict[str, str]]) -> None:
    with file.open("w", encoding="utf-8", newline="") as out:
        table = csv.DictWriter(out, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


def write_jsonl(file: Path, rows: list[dict[str, str]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_task(folder: Path, labels: tuple[str, ...], train: int = 24, test: int = 6) -> None:
    """A folder of made-up rows; the words of a row give its label away."""
    folder.mkdir(parents=True)
    words = ["good", "dull", "fine", "poor", "warm", "flat", "rich", "thin", "kind", "cold", "deft", "weak"]
    for split, count in (("train", train), ("test", test)):
        rows = [{"input": f"the {n}th {split} text is {words[n % 12]}", "output": labels[n % 12 % len(labels)]}
                for n in range(count)]  # fmt: skip
        write_jsonl(folder / f"{split}.jsonl", rows)


MAKES_ITS_POOL = {"README", "look-around", "use-a-cluster", "large-pools", "serve"}
"""Pages whose reader has no pool before the first command."""
REAL_DATA = {"many-shots": "trec", "large-pools": "sst2", "use-your-own-embedder": "trec"}
"""Pages that say what a data set gives: the slow test reads that one."""


def furnish(page: str, folder: Path, home: Path) -> None:
    """What the reader has before the first command, under the names that pages give it."""
    feelings, kinds = ("positive", "negative"), ("place", "person", "number")
    write_task(folder / "my-task", feelings, train=130)
    write_task(folder / "sst2", feelings, train=110)
    write_task(home / "datasets" / "sst2", feelings)
    if not (home / "datasets" / "trec").exists():
        write_task(home / "datasets" / "trec", kinds)
    for number in ("", "1", "2", "3", "4"):
        write_task(folder / f"TASK{number}", kinds, train=60)  # 40 are set apart by a training
    (folder / "iclkit").symlink_to(ROOT / "iclkit")  # commands are typed in a clone
    support = load_task("support").train
    rows = [{"text": e.text, "ticket_text": e.text, "team": str(e.output), "customer": f"c{n % 90}"}
            for n, e in enumerate(support)]  # fmt: skip
    write_csv(folder / "tickets.csv", rows if page == "your-own-data" else rows[:60])
    write_csv(folder / "inputs.csv", [{"text": row["text"]} for row in rows])
    write_jsonl(
        folder / "questions.jsonl",
        [{"text": row["text"], "type": row["team"]} for row in (rows if page == "use-a-cluster" else rows[:40])],
    )
    write_jsonl(folder / "pairs.jsonl", [{"input": e.text, "output": str(e.output)} for e in support[:3]])
    (folder / "words.txt").write_text("Say how it sounds.\nPositive or negative?\n", encoding="utf-8")
    if page not in MAKES_ITS_POOL:
        fill(folder / "demos.db", [replace(e, meta={"tenant": "acme"}, id="") for e in support[:110]])
    fill(folder / "tickets.db", support)


def fill(file: Path, examples: Iterable[Example]) -> None:
    with Pool.open(file) as pool:
        pool.add(examples)


def label_some(folder: Path) -> None:
    """What the reader does with a sheet: fills in the column of outputs, here of its first ten rows."""
    with (folder / "sheet.csv").open(encoding="utf-8", newline="") as file:
        rows = [*csv.DictReader(file)]
    for row in rows[:10]:
        row["output"] = "refund"
    write_csv(folder / "sheet.csv", rows)


BY_HAND: dict[str, Callable[[Path], None]] = {"iclkit pool label inputs.db --write": label_some}
"""After a command that begins so, what the page tells the reader to do by hand."""
BEFORE = {"measure-the-gain": "iclkit task new tickets tickets.csv --input text --output team"}
"""What another page has told the reader to do."""


def follow(reader: Reader, left_out: dict[tuple[str, str], str]) -> None:
    """Does what the page says, in its order, but what is listed in ``left_out``."""
    furnish(reader.page, reader.folder, reader.home)
    try:
        if reader.page in BEFORE:
            reader.type(Command(reader.page, BEFORE[reader.page]))
        for step in STEPS[reader.page]:
            if isinstance(step, File):
                (reader.folder / step.name).write_text(step.text, encoding="utf-8")
            elif runs_here(step) and listed(step, left_out) is None:
                printed = reader.type(step)
                fits = not step.shown or any(as_shown(text, step.shown) for text in printed)
                assert fits, f"{step.text} printed:\n{printed[-1]}"
                for begins, do in BY_HAND.items():
                    if step.text.startswith(begins):
                        do(reader.folder)
    finally:
        reader.close()


@pytest.fixture
def reader(
    page: str, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Reader:
    (folder := tmp_path / "reader").mkdir()
    home.mkdir(exist_ok=True)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.syspath_prepend(str(folder))
    return Reader(page, folder, home, capsys)


WITH_MODELS = {"integrations", "large-pools", "look-around", "many-shots", "serve", "train-a-retriever",
               "use-a-cluster", "use-gpus", "use-your-own-embedder"}  # fmt: skip
"""Pages whose slow commands load the models that they name."""
QUICK = sorted({c.page for c in ALL if runs_here(c) and listed(c, SLOW) is None})
LONG = sorted({c.page for c in ALL if runs_here(c) and listed(c, SLOW) is not None})


def stand_in(reader: Reader, monkeypatch: pytest.MonkeyPatch, *, embedder: bool = True) -> None:
    """Fakes answer to the names of models."""
    monkeypatch.setattr("iclkit.lm.load_lm", lambda *a, **k: FakeLM())
    monkeypatch.setattr("iclkit.cli._kit.fetch", lambda *a, **k: None)
    if embedder:
        monkeypatch.setattr("iclkit.embed.load_embedder", lambda *a, **k: HashEmbedder())
        monkeypatch.setattr("iclkit.models.resolve", lambda *a, **k: reader.home)


@pytest.mark.models
@pytest.mark.parametrize("page", QUICK)
def test_the_commands_of_a_page_run_as_typed(
    page: str, reader: Reader, minilm_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shows_picks = page == "README"
    stand_in(reader, monkeypatch, embedder=not shows_picks)
    if shows_picks:
        (reader.home / "models").symlink_to(minilm_path.parent)
    follow(reader, SLOW)


@pytest.mark.slow
@pytest.mark.models
@pytest.mark.parametrize("page", LONG)
def test_the_longer_commands_of_a_page_run_as_typed(
    page: str,
    reader: Reader,
    minilm_path: Path,
    smollm2_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    if page not in WITH_MODELS:
        stand_in(reader, monkeypatch)
    if page in REAL_DATA:
        (reader.home / "datasets").mkdir()
        data = request.getfixturevalue("shared_data") / REAL_DATA[page]
        (reader.home / "datasets" / "trec").symlink_to(data)
        if page == "large-pools":
            fill(reader.folder / "demos.db", load_task(str(data)).train)
    (reader.home / "models").symlink_to(minilm_path.parent)
    if page != "train-a-retriever":  # which makes it
        shutil.copytree(minilm_path, reader.folder / "my-retriever")
    follow(reader, {})
