"""leaderboard: every recipe against the base model and m3po, in figures, words and plots (sections 4.3 to 4.7)."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict

import dagster as dg
import pyarrow as pa

from m3po_dagster import recipe_roles
from m3po_dagster.assets.benchmarks import official
from m3po_dagster.assets.display import preview
from m3po_dagster.assets.judgements import bound
from m3po_dagster.assets.options import stage_asset
from m3po_dagster.assets.pictures import figure_picture
from m3po_dagster.evaluation import leaderboard_plots as plots
from m3po_dagster.evaluation.benchmark import Benchmark
from m3po_dagster.evaluation.board import Board, columns_of
from m3po_dagster.evaluation.judged import JudgedBenchmark
from m3po_dagster.lineage.costs import costs
from m3po_dagster.lineage.manifests import Manifests
from m3po_dagster.materialise import Built, Work, materialise
from m3po_dagster.resources.judge import ledger_of
from m3po_dagster.resources.study import StoreResource, StudyResource
from m3po_dagster.storage.artifact import Artifact
from m3po_dagster.storage.tables import COSTS, LEADERBOARD
from m3po_dagster.study import BASE_RECIPE, Study

FILES = "files"
REPORT, PAGE = "leaderboard.md", "leaderboard.html"
"""The report and the page among the artifact's files."""


def assets(study: Study) -> list[dg.AssetsDefinition]:
    """The leaderboard over all recipes."""

    @stage_asset("leaderboard", study, LEADERBOARD, group_name="evaluation", kinds={"markdown"}, section="4.3")
    def leaderboard(
        context: dg.AssetExecutionContext, study: StudyResource, store: StoreResource
    ) -> Iterator[dg.MaterializeResult]:
        """Every recipe against the base model and m3po: figures, words, costs (sections 4.3 to 4.7).

        In: the scores and answers of every recipe. Out: each metric's mean over training seeds, its spread, and the
        difference to the recipes of `compare_with` with its interval and what remains significant over all recipes;
        what it took by stage (Table 7); a report in Markdown, and a page with plots.
        """
        yield from materialise(context, study, store, compare, describe)

    return [leaderboard]


def compare(work: Work) -> Built:
    """The tables, and the report and the page made from them."""
    from m3po_dagster.evaluation.leaderboard import leaderboard
    from m3po_dagster.evaluation.leaderboard_markdown import headline_markdown, report, words_markdown
    from m3po_dagster.evaluation.leaderboard_page import page

    suite = suite_of(work.study)
    questions = {name: item.load() for name, item in suite.items()}
    scores, results = [], {}
    for recipe, artifact in work.all("benchmark_scores").items():
        scores.append(official(artifact.table()))
        results |= {(recipe, *key): table for key, table in per_question(artifact, suite, questions).items()}
    table = leaderboard(
        pa.concat_tables(scores),
        results,
        suite,
        recipe_roles.references(work.study),
        BASE_RECIPE,
        work.study.aliases(),
    ).cast(LEADERBOARD.schema)
    notes = [f"{name}: {note}" for name, item in suite.items() for note in item.notes(questions[name])]
    board = board_of(table, work.study, suite, notes)
    took = costs(Manifests(work.store), work.all("benchmark_scores"))
    rows, spent = took.to_pylist(), spent_on_judges(work)
    folder = work.draft.folder(FILES)
    (folder / REPORT).write_text(report(board, rows, spent), encoding="utf-8")
    (folder / PAGE).write_text(page(board, rows, spent), encoding="utf-8")
    return Built(
        {"data": (table, LEADERBOARD), "costs": (took, COSTS)},
        facts={"markdown": headline_markdown(board), "words": words_markdown(board), "notes": notes},
    )


def suite_of(study: Study) -> dict[str, Benchmark]:
    """The study's benchmarks by name; nothing is read yet."""
    from m3po_dagster.evaluation.registry import benchmark

    return {name: benchmark(settings) for name, settings in study.benchmarks.items()}


def per_question(
    artifact: Artifact, suite: Mapping[str, Benchmark], questions: Mapping[str, list]
) -> dict[tuple[int, str], pa.Table]:
    """The counts of every question by seed and benchmark, from the answers that a recipe's scores keep."""
    judgements, results = artifact.table("judgements"), {}
    given: dict[tuple[int, str], dict[str, str]] = {}
    for row in artifact.table("answers", columns=["seed", "benchmark", "question_id", "answer"]).to_pylist():
        given.setdefault((row["seed"], row["benchmark"]), {})[row["question_id"]] = row["answer"]
    for (seed, name), by_id in given.items():
        item = suite[name]
        if isinstance(item, JudgedBenchmark):
            item = bound(item, judgements, seed, name)
        results[seed, name] = item.per_question(questions[name], by_id)
    return results


def board_of(table: pa.Table, study: Study, suite: Mapping[str, Benchmark], notes: list[str]) -> Board:
    """The table with what the study says of its recipes."""
    twin = recipe_roles.ablated(study)
    return Board(
        study.name,
        table,
        columns_of(suite),
        recipe_roles.references(study),
        {name: recipe.description for name, recipe in study.recipes.items()},
        recipe_roles.questions(study),
        recipe_roles.curves(study),
        (BASE_RECIPE, twin, recipe_roles.M3PO_RECIPE) if twin else (),
        notes,
    )


def spent_on_judges(work: Work) -> dict[str, float] | None:
    """What the ledger holds of the study; None where it has no served judge."""
    served = any(scorer.served for scorer in work.study.judge.assessors) or work.study.benchmark_judges
    return asdict(ledger_of(work.store.location).spent(study=work.study.name)) if served else None


def describe(artifact: Artifact, work: Work) -> Mapping[str, object]:
    """The table and the words as a person reads them, the pictures of the page, and where that lies."""
    table, facts = artifact.table(), artifact.manifest.metadata
    board = board_of(table, work.study, suite_of(work.study), facts["notes"])
    return {
        "leaderboard": dg.MetadataValue.md(facts["markdown"]),
        "in words": dg.MetadataValue.md(facts["words"]),
        **pictures_of(board),
        "costs": preview(artifact.table("costs"), rows=len(artifact.table("costs"))),
        "page": dg.MetadataValue.path(artifact.where(f"{FILES}/{PAGE}")),
        "preview": preview(table),
    }


def pictures_of(board: Board) -> dict[str, dg.MarkdownMetadataValue]:
    """The plots of the page as pictures, by what they show; the costs are a table."""
    return {
        **{
            f"differences to {against}": figure_picture(plots.differences(board, against))
            for against in board.references
        },
        **({"ablation": figure_picture(plots.ablation(board))} if len(board.ablation) > 1 else {}),
        **{f"curve of {line.setting}": figure_picture(plots.curve(board, line)) for line in board.curves},
    }
