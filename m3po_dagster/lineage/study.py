"""What the store holds of a study: found from the study file alone, without Dagster's event log.

A fingerprint follows from settings and the content of the inputs, so what a study asks for can be looked up input by
input. That is how a recipe's name means one adapter in a store that several studies share.
"""

from dataclasses import dataclass

from m3po_dagster.graph import STAGES, Head, Part, all_parts, inputs_of, label, made_from
from m3po_dagster.identity import Identities
from m3po_dagster.lineage.manifests import Manifests
from m3po_dagster.storage.artifact import Artifact
from m3po_dagster.storage.names import ArtifactKey
from m3po_dagster.study import Study


@dataclass(frozen=True)
class Held:
    """The parts of a study that a store holds as the study file asks for them now.

    `assumed` has a sentence for each thing that the file doesn't decide: which of several answers that a served judge
    gave when it was probed; the newest is taken.
    """

    parts: dict[Part, Head]
    assumed: tuple[str, ...]


def held_parts(manifests: Manifests, study: Study, identities: Identities) -> Held:
    """Looks every part of the study up. Raises OSError or ValueError when something it names can't be looked at."""
    held: dict[Part, Head] = {}
    assumed = []
    for part in all_parts(study):
        if any(upstream not in held for upstream in inputs_of(*part, study)):
            continue
        found = _found(manifests, part, study, identities, held)
        if found:
            held[part] = Head(found[0].fingerprint, found[0].data_version)
        if len(found) > 1:
            made = f"{found[0].manifest.created:%Y-%m-%d %H:%M:%S}"
            assumed.append(f"{label(part)} as of {made}, the newest of {len(found)}")
    return Held(held, tuple(assumed))


def _found(
    manifests: Manifests, part: Part, study: Study, identities: Identities, held: dict[Part, Head]
) -> list[Artifact]:
    """The artifacts that the study's part can be: one, or the answers of whoever was asked, newest first."""
    if not STAGES[part[0]].observed:
        artifact = manifests.find(ArtifactKey(*part, made_from(part, study, identities, held)))
        return [artifact] if artifact else []
    fitting = [
        artifact
        for artifact in manifests.all(part[0])
        if artifact.key.partition == part[1]
        and artifact.fingerprint == made_from(part, study, identities, held, found=artifact.data_version)
    ]
    return sorted(fitting, key=lambda artifact: artifact.manifest.created, reverse=True)
