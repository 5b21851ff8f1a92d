"""Loading through ``transformers``: every weight comes from the folder, or one line says what is wrong.

The loaders of transformers fill what a checkpoint lacks with random numbers and go on. Whoever loads a model here
(LMs, embedders, rerankers, bases of training, the conversion of GGUF files) goes through ``load_weights`` or, where a
library has loaded it already, ``check_loaded``.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from iclkit.errors import IclkitError, ModelError, UsageError
from iclkit.models._device import check_memory, quiet_transformers
from iclkit.models._folder import OwnCode, TensorFacts, check_folder, elements

log = logging.getLogger(__name__)
_FLOATS = frozenset({"F16", "BF16", "F32", "F64"})
_NAMED = 3
"""Keys that an error names before it says how many more there are."""


@contextmanager
def load_errors(what: str) -> Iterator[None]:
    """Whatever a foreign loader makes of a foreign file comes out as a ModelError of one line: ``what`` and why.

    Loaders answer a broken file with errors of every kind, from ZeroDivisionError to the panics of Rust libraries,
    which are no ``Exception``. A UsageError is the caller's own and stays.
    """
    try:
        yield
    except (ModelError, UsageError):
        raise
    except IclkitError as error:
        raise ModelError(f"{what} ({error})") from error
    except MemoryError as error:
        raise ModelError(f"{what} (out of memory); use a smaller model or a machine with more") from error
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ModelError(f"{what} ({first_words(error)})") from error


def first_words(error: BaseException) -> str:
    """The text of an error in one line of bearable length, with its kind where the text alone says little."""
    text = " ".join(str(error).split())
    if isinstance(error, ArithmeticError | LookupError | TypeError | AttributeError | RecursionError) or not text:
        text = f"{type(error).__name__}: {text}".removesuffix(": ")
    return text if len(text) <= 300 else f"{text[:299]}…"


def load_weights(
    auto: Any,
    folder: Path,
    uses: Callable[[Any], Any] | None = None,
    *,
    own_code: OwnCode = "refuse",
    device: Any = "cpu",
    settings: Mapping[str, Any] | None = None,
    **options: Any,
) -> tuple[Any, tuple[str, ...]]:
    """(model, notes): a model in evaluation mode all of whose weights come from the folder's safetensors.

    ``auto``: an Auto class of transformers. ``uses``: gives the tensor that will be used from the model; a weight that
    this does not depend on (the pooler under mean pooling) may be missing. Without it all are needed. Tied weights are
    held once and not missed. ``settings`` go into the configuration, ``options`` to ``from_pretrained``. A note names
    weights that the model has no place for; with ``uses`` only those of its layers, as foreign heads are no matter.

    ModelError, naming files and weights, for what ``check_folder`` refuses and for weights that are missing, of other
    shapes than config.json says, integers in the place of numbers, and, without ``uses``, NaN or infinite. ``device``
    None leaves the weights where the options (``device_map``) put them.
    """
    import torch
    import transformers

    if device is not None:
        check_memory(folder)
    what = f"the model in {folder} does not load"
    code = {"trust_remote_code": own_code == "run", "local_files_only": True}
    with load_errors(what), quiet_transformers():
        stored = check_folder(folder, own_code=own_code)
        config = transformers.AutoConfig.from_pretrained(folder, **code, **(settings or {}))
        _check_layers(config, folder, stored)
        with torch.device("meta"):
            skeleton = auto.from_config(config, trust_remote_code=code["trust_remote_code"])
        if not getattr(config, "quantization_config", None):  # else the weights are stored in a packed form
            _check_stored(skeleton, folder, stored, whole=uses is None)
        del skeleton
        model, info = auto.from_pretrained(
            folder,
            config=config,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **code,
            **options,
        )
        model = model.eval() if device is None else model.eval().to(device)
        return model, check_loaded(model, info, folder, uses)


def check_loaded(
    model: Any, info: Mapping[str, Any], source: Path, uses: Callable[[Any], Any] | None = None
) -> tuple[str, ...]:
    """Notes on what ``from_pretrained(output_loading_info=True)`` says of a model; see ``load_weights``.

    ModelError unless every weight that is used came from the files and, without ``uses``, is a number.
    """
    shapes = {str(key): (tuple(stored), tuple(wanted)) for key, stored, wanted in info.get("mismatched_keys") or ()}
    bad = {*map(str, info.get("missing_keys") or ()), *shapes}
    unused = _without_effect(model, bad, uses) if bad and uses is not None else set()
    if misfits := _in_order(shapes.keys() - unused):
        stored, wanted = shapes[misfits[0]]
        raise ModelError(
            f"the model in {source} does not load: {misfits[0]} has the shape {stored} in the file, config.json asks "
            f"for {wanted}; fetch or copy the model again"
        )
    if missing := bad - unused:
        raise ModelError(_lacks(source, missing))
    if info.get("error_msgs"):
        reason = " ".join(str(info["error_msgs"][0]).split())[:300]
        raise ModelError(f"the model in {source} does not load ({reason})")
    if (
        uses is None
    ):  # whoever uses a part of a model checks what comes of it: one bad word costs the texts that have it
        _refuse_nonfinite(model.named_parameters(), source)
    return _notes(model, [*map(str, info.get("unexpected_keys") or ())], source, whole=uses is None)


def _check_layers(config: Any, folder: Path, stored: Mapping[str, TensorFacts]) -> None:
    """ModelError for a number of layers that would take hours to build: a damaged config.json."""
    file, layers = folder / "config.json", getattr(config.get_text_config(), "num_hidden_layers", 1)
    if not isinstance(layers, int) or layers < 1:
        raise ModelError(f"{file}: num_hidden_layers is {layers!r}; expected a whole number from 1")
    if layers > max(1000, len(stored)):
        raise ModelError(f"{file}: num_hidden_layers is {layers}, the weights are {len(stored)} tensors")


def _check_stored(skeleton: Any, folder: Path, stored: Mapping[str, TensorFacts], *, whole: bool) -> None:
    """ModelError, before memory is taken, where the files hold fewer numbers than the model has, or no floats.

    Unless ``whole`` only the layers are counted: poolers and heads may be missing.
    """
    parts = {f"{n}." for n in _trunk(skeleton)}
    base = f"{skeleton.base_model_prefix}."
    wanted = {
        name: TensorFacts("", tuple(p.shape))
        for name, p in skeleton.named_parameters()
        if whole or name.removeprefix(base).startswith(tuple(parts))
    }
    if elements(wanted.values()) > elements(stored.values()):
        short = {name.removeprefix(base) for name in stored}
        raise ModelError(_lacks(folder, [n for n in wanted if n.removeprefix(base) not in short] or wanted))
    if integers := [n for n in wanted if n in stored and stored[n].dtype not in _FLOATS]:
        name = _in_order(integers)[0]
        raise ModelError(
            f"the model in {folder} does not load: {name} holds {stored[name].dtype}, and config.json names no "
            "quantization"
        )


def _notes(model: Any, unexpected: Sequence[str], source: Path, *, whole: bool) -> tuple[str, ...]:
    parts, base = _trunk(model), f"{model.base_model_prefix}."
    layers = [key for key in unexpected if whole or key.removeprefix(base).partition(".")[0] in parts]
    if layers:
        return (f"weights of the file that the model has no place for are left out: {_listed(layers)}",)
    if unexpected:
        log.info("%s holds weights that are not used here: %s", source, _listed(unexpected))
    return ()


def _trunk(model: Any) -> set[str]:
    """Names of the parts of the model without its head and pooler: embeddings and layers."""
    return {name for name, _ in model.base_model.named_children()} - {"pooler"}


def _without_effect(model: Any, names: Collection[str], uses: Callable[[Any], Any]) -> set[str]:
    """Those of the weights that the used tensor does not depend on, by automatic differentiation."""
    import torch

    parameters = dict(model.named_parameters())
    asked = {n: parameters[n] for n in names if n in parameters}
    before = [p.requires_grad for p in parameters.values()]
    model.requires_grad_(False)
    for p in asked.values():
        p.requires_grad_(True)
    try:
        with torch.enable_grad():
            used = uses(model).float().sum()
        if not used.requires_grad:
            return {*asked}
        slopes = torch.autograd.grad(used, list(asked.values()), allow_unused=True)
    finally:
        for p, needed in zip(parameters.values(), before, strict=True):
            p.requires_grad_(needed)
    return {n for n, slope in zip(asked, slopes, strict=True) if slope is None}


def _refuse_nonfinite(parameters: Iterable[tuple[str, Any]], source: Path) -> None:
    """ModelError, naming the tensor, when a weight is NaN or infinite: everything such a model says is void."""
    import torch

    computed = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
    for name, tensor in parameters:
        if tensor.dtype not in computed or tensor.numel() == 0 or tensor.is_meta:
            continue
        low, high = torch.aminmax(tensor.detach())  # one pass, no copy; NaN comes through
        if not bool(torch.isfinite(low) & torch.isfinite(high)):
            raise ModelError(
                f"the model in {source} is broken: {name} holds NaN or infinite numbers; fetch or export it again"
            )


def _lacks(source: Path, names: Collection[str]) -> str:
    return (
        f"the model in {source} does not load: its files lack weights that config.json asks for: {_listed(names)}; it "
        "would run on random numbers in their place: fetch or copy the model again, or one that was saved for this use"
    )


def _listed(names: Collection[str]) -> str:
    first = _in_order(names)[:_NAMED]
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(first) + more


def _in_order(names: Iterable[str]) -> list[str]:
    """Sorted, with layers in natural order: 2 before 10."""
    return sorted(names, key=lambda k: [(int(p), "") if p.isdigit() else (-1, p) for p in re.split(r"(\d+)", k)])
