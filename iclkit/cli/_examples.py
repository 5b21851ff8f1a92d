"""Examples of every command, shown at the end of its ``--help``; a test parses each."""

from __future__ import annotations

from collections.abc import Mapping

import click

EXAMPLES: Mapping[str, tuple[str, ...]] = {
    "demo": ("iclkit demo",),
    "task new": (
        "iclkit task new tickets tickets.csv --input text --output team",
        "iclkit task new tickets tickets.csv --test-size 200 --split-by customer",
        "iclkit task new exam mmlu.csv --choices A,B,C,D",
        "iclkit task new spam spam.jsonl --label-names false=ham,true=spam",
    ),
    "task show": ("iclkit task show tickets", "iclkit task show tickets.csv --input text --output team"),
    "task check": ("iclkit task check tickets", "iclkit task check tickets --lm smollm2-135m"),
    "pool add": (
        "iclkit pool add demos.db tickets.csv --input text --output team",
        "iclkit pool add demos.db train.json.gz --rows data.items --on-bad-row skip",
        "iclkit pool add demos.db - --format jsonl < rows.jsonl",
        "iclkit pool add inputs.db inputs.txt --format lines --unlabeled",
    ),
    "pool ls": ("iclkit pool ls demos.db -n 5", "iclkit pool ls demos.db --where generated=labels --json"),
    "pool show": ("iclkit pool show demos.db 30a89c22",),
    "pool label": (
        "iclkit pool add inputs.db inputs.csv --input text --unlabeled",
        "iclkit pool label inputs.db --write sheet.csv -n 50",
        "iclkit pool label inputs.db sheet.csv",
    ),
    "pool rm": ("iclkit pool rm demos.db 30a89c22", "iclkit pool rm demos.db --where generated=labels --dry-run"),
    "pool update": ("iclkit pool update demos.db --where attrs.tenant=acme --set reviewed=true",),
    "pool dedupe": ("iclkit pool dedupe demos.db --near 0.8 --dry-run",),
    "pool stats": ("iclkit pool stats demos.db",),
    "pool embed": ("iclkit pool embed demos.db --embedder all-minilm-l6-v2",),
    "pool index": (
        "iclkit pool index demos.db --kind ivf --recall 0.99",
        "iclkit pool index demos.db --kind exact",
    ),
    "pool check": ("iclkit pool check demos.db",),
    "pool export": ("iclkit pool export demos.db demos.csv", "iclkit pool export demos.db - | head"),
    "pool compact": ("iclkit pool compact demos.lance",),
    "pool migrate": ("iclkit pool migrate demos.db demos.lance", "iclkit pool migrate demos.lance back.db"),
    "keys export": ("iclkit keys export demos.db > keys.jsonl",),
    "keys annotate": ("iclkit keys annotate demos.db --out skills.toml -n 16",),
    "augment": (
        "iclkit augment demos.db --method labels --labels refund,exchange -n 5",
        'iclkit augment demos.db --method bootstrap --task tickets --cue "Let\'s think step by step."',
    ),
    "select": (
        'iclkit select demos.db "my parcel is late" --selector knn -k 4',
        'iclkit select demos.db "my parcel is late" --selector mmr,trade_off=0.7 --prompt',
        "iclkit select demos.db --queries queries.csv --input question --selector bm25 --json",
        'iclkit select tickets.csv "my parcel is late" --input text --output team',
        "iclkit select demos.db --selector mmr -k 4 --save kept --with-pool",
        'iclkit select kept "my parcel is late" --where attrs.tenant=acme',
    ),
    "prompt": (
        'iclkit prompt tickets "my parcel is late" --selector knn -k 4',
        "iclkit prompt tickets --row 0 --lm smollm2-135m",
        'iclkit prompt tickets "my parcel is late" --chat --format curl --model gpt-4o-mini',
    ),
    "serve": (
        "iclkit serve kept",
        "iclkit serve kept --port 8123 --follow --key-env ICLKIT_SERVE_KEY",
        "iclkit serve kept --proxy http://127.0.0.1:8080/v1",
    ),
    "view": (
        "iclkit view demos.db",
        "iclkit view demos.db --lm smollm2-135m --runs runs --port 8200 --no-open",
    ),
    "train": (
        "iclkit train epr tickets --lm smollm2-135m --out my-retriever --dry-run",
        "iclkit train ceil tickets.csv --input text --output team --out my-retriever",
    ),
    "eval": (
        "iclkit eval tickets -s zero -s random -s knn -k 4,8 --html board.html",
        "iclkit eval tickets.csv --input text --output team --test-size 200 -s random -s knn",
        "iclkit eval tickets -s knn --lm openai:my-model@http://localhost:8000/v1 --chat --dry-run",
        "iclkit eval --file study.toml",
    ),
    "tune ease": (
        "iclkit tune ease tickets --out best.json --trials 60",
        'iclkit tune ease demos.db --out best.json --template "Ticket: {input}\\nTeam: {output}"',
    ),
    "tune demos": ("iclkit tune demos best.json > demos.jsonl",),
    "diagnose": ("iclkit diagnose tickets -s random -s bm25 -s knn",),
    "explain": ("iclkit explain runs/0f3c5a7be81d2c44 12", "iclkit explain runs/0f3c5a7be81d2c44 --limit 50"),
    "advise": ("iclkit advise tickets --lm smollm2-135m --prompts 600",),
    "leaderboard": ("iclkit leaderboard runs --html board.html", "iclkit leaderboard runs --baseline knn --markdown"),
    "runs export": (
        "iclkit runs export runs --to mlflow --project tickets",
        "iclkit runs export runs --to wandb --selector kept",
    ),
    "lm check": ("iclkit lm check openai:my-model@http://localhost:8000/v1",),
    "hub push": (
        "iclkit hub push my-retriever ann/tickets-retriever --license apache-2.0",
        "iclkit hub push kept ann/tickets-selector --license apache-2.0 --runs runs",
    ),
    "hub pull": ("iclkit hub pull ann/tickets-selector@8d01b7e kept",),
    "models ls": ("iclkit models ls",),
    "models pull": ("iclkit models pull smollm2-135m all-minilm-l6-v2",),
    "datasets ls": ("iclkit datasets ls",),
    "datasets show": ("iclkit datasets show support",),
    "datasets pull": ("iclkit datasets pull sst2",),
    "selectors ls": ("iclkit selectors ls",),
    "selectors show": ("iclkit selectors show mmr",),
}
"""By the words that call the command; what follows ``|``, ``<`` or ``>`` is the shell's."""


def show_examples(name: str, command: click.Command) -> click.Command:
    """The command with its examples, and those of its subcommands, at the end of its help."""
    own = EXAMPLES.get(name, ())
    text = "\b\nExamples:\n" + "\n".join(f"  {line}" for line in own) if own else ""
    if text and text not in (command.epilog or ""):
        command.epilog = "\n\n".join(part for part in (command.epilog, text) if part)
    for sub, inner in command.commands.items() if isinstance(command, click.Group) else ():
        show_examples(f"{name} {sub}", inner)
    return command
