"""Many questions at once: corrected p-values and q-values, in the order of the p-values given."""

from __future__ import annotations

from collections.abc import Sequence


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (1979): declaring p <= alpha keeps the chance of any false one below alpha.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted, worst = [0.0] * len(p_values), 0.0
    for step, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        worst = max(worst, min(1.0, (len(p_values) - step) * p_values[i]))
        adjusted[i] = worst
    return adjusted


def false_discovery(p_values: Sequence[float], *, any_dependence: bool = False) -> list[float]:
    """q-values: declaring q <= alpha keeps the expected share of false ones among the declared below alpha.

    Benjamini & Hochberg (1995), for independent or positively dependent tests; with ``any_dependence`` Benjamini &
    Yekutieli (2001), larger by 1 + 1/2 + ... + 1/m.

    >>> [round(q, 3) for q in false_discovery([0.001, 0.008, 0.021, 0.04, 0.2, 0.5])]
    [0.006, 0.024, 0.042, 0.06, 0.24, 0.5]
    """
    if not p_values:
        return []
    from scipy.stats import false_discovery_control

    return [float(q) for q in false_discovery_control(p_values, method="by" if any_dependence else "bh")]
