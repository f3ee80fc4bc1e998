"""`m3po score pope`: POPE of answers as JSON lines against label files as POPE publishes them."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from m3po_dagster.cli.options import JsonOption, explained, fail
from m3po_dagster.cli.score_rules import ALL, YesNoRule, print_json, print_table, scored
from m3po_dagster.evaluation.rules.yes_no import POPE_RULES

if TYPE_CHECKING:
    from m3po_dagster.evaluation.results.pope_answers import PopeScores

_SHARES = {
    "accuracy": "accuracy",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "yes_ratio": "yes-ratio",
    "format": "format",
}


def pope(
    answers: Annotated[
        list[Path],
        typer.Option("--answers", help='JSON lines {"question_id", "answer"}; once for each --labels, in their order.'),
    ],
    labels: Annotated[
        list[Path], typer.Option("--labels", help="Label file of a split, coco_pope_random.json or its like.")
    ],
    rule: YesNoRule = "official",
    as_json: JsonOption = False,
) -> None:
    """POPE: accuracy, precision, recall, F1 and yes-ratio of each split, as the official script has them; their mean.

    Exit code 0; 1 for files that can't be scored, 2 for an option that can't be used.
    """
    from m3po_dagster.evaluation.question import BenchmarkError
    from m3po_dagster.evaluation.results.pope_answers import read_pope, score_pope

    if len(answers) != len(labels):
        fail(f"{len(answers)} --answers for {len(labels)} --labels: give one of each a split, in the same order")
    names = [path.stem for path in labels]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        fail(f"--labels: several files are called {', '.join(twice)}, and a split goes by its file's name")
    with explained(BenchmarkError, status=1):
        splits = [read_pope(given, asked) for given, asked in zip(answers, labels, strict=True)]
        found = scored(rule, POPE_RULES, lambda name: score_pope(splits, name))
    if as_json:
        print_json(rule, {name: one.as_json() for name, one in found.items()})
    elif rule == ALL:
        print_table(["per cent", "", *found], _side_by_side(found), [], texts=2)
    else:
        print_table(["per cent", *_SHARES.values(), "n"], _rows(found[rule]), [])


def _shown(scores: "PopeScores") -> dict[str, Mapping[str, float]]:
    mean = {"mean": scores.mean} if len(scores.splits) > 1 else {}
    return {**scores.splits, **mean}


def _rows(scores: "PopeScores") -> Iterator[list[str]]:
    for split, shares in _shown(scores).items():
        yield [split, *(f"{100 * shares[name]:.2f}" for name in _SHARES), str(shares["n"])]


def _side_by_side(found: "Mapping[str, PopeScores]") -> Iterator[list[str]]:
    shown = {rule: _shown(scores) for rule, scores in found.items()}
    for split in next(iter(shown.values())):
        for name, title in _SHARES.items():
            yield [split, title, *(f"{100 * one[split][name]:.2f}" for one in shown.values())]
        yield []
