"""``load_lm``: from a name, a folder or an address to an LM that is ready to answer."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iclkit.errors import UnknownName, UsageError
from iclkit.lm._cache import Cache, NoCache, Store, open_cache
from iclkit.lm._cluster import check_engine, cluster_engine
from iclkit.records import GenerateRequest, ScoreRequest
from iclkit.registry import parse_spec

if TYPE_CHECKING:
    from iclkit.engines import Engine
    from iclkit.lm._forward import ForwardJob, ForwardModel, ForwardResult
    from iclkit.lm._packed import PackedForward
    from iclkit.lm._protocol import LM
    from iclkit.lm._servers import Capabilities
    from iclkit.lm._tokens import PromptTokenizer
    from iclkit.lm._torch import TorchLM

ENGINE = "2"
"""Raised when the arithmetic of the engine changes, so that old cache entries are not taken for new ones."""
SMALL_MODEL = 2 << 30
"""Bytes of weights up to which several copies on one machine are taken for granted."""
MOST_WORKERS = 4
MIN_TOKENS_FOR_WORKERS = 20_000
"""Tokens asked for since loading below which no worker is started: loading costs a process several seconds."""
DTYPES = ("auto", "fp32", "bf16", "bf16-verified")
DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")


def load_lm(
    spec: str,
    *,
    dtype: str = "auto",
    device: str | None = None,
    gpus: int | None = None,
    engine: str | None = None,
    workers: int | None = None,
    threads: int | None = None,
    batch_tokens: int | None = None,
    cache: bool | Path = True,
    packed: bool = True,
    trust_remote_code: bool = False,
    reprobe: bool = False,
    price: str | None = None,
    max_cost: float | None = None,
) -> LM:
    """Load the language model ``spec``: a catalogue name, a Hugging Face id, a local folder, a GGUF file (converted
    once), ``gguf:PATH`` (by llama.cpp), ``openai:MODEL@URL``, or ``vllm:MODEL[,option=value]`` where vLLM is installed.
    Behind a name, id or folder, ``,device_map=auto[,max_memory=[0=20GiB,cpu=60GiB]]`` spreads one copy of the model
    over the GPUs, main memory and the disk.

    dtype: fp32 is the reference; bf16 multiplies in bf16 (logits, norms and residuals stay float32); bf16-verified
    scores close calls again in fp32, so that predictions equal fp32; auto is bf16 where the processor has it.
    device: cpu, cuda, cuda:1, or several (``cuda:0,cuda:1``), a process on each; None takes the GPUs there are. gpus:
    the first so many of them. workers: processes that share the batches; None is one per device, or on CPU one per core
    up to four for a small model (they start once 20,000 tokens have been asked for).
    engine: ``ray`` or ``ray:HOST:PORT``: workers on the machines of a Ray cluster, which must have the same versions
    and the same model (else RunError); ``workers`` None is then one per GPU or core of the cluster. threads: of each
    worker on CPU; None divides the cores, on a cluster it is 1. batch_tokens: tokens per pass; None is 2,048 on CPU,
    and on a GPU what half of its free memory holds, up to 32,768. cache: True for
    ``lm-cache.db`` under ICLKIT_HOME (on a read-only disk what is there is used, and a note says that nothing is kept),
    a path for another file, False for none. packed: False runs the ``transformers`` module itself.
    trust_remote_code: run code from the model's folder. reprobe: find out again what a server can do, which is
    remembered in ``servers`` under ICLKIT_HOME for a week. price: of a server's answers, ``in=0.15,out=0.6`` per
    million tokens or a price file, by which ``usage.cost`` is counted. max_cost: a RunError before more is spent.
    ModelError when the model cannot be loaded whole, RunError when the cache cannot be written, UsageError for a
    setting that cannot be. ``notes`` of what comes back are for the user.
    """
    from iclkit.lm._cached import cached

    if dtype not in DTYPES:
        raise UsageError(f"dtype is {dtype!r}; expected one of {', '.join(DTYPES)}")
    check_engine(engine, spec, dtype)
    if (price, max_cost) != (None, None) and not spec.startswith("openai:"):
        raise UsageError(f"prices are those of servers (openai:MODEL@URL); {spec} costs nothing")
    if gpus is not None and spec.startswith(("openai:", "gguf:", "vllm:")):
        raise UsageError(
            f"gpus is a setting of the own engine, not of {spec}; vLLM takes vllm:MODEL,tensor_parallel_size={gpus}"
        )
    store = _open_cache(cache)
    if spec.startswith("openai:"):
        from iclkit.lm._servers import FolderRecords, open_openai
        from iclkit.models import home

        records = FolderRecords(home() / "servers") if cache is True else None
        lm: LM = open_openai(spec, records, reprobe=reprobe, price=price, max_cost=max_cost)
    elif spec.startswith("gguf:"):
        from iclkit.lm._gguf import open_gguf

        lm = open_gguf(spec)
    elif spec.startswith("vllm:"):
        from iclkit.lm._vllm import open_vllm

        lm = open_vllm(spec, dtype=dtype)
    else:
        from iclkit.lm._verified import VerifiedLM

        def load(mode: str) -> LM:
            lm = load_torch(
                spec,
                dtype=mode,
                device=device,
                gpus=gpus,
                engine=engine,
                workers=workers,
                threads=threads,
                batch_tokens=batch_tokens,
                packed=packed,
                trust_remote_code=trust_remote_code,
            )
            return cached(lm, store)

        return VerifiedLM(load("bf16"), load("fp32")) if dtype == "bf16-verified" else load(dtype)
    return cached(lm, store)


def capabilities(lm: LM) -> Capabilities | None:
    """What was found out about the server behind an LM; None for one that is no server."""
    from iclkit.lm._cached import CachedTextLM
    from iclkit.lm._servers import OpenAILM

    inner = lm.inner if isinstance(lm, CachedTextLM) else lm
    return inner.can if isinstance(inner, OpenAILM) else None


def _open_cache(cache: bool | Path) -> Store:
    if cache is False:
        return NoCache()
    if cache is True:
        from iclkit.models import home

        return open_cache(home() / "lm-cache.db")
    return Cache(cache)


def load_torch(
    spec: str,
    *,
    dtype: str = "auto",
    device: str | None = None,
    gpus: int | None = None,
    engine: str | None = None,
    workers: int | None = 1,
    threads: int | None = None,
    batch_tokens: int | None = None,
    packed: bool = True,
    trust_remote_code: bool = False,
) -> TorchLM:
    """The transformers backend, without a cache around it."""
    from iclkit import models

    if any(n is not None and n < 1 for n in (batch_tokens, workers, threads)):
        raise UsageError(f"batch_tokens {batch_tokens}, workers {workers}, threads {threads}: each must be at least 1")
    spec, split = spread_spec(spec)
    folder = models.resolve(spec, "lm")
    # before a tokenizer of its own is run
    models.check_folder(folder, own_code="run" if trust_remote_code else "ignore")

    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    import torch

    from iclkit.engines import usable_cores
    from iclkit.lm._torch import TorchLM, estimated_tokens

    places = models.find_devices(device, gpus)
    where = places[0]
    if split and (engine or (workers or 1) * len(places if device or gpus else [where]) > 1):
        raise UsageError("device_map spreads one copy of the model: leave out other devices, gpus, workers and engine")
    cores = usable_cores()
    cluster_workers = workers
    if engine is not None:
        workers = 1
    if workers is None:
        small = sum(f.stat().st_size for f in models.weight_files(folder)) <= SMALL_MODEL
        on_cpu = min(cores, MOST_WORKERS) if small and places == [torch.device("cpu")] else 1
        workers = 1 if split else max(len(places), on_cpu)
    if threads is None and where.type == "cpu":
        threads = 1 if engine is not None else max(1, cores // workers)
    mode = models.resolve_dtype(dtype, where)
    settings: dict[str, Any] = {
        "folder": str(folder),
        "name": folder.name if Path(spec).expanduser().absolute() == folder else spec,
        "dtype": mode,
        "threads": threads,
        "batch_tokens": batch_tokens,
        "packed": packed,
        "trust_remote_code": trust_remote_code,
        "split": split,
    }
    model, notes = load_model(device=str(where), **settings)
    if mode == "bf16" and where.type == "cpu" and not models.supports_bf16(where):
        notes = (*notes, "this CPU emulates bf16, which takes several times as long as --dtype fp32")
    spread = dict.fromkeys(p.partition(":")[0] for p in models.placement(model.module)) if split else (where.type,)
    fingerprint = torch_fingerprint(model, folder, mode, "+".join(spread))
    shared: Engine[ForwardJob, ForwardResult] | None = None
    if engine is not None:
        shared = cluster_engine(engine, spec, model, fingerprint, settings, device=str(where), workers=cluster_workers)
    if workers > 1:
        from iclkit.engines import ProcessEngine

        shared = ProcessEngine(
            model.compute,
            "iclkit.lm._load:load_compute",
            [
                {**settings, "batch_tokens": model.batch_tokens, "device": str(places[n % len(places)])}
                for n in range(1, workers)
            ],
            size=estimated_tokens,
            min_size=MIN_TOKENS_FOR_WORKERS,
        )
    return TorchLM(model, fingerprint=fingerprint, engine=shared, notes=notes)


def torch_fingerprint(model: ForwardModel, folder: Path, dtype: str, device: str) -> str:
    """What scores depend on: weights and tokenizer, numbers, arithmetic, versions and the kind of device."""
    import torch
    import transformers

    from iclkit import models

    with models.load_errors(f"the model in {folder} does not run"):
        parts = [
            "torch",
            models.lm_folder_hash(folder, model.codec.files),
            dtype,
            f"{'lean' if model.packed else 'module'}{ENGINE}",  # "lean": what the packed pass was called first
            f"torch{torch.__version__}",
            f"transformers{transformers.__version__}",
            device,
        ]
    return "|".join(parts)


def spread_spec(spec: str) -> tuple[str, dict[str, Any]]:
    """``NAME,device_map=auto[,max_memory=[0=20GiB,cpu=60GiB]]`` -> (NAME, options of ``from_pretrained``).

    No options for a name without any, or for a path that is there as it stands. UsageError for others.
    """
    if "," not in spec or Path(spec).expanduser().exists():
        return spec, {}
    parsed = parse_spec(spec)
    for name in parsed.settings:
        if name not in ("device_map", "max_memory"):
            raise UnknownName("setting of an LM", name, ("device_map", "max_memory"))
    way, limits = parsed.settings.get("device_map", "auto"), parsed.settings.get("max_memory")
    if way not in DEVICE_MAPS:
        raise UsageError(f"device_map is {way!r}; expected one of {', '.join(DEVICE_MAPS)}")
    options: dict[str, Any] = {"device_map": way}
    if limits is not None:
        options["max_memory"] = _limits(str(limits))
    return parsed.name, options


def _limits(text: str) -> dict[int | str, str]:
    """``[0=20GiB,cpu=60GiB]``: memory by GPU number or "cpu"."""
    limits: dict[int | str, str] = {}
    for part in text.strip("[]").split(","):
        place, equals, size = (p.strip() for p in part.partition("="))
        if not equals or not (place.isdigit() or place == "cpu") or not re.fullmatch(r"\d+(\.\d+)?[KMGT]i?B", size):
            raise UsageError(f"max_memory is {text!r}; expected e.g. [0=20GiB,1=20GiB,cpu=60GiB]")
        limits[int(place) if place.isdigit() else place] = size
    return limits


def load_compute(**settings: Any) -> Callable[[ForwardJob], ForwardResult]:
    """What a worker process does with its jobs; settings as ``load_model``."""
    model, _ = load_model(**settings)
    return model.compute


def load_model(
    folder: str,
    name: str,
    *,
    dtype: str,
    device: str,
    threads: int | None,
    batch_tokens: int | None,
    packed: bool,
    trust_remote_code: bool,
    split: Mapping[str, Any] | None = None,
) -> tuple[ForwardModel, tuple[str, ...]]:
    """The model in a folder, ready to compute, and notes of how it was loaded. ``dtype``: fp32 or bf16; ``split``: as
    ``spread_spec`` gives it."""
    import torch
    import transformers

    from iclkit import models
    from iclkit.lm._forward import ForwardModel

    if threads is not None:
        torch.set_num_threads(threads)
    codec = load_codec(Path(folder), trust_remote_code=trust_remote_code)
    module, notes = models.load_weights(
        transformers.AutoModelForCausalLM,
        Path(folder),
        own_code="run" if trust_remote_code else "ignore",
        device=None if split else torch.device(device),
        dtype=models.torch_dtype(dtype),
        **(split or {}),
    )
    if split:
        notes = (*notes, f"one copy of the model is spread over {', '.join(models.placement(module))}")
    with models.load_errors(f"the model in {folder} does not run"), models.quiet_transformers():
        return ForwardModel(
            module, codec, name=name, packed=packed_forward(module) if packed else None, batch_tokens=batch_tokens
        ), notes


def load_codec(folder: Path, *, trust_remote_code: bool = False) -> PromptTokenizer:
    """The tokenizer of a model folder, with our rules around it. ModelError when it does not load."""
    import transformers

    from iclkit import models
    from iclkit.lm._tokens import PromptTokenizer

    with models.load_errors(f"the tokenizer in {folder} does not load"), models.quiet_transformers():
        return PromptTokenizer(
            transformers.AutoTokenizer.from_pretrained(
                folder, trust_remote_code=trust_remote_code, local_files_only=True
            )
        )


def packed_forward(module: Any) -> PackedForward | None:
    """The packed forward pass, where it knows the architecture and gives what the module gives."""
    from iclkit.lm._architecture import describe
    from iclkit.lm._forward import matches_module
    from iclkit.lm._packed import PackedForward

    architecture = describe(module)
    if architecture is None:
        return None
    for attention in (None, "rows") if module.device.type == "cuda" else (None,):
        packed = PackedForward(architecture, attention=attention)
        if matches_module(module, packed):
            return packed
    return None


def answer_by_batch(
    lm: LM,
    list_wanted: Callable[[], object],
    tell: Callable[[str], None],
    *,
    folder: Path | None = None,
    poll: float = 30.0,
) -> None:
    """Put into the LM's cache what a piece of work will ask for, answered by the server's batch API.

    ``list_wanted`` does the work as a dry run: what it finds lacking in the cache is what is sent. It takes up to a
    day; stopped, the same call goes on with the batches that are under way. ``tell`` is told how it goes. UsageError
    for an LM that has no batch API or no cache, ModelError when a batch fails.
    """
    from iclkit.lm._cached import CachedTextLM
    from iclkit.lm._servers import BatchFolder, OpenAILM, by_batch
    from iclkit.models import home

    if not isinstance(lm, CachedTextLM) or not isinstance(lm.inner, OpenAILM):
        raise UsageError(f"{lm.name} has no batch API; it is for openai:MODEL@URL")
    if isinstance(lm.cache, NoCache):
        raise UsageError("a batch needs the LM cache, which is where its answers go: leave out --no-cache")
    inner = lm.inner
    inner.wanted = []
    try:
        list_wanted()
        wanted = [*dict.fromkeys(inner.wanted)]
    finally:
        inner.wanted = None
    batches = BatchFolder(folder or home() / "batches", inner.client, tell, poll)
    by_batch(inner, lambda part: _ask_all(lm, part), wanted, batches)


def _ask_all(lm: LM, wanted: Sequence[ScoreRequest | GenerateRequest]) -> None:
    """Ask for everything; what has no answer yet, or none at all, is left out."""
    from iclkit.errors import RequestError
    from iclkit.lm._servers import Pending

    scores = [r for r in wanted if isinstance(r, ScoreRequest)]
    texts = [r for r in wanted if isinstance(r, GenerateRequest)]
    with suppress(Pending, RequestError):
        lm.score(scores)
    with suppress(Pending, RequestError):
        lm.generate(texts)
