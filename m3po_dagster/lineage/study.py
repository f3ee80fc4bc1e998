"""What the store holds of a study: found from the study file alone, without Dagster's event log.

A fingerprint follows from settings and the content of the inputs, so what a study asks for can be looked up input by
input. That is how a recipe's name means one adapter in a store that several studies share.
"""

from m3po_dagster.graph import Head, Part, all_parts, part_fingerprint
from m3po_dagster.identity import Identities
from m3po_dagster.lineage.manifests import Manifests
from m3po_dagster.storage.names import ArtifactKey
from m3po_dagster.study import Study


def held_parts(manifests: Manifests, study: Study, identities: Identities) -> dict[Part, Head]:
    """Fingerprint and content of every part of the study that the store holds as the study file asks for it now.

    Raises OSError or ValueError when something that the study names can't be looked at.
    """
    held: dict[Part, Head] = {}
    for part in all_parts(study):
        fingerprint = part_fingerprint(part, study, identities, held)
        artifact = manifests.find(ArtifactKey(*part, fingerprint)) if fingerprint else None
        if artifact is not None:
            held[part] = Head(artifact.fingerprint, artifact.data_version)
    return held
