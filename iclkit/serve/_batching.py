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

LINGER, LONGEST_LINGER = 0.25, 0.025
"""How long a worker waits until as many have come in as it has just answered: a part of the time that these took, and
seconds."""

STILL = 3
"""Turns of the event loop in which no request comes in, after which all that were under way have."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    query: Query
    k: int
    answer: asyncio.Future[Selection]


class Batcher:
    """Asks a chooser from many coroutines at a time: a batch is what has come in while the one before was computed.

    The chooser works in ``workers`` threads. None of them takes more than its share of the requests that are open, so
    that all have something to do. Whoever has an answer often asks again at once; so that the first of them is not
    computed alone, a worker waits a moment (``LINGER``) for as many as it has just answered, and never for company of a
    single one. What has reached the machine by then is read before a batch is closed (``STILL``), so that of many that
    come at once none has to wait for a third batch. ``batches`` and ``queries`` count what was asked so far.
    """

    def __init__(self, chooser: Chooser, workers: int = 1) -> None:
        self.chooser, self.workers = chooser, workers
        self.batches = self.queries = 0
        self._open = 0
        self._waiting: asyncio.Queue[_Waiting] = asyncio.Queue()
        self._threads = ThreadPoolExecutor(workers, "iclkit-select")
        self._tasks: list[asyncio.Task[None]] = []

    async def select(self, query: Query, k: int) -> Selection:
        """The demonstrations for one query. Whatever the selector raises for this query comes out here."""
        if not self._tasks:
            self._tasks = [asyncio.create_task(self._work()) for _ in range(self.workers)]
        answer: asyncio.Future[Selection] = asyncio.get_running_loop().create_future()
        self._waiting.put_nowait(_Waiting(query, k, answer))
        self._open += 1
        try:
            return await answer
        finally:
            self._open -= 1

    async def close(self) -> None:
        """End the work; what still waits is canceled."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        while not self._waiting.empty():
            self._waiting.get_nowait().answer.cancel()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _work(self) -> None:
        loop, last, took, free = asyncio.get_running_loop(), 1, 0.0, 0.0
        while True:
            batch = [await self._waiting.get()]
            try:
                while self._waiting.qsize() + 1 < last and loop.time() < free + min(took * LINGER, LONGEST_LINGER):
                    await asyncio.sleep(0.001)
                await self._all_read()
                share = min(MOST, -(-self._open // self.workers))
                while len(batch) < share and not self._waiting.empty():
                    batch.append(self._waiting.get_nowait())
                began, last = loop.time(), len(batch)
                self.batches += 1
                self.queries += len(batch)
                found = await loop.run_in_executor(self._threads, self._select, batch)
            except asyncio.CancelledError:
                for waiting in batch:
                    waiting.answer.cancel()
                raise
            free = loop.time()
            took = free - began
            for waiting, result in zip(batch, found, strict=True):
                if waiting.answer.done():  # whoever asked has gone
                    continue
                if isinstance(result, Exception):
                    waiting.answer.set_exception(result)
                else:
                    waiting.answer.set_result(result)

    async def _all_read(self) -> None:
        """Until no more requests come in from what the event loop has at hand."""
        still, before = 0, self._open
        while still < STILL:
            await asyncio.sleep(0)
            still = still + 1 if self._open == before else 0
            before = self._open

    def _select(self, batch: list[_Waiting]) -> list[Selection | Exception]:
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
