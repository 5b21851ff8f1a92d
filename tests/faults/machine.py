"""Damaged models, full disks, little memory, two writers."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from iclkit.errors import IclkitError

from .children import call, together
from .trials import Trial
from .worlds import World, fresh, rows, write_jsonl


def _tensors(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def damage(model: Path) -> None:
        from safetensors.torch import load_file, save_file

        weights = load_file(model / "model.safetensors")
        change(weights)
        save_file(weights, model / "model.safetensors", metadata={"format": "pt"})

    return damage


def _config(text: str | None = None, **values: Any) -> Callable[[Path], None]:
    def damage(model: Path) -> None:
        file = model / "config.json"
        file.write_text(text if text is not None else json.dumps({**json.loads(file.read_text()), **values}))

    return damage


def _bytes(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def damage(model: Path) -> None:
        file = model / "model.safetensors"
        file.write_bytes(change(file.read_bytes()))

    return damage


def _fill(word: str, value: float) -> Callable[[dict[str, Any]], None]:
    def fill(weights: dict[str, Any]) -> None:
        key = next(k for k in sorted(weights) if word in k and k.endswith("weight"))
        weights[key].view(-1)[:4] = value

    return fill


def _drop(word: str) -> Callable[[dict[str, Any]], None]:
    def drop(weights: dict[str, Any]) -> None:
        for key in [k for k in weights if word in k]:
            del weights[key]

    return drop


def _dropped_file(name: str) -> Callable[[Path], None]:
    return lambda model: (model / name).unlink()


MODELS: dict[str, Callable[[Path], None]] = {
    "NaN in a norm": _tensors(_fill("orm", float("nan"))),
    "infinity in a norm": _tensors(_fill("orm", float("inf"))),
    "NaN in the embedding": _tensors(lambda w: w[next(k for k in w if "embed" in k)].fill_(float("nan"))),
    "a layer missing": _tensors(_drop("layer")),
    "norms missing": _tensors(_drop("orm.weight")),
    "more layers in the config": _config(num_hidden_layers=50),
    "no heads": _config(num_attention_heads=0),
    "negative size": _config(hidden_size=-1),
    "size a text": _config(hidden_size="many"),
    "config []": _config("[]"),
    "config {oops": _config("{oops"),
    "config empty": _config(""),
    "config deep": _config("[" * 100_000),
    "unknown architecture": _config(model_type="no-such-model"),
    "weights cut off": _bytes(lambda data: data[: len(data) // 2]),
    "weights empty": _bytes(lambda data: b""),
    "weights: bad header": _bytes(lambda data: b"\xff" * 16 + data[16:]),
    "weights: a pickle": _bytes(lambda data: b"\x80\x04\x95" + data),
    "no weights": _dropped_file("model.safetensors"),
    "no tokenizer": _dropped_file("tokenizer.json"),
    "no config": _dropped_file("config.json"),
}


def model_trials(folder: Path, lm: Path, encoder: Path, names: list[str] | None = None) -> Iterator[Trial]:
    """Each damage to an LM (eval) and to an embedder (select): one line, and nothing stored or shown."""
    folder.mkdir(parents=True)
    write_jsonl(folder / "task" / "train.jsonl", rows("train", 12))
    write_jsonl(folder / "task" / "test.jsonl", rows("test", 8))
    write_jsonl(folder / "rows.jsonl", rows("train", 12))
    call(["pool", "add", "demos.db", "rows.jsonl"], folder, folder / "home")
    for name in names or MODELS:
        for kind, source in (("LM", lm), ("embedder", encoder)):
            shutil.rmtree(folder / "model", ignore_errors=True)
            shutil.rmtree(folder / "home", ignore_errors=True)
            shutil.copytree(source, folder / "model")
            MODELS[name](folder / "model")
            words = (
                [
                    "eval",
                    "task",
                    "--predictor",
                    "none",
                    "-s",
                    "random",
                    "-k",
                    "1",
                    "--seeds",
                    "1",
                    "--lm",
                    "./model",
                    "--workers",
                    "1",
                ]
                if kind == "LM"
                else ["select", "demos.db", "a query", "--selector", "knn", "--embedder", "./model", "-k", "2"]
            )
            outcome = call(words, folder, folder / "home", limit=90)
            wrong = outcome.fault
            if not wrong and outcome.code == 0:
                wrong = "taken as if nothing were wrong: " + outcome.out[:80]
            yield Trial(f"damaged {kind}", name, wrong)


def disk_trials(folder: Path, all_worlds: list[World], names: tuple[str, ...] | None = None) -> Iterator[Trial]:
    """A file system that fills up under each command: one line that says so; with space again, the same result."""
    for world in all_worlds:
        if names is not None and world.name not in names:
            continue
        work, home = fresh(world, folder / "whole")
        if call([*world.words], work, home).code != 0:
            yield Trial("full disk", world.name, "the command fails on a disk with space")
            continue
        expected = world.result(work, home)
        used = sum(f.stat().st_size for f in (folder / "whole").rglob("*") if f.is_file())
        for share in (0.5, 0.8):
            place = folder / "small"
            place.mkdir(parents=True, exist_ok=True)
            size = max(int(used * share), 64 * 1024)
            mounted = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
            if subprocess.run(mounted, capture_output=True, check=False).returncode:
                yield Trial("full disk", f"{world.name} (not tried: mounting needs root)", "", 0)
                return
            try:
                try:
                    work, home = place / "work", place / "home"
                    work.mkdir()
                    home.mkdir()
                    world.make(work)
                    for name in (".out", ".err"):
                        (work / name).symlink_to(folder / f"small{name}")
                except (OSError, IclkitError):
                    continue  # the inputs alone fill it
                outcome = call([*world.words], work, home)
                wrong = outcome.fault
                if not wrong and outcome.code and not re.search("space|disk is full", outcome.err):
                    wrong = f"the cause is not said: {outcome.err.strip()[-200:]}"
                remount = ["mount", "-o", "remount,size=256m", str(place)]
                subprocess.run(remount, capture_output=True, check=True)
                again = call([*world.words], work, home)
                wrong = wrong or again.fault or (f"no resume: {again.err.strip()[-200:]}" if again.code else "")
                if not wrong and world.result(work, home) != expected:
                    wrong = "the result is not that of the unbroken command"
                yield Trial("full disk", world.name, wrong, int(outcome.code != 0) or 1)
            finally:
                subprocess.run(["umount", "-l", str(place)], capture_output=True, check=False)


def memory_trials(folder: Path, lm: Path) -> Iterator[Trial]:
    """Address space that ends a little above what the process has: one line, and the pool as it was."""
    folder.mkdir(parents=True)
    (folder / "rows.csv").write_text("input,output\n" + "".join(f"{'x' * 900} {n},animal\n" for n in range(40_000)))
    write_jsonl(folder / "task" / "train.jsonl", rows("train", 40))
    write_jsonl(folder / "task" / "test.jsonl", rows("test", 40))
    evaluating = [
        "eval",
        "task",
        "--predictor",
        "none",
        "-s",
        "random",
        "-k",
        "8",
        "--seeds",
        "1",
        "--lm",
        str(lm),
        "--workers",
        "1",
    ]
    for words in (["pool", "add", "demos.db", "rows.csv"], evaluating):
        for more in (8, 32, 64):

            def squeeze(more: int = more) -> None:
                pages = int(Path("/proc/self/statm").read_text().split()[0])
                limit = pages * os.sysconf("SC_PAGE_SIZE") + more * 2**20
                resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

            shutil.rmtree(folder / "home", ignore_errors=True)
            for left in folder.glob("demos.db*"):
                left.unlink()
            outcome = call(words, folder, folder / "home", before=squeeze)
            yield Trial("little memory", f"{words[0]} with {more} MB more", outcome.fault)


def writer_trials(folder: Path, all_worlds: list[World], names: tuple[str, ...] | None = None) -> Iterator[Trial]:
    """The same command twice at once: the result of one, or one of them says that the other is at work."""
    for world in all_worlds:
        if names is not None and world.name not in names:
            continue
        work, home = fresh(world, folder / "one")
        if call([*world.words], work, home).code != 0:
            yield Trial("two writers", world.name, "the command alone fails")
            continue
        expected = world.result(work, home)
        work, home = fresh(world, folder / "two")
        outcomes = together([*world.words], work, home)
        wrong = next((o.fault for o in outcomes if o.fault), "")
        if not wrong and all(o.code for o in outcomes):
            wrong = f"both failed: {outcomes[0].err.strip()[-200:]}"
        if not wrong:
            again = call([*world.words], work, home)
            wrong = again.fault
            if not wrong and again.code == 0 and world.result(work, home) != expected:
                wrong = "the result is not that of one"
        yield Trial("two writers", world.name, wrong)
