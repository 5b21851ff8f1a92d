"""How long the LM's work will take: reading, and writing too."""

from __future__ import annotations

import pytest

from iclkit.lm import load_lm
from iclkit.lm._load import load_torch
from iclkit.records import GenerateRequest, ScoreRequest

PROMPT = "the dog jumps over the fox"


@pytest.mark.parametrize("packed", [True, False])
def test_an_estimate_of_written_answers_has_the_time_of_writing_them(tiny_folder, packed):
    lm = load_torch(str(tiny_folder()), dtype="fp32", device="cpu", packed=packed)
    read = lm.estimate([ScoreRequest(PROMPT, " and")]).seconds
    short, long = (lm.estimate([GenerateRequest(PROMPT, n)]) for n in (4, 400))
    assert (short.tokens_generated, long.tokens_generated) == (4, 400)
    assert long.seconds > 20 * (short.seconds - read) > 0
    assert lm.estimate([GenerateRequest(PROMPT, 4, choices=("a", "b"))]).tokens_generated == 0


def test_answers_that_the_cache_knows_take_no_time(tiny_folder, tmp_path):
    lm = load_lm(str(tiny_folder()), dtype="fp32", device="cpu", workers=1, cache=tmp_path / "cache.db")
    asked = [GenerateRequest(PROMPT, 3)]
    assert lm.estimate(asked).seconds > 0
    lm.generate(asked)
    known = lm.estimate(asked)
    assert (known.seconds, known.tokens_generated) == (0, 0)
