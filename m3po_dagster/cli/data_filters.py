"""What a study's filters make of a sample of a dataset: the real filters, on the images that were decoded."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from m3po_dagster.datasets.inspection import Inspection
    from m3po_dagster.method.filtering import Drops, FilterSettings


@dataclass(frozen=True)
class Sifted:
    """Prompts of the sample that were asked, those that are kept, and what each filter dropped.

    `beyond`: records of the sample's images that were not looked at, for an image has too many.
    """

    asked: int
    kept: int
    drops: "list[Drops]"
    beyond: int

    @property
    def share(self) -> float:
        """Share of prompts that are kept; 1 where the sample holds none."""
        return self.kept / self.asked if self.asked else 1.0

    def facts(self) -> dict:
        """What was kept and dropped, as JSON values."""
        return {
            "prompts": self.asked,
            "kept": self.kept,
            "records left out": self.beyond,
            "dropped": [
                {
                    "filter": one.filter,
                    "reason": one.reason,
                    "prompts": one.count,
                    "example": one.examples[0][1],
                }
                for one in self.drops
                if one.count
            ],
        }


def sift(name: str, found: "Inspection", settings: "FilterSettings", turns: Literal["first", "last", "each"]) -> Sifted:
    """The filters over the records of an inspection's sample of images.

    Near duplicates show only where both are in the sample, and the images of the study's own benchmarks are not looked
    at. A record that is dropped whole counts with the prompts that the inspection counted of it, be it none.
    """
    from m3po_dagster.method.filtering import filter_rows
    from m3po_dagster.method.filtering.conversation import questions
    from m3po_dagster.method.filtering.result import Dropped

    # In the file's order: the first of several equal prompts is the one that stays.
    rows = sorted((row for look in found.images.looked for row in look.rows(name)), key=lambda row: row.record)
    result = filter_rows(rows, settings, turns=turns)
    asked = 0
    for row in rows:
        of_row = questions(row.conversation, turns)
        asked += 0 if isinstance(of_row, Dropped) else sum(question.unusable is None for question in of_row)
    return Sifted(asked, len(result.kept), result.drops, sum(look.sampled.beyond for look in found.images.looked))
