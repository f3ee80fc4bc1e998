"""What filtering gives: kept prompts, dropped ones, and what each filter dropped."""

from collections.abc import Iterable
from dataclasses import dataclass, field

EXAMPLES = 3
"""Dropped items shown for each reason."""


@dataclass(frozen=True)
class Dropped:
    """Why a record or a prompt is dropped; `detail` names the field or value that led to it."""

    reason: str
    detail: str


@dataclass
class Drops:
    """What one filter dropped for one reason: how many, and the first few as (item_id, detail)."""

    filter: str
    reason: str
    count: int = 0
    examples: list[tuple[str, str]] = field(default_factory=list)


class FilterResult:
    """Kept prompts, as rows of filtered_instructions, and dropped items, as rows of dropped, in dataset order.

    `drops` has a row for each reason of each filter that ran, in the order of the filters, those that dropped nothing
    included. `assistant_first` counts the records whose conversation starts with an assistant turn, which was left out.
    """

    def __init__(self, reasons: Iterable[tuple[str, str]]) -> None:
        self.kept: list[dict] = []
        self.dropped: list[dict] = []
        self.assistant_first = 0
        self._drops = {key: Drops(*key) for key in reasons}

    @property
    def drops(self) -> list[Drops]:
        """What each filter dropped, by reason."""
        return list(self._drops.values())

    def drop(self, item_id: str, source_id: str, by: str, why: Dropped) -> None:
        """Counts an item that the filter named `by` drops. KeyError for a reason that the filter doesn't have."""
        detail = f"{why.detail} (id {source_id})"
        self.dropped.append({"item_id": item_id, "reason": why.reason, "detail": detail})
        drops = self._drops[by, why.reason]
        drops.count += 1
        if len(drops.examples) < EXAMPLES:
            drops.examples.append((item_id, detail))
