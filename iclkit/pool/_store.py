"""The pool: examples, their vectors, and what was done to them, wherever they are kept."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from iclkit.database import MEMORY
from iclkit.embed import Embedder, FloatArray, as_embedder
from iclkit.engines import Engine
from iclkit.errors import ChangedElsewhere, DataError, PoolError
from iclkit.pool._dedupe import duplicate_rows, fold_input
from iclkit.pool._export import write_examples
from iclkit.pool._find import ExamplePage
from iclkit.pool._lists import RECALL, ApproximateIndex
from iclkit.pool._place import as_place, open_table
from iclkit.pool._rows import examples_of
from iclkit.pool._table import Changes, ExampleRow, Removal, Snapshot, Table, content_id, in_parts
from iclkit.pool._view import IntArray, MadeBy, PoolOrigin, PoolView
from iclkit.records import Example, Json, Progress, clean_text, digest, set_meta


@dataclass(frozen=True, slots=True)
class AddReport:
    """``ids`` are those of the examples given, in order, where they were to be kept; ``revived`` of the ``added`` had
    been removed earlier."""

    added: int
    known: int
    ids: tuple[str, ...]
    revived: int = 0


@dataclass(frozen=True, slots=True)
class DedupeReport:
    """Groups of ids that say the same, oldest first; the oldest of each is kept. ``removed`` is 0 in a dry run."""

    groups: tuple[tuple[str, ...], ...]
    removed: int


@dataclass(frozen=True, slots=True)
class PoolStats:
    """What a pool holds. ``tasks`` and ``outputs`` count examples, ``vectors`` stored vectors per embedder."""

    examples: int
    removed: int
    revision: int
    size: int
    """Bytes of the file, with its write-ahead log."""
    tasks: Mapping[str, int] = field(default_factory=dict)
    outputs: Mapping[str, int] = field(default_factory=dict)
    vectors: Mapping[str, int] = field(default_factory=dict)
    indexes: Mapping[str, str] = field(default_factory=dict)
    """Approximate indexes, by embedder."""


class Pool:
    """Examples that may be shown, in insertion order. Also a context manager that closes itself.

    Two processes may use one file; writers wait for each other. Every change is one transaction. A pool is pickled and
    copied as its path, and one in memory as its examples.
    """

    def __init__(self, table: Table, read_only: bool = False) -> None:
        self.path, self.read_only, self._table = table.place, read_only or table.read_only, table
        self._reader = table.reader
        self._snapshot: tuple[Snapshot, PoolView] | None = None

    @classmethod
    def open(cls, path: str | Path, *, create: bool = True, read_only: bool = False) -> Pool:
        """Open the pool at ``path`` and bring it to the current format; ``":memory:"`` makes one that is not kept.

        A name that ends in ``.lance``, or a URI such as ``s3://bucket/demos.lance``, is a pool in LanceDB (extra
        ``lance``); any other is one SQLite file. A file that is there but cannot be written (read-only media) is opened
        for reading: vectors and keys that are made for it stay in memory, and what would change it is refused.
        PoolError when the pool is missing (and not to be created), is none, or was written by a newer version.
        """
        return cls(open_table(as_place(path), create=create, read_only=read_only))

    @classmethod
    def of(
        cls,
        data: object,
        *,
        input: str | Sequence[str] | None = None,
        output: str | None = None,
        task: str = "",
        keep: Sequence[str] = (),
    ) -> Pool:
        """A pool in memory: of examples, or of rows as ``examples_of`` reads them.

        >>> len(Pool.of([{"ticket": "late parcel", "team": "delivery"}], input="ticket", output="team"))
        1
        """
        pool = cls.open(MEMORY)
        pool.add(examples_of(data, input=input, output=output, task=task, keep=keep))
        return pool

    def __reduce__(self) -> tuple[Callable[..., Pool], tuple[Any, ...]]:
        if self.path == MEMORY:
            return Pool.of, (self.view(labeled=None).examples,)
        return _pool_of_file, (_absolute(self.path), self.uid, self.read_only)

    def close(self) -> None:
        """Close the file. Views stay usable for what they have loaded."""
        self._table.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- reading

    @property
    def revision(self) -> int:
        """Grows with every change of content; never falls."""
        return self._table.revision()

    def __len__(self) -> int:
        return self._table.count()

    def __iter__(self) -> Iterator[Example]:
        return iter(self.view(labeled=None).each())

    @property
    def ids(self) -> tuple[str, ...]:
        """Example ids in insertion order."""
        return self.view(labeled=None).ids

    def get(self, example_id: str) -> Example:
        """The example of an id or of a prefix that only one id has. DataError otherwise, with the nearest ids."""
        with self._table.reading():
            found = self._table.examples([example_id])
            if found:
                return found[example_id]
            several = self._table.beginning(example_id, 4)
            if len(several) == 1 and example_id:
                return several[0]
            if several:
                shown = ", ".join(e.id for e in several[:3]) + (", …" if len(several) > 3 else "")
                raise DataError(f"{example_id!r} begins several ids: {shown}; give more of it")
            for size in range(len(example_id) - 1, 0, -1):
                for near in self._table.beginning(example_id[:size], 1):
                    raise DataError(f"no example {example_id!r} in {self.path}; the nearest id is {near.id}")
        raise DataError(f"no example {example_id!r} in {self.path}; list them with: iclkit pool ls {self.path}")

    def find(
        self,
        text: str = "",
        *,
        task: str | None = None,
        output: str | None = None,
        newest_first: bool = False,
        start: int = 0,
        limit: int = 50,
    ) -> ExamplePage:
        """A page of the examples that hold every word of ``text``, whatever its case, and have this task and output.

        Words are looked for in inputs, outputs, metadata and tasks, and at the beginning of ids. All is looked through,
        and only the page is held.
        """
        return self._table.page(text, task, output, newest_first, start, limit)

    def count_values(self, column: Literal["task", "output"], limit: int = 200) -> list[tuple[str, int]]:
        """The commonest tasks or outputs, with how many examples have each."""
        return self._table.count_values(column, limit)

    def embedded(self, example_id: str) -> list[str]:
        """Names of the embedders that have a vector of this example."""
        return self._table.embedded(self.get(example_id))

    def view(
        self,
        *,
        task: str | None = None,
        where: Mapping[str, Json] | None = None,
        labeled: bool | None = True,
    ) -> PoolView:
        """A snapshot, of all examples or of those of a task and with the given metadata.

        Inputs that wait for a label (an empty output) are left out: they can be shown to nobody. ``labeled=False``
        gives them alone, None gives all.

        A metadata value matches when it is equal, or when both are written the same (``3`` matches ``"3"``). A name
        with dots reaches into values: ``attrs.tenant`` is ``tenant`` in what stands under ``attrs``.
        """
        full = self._load()
        waiting = full.unlabeled
        if task is None and not where and labeled is not False:
            if not len(waiting):
                return full
            # vectors and words are kept for what can be shown
            rows = full.rows if labeled is None else full.rows[~np.isin(full.rows, waiting)]
            return full.only(rows, origin=self._origin(None, {}), keeps=labeled is not None)
        chosen = labeled is None or not (len(waiting) or labeled is False)
        rows = full.matching(where or {})
        if not chosen:
            rows = rows[np.isin(rows, waiting) != labeled]
        if task is not None:
            wanted = clean_text(task)
            if full._held is None:
                rows = np.intersect1d(rows, self._reader.examples.of_task(wanted, full.revision), assume_unique=True)
            else:
                rows = rows[np.array([e.task == wanted for e in full.examples_at(rows)], dtype=np.bool_)]
        return full.only(rows, origin=self._origin(task, where or {}))

    def _load(self) -> PoolView:
        """The snapshot of all examples: the last one while nothing has changed."""
        kept = self._snapshot
        found = self._table.snapshot(kept[0] if kept else None)
        if kept is None or found is not kept[0]:
            made_by: MadeBy = _view_in_memory, (found.revision, found.rows, found.examples)
            if self.path != MEMORY:
                made_by = _view_of_file, (_absolute(self.path), self.uid, found.revision, self.read_only)
            view = PoolView(
                self._reader, found.revision, found.rows, found.examples, found.texts, whole=True, made_by=made_by,
                origin=self._origin(None, {}),
            )  # fmt: skip
            self._snapshot = kept = found, view
        return kept[1]

    def _origin(self, task: str | None, where: Mapping[str, Json]) -> PoolOrigin:
        path = None if self.path == MEMORY else Path(_absolute(self.path))
        return PoolOrigin(path, self.uid, task, dict(where))

    @property
    def uid(self) -> str:
        """What tells this pool from all others, wherever it is moved or copied to."""
        return self._table.uid

    # ---- writing

    def add(self, examples: Iterable[Example], *, keep_ids: bool = True) -> AddReport:
        """Add what is not there yet, in one transaction: all or nothing. DataError names the example at fault.

        An example whose id is known is left as it is, its metadata too; see ``update``. Examples are taken a few
        thousand at a time; with ``keep_ids=False`` nothing is held that grows with their number.
        """
        ids: list[str] = []
        given = added = revived = 0
        rows = (ExampleRow.of(e, n) for n, e in enumerate(examples, start=1))
        with self._writing("add") as changes:
            for part in in_parts(rows, _ADDED_AT_ONCE):
                before = changes.known([r.id for r in part])
                revived += len(changes.removed([r.id for r in part if r.id not in before]))
                known = changes.examples([r.id for r in part if r.chosen_id and r.id in before])
                new: dict[str, ExampleRow] = {}
                for row in part:
                    if row.id in before:
                        if row.id in known:
                            _refuse_other_content(row, known[row.id])
                    elif row.id in new and row.chosen_id:
                        _refuse_other_content(row, new[row.id].example)
                    else:
                        new.setdefault(row.id, row)
                if new:
                    changes.insert(list(new.values()))
                if keep_ids:
                    ids += [row.id for row in part]
                given += len(part)
                added += len(new)
        return AddReport(added, given - added, tuple(ids), revived)

    def update(
        self,
        example_id: str,
        *,
        input: Any = None,
        output: str | None = None,
        task: str | None = None,
        choices: tuple[str, ...] | None = None,
        meta: Mapping[str, Json] | None = None,
    ) -> Example:
        """Change an example and return it as it is now; ``meta`` replaces all metadata.

        New content has a new id: the old one gets a tombstone that names it, and the new example stands last.
        DataError when the new content is in the pool already.
        """
        with self._writing("update") as changes:
            old = self.get(example_id)
            given = {"input": input, "output": output, "task": task, "choices": choices, "meta": meta}
            return self._put(changes, old, replace(old, **{k: v for k, v in given.items() if v is not None}, id=""))

    def exchange(self, old: Example | None, new: Example | None) -> Example | None:
        """Put ``new`` in the place of ``old``, which has to be here still as it is given; returns what stands there.

        ``new`` None removes, ``old`` None puts back what was removed, and undoing is the same call the other way round.
        For whoever showed an example to somebody before it is changed. As in ``update``, other metadata changes an
        example in place, and other content makes it another one, which stands last.
        ChangedElsewhere when ``old`` is not here any more as given; DataError when ``new`` is in the pool already.
        """
        action = "remove" if new is None else "add" if old is None else "update"
        with self._writing(action) as changes:
            if old is not None:
                found = changes.examples([old.id]).get(old.id)
                if found != old:
                    raise ChangedElsewhere(old.id, self._table.replaced(old.id)[1] if found is None else old.id)
            if new is not None:
                return self._put(changes, old, new)
            if old is not None:
                changes.remove([Removal(old.id, "removed")])
            return None

    @staticmethod
    def _put(changes: Changes, old: Example | None, new: Example) -> Example:
        row = ExampleRow.of(new, 1)
        if old is not None and content_id(old) == content_id(new):
            changes.replace([ExampleRow.of(replace(new, id=old.id), 1)])
            return replace(new, id=old.id)
        if changes.known([row.id]):
            if old is None:
                raise DataError(f"{row.id} is in the pool already")
            raise DataError(f"{old.id} would become equal to {row.id}; remove one of them instead")
        changes.insert([row])
        if old is not None:
            changes.remove([Removal(old.id, f"updated to {row.id}", row.id)])
        return new

    def label(self, outputs: Mapping[str, str]) -> int:
        """Give inputs that wait for a label (an empty output) theirs, by id, all or none; returns how many are new.

        An input that was given this label before is passed over. DataError for an id that waits for none, and for a
        label that is none of the input's choices.
        """
        with self._writing("label") as changes:
            rows: dict[str, ExampleRow] = {}
            here = changes.examples([*outputs])
            for position, (example_id, output) in enumerate(outputs.items(), start=1):
                waiting = here.get(example_id)
                if waiting is None or waiting.output:
                    if self._table.replaced(example_id)[1] is None:
                        raise DataError(f"no input {example_id[:40]!r} of {self.path} waits for a label")
                    continue
                labeled = replace(waiting, output=output, id="")
                if labeled.choices and labeled.output not in labeled.choices:
                    raise DataError(f"{output!r} is none of the choices of {example_id}: {', '.join(labeled.choices)}")
                rows[example_id] = ExampleRow.of(labeled, position)
            known = changes.known([row.id for row in rows.values()])
            if new := {row.id: row for row in rows.values() if row.id not in known}:
                changes.insert(list(new.values()))
            if rows:
                changes.remove([Removal(i, f"labeled as {row.id}", row.id) for i, row in rows.items()])
        return len(rows)

    def became(self, example_id: str) -> str | None:
        """What an example that is gone was updated to or labelled as; None for one that was removed.

        DataError for an id that never stood here.
        """
        with self._table.reading():
            removed, became = self._table.replaced(example_id)
            return became if removed else self.get(example_id).id

    def annotate(self, ids: Iterable[str], new: Mapping[str, Json], unset: Iterable[str] = ()) -> int:
        """Change metadata of examples in one transaction, all or none; says how many of them are different now.

        Names with dots reach into values, as in ``view(where=…)``: ``{"attrs.tenant": "acme"}`` changes ``tenant`` in
        what stands under ``attrs``. Ids, content and vectors stay. DataError for an unknown id, and for a value that
        cannot be stored.
        """
        gone, rows = [*unset], list[ExampleRow]()
        with self._writing("update") as changes:
            wanted = [*dict.fromkeys(ids)]
            here = changes.examples(wanted)
            for number, example_id in enumerate(wanted, 1):
                old = here.get(example_id) or self.get(example_id)
                meta: dict[str, Any] = json.loads(json.dumps(dict(old.meta)))
                for path in gone:
                    set_meta(meta, path)
                for path, value in new.items():
                    set_meta(meta, path, value)
                if meta != dict(old.meta):
                    rows.append(ExampleRow.of(replace(old, meta=meta), number))
            if rows:
                changes.replace(rows)
        return len(rows)

    def remove(self, ids: Iterable[str], *, reason: str = "removed") -> int:
        """Remove examples by id or unique prefix, all or none, and say how many. What stays is the id and the reason.

        Vectors and keys of texts that no example has any more go too. DataError for an unknown id.
        """
        with self._writing("remove") as changes:
            wanted = [*dict.fromkeys(ids)]
            known = changes.known(wanted)
            full = list(dict.fromkeys(i if i in known else self.get(i).id for i in wanted))
            if full:
                changes.remove([Removal(i, reason) for i in full])
        return len(full)

    # ---- duplicates, files, health

    def dedupe(self, *, near: float | None = None, apply: bool = True) -> DedupeReport:
        """Find examples of one task and with one output whose inputs say the same, and keep the oldest of each.

        Inputs are compared with case, punctuation and white space folded; with ``near`` in (0, 1], also those whose
        sets of four-character pieces overlap by at least that much (Jaccard) with an older one that is kept. From about
        0.75 on the pairs of inputs compared grow with the pool; below, with many words in common, faster.
        """
        view = self.view(labeled=None)
        found = duplicate_rows(view.each(), near)
        ids = dict(zip(at := [r for rows in found for r in rows], view.ids_at(view.rows[at]), strict=True))
        groups = tuple(tuple(ids[r] for r in rows) for rows in found)
        if not groups or not apply:
            return DedupeReport(groups, 0)
        with self._writing("dedupe") as changes:
            # the one to keep may have been removed since the groups were formed: then its copies stay
            present = changes.known([i for group in groups for i in group])
            copies = {kept: [i for i in others if i in present] for kept, *others in groups if kept in present}
            gone = [Removal(i, f"duplicate of {kept}", kept) for kept, ids in copies.items() for i in ids]
            if gone:
                changes.remove(gone)
        return DedupeReport(groups, len(gone))

    def export(self, path: str | Path, format: str | None = None) -> int:
        """Write all examples as ``jsonl``, ``csv`` or ``parquet`` (by the suffix when not said); returns how many.

        The file appears whole or not at all, and ``read_examples`` (``iclkit pool add``) gives back equal examples. In
        CSV and Parquet, choices, metadata and inputs with fields are JSON.
        """
        return write_examples(self, Path(path), format)

    def compact(self) -> None:
        """Let go of the room that removed examples took, and of their content.

        A file is written anew; in LanceDB the versions before this one go, which views taken before cannot read then.
        """
        if self.read_only:
            raise PoolError(f"the pool {self.path} was opened for reading only")
        self._table.compact()

    def stats(self) -> PoolStats:
        """Counts per task, output and embedder, and the size on disk."""
        view, tasks, outputs = self.view(labeled=None), Counter[str](), Counter[str]()
        for example in view.each():
            tasks[example.task] += 1
            outputs[example.output] += 1
        return PoolStats(
            examples=len(view),
            removed=self._table.count_removed(),
            revision=self.revision,
            size=self._table.size(),
            tasks=_commonest_first(tasks),
            outputs=_commonest_first(outputs),
            vectors=self._reader.vectors.counts(),
            indexes={index.embedder: str(index) for index in self._reader.vectors.approximations()},
        )

    def check(self) -> list[str]:
        """What is wrong with the file or the data, one line each; empty when all is well."""
        if damage := self._table.damage():  # nothing else that is read can be relied on
            return damage
        problems = self._table.broken_references()
        output_of: dict[int, int] = {}  # of each input that of its first example: hashes, so that no text is held
        several: set[int] = set()
        view = self.view(labeled=None)
        for example in view.each():
            as_stored = self._table.content_id_as_stored
            if len(example.id) == 32 and content_id(example) != example.id != as_stored(example.id):
                problems.append(f"example {example.id} does not have the content its id was made of")
            if not example.text.strip():
                problems.append(f"example {example.id} has an empty input")
            given, output = _hash(example.task, fold_input(example)), _hash(example.output)
            if output_of.setdefault(given, output) != output:
                several.add(given)
        by_input: dict[tuple[str, str], list[Example]] = {}
        for example in view.each() if several else ():
            if _hash(example.task, fold_input(example)) in several:
                by_input.setdefault((example.task, fold_input(example)), []).append(example)
        for examples in by_input.values():
            outputs = list(dict.fromkeys(e.output for e in examples))
            if len(outputs) > 1:
                first = " and ".join(f"{o!r}" for o in outputs[:3])
                problems.append(f"the input of {examples[0].id} stands with {len(outputs)} outputs: {first}")
        return problems + self._reader.vectors.problems()

    # ---- vectors and keys

    def embed(
        self,
        embedder: Embedder,
        progress: Progress | None = None,
        *,
        engine: Engine[tuple[str, ...], FloatArray] | None = None,
    ) -> int:
        """Embed every text that has no vector of this embedder yet; returns how many texts that were.

        Committed in batches: a kill loses at most one, and the same call again goes on. ``engine`` makes the vectors
        elsewhere (``iclkit.embed.embedding_engine``).
        """
        view = self.view(labeled=None)
        missing = view.count_missing(embedder)
        if engine is not None:
            view.fill(embedder, engine, progress)
        view.index(embedder, progress)
        return missing

    def build_index(
        self,
        embedder: Embedder,
        *,
        recall: float = RECALL,
        lists: int | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> ApproximateIndex:
        """An approximate index of all that can be shown, kept beside the pool: searches in the whole pool then use it.

        ``recall``: the share of the nearest rows that is to be found, measured on rows of the pool; as few of the
        ``lists`` (4 times the root of the rows where None) are looked at as that takes. What is added later is sorted
        in. PoolError for a pool in memory or one that cannot be written, DataError for fewer than 256 rows.
        """
        if self.read_only:
            raise PoolError(f"the pool {self.path} was opened for reading only")
        return self.view().build_index(embedder, recall=recall, lists=lists, seed=seed, progress=progress)

    def drop_index(self, embedder: Embedder) -> bool:
        """Remove the approximate index, so that search is exact; whether there was one."""
        if self.read_only:
            raise PoolError(f"the pool {self.path} was opened for reading only")
        self._snapshot = None
        return self._reader.vectors.drop_lists(as_embedder(embedder))

    def stored_keys(self, example_id: str) -> list[tuple[str, int, str]]:
        """(transform, number, key) of all keys that were ever written for an example's input."""
        return self._reader.keys.written_for([self.get(example_id).input])[0]

    # ---- transactions

    @contextmanager
    def _writing(self, action: str) -> Iterator[Changes]:
        if self.read_only:
            raise PoolError(f"the pool {self.path} was opened for reading only")
        with self._table.writing(action) as changes:
            yield changes


def _view_in_memory(revision: int, rows: IntArray, examples: tuple[Example, ...]) -> PoolView:
    """A view of a pool in memory, after it was pickled."""
    pool = Pool.of(examples)
    texts = pool.view()._texts
    saved = (_view_in_memory, (revision, rows, examples))
    return PoolView(pool._reader, revision, rows, examples, texts, whole=True, made_by=saved)


def _pool_of_file(path: str, uid: str, read_only: bool) -> Pool:
    """A pool's file, after it was pickled. PoolError when another pool stands there now."""
    pool = Pool.open(path, create=False, read_only=read_only)
    if pool.uid != uid:
        raise PoolError(f"{path} is another pool than the one that this was made with; make it again")
    return pool


def _view_of_file(path: str, uid: str, revision: int, read_only: bool) -> PoolView:
    """A view of a pool's file, after it was pickled. PoolError when the pool is not as it was."""
    pool = _pool_of_file(path, uid, read_only)
    view = pool.view()
    if view.revision != revision:
        raise PoolError(
            f"the pool {path} has changed since this was made (revision {revision}, now {view.revision}); make it again"
        )
    return view


def as_view(source: PoolView | Pool | Iterable[object]) -> PoolView:
    """A view of whatever examples stand in: a view itself, all of a pool, or examples, which are kept in memory.

    UsageError for anything else.
    """
    if isinstance(source, PoolView):
        return source
    return source.view() if isinstance(source, Pool) else Pool.of(source).view()


def copy_view(view: PoolView, path: Path) -> None:
    """Write a new pool file of a view's examples alone, with the vectors and keys that their pool has stored.

    It keeps the pool's uid and the rows' handles, so that whatever is picked from it is picked as from the view.
    PoolError where the file cannot be written, or is there already.
    """
    if path.exists():
        raise PoolError(f"{path} is there already; name another file")
    view._reader.save_copy(path)
    with Pool.open(path) as pool:
        kept, here = {*view.ids}, {*pool.ids}
        if here - kept:
            pool.remove(here - kept, reason="not in the part that was copied")
        if kept - here:
            pool.add(e for e in view.examples if e.id not in here)
        pool.compact()


def _absolute(place: Path | str) -> str:
    """A place, from wherever it is asked for."""
    return str(place.resolve()) if isinstance(place, Path) else place


def _refuse_other_content(new: ExampleRow, old: Example) -> None:
    if content_id(new.example) != content_id(old):
        raise DataError(
            f"id {old.id!r} stands for another example already ({old.text[:40]!r}); leave ids empty, or use update"
        )


def _hash(*texts: str) -> int:
    return int(digest(texts, 8), 16)


_ADDED_AT_ONCE = 5_000


def _commonest_first(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
