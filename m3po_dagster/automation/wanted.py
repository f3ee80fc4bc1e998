"""What to start, hold back or stop: decided from levels, never from changes, so that nothing missed is lost for good.

A tick compares what is with what should be. A part is asked for when all it stands on is settled and nobody is at work
on it; one that was missed, failed or was killed is simply still due at the next tick.
"""

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from m3po_dagster import run_tags
from m3po_dagster.automation.settings import AutomationSettings
from m3po_dagster.graph import (
    STAGES,
    Head,
    Part,
    ancestors,
    inputs_of,
    label,
    made_from,
    part_fingerprint,
    partition_keys,
)
from m3po_dagster.identity import Identities
from m3po_dagster.study import Study

MOST_INTERRUPTIONS = 10
"""A process that ends without a word is usually no fault of the work; this often it is (killed for its memory, say)."""
FREE_INTERRUPTIONS = 2
"""So often it is started again at once; then it waits as after a failure, up to LONGEST_WAIT seconds."""
LONGER_EACH_TIME = 4
LONGEST_WAIT = 3600.0


@dataclass(frozen=True)
class Ending:
    """How an earlier run for the same thing ended.

    `how`: made; failed; interrupted (its process was ended or never began); cancelled (by hand); obsolete (what it was
    for had changed). `at` is the time in seconds since 1970, `study` the version of the study it ran under.
    """

    how: Literal["made", "failed", "interrupted", "cancelled", "obsolete"]
    at: float
    run_id: str
    study: str = ""


@dataclass(frozen=True)
class Ask:
    """A run to start: for one part, for what it should be now, after the run that was the last for the same thing."""

    part: Part
    wanted: str
    after: str = "nothing"

    @property
    def run_key(self) -> str:
        """Dagster starts one run a key; the last run's id lets the same thing be asked for again when it was lost."""
        return f"{label(self.part)}:{self.wanted}:after {self.after}"


@dataclass(frozen=True)
class Held:
    """A part that is due and not started, and why; `later` when time alone will start it."""

    part: Part
    why: str
    later: bool = False


def study_version(study: Study) -> str:
    """Changes with anything in the study file: what failed under another one may work under this."""
    return hashlib.sha256(study.model_dump_json().encode()).hexdigest()[: run_tags.DIGITS]


def decide(
    part: Part, wanted: str, endings: Sequence[Ending], settings: AutomationSettings, study: str, now: float
) -> Ask | Held:
    """Whether to try once more; `endings` are those of earlier runs for the same thing, the newest first."""
    if not endings:
        return Ask(part, wanted)
    failures = interruptions = 0
    for ending in endings:
        if ending.how == "made":
            break
        if ending.study != study:
            continue
        if ending.how == "cancelled":
            return Held(part, "its run was cancelled by hand")
        failures += ending.how == "failed"
        interruptions += ending.how == "interrupted"
    if failures >= settings.max_failures:
        return Held(part, f"{failures} runs failed")
    if interruptions >= MOST_INTERRUPTIONS:
        return Held(part, f"{interruptions} runs ended without a word")
    newest, wait = endings[0], 0.0
    if newest.how == "failed" and failures:
        wait = settings.retry_after * LONGER_EACH_TIME ** (failures - 1)
    elif newest.how == "interrupted" and interruptions > FREE_INTERRUPTIONS:
        wait = min(settings.retry_after * LONGER_EACH_TIME ** (interruptions - FREE_INTERRUPTIONS - 1), LONGEST_WAIT)
    elif newest.how == "obsolete":
        # What changed was seen by the step and not yet by the sensor that looks outside.
        wait = settings.look_every
    # One that ended later than now ended before the clock was set back: how long ago is not known, so it waits no more.
    if newest.at <= now < newest.at + wait:
        return Held(part, f"tried again in {newest.at + wait - now:.0f} s", later=True)
    return Ask(part, wanted, newest.run_id)


def changed_outside(
    study: Study, identities: Identities, heads: Mapping[Part, Head], busy: Collection[Part], parts: Iterable[Part]
) -> tuple[list[tuple[Part, str]], list[str]]:
    """The outside parts to look at anew, each with what it is wanted for; and what can't be looked at, in sentences.

    A part never looked at is not looked at here: the first look may hash gigabytes, which is a run's work.
    """
    changed, problems, unsettled = [], [], set(busy)
    for part in parts:
        if part in busy or unsettled.intersection(inputs_of(*part, study)):
            unsettled.add(part)
            continue
        wanted = study_version(study)
        if part in heads:
            try:
                now = part_fingerprint(part, study, identities, heads)
            except (OSError, ValueError) as error:
                problems.append(f"{label(part)}: {error}")
                unsettled.add(part)
                continue
            if now == heads[part].fingerprint:
                continue
            wanted = (now or wanted)[: run_tags.DIGITS]
        changed.append((part, f"{label(part)} {wanted}"))
        unsettled.add(part)
    return changed, problems


def wanted_now(part: Part, study: Study, heads: Mapping[Part, Head]) -> str:
    """How the fingerprint begins that a part inside the graph, all of whose inputs have heads, should carry now."""
    return made_from(part, study, None, heads)[: run_tags.DIGITS]


def obsolete(study: Study, heads: Mapping[Part, Head], running: Mapping[Part, str]) -> list[Part]:
    """The parts whose run makes what nobody would ask for any more; `running` says what each was asked for.

    An input that is being made anew still counts with its old content: its new content may turn out to be the same,
    and hours of training are not thrown away on a maybe.
    """
    return [
        part
        for part, wanted in running.items()
        if part[1] not in partition_keys(STAGES[part[0]], study)
        or (
            not STAGES[part[0]].outside
            and all(upstream in heads for upstream in inputs_of(*part, study))
            and wanted_now(part, study, heads) != wanted
        )
    ]


def in_the_way(
    study: Study, heads: Mapping[Part, Head], running: Iterable[Part], queued: Collection[Part]
) -> list[Part]:
    """The parts whose run should make way, to be asked where no place is left for another run that loads a model.

    A run holds a place while something it stands on, whose settings or inputs have changed, waits for one: it would go
    on for hours for what is most likely obsolete already, and what would tell could not be made before its end.
    """
    waiting = {
        part
        for part in queued
        if STAGES[part[0]].loads_model
        and all(upstream in heads for upstream in inputs_of(*part, study))
        and (part not in heads or heads[part].fingerprint != made_from(part, study, None, heads))
    }
    return [part for part in running if STAGES[part[0]].loads_model and ancestors(part, study) & waiting]


def asks(
    todo: Iterable[tuple[Part, str]],
    endings_of: Callable[[str], Sequence[Ending]],
    in_store: Callable[[Part], bool],
    study: Study,
    now: float,
) -> tuple[list[Ask], list[Held]]:
    """The runs to start and what is held back, in the order given. What the store has is never held: it is free."""
    found, held = [], []
    version = study_version(study)
    for part, wanted in todo:
        endings = endings_of(wanted)
        item = decide(part, wanted, endings, study.automation, version, now)
        if isinstance(item, Held) and not STAGES[part[0]].outside and in_store(part):
            item = Ask(part, wanted, endings[0].run_id)
        (found if isinstance(item, Ask) else held).append(item)
    return found, held
