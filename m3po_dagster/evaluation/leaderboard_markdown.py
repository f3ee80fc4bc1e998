"""The leaderboard as Markdown: the headline table alone, or the whole report."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from m3po_dagster.evaluation import leaderboard_costs as cost
from m3po_dagster.evaluation.board import Board
from m3po_dagster.evaluation.leaderboard_tables import Grid, curve_grid, differences_grid, means_grid
from m3po_dagster.evaluation.leaderboard_words import NOTE, answers, curve_sentence, how_decided, paragraphs


def headline_markdown(board: Board) -> str:
    """A line a recipe: the mean of every headline figure with its spread over seeds; and how to read it."""
    return "\n\n".join([table(means_grid(board, board.recipes)), NOTE.format(base=board.base), *board.notes]) + "\n"


def words_markdown(board: Board) -> str:
    """The sentences without the tables: how significance is decided, answers, a paragraph a recipe and reference."""
    blocks = [how_decided(board), *answers(board)]
    for against in board.references:
        if said := paragraphs(board, against):
            blocks += [f"### Against {against}", *said]
    return "\n\n".join(blocks) + "\n"


def report(board: Board, costs: Sequence[Mapping[str, Any]], spent: Mapping[str, float] | None) -> str:
    """Everything in one Markdown document: table, answers, differences, curves, ablation, costs.

    `costs` are rows of a COSTS table; `spent` is what the ledger holds of the study, None without served judges.
    """
    blocks = [
        f"# {board.study}: the leaderboard",
        table(means_grid(board, board.recipes)),
        NOTE.format(base=board.base),
        how_decided(board),
        "\n".join(f"* {recipe}: {text}" for recipe, text in board.descriptions.items() if text),
    ]
    if said := answers(board):
        blocks += ["## What it says", *said]
    for against in board.references:
        if said := paragraphs(board, against):
            blocks += [f"## Against {against}", table(differences_grid(board, against)), *said]
    if len(board.ablation) > 1:
        blocks += ["## The ablation", table(means_grid(board, board.ablation))]
    for curve in board.curves:
        blocks += [f"## The curve of {curve.setting}", table(curve_grid(board, curve)), curve_sentence(board, curve)]
    if costs:
        blocks += ["## What it took", *_costs(board, costs), *cost.sentences(costs, spent)]
    if board.notes:
        blocks += ["## About the benchmarks", "\n".join(f"* {note}" for note in board.notes)]
    return "\n\n".join(block for block in blocks if block) + "\n"


def table(grid: Grid) -> str:
    """A grid as a Markdown table, names to the left and figures to the right."""
    rule = ["---"] * grid.left + ["---:"] * (len(grid.heads) - grid.left)
    return "\n".join(f"| {' | '.join(line)} |" for line in (grid.heads, rule, *grid.lines))


def _costs(board: Board, costs: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if lines := cost.recipe_table(costs, board.recipes):
        yield table(Grid(cost.RECIPE_HEADS, lines))
    yield table(Grid(cost.STAGE_HEADS, cost.stage_table(costs), left=3))
