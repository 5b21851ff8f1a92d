"""A small network with its gradients, in numpy: what the bandit believes of an arm it has not tried.

Parameters are one flat vector (P,): for every layer its weights (in, out), row by row, and its biases (out,).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
Layers = list[tuple[FloatArray, FloatArray]]


def parameters(sizes: Sequence[int]) -> int:
    """How many parameters a network of these widths has, input and output included.

    >>> parameters((768, 100, 100, 100, 1))
    97201
    """
    return sum((a + 1) * b for a, b in pairwise(sizes))


def start(sizes: Sequence[int], rng: np.random.Generator) -> FloatArray:
    """(P,): every parameter uniform in ± 1 / sqrt(inputs of its layer), as a linear layer of PyTorch starts."""
    return np.concatenate([rng.uniform(-1, 1, (a + 1) * b) / np.sqrt(a) for a, b in pairwise(sizes)])


def layers(theta: FloatArray, sizes: Sequence[int]) -> Layers:
    """Views of a flat vector as (weights, biases) per layer."""
    made, at = Layers(), 0
    for a, b in pairwise(sizes):
        made.append((theta[at : at + a * b].reshape(a, b), theta[at + a * b : at + (a + 1) * b]))
        at += (a + 1) * b
    return made


def predict(theta: FloatArray, sizes: Sequence[int], x: FloatArray) -> FloatArray:
    """(n,) outputs for inputs x (n, d): ReLU between layers, the last layer plain."""
    return _activations(theta, sizes, x)[-1][:, 0]


def _activations(theta: FloatArray, sizes: Sequence[int], x: FloatArray) -> list[FloatArray]:
    values = [x]
    for n, (weights, biases) in enumerate(layers(theta, sizes), 1):
        out = values[-1] @ weights + biases
        values.append(out if n == len(sizes) - 1 else np.maximum(out, 0))
    return values


def _backward(theta: FloatArray, sizes: Sequence[int], values: list[FloatArray], top: FloatArray) -> list[FloatArray]:
    """Per layer (n, out): derivative with respect to its output before ReLU, given that of the network's (n, 1)."""
    deltas = [top]
    for (weights, _), value in zip(layers(theta, sizes)[:0:-1], values[-2:0:-1], strict=True):
        deltas.append((deltas[-1] @ weights.T) * (value > 0))
    return deltas[::-1]


def sum_of_squares(theta: FloatArray, sizes: Sequence[int], x: FloatArray) -> FloatArray:
    """(P,): the squared gradients of the outputs with respect to all parameters, summed over the rows of x (n, d).

    A weight's gradient is input times delta, so its square is the product of their squares: no (n, P) is ever made.
    """
    values = _activations(theta, sizes, x)
    deltas = _backward(theta, sizes, values, np.ones((len(x), 1)))
    made: list[Any] = []
    for value, delta in zip(values, deltas, strict=False):
        made += [((value**2).T @ delta**2).ravel(), (delta**2).sum(axis=0)]
    return np.concatenate(made)


def weighted_squares(theta: FloatArray, sizes: Sequence[int], x: FloatArray, weights: FloatArray) -> FloatArray:
    """(n,): sum_p weights_p * g_p^2 of the gradient g (P,) of each output."""
    values = _activations(theta, sizes, x)
    deltas = _backward(theta, sizes, values, np.ones((len(x), 1)))
    made = np.zeros(len(x))
    for value, delta, (w, b) in zip(values, deltas, layers(weights, sizes), strict=False):
        made += np.einsum("no,no->n", value**2 @ w + b, delta**2)
    return made


def fit(
    theta: FloatArray, sizes: Sequence[int], x: FloatArray, y: FloatArray, *, steps: int, rate: float, decay: float
) -> FloatArray:
    """Parameters (P,) after ``steps`` of Adam (Kingma & Ba 2015) from ``theta`` on the mean squared error over x, y.

    Full batch; ``rate`` is the step size, and ``decay`` * theta is added to the gradient.
    """
    theta, first, second = theta.copy(), np.zeros_like(theta), np.zeros_like(theta)
    for step in range(1, steps + 1):
        values = _activations(theta, sizes, x)
        deltas = _backward(theta, sizes, values, 2 * (values[-1] - y[:, None]) / len(y))
        parts: list[Any] = []
        for value, delta in zip(values, deltas, strict=False):
            parts += [(value.T @ delta).ravel(), delta.sum(axis=0)]
        slope = np.concatenate(parts) + decay * theta
        first += 0.1 * (slope - first)
        second += 0.001 * (slope * slope - second)
        theta -= rate * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
    return theta
