"""The Hugging Face hub: trained retrievers and kept selectors, published with a card, and fetched again.

from iclkit.integrations.hub import load_selector, push

push("my-retriever", "ann/tickets-retriever", license="apache-2.0", datasets=["ann/tickets"])
push("kept", "ann/tickets-selector", license="apache-2.0", embedder="ann/tickets-retriever@3f2a9c1…")
chooser = load_selector("ann/tickets-selector@8d01b7e…")

A retriever is loaded by its name, as any model is: ``load_embedder("ann/tickets-retriever@3f2a9c1…")``. What goes over
the network does so when one of these is called, and never before. Weights are safetensors, examples are lines of JSON:
code and pickles are neither sent nor taken.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from iclkit import __version__, models
from iclkit.embed import CARD, split_spec
from iclkit.errors import DataError, IclkitError, RunError, UsageError
from iclkit.files import read_json, read_jsonl
from iclkit.pool import Pool, example_dict, exported_example
from iclkit.records import Run, Spec
from iclkit.report import leaderboard
from iclkit.secrets import remember
from iclkit.selectors import Chooser, is_saved_selector, make_selector, move_files
from iclkit.selectors import load_selector as load_kept

_SELECTOR, _EXAMPLES, _POOL, _README = "selector.json", "examples.jsonl", "pool.db", "README.md"
_SUFFIXES = (".safetensors", ".json", ".jsonl", ".txt", ".model", ".jinja")
_REPO = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[\w./-]+))?")
_WAYS = ("prompteol", "mean", "weighted", "last")  # to embed with a language model
_MODELS = ("embedder", "lm", "reranker")


@dataclass(frozen=True, slots=True)
class Pushed:
    """Where something was published: ``repo``, and the ``commit`` that pins it."""

    repo: str
    commit: str

    @property
    def name(self) -> str:
        """``owner/name@commit``: what loads exactly this."""
        return f"{self.repo}@{self.commit}"


def push(
    folder: str | Path,
    repo: str,
    *,
    license: str,
    private: bool = True,
    base_model: str = "",
    datasets: Sequence[str] = (),
    runs: Sequence[Run] = (),
    embedder: str = "",
    message: str = "",
) -> Pushed:
    """Publish a trained retriever or a kept selector as ``owner/name``, with a card in the hub's format.

    ``license``: an identifier of the hub's (``apache-2.0``); whose rows they are decides. ``private``: of a repository
    that is made now. ``base_model``: its id on the hub, where the folder does not say. ``datasets``: ids on the hub of
    what it was made of. ``runs``: their figures for this selector go into the card; a retriever's stand in its folder.
    ``embedder``: the hub id of a selector's embedder, where it was fitted with a folder of this machine. Of a
    selector's pool, the examples are published that it can show, and no more. HF_TOKEN, or the login of
    ``hf auth login``, is used.

    UsageError for a repository that is none, DataError for a folder that cannot be published, RunError where the hub
    says no.
    """
    folder, found = Path(folder), _REPO.fullmatch(repo)
    if found is None or found["revision"]:
        raise UsageError(f"{repo!r} is no repository; write owner/name")
    if not license:
        raise UsageError("say under which license it is published, such as license='apache-2.0'")
    if is_saved_selector(folder):
        files, card = _selector(folder, repo, embedder, runs)
    elif (folder / CARD).is_file():
        files, card = _retriever(folder, repo)
    else:
        raise DataError(
            f"{folder} is neither a kept selector (selector.json) nor a trained retriever ({CARD}); make one with: "
            "iclkit select POOL --save FOLDER, or iclkit train"
        )
    text = _card(card, repo, license, base_model, datasets)
    return Pushed(repo, _send(repo, {**files, _README: text.encode()}, private, message or f"iclkit {__version__}"))


def pull(repo: str, folder: str | Path | None = None, *, progress: models.PullProgress | None = None) -> Path:
    """Fetch a kept selector, ``owner/name`` or ``owner/name@revision``, and return its folder.

    ``folder``: where to put it; a folder named by its commit under ``home()`` where None. Its pool is made of the
    published examples, and has to be the one that the selector was kept with. What it was fetched from is its
    ``source``.

    DataError for a repository with code or pickles, for one that is no selector, and for one that would ask a server or
    read a place of this machine; ModelError when it cannot be had.
    """
    found = _REPO.fullmatch(repo)
    if found is None:
        raise UsageError(f"{repo!r} is no repository; write owner/name or owner/name@revision")
    name, revision = found["repo"], found["revision"] or "main"
    root = models.home() / "hub"
    given = Path(folder) if folder is not None else None
    if given is not None and given.exists() and (not given.is_dir() or any(given.iterdir())):
        raise DataError(f"{given} is there already; name a new folder")
    if given is None and re.fullmatch("[0-9a-f]{40}", revision) and is_saved_selector(_place(root, name, revision)):
        return _place(root, name, revision)
    work = (given.parent if given is not None else root) / f".{name.replace('/', '--')}.{os.getpid()}.part"
    shutil.rmtree(work, ignore_errors=True)
    try:
        work.mkdir(parents=True)
        commit = models.fetch_repository(name, revision, work, lambda names: _wanted(name, names), progress)
        _make_pool(work, f"hub:{name}@{commit}")
        target = given if given is not None else _place(root, name, commit)
        if target.exists() and given is None:
            shutil.rmtree(target)
        work.rename(target)
    except OSError as error:
        raise DataError(f"cannot write {work.parent} ({error.strerror or error})") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def load_selector(repo: str, **how: Any) -> Chooser:
    """A kept selector of the hub, fitted: ``pull`` and ``iclkit.load_selector``, whose arguments ``how`` are."""
    return load_kept(pull(repo), **how)


# ---- publishing


@dataclass(frozen=True, slots=True)
class _Facts:
    """What a card says. ``results``: (task, metric, value, words) of each figure."""

    title: str
    body: str
    base_model: str
    tags: tuple[str, ...]
    library: str
    results: tuple[tuple[str, str, float, str], ...]


def _selector(folder: Path, repo: str, embedder: str, runs: Sequence[Run]) -> tuple[dict[str, bytes | Path], _Facts]:
    chooser = load_kept(folder, few=True)
    saved: dict[str, Any] = read_json(folder / _SELECTOR)
    if embedder:
        if saved["embedder"] is None:
            raise UsageError("this selector has no embedder")
        saved["embedder"] = {**saved["embedder"], "name": embedder}
    view = chooser.view
    saved["pool"] = {"path": _POOL, "uid": "", "examples": len(view), "hash": view.hash, "task": None, "where": {}}
    saved["follow"] = False
    saved.pop("source", None)
    _check_models(saved, "publish the embedder, and say where it is: --embedder owner/name@commit")
    files: dict[str, bytes | Path] = {_SELECTOR: _json(saved)}
    for file in _selector_files(saved, folder):
        files[file.name] = file
    files[_EXAMPLES] = "".join(json.dumps(example_dict(e), ensure_ascii=False) + "\n" for e in view.examples).encode()
    spec = chooser.spec
    body = [
        f"Chooses {chooser.k} of {len(view):,} examples for a prompt: `{spec}`, kept by iclkit {saved['iclkit']}.",
        "",
        "```python",
        "from iclkit.integrations.hub import load_selector",
        "",
        f'chooser = load_selector("{repo}")  # with @commit behind it, exactly this one',
        'messages = chooser.messages("…")',
        "```",
        "",
        "```console",
        f"$ iclkit hub pull {repo} kept",
        "$ iclkit serve kept",
        "```",
    ]
    named = saved["embedder"]["name"] if saved["embedder"] else ""
    return files, _Facts(repo.partition("/")[2], "\n".join(body), named, ("demonstration-selection",), "iclkit",
                         _figures(runs, spec))  # fmt: skip


def _retriever(folder: Path, repo: str) -> tuple[dict[str, bytes | Path], _Facts]:
    names = [f for f in sorted(folder.rglob("*")) if f.is_file() and not f.name.startswith(".")]
    wrong = [str(f.relative_to(folder)) for f in names if f.suffix not in _SUFFIXES and f.name != _README]
    if wrong:
        raise DataError(f"{folder} holds {wrong[0]}, which nothing of iclkit loads; take it out of the folder")
    card: dict[str, Any] = read_json(folder / CARD)
    try:
        config = card["config"]
        trained = (config["method"], "knn, trained")
        results = tuple(
            (
                report["task"],
                "accuracy",
                way["right"]["value"],
                f"{way['name']}, {report['shots']} shown, {way['pool']}",
            )
            for report in card["report"]
            for way in report["ways"]
            if way["right"] and way["name"] in trained
        )
        base = str(config["base"])
    except (KeyError, TypeError) as error:
        raise DataError(f"{folder / CARD} is no retriever's card (no field {error}); train again") from error
    text = (folder / _README).read_text(encoding="utf-8") if (folder / _README).is_file() else ""
    body = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL).strip()
    title, _, rest = body.partition("\n") if body.startswith("# ") else ("", "", body)
    use = f'```python\nimport iclkit\n\nembedder = iclkit.load_embedder("{repo}")\n```'
    files: dict[str, bytes | Path] = {f.relative_to(folder).as_posix(): f for f in names if f.name != _README}
    return files, _Facts(
        title.removeprefix("# ") or repo.partition("/")[2], f"{use}\n\n{rest.strip()}", base,
        ("sentence-transformers", "demonstration-retrieval"), "sentence-transformers", results,
    )  # fmt: skip


def _card(facts: _Facts, repo: str, license: str, base_model: str, datasets: Sequence[str]) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult(
            task_type="text-classification" if metric in ("accuracy", "macro_f1") else "text-generation",
            dataset_type=task, dataset_name=task, metric_type=metric, metric_value=round(value, 4),
            metric_name=f"{metric}, {words}",
        )
        for task, metric, value, words in facts.results
    ]  # fmt: skip
    base = base_model or _hub_id(facts.base_model)
    data = ModelCardData(
        base_model=base or None,
        datasets=[*datasets] or None,
        license=license,
        library_name=facts.library,
        tags=["in-context-learning", "iclkit", *facts.tags],
        model_name=repo.partition("/")[2],
        metrics=sorted({metric for _, metric, _, _ in facts.results}) or None,
        eval_results=results or None,
    )
    return f"---\n{data.to_yaml()}\n---\n\n# {facts.title}\n\n{facts.body}\n"


def _figures(runs: Sequence[Run], spec: Spec) -> tuple[tuple[str, str, float, str], ...]:
    """The figures of those runs that are of this selector. DataError where there are runs, and none is."""
    own = [run for run in runs if _is_of(run, spec)]
    if not own:
        if runs:
            raise DataError(f"none of the runs is of the selector {spec}")
        return ()
    found = []
    for group in leaderboard(own).groups:
        for line in group.lines:
            low, high = line.figure.low, line.figure.high
            words = f"{group.queries} queries, k = {group.k}, {group.lm}, 95 % interval {low:.3f} to {high:.3f}"
            found.append((group.task, group.metric, line.figure.value, words))
    return tuple(found)


def _is_of(run: Run, spec: Spec) -> bool:
    own = run.spec.selector
    if run.spec.lm is None or own.name != spec.name:
        return False
    made = make_selector(Spec(own.name, own.settings)).spec
    return made.settings == spec.settings and own.content == spec.content


def _hub_id(name: str) -> str:
    """The id on the hub of a model as iclkit names it; "" for a folder of this machine."""
    bare = split_spec(name)[0] if name else ""
    card = models.card_of(bare) if bare else None
    if card is not None:
        return card.hub
    found = _REPO.fullmatch(bare)
    return found["repo"] if found and not Path(bare).exists() else ""


def _send(repo: str, files: Mapping[str, bytes | Path], private: bool, message: str) -> str:
    if models.offline():
        raise UsageError("HF_HUB_OFFLINE is set; unset it to publish")
    import huggingface_hub

    remember(huggingface_hub.get_token())
    api = huggingface_hub.HfApi(endpoint=os.environ.get("HF_ENDPOINT"), library_name="iclkit")
    parts = [huggingface_hub.CommitOperationAdd(name, str(part) if isinstance(part, Path) else part)
             for name, part in files.items()]  # fmt: skip
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        return str(api.create_commit(repo, parts, commit_message=message).oid)
    except Exception as error:  # the hub's client raises its own, httpx's and requests' errors
        raise RunError(
            f"{api.endpoint} did not take {repo} ({type(error).__name__}: {' '.join(str(error).split())[:300]}); "
            "log in with: hf auth login, or set HF_TOKEN"
        ) from error


# ---- fetching


def _place(root: Path, name: str, commit: str) -> Path:
    return root / f"{name.replace('/', '--')}@{commit}"


def _wanted(repo: str, names: Sequence[str]) -> list[str]:
    """The files to fetch. DataError for a repository that holds what is never loaded, or no selector."""
    kept = [n for n in names if n not in (_README, ".gitattributes")]
    wrong = [n for n in kept if PurePosixPath(n).suffix not in (".json", ".jsonl") or "/" in n]
    if CARD in names:
        raise DataError(f"{repo} is a retriever; load it by its name: --embedder {repo}")
    if _SELECTOR not in names or _EXAMPLES not in names:
        raise DataError(f"{repo} is no kept selector: it has no {_SELECTOR if _SELECTOR not in names else _EXAMPLES}")
    if wrong:
        raise DataError(f"{repo} holds {wrong[0]}: a selector is JSON alone, and nothing else is loaded")
    return [n for n in kept if n != _POOL]


def _make_pool(folder: Path, source: str) -> None:
    """Check what was fetched, and make the pool of its examples."""
    saved = read_json(folder / _SELECTOR)
    if not isinstance(saved, dict) or not isinstance(saved.get("pool"), dict) or not isinstance(
        saved.get("selector"), dict
    ):  # fmt: skip
        raise DataError(f"{source}: {_SELECTOR} is no kept selector's")
    _check_models(saved, "take another, or give yours when you load it")
    _selector_files(saved, folder)
    examples = []
    for number, row in read_jsonl(folder / _EXAMPLES):
        example = exported_example(row) if isinstance(row, dict) else None
        if example is None:
            raise DataError(f"{source}: {_EXAMPLES}, line {number} is no example")
        examples.append(example)
    with Pool.open(folder / _POOL) as pool:
        pool.add(examples)
        found = pool.view().hash
    if found != saved["pool"].get("hash"):
        raise DataError(f"{source}: its examples are not those that the selector was kept with")
    kept = {**saved, "pool": {**saved["pool"], "path": _POOL, "uid": "", "task": None, "where": {}}, "source": source}
    (folder / _SELECTOR).write_bytes(_json(kept))


def _check_models(saved: Mapping[str, Any], remedy: str) -> None:
    """DataError for a model that is a server or a folder: only names and hub ids are the same for everybody."""
    for part in _MODELS:
        about = saved.get(part)
        if about is None:
            continue
        name = str(about.get("name", "")) if isinstance(about, Mapping) else ""
        bare = split_spec(name)[0]
        way, colon, rest = bare.partition(":")
        bare = rest if colon and way in _WAYS else bare
        if not (models.card_of(bare) or _REPO.fullmatch(bare)):
            raise DataError(f"the {part} of this selector is {name!r}, which is of one machine; {remedy}")


def _selector_files(saved: Mapping[str, Any], folder: Path) -> list[Path]:
    """The files that a selector names, which have to stand in its folder."""
    files: list[Path] = []

    def found(name: str) -> str:
        file = folder / name
        if PurePosixPath(name).name != name or not file.is_file():
            raise DataError(f"{folder / _SELECTOR} names {name!r}, which is no file of its folder")
        files.append(file)
        return name

    about = saved["selector"]
    try:
        move_files(Spec(str(about["name"]), about["settings"]), found)
    except IclkitError:
        raise
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{folder / _SELECTOR} names no selector ({error})") from error
    return files


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()
