"""What the commands over a study share: loading it, making DAGSTER_HOME ready, and how its parts stand."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from m3po_dagster.cli.options import explained
from m3po_dagster.home import ensure_home, store_root

if TYPE_CHECKING:
    from m3po_dagster.graph import Standing
    from m3po_dagster.study import Study


def prepare(study: Path) -> "Study":
    """The study, with M3PO_STUDY and DAGSTER_HOME set for everything that is loaded or started from here."""
    from m3po_dagster.study import load_study
    from m3po_dagster.study_errors import StudyError

    os.environ["M3PO_STUDY"] = str(study.absolute())
    with explained(StudyError):
        loaded = load_study(study)
    with explained(OSError, status=1):
        ensure_home()
    return loaded


def how_it_stands(study: "Study", busy: bool = True) -> list["Standing"]:
    """Every part's standing; with `busy`, what a run is at work on counts as running."""
    import dagster as dg

    from m3po_dagster.automation.active_runs import at_work
    from m3po_dagster.current import held_heads
    from m3po_dagster.graph import standings
    from m3po_dagster.materialise import MENDABLE
    from m3po_dagster.resources.study import StoreResource

    store = StoreResource(root=store_root())
    with explained(*MENDABLE, status=1):
        with dg.DagsterInstance.get() as instance:
            working = at_work(instance, report=False) if busy else {}
            heads = held_heads(instance, store.open())
        return standings(study, store.identities(), heads, working)


def leaderboard_text(found: list["Standing"]) -> str | None:
    """The leaderboard as Markdown, if it is up to date."""
    import dagster as dg

    from m3po_dagster.current import read_heads
    from m3po_dagster.storage.store import ArtifactStore

    if not any(item.part[0] == "leaderboard" and item.state == "fresh" for item in found):
        return None
    with dg.DagsterInstance.get() as instance:
        head = read_heads(instance, ["leaderboard"])["leaderboard", ""]
    return ArtifactStore(store_root()).find("leaderboard", "", head.fingerprint).manifest.metadata["markdown"]


def line(item: "Standing", more: str = "") -> str:
    """State, name and reason of a part on one line."""
    from m3po_dagster.graph import label

    why = "; ".join(text for text in (item.why, more) if text)
    return f"{item.state:8} {label(item.part)}{': ' + why if why else ''}"
