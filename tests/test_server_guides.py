"""The commands of the guides on servers, run as they are typed there.

Replaced are the data set (by a folder of made-up reviews) and the address of a server of one's own, which only the
reader has. vLLM, OpenAI and Azure are stand-ins (``tests/lm/openai_server.py``); llama.cpp is llama.cpp.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from iclkit.cli import main

from .gguf_files import convert_to_gguf
from .lm.openai_server import ToyServer
from .lm.test_openai_real import SERVE

GUIDES = Path(__file__).parent.parent / "docs" / "guides"
VLLM = ("completions", "echo", "prompt_logprobs", "logprobs", "logprob_ids", "lists", "tokenize", "models")
HOSTED = ("chat", "chat_logprobs", "batch", "new")
Say = Callable[[str], tuple[str, str]]


def commands(guide: str) -> list[str]:
    """The iclkit commands of a guide's console blocks, without comments."""
    blocks = re.findall(r"```console\n(.*?)```", (GUIDES / guide).read_text(encoding="utf-8"), re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    found = [line.removeprefix("$ ") for line in lines if line.startswith("$ iclkit ")]
    assert found, guide
    return found


@pytest.fixture
def say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], minilm_path: Path) -> Say:
    """Types a command where nothing was run before; (stdout, stderr) of one that ended well."""
    (task := tmp_path / "reviews").mkdir()
    for name, count in (("train", 10), ("test", 3)):
        rows = [{"input": f"{('good', 'dull')[n % 2]} {name} {n}", "output": ("positive", "negative")[n % 2]}
                for n in range(count)]  # fmt: skip
        (task / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    for name in ("ICLKIT_API_KEY", "OPENAI_BASE_URL", "AZURE_OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)

    def type_(command: str) -> tuple[str, str]:
        home = tmp_path / f"home{len([*tmp_path.iterdir()])}"
        home.mkdir()
        (home / "models").symlink_to(minilm_path.parent)
        monkeypatch.setenv("ICLKIT_HOME", str(home))
        shutil.rmtree("runs", ignore_errors=True)
        words = shlex.split(command, comments=True)[1:]
        with pytest.raises(SystemExit) as ended:
            main(["reviews" if word == "sst2" else word for word in words])
        out, err = capsys.readouterr()
        assert ended.value.code == 0, f"{command}: {err}"
        return out, err

    return type_


@pytest.fixture
def stand_in() -> Iterator[Callable[..., ToyServer]]:
    servers: list[ToyServer] = []

    def start(name: str, *offers: str, **facts: Any) -> ToyServer:
        servers.append(ToyServer(*offers, **facts))
        servers[-1].name = name
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.mark.models
def test_the_commands_for_vllm(say: Say, stand_in: Callable[..., ToyServer]):
    server = stand_in("Qwen/Qwen3-8B", *VLLM, window=32768)
    said = [say(c.replace("http://127.0.0.1:8000/v1", server.url)) for c in commands("use-your-vllm-server.md")]
    checked = said[0][0]
    for line in ("token-ids", "32,768", "prompt-logprobs"):
        assert line in checked
    assert "knn" in said[1][0]


@pytest.mark.models
def test_the_commands_for_openai(say: Say, stand_in: Callable[..., ToyServer], monkeypatch: pytest.MonkeyPatch):
    server = stand_in("gpt-4.1-mini", *HOSTED)
    monkeypatch.setenv("COLUMNS", "200")  # a narrow board has no cost
    monkeypatch.setenv("OPENAI_API_KEY", "sk-stand-in-0123456789")
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    said = dict(zip(asked := commands("use-openai-or-azure.md"), map(say, asked), strict=True))
    for command, (out, err) in said.items():
        if "--dry-run" in command:
            assert "cost, about" in out
        elif " --max-cost" in command:
            assert "cost / 1,000" in out
            assert ": spent " in err
        elif " --batch" in command:
            assert "batch batch_1: completed" in err
    assert sum(server.asked[path] for path in server.asked if path.startswith("/v1/batches")) > 0
    assert any("sk-stand-in-0123456789" in h.get("Authorization", "") for h in server.headers)


@pytest.fixture
def llama_server(tmp_path: Path, smollm2_path: Path) -> Iterator[str]:
    """llama.cpp's server on the weights that the guide names; its address."""
    pytest.importorskip("xllamacpp", reason="the server of llama.cpp is not installed: pip install xllamacpp")
    weights = convert_to_gguf(smollm2_path, tmp_path / "model.Q4_K_M.gguf", "Q4_0")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, "-c", SERVE, str(weights)], text=True, **pipes) as process:  # type: ignore[call-overload]
        yield process.stdout.readline().strip()
        process.stdin.close()
        process.wait(20)


@pytest.mark.slow
@pytest.mark.models
def test_the_commands_for_llama_cpp(say: Say, llama_server: str):
    said = {c: say(c.replace("http://127.0.0.1:8080", llama_server)) for c in commands("use-ollama-or-llama-cpp.md")}
    for command, (out, _) in said.items():
        assert "next-token" in out if " lm check " in command else "knn" in out
    assert len(said) == 3
