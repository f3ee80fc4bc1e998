"""The leaderboard's plots: differences with their intervals, means, curves, costs; and each as SVG.

What a colour says a marker's shape or a pattern says too. An SVG is a small file that needs nothing else.
"""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from m3po_dagster.evaluation.board import Board, Curve
from m3po_dagster.evaluation.leaderboard_costs import STAGES, trainings
from m3po_dagster.evaluation.panels import Draw, draw_panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Told apart by people who see few colours.
STRONG, WEAK, GREY = "#4f43dd", "#d1552b", "#6b6f80"
HATCHES = ("", "///", "...", "xx", "\\\\\\", "--")
SHADES = ("#4f43dd", "#b9b4f2", "#d1552b", "#f0bfae", "#1b8a6b", "#a9d8ca")
_FONT = {"font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"]}
PANEL_WIDTH, ROW_HEIGHT, PANEL_MARGIN, CURVE_HEIGHT = 3.3, 0.22, 0.7, 2.3
PANELS_A_ROW = 3
# Float noise around equal values would otherwise be magnified to fill a panel.
DECIMALS = 6


def differences(board: Board, against: str) -> "Figure | None":
    """Every recipe's difference to `against` with its interval, a panel a figure; None where there is none.

    Filled: significant. Hollow: only before the correction. A cross: not told apart.
    """
    panels, most = {}, 0
    for column in board.shown:
        rows = [
            (recipe, row)
            for recipe in board.recipes
            if recipe not in board.same_as and (row := board.compared(recipe, column, against))
        ]
        # Where nothing differs there is nothing to see.
        if any(row[end] for _, row in rows for end in ("difference", "ci_low", "ci_high")):
            panels[column.label] = _whiskers([(recipe, row, _standing(row)) for recipe, row in rows], zero=True)
            most = max(most, len(rows))
    return _figure(panels, PANEL_MARGIN + ROW_HEIGHT * most, f"differences to {against}")


def ablation(board: Board) -> "Figure | None":
    """The means of the recipes set beside each other, a panel a figure, with the interval of the difference to base."""
    panels = {}
    for column in board.shown:
        rows = [
            (recipe, _at_mean(row), _standing(row))
            for recipe in board.ablation
            if (row := board.row(recipe, column)) is not None
        ]
        if rows:
            panels[column.label] = _whiskers(rows, zero=False)
    return _figure(panels, PANEL_MARGIN + ROW_HEIGHT * len(board.ablation), "ablation")


def curve(board: Board, line: Curve) -> "Figure | None":
    """Each figure over the values of one setting, with the interval of the difference to base, which is a line."""
    panels = {}
    for column in board.shown:
        points = [(value, row) for recipe, value in line.values.items() if (row := board.row(recipe, column))]
        if len(points) > 1:
            panels[column.label] = _curve(points, board.row(board.base, column), line.setting)
    return _figure(panels, CURVE_HEIGHT, f"curve of {line.setting}")


def costs(rows: Sequence[Mapping[str, Any]], recipes: Sequence[str]) -> "Figure | None":
    """Device-hours of each recipe: what all share, beside a training of its own."""
    shared: dict[str, float] = {}
    for row in rows:
        if row["recipe"] is None:
            shared[row["stage"]] = shared.get(row["stage"], 0.0) + row["device_hours"]
    trained = [recipe for recipe in recipes if trainings(rows, recipe)]

    def draw(axes: "Axes") -> None:
        for place, recipe in enumerate(trained):
            left, mine = 0.0, trainings(rows, recipe)
            parts = {**shared, "adapter": sum(row["device_hours"] for row in mine) / len(mine)}
            for number, (stage, hours) in enumerate(parts.items()):
                label = STAGES[stage] + (" (shared)" if stage in shared else " (a seed)") if place == 0 else None
                axes.barh(place, hours, left=left, height=0.7, color=SHADES[number], hatch=HATCHES[number], label=label)
                left += hours
        axes.set_yticks(range(len(trained)), trained)
        axes.invert_yaxis()
        axes.set_xlabel("device-hours", fontsize=8)
        axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.25), ncols=2, frameon=False)

    height = 2 * PANEL_MARGIN + ROW_HEIGHT * len(trained)
    return _figure(
        {"data generation and one training": draw} if trained else {}, height, "costs", width=2 * PANEL_WIDTH
    )


def _standing(row: Mapping[str, Any]) -> str:
    return "open" if not row["significant"] else "sure" if row["significant_corrected"] else "unsure"


def _at_mean(row: Mapping[str, Any]) -> dict[str, Any]:
    """The interval of the difference laid around the mean; a row without one is a point."""
    if row["difference"] is None:
        return {"difference": row["mean"], "ci_low": row["mean"], "ci_high": row["mean"]}
    base = row["mean"] - row["difference"]
    return {"difference": row["mean"], "ci_low": base + row["ci_low"], "ci_high": base + row["ci_high"]}


def _whiskers(rows: Sequence[tuple[str, Mapping[str, Any], str]], zero: bool) -> Draw:
    styles = {
        "sure": {"color": STRONG, "marker": "o", "markerfacecolor": STRONG},
        "unsure": {"color": WEAK, "marker": "o", "markerfacecolor": "white"},
        "open": {"color": GREY, "marker": "x"},
    }

    def draw(axes: "Axes") -> None:
        for place, (_, row, standing) in enumerate(rows):
            style = styles[standing]
            ends = [round(row["ci_low"], DECIMALS), round(row["ci_high"], DECIMALS)]
            axes.plot(ends, (place, place), color=style["color"], linewidth=1.6)
            axes.plot(round(row["difference"], DECIMALS), place, markersize=4.5, linestyle="none", **style)
        if zero:
            axes.axvline(0, color="black", linewidth=0.6)
        axes.set_yticks(range(len(rows)), [label for label, _, _ in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.margins(x=0.1)

    return draw


def _curve(points: Sequence[tuple[float, Mapping[str, Any]]], base: Mapping[str, Any] | None, setting: str) -> Draw:
    def draw(axes: "Axes") -> None:
        placed = [(value, _at_mean(row)) for value, row in points]
        xs, ys = [value for value, _ in placed], [round(row["difference"], DECIMALS) for _, row in placed]
        below = [max(0.0, y - round(row["ci_low"], DECIMALS)) for y, (_, row) in zip(ys, placed, strict=True)]
        above = [max(0.0, round(row["ci_high"], DECIMALS) - y) for y, (_, row) in zip(ys, placed, strict=True)]
        axes.errorbar(xs, ys, (below, above), color=STRONG, marker="o", markersize=4, linewidth=1.2, capsize=2)
        if base is not None:
            axes.axhline(base["mean"], color=GREY, linestyle="--", linewidth=1)
        axes.set_xlabel(setting, fontsize=8)
        axes.set_xticks(xs)

    return draw


def svg(figure: "Figure | None") -> str:
    """The figure as SVG; empty without one. Equal in, equal out."""
    if figure is None:
        return ""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    buffer, what = io.StringIO(), figure.get_label()
    # Letters stay letters: as outlines they would be most of a page.
    with matplotlib.rc_context({"svg.hashsalt": what, "svg.fonttype": "none", **_FONT}):
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Title": what})
    return buffer.getvalue()


def _figure(panels: Mapping[str, Draw], height: float, what: str, width: float = PANEL_WIDTH) -> "Figure | None":
    """The panels side by side, each `width` by `height` inches; None without panels. Its label is `what` it shows."""
    if not panels:
        return None
    import matplotlib
    from matplotlib.figure import Figure

    wide = min(len(panels), PANELS_A_ROW)
    high = -(-len(panels) // wide)
    with matplotlib.rc_context(_FONT):
        figure = Figure(figsize=(width * wide, height * high), layout="constrained")
        figure.set_label(what)
        draw_panels(figure, panels, wide)
    return figure
