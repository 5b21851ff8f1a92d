"""``iclkit lm``: what a language model can do, found by asking it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from iclkit.cli._kit import fetch
from iclkit.cli._tables import say
from iclkit.cli._terminal import echo, emit_json
from iclkit.secrets import redact

if TYPE_CHECKING:
    from iclkit.lm import LM

_SHOTS = 8
_LABELS = (" positive", " negative")


@click.group()
def command() -> None:
    """Find out what a language model can do, and how fast it answers."""


@command.command()
@click.argument("lm", metavar="LM")
@click.option("--prompts", default=4, show_default=True, type=click.IntRange(1), help="How many prompts to time.")
@click.option("--reprobe", is_flag=True, help="Find everything out again; what was found before is forgotten.")
@click.option("--price", metavar="in=X,out=Y", help="Per million tokens read and written (cached=Z), or a JSON file of "
              "prices: what a prompt costs is counted.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check(lm: str, prompts: int, reprobe: bool, price: str | None, as_json: bool) -> None:
    """Ask LM a few questions: how it tells log-probabilities, its context, time and price of a prompt.

    LM is anything that --lm takes, e.g. openai:MODEL@URL. Eight short demonstrations and two labels make a prompt.
    """
    from iclkit.lm import load_lm

    fetch(lm, "lm")
    say(f"asking {redact(lm)} …")
    begun = time.perf_counter()
    model = load_lm(lm, reprobe=reprobe, price=price)
    opened = time.perf_counter() - begun
    facts: dict[str, Any] = {
        "lm": redact(lm),
        "name": model.name,
        "scoring": model.scoring,
        "context": model.context_size,
    }
    facts |= {"opened_seconds": round(opened, 3), **_found(model), **_timed(model, prompts)}
    if price is not None:
        facts |= {"cost of 1,000 prompts": 1000 * facts.pop("cost_per_prompt"), "cost of this check": model.usage.cost}
    else:
        del facts["cost_per_prompt"]
    if as_json:
        emit_json({**facts, "notes": list(model.notes)}, indent=2)
        return
    width = max(map(len, facts)) + 2
    for name, value in facts.items():
        echo(f"{name.replace('_', ' '):<{width}}{_shown(value)}")
    for note in model.notes:
        say(f"note: {note}")


def _found(lm: LM) -> dict[str, Any]:
    """What was found out about a server."""
    from iclkit.lm import capabilities

    can = capabilities(lm)
    if can is None:
        return {}
    width = {"next-token": max(can.widths, default=0), "first-token": can.chat_width}.get(can.scoring)
    return {
        "make": can.kind or "not told",
        "endpoint": can.endpoint,
        "long continuations": can.long_scoring or "the same way",
        "token ids as prompts": can.token_ids,
        "lists of prompts": can.lists,
        **({} if width is None else {"candidates, at most": width}),
        "answers bound by": can.force or "nothing",
        "left out or changed": ", ".join(can.changes) or "nothing",
        "tells cached tokens": can.cached_tokens,
        "context told by": can.context_from or "nobody",
        "asked twice, differs by": can.deviation,
        **({"slots": can.slots} if can.slots else {}),
        "requests at once": can.connections or "not found out yet",
        "found": can.found,
    }


def _timed(lm: LM, prompts: int) -> dict[str, Any]:
    """Seconds and tokens of a few-shot prompt with two labels, none of which was asked before."""
    from iclkit.lm import ScoreRequest

    shots = "".join(f"Review: text {n} of {time.time_ns()}\nSentiment: positive\n\n" for n in range(_SHOTS))
    contexts = [f"{shots}Review: a film, number {n}\nSentiment:" for n in range(prompts)]
    before, begun = lm.usage, time.perf_counter()
    lm.score([ScoreRequest(c, label) for c in contexts for label in _LABELS])
    seconds, used = time.perf_counter() - begun, lm.usage - before
    return {
        "seconds_per_prompt": round(seconds / prompts, 3),
        "requests_per_prompt": round(used.calls / prompts, 2),
        "tokens_per_prompt": round(used.tokens_computed / prompts),
        "cost_per_prompt": used.cost / prompts,
    }


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "not known"
    return f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value)
