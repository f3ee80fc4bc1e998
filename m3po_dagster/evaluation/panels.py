"""Panels side by side in one figure, as the leaderboard and the pictures of assets have them."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Draw = Callable[["Axes"], None]


def draw_panels(figure: "Figure", panels: Mapping[str, Draw], wide: int) -> None:
    """Draws each panel into axes of its own under its title, `wide` in a row."""
    high = -(-len(panels) // wide)
    for number, (title, draw) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(high, wide, number)
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
        # A name is a name: a dollar sign in it begins no formula.
        axes.set_title(title, fontsize=8, parse_math=False)
        draw(axes)
