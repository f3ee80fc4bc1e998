"""`m3po pairs`: what became of a recipe's preference pairs in training."""

import json
from collections.abc import Iterator
from typing import Annotated

import typer

from m3po_dagster.cli.lineage import WhoseOption, current_adapters
from m3po_dagster.cli.options import JsonOption, StoreOption, explained
from m3po_dagster.cli.store import opened
from m3po_dagster.home import DEFAULT_STORE
from m3po_dagster.lineage.manifests import Manifests
from m3po_dagster.lineage.naming import choose
from m3po_dagster.lineage.profile import trainings
from m3po_dagster.lineage.render import chosen_lines, printable
from m3po_dagster.lineage.unlearned import Outcome, not_learned, outcomes
from m3po_dagster.storage.artifact import Artifact
from m3po_dagster.storage.errors import StoreError

app = typer.Typer(no_args_is_help=True, help="What became of a recipe's preference pairs in training.")


@app.callback()
def _group() -> None:
    """A group, for one command too."""


@app.command()
def unlearned(
    recipe: Annotated[
        str, typer.Argument(help="A recipe, RECIPE|SEED, or how an adapter's fingerprint begins.", metavar="RECIPE")
    ],
    seed: Annotated[int | None, typer.Option(help="The training seed; the lowest if not given.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Pairs shown, the worst first.")] = 10,
    as_json: JsonOption = False,
    study: WhoseOption = None,
    folder: StoreOption = DEFAULT_STORE,
) -> None:
    """List the pairs that training did not teach: reward margin of 0 or less after it (SFT: log P of R_w no higher)."""
    with explained(StoreError, status=1):
        manifests = Manifests(opened(folder))
        chosen = choose(manifests, recipe, current_adapters(manifests, study))
        adapter, seeds = _of_seed(trainings(manifests, chosen.artifact), seed, recipe)
        failed = not_learned(adapter)
        shown = outcomes(manifests, adapter, failed[:limit])
    pairs = adapter.manifest.tables["margins"].rows
    if as_json:
        facts = {"adapter": chosen.to_dict(), "seed": _seed(adapter), "pairs": pairs, "not_learned": len(failed)}
        typer.echo(json.dumps({**facts, "shown": [outcome.to_dict() for outcome in shown]}, indent=1))
        return
    for line in chosen_lines(chosen):
        typer.echo(line)
    typer.echo(f"seed          {_seed(adapter)} of {', '.join(map(str, seeds))}")
    typer.echo(f"not learned   {len(failed)} of {pairs} pairs ({len(failed) / max(pairs, 1):.1%}), {len(shown)} shown")
    for outcome in shown:
        for line in _lines(outcome):
            typer.echo(line)


def _of_seed(adapters: list[Artifact], seed: int | None, recipe: str) -> tuple[Artifact, list[int]]:
    by_seed = {_seed(adapter): adapter for adapter in adapters}
    if not by_seed:
        raise StoreError(f"{recipe} trains nothing, so that there is no pair to learn; name a recipe with training")
    if {adapter.manifest.settings["training"]["kind"] for adapter in adapters} == {"rlhf"}:
        raise StoreError(
            f"{recipe} is trained against a proxy reward, on no pairs, so that there is none to learn; `m3po lineage "
            "adapter` shows its training"
        )
    wanted = min(by_seed) if seed is None else seed
    if wanted not in by_seed:
        raise StoreError(f"{recipe} has no adapter of seed {seed}: there are {', '.join(map(str, sorted(by_seed)))}")
    return by_seed[wanted], sorted(by_seed)


def _seed(adapter: Artifact) -> int:
    return adapter.manifest.settings["seed"]


def _lines(outcome: Outcome) -> Iterator[str]:
    margin = outcome.margin
    yield ""
    yield f"pair          {outcome.pair_id[:16]} of prompt {outcome.prompt_id[:16]}, shard {outcome.shard}"
    for name, text in (
        ("prompt", outcome.question),
        ("chosen", outcome.chosen_text),
        ("rejected", outcome.rejected_text),
    ):
        if name != "rejected" or margin["rejected_logp_before"] is not None:
            yield f"{name:<14}{'(no longer in the store)' if text is None else printable(text)}"
    figures = {
        "margin": (margin.get("reward_margin_before"), margin["reward_margin"]),
        "loss": (margin.get("loss_before"), margin.get("loss")),
    }
    for side in ("chosen", "rejected"):
        before, after = margin[f"{side}_logp_before"], margin[f"{side}_logp_after"]
        if after is not None:
            figures[f"{side} log P"] = (before, after)
    for label, (before, after) in figures.items():
        yield f"  {label:<16}{_number(before)} -> {_number(after)}"
    for seen in outcome.trajectory:
        label = f"step {seen['step']}"
        yield f"  {label:<16}loss {_number(seen['loss'])}, margin {_number(seen['reward_margin'])}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
