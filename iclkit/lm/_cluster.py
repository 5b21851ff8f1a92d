"""A local model on the machines of a cluster: how workers load it, and that it is the one that is here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iclkit.engines import RayEngine, ray_address
from iclkit.errors import ModelError, UsageError

if TYPE_CHECKING:
    from iclkit.lm._forward import ForwardJob, ForwardModel, ForwardResult


def cluster_engine(
    engine: str,
    spec: str,
    model: ForwardModel,
    fingerprint: str,
    settings: Mapping[str, Any],
    *,
    device: str,
    workers: int | None,
) -> RayEngine[ForwardJob, ForwardResult]:
    """The engine ``ray[:ADDRESS]`` for a loaded model. ``settings`` as ``load_model`` takes them."""
    path = Path(spec).expanduser()
    kind = device.partition(":")[0]
    return RayEngine(
        model.compute,
        "iclkit.lm._cluster:load_same",
        {
            **settings,
            "spec": str(path.absolute()) if path.exists() else spec,
            "fingerprint": fingerprint,
            "device": kind,
            "batch_tokens": model.batch_tokens,
        },
        address=ray_address(engine),
        workers=workers,
        threads=settings["threads"] or 1,
        gpus=kind == "cuda",
    )


def load_same(spec: str, fingerprint: str, **settings: Any) -> Callable[[ForwardJob], ForwardResult]:
    """What a worker on another machine does with its jobs.

    The model is found there as it is here, by name or at the same path; nothing is fetched. ModelError where it is not,
    or is another.
    """
    from iclkit import models
    from iclkit.lm._load import load_model, torch_fingerprint

    folder = models.resolve(spec, "lm", pull=False)
    models.check_folder(folder, own_code="run" if settings["trust_remote_code"] else "ignore")
    model, _ = load_model(**{**settings, "folder": str(folder)})
    found = torch_fingerprint(model, folder, settings["dtype"], settings["device"])
    if found != fingerprint:
        raise ModelError(
            f"the model {spec} is another one there: it has the fingerprint {found}, here it is {fingerprint}"
        )
    return model.compute


def check_engine(engine: str | None, spec: str, dtype: str) -> None:
    """UsageError where an engine is asked for that this LM cannot have."""
    if engine is None:
        return
    ray_address(engine)
    if spec.startswith(("openai:", "gguf:", "vllm:")):
        raise UsageError(f"--engine shares the work of local models; {spec} is asked where it runs")
    if dtype == "bf16-verified":
        raise UsageError(
            "--engine needs one copy of the model on each machine; bf16-verified has two: give bf16 or fp32"
        )
