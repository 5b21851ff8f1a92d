"""What each family of selectors chooses, as pictures: ``python docs/_build/draw_selectors.py NAME...``.

NAME is one of PICTURES; ``docs/images/selectors-NAME.svg`` is written. The selectors are the real ones. Most pictures show
an invented pool in a plane, whose points are as near in meaning as they lie; ``words`` is of the bundled set, and so are
``meaning``, with all-minilm-l6-v2, and ``model``, with that and SmolLM2-135M.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from iclkit import chooser
from iclkit.datasets import load_task
from iclkit.pool import Pool
from iclkit.records import Example, Selection
from iclkit.testing import TableEmbedder

IMAGES = Path(__file__).resolve().parent.parent / "images"
COLORS = {"orders": "#0b63a5", "refunds": "#b4470a", "account": "#0a7a58", "delivery": "#8a6a00", "returns": "#5b47b0"}
INK, SOFT, LINE, PAPER = "#1f1e1b", "#66635c", "#e4e0d8", "#fcfbf8"
WIDE, TALL, HEAD, GAP = 244, 210, 30, 14  # of one panel, in pixels
CLUSTERS = (  # label, middle, spread, how many; the second is a clump of near-duplicates beside the query
    ("orders", (0.36, 0.56), 0.07, 26),
    ("orders", (0.46, 0.53), 0.022, 8),
    ("refunds", (0.66, 0.62), 0.08, 24),
    ("account", (0.58, 0.27), 0.07, 18),
    ("delivery", (0.18, 0.25), 0.07, 14),
    ("returns", (0.85, 0.86), 0.045, 8),
)
QUERY, OTHER = (0.49, 0.47), (0.22, 0.40)
REACH = 0.16  # in the plane: how far off two points have little to do with each other


class Plane:
    """The invented pool: points with labels, and vectors whose cosine falls with their distance."""

    def __init__(self) -> None:
        rng = np.random.default_rng(3)
        self.points: list[tuple[str, float, float]] = []
        for label, middle, spread, count in CLUSTERS:
            self.points += [(label, *map(float, xy)) for xy in rng.normal(middle, spread, (count, 2))]
        for xy in rng.uniform(0.06, 0.94, (8, 2)):
            self.points.append((str(rng.choice([*COLORS])), float(xy[0]), float(xy[1])))
        texts = [f"point {n}" for n in range(len(self.points))]
        places = np.array([p[1:] for p in self.points] + [QUERY, OTHER])
        # random features of a Gaussian kernel: cosine exp(-d^2 / 2 REACH^2), in enough dimensions for any set
        directions, shifts = rng.normal(0, 1 / REACH, (2, 1024)), rng.uniform(0, 2 * np.pi, 1024)
        vectors = np.cos(places @ directions + shifts)
        self.embedder = TableEmbedder(dict(zip([*texts, "query", "other"], vectors.tolist(), strict=True)))
        self.pool = Pool.of(
            [Example(t, p[0], meta={"team": p[0]}) for t, p in zip(texts, self.points, strict=True)]
        )

    def ask(self, spec: str, k: int, query: str = "query") -> Selection:
        """What a selector chooses."""
        return chooser(self.pool, selector=spec, k=k, embedder=self.embedder, order="best-last").select(query)

    def panel(self, x: int, y: int, spec: str, k: int, queries: Sequence[tuple[float, float]]) -> list[str]:
        """The points, and the picks of one selector in rings with their ranks."""

        def place(px: float, py: float) -> tuple[float, float]:
            return round(x + px * WIDE, 1), round(y + HEAD + (1 - py) * TALL, 1)

        out = _box(x, y, spec, TALL)
        picked = {e.text: rank for rank, e in enumerate(self.ask(spec, k).examples, 1)}
        for n, (label, px, py) in enumerate(self.points):
            cx, cy = place(px, py)
            shown = f"point {n}" in picked
            out.append(f'<circle cx="{cx}" cy="{cy}" r="3.2" fill="{COLORS[label]}" opacity="{1 if shown else 0.38}"/>')
        for text, rank in sorted(picked.items(), key=lambda item: -item[1]):
            label, px, py = self.points[int(text.split()[1])]
            cx, cy = place(px, py)
            out.append(f'<circle cx="{cx}" cy="{cy}" r="7.5" fill="none" stroke="{INK}" stroke-width="1.6"/>')
            out.append(_halo(cx + 9, cy - 6, f"{rank}"))
        for at in queries:
            cx, cy = place(*at)
            out.append(f'<path d="M{cx - 5} {cy - 5}l10 10m0 -10l-10 10" stroke="{INK}" stroke-width="2.6"/>')
        return out


def points(*specs: str, k: int = 6, queries: Sequence[tuple[float, float]] = (QUERY,)) -> str:
    """A row of panels over the invented pool, and what the signs mean."""
    plane = Plane()
    body = [line for n, spec in enumerate(specs) for line in plane.panel(n * (WIDE + GAP), 0, spec, k, queries)]
    y, x = HEAD + TALL + 24, 0
    for label, color in COLORS.items():
        body.append(f'<circle cx="{x + 6}" cy="{y - 4}" r="4" fill="{color}"/>')
        body.append(f'<text x="{x + 15}" y="{y}" fill="{SOFT}">{label}</text>')
        x += 34 + 7 * len(label)
    told = "ring: chosen, with its rank" + ("; ✕ the query" if len(queries) == 1 else "; ✕ two queries, one set for both")
    body.append(f'<text x="{x + 6}" y="{y}" fill="{SOFT}">{told}</text>')
    return _svg(len(specs) * (WIDE + GAP) - GAP, y + 8, body)


def words(query: str, *specs: str, k: int = 6, embedder: str | None = None) -> str:
    """For each selector its picks, a line each, and which words of the query each holds, the darker the weightier."""
    task = load_task("support")
    pool = Pool.of(task.train)
    view = pool.view()
    index = view.term_index("words", "", 1.5, 0.75)
    known = list(dict.fromkeys(index.known(query)))
    step, left, row = 20, 360, 19
    wide = left + step * len(known) + 10
    body: list[str] = []
    y = 0
    for spec in specs:
        picks = chooser(pool, selector=spec, k=k, embedder=embedder).select(query).examples
        rows = np.array([view.row_of(e.id) for e in picks], dtype=np.int64)
        weights = index.weights(known, view.positions(rows))
        body.append(f'<text x="0" y="{y + 70}" fill="{INK}" font-size="14" font-weight="600">{escape(spec)}</text>')
        for n, word in enumerate(known):
            x = left + step * n + step / 2
            body.append(f'<text x="{x}" y="{y + 70}" fill="{SOFT}" transform="rotate(-50 {x} {y + 70})">{escape(word)}</text>')
        for r, example in enumerate(picks):
            top = y + 78 + row * r
            text = " ".join(example.text.split())
            text = text if len(text) < 48 else text[:46] + "…"
            body.append(f'<text x="0" y="{top + 14}" fill="{INK}" font-size="11.5">{r + 1} {escape(text)}</text>')
            for n in range(len(known)):
                share = float(weights[r, n] / max(1e-9, weights.max()))
                fill = "#0b63a5" if share else LINE
                body.append(
                    f'<rect x="{left + step * n + 1}" y="{top + 1}" width="{step - 2}" height="{row - 2}" rx="2" '
                    f'fill="{fill}" opacity="{round(0.25 + 0.75 * share, 2) if share else 1}"/>'
                )
        y += 78 + row * len(picks) + 10
    body.append(f'<text x="0" y="{y + 8}" fill="{SOFT}">the query: {escape(query)}</text>')
    return _svg(wide, y + 18, body)


def model(query: str, k: int = 4) -> str:
    """The thirty examples nearest to a query, and which of them selectors that ask an LM take, with their ranks."""
    pool = Pool.of(load_task("support").train)
    given = {"embedder": "all-minilm-l6-v2", "lm": "smollm2-135m", "chat": False}
    near = [e.id for e in chooser(pool, selector="knn", k=30, **given).select(query).examples]  # type: ignore[arg-type]
    label = {e.id: e.output for e in pool}
    body: list[str] = []
    step, left = 26, 150
    y = 22
    body.append(f'<text x="{left}" y="12" fill="{SOFT}">the 30 nearest, from the nearest on</text>')
    for spec in ("knn", "mdl", "cone"):
        found = chooser(pool, selector=spec, k=k, **given).select(query)  # type: ignore[arg-type]
        rank = {e.id: n for n, e in enumerate(found.examples, 1)}
        body.append(f'<text x="0" y="{y + 16}" fill="{INK}" font-size="14" font-weight="600">{spec}</text>')
        for n, example_id in enumerate(near):
            x = left + step * n
            shown = example_id in rank
            fill = "#0b63a5" if shown else LINE
            body.append(f'<rect x="{x}" y="{y}" width="{step - 3}" height="22" rx="3" fill="{fill}">'
                        f"<title>{escape(label[example_id])}</title></rect>")  # fmt: skip
            if shown:
                body.append(f'<text x="{x + 8}" y="{y + 16}" fill="#fff" font-weight="600">{rank[example_id]}</text>')
        if beyond := [r for i, r in rank.items() if i not in near]:
            body.append(f'<text x="{left + step * 30 + 4}" y="{y + 16}" fill="{SOFT}">and {len(beyond)} beyond</text>')
        y += 34
    body.append(f'<text x="0" y="{y + 8}" fill="{SOFT}">the query: {escape(query)}</text>')
    return _svg(left + step * 30 + 90, y + 18, body)


PICTURES: dict[str, Callable[[], str]] = {
    "chance": lambda: points("random", "balanced", "knn"),
    "near": lambda: points("knn", "mmr,trade_off=0.5", "dpp"),
    "labels": lambda: points("knn", "many-labels,min_labels=4", "many-labels,per_label_cap=2"),
    "one-set": lambda: points("kmeans", "mfl", "diverse", queries=(QUERY, OTHER)),
    "budget": lambda: points("vote-k,budget=12,neighbors=10", "vote-k,budget=24,neighbors=10", "knn"),
    "combined": lambda: points(
        "hybrid,near=3,fixed=kmeans", "rrf,of=[knn,kmeans]", 'filter,where={"team":"refunds"}'
    ),
    "words": lambda: words("I was charged twice and the second parcel never came", "bm25", "r-bm25", "bm25-coverage"),
    "meaning": lambda: words(
        "still no parcel and nobody can tell me why", "bm25", "knn", k=5, embedder="all-minilm-l6-v2"
    ),
    "model": lambda: model("I was charged twice and the second parcel never came"),
}


def _box(x: int, y: int, title: str, tall: int) -> list[str]:
    return [
        f'<text x="{x + 2}" y="{y + 19}" fill="{INK}" font-size="{14 if len(title) < 26 else 12.5}" '
        f'font-weight="600">{escape(title)}</text>',
        f'<rect x="{x}" y="{y + HEAD}" width="{WIDE}" height="{tall}" rx="6" fill="#fff" stroke="{LINE}"/>',
    ]


def _halo(x: float, y: float, text: str) -> str:
    return (
        f'<text x="{x}" y="{y}" fill="{INK}" font-weight="700" stroke="#fff" stroke-width="3" paint-order="stroke">'
        f"{text}</text>"
    )


def _svg(width: float, height: float, body: Sequence[str]) -> str:
    """The picture on a ground of its own, so that it can be read on a dark page too."""
    m = 16
    w, h = round(width + 2 * m), round(height + 2 * m)
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{-m} {-m} {w} {h}" width="{w}" height="{h}" '
        'font-family="system-ui, sans-serif" font-size="12">',
        f'<rect x="{-m}" y="{-m}" width="{w}" height="{h}" rx="8" fill="{PAPER}"/>', *body, "</svg>",
    ]) + "\n"  # fmt: skip


def main(names: Sequence[str]) -> None:
    """Write the pictures of these names."""
    for name in names:
        (IMAGES / f"selectors-{name}.svg").write_text(PICTURES[name](), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main(sys.argv[1:] or [*PICTURES])
