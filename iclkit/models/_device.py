"""What models compute with: the device, number formats, threads; and transformers kept quiet while it loads."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iclkit.errors import ModelError, UsageError

if TYPE_CHECKING:
    import torch

DTYPES = ("auto", "fp32", "bf16")
WORKING_MEMORY = 256 << 20  # bytes that kernels and a first batch take beside the weights of the smallest model


def find_device(name: str | None) -> torch.device:
    """The device of that name, of several the first; without one a GPU where there is one. UsageError as
    ``find_devices``."""
    return find_devices(name)[0]


def find_devices(names: str | None, gpus: int | None = None) -> list[torch.device]:
    """The devices of these names (``cuda:0,cuda:1``), or the first ``gpus``; without either all GPUs, or the CPU.

    A device may be named twice. UsageError for a name that torch does not know and for devices of two kinds, whose
    answers would differ.
    """
    import torch

    here = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus is not None:
        if names is not None:
            raise UsageError(f"device {names!r} and gpus {gpus}: give one of the two")
        if not 1 <= gpus <= here:
            raise UsageError(f"gpus is {gpus}: torch sees {here} GPUs here")
        return [torch.device("cuda", n) for n in range(gpus)]
    if names is None:
        return [torch.device("cuda", n) for n in range(here)] or [torch.device("cpu")]
    devices = []
    for name in names.split(","):
        try:
            device = torch.device(name.strip())
        except RuntimeError as error:
            raise UsageError(f"device is {name!r}; expected cpu, cuda, cuda:N or several, as cuda:0,cuda:1") from error
        if device.type == "cuda" and (device.index or 0) >= here:
            raise UsageError(f"device {name!r} is not here: torch sees {here} GPUs")
        devices.append(device)
    if len({d.type for d in devices}) > 1:
        raise UsageError(f"device is {names!r}: several devices must be of one kind, or their scores would differ")
    return devices


def placement(module: Any) -> list[str]:
    """Where the parts of a spread model lie: cuda:0, cuda:1, cpu, disk; each once, in the order of its layers."""
    places = vars(module).get("hf_device_map", {"": module.device})  # no map: all of it fits one place
    return [*dict.fromkeys(f"cuda:{p}" if isinstance(p, int) else str(p) for p in places.values())]


def supports_bf16(device: torch.device) -> bool:
    """Whether bf16 products are done by the hardware there, rather than emulated: GPUs from compute capability 8.0 on,
    CPUs with AMX or AVX512-BF16."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return False
    checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")  # not in every build of torch
    return any(bool(getattr(torch.cpu, check, bool)()) for check in checks)


def resolve_dtype(dtype: str, device: torch.device) -> str:
    """fp32 or bf16: what ``auto`` means on that device."""
    return ("bf16" if supports_bf16(device) else "fp32") if dtype == "auto" else dtype


def torch_dtype(dtype: str) -> torch.dtype:
    """torch's own name of fp32 or bf16."""
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]


def room_to_grow() -> int | None:
    """Bytes by which this process may still grow before its own limit (``ulimit -v``); None where there is none."""
    try:
        import resource

        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except (ImportError, OSError):  # not on this system
        return None
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if limit == resource.RLIM_INFINITY else max(0, limit - used)


def check_memory(folder: Path) -> None:
    """ModelError where a process with a limit has no room for the weights of a folder and for computing with them.

    Libraries that compute crash or hang where memory ends inside them, so this is asked before they are.
    """
    room = room_to_grow()
    if room is None:
        return
    needed = sum(file.stat().st_size for file in folder.rglob("*.safetensors")) + WORKING_MEMORY
    if room < needed:
        raise ModelError(
            f"not enough memory for the model in {folder}: it takes about {needed >> 20} MB, and this process may grow "
            f"by {room >> 20} MB (ulimit -v); raise that limit or use a smaller model"
        )


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """torch with that many threads, and as before afterwards."""
    import torch

    before = torch.get_num_threads()
    if count is None or count == before:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def share_threads(workers: int) -> None:
    """torch, where it is loaded, with no more threads per call than keep each of ``workers`` threads of ours busy."""
    torch = sys.modules.get("torch")
    if torch is not None and workers > 1:
        torch.set_num_threads(max(1, torch.get_num_threads() // workers))


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No bars, warnings or log lines from transformers and accelerate inside; all as before afterwards."""
    from transformers.utils import logging as chatter

    level, spreader = chatter.get_verbosity(), logging.getLogger("accelerate")
    before = spreader.level
    chatter.set_verbosity(50)  # errors too: they come as exceptions or in the loading info
    spreader.setLevel(logging.ERROR)
    try:
        with without_bars(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        chatter.set_verbosity(level)
        spreader.setLevel(before)


@contextmanager
def without_bars() -> Iterator[None]:
    """No progress bars from transformers inside: its savers draw them into files and pipes too. Also a decorator."""
    from transformers.utils import logging as chatter

    bars = chatter.is_progress_bar_enabled()
    chatter.disable_progress_bar()
    try:
        yield
    finally:
        if bars:
            chatter.enable_progress_bar()
