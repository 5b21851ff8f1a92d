"""What answers cost: prices per million tokens, what was spent, and a limit that nothing goes beyond."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iclkit.errors import DataError, RunError, UsageError
from iclkit.files import read_json

MILLION = 1_000_000
BATCH_FACTOR = 0.5
"""Share of the price that a batch costs, where the price file does not say."""
_LITELLM = {  # our names -> those of litellm's price file, which are per token
    "in": "input_cost_per_token",
    "out": "output_cost_per_token",
    "cached": "cache_read_input_token_cost",
    "batch_in": "input_cost_per_token_batches",
    "batch_out": "output_cost_per_token_batches",
}


@dataclass(frozen=True, slots=True)
class Prices:
    """Money per million tokens: read, written, and read from the server's prefix cache."""

    input: float
    output: float
    cached: float

    def of(self, read: float, written: float, cached: float = 0) -> float:
        """The price of ``read`` tokens, ``cached`` of which the server knew, and ``written`` ones."""
        return ((read - cached) * self.input + cached * self.cached + written * self.output) / MILLION


def read_prices(text: str, model: str, *, batch: bool = False) -> Prices:
    """Prices as they are typed (``in=0.15,out=0.6,cached=0.075`` per million tokens), or of a JSON file.

    The file holds an object per model name with ``in``, ``out`` and, if there are, ``cached``, ``batch_in``,
    ``batch_out`` per million tokens, or the names of litellm's price file, which are per token. UsageError for a price
    that cannot be read, DataError for a file that has none for the model.
    """
    found = _typed(text) if "=" in text else _from_file(Path(text), model)
    if missing := [name for name in ("in", "out") if name not in found]:
        raise UsageError(
            f"--price {text}: no {' and no '.join(missing)}; write e.g. in=0.15,out=0.6 per million tokens"
        )
    factor = BATCH_FACTOR if batch else 1.0
    read = found.get("batch_in", found["in"] * factor) if batch else found["in"]
    written = found.get("batch_out", found["out"] * factor) if batch else found["out"]
    return Prices(read, written, min(read, found.get("cached", read)))


def read_context(text: str, model: str) -> int:
    """How many tokens a model reads, as litellm's price file tells (``max_input_tokens``); 0 where nothing does."""
    if "=" in text:
        return 0
    table = read_json(Path(text))
    entry = _entry(table, model) if isinstance(table, dict) else None
    told = entry.get("max_input_tokens") if isinstance(entry, dict) else None
    return told if isinstance(told, int) and not isinstance(told, bool) and told > 0 else 0


def _entry(table: Mapping[str, Any], model: str) -> Any:
    return table.get(model, table.get(model.rpartition("/")[2]))


def _typed(text: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = part.strip().partition("=")
        if name not in _LITELLM:
            raise UsageError(f"--price {text}: {name!r} is none of {', '.join(_LITELLM)}")
        found[name] = _price(value, f"--price {text}: {name}")
    return found


def _from_file(path: Path, model: str) -> dict[str, float]:
    table = read_json(path)
    if not isinstance(table, dict):
        raise DataError(f"{path}: expected an object with prices per model")
    entry = _entry(table, model)
    if not isinstance(entry, dict):
        known = ", ".join([*table][:5])
        raise DataError(f"{path} has no price for {model!r} (it has {known} …); add it, or give in=…,out=…")
    found: dict[str, float] = {}
    for name, per_token in _LITELLM.items():
        if entry.get(name) is not None:
            found[name] = _price(entry[name], f"{path}: {model}.{name}")
        elif entry.get(per_token) is not None:
            found[name] = MILLION * _price(entry[per_token], f"{path}: {model}.{per_token}")
    return found


def _price(value: object, where: str) -> float:
    try:
        price = float(str(value))
    except ValueError:
        price = -1.0
    if not 0 <= price < float("inf"):
        raise UsageError(f"{where} is {value!r}: expected a number from 0 on")
    return price


class Purse:
    """What may be spent, what is spent, and what is reserved for requests under way. Thread-safe.

    ``reserve`` raises RunError before a request that could lead beyond ``most``, so no number of connections can.
    """

    def __init__(self, prices: Prices, most: float | None = None, batch: Prices | None = None) -> None:
        if most is not None and not 0 <= most < float("inf"):
            raise UsageError(f"--max-cost is {most}: expected a number from 0 on")
        self.prices, self._batch, self.most = prices, batch or prices, most
        self.spent = self._reserved = 0.0
        self._lock = threading.Lock()

    @contextmanager
    def by_batch(self) -> Iterator[None]:
        """Inside, answers cost what they cost in a batch, and are paid for: the limit was looked at before."""
        prices, most = self.prices, self.most
        self.prices, self.most = self._batch, None
        try:
            yield
        finally:
            self.prices, self.most = prices, most

    def check_batch(self, read: float, written: float) -> None:
        """RunError where a batch may cost more than is left."""
        self.settle(self._reserve(self._batch.of(read, written)), 0.0)

    def reserve(self, read: float, written: float) -> float:
        """Set aside what a request may cost at most."""
        return self._reserve(self.prices.of(read, written))

    def _reserve(self, amount: float) -> float:
        with self._lock:
            if self.most is not None and self.spent + self._reserved + amount > self.most:
                raise RunError(
                    f"stopped before going over --max-cost {self.most:g}: {self.spent:.4g} is spent, "
                    f"{self._reserved:.4g} is under way and the next request may cost {amount:.4g}; what was answered "
                    "is kept, so the same command with a higher --max-cost goes on from there"
                )
            self._reserved += amount
        return amount

    def settle(self, reserved: float, cost: float) -> None:
        """Pay what a request cost, 0 where it failed, and let go of what was set aside for it."""
        with self._lock:
            self._reserved = max(0.0, self._reserved - reserved)
            self.spent += cost


def written_at_most(body: Mapping[str, Any]) -> int:
    """Tokens that a request may have written for it."""
    return int(body.get("max_tokens", body.get("max_completion_tokens", 0)) or 0)
