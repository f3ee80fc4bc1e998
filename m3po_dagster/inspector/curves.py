"""The grid's aggregate curves as SVG geometry: one figure a statistic, one line a delta, the current point marked.

Only numbers come out of here; the template writes the SVG.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 300, 170
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 10, 26


@dataclass(frozen=True)
class Line:
    """One line: its name and its points as SVG's `points`."""

    name: str
    points: str


@dataclass(frozen=True)
class Chart:
    """A chart in a box of WIDTH x HEIGHT; ticks are (position, label)."""

    name: str
    lines: tuple[Line, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    mark: tuple[float, float] | None


def chart(
    name: str,
    alphas: Sequence[float],
    by_delta: Mapping[float, Sequence[float | None]],
    here: tuple[float, float | None],
) -> Chart:
    """`by_delta` gives each delta's values over `alphas`; `here` is the current alpha and its value."""
    known = [value for values in by_delta.values() for value in values if value is not None]
    known += [here[1]] if here[1] is not None else []
    x_low, x_high = _range([*alphas, here[0]])
    y_low, y_high = _range(known or [0.0])

    def x(value: float) -> float:
        return round(LEFT + (value - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT), 1)

    def y(value: float) -> float:
        return round(HEIGHT - BOTTOM - (value - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM), 1)

    lines = tuple(
        Line(
            f"{delta:g}",
            " ".join(
                f"{x(a)},{y(value)}" for a, value in sorted(zip(alphas, values, strict=True)) if value is not None
            ),
        )
        for delta, values in by_delta.items()
    )
    return Chart(
        name=name,
        lines=lines,
        x_ticks=tuple((x(value), f"{value:g}") for value in _ticks(x_low, x_high)),
        y_ticks=tuple((y(value), f"{value:.3g}") for value in _ticks(y_low, y_high)),
        mark=None if here[1] is None else (x(here[0]), y(here[1])),
    )


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def _ticks(low: float, high: float) -> list[float]:
    return [low, (low + high) / 2, high]
