"""EASE's paper preset against a second program: torch for the network, one list at a time for all else."""

from __future__ import annotations

import itertools
from functools import cache

import numpy as np
import pytest
from scipy.optimize import linprog

from iclkit.prompts import Template
from iclkit.records import Example
from iclkit.testing import HashEmbedder
from iclkit.tuners import Arm, BlockFeatures, SearchSpace, make_sampler, tune_preset
from iclkit.tuners import _net as net
from iclkit.tuners._bandit import distinct_lists
from iclkit.tuners._tune import render_block

ROWS, K, DIM, DRAWN, KEPT, BATCHES, STEPS, WIDTH, PRIOR, NU = 9, 3, 6, 40, 16, 4, 15, 5, 0.1, 0.01


class OrderedWords(HashEmbedder):
    """Hears where a word stands, as an encoder does, and takes the mean over the words of unit length."""

    def __init__(self):
        super().__init__(dim=DIM)

    def encode_documents(self, texts, progress=None):
        rows = [np.mean([self._word(w, n) for n, w in enumerate(text.split())], axis=0) for text in texts]
        return np.array([row / np.linalg.norm(row) for row in rows], dtype=np.float32)

    @staticmethod
    @cache
    def _word(word, place):
        return np.random.default_rng([*word.encode(), place]).standard_normal(DIM)


def earth_movers_distance(costs):
    """Uniform weights to uniform weights, as a linear programme."""
    k, v = costs.shape
    leave = [np.kron(np.eye(k)[i], np.ones(v)) for i in range(k)]
    arrive = [np.kron(np.ones(k), np.eye(v)[j]) for j in range(v)]
    return linprog(costs.ravel(), A_eq=[*leave, *arrive], b_eq=[1 / k] * k + [1 / v] * v).fun


class PlainEase:
    """The rounds behind the first lists, as the released code makes them (docs/reproduction.md names what differs)."""

    def __init__(self, torch, embed, costs, seed):
        self.torch, self.embed, self.costs, self.seed, self.confidence = torch, embed, costs, seed, None

    def network(self, theta):
        sizes, layers, at = (DIM, WIDTH, WIDTH, WIDTH, 1), [], 0
        for a, b in itertools.pairwise(sizes):
            layer = self.torch.nn.Linear(a, b, dtype=self.torch.float64)
            layer.weight.data = self.torch.tensor(theta[at : at + a * b].reshape(a, b).T.copy())
            layer.bias.data = self.torch.tensor(theta[at + a * b : at + (a + 1) * b].copy())
            at += (a + 1) * b
            layers += [layer, self.torch.nn.ReLU()]
        return self.torch.nn.Sequential(*layers[:-1])

    def propose(self, tried, rng):
        torch = self.torch
        lists = [tuple(row) for row in distinct_lists(ROWS, K, DRAWN, rng).tolist()]
        # the lists of lowest transport cost; of equal ones, which are orders of one set, the earlier
        far = [round(earth_movers_distance(self.costs[[*rows]]), 9) for rows in lists]
        lists = [lists[n] for n in sorted(range(len(lists)), key=lambda n: (far[n], n))[:KEPT]]
        lists = [rows for rows in dict.fromkeys(lists) if rows not in [arm.rows for arm, _ in tried]]
        seen = np.array([self.embed(arm.rows) for arm, _ in tried])
        mean, spread = seen.mean(axis=0), seen.std(axis=0)
        x = torch.tensor((seen - mean) / spread)
        y = torch.tensor([value for _, value in tried], dtype=torch.float64)
        model = self.network(net.start((DIM, WIDTH, WIDTH, WIDTH, 1), np.random.default_rng(self.seed)))
        adam = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=PRIOR / len(tried))
        for _ in range(STEPS):
            adam.zero_grad()
            torch.nn.functional.mse_loss(model(x)[:, 0], y).backward()
            adam.step()
        if self.confidence is None:
            self.confidence = [torch.full_like(p, PRIOR) for p in model.parameters()]
        best, best_score = None, -np.inf
        for part in np.array_split(rng.permutation(len(lists)), BATCHES):
            won, won_score, won_squares = None, -np.inf, None
            for n in part:
                model.zero_grad()
                output = model(torch.tensor((self.embed(lists[n]) - mean) / spread))[0]
                output.backward()
                squares = [p.grad**2 for p in model.parameters()]
                width = sum(float((PRIOR * NU * g / u).sum()) for g, u in zip(squares, self.confidence, strict=True))
                score = float(output.detach()) + width**0.5
                if score > won_score:
                    won, won_score, won_squares = lists[n], score, squares
            self.confidence = [u + g for u, g in zip(self.confidence, won_squares, strict=True)]
            if won_score > best_score:
                best, best_score = won, won_score
        return best


def test_the_papers_proposals_are_those_of_a_plain_program_written_with_torch():
    torch = pytest.importorskip("torch")
    template, embedder = Template(instruction="Say the kind."), OrderedWords()
    examples = [Example(f"word{n} of {n % 4}", f"kind{n % 3}") for n in range(ROWS)]
    questions = [Example(f"asked {n} of {n % 4}", f"kind{n % 3}") for n in range(6)]

    def text(rows):  # the block as a reader writes it: instruction, then demonstrations in order, blank lines between
        return "\n\n".join(
            ["Say the kind.", *(f"Input: {examples[r].input}\nOutput: {examples[r].output}" for r in rows)]
        )

    def embed(rows):
        return embedder.encode_documents([text(rows)])[0].astype(np.float64)

    demos, targets = (
        embedder.encode_documents([f"Input: {e.input}\nOutput: {e.output}" for e in each]).astype(np.float64)
        for each in (examples, questions)
    )
    costs = 1 - demos @ targets.T
    features = BlockFeatures(
        embedder, lambda arm: render_block(template, [examples[r] for r in arm.rows], template.instruction)
    )
    spec = tune_preset("paper").sampler
    changes = {"domain=50000": f"domain={DRAWN}", "keep=1000": f"keep={KEPT}", "batches=20": f"batches={BATCHES}",
               "steps=1000": f"steps={STEPS}", "warmup=40": "warmup=4", "width=100": f"width={WIDTH}"}  # fmt: skip
    for one, other in changes.items():
        assert one in spec
        spec = spec.replace(one, other, 1)
    sampler = make_sampler(spec, SearchSpace(ROWS, K, features=features, costs=costs), 7)
    plain = PlainEase(torch, embed, costs, 7)
    tried = [(Arm(rows), value) for rows, value in
             [((0, 1, 2), 0.2), ((5, 3, 1), 0.7), ((8, 7, 6), 0.4), ((2, 4, 8), 0.5)]]  # fmt: skip
    for number in range(4):
        found = sampler.propose(tried, [], np.random.default_rng([7, number]))
        assert found.rows == plain.propose(tried, np.random.default_rng([7, number]))
        tried.append((found, float(np.random.default_rng(number).random())))
