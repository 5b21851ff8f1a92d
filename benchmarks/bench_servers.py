"""Label scoring against a stand-in that counts what vLLM would compute, one way of asking beside the others.

    python benchmarks/bench_servers.py [--prompts 8] [--words 150] [--labels 2 6 77] [--tokens-per-second 20000]

The stand-in (tests/lm/openai_server.py) is a toy model with a prefix cache of blocks of 16 tokens, which requests for
the log-probabilities of a prompt do not read, as in vLLM. It lets a fixed time pass per token that goes through the
model, one request after the other, so the wall time is that of a GPU of this speed, with our client and HTTP.
"""

from __future__ import annotations

import argparse
import random
import sys
import time

from _common import ROOT, emit

sys.path.insert(0, str(ROOT))

from iclkit.lm import ScoreRequest
from iclkit.lm._servers import open_openai
from tests.lm.openai_server import ToyServer, tokenize

WAYS = ("echo", "prompt-logprobs", "next-token", "token-ids", "native")
WORDS = ("positive", "negative", "posh", "is", "in", "Germany", "cup", "tea", "label", "fun", "good", "slow")


def label_set(count: int) -> list[str]:
    """So many different names: of one token where there are few, of several where there are many."""
    one_token = [" positive", " negative", " is", " in", " Germany", " pos"]
    if count <= len(one_token):
        return one_token[:count]
    names = [f" {a} {b}" for a in WORDS for b in WORDS if a != b]
    return names[:count]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--words", type=int, default=150)
    parser.add_argument("--labels", type=int, nargs="+", default=[2, 6, 77])
    parser.add_argument("--tokens-per-second", type=float, default=20_000)
    a = parser.parse_args()
    rng = random.Random(0)
    prompts = [" ".join(rng.choices(WORDS, k=a.words)) + "\nLabel:" for _ in range(a.prompts)]
    emit(what="servers", prompts=a.prompts, prompt_tokens=sum(len(tokenize(p)) for p in prompts) // a.prompts)
    for count in a.labels:
        labels = label_set(count)
        requests = [ScoreRequest(p, label) for p in prompts for label in labels]
        reference: list[float] = []
        for way in WAYS:
            offers = {
                "completions",
                "echo",
                "prompt_logprobs",
                "logprobs",
                "logprob_ids",
                "lists",
                "tokenize",
                "generate",
            }
            server = ToyServer(*offers, "models", window=4096, per_token=1 / a.tokens_per_second)
            lm = open_openai(f"openai:toy@{server.url}", scoring=way)
            lm.count_tokens("warm")
            server.computed = 0
            server.asked.clear()
            begun = time.perf_counter()
            scores = [s.logprob for s in lm.score(requests)]
            seconds = time.perf_counter() - begun
            reference = reference or scores
            emit(
                what="servers",
                labels=count,
                way=way,
                requests=server.asked["/v1/completions"] + server.asked["/generate"],
                tokens_computed=server.computed,
                seconds=round(seconds, 2),
                largest_difference=max(abs(x - y) for x, y in zip(scores, reference, strict=True)),
            )
            server.close()


if __name__ == "__main__":
    main()
