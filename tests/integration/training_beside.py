"""Brings one recipe of a project up to date, and goes on training only once another run waits for it.

    python training_beside.py STUDY STORE RECIPE TOLD

TOLD gets a line `trains` from each training, and a line `waits` from each run that found one under way. Prints the
recipe when it has an adapter.
"""

import json
import sys
import time
from pathlib import Path

import dagster as dg

from m3po_dagster.definitions import build_definitions
from m3po_dagster.lineage.manifests import ADAPTER
from m3po_dagster.resources.study import StoreResource
from m3po_dagster.resources.trainer import TrainerResource
from m3po_dagster.runner import Runner, Selection
from m3po_dagster.storage.draft import Draft
from m3po_dagster.storage.errors import Busy
from m3po_dagster.storage.store import ArtifactStore
from m3po_dagster.study import load_study

UP_TO_ADAPTERS = ("recipe_config", "preference_pairs", "lora_adapter")


def held(draft: Draft) -> bool:
    """Whether another run is at work on it."""
    try:
        with draft:
            return False
    except Busy:
        return True


def main(study_file: str, root: str, recipe: str, told: str) -> None:
    """One run, as `m3po run --recipe` does it."""

    def tell(line: str) -> None:
        with open(told, "a") as file:
            file.write(f"{line}\n")

    train, opened, waits = TrainerResource.train, ArtifactStore.open, []

    def trained(*arguments):
        tell("trains")
        deadline = time.monotonic() + 60
        while "waits" not in Path(told).read_text() and time.monotonic() < deadline:
            time.sleep(0.05)
        return train(*arguments)

    def watched(store, asset: str, *rest):
        draft = opened(store, asset, *rest)
        if asset == ADAPTER and not waits and held(draft):
            waits.append(asset)
            tell("waits")
        return draft

    TrainerResource.train, ArtifactStore.open = trained, watched
    with dg.DagsterInstance.get() as instance:
        definitions, study = build_definitions(Path(study_file), root), load_study(study_file)
        runner = Runner(definitions, study, StoreResource(root=root), instance)
        outcomes = list(runner.bring_up_to_date(Selection(assets=UP_TO_ADAPTERS, recipes=(recipe,))))
    assert [outcome.error for outcome in outcomes if outcome.error] == []
    assert any("lora_adapter" in outcome.assets for outcome in outcomes)
    print(json.dumps(recipe))


if __name__ == "__main__":
    main(*sys.argv[1:])
