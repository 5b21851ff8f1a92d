"""llama.cpp inside: ``gguf:PATH`` starts its server in a process of its own, which is asked like any other server.

Every architecture that llama.cpp knows, with quantised weights in memory. Its sums are other ones than those of the
dequantised weights (``--lm PATH``), so its fingerprint is another one, too.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import subprocess
import sys
import weakref
from importlib.metadata import version
from pathlib import Path
from typing import IO

from iclkit.engines import usable_cores
from iclkit.errors import ModelError, UnknownName, UsageError
from iclkit.lm._servers import OpenAILM, connect
from iclkit.records import Json
from iclkit.registry import parse_spec

PREFIX = "gguf:"
LONGEST_CONTEXT = 8192
"""Tokens that are read where no ``context`` is given, or as many as the model was trained on."""
_SETTINGS = ("context", "threads", "gpu_layers", "scoring", "answer_tokens", "thought_tokens", "revision")

# Runs in a process of its own: a crash of native code ends that process, and its end of the pipe ends with ours.
_SERVE = """
import json, sys, xllamacpp
path, context, threads, layers = json.loads(sys.argv[1])
params = xllamacpp.CommonParams()
params.model.path = path
params.n_ctx, params.n_parallel = context, 1
if layers is not None:
    params.n_gpu_layers = layers
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
sys.stdin.read()
"""


def open_gguf(spec: str) -> OpenAILM:
    """The LM at ``gguf:PATH[,context=N][,threads=N][,gpu_layers=N]``. ModelError where it does not load.

    One slot and one request at a time: so labels of a context find it in the server's cache.
    """
    from iclkit.models import check_gguf, gguf_hash

    parsed = parse_spec(spec)
    for name in parsed.settings:
        if name not in _SETTINGS:
            raise UnknownName("setting of gguf:PATH", name, _SETTINGS)
    path = check_gguf(Path(parsed.name.removeprefix(PREFIX)).expanduser())
    if importlib.util.find_spec("xllamacpp") is None:
        raise ModelError(
            'llama.cpp is not installed: pip install "iclkit[llama-cpp]", or give the file itself '
            f"(--lm {path}), which is then converted for the own engine"
        )
    settings = dict(parsed.settings)
    context = _whole(settings, "context", min(LONGEST_CONTEXT, _trained_context(path)))
    threads = _whole(settings, "threads", usable_cores())
    layers = _whole(settings, "gpu_layers", -1) if "gpu_layers" in settings else None
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVE, json.dumps([str(path), context, threads, layers])],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace",
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    errors = _Tail(process.stderr)
    address = process.stdout.readline().strip()
    if not address.startswith("http://127.0.0.1:"):
        _stop(process)
        raise ModelError(f"llama.cpp does not load {path}: {errors.last() or 'no reason given'}")
    # the address differs from start to start: what answers is known by the file, the engine and its context
    identity = f"llamacpp|xllamacpp{version('xllamacpp')}|{gguf_hash(path)}|{context}"
    rest: dict[str, Json] = {k: v for k, v in settings.items() if k not in ("threads", "gpu_layers", "context")}
    try:
        _, client, config = connect(
            f"openai:gguf@{address}", context=context, concurrency=1, timeout=600.0, retries=1, **rest
        )
        lm = OpenAILM(path.stem, client, config, identity=identity)
    except BaseException:
        _stop(process)
        raise
    weakref.finalize(lm, _stop, process)
    return lm


def _whole(settings: dict[str, Json], name: str, default: int) -> int:
    value = settings.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or (value < 1 and name != "gpu_layers"):
        raise UsageError(f"{name} is {value!r}: expected a whole number, at least 1")
    return value


def _trained_context(path: Path) -> int:
    """How many tokens the model was trained to read, as the file says."""
    from gguf import GGUFReader

    from iclkit.models import load_errors

    with load_errors(f"{path} cannot be read as GGUF"):
        fields = GGUFReader(path).fields
        architecture = fields["general.architecture"].contents()
        field = fields.get(f"{architecture}.context_length")
        return int(field.contents()) if field is not None else LONGEST_CONTEXT


def _stop(process: subprocess.Popen[str]) -> None:
    """End the server: it ends when its input does."""
    with contextlib.suppress(OSError, ValueError):
        if process.stdin is not None:
            process.stdin.close()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class _Tail:
    """The last line of a stream that is read to its end, so that who writes to it never waits."""

    def __init__(self, stream: IO[str]) -> None:
        import threading

        self._last = ""
        self._thread = threading.Thread(target=self._read, args=(stream,), daemon=True)
        self._thread.start()

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            if line.strip():
                self._last = line.strip()

    def last(self) -> str:
        """The last line, once the stream is at its end."""
        self._thread.join(5)
        return self._last
