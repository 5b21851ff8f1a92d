"""A folder with an embedder or a reranker: what it says it is made of, checked before a library loads it, and its hash.

Everything that is loaded lies in the folder and is hashed; pickles and code from the folder are refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iclkit.errors import DataError, ModelError
from iclkit.files import read_json
from iclkit.models import OwnCode, check_folder, embedder_folder_hash, inside, read_object

WITH_WEIGHTS = {"Dense", "CNN", "LSTM", "LayerNorm", "WeightedLayerPooling", "StaticEmbedding", "WordEmbeddings"}
TRANSFORMERS = {"Transformer", "CLIPModel"}
ROUTERS = {"Router", "Asym"}
MODULES = WITH_WEIGHTS | TRANSFORMERS | ROUTERS | {"Pooling", "Normalize", "Dropout", "BoW", "WordWeights"}
_TYPE = re.compile(r"sentence_transformers(\.\w+)+")
# under any of these sentence-transformers looks for how its Transformer module was set up
ENCODERS = ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
SETTINGS = tuple(f"sentence_{kind}_config.json" for kind in ENCODERS)
CONFIGS = {"WordEmbeddings": "wordembedding_config.json", "CNN": "cnn_config.json", "LSTM": "lstm_config.json"}
ARGUMENTS = ("model_args", "model_kwargs", "tokenizer_args", "processor_kwargs", "config_args", "config_kwargs")


@dataclass(frozen=True, slots=True)
class Module:
    """One module of a sentence-transformers folder: its kind, e.g. ``Pooling``, and where its files are.

    ``inner``: of a router, the modules that it leads to.
    """

    kind: str
    path: Path
    inner: tuple[Module, ...] = ()

    @property
    def settings(self) -> dict[str, Any]:
        """What its own configuration says; {} without one."""
        names = SETTINGS if self.kind in TRANSFORMERS else (CONFIGS.get(self.kind, "config.json"),)
        return next((read_object(f) for f in (self.path / name for name in names) if f.is_file()), {})

    def walk(self) -> Iterator[Module]:
        """This module and those that it leads to."""
        yield self
        for module in self.inner:
            yield from module.walk()


def read_modules(folder: Path, *, own_code: OwnCode = "refuse") -> tuple[Module, ...]:
    """The modules of a sentence-transformers folder, in order; () for a plain transformers folder.

    Modules inside routers are checked too. ModelError for a module of another kind than those of
    sentence-transformers, a path that leads out of the folder, a pickle, or a damaged file. ``own_code``: see
    ``models.check_folder``.
    """
    file = folder / "modules.json"
    if not file.is_file():
        check_folder(folder, own_code=own_code)
        return ()
    modules = []
    for n, step in enumerate(_steps(file)):
        if not isinstance(step, dict) or not isinstance(step.get("type"), str):
            raise ModelError(f"{file}: entry {n} is {step!r}; expected an object with `type` and `path`, both texts")
        path = step.get("path", "")
        if not isinstance(path, str):
            raise ModelError(f"{file}: entry {n} has the path {path!r}; expected a text")
        modules.append(_module(folder, path, step["type"], file, own_code))
    return tuple(modules)


def folder_hash(folder: Path, modules: Sequence[Module] = (), also: Iterable[Path] = ()) -> str:
    """Hash of all that determines the vectors of a folder with these modules; see ``models.embedder_folder_hash``."""
    return embedder_folder_hash(folder, [m.path for module in modules for m in module.walk()], also)


def _steps(file: Path) -> list[Any]:
    try:
        steps = read_json(file)
    except DataError as error:
        raise ModelError(f"{error}; the model is damaged: fetch or copy it again") from error
    if not isinstance(steps, list) or not steps:
        raise ModelError(f"{file} holds no list of modules; fetch or copy the model again")
    return steps


def _module(root: Path, path: str, dotted: str, told_by: Path, own_code: OwnCode) -> Module:
    kind = dotted.rpartition(".")[2]
    if not _TYPE.fullmatch(dotted) or kind not in MODULES:
        raise ModelError(
            f"{told_by} asks for a module of type {dotted!r}, which is none of sentence-transformers' own for texts; "
            "code from a model's folder, or from a package that it names, is never run: take another model"
        )
    module = Module(kind, inside(root, path, str(told_by)))
    if kind in TRANSFORMERS:
        check_folder(module.path, own_code=own_code)
        _check_transformer(module)
    elif kind in WITH_WEIGHTS:
        _check_weights(module)
    elif kind in ROUTERS:
        return Module(kind, module.path, tuple(_routes(module.path, own_code)))
    return module


def _check_transformer(module: Module) -> None:
    settings = module.settings
    for name in ("tokenizer_name_or_path", "model_name_or_path"):
        if settings.get(name):
            raise ModelError(
                f"{module.path}: {name} in its settings is {settings[name]!r}; only files of the folder are loaded: "
                "remove it"
            )
    for group in ARGUMENTS:
        given = settings.get(group) or {}
        odd = [n for n, v in given.items() if not _harmless(n, v)] if isinstance(given, dict) else [group]
        if odd:
            raise ModelError(
                f"{module.path}: {group} in its settings sets {odd[0]!r}, which may lead out of the folder; remove it"
            )
    for name, kind in (("max_seq_length", int | None), ("do_lower_case", bool | None)):
        if not isinstance(settings.get(name), kind):
            raise ModelError(
                f"{module.path}: {name} is {settings[name]!r} in its settings; fetch or copy the model again"
            )


def _harmless(name: str, value: Any) -> bool:
    """Whether an argument in a module's settings can only be a plain setting, and lead to no other file."""
    plain = isinstance(value, bool | int | float | None) or (isinstance(value, str) and not re.search(r"[/\\]", value))
    return plain and name not in ("config", "gguf_file", "subfolder")


def _check_weights(module: Module) -> None:
    if not (module.path / "model.safetensors").is_file():
        pickle = " but pytorch_model.bin, a pickle, and pickles are never loaded: open the model with "
        pickle += "sentence-transformers where you trust it, and save it again"
        found = (module.path / "pytorch_model.bin").is_file()
        raise ModelError(
            f"{module.path} has no model.safetensors{pickle if found else '; fetch or copy the model again'}"
        )
    tokenizer = module.settings.get("tokenizer_class")
    if module.kind == "WordEmbeddings" and not (isinstance(tokenizer, str) and _TYPE.fullmatch(tokenizer)):
        raise ModelError(
            f"{module.path / CONFIGS[module.kind]} asks for the tokenizer {tokenizer!r}, which is none of "
            "sentence-transformers' own; code that a model names is never run: take another model"
        )


def _routes(folder: Path, own_code: OwnCode) -> Iterator[Module]:
    files = [folder / "router_config.json", folder / "config.json"]
    file = next((f for f in files if f.is_file()), files[0])
    types = read_object(file).get("types")
    if not isinstance(types, dict) or not all(isinstance(t, str) for t in types.values()):
        raise ModelError(f"{file}: `types` is no object of module types; fetch or copy the model again")
    for path, dotted in types.items():
        yield _module(folder, path, dotted, file, own_code)
