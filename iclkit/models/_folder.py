"""A model folder before anything of it is loaded: whether its files are whole, which of them count, and their hash.

Nothing is read that lies outside the folder, nothing is unpickled, and no code of its own is run unless the user asks
for that.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Literal

from iclkit.errors import DataError, ModelError
from iclkit.files import read_json
from iclkit.records import digest

log = logging.getLogger(__name__)
OwnCode = Literal["refuse", "ignore", "run"]
"""What to do with a folder that names code of its own: refuse it, take transformers' own class instead, or run it."""
SETTINGS = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
)
"""Small files of JSON that libraries read, some of them without a word where they are broken."""
_EMBEDDER_FILES = frozenset({".safetensors", ".json", ".txt", ".model"})
_LM_FILES = _EMBEDDER_FILES | {".jinja", ".py", ".spm", ".tiktoken", ".bpe", ".codes"}
_OTHER_ENGINES = frozenset({"onnx", "openvino"})
"""Subfolders with the same weights again."""
_TEMPLATES = "additional_chat_templates"
_SINGLE = "model.safetensors"
_INDEX = ".safetensors.index.json"
_AT_LEAST_ONE = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")


@dataclass(frozen=True, slots=True)
class TensorFacts:
    """A tensor as the header of its file has it. ``dtype`` in the words of safetensors: F32, BF16, I64 …"""

    dtype: str
    shape: tuple[int, ...]


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file of a model's folder. ModelError when it cannot be read or holds something else."""
    try:
        value = read_json(file)
    except DataError as error:
        raise ModelError(f"{error}; the model is damaged: fetch or copy it again") from error
    if not isinstance(value, dict):
        raise ModelError(f"{file} holds {_kind(value)}, where a JSON object is expected; fetch or copy the model again")
    return value


def inside(folder: Path, path: str, named_by: str) -> Path:
    """``folder / path``. ModelError, with the file that names it, for a path that leads out of the folder."""
    plain = path.replace("\\", "/")
    if PurePosixPath(plain).is_absolute() or PureWindowsPath(path).drive or ".." in PurePosixPath(plain).parts:
        raise ModelError(
            f"{named_by} names {path!r}, which is not inside the model's folder {folder}; only files of the folder are "
            "loaded: copy them into it"
        )
    return folder / plain


def check_folder(folder: Path, *, own_code: OwnCode = "refuse") -> dict[str, TensorFacts]:
    """What the headers of the weight files hold, by tensor, of a transformers folder whose files can be what they
    should: nothing is loaded yet.

    Looks at config.json, at which weight files it leads to and at their headers. ModelError for a file that is missing,
    damaged, a pickle, or elsewhere, and for code that is not to be run.
    """
    if (folder / "adapter_config.json").is_file():
        raise ModelError(
            f"{folder} holds an adapter (adapter_config.json) for a model that is elsewhere; merge the two and save "
            "the result as one model"
        )
    config = read_object(folder / "config.json")
    for name in _AT_LEAST_ONE:
        value = config.get(name)
        if isinstance(value, str | int | float) and not (type(value) is int and value > 0):
            raise ModelError(f"{folder / 'config.json'}: {name} is {value!r}; expected a whole number from 1")
    for file in (folder / "config.json", folder / "tokenizer_config.json"):
        _check_code(file, own_code)
    files = weight_files(folder)
    if not files:
        raise ModelError(no_weights(folder))
    return {name: facts for file in files for name, facts in read_header(file).items()}


def no_weights(folder: Path) -> str:
    """What to say of a folder without weights that can be loaded."""
    pickle = next((f.name for f in sorted(folder.glob("*.bin")) + sorted(folder.glob("*.pt"))), "")
    instead = f" but {pickle}, a pickle, and pickles are never loaded: save the model as safetensors"
    return f"{folder} has no {_SINGLE} and no index of such files{instead if pickle else ''}"


def _check_code(file: Path, own_code: OwnCode) -> None:
    settings = read_object(file) if file.is_file() else {}
    named = settings.get("auto_map")
    if named and own_code == "refuse":
        raise ModelError(
            f"{file} names code of the model's own (auto_map), and code from a model's folder is never run; take "
            "another model, or remove auto_map if transformers' own class of this type computes the same"
        )
    if named and own_code == "ignore":
        log.info("%s names code of the model's own (auto_map); transformers' own class is taken instead", file)
    if own_code == "run" and "--" in json.dumps(named):  # its hash does not cover that
        raise ModelError(f"{file}: auto_map names code of another repository; put it into the folder")
    for key in ("attn_implementation", "_attn_implementation", "experts_implementation"):
        if "/" in str(settings.get(key) or ""):
            raise ModelError(f"{file}: {key} is {settings[key]!r}, code from the hub, which is never run; remove {key}")


def settings_problem(folder: Path) -> str:
    """What is wrong with the files of JSON in a model folder; "" when they can be read and hold what they must."""
    for name in SETTINGS:
        path = folder / name
        if not path.is_file():
            continue
        try:
            value = read_json(path)
        except DataError as error:
            return str(error)
        if not isinstance(value, list if name == "modules.json" else dict):
            wanted = "a list" if name == "modules.json" else "an object"
            return f"{name} holds {json.dumps(value)[:40]}, not {wanted}"
    return ""


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that hold a model's weights, as ``transformers`` finds them; empty when there are none.

    That is the file or index which config.json names, else ``model.safetensors``, else those which its index names.
    ModelError when one is named wrongly or is not there.
    """
    config = folder / "config.json"
    named = (read_object(config).get("transformers_weights") if config.is_file() else None) or ""
    if not isinstance(named, str) or not (named == "" or named.endswith((".safetensors", _INDEX))):
        raise ModelError(f"{config}: transformers_weights is {named!r}; expected a safetensors file")
    if named.endswith(_INDEX):
        return _shards(folder, inside(folder, named, "config.json"))
    single = inside(folder, named or _SINGLE, "config.json")
    if named or single.is_file():
        return _there([single], folder)
    index = folder / f"model{_INDEX}"
    return _shards(folder, index) if index.is_file() else []


def _shards(folder: Path, index: Path) -> list[Path]:
    table = read_object(index).get("weight_map")
    if not isinstance(table, dict) or not table or not all(isinstance(name, str) for name in table.values()):
        raise ModelError(f"{index}: weight_map is no object of file names; fetch or copy the model again")
    names = sorted({*table.values()})
    if foreign := [name for name in names if not name.endswith(".safetensors")]:
        raise ModelError(f"{index} names {foreign[0]!r} as weights; only *.safetensors is loaded")
    return _there([inside(folder, name, index.name) for name in names], folder)


def _there(files: list[Path], folder: Path) -> list[Path]:
    missing = [str(file.relative_to(folder)) for file in files if not file.is_file()]
    if missing:
        more = " and others" if len(missing) > 3 else ""
        raise ModelError(f"{folder} lacks {', '.join(missing[:3])}{more}; fetch or copy the model again")
    return files


def weight_named(folder: Path) -> bool:
    """Whether weights stand in the folder itself rather than below it."""
    return any(folder.glob("*.safetensors")) or any(folder.glob(f"*{_INDEX}"))


def read_header(path: Path) -> Mapping[str, TensorFacts]:
    """Tensor name -> dtype and shape of a safetensors file. ModelError when it is cut short or no such file."""
    import safetensors

    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            facts = {}
            for name in file.keys():  # noqa: SIM118 (no mapping)
                tensor = file.get_slice(name)
                facts[name] = TensorFacts(tensor.get_dtype(), tuple(tensor.get_shape()))
            return facts
    except (OSError, safetensors.SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"{path} is not a whole safetensors file ({reason}); fetch or copy the model again") from error


def weights_problem(folder: Path) -> str:
    """Why the weights in a folder cannot be loaded; "" when every file is there and whole. Reads headers only."""
    try:
        files = weight_files(folder)
        for index in sorted(folder.glob(f"*{_INDEX}")):
            _shards(folder, index)  # also what nobody asks for: a folder that lacks a shard was copied in part
        for file in files:
            read_header(file)
    except ModelError as error:
        return str(error)
    return "" if files else no_weights(folder)


# ---- hashes ----------------------------------------------------------------------------------------------------------


def lm_folder_hash(folder: Path, also: Iterable[str] = ()) -> str:
    """Hash of everything in a language model's folder that can change an answer: weights, configuration, tokenizer,
    templates. It is part of every cache key.

    Files of the folder itself by their endings, and below it what is loaded from there: shards that the index names and
    further chat templates. ``also`` names files that a tokenizer of its own kind reads. ModelError as ``weight_files``.
    """
    paths = {path for path in folder.iterdir() if path.suffix in _LM_FILES and path.is_file()}
    paths |= {*weight_files(folder), *(folder / _TEMPLATES).glob("*.jinja")}
    paths |= {path for path in (folder / name for name in also) if path.is_file()}
    h = hashlib.blake2b(digest_size=16)
    for name, content in _file_digests(folder, paths):
        h.update(name.encode() + b"\0" + content)
    return h.hexdigest()


def embedder_folder_hash(folder: Path, modules: Collection[Path] = (), also: Iterable[Path] = ()) -> str:
    """Hash of all that determines the vectors of an embedder's folder: weights, settings, tokenizer, in subfolders too.

    ``modules``: folders that are loaded although their name says that they hold the weights again for another engine.
    ``also``: further files that were read, of endings that are not hashed otherwise. Links are followed: what is hashed
    is what is read.
    """

    def is_used(file: Path) -> bool:
        return not _OTHER_ENGINES & {*file.relative_to(folder).parts} or any(
            module != folder and file.is_relative_to(module) for module in modules
        )

    paths = {path for path in _files_below(folder) if path.suffix in _EMBEDDER_FILES and is_used(path)}
    return digest([[name, content.hex()] for name, content in _file_digests(folder, paths | {*also})])


def _file_digests(folder: Path, paths: Iterable[Path]) -> Iterator[tuple[str, bytes]]:
    """(path in the folder, digest of what is in the file), in the order of the paths' parts."""
    for path in sorted({*paths}, key=lambda p: p.relative_to(folder).parts):
        with path.open("rb") as file:
            yield path.relative_to(folder).as_posix(), hashlib.file_digest(file, "blake2b").digest()


def _files_below(folder: Path) -> Iterator[Path]:
    """All files below, through links, each folder once on the way down to it."""
    pending = [(folder, frozenset({folder.resolve()}))]
    while pending:
        at, above = pending.pop()
        for entry in os.scandir(at):
            path = Path(entry.path)
            if not entry.is_dir():
                if entry.is_file():
                    yield path
            elif (real := path.resolve()) not in above:  # a link back up leads to files that are hashed already
                pending.append((path, above | {real}))


def elements(facts: Iterable[TensorFacts]) -> int:
    """Numbers held by all of these tensors together."""
    total = 0
    for tensor in facts:
        size = 1
        for length in tensor.shape:
            size *= length
        total += size
    return total


def _kind(value: Any) -> str:
    names = {list: "a list", str: "a text", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), "null")
