"""``NAME,dtype=bf16,query_prefix=query: `` : an embedder or a reranker with its settings, as one text.

The text is what a command takes, what a run records, and what loads the same model again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from iclkit.errors import UsageError

SETTINGS = {
    "dtype": "fp32, bf16, or auto (bf16 where the hardware computes in it)",
    "query_prefix": "what stands in front of queries",
    "document_prefix": "what stands in front of examples",
}
DTYPES = ("auto", "fp32", "bf16")


def split_spec(text: str, known: tuple[str, ...] = tuple(SETTINGS)) -> tuple[str, dict[str, str]]:
    """The name before the settings, and the settings. A value ends where ``,KEY=`` begins the next one.

    ``\\n`` in a value is a line break. A text that names a folder is a name as it stands. UsageError for a setting that
    is not known or given twice.

    >>> split_spec("intfloat/e5-base,query_prefix=query: ,dtype=bf16")
    ('intfloat/e5-base', {'query_prefix': 'query: ', 'dtype': 'bf16'})
    """
    if Path(text).exists():
        return text, {}
    name, *parts = re.split(rf",({'|'.join(SETTINGS)})=", text)
    odd = re.search(r",\s*(\w+)=", name)
    if odd and not Path(name).exists():
        raise UsageError(f"{text!r}: no setting is called {odd[1]!r}; known: {', '.join(known)}")
    settings: dict[str, str] = {}
    for key, value in zip(parts[::2], parts[1::2], strict=True):
        if key in settings:
            raise UsageError(f"{text!r}: {key} is given twice")
        if key not in known:
            raise UsageError(f"{text!r}: {key} cannot be set here; known: {', '.join(known)}")
        settings[key] = value.replace("\\n", "\n")
    return name, settings


def join_spec(name: str, settings: Mapping[str, str | None]) -> str:
    """The text that ``split_spec`` takes apart; settings that are None, and fp32, are left out."""
    said = {k: v for k, v in settings.items() if v is not None and (k, v) != ("dtype", "fp32")}
    return name + "".join(f",{key}={value}".replace("\n", "\\n") for key, value in said.items())


def absolute_spec(text: str) -> str:
    """The same embedder or reranker with the folders and files that it names given by their whole paths."""
    name, settings = split_spec(text)
    way, colon, rest = name.partition(":")
    if colon and not Path(name).exists():
        parts = [str(Path(part).resolve()) if part and Path(part).exists() else part for part in rest.split("@")]
        return join_spec(f"{way}:{'@'.join(parts)}", settings)
    return join_spec(str(Path(name).resolve()) if Path(name).exists() else name, settings)


def checked_dtype(dtype: str) -> str:
    """The dtype, or a UsageError that names the ones there are."""
    if dtype not in DTYPES:
        raise UsageError(f"dtype is {dtype!r}; use {', '.join(DTYPES[:-1])} or {DTYPES[-1]}")
    return dtype
