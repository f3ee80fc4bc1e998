"""`m3po score vizwiz`: VQA accuracy of a file of answers against VizWiz's annotations."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from m3po_dagster.cli.options import JsonOption, explained
from m3po_dagster.cli.score_rules import ALL, print_json, print_table, scored
from m3po_dagster.evaluation.rules.vqa import VQA_RULES

if TYPE_CHECKING:
    from m3po_dagster.evaluation.results.vizwiz_answers import VizwizScores

_SHARES = {
    "constant_unanswerable": 'accuracy of always "unanswerable"',
    "unanswerable_rate": 'answers that are "unanswerable"',
    "format": "a single word or phrase",
}


def vizwiz(
    answers: Annotated[Path, typer.Option("--answers", help='JSON array of {"image", "answer"}.')],
    annotations: Annotated[Path, typer.Option("--annotations", help="VizWiz's val.json or train.json.")],
    rule: Annotated[
        Literal["official", "lmms-eval", "vlmevalkit", "evalai", "all"],
        typer.Option("--rule", help=f"Whose reading of an answer counts; {ALL}: each beside the others."),
    ] = "official",
    as_json: JsonOption = False,
) -> None:
    """VizWiz: VQA accuracy over all and by type of answer, in per cent, people told apart by their place.

    Exit code 0; 1 for files that can't be scored, 2 for an option that can't be used.
    """
    from m3po_dagster.evaluation.question import BenchmarkError
    from m3po_dagster.evaluation.results.vizwiz_answers import read_vizwiz, score_vizwiz

    with explained(BenchmarkError, status=1):
        questions, answered = read_vizwiz(answers, annotations)
        found = scored(rule, VQA_RULES, lambda name: score_vizwiz(questions, answered, name))
    if as_json:
        print_json(rule, {name: one.as_json() for name, one in found.items()})
    else:
        print_table(["per cent", "questions", *found], _rows(found), [])


def _rows(found: "Mapping[str, VizwizScores]") -> Iterator[list[str]]:
    first = next(iter(found.values()))
    yield ["accuracy", str(first.n), *(f"{one.accuracy:.2f}" for one in found.values())]
    for kind, number in first.questions.items():
        yield [f"  {kind}", str(number), *(f"{one.by_answer_type[kind]:.2f}" for one in found.values())]
    yield []
    for name, title in _SHARES.items():
        yield [title, "", *(f"{getattr(one, name):.2f}" for one in found.values())]
