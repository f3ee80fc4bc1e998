"""What a study runs on and what that costs, and what was measured of the parts that need no model."""

from pydantic import Field

from m3po_dagster.cost.assumptions import Range
from m3po_dagster.settings import Settings


class Deployment(Settings):
    """What a study runs on; a plan for other machines or prices changes these. Money is in one currency of your own."""

    cards: int = Field(8, ge=1, description="GPUs at work at once, each on one shard or one training")
    gpu_hour: float | None = Field(None, ge=0, description="price of a GPU for an hour; null: no money is told")
    memory_gb: float = Field(64.0, gt=0, description="memory of the machine that a GPU's process may fill, GB")
    part_seconds: float = Field(60.0, gt=0, description="seconds between two parts: `generation.part_seconds`")
    storage_month: float = Field(0.023, ge=0, description="price of a GB stored for a month: S3 Standard's list price")
    thousand_writes: float = Field(0.005, ge=0, description="price of 1,000 PUT or LIST requests: S3's list price")
    thousand_reads: float = Field(0.0004, ge=0, description="price of 1,000 GET requests: S3's list price")


class Measured(Settings):
    """What one more of a thing takes, measured on a CPU; docs/scaling.md says by what."""

    memory_of_bytes: float = Field(
        5.4,
        gt=0,
        description="peak memory of the fullest step (a shard's sampled parts put together), in bytes of its rows",
    )
    row_bytes: float = Field(300.0, gt=0, description="bytes of a candidate's row in memory beside its tokens")
    filtered_bytes: float = Field(300.0, gt=0, description="bytes a prompt of filtered_instructions on disk")
    pair_bytes: float = Field(160.0, gt=0, description="bytes a pair of preference_pairs on disk")
    event_kb: float = Field(45.0, gt=0, description="kB in the event log a part that is made, its pictures included")
    run_kb: float = Field(230.0, gt=0, description="kB that a run of Dagster logs")
    reply_bytes: float = Field(2_680.0, gt=0, description="bytes of a judge's reply in the ledger, 8 answers graded")
    reply_memory: float = Field(170.0, gt=0, description="bytes of memory of a reply in the ledger's index")
    inspector_memory: float = Field(136.0, gt=0, description="bytes of memory a candidate in the inspector")
    inspector_us: float = Field(11.0, gt=0, description="microseconds a candidate of the inspector's first start")
    image_ms: Range = Field(Range(2.0, 4.0), description="CPU ms to look at an image the first time, once")
    image_us: float = Field(16.0, gt=0, description="CPU us an image to see that none changed, at every look outside")
    image_memory: float = Field(420.0, gt=0, description="bytes of memory an image to compare images in a shard's step")
