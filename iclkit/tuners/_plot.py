"""The best value so far by trial, as an SVG text: one line per sampler, a band where there are several searches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from xml.sax.saxutils import escape

import numpy as np

# Okabe & Ito's colours, told apart by nearly everybody; each line also has its own dashes and its name at its end
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_DASHES = ("", "7 3", "2 3", "9 3 2 3", "12 4", "4 2", "1 2")
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 760, 420, 62, 150, 40, 48


def search_plot(searches: Mapping[str, Sequence[Sequence[float]]], *, title: str = "", value: str = "value") -> str:
    """A drawing of searches by sampler name, each a list of values by trial (not yet the best so far).

    Several searches of one sampler become their mean with a band of two standard errors. ValueError without any value.
    """
    lines = {name: [np.maximum.accumulate(run) for run in runs if len(run)] for name, runs in searches.items()}
    lines = {name: runs for name, runs in lines.items() if runs}
    if not lines:
        raise ValueError("there is no trial to draw")
    curves = {}
    for name, runs in lines.items():
        length = min(map(len, runs))
        table = np.array([run[:length] for run in runs])
        error = 2 * table.std(axis=0, ddof=1) / np.sqrt(len(runs)) if len(runs) > 1 else np.zeros(length)
        curves[name] = table.mean(axis=0), error
    low = min(float((mean - error).min()) for mean, error in curves.values())
    high = max(float((mean + error).max()) for mean, error in curves.values())
    low, high = (low - 0.05, high + 0.05) if high - low < 1e-9 else (low, high)
    longest = max(len(mean) for mean, _ in curves.values())

    def x(trial: float) -> float:
        return round(_LEFT + (trial - 1) / max(1, longest - 1) * (_WIDTH - _LEFT - _RIGHT), 1)

    def y(level: float) -> float:
        return round(_HEIGHT - _BOTTOM - (level - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM), 1)

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" '
        f'height="{_HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>',
        f'<text x="{_LEFT}" y="22" font-size="15">{escape(title)}</text>',
    ]
    for level in _round_steps(low, high):
        out.append(f'<path d="M{_LEFT} {y(level)}H{_WIDTH - _RIGHT}" stroke="#ddd"/>')
        out.append(f'<text x="{_LEFT - 8}" y="{y(level) + 4}" text-anchor="end">{level:.3g}</text>')
    for trial in sorted({*np.linspace(1, longest, min(longest, 7)).round().astype(int).tolist()}):
        out.append(f'<text x="{x(trial)}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{trial}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    out.append(f'<text x="{middle}" y="{_HEIGHT - 10}" text-anchor="middle">trials</text>')
    out.append(
        f'<text transform="translate(14 {_HEIGHT / 2}) rotate(-90)" text-anchor="middle">'
        f"best {escape(value)} so far</text>"
    )
    ends = _apart([y(float(mean[-1])) for mean, _ in curves.values()])
    for n, (name, (mean, error)) in enumerate(curves.items()):
        colour, dash = _COLOURS[n % len(_COLOURS)], _DASHES[n % len(_DASHES)]
        upper = [f"{x(t)} {y(v)}" for t, v in enumerate(mean + error, 1)]
        lower = [f"{x(t)} {y(v)}" for t, v in enumerate(mean - error, 1)][::-1]
        if error.any():
            out.append(f'<path d="M{"L".join(upper + lower)}Z" fill="{colour}" opacity="0.15"/>')
        points = [f"{x(1)} {y(float(mean[0]))}"]
        points += [f"{x(t)} {y(float(a))}L{x(t)} {y(float(b))}" for t, (a, b) in enumerate(pairwise(mean), 2)]
        out.append(
            f'<path d="M{"L".join(points)}" fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}">'
            f"<title>{escape(name)}</title></path>"
        )
        out.append(f'<text x="{x(len(mean)) + 6}" y="{ends[n] + 4}" fill="{colour}">{escape(name)}</text>')
    return "\n".join([*out, "</svg>"]) + "\n"


def _round_steps(low: float, high: float) -> list[float]:
    """Four to ten round numbers between the ends.

    >>> _round_steps(0.36, 1.0)
    [0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    """
    power = 10 ** np.floor(np.log10(high - low))
    step = float(next(power * part for part in (0.1, 0.2, 0.5, 1.0) if (high - low) / (power * part) <= 10))
    return [round(n * step, 10) for n in range(int(np.ceil(low / step - 1e-9)), int(np.floor(high / step + 1e-9)) + 1)]


def _apart(heights: list[float], gap: float = 14.0) -> list[float]:
    """The heights moved down until no two are nearer than ``gap``, then up as far as they left the drawing."""
    placed = list(heights)
    last = -1e9
    for n in sorted(range(len(heights)), key=lambda i: heights[i]):
        placed[n] = last = max(heights[n], last + gap)
    over = max(0.0, last - (_HEIGHT - _BOTTOM))
    return [p - over for p in placed]
