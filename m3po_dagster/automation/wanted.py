"""What to start, hold back or stop: decided from levels, never from changes, so that nothing missed is lost for good.

A tick compares what is with what should be. A part is asked for when all it stands on is settled and nobody is at work
on it; one that was missed, failed or was killed is simply still due at the next tick.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from m3po_dagster.graph import STAGES, Head, Part, inputs_of, label, made_from, part_fingerprint
from m3po_dagster.identity import Identities
from m3po_dagster.study import Study

WANTED_DIGITS = 32
MOST_OBSOLETE = 10
"""Runs in a row that found nothing to do before something is taken to be wrong."""

Ending = Literal["made", "failed", "cancelled", "obsolete"]


@dataclass(frozen=True)
class Ask:
    """A run to start: for one part, for what it should be now, and which attempt at it this is."""

    part: Part
    wanted: str
    attempt: int

    @property
    def run_key(self) -> str:
        """Dagster starts one run a key; the attempt lets the same thing be asked for again when it was lost."""
        return f"{label(self.part)}:{self.wanted}:{self.attempt}"


@dataclass(frozen=True)
class Held:
    """A part that is due and not started, and why."""

    part: Part
    why: str


def decide(part: Part, wanted: str, endings: Sequence[Ending], max_failures: int) -> Ask | Held:
    """Whether to try once more; `endings` are those of earlier runs for the same thing, the newest first."""
    failures = obsolete = 0
    for ending in endings:
        if ending == "made":
            break
        if ending == "cancelled":
            return Held(part, "its run was cancelled by hand")
        failures += ending == "failed"
        obsolete += ending == "obsolete"
    if failures >= max_failures:
        return Held(part, f"{failures} runs failed")
    if obsolete >= MOST_OBSOLETE and failures == 0 and len(set(endings[:MOST_OBSOLETE])) == 1:
        return Held(part, f"{obsolete} runs in a row found it changed meanwhile")
    return Ask(part, wanted, len(endings))


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
        wanted = f"first look at {label(part)}"
        if part in heads:
            try:
                now = part_fingerprint(part, study, identities, heads)
            except (OSError, ValueError) as error:
                problems.append(f"{label(part)}: {error}")
                unsettled.add(part)
                continue
            if now == heads[part].fingerprint:
                continue
            wanted = (now or wanted)[:WANTED_DIGITS]
        changed.append((part, wanted))
        unsettled.add(part)
    return changed, problems


def wanted_now(part: Part, study: Study, heads: Mapping[Part, Head]) -> str:
    """How the fingerprint begins that a part inside the graph, all of whose inputs have heads, should carry now."""
    return made_from(part, study, None, heads)[:WANTED_DIGITS]


def obsolete(study: Study, heads: Mapping[Part, Head], running: Mapping[Part, str]) -> list[Part]:
    """The parts whose run makes what nobody would ask for any more; `running` says what each was asked for.

    An input that is being made anew still counts with its old content: its new content may turn out to be the same,
    and hours of training are not thrown away on a maybe.
    """
    return [
        part
        for part, wanted in running.items()
        if not STAGES[part[0]].outside
        and all(upstream in heads for upstream in inputs_of(*part, study))
        and wanted_now(part, study, heads) != wanted
    ]


def asks(
    todo: Iterable[tuple[Part, str]], endings_of: Callable[[str], Sequence[Ending]], max_failures: int
) -> tuple[list[Ask], list[Held]]:
    """The runs to start and what is held back, in the order given."""
    decided = [decide(part, wanted, endings_of(wanted), max_failures) for part, wanted in todo]
    return [item for item in decided if isinstance(item, Ask)], [item for item in decided if isinstance(item, Held)]
