"""A selector that is kept: fitted, with all it needs to give the same picks elsewhere, in a folder."""

from __future__ import annotations

import asyncio
import json
import secrets
import shutil
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

from iclkit import __version__, embed
from iclkit import lm as lms
from iclkit.errors import DataError, IclkitError, ModelError, PoolError, UsageError
from iclkit.files import read_json, replace_file, sync_folder
from iclkit.pool import Pool, PoolView, copy_view
from iclkit.prompts import ORDERS, Template, assemble
from iclkit.records import Json, Prompt, Query, QueryLike, Selection, Spec
from iclkit.schema import read_as
from iclkit.selectors._base import Kit, Selector, as_queries
from iclkit.selectors._registry import make_selector, move_files

if TYPE_CHECKING:
    from iclkit.embed import Embedder, Reranker
    from iclkit.lm import LM

FORMAT = 1
FILE = "selector.json"
POOL_FILE = "pool.db"
ANSWER_TOKENS = 64
"""Tokens of an LM's context that prompts leave to the answer, where its length is not known."""


class _Model(TypedDict):
    name: str
    fingerprint: str


class _Spec(TypedDict):
    name: str
    settings: dict[str, Any]
    version: int
    content: NotRequired[str]


class _PoolFacts(TypedDict):
    path: str
    uid: str
    examples: int
    hash: str
    task: str | None
    where: dict[str, Any]


class _Saved(TypedDict):
    iclkit_saved_selector: int
    iclkit: str
    selector: _Spec
    k: int
    order: str
    seed: int
    reserve: int
    task: str
    labels: tuple[str, ...]
    template: dict[str, Any] | None
    embedder: _Model | None
    lm: _Model | None
    reranker: _Model | None
    pool: _PoolFacts
    follow: bool
    source: NotRequired[str]


class Chooser:
    """A fitted selector with how many it picks and how these are shown: what an application keeps and asks.

    ``follow``: before it picks, it looks whether the pool has changed, and is then fitted anew. May be asked by several
    threads. ``notes`` say what the user should know of how it was loaded.
    """

    def __init__(
        self,
        selector: Selector,
        view: PoolView,
        kit: Kit,
        *,
        k: int = 8,
        follow: bool = False,
        pool: Pool | None = None,
        notes: tuple[str, ...] = (),
        source: str = "",
    ) -> None:
        """``selector`` is fitted on ``view`` with ``kit``; ``pool``: where the view comes from, if it is open;
        ``source``: the repository and commit that it was fetched from (``hub:owner/name@commit``)."""
        if k < 0:
            raise UsageError(f"k is {k}; give 0 or more")
        self.k, self.follow, self.notes, self.source = k, follow, notes, source
        self._kit, self._pool, self._revision = kit, pool, view.revision
        self._state = (selector, view)  # replaced as one, so that a query sees the two that belong together
        self._lock = threading.Lock()

    @property
    def selector(self) -> Selector:
        """The fitted selector."""
        return self._state[0]

    @property
    def view(self) -> PoolView:
        """The examples that it was fitted on."""
        return self._state[1]

    @property
    def kit(self) -> Kit:
        """What it was fitted with."""
        return self._kit

    def __repr__(self) -> str:
        return f"<Chooser {self.spec}, k={self.k}, {len(self.view):,} examples>"

    @property
    def spec(self) -> Spec:
        """The selector's."""
        return self.selector.spec

    @property
    def order(self) -> str:
        """The order policy of its prompts."""
        return self._kit.order

    @property
    def template(self) -> Template:
        """The template of its prompts, with the selector's own words."""
        return self.selector.template_for(self._kit.template)

    def select(
        self,
        query: QueryLike,
        k: int | None = None,
        *,
        where: Mapping[str, Json] | None = None,
        exclude: Iterable[str] = (),
    ) -> Selection:
        """The demonstrations for a query, best first: ``k`` of them, or as many as it was saved with.

        ``where``: metadata that they must have; ``exclude``: ids of examples that they must not be.
        """
        return self.select_many([Query.of(query, where=where, exclude=exclude)], k)[0]

    def select_many(self, queries: Sequence[QueryLike], k: int | None = None) -> list[Selection]:
        """One Selection per query, each as ``select`` would give it."""
        if self.follow:
            self.refit()
        return self.selector.select_many(as_queries(queries), self.k if k is None else k)

    def prompt(
        self,
        query: QueryLike,
        k: int | None = None,
        *,
        where: Mapping[str, Json] | None = None,
        exclude: Iterable[str] = (),
    ) -> Prompt:
        """The prompt for a query with its demonstrations, under the context of the LM where there is one."""
        return self.prompt_of(self.select(query, k, where=where, exclude=exclude))

    def messages(
        self,
        query: QueryLike,
        k: int | None = None,
        *,
        where: Mapping[str, Json] | None = None,
        exclude: Iterable[str] = (),
    ) -> list[dict[str, str]]:
        """What to send to a chat API for a query: ``[{"role": …, "content": …}, …]``."""
        return self.prompt(query, k, where=where, exclude=exclude).to_openai()

    async def aselect(
        self,
        query: QueryLike,
        k: int | None = None,
        *,
        where: Mapping[str, Json] | None = None,
        exclude: Iterable[str] = (),
    ) -> Selection:
        """``select`` in a thread of its own, for programs that are asynchronous."""
        return await asyncio.to_thread(self.select, query, k, where=where, exclude=exclude)

    async def amessages(
        self,
        query: QueryLike,
        k: int | None = None,
        *,
        where: Mapping[str, Json] | None = None,
        exclude: Iterable[str] = (),
    ) -> list[dict[str, str]]:
        """``messages`` in a thread of its own."""
        return await asyncio.to_thread(self.messages, query, k, where=where, exclude=exclude)

    def prompt_of(self, selection: Selection) -> Prompt:
        """The prompt that shows a selection."""
        kit, lm = self._kit, self._kit.lm
        return assemble(
            self.template,
            selection.query,
            selection.examples,
            order=kit.order,
            budget=lm.context_size if lm else None,
            count_tokens=lm.count_tokens if lm else None,
            render_chat=lm.render_chat if lm else None,
            seed=kit.seed,
            reserve=(kit.reserve or ANSWER_TOKENS) if lm else 0,
        )

    def refit(self) -> bool:
        """Fit it anew if the pool has changed since it was fitted; says whether that was so."""
        pool = self.pool
        with self._lock:
            if pool.revision == self._revision:
                return False
            selector, view = self._state
            new = _part_of(pool, view)
            self._revision = new.revision
            if new.shows_the_same(view):  # a change elsewhere in the pool
                return False
            self._state = (make_selector(_spec_of(selector)).fit(new, self._kit), new)
            return True

    def check(self) -> None:
        """PoolError where the pool that it follows can no longer be read."""
        _ = self.pool.revision

    @property
    def pool(self) -> Pool:
        """The pool that its examples stand in. UsageError where they were fitted on as they came, or cut by hand."""
        if self._pool is None:
            origin = self.view.origin
            if origin is None or origin.path is None:
                raise UsageError(
                    "this selector was fitted on rows that no pool gives again, so it cannot follow a pool; fit it on "
                    "pool.view()"
                )
            self._pool = Pool.open(origin.path, create=False)
        return self._pool

    def save(self, folder: str | Path, *, copy_pool: bool = False) -> Path:
        """Write it to a folder; ``load_selector`` reads it back. Returns the folder's path.

        The folder appears whole or not at all; one that was saved there before is replaced. It holds ``selector.json``,
        which can be read and edited, the selector files that the selector names and, with ``copy_pool``, the examples
        with their vectors. Rows that no pool file gives again go along anyhow. UsageError for a selector that could not
        be loaded: one of a class that no installed package provides.
        """
        folder = Path(folder)
        _check_place(folder)
        selector, view = self._state
        _check_known(selector)
        origin = view.origin
        copied = copy_pool or origin is None or origin.path is None
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            made = _beside(folder)
            made.mkdir()
        except OSError as error:
            raise DataError(f"cannot write the folder {folder} ({error.strerror})") from error
        try:
            if copied:
                copy_view(view, made / POOL_FILE)
            spec = _with_files(_spec_of(selector), made)
            text = json.dumps(self._facts(spec, copied), indent=1, ensure_ascii=False, default=dict)
            replace_file(made / FILE, text + "\n")
            _put(made, folder)
        except OSError as error:
            raise DataError(f"cannot write the folder {folder} ({error.strerror})") from error
        finally:
            shutil.rmtree(made, ignore_errors=True)
        return folder

    def _facts(self, spec: Spec, copied: bool) -> _Saved:
        kit, view, needs = self._kit, self.view, self.selector.needs
        origin = view.origin
        facts: _Saved = {
            "iclkit_saved_selector": FORMAT,
            "iclkit": __version__,
            "selector": spec.identity(),  # type: ignore[typeddict-item]  # its keys are those of _Spec
            "k": self.k,
            "order": kit.order,
            "seed": kit.seed,
            "reserve": kit.reserve,
            "task": kit.task,
            "labels": kit.labels,
            "template": dict(kit.template.identity()) if kit.template else None,
            "embedder": _model_of(kit.embedder) if kit.embedder and needs.embedder else None,
            "lm": _model_of(kit.lm) if kit.lm and needs.lm else None,
            "reranker": _model_of(kit.reranker) if kit.reranker and needs.reranker else None,
            "pool": {
                "path": POOL_FILE if copied or origin is None else str(origin.path),
                "uid": origin.uid if origin else "",
                "examples": len(view),
                "hash": view.hash,
                "task": origin.task if origin else None,
                "where": dict(origin.where) if origin else {},
            },
            "follow": self.follow,
        }
        if self.source:
            facts["source"] = self.source
        return facts


def load_selector(
    folder: str | Path,
    *,
    pool: str | Path | Pool | None = None,
    embedder: str | Embedder | None = None,
    lm: str | LM | None = None,
    reranker: str | Reranker | None = None,
    device: str | None = None,
    follow: bool | None = None,
    few: bool = False,
) -> Chooser:
    """A selector that ``save`` has kept, fitted again: it gives the same picks as before.

    ``pool``, ``embedder``, ``lm`` and ``reranker`` say where these are on this machine, where their names or paths
    differ; they have to be the same ones (equal fingerprints, equal examples), or a DataError, PoolError or ModelError
    says in one line what differs. ``follow``: whether it is fitted anew when the pool has changed, now and later; as it
    was saved when None. ``few``: few queries will be asked, see ``load_embedder``.
    """
    folder = Path(folder)
    saved = _read(folder)
    follows = saved["follow"] if follow is None else follow
    spec = saved["selector"]
    try:
        selector = make_selector(
            move_files(Spec(spec["name"], spec["settings"]), lambda file: str((folder / file).resolve()))
        )
        ORDERS.get(saved["order"])
        given = saved["template"]
        template = read_as(Template, given, f"{folder / FILE}: template") if given is not None else None
    except UsageError as error:
        raise DataError(f"{folder / FILE}: {error}") from error
    place: dict[str, Any] = {"device": device}
    kit = Kit(
        embedder=_same(
            "embedder", saved["embedder"], embedder, embed.load_embedder, saved["task"], place | {"few": few}
        ),
        lm=_same("lm", saved["lm"], lm, lms.load_lm, "", place),
        reranker=_same("reranker", saved["reranker"], reranker, embed.load_reranker, "", place),
        template=template,
        labels=saved["labels"],
        seed=saved["seed"],
        order=saved["order"],
        reserve=saved["reserve"],
        task=saved["task"],
    )
    store, view = _same_pool(folder, saved["pool"], pool, follows)
    notes: tuple[str, ...] = ()
    now = selector.spec
    if now.version != spec["version"]:
        notes = (f"saved by version {spec['version']} of {now.name}, loaded by {now.version}: picks may differ",)
    elif now.content != spec.get("content", ""):
        notes = (f"the selector file of {now.name} was changed after it was saved: picks may differ",)
    return Chooser(
        selector.fit(view, kit), view, kit, k=saved["k"], follow=follows, pool=store, notes=notes,
        source=saved.get("source", ""),
    )  # fmt: skip


def is_saved_selector(folder: Path) -> bool:
    """Whether a folder is one that ``save`` has written."""
    return (folder / FILE).is_file()


# ---- writing


def _check_place(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder} is a file; name a folder to keep the selector in")
    if folder.is_dir() and not is_saved_selector(folder) and any(folder.iterdir()):
        raise DataError(f"{folder} holds other things than a saved selector; name an empty or a new folder")


def _beside(folder: Path) -> Path:
    """A new name in the folder's own folder, for what becomes or was it."""
    return folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")


def _check_known(selector: Selector) -> None:
    spec = selector.spec
    try:
        again = make_selector(_spec_of(selector)).spec
    except UsageError as error:
        raise UsageError(
            f"selector {spec.name!r} could not be loaded again ({error}); give its class under the entry point group "
            "iclkit.selectors of a package"
        ) from error
    if again != spec:
        raise UsageError(
            f"selector {spec.name!r} could not be loaded again: it holds more than its settings say; a list of "
            "demonstrations has to stand in a selector file (SelectorFile.write)"
        )


def _spec_of(selector: Selector) -> Spec:
    spec = selector.spec
    return Spec(spec.name, spec.settings, spec.version, spec.content)


def _with_files(spec: Spec, folder: Path) -> Spec:
    """The spec with copies, in the folder, of the selector files that it names."""
    names: dict[str, str] = {}

    def copied(file: str) -> str:
        if file not in names:
            name = Path(file).name
            if name in (*names.values(), FILE):
                name = f"{len(names)}-{name}"
            shutil.copyfile(file, folder / name)
            names[file] = name
        return names[file]

    return move_files(spec, copied)


def _model_of(model: Embedder | LM | Reranker) -> _Model:
    return {"name": embed.absolute_spec(model.name), "fingerprint": model.fingerprint}


def _put(made: Path, folder: Path) -> None:
    """Move a finished folder to its place; an older one goes when the new one stands."""
    old: Path | None = None
    if folder.exists():
        old = folder.rename(_beside(folder))
    try:
        made.rename(folder)
    except OSError:
        if old is not None:
            old.rename(folder)
        raise
    sync_folder(folder.parent)
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)


# ---- reading


def _read(folder: Path) -> _Saved:
    file = folder / FILE
    if not folder.is_dir():
        raise DataError(f"no folder {folder}; keep a selector with: iclkit select POOL --save {folder}")
    if not file.is_file():
        raise DataError(f"{folder} holds no {FILE}; keep a selector with: iclkit select POOL --save {folder}")
    data = read_json(file)
    if not isinstance(data, dict) or data.get("iclkit_saved_selector") != FORMAT:
        raise DataError(f"{file}: `iclkit_saved_selector` is not {FORMAT}: save the selector again with this version")
    saved: _Saved = read_as(_Saved, data, str(file))
    if saved["k"] < 0:
        raise DataError(f"{file}: `k` is {saved['k']}; give 0 or more")
    return saved


def _same(part: str, saved: _Model | None, given: Any, load: Any, task: str, place: Mapping[str, Any]) -> Any:
    """The model that was used, loaded by its name or by the one given. ModelError when it is another one."""
    if saved is None:
        return load(given, **place) if isinstance(given, str) else given
    try:
        model = load(saved["name"] if given is None else given, **place) if isinstance(given, str | None) else given
    except IclkitError as error:
        if given is not None:
            raise
        raise ModelError(f"the {part} of the saved selector: {error}; or say where it is: {part}=") from error
    found = model.for_task(task).fingerprint if part == "embedder" and task else model.fingerprint
    if found != saved["fingerprint"]:
        raise ModelError(
            f"the {part} {model.name!r} is not the one that the selector was saved with ({saved['name']!r}): its "
            f"fingerprint is {found}, and was {saved['fingerprint']}; load that one, or save the selector again"
        )
    return model


def _same_pool(folder: Path, saved: _PoolFacts, given: str | Path | Pool | None, follow: bool) -> tuple[Pool, PoolView]:
    place = folder / saved["path"] if given is None else given
    try:
        pool = place if isinstance(place, Pool) else Pool.open(place, create=False)
    except PoolError as error:
        if given is not None:
            raise
        raise PoolError(f"{error}; where it is elsewhere, give its path with --pool (pool=)") from error
    view = pool.view(task=saved["task"], where=saved["where"] or None)
    if view.hash == saved["hash"]:
        return pool, view
    if given is None and saved["uid"] not in ("", pool.uid):
        raise PoolError(
            f"{place} is another pool than the one that the selector was saved with; give that one with --pool (pool=)"
        )
    if not follow:
        raise PoolError(
            f"the pool {place} has changed since the selector was saved ({saved['examples']:,} examples then, "
            f"{len(view):,} now); load it with --follow (follow=True) to fit it on what is there now, or save it again"
        )
    return pool, view


def _part_of(pool: Pool, view: PoolView) -> PoolView:
    """The part of a pool that a view was taken of, as it is now."""
    return pool.view(task=view.origin.task, where=view.origin.where) if view.origin else pool.view()
