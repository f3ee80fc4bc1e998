"""What the commands over a study share: loading it, making DAGSTER_HOME ready, and how its parts stand."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from m3po_dagster.cli.event_log import event_log
from m3po_dagster.cli.options import explained
from m3po_dagster.home import ensure_home, store_root

PATIENT_THREADS = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
"""Busy-waiting OpenMP threads make a small model several times slower wherever something else is at work too."""

if TYPE_CHECKING:
    from m3po_dagster.graph import Part, Standing
    from m3po_dagster.storage.artifact import Artifact
    from m3po_dagster.study import Study


def prepare(study: Path) -> "Study":
    """The study, with M3PO_STUDY and DAGSTER_HOME set for everything that is loaded or started from here."""
    from m3po_dagster.deployment import DeploymentError, current_deployment
    from m3po_dagster.study import load_study
    from m3po_dagster.study_errors import StudyError

    os.environ["M3PO_STUDY"] = str(study.absolute())
    for name, value in PATIENT_THREADS.items():
        os.environ.setdefault(name, value)
    with explained(StudyError):
        loaded = load_study(study)
    with explained(DeploymentError):
        current_deployment()
    with explained(OSError, status=1):
        ensure_home()
    return loaded


def how_it_stands(study: "Study") -> list["Standing"]:
    """Every part's standing, whatever runs are at work on."""
    from m3po_dagster.current import held_heads
    from m3po_dagster.graph import standings
    from m3po_dagster.resources.study import StoreResource

    with explained(*_mendable(), status=1):
        store = StoreResource(root=store_root())
        with event_log() as instance:
            heads = held_heads(instance, store.open())
        return standings(study, store.identities(), heads)


def how_it_stands_now(study: "Study") -> tuple[list["Standing"], dict["Part", str]]:
    """Every part's standing with what runs are at work on, and what the sensors don't start, with the reason."""
    from m3po_dagster import changes
    from m3po_dagster.automation.active_runs import at_work
    from m3po_dagster.automation.sensors import held_back
    from m3po_dagster.current import held_heads
    from m3po_dagster.graph import standings
    from m3po_dagster.resources.study import StoreResource

    with explained(*_mendable(), status=1), event_log() as instance:
        resource = StoreResource(root=store_root())
        store, identities = resource.open(), resource.identities()
        busy, heads = at_work(instance, report=False), held_heads(instance, store)
        held = held_back(instance, study, store, identities, heads, busy)
        found = standings(study, identities, heads, busy)
        return changes.explained(found, study, identities, heads, store.find), held


def _mendable() -> tuple[type[Exception], ...]:
    from m3po_dagster.materialise import MENDABLE

    return MENDABLE


def current_leaderboard(found: list["Standing"]) -> "Artifact | None":
    """The leaderboard, if it is up to date."""
    from m3po_dagster.current import read_heads
    from m3po_dagster.storage.store import ArtifactStore

    if not any(item.part[0] == "leaderboard" and item.state == "fresh" for item in found):
        return None
    with event_log() as instance:
        head = read_heads(instance, ["leaderboard"])["leaderboard", ""]
    return ArtifactStore(store_root()).find("leaderboard", "", head.fingerprint)


def sentence(item: "Standing") -> str:
    """Name, state and reason of a part in a sentence."""
    from m3po_dagster.graph import label

    return f"{label(item.part)} is {item.state}{': ' + item.why if item.why else ''}"
