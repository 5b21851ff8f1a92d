"""A model folder before anything of it is loaded: whether its files are whole, which of them count, and their hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iclkit.errors import DataError
from iclkit.files import read_json

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
_HASHED = frozenset({".safetensors", ".json", ".model", ".txt", ".jinja", ".py", ".spm", ".tiktoken", ".bpe", ".codes"})
_TEMPLATES = "additional_chat_templates"
_WHOLE = "model.safetensors"
_INDEX = ".safetensors.index.json"


@dataclass(frozen=True, slots=True)
class TensorFacts:
    """A tensor as the header of its file has it. ``dtype`` in the words of safetensors: F32, BF16, I64 …"""

    dtype: str
    shape: tuple[int, ...]


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
    """The files that hold a model's weights, as ``transformers`` finds them. DataError when one is named wrongly.

    That is the file or index which config.json names, else ``model.safetensors``, else those which its index names;
    empty when there is none of them.
    """
    config = folder / "config.json"
    named = read_json(config).get("transformers_weights") if config.is_file() else None
    if named is not None:
        first = _inside(folder, named, "config.json")
        return [first] if not first.name.endswith(_INDEX) else _shards(folder, first)
    if (folder / _WHOLE).is_file():
        return [folder / _WHOLE]
    index = folder / f"model{_INDEX}"
    return _shards(folder, index) if index.is_file() else []


def _shards(folder: Path, index: Path) -> list[Path]:
    content = read_json(index)
    table = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(table, dict) or not table:
        raise DataError(f"{index.name} has no weight_map")
    names = dict.fromkeys(map(json.dumps, table.values()))
    return sorted(_inside(folder, json.loads(name), index.name) for name in names)


def _inside(folder: Path, name: object, where: str) -> Path:
    """The file ``name`` of the folder. Only safetensors (nothing is ever unpickled) and nothing outside."""
    if not isinstance(name, str) or not name.endswith((".safetensors", _INDEX)):
        raise DataError(f"{where} names {name!r} as weights; only *.safetensors is loaded")
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise DataError(f"{where} names weights outside the folder: {name}")
    return folder / name


def weight_named(folder: Path) -> bool:
    """Whether weights stand in the folder itself rather than below it."""
    return any(folder.glob("*.safetensors")) or any(folder.glob(f"*{_INDEX}"))


def read_header(path: Path) -> Mapping[str, TensorFacts]:
    """Tensor name -> dtype and shape of a safetensors file. DataError when it is cut short or no such file."""
    import safetensors

    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            facts = {}
            for name in file.keys():  # noqa: SIM118 (no mapping)
                tensor = file.get_slice(name)
                facts[name] = TensorFacts(tensor.get_dtype(), tuple(tensor.get_shape()))
            return facts
    except OSError as error:
        raise DataError(f"{path.name} cannot be read ({error})") from error
    except safetensors.SafetensorError as error:
        raise DataError(f"{path.name} is not a whole safetensors file ({error})") from error


def weights_problem(folder: Path) -> str:
    """Why the weights in a folder cannot be loaded; "" when every file is there and whole. Reads headers only."""
    try:
        files = weight_files(folder)
        # also what an index names that nobody asks: a folder that lacks a shard was copied in part
        named = [shard for index in sorted(folder.glob(f"*{_INDEX}")) for shard in _shards(folder, index)]
        if missing := [str(f.relative_to(folder)) for f in dict.fromkeys([*files, *named]) if not f.is_file()]:
            return f"it lacks {', '.join(missing[:3])}{' and others' if len(missing) > 3 else ''}"
        for file in files:
            read_header(file)
    except DataError as error:
        return str(error)
    return "" if files else f"it has no {_WHOLE} and no index of such files (pickled weights are never loaded)"


def lm_folder_hash(folder: Path, also: Iterable[str] = ()) -> str:
    """Hash of everything in a model folder that can change an answer: weights, configuration, tokenizer, templates.

    Files of the folder itself by their endings, and below it what is loaded from there: shards that the index names and
    further chat templates. ``also`` names files that a tokenizer of its own kind reads. DataError as ``weight_files``.
    """
    paths = [p for p in folder.iterdir() if p.suffix in _HASHED and p.is_file()]
    paths += weight_files(folder)
    paths += (folder / _TEMPLATES).glob("*.jinja")
    paths += [p for p in (folder / name for name in also) if p.is_file()]
    h = hashlib.blake2b(digest_size=16)
    for path in sorted(set(paths), key=lambda p: p.relative_to(folder).parts):
        h.update(path.relative_to(folder).as_posix().encode() + b"\0")
        with path.open("rb") as file:
            h.update(hashlib.file_digest(file, "blake2b").digest())
    return h.hexdigest()


def refuse_foreign_code(folder: Path) -> None:
    """DataError when a folder's settings call for code of another repository, which its hash does not cover."""
    for name in ("config.json", "tokenizer_config.json"):
        named = read_json(folder / name).get("auto_map") if (folder / name).is_file() else None
        if "--" in json.dumps(named):
            raise DataError(f"{folder / name}: auto_map names code of another repository; put it into the folder")


def elements(facts: Iterable[TensorFacts]) -> int:
    """Numbers held by all of these tensors together."""
    total = 0
    for tensor in facts:
        size = 1
        for length in tensor.shape:
            size *= length
        total += size
    return total


def is_quantized(config: Any) -> bool:
    """Whether a configuration says that the weights are stored in a packed form of some quantisation."""
    return bool(getattr(config, "quantization_config", None))
