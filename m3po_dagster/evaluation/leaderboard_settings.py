"""What a study says of its leaderboard."""

from pydantic import Field

from m3po_dagster.settings import PartitionName, Settings


class LeaderboardSettings(Settings):
    """What the leaderboard compares."""

    compare_with: tuple[PartitionName, ...] | None = Field(
        None,
        description="recipes that all are compared with, besides base; null: the one named m3po, if there is one",
    )
