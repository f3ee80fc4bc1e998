"""What changed since a result was made: its manifest beside what the study and its surroundings ask for now."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from m3po_dagster.graph import STAGES, Head, Part, Standing, inputs_of, label
from m3po_dagster.identity import Identities
from m3po_dagster.lineage.profile import flattened
from m3po_dagster.storage.artifact import Artifact
from m3po_dagster.study import Study

NAMED = 3
"""Changes that are named; of more, how many."""
SHOWN = 24
"""Characters of a value: hashes are long."""


def explained(
    found: list[Standing],
    study: Study,
    identities: Identities,
    heads: Mapping[Part, Head],
    find: Callable[[str, str, str], Artifact | None],
) -> list[Standing]:
    """The standings, the stale ones with what changed. `find` gives an artifact by asset, partition and fingerprint."""
    return [
        replace(item, changes=_changes(item.part, study, identities, heads, find)) if item.state == "stale" else item
        for item in found
    ]


def _changes(
    part: Part,
    study: Study,
    identities: Identities,
    heads: Mapping[Part, Head],
    find: Callable[[str, str, str], Artifact | None],
) -> str:
    artifact = find(*part, heads[part].fingerprint)
    if artifact is None:
        return ""
    found = list(_found(part, artifact, study, identities, heads))
    more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
    return "; ".join(found[:NAMED]) + more


def _found(
    part: Part, artifact: Artifact, study: Study, identities: Identities, heads: Mapping[Part, Head]
) -> Iterator[str]:
    stage, made = STAGES[part[0]], artifact.manifest
    if made.code_version != stage.code_version:
        yield f"its code is version {stage.code_version}, was {made.code_version}"
    try:
        now = stage.settings(study, identities, part[1])
    except (OSError, ValueError) as error:
        yield str(error)
        return
    was = made.settings
    if stage.observed and isinstance(was, dict):
        was = was.get("asked", was)
    old, new = dict(flattened(was)), dict(flattened(now))
    for key in [key for key in {**old, **new} if old.get(key) != new.get(key)]:
        yield f"{key or 'settings'} was {_short(old.get(key))}, now {_short(new.get(key))}"
    for upstream in inputs_of(*part, study):
        before = made.inputs.get(label(upstream))
        if before is None:
            yield f"{label(upstream)} is new to it"
        elif upstream in heads and before.data_version != heads[upstream].data_version:
            yield f"{label(upstream)} has other content"
    for gone in sorted(set(made.inputs) - {label(upstream) for upstream in inputs_of(*part, study)}):
        if made.inputs[gone].asset in stage.inputs:
            yield f"{gone} is gone"


def _short(value: object) -> str:
    text = "not there" if value is None else str(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
