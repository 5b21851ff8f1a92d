"""A file to annotate: inputs of a pool that represent it, waiting for what is to be written about each."""

from __future__ import annotations

import json
from collections.abc import Sequence

from iclkit.embed import Embedder
from iclkit.errors import DataError
from iclkit.pool import PoolView
from iclkit.records import Fields, Query
from iclkit.selectors._base import Kit
from iclkit.selectors._facility import KMeansSelector
from iclkit.selectors._rewriter import RewriteStyle


def annotation_file(pool: PoolView, embedder: Embedder, style: str, count: int = 16, seed: int = 0) -> str:
    """A style as TOML, whose pairs hold ``count`` inputs of the pool, each without its rewriting.

    The inputs are the examples nearest to the centers of ``count`` clusters, so that they differ. Instruction and stem
    are those of ``style``, to begin with. DataError for a pool whose inputs do not have the same fields.
    """
    chooser = KMeansSelector().fit(pool, Kit(embedder, seed=seed))
    inputs = [e.input for e in chooser.select(Query("", id="annotate"), count).examples]
    first = RewriteStyle.load(style)
    lines = [
        "# For skill-knn,style=THIS FILE: write what each input needs, in the words that stand behind the stem.",
        "# An LM is shown instruction and pairs, and writes the same for every other input.",
        f"instruction = {_toml(first.instruction)}",
        f"stem = {_toml(first.stem)}",
    ]
    for given in _of_one_shape(inputs):
        lines += ["", "[[pairs]]", f"input = {_input(given)}", 'rewriting = ""']
    return "\n".join(lines) + "\n"


def _of_one_shape(inputs: Sequence[Fields]) -> Sequence[Fields]:
    shapes = {frozenset() if isinstance(given, str) else frozenset(given) for given in inputs}
    if len(shapes) > 1:
        kinds = " and ".join(sorted(", ".join(sorted(shape)) or "one text" for shape in shapes))
        raise DataError(f"inputs of the pool have different fields ({kinds}); annotate a part: --task-name or --where")
    return inputs


def _input(given: Fields) -> str:
    if isinstance(given, str):
        return _toml(given)
    return "{" + ", ".join(f"{_toml(name)} = {_toml(text)}" for name, text in given.items()) + "}"


def _toml(text: str) -> str:
    """A basic string: JSON's escapes are TOML's, which does not take DEL as it is."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
