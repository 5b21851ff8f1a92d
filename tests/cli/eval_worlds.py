"""The command line with fakes behind it: a task folder, and an LM and an embedder that need no model."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from iclkit.testing import HashEmbedder, ScriptedLM

WORDS = {
    "animal": ["owl", "cat", "dog", "eel", "fox", "hen", "cow", "bee"],
    "food": ["pie", "ham", "jam", "egg", "fig", "nut", "pea", "oat"],
}


def write_task(folder: Path, *, train: int = 40, test: int = 70, extra: list[dict[str, str]] | None = None) -> Path:
    """A folder with two labels whose words give them away."""
    folder.mkdir(parents=True)
    rng = random.Random(0)
    for split, count in (("train", train), ("test", test)):
        rows = []
        for n in range(count):
            label = ("animal", "food")[n % 2]
            rows.append({"input": f"{split} {n} {rng.choice(WORDS[label])}", "output": label})
        rows += extra or [] if split == "train" else []
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder


class VotingLM(ScriptedLM):
    """Likes the label that stands beside the query's word in the prompt."""

    def __init__(self) -> None:
        super().__init__(self._vote, name="voting")

    @staticmethod
    def _vote(context: str, continuation: str) -> float:
        *demos, query = context.split("\n\n")
        word = query.split("\n")[0].split()[-1]
        votes = [d for d in demos if d.endswith(continuation) and d.split("\n")[0].endswith(f" {word}")]
        return float(len(votes)) - 5 - (0.5 if continuation.endswith("food") else 0)


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch, home: Path) -> VotingLM:
    """Model names answer with fakes, as if all were here; nothing is fetched or loaded."""
    lm = VotingLM()
    monkeypatch.setattr("iclkit.models.must_be_fetched", lambda name: False)
    monkeypatch.setattr("iclkit.lm.load_lm", lambda *a, **k: lm)
    monkeypatch.setattr("iclkit.embed.load_embedder", lambda *a, **k: HashEmbedder())
    monkeypatch.setattr("iclkit.models.resolve", lambda *a, **k: home)
    return lm


def call(*args: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a command."""
    from iclkit.cli import main

    with pytest.raises(SystemExit) as stop:
        main([*args])
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err
