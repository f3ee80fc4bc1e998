"""The leaderboard as one HTML page that needs nothing else: no network, no script, its plots inside.

page(board, costs, spent)
"""

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from m3po_dagster.evaluation import leaderboard_costs as cost
from m3po_dagster.evaluation import leaderboard_plots as plots
from m3po_dagster.evaluation.board import Board
from m3po_dagster.evaluation.leaderboard_tables import Grid, curve_grid, differences_grid, every_row, means_grid
from m3po_dagster.evaluation.leaderboard_words import NOTE, answers, curve_sentence, how_decided, paragraphs

TEMPLATES = Path(__file__).parent / "templates"
MARKERS = "Filled: significant. Hollow: only before the correction. A cross: not told apart."

_CODE, _STRONG = re.compile(r"`(.+?)`"), re.compile(r"\*\*(.+?)\*\*")


@dataclass(frozen=True)
class Plot:
    """An SVG, what it shows for those who don't see it, and how to read it."""

    svg: str
    alt: str
    caption: str

    @property
    def address(self) -> str:
        """The picture itself as an address; names inside it can't clash with another's."""
        return f"data:image/svg+xml;base64,{base64.b64encode(self.svg.encode()).decode()}"


def page(board: Board, costs: Sequence[Mapping[str, Any]], spent: Mapping[str, float] | None) -> str:
    """The whole page; `costs` are rows of a COSTS table, `spent` is what the ledger holds of the study."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["inline"] = _inline
    return environment.get_template("leaderboard.html").render(
        board=board,
        style=Markup((TEMPLATES / "leaderboard.css").read_text(encoding="utf-8")),  # noqa: S704 - this package's file
        headlines=means_grid(board, board.recipes),
        note=NOTE.format(base=board.base),
        decided=how_decided(board),
        described=[(recipe, text) for recipe, text in board.descriptions.items() if text],
        answers=answers(board),
        sections=[found for against in board.references if (found := _section(board, against))],
        ablation=_ablation(board),
        curves=[_curve(board, line) for line in board.curves],
        costs=_costs(board, costs, spent) if costs else None,
        every=every_row(board),
    )


def _section(board: Board, against: str) -> dict[str, Any] | None:
    said = paragraphs(board, against)
    if not said:
        return None
    grid: Grid = differences_grid(board, against)
    caption = f"Each recipe's difference to {against}; whiskers: its 95 % interval. {MARKERS}"
    alt = (
        f"Differences to {against} with 95 % intervals, a panel a figure, a row a recipe; the table below has them all"
    )
    plot = Plot(plots.svg(plots.differences(board, against)), alt, caption)
    return {"against": against, "plot": plot, "heads": grid.heads, "lines": grid.lines, "paragraphs": said}


def _ablation(board: Board) -> dict[str, Any] | None:
    if len(board.ablation) < 2:
        return None
    grid = means_grid(board, board.ablation)
    names = ", ".join(board.ablation)
    caption = f"Means; whiskers: the 95 % interval of the difference to {board.base}. {MARKERS}"
    plot = Plot(
        plots.svg(plots.ablation(board)), f"Means of {names}, a panel a figure; the table below has them", caption
    )
    return {"plot": plot, "heads": grid.heads, "lines": grid.lines}


def _curve(board: Board, line: plots.Curve) -> dict[str, Any]:
    grid = curve_grid(board, line)
    caption = f"Means over {line.setting}; whiskers: the 95 % interval of the difference to {board.base}, dashed."
    alt = f"Each figure over {line.setting}, a panel a figure; the table below has the means"
    plot = Plot(plots.svg(plots.curve(board, line)), alt, caption)
    sentence = curve_sentence(board, line)
    return {"setting": line.setting, "plot": plot, "heads": grid.heads, "lines": grid.lines, "sentence": sentence}


def _costs(board: Board, costs: Sequence[Mapping[str, Any]], spent: Mapping[str, float] | None) -> dict[str, Any]:
    recipes = [recipe for recipe in board.recipes if recipe not in board.same_as]
    alt = "Device-hours of each recipe by stage, as bars; the table below has them"
    plot = Plot(plots.svg(plots.costs(costs, recipes)), alt, "What all recipes share, and one training of each.")
    return {
        "plot": plot,
        "recipe_heads": cost.RECIPE_HEADS,
        "recipe_lines": cost.recipe_table(costs, board.recipes),
        "stage_heads": cost.STAGE_HEADS,
        "stage_lines": cost.stage_table(costs),
        "sentences": cost.sentences(costs, spent),
    }


def _inline(text: str) -> Markup:
    """Markdown's code and bold as HTML, everything else as it is."""
    parts = _CODE.split(str(escape(text)))
    bold = (_STRONG.sub(r"<strong>\1</strong>", part) for part in parts[::2])
    code = (f"<code>{part}</code>" for part in parts[1::2])
    # Escaped before it was cut; what is put around the parts is the code above.
    return Markup("".join(part for both in zip_longest(bold, code, fillvalue="") for part in both))  # noqa: S704
