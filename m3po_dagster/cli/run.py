"""`m3po run`, `status`, `leaderboard` and `ui`: the graph from a shell."""

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from m3po_dagster.cli.options import JsonOption, StudyOption, explained, fail
from m3po_dagster.study import DEFAULT_STUDY

NEXT = """\
Where next:
  make ui                     the graph, its tables and pictures, on http://127.0.0.1:3000
  m3po status                 what is fresh, what is stale, and why
  m3po lineage adapter m3po   which pairs trained an adapter, back to the dataset's files"""


def _prepare(study: Path):
    """Definitions, study and identities over the default store, with DAGSTER_HOME made ready."""
    from m3po_dagster.home import ensure_home
    from m3po_dagster.study import load_study
    from m3po_dagster.study_errors import StudyError

    os.environ["M3PO_STUDY"] = str(study.absolute())
    with explained(StudyError):
        loaded = load_study(study)
    with explained(OSError, status=1):
        ensure_home()
    return loaded


def run(
    study: StudyOption = DEFAULT_STUDY,
    asset: Annotated[list[str], typer.Option("--asset", help="Only this asset (repeatable).")] = [],  # noqa: B006
    shard: Annotated[list[str], typer.Option("--shard", help="Only this shard (repeatable).")] = [],  # noqa: B006
    recipe: Annotated[list[str], typer.Option("--recipe", help="Only this recipe (repeatable).")] = [],  # noqa: B006
    plan: Annotated[bool, typer.Option("--plan", help="Say what would run, and run nothing.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show Dagster's own log.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Bring a study up to date: materialise what is missing or stale, reuse everything else.

    Exits with 1 when a run failed; run it again after mending the cause, finished work is kept.
    """
    loaded = _prepare(study)
    _refuse_unknown(loaded, asset, shard, recipe)
    from m3po_dagster.runner import Runner, Selection

    selection = Selection(asset, shard, recipe)
    if plan:
        _print_plan(loaded, selection, as_json)
        return
    import dagster as dg

    from m3po_dagster.definitions import defs
    from m3po_dagster.home import store_root
    from m3po_dagster.materialise import MENDABLE
    from m3po_dagster.resources.study import StoreResource

    started, outcomes = time.monotonic(), []
    with dg.DagsterInstance.get() as instance, explained(*MENDABLE, status=1), _interruptible():
        level = "INFO" if verbose else "CRITICAL"
        runner = Runner(defs, loaded, StoreResource(root=store_root()), instance, level)
        for outcome in runner.bring_up_to_date(selection):
            outcomes.append(outcome)
            _print_outcome(outcome)
    found = _standings(loaded)
    left = [item for item in found if selection.includes(*item.part) and item.state != "fresh"]
    if as_json:
        typer.echo(json.dumps([vars(outcome) for outcome in outcomes]))
    else:
        _print_summary(outcomes, time.monotonic() - started, bool(left))
        if not left:
            typer.echo(_leaderboard_text(found) or "")
            typer.echo(NEXT)
    failed = [outcome for outcome in outcomes if outcome.error]
    if failed:
        fail(f"{len(failed)} of {len(outcomes)} runs failed; what hangs on them was left as it is", status=1)
    if left:
        fail(f"{len(left)} of the parts asked for are not up to date, the first: {_line(left[0])}", status=1)


@contextmanager
def _interruptible() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        fail("stopped; finished work is kept: the same command goes on from there", status=130)


def _refuse_unknown(study, assets: list[str], shards: list[str], recipes: list[str]) -> None:
    from m3po_dagster.graph import STAGES

    for kind, given, known in (
        ("asset", assets, list(STAGES)),
        ("shard", shards, study.shards),
        ("recipe", recipes, list(study.recipes)),
    ):
        unknown = [name for name in given if name not in known]
        if unknown:
            fail(f"no {kind} {unknown[0]!r} in study {study.name}; there are {', '.join(known)}")


def _print_outcome(outcome) -> None:
    from m3po_dagster.graph import label

    made = [name for name in outcome.assets if name not in outcome.reused]
    what = label((" ".join(made or outcome.assets), outcome.partition))
    state = "FAILED" if outcome.error else ("reused" if not made else "made")
    typer.echo(f"{state:>7}  {outcome.seconds:6.1f} s  {what}", err=True)
    if outcome.error:
        for line in outcome.error.splitlines():
            typer.echo(f"         {line}", err=True)


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


def _leaderboard_text(found: list) -> str | None:
    """The leaderboard as Markdown, if it is this study's and up to date."""
    import dagster as dg

    from m3po_dagster.current import read_heads
    from m3po_dagster.home import store_root
    from m3po_dagster.storage.store import ArtifactStore

    if not any(item.part[0] == "leaderboard" and item.state == "fresh" for item in found):
        return None
    with dg.DagsterInstance.get() as instance:
        head = read_heads(instance, ["leaderboard"])["leaderboard", ""]
    return ArtifactStore(store_root()).find("leaderboard", "", head.fingerprint).manifest.metadata["markdown"]


def _line(item) -> str:
    from m3po_dagster.graph import label

    return f"{item.state:8} {label(item.part)}{': ' + item.why if item.why else ''}"


def _standings(loaded):
    import dagster as dg

    from m3po_dagster.current import held_heads
    from m3po_dagster.graph import standings
    from m3po_dagster.home import store_root
    from m3po_dagster.materialise import MENDABLE
    from m3po_dagster.resources.study import StoreResource

    store = StoreResource(root=store_root())
    with explained(*MENDABLE, status=1):
        with dg.DagsterInstance.get() as instance:
            heads = held_heads(instance, store.open())
        return standings(loaded, store.identities(), heads)


def _print_plan(loaded, selection, as_json: bool) -> None:
    from m3po_dagster.graph import label
    from m3po_dagster.study_reference import missing_paths

    missing = missing_paths(loaded)
    found = [item for item in _standings(loaded) if selection.includes(*item.part)]
    todo = [label(item.part) for item in found if item.state != "fresh"]
    if as_json:
        typer.echo(json.dumps({"study": loaded.name, "to make": todo, "missing files": missing}))
        return
    typer.echo(f"{loaded.name}: {len(todo)} parts to make")
    for name, number in Counter(name.split("[")[0] for name in todo).items():
        typer.echo(f"  {number:4d}  {name}")
    for key, path in missing.items():
        typer.echo(f"  not on this machine: {key}: {path}")


def status(
    study: StudyOption = DEFAULT_STUDY,
    everything: Annotated[bool, typer.Option("--all", help="Every partition, fresh ones too.")] = False,
    as_json: JsonOption = False,
) -> None:
    """What is fresh, stale or missing, what waits for something that is, and why."""
    from m3po_dagster.graph import label

    found = _standings(_prepare(study))
    if as_json:
        typer.echo(json.dumps([{"part": label(item.part), "state": item.state, "why": item.why} for item in found]))
        return
    by_asset: dict[str, Counter[str]] = {}
    for item in found:
        by_asset.setdefault(item.part[0], Counter())[item.state] += 1
    for name, states in by_asset.items():
        typer.echo(f"{name:24} " + ", ".join(f"{number} {state}" for state, number in states.items()))
    for item in found:
        if everything or item.state != "fresh":
            typer.echo(f"  {_line(item)}")


def leaderboard(study: StudyOption = DEFAULT_STUDY) -> None:
    """Print the study's leaderboard as Markdown."""
    board = _leaderboard_text(_standings(_prepare(study)))
    if board is None:
        fail(f"the leaderboard of {study} is not up to date: run `m3po run --study {study}`", status=1)
    typer.echo(board)


def ui(
    study: StudyOption = DEFAULT_STUDY,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on 127.0.0.1.")] = 3000,
) -> None:
    """Open Dagster's web interface (and its daemon) on 127.0.0.1."""
    _prepare(study)
    workspace = Path("workspace.yaml")
    if not workspace.is_file():
        fail(f"{workspace.absolute()} does not exist: start `m3po ui` in the project's folder", status=1)
    dagster = Path(sys.executable).with_name("dagster")
    os.execv(dagster, [str(dagster), "dev", "-w", str(workspace), "-h", "127.0.0.1", "-p", str(port)])
