"""What a study's filters make of a sample of a dataset: the real filters, on the images that were decoded."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from m3po_dagster.datasets.inspection import Inspection
    from m3po_dagster.method.filtering import Drops, FilterSettings


@dataclass(frozen=True)
class Sifted:
    """Prompts of the sample that were asked, those that are kept, and what each filter dropped."""

    asked: int
    kept: int
    drops: "list[Drops]"

    @property
    def share(self) -> float:
        """Share of prompts that are kept; 1 where the sample holds none."""
        return self.kept / self.asked if self.asked else 1.0

    def facts(self) -> dict:
        """What was kept and dropped, as JSON values."""
        return {
            "prompts": self.asked,
            "kept": self.kept,
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
    """The filters over the sample of an inspection, a record an image.

    Duplicates show only where both are in the sample, and the images of the study's own benchmarks are not looked at.
    """
    from m3po_dagster.method.filtering import filter_rows

    rows = [look.row(name) for look in found.images.looked]
    result = filter_rows(rows, settings, turns=turns)
    return Sifted(len(result.kept) + len(result.dropped), len(result.kept), result.drops)
