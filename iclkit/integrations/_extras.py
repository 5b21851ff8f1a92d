"""What a tool's module needs before it can be loaded."""

from __future__ import annotations

from importlib import metadata

from iclkit.errors import UsageError
from iclkit.extras import install_command


def require(extra: str, package: str, minimum: str) -> None:
    """UsageError, with the command that helps, unless ``package`` is installed in version ``minimum`` or newer.

    >>> require("sklearn", "scikit-learn", "0.1")
    """
    command = install_command(extra)
    try:
        version = metadata.version(package)
    except metadata.PackageNotFoundError as error:
        raise UsageError(f"iclkit.integrations needs {package} here, which is not installed: {command}") from error
    if _numbers(version) < _numbers(minimum):
        raise UsageError(f"iclkit needs {package} {minimum} or newer, and {version} is installed: {command} --upgrade")


def _numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version.

    >>> _numbers("1.10.0rc1")
    (1, 10, 0)
    """
    numbers = []
    for part in version.split("."):
        digits = part[: next((n for n, c in enumerate(part) if not c.isdigit()), len(part))]
        if not digits:
            break
        numbers.append(int(digits))
        if digits != part:
            break
    return tuple(numbers)
