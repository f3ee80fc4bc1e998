"""`m3po judge calibrate`: fits each scorer's map to [0, 1] on a sample of the study's own answers."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from m3po_dagster.cli.event_log import event_log
from m3po_dagster.cli.judge_account import command_account
from m3po_dagster.cli.judge_requests import YesOption, agree, requests_of
from m3po_dagster.cli.options import JsonOption, StudyOption, explained
from m3po_dagster.cli.project import prepare
from m3po_dagster.method.alignment.calibration import (
    CalibrationEntry,
    Identity,
    Kind,
    read_calibrations,
    write_calibrations,
)
from m3po_dagster.study import DEFAULT_STUDY

if TYPE_CHECKING:
    from m3po_dagster.identity import Identities
    from m3po_dagster.method.alignment.account import Account
    from m3po_dagster.method.alignment.scorer import ScorerSettings
    from m3po_dagster.study import Study
    from m3po_dagster.study_answers import Sample

SHOWN_QUANTILES = {"min": "0", "5 %": "0.05", "median": "0.5", "95 %": "0.95", "max": "1"}


def calibrate(
    out: Annotated[Path, typer.Option(help="File to write; entries of other scorers in it are kept.")],
    study: StudyOption = DEFAULT_STUDY,
    kind: Annotated[Kind, typer.Option(help="The kind of map.", show_default=True)] = "linear",
    prompts: Annotated[int, typer.Option(min=1, help="Prompts of the sample, with all their answers.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Which prompts.")] = 0,
    tails: Annotated[
        float, typer.Option(min=0, max=0.49, help="Share of the sample beyond each end of a linear map.")
    ] = 0.05,
    scorer: Annotated[
        list[str], typer.Option("--scorer", help="Only this scorer (repeatable); else those that need a map.")
    ] = [],  # noqa: B006
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Fit each scorer's map to [0, 1] once, on a seeded sample of the answers that the study has made.

    The study names the file as judge.calibrations. Needs the study's candidates; nothing else is made.
    """
    from m3po_dagster.materialise import MENDABLE

    loaded = prepare(study)
    with explained(ValueError):
        chosen = _chosen(loaded, scorer)
    kept = {}
    with explained(OSError, ValueError):
        if not out.absolute().parent.is_dir():
            raise FileNotFoundError(f"can't write {out}: there is no folder {out.absolute().parent}")
        if out.exists():
            kept = {name: one for name, one in read_calibrations(out).items() if name not in {s.name for s in chosen}}
    with explained(*MENDABLE, status=1):
        sample, identities = _sampled(loaded, prompts, seed)
        agree(requests_of(chosen, [len(answers) for _, answers in sample.items]), chosen, yes)
        account = command_account(loaded, "calibrate") if any(one.served for one in chosen) else None
        fitted = {one.name: _fitted(one, sample, loaded, identities, kind, tails, seed, account) for one in chosen}
        write_calibrations(out, kept | {name: entry for name, (entry, _) in fitted.items()})
    found = {name: _row(entry, ends) for name, (entry, ends) in fitted.items()}
    if as_json:
        typer.echo(json.dumps({"out": str(out), "kept": sorted(kept), "scorers": found}))
    else:
        _print(found, sample, out, sorted(kept))
        named = loaded.judge.calibrations
        if named is None or named.resolve() != out.resolve():
            path = os.path.relpath(out.resolve(), study.resolve().parent)
            place = path if path.startswith("..") else f"./{path}"
            typer.echo(f"name it in {study} (judge: calibrations: {place}), and MAS follows at the next run")


def _chosen(study: "Study", names: list[str]) -> list["ScorerSettings"]:
    """The scorers named; without names those whose values don't lie in [0, 1] by themselves and have no map here.

    Raises ValueError for a name that the study hasn't, and where a fit would change nothing.
    """
    known = {scorer.name: scorer for scorer in study.judge.assessors}
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"no scorer {unknown[0]!r} in study {study.name}; there are {', '.join(known)}")
    own = [name for name, scorer in known.items() if scorer.own_calibration is not None]
    if overruled := [name for name in names if name in own]:
        raise ValueError(
            f"scorer '{overruled[0]}' has a `calibration` of its own in study {study.name}, which goes before any "
            "file: remove it from the study first"
        )
    if names:
        return [known[name] for name in dict.fromkeys(names)]
    chosen = [scorer for name, scorer in known.items() if name not in own and _needs_a_map(scorer)]
    if not chosen:
        raise ValueError(
            f"no scorer of study {study.name} needs a map: their values lie in [0, 1], or the study gives a "
            f"`calibration`. Name one with --scorer to fit it all the same; there are {', '.join(known)}"
        )
    return chosen


def _needs_a_map(scorer: "ScorerSettings") -> bool:
    return scorer.calibration is None or not isinstance(scorer.calibration, Identity)


def _sampled(study: "Study", prompts: int, seed: int) -> tuple["Sample", "Identities"]:
    from m3po_dagster.current import held_heads
    from m3po_dagster.graph import standings
    from m3po_dagster.home import store_root
    from m3po_dagster.resources.study import StoreResource
    from m3po_dagster.study_answers import sample_answers

    resource = StoreResource(root=store_root())
    store, identities = resource.open(), resource.identities()
    with event_log() as instance:
        heads = held_heads(instance, store)
    found = standings(study, identities, heads)
    return sample_answers(study, store, heads, found, prompts, seed), identities


def _fitted(
    settings: "ScorerSettings",
    sample: "Sample",
    study: "Study",
    identities: "Identities",
    kind: Kind,
    tails: float,
    seed: int,
    account: "Account | None",
) -> tuple[CalibrationEntry, tuple[float, float]]:
    """The entry, and the shares of the sample that its map makes 0 and 1."""
    from m3po_dagster.method.alignment.fitting import at_the_ends, fitted_entry, raw_values
    from m3po_dagster.progress import progress
    from m3po_dagster.resources.judge import device_of

    # Before the scores, which may be dear: a model that can't be hashed makes no entry.
    model = identities.raw_scale(settings)
    scorer = settings.build(device_of("auto"))
    if account is not None and settings.served:
        scorer = scorer.at(account)
    with progress(lambda line: None, settings.name, "prompt") as advance:
        raw = raw_values(scorer, sample.items, advance)
    try:
        entry = fitted_entry(
            raw, kind, tails, model=model, study=study.name, shards=sample.shards, seed=seed, prompts=len(sample.items)
        )
    except ValueError as error:
        reasons = "; ".join(f"{number} {reason}" for reason, number in raw.unscored.items())
        raise ValueError(f"scorer '{settings.name}': {error}{f' (unscored: {reasons})' if reasons else ''}") from None
    return entry, at_the_ends(entry, raw.values)


def _row(entry: CalibrationEntry, ends: tuple[float, float]) -> dict:
    return {**entry.model_dump(mode="json"), "version": entry.map.version, "at 0": ends[0], "at 1": ends[1]}


def _print(found: dict[str, dict], sample: "Sample", out: Path, kept: list[str]) -> None:
    from rich.table import Table

    from m3po_dagster.cli.store import console

    typer.echo(f"{len(sample.items)} prompts, {sample.answers:,} answers, from {len(sample.shards)} shards")
    table = Table("scorer", "map", "version", "values", "unscored", *SHOWN_QUANTILES, "made 0", "made 1", box=None)
    for name, row in found.items():
        record = row["fit"]
        table.add_row(
            *(name, _named(row["map"]), row["version"][:8]),
            *(f"{record['values']:,}", f"{sum(record['unscored'].values()):,}"),
            *(f"{record['quantiles'][share]:.4g}" for share in SHOWN_QUANTILES.values()),
            *(f"{row[end]:.1%}" for end in ("at 0", "at 1")),
        )
    console().print(table)
    for name, row in found.items():
        for reason, number in row["fit"]["unscored"].items():
            typer.echo(f"  {name}: {number} unscored: {reason}")
        if row["map"]["kind"] == "linear" and row["fit"]["tails"]:
            typer.echo(
                f"  {name}: the {row['at 1']:.1%} of the answers that become 1 are equal from here on: where {name} "
                "decides much of MAS, --kind zscore or --tails 0 keeps them apart"
            )
    typer.echo(f"wrote {out}" + (f"; kept its entries {', '.join(kept)}" if kept else ""))


def _named(calibration: dict) -> str:
    values = [f"{name} {value:.4g}" for name, value in calibration.items() if isinstance(value, float)]
    return " ".join([calibration["kind"], *values])
