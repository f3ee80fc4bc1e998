"""Estimated figures as a person reads them: few digits, large ones with a letter."""

from collections.abc import Sequence

SMALLEST = 0.01


def shown(value: float | Sequence[float]) -> str:
    """A figure, or a range given as its low and high end."""
    if isinstance(value, int | float):
        return _short(value)
    low, high = (_short(end) for end in value)
    return low if low == high else f"{low} to {high}"


def _short(value: float) -> str:
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= size:
            return f"{value / size:.3g} {letter}"
    if 0 < value < SMALLEST:
        return f"under {SMALLEST}"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
