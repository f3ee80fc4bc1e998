"""`m3po run`: brings a study up to date from a shell, run by run, and says how far it is."""

import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from m3po_dagster.cli.event_log import event_log
from m3po_dagster.cli.options import JsonOption, StudyOption, explained, fail, where_missing
from m3po_dagster.cli.project import current_leaderboard, how_it_stands, prepare, sentence
from m3po_dagster.s3_files.path import BucketError
from m3po_dagster.study import BASE_RECIPE, DEFAULT_STUDY

if TYPE_CHECKING:
    from m3po_dagster.runner import Outcome

NEXT = """\
Where next:
  m3po ui{study}
      the graph, its tables and pictures, on http://127.0.0.1:3000
  m3po status{study}
      what is fresh, what is stale, and why
  m3po lineage adapter {recipe}{study}
      which pairs trained an adapter, back to the dataset's files"""


def run(
    study: StudyOption = DEFAULT_STUDY,
    asset: Annotated[list[str], typer.Option("--asset", help="Only this asset (repeatable).")] = [],  # noqa: B006
    shard: Annotated[list[str], typer.Option("--shard", help="Only this shard (repeatable).")] = [],  # noqa: B006
    recipe: Annotated[list[str], typer.Option("--recipe", help="Only this recipe (repeatable).")] = [],  # noqa: B006
    ask_judge: Annotated[
        bool,
        typer.Option("--ask-judge", help="Ask served judges their probe set again, as the schedule does at night."),
    ] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Say what would run, and run nothing.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show Dagster's own log.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Bring a study up to date: materialise what is missing or stale, reuse everything else.

    Exits with 1 when a run failed; run it again after mending the cause, finished work is kept.
    """
    loaded = prepare(study)
    from m3po_dagster.runner import Runner, Selection

    selection = Selection(asset, shard, recipe)
    with explained(ValueError):
        selection.refuse_unknown(loaded)
    if plan:
        _print_plan(loaded, selection, as_json)
        return
    from m3po_dagster.definitions import defs
    from m3po_dagster.deployment import current_deployment
    from m3po_dagster.home import store_root
    from m3po_dagster.materialise import MENDABLE
    from m3po_dagster.resources.study import StoreResource

    todo = [item for item in how_it_stands(loaded) if selection.owes(*item.part)]
    view = _View(sum(item.state != "fresh" for item in todo))
    started, outcomes = time.monotonic(), []
    with event_log() as instance, explained(*MENDABLE, status=1), _interruptible():
        level = "INFO" if verbose else "CRITICAL"
        if current_deployment().clustered:
            from m3po_dagster.cluster_runner import ClusterRunner

            runner = ClusterRunner(loaded, instance, level)
        else:
            runner = Runner(defs, loaded, StoreResource(root=store_root()), instance, level)
        for outcome in runner.bring_up_to_date(selection, view.starting, ask_judge):
            outcomes.append(outcome)
            view.ended(outcome)
    found = how_it_stands(loaded)
    left = [item for item in found if selection.owes(*item.part) and item.state != "fresh"]
    if as_json:
        typer.echo(json.dumps([vars(outcome) for outcome in outcomes]))
    else:
        _print_summary(outcomes, time.monotonic() - started, bool(left))
        if not left:
            board = current_leaderboard(found)
            typer.echo(board.manifest.metadata["markdown"] if board else "")
            named = "" if study == DEFAULT_STUDY else f" --study {study}"
            trained = [name for name, recipe in loaded.recipes.items() if recipe.trains]
            typer.echo(NEXT.format(study=named, recipe=trained[-1] if trained else BASE_RECIPE))
    # What met a damaged object was tried again once that was made again.
    failed = [outcome for outcome in outcomes if outcome.error and not outcome.lost]
    if failed:
        fail(f"{len(failed)} of {len(outcomes)} runs failed; what hangs on them was left as it is", status=1)
    if left:
        fail(f"{len(left)} of the parts asked for are not up to date, the first: {sentence(left[0])}", status=1)


@contextmanager
def _interruptible() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        fail("stopped; finished work is kept: the same command goes on from there", status=130)


class _View:
    """One line a run with how many parts are behind it; on a terminal also what is being made now."""

    def __init__(self, total: int) -> None:
        """`total`: the parts that are not up to date. Of those that only may change, some will turn out not to."""
        self.total, self.done = total, 0
        self.clear = "\r\x1b[K" if sys.stderr.isatty() else ""

    def starting(self, names: Sequence[str], partition: str) -> None:
        if self.clear:
            typer.echo(f"{self.clear}{self._count(len(names))} making {_named(names, partition)}", nl=False, err=True)

    def ended(self, outcome: "Outcome") -> None:
        count = self._count(len(outcome.assets))
        self.done += len(outcome.assets)
        made = [name for name in outcome.assets if name not in outcome.reused]
        state = ("DAMAGE" if outcome.lost else "FAILED") if outcome.error else ("reused" if not made else "made")
        what = _named(made or outcome.assets, outcome.partition)
        typer.echo(f"{self.clear}{count} {state:>6} {outcome.seconds:6.1f} s  {what}", err=True)
        for said in (outcome.error or "").splitlines():
            typer.echo(f"         {said}", err=True)

    def _count(self, more: int) -> str:
        digits, done = len(str(self.total)), self.done + more
        return f"[{done:{digits}d}/{max(self.total, done)}]"


def _named(names: Sequence[str], partition: str) -> str:
    return f"{' '.join(names)}[{partition}]" if partition else " ".join(names)


def _print_summary(outcomes: list, seconds: float, left: bool) -> None:
    if not outcomes:
        typer.echo(f"Nothing could run ({seconds:.1f} s)." if left else f"Everything is up to date ({seconds:.1f} s).")
        return
    spent: Counter[str] = Counter()
    for outcome in outcomes:
        spent[" ".join(outcome.assets)] += outcome.seconds
    typer.echo(f"\n{len(outcomes)} runs in {seconds:.1f} s:")
    for name, number in spent.items():
        typer.echo(f"  {number:6.1f} s  {name}")


def _print_plan(loaded, selection, as_json: bool) -> None:
    from m3po_dagster.graph import label
    from m3po_dagster.study_reference import missing_paths

    with explained(BucketError, status=1):
        missing = missing_paths(loaded)
    found = [item for item in how_it_stands(loaded) if selection.owes(*item.part)]
    todo = [label(item.part) for item in found if item.state != "fresh"]
    if as_json:
        typer.echo(json.dumps({"study": loaded.name, "to make": todo, "missing files": missing}))
        return
    typer.echo(f"{loaded.name}: {len(todo)} parts to make")
    for name, number in Counter(name.split("[")[0] for name in todo).items():
        typer.echo(f"  {number:4d}  {name}")
    for key, path in missing.items():
        typer.echo(f"  {where_missing(path)}: {key}: {path}")
