"""Wheel and source archive: what is in them, what they say of themselves, and that a copy without a checkout works."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

from iclkit import __version__
from iclkit.extras import _command, install_command

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
FILES = {str(f.relative_to(ROOT)) for f in (ROOT / "iclkit").rglob("*") if f.is_file() and "__pycache__" not in f.parts}


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    (path,) = dist.glob("*.whl")
    return path


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {n for n in names if ".dist-info/" not in n} == FILES
    assert {Path(n).name for n in names if ".dist-info/" in n} == {
        "METADATA",
        "WHEEL",
        "RECORD",
        "entry_points.txt",
        "LICENSE",
    }
    assert wheel.stat().st_size < 1_500_000  # a package is code: models and data are fetched


def test_the_source_archive_can_be_built_from_and_holds_no_tests(dist: Path) -> None:
    (path,) = dist.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {n.partition("/")[2] for n in archive.getnames()}
    texts = {"README.md", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "SECURITY.md", "LICENSE"}
    assert names >= FILES | texts | {"pyproject.toml", "constraints.txt"}
    assert {n.partition("/")[0] for n in names} == texts | {
        "iclkit",
        "pyproject.toml",
        "constraints.txt",
        "PKG-INFO",
        ".gitignore",
    }


def test_what_it_says_of_itself_is_true(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    about = message_from_string(archive.read(f"iclkit-{__version__}.dist-info/METADATA").decode())
    assert about["Version"] == __version__
    assert about["Requires-Python"] == ">=3.11"
    for minor in (11, 12, 13, 14):
        assert f"Programming Language :: Python :: 3.{minor}" in (about.get_all("Classifier") or [])
    assert f"version: {__version__}" in (ROOT / "CITATION.cff").read_text()
    source = "\n".join(archive.read(n).decode() for n in archive.namelist() if n.endswith(".py"))
    named = {
        *re.findall(r"install_command\(['\"]([\w-]+)['\"]\)", source),
        *re.findall(r"require\(\"([\w-]+)\"", source),
    }
    assert named - {"sklearn"} <= PROJECT["optional-dependencies"].keys()
    assert named > {"serve", "train", "langchain"}


def test_a_copy_without_a_checkout_works(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import iclkit; from iclkit.extras import install_command;"
        "task = iclkit.load_task('support'); print(iclkit.__file__, len(task.train), install_command('train'))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, str(tmp_path)], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(f"{tmp_path / 'iclkit' / '__init__.py'} 600 ")
    assert done.stdout.strip().endswith("pip install 'iclkit[train]'")


@pytest.mark.parametrize(
    ("origin", "command"),
    [
        ({}, "pip install 'iclkit[x]'"),
        ({"url": "file:///my%20src/iclkit", "dir_info": {"editable": True}}, "pip install -e '/my src/iclkit[x]'"),
        ({"url": "file:///src/iclkit", "dir_info": {}}, "pip install '/src/iclkit[x]'"),
        ({"url": "https://host/iclkit.whl", "archive_info": {}}, "pip install 'iclkit[x] @ https://host/iclkit.whl'"),
        (
            {"url": "https://host/iclkit", "vcs_info": {"vcs": "git", "commit_id": "ab12"}},
            "pip install 'iclkit[x] @ git+https://host/iclkit@ab12'",
        ),
    ],
)
def test_the_command_for_an_extra_fits_how_iclkit_was_installed(origin: dict[str, object], command: str) -> None:
    assert _command("x", origin) == command
    assert "[x]" in install_command("x")
