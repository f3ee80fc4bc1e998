"""MAS against the raters, as a picture: every answer, and the mean MAS of answers rated alike."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

FORMATS = (".png", ".svg", ".pdf")
FEW_RATINGS = 11
"""Up to so many different ratings each has a mean of its own; more are binned."""
BINS = 8
ASIDE, ASIDE_FEW = 0.008, 0.025
"""How far a dot is moved at most, as a share of the ratings' range: more where few ratings leave room between them."""
DOT, MEAN = "#4f43dd", "#d1552b"


def bins_of(ratings: np.ndarray) -> list[np.ndarray]:
    """The answers of each bin, as masks in the order of the ratings: equal ratings are never parted."""
    different = np.unique(ratings)
    if len(different) <= FEW_RATINGS:
        return [ratings == rating for rating in different]
    edges = np.unique(np.quantile(ratings, np.linspace(0, 1, BINS + 1)))
    place = np.searchsorted(edges[1:-1], ratings, side="right")
    return [place == number for number in range(len(edges) - 1) if (place == number).any()]


def plot_agreement(
    values: Sequence[float | None], ratings: Sequence[float], title: str, path: Path, seed: int = 0
) -> None:
    """Writes the picture, its format from the file's ending (one of FORMATS); unscored answers are left out.

    A dot an answer, moved a little sideways so that equal ones show. Raises ValueError for another ending, OSError
    when it can't be written.
    """
    if path.suffix not in FORMATS:
        raise ValueError(f"can't draw {path}: its name must end in {', '.join(FORMATS)}")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    scored = [i for i, value in enumerate(values) if value is not None]
    x, y = np.array([ratings[i] for i in scored]), np.array([values[i] for i in scored], dtype=float)
    figure = Figure(figsize=(5.2, 3.6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    if len(x):
        few = len(np.unique(x)) <= FEW_RATINGS
        width = max(np.ptp(x), 1.0) * (ASIDE_FEW if few else ASIDE)
        beside = np.random.default_rng(seed).uniform(-width, width, len(x))
        axes.plot(x + beside, y, ".", color=DOT, alpha=0.3, markersize=6, markeredgewidth=0, label="an answer")
        bins = bins_of(x)
        means = [(x[some].mean(), y[some].mean()) for some in bins]
        axes.plot(*zip(*means, strict=True), "o-", color=MEAN, markersize=5, label="mean of answers rated alike")
        axes.legend(fontsize=8, loc="best")
    axes.set_xlabel("mean rating")
    axes.set_ylabel("MAS")
    axes.set_title(title, fontsize=9, parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)
