"""Memory that will not suffice is refused before a library that computes meets its end."""

from __future__ import annotations

import subprocess
import sys

import pytest

from iclkit.errors import ModelError
from iclkit.models import _device as device
from iclkit.models import check_memory


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "0_Part").mkdir()
    (tmp_path / "model.safetensors").write_bytes(b"x" * (3 << 20))
    (tmp_path / "0_Part" / "model.safetensors").write_bytes(b"x" * (2 << 20))
    return tmp_path


def test_a_model_larger_than_the_room_is_refused_with_both_sizes(folder, monkeypatch):
    monkeypatch.setattr(device, "room_to_grow", lambda: 64 << 20)
    with pytest.raises(ModelError, match=r"it takes about 261 MB, and this process may grow by 64 MB \(ulimit -v\)"):
        check_memory(folder)


@pytest.mark.parametrize("room", [None, 261 << 20])
def test_a_model_that_fits_is_not(folder, monkeypatch, room):
    monkeypatch.setattr(device, "room_to_grow", lambda: room)
    check_memory(folder)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_room_is_what_the_limit_leaves():
    code = """
import resource
from pathlib import Path
from iclkit.models._device import room_to_grow
assert room_to_grow() is None or room_to_grow() > 0
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (100 << 20), used + (100 << 20)))
print(room_to_grow() >> 20)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert 80 <= int(out) <= 101
