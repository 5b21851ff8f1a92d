"""Loading through ``transformers``: without its chatter, and with every fault of a checkpoint as one clear line."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from iclkit.errors import DataError, IclkitError, ModelError
from iclkit.models._folder import TensorFacts, elements, is_quantized, read_header, weight_files

_FLOATS = frozenset({"F16", "BF16", "F32", "F64"})
_NAMED = 3
"""Keys that an error names before it says how many more there are."""


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No bars, warnings or log lines from transformers inside."""
    from transformers.utils import logging as chatter

    level = chatter.get_verbosity()
    chatter.set_verbosity(50)  # errors too: they come as exceptions or in the loading info
    try:
        with without_bars(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        chatter.set_verbosity(level)


@contextmanager
def without_bars() -> Iterator[None]:
    """No progress bars from transformers inside: its savers draw them into files and pipes too. Also a decorator."""
    from transformers.utils import logging as chatter

    bars = chatter.is_progress_bar_enabled()
    chatter.disable_progress_bar()
    try:
        yield
    finally:
        if bars:
            chatter.enable_progress_bar()


@contextmanager
def load_errors(what: str) -> Iterator[None]:
    """Whatever a foreign loader makes of a foreign file comes out as a ModelError of one line: ``what`` and why.

    Loaders answer a broken file with errors of every kind, from ZeroDivisionError to the panics of Rust libraries,
    which are no ``Exception``.
    """
    try:
        yield
    except ModelError:
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


def load_whole(loader: Any, folder: Path, **settings: Any) -> tuple[Any, tuple[str, ...]]:
    """(model, notes): a model all of whose weights come from the folder's safetensors, by ``loader`` (an Auto class).

    ModelError, naming the keys, where weights are missing, of other shapes than config.json says, or integers in the
    place of numbers; tied weights are held once and not missed. A note names weights that the model has no place for.
    """
    import torch
    import transformers

    what = f"the model in {folder} does not load"
    code = {"trust_remote_code": settings.pop("trust_remote_code", False), "local_files_only": True}
    with load_errors(what), quiet_transformers():
        if (folder / "adapter_config.json").is_file():
            raise DataError("adapter_config.json: an adapter without its base; merge it into the weights first")
        held: dict[str, TensorFacts] = {}
        for file in weight_files(folder):
            held.update(read_header(file))
        config = transformers.AutoConfig.from_pretrained(folder, **code)
        _refuse_wrong_layers(config, held)
        with torch.device("meta"):
            skeleton = loader.from_config(config, trust_remote_code=code["trust_remote_code"])
        # before memory is taken for weights that are not there
        wanted = {name: TensorFacts("", tuple(p.shape)) for name, p in skeleton.named_parameters()}
        if not is_quantized(config):
            if elements(wanted.values()) > elements(held.values()):
                missing = sorted(wanted.keys() - held.keys()) or sorted(wanted)
                raise ModelError(f"{what}: {_missing(missing)}")
            if wrong := sorted(n for n in wanted if n in held and held[n].dtype not in _FLOATS):
                raise DataError(f"{wrong[0]} holds {held[wrong[0]].dtype}, and config.json names no quantisation")
        del skeleton
        module, info = loader.from_pretrained(
            folder,
            config=config,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **code,
            **settings,
        )
        return module, refuse_incomplete(info, what)


def _refuse_wrong_layers(config: Any, held: Mapping[str, TensorFacts]) -> None:
    layers = getattr(config.get_text_config(), "num_hidden_layers", 1)
    if not isinstance(layers, int) or layers < 1:
        raise DataError(f"config.json: num_hidden_layers is {layers!r}, expected at least 1")
    if layers > max(1000, len(held)):
        raise DataError(f"config.json: num_hidden_layers is {layers}, the weights are {len(held)} tensors")


def refuse_incomplete(info: Mapping[str, Any], what: str) -> tuple[str, ...]:
    """Notes on what ``from_pretrained(output_loading_info=True)`` tells; ModelError unless all weights were found."""
    if info.get("missing_keys"):
        raise ModelError(f"{what}: {_missing(sorted(info['missing_keys']))}")
    if info.get("mismatched_keys"):
        name, stored, wanted = min((str(m[0]), (*m[1],), (*m[2],)) for m in info["mismatched_keys"])
        raise ModelError(f"{what}: {name} has the shape {stored} in the file, config.json asks for {wanted}")
    if info.get("error_msgs"):
        raise ModelError(f"{what} ({' '.join(str(info['error_msgs'][0]).split())[:300]})")
    unexpected = sorted(map(str, info.get("unexpected_keys") or ()))
    if not unexpected:
        return ()
    return (f"weights of the file that the model has no place for are left out: {_listed(unexpected)}",)


def _missing(names: Sequence[str]) -> str:
    return f"its files lack weights that config.json asks for: {_listed(names)}"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def refuse_nonfinite(parameters: Iterable[tuple[str, Any]], what: str) -> None:
    """ModelError, naming the tensor, when a weight is NaN or infinite: everything such a model says is void."""
    import torch

    computed = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
    for name, tensor in parameters:
        if tensor.dtype not in computed or tensor.numel() == 0:
            continue
        low, high = torch.aminmax(tensor.detach())  # one pass, no copy; NaN comes through
        if not bool(torch.isfinite(low) & torch.isfinite(high)):
            raise ModelError(f"{what}: {name} holds NaN or infinite numbers; fetch or export the model again")
