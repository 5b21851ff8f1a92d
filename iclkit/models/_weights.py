"""From a model's folder to a model whose every weight came from that folder, or one line that says what is wrong.

The loaders of transformers fill what a checkpoint lacks with random numbers and go on. Here that is refused, as are
folders that would have files read from elsewhere, pickles read, or code of their own run.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from iclkit.errors import DataError, IclkitError, ModelError
from iclkit.files import read_json

log = logging.getLogger(__name__)
_AT_LEAST_ONE = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
_NAMED = 4  # how many weights a message names
_INDEX = "model.safetensors.index.json"


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file of a model's folder. ModelError when it cannot be read or holds something else."""
    try:
        found = read_json(file)
    except DataError as error:
        raise ModelError(f"{error}; the model is damaged: fetch or copy it again") from error
    if not isinstance(found, dict):
        raise ModelError(f"{file} holds {_kind(found)}, where a JSON object is expected; fetch or copy the model again")
    return found


def inside(folder: Path, path: str, told_by: str) -> Path:
    """``folder / path``. ModelError, naming the file it stands in, for a path that leads out of the folder."""
    plain = path.replace("\\", "/")
    if PurePosixPath(plain).is_absolute() or PureWindowsPath(path).drive or ".." in PurePosixPath(plain).parts:
        raise ModelError(
            f"{told_by} names {path!r}, which is not inside the model's folder {folder}; only files of the folder are "
            "loaded: copy them into it"
        )
    return folder / plain


def check_folder(folder: Path, *, own_code: bool = False) -> dict[str, Any]:
    """The config of a transformers folder whose files can be what they should: nothing is loaded yet.

    Looks at config.json, at which weight files it leads to and at their headers. ``own_code``: whether a folder may say
    that it brings code of its own (which is not run; transformers' own class of that name is taken).
    ModelError for a file that is missing, damaged, a pickle, or elsewhere.
    """
    if (folder / "adapter_config.json").is_file():
        raise ModelError(
            f"{folder} holds an adapter (adapter_config.json) for a model that is elsewhere; merge the two and save "
            "the result as one model"
        )
    config = read_object(folder / "config.json")
    for name in _AT_LEAST_ONE:
        value = config.get(name)
        sound = not isinstance(value, str | int | float) or (type(value) is int and value > 0)
        if not sound:
            raise ModelError(f"{folder / 'config.json'}: {name} is {value!r}; expected a whole number from 1")
    for file in (folder / "config.json", folder / "tokenizer_config.json"):
        _refuse_own_code(file, own_code)
    for file in weight_files(folder, config):
        _check_header(file)
    return config


def weight_files(folder: Path, config: dict[str, Any]) -> list[Path]:
    """The safetensors files that transformers reads for that folder. ModelError when there are none."""
    named = config.get("transformers_weights") or ""
    if not isinstance(named, str) or not (named == "" or named.endswith((".safetensors", ".safetensors.index.json"))):
        raise ModelError(f"{folder / 'config.json'}: transformers_weights is {named!r}; expected a safetensors file")
    index = inside(folder, named, "config.json") if named.endswith(".json") else folder / _INDEX
    single = inside(folder, named or "model.safetensors", "config.json")
    if single.is_file() and single != index:
        return [single]
    if not index.is_file():
        pickled = next((f.name for f in sorted(folder.glob("*.bin")) + sorted(folder.glob("*.pt"))), "")
        instead = f" but {pickled}, a pickle, and pickles are never loaded: save the model as safetensors"
        raise ModelError(f"{folder} has no model.safetensors{instead if pickled else ''}")
    shards = read_object(index).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(s, str) for s in shards.values()):
        raise ModelError(f"{index}: weight_map is no object of file names; fetch or copy the model again")
    files = [inside(folder, shard, index.name) for shard in sorted({*shards.values()})]
    if missing := [f.name for f in files if not f.is_file()]:
        raise ModelError(f"{folder} lacks {', '.join(missing[:_NAMED])}; fetch or copy the model again")
    return files


def load_weights(auto: Any, folder: Path, uses: Callable[[Any], Any] | None = None, **options: Any) -> Any:
    """``auto.from_pretrained(folder)`` in evaluation mode, with no weight made up.

    ``auto``: a class of transformers. ``uses``: gives the tensor that will be used from the model; a weight that is
    missing is let pass when that does not depend on it (the pooler under mean pooling). Without it all are needed. Tied
    weights are not missing. Weights of the file that the model has no place for are logged, as a warning when they
    belong to its layers. ``options`` go to ``from_pretrained``. ModelError names what is missing.
    """
    safe = {"use_safetensors": True, "trust_remote_code": False, "ignore_mismatched_sizes": True}
    model, info = auto.from_pretrained(folder, output_loading_info=True, **{**safe, **options})
    model.eval()
    refuse_missing(model, info, folder, uses)
    note_unexpected(model, info["unexpected_keys"], folder)
    return model


def refuse_missing(model: Any, info: Mapping[str, Any], folder: Path, uses: Callable[[Any], Any] | None = None) -> None:
    """ModelError when a needed weight is missing or of another shape; ``info`` is from ``from_pretrained``."""
    shapes = {key: f"{key} {[*have]} instead of {[*want]}" for key, have, want in info["mismatched_keys"]}
    bad = sorted({*info["missing_keys"], *shapes})
    if bad and uses is not None:
        bad = sorted({*bad} - _without_effect(model, bad, uses))
    if misfits := [shapes[key] for key in bad if key in shapes]:
        raise ModelError(
            f"the weights in {folder} are not those of its config.json: {_some(misfits)}; fetch or copy the model again"
        )
    if bad:
        raise ModelError(
            f"the weights in {folder} lack {_some(bad)} of {type(model).__name__}: it would run on random numbers in "
            "their place; fetch or copy the model again, or one that was saved for this use"
        )


def note_unexpected(model: Any, unexpected: Iterable[str], folder: Path) -> None:
    """Log weights that the model has no place for: a warning for layers of its own kind, else for the curious."""
    keys = sorted(unexpected)
    trunk = {name for name, _ in model.base_model.named_children()} - {"pooler"}
    prefix = f"{model.base_model_prefix}."
    ours = [k for k in keys if k.removeprefix(prefix).partition(".")[0] in trunk]
    if ours:
        log.warning(
            "%s holds weights for which its config.json has no place (%s); they are not used", folder, _some(ours)
        )
    elif keys:
        log.info("%s holds weights that are not used here (%s)", folder, _some(keys))


def reason(error: BaseException) -> str:
    """What a library raised, in one line of at most 300 characters, with the kind where the text alone says little."""
    text = " ".join(str(error).split())
    if not text or not isinstance(error, OSError | ValueError):
        text = f"{type(error).__name__}{': ' if text else ''}{text}"
    return text if len(text) <= 300 else f"{text[:299]}…"


def unloadable(what: str, name: str, folder: Path, error: Exception) -> IclkitError:
    """What to raise when a library fails over a folder: our own errors as they are, others as one ModelError."""
    if isinstance(error, IclkitError):
        return error
    return ModelError(f"cannot load the {what} {name!r} from {folder}: {reason(error)}")


def _without_effect(model: Any, names: Iterable[str], uses: Callable[[Any], Any]) -> set[str]:
    """Those of the weights that the used tensor does not depend on, by automatic differentiation."""
    import torch

    own = dict(model.named_parameters())
    asked = {n: own[n] for n in names if n in own}
    before = [p.requires_grad for p in own.values()]
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
        for p, needed in zip(own.values(), before, strict=True):
            p.requires_grad_(needed)
    return {n for n, slope in zip(asked, slopes, strict=True) if slope is None}


def _refuse_own_code(file: Path, own_code: bool) -> None:
    told = read_object(file) if file.is_file() else {}
    if told.get("auto_map"):
        if not own_code:
            raise ModelError(
                f"{file} names code of the model's own (auto_map), and code from a model's folder is never run; take "
                "another model, or remove auto_map if transformers' own class of this type computes the same"
            )
        log.info("%s names code of the model's own (auto_map); transformers' own class is taken instead", file)
    for key in ("attn_implementation", "_attn_implementation", "experts_implementation"):
        if "/" in str(told.get(key) or ""):
            raise ModelError(f"{file}: {key} is {told[key]!r}, code from the hub, which is never run; remove {key}")


def _check_header(file: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file} holds no sound weights ({reason(error)}); fetch or copy the model again") from error


def _some(keys: list[str]) -> str:
    # layers are counted in natural order: 2 before 10
    keys = sorted(keys, key=lambda k: [(int(p), "") if p.isdigit() else (-1, p) for p in re.split(r"(\d+)", k)])
    more = f" and {len(keys) - _NAMED} more" if len(keys) > _NAMED else ""
    return f"{', '.join(keys[:_NAMED])}{more}"


def _kind(value: Any) -> str:
    names = {list: "a list", str: "a text", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), "null")
