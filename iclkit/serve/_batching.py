"""Requests that arrive while others are answered are answered together, in one call of the selector."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from iclkit.errors import IclkitError
from iclkit.records import Query, Selection, canonical_json
from iclkit.selectors import Chooser

MOST = 64
"""Queries of one call; more wait for the next, so that none waits long."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    query: Query
    k: int
    answer: asyncio.Future[Selection]


class Batcher:
    """Asks a chooser from many coroutines at a time. Nobody is kept waiting for company: a batch is what has come in
    while the one before was computed.

    The chooser works in one thread of its own. ``batches`` and ``queries`` count what was asked so far.
    """

    def __init__(self, chooser: Chooser) -> None:
        self.chooser = chooser
        self.batches = self.queries = 0
        self._waiting: asyncio.Queue[_Waiting] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1, "iclkit-select")
        self._worker: asyncio.Task[None] | None = None

    async def select(self, query: Query, k: int) -> Selection:
        """The demonstrations for one query. Whatever the selector raises for this query comes out here."""
        if self._worker is None:
            self._worker = asyncio.create_task(self._work())
        answer: asyncio.Future[Selection] = asyncio.get_running_loop().create_future()
        self._waiting.put_nowait(_Waiting(query, k, answer))
        return await answer

    async def close(self) -> None:
        """End the worker; what still waits is canceled."""
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.gather(self._worker, return_exceptions=True)
            self._worker = None
        while not self._waiting.empty():
            self._waiting.get_nowait().answer.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self._waiting.get()]
            while len(batch) < MOST and not self._waiting.empty():
                batch.append(self._waiting.get_nowait())
            try:
                found = await loop.run_in_executor(self._thread, self._select, batch)
            except asyncio.CancelledError:
                for waiting in batch:
                    waiting.answer.cancel()
                raise
            for waiting, result in zip(batch, found, strict=True):
                if waiting.answer.done():  # whoever asked has gone
                    continue
                if isinstance(result, Exception):
                    waiting.answer.set_exception(result)
                else:
                    waiting.answer.set_result(result)

    def _select(self, batch: list[_Waiting]) -> list[Selection | Exception]:
        self.batches += 1
        self.queries += len(batch)
        groups = defaultdict[int, list[int]](list)
        for at, waiting in enumerate(batch):
            groups[waiting.k].append(at)
        found: dict[int, Selection | Exception] = {}
        for k, places in groups.items():
            found |= dict(zip(places, self._select_group([batch[at].query for at in places], k), strict=True))
        return [found[at] for at in range(len(batch))]

    def _select_group(self, queries: list[Query], k: int) -> list[Selection | Exception]:
        """The answers of queries that want as many; those that are alike are asked once."""
        keys = [(query.id, canonical_json(dict(query.where)), query.exclude) for query in queries]
        different = dict(zip(keys, queries, strict=True))
        found = dict(zip(different, self._ask([*different.values()], k), strict=True))
        return [found[key] for key in keys]

    def _ask(self, queries: list[Query], k: int) -> list[Selection | Exception]:
        """All of them together; one by one where that fails, so that a query costs nobody else an answer."""
        try:
            return [*self.chooser.select_many(queries, k)]
        except Exception as error:  # handed to whoever asked
            if len(queries) == 1 or not isinstance(error, IclkitError):
                return [error] * len(queries)
        return [result for query in queries for result in self._ask([query], k)]
