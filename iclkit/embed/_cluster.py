"""Documents encoded on the machines of a cluster: jobs are lists of texts, results are their vectors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from iclkit import models
from iclkit.embed._protocol import Embedder, FloatArray, encode_checked
from iclkit.embed._spec import absolute_spec, split_spec
from iclkit.errors import ModelError, UsageError

if TYPE_CHECKING:
    from iclkit.engines import RayEngine

Texts = tuple[str, ...]


def embedding_engine(
    engine: str, embedder: Embedder, name: str, *, workers: int | None = None, threads: int | None = None
) -> RayEngine[Texts, FloatArray]:
    """The engine ``ray[:ADDRESS]`` for the documents of an embedder, of which ``name`` is what loads it elsewhere.

    Each worker loads the embedder by its name, or from the same path, and fetches nothing. UsageError for an embedder
    that is no folder or catalogue name.
    """
    from iclkit.engines import RayEngine, ray_address

    bare, _ = split_spec(name)
    if ":" in bare and not Path(bare).exists():
        raise UsageError(f"--engine shares the work of embedders that are folders; {name} is not one")
    return RayEngine(
        lambda texts: encode_checked(embedder, texts, "document"),
        "iclkit.embed._cluster:load_same",
        {
            "name": absolute_spec(name),
            "fingerprint": embedder.document_fingerprint,
            "threads": threads or 1,
        },
        address=ray_address(engine),
        workers=workers,
        threads=threads or 1,
    )


def load_same(name: str, fingerprint: str, threads: int) -> Callable[[Texts], FloatArray]:
    """What a worker does with its texts. ModelError where the embedder is not there, or is another."""
    from iclkit.embed._load import load_embedder

    bare, _ = split_spec(name)
    models.resolve(bare, "embedder", pull=False)
    embedder = load_embedder(name, device="cpu", threads=threads)
    if embedder.document_fingerprint != fingerprint:
        raise ModelError(f"the embedder {name} is another one there: its documents would have other vectors")
    return lambda texts: encode_checked(embedder, texts, "document")
