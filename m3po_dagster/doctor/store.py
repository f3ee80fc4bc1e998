"""A store and the event log that says what is current in it: whether each is what the other says."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from m3po_dagster.doctor.findings import Finding, note, ok, problem
from m3po_dagster.graph import Head, Part, label
from m3po_dagster.storage.errors import Busy, StoreError
from m3po_dagster.storage.names import ArtifactKey
from m3po_dagster.storage.quarantine import SetAside
from m3po_dagster.storage.store import ArtifactStore
from m3po_dagster.storage.survey import Survey

OLD_SECONDS = 7 * 24 * 3600
"""A draft that nothing was added to for so long is mentioned with how to remove it."""


@dataclass(frozen=True)
class Checked:
    """What was looked at and what came out; `repaired` says where damaged artifacts were moved."""

    survey: Survey
    findings: list[Finding]
    repaired: dict[ArtifactKey, str]
    quarantine: list[SetAside]


def check_store(
    store: ArtifactStore,
    heads: Mapping[Part, Head],
    content: bool,
    repair: bool,
    advance: Callable[[int, int], None],
) -> Checked:
    """Looks at everything in `store`, and at what `heads`, the event log's current artifacts, name of it.

    `content`: all bytes are read and hashed. `repair`: what is damaged is set aside; it counts as never made then, and
    is made again when it is due. Raises StoreError when the store can't be listed.
    """
    survey = store.survey(content, advance)
    repaired, findings = {}, []
    for key, reason in survey.damaged.items():
        if not repair:
            findings.append(problem(str(key), f"damaged: {reason}", "--repair sets it aside; `m3po run` makes it anew"))
            continue
        try:
            place = store.quarantine(*key)
        except (Busy, StoreError) as error:
            findings.append(problem(str(key), f"damaged: {reason}", f"It stays where it is: {error}"))
            continue
        if place is not None:
            repaired[key] = place
            findings.append(note(str(key), f"damaged: {reason}", f"Set aside in {place}; `m3po run` makes it anew"))
    findings += [problem(str(key), reason, "") for key, reason in survey.unreadable.items()]
    findings += _against(survey, heads)
    findings += _remains(survey)
    return Checked(survey, findings, repaired, store.quarantined())


def _against(survey: Survey, heads: Mapping[Part, Head]) -> list[Finding]:
    """Where the event log names what the store doesn't hold, or not with that content."""
    if not heads:
        return [note("Dagster", "its event log knows no artifact", "Set DAGSTER_HOME to the instance of this store")]
    whole = {artifact.key: artifact for artifact in survey.whole}
    bad = {*survey.damaged, *survey.unreadable}
    findings, sound = [], 0
    for part, head in heads.items():
        key = ArtifactKey(*part, head.fingerprint)
        artifact = whole.get(key)
        if artifact is None and key not in bad:
            said = f"current in Dagster, gone from the store ({key})"
            findings.append(problem(label(part), said, "`m3po run` makes it anew"))
        elif artifact is not None and artifact.data_version != head.data_version:
            said = f"Dagster has content {head.data_version[:12]}, the store {artifact.data_version[:12]} ({key})"
            findings.append(problem(label(part), said, "Materialise it, and what follows from it, again"))
        else:
            sound += artifact is not None
    if sound == len(heads):
        findings.append(ok("Dagster", f"all {sound} current artifacts are in the store with that content"))
    return findings


def _remains(survey: Survey) -> list[Finding]:
    findings, now = [], time.time()
    for draft in survey.drafts:
        days = (now - draft.modified) / 86400
        old = now - draft.modified > OLD_SECONDS
        what = f"unfinished: {draft.parts} parts, {draft.bytes:,} bytes, last changed {days:.1f} days ago"
        do = "`m3po store gc` removes it" if old else "A run at work on it, or the next one, goes on from there"
        findings.append(note(str(draft.key), what, do))
    for key, names in survey.leftovers.items():
        what = f"{len(names)} files beside what was committed: {', '.join(names[:3])}"
        findings.append(note(str(key), what, "`m3po store gc` removes them"))
    for key, lost in survey.lost_inputs.items():
        what = f"made from {', '.join(map(str, lost[:3]))}, no longer in the store"
        findings.append(note(str(key), what, "Its lineage ends there"))
    return findings
