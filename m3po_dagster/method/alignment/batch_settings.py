"""How a served judge is asked through its Batch API."""

from pydantic import Field

from m3po_dagster.settings import Settings


class BatchSettings(Settings):
    """How requests are put into batches, and how patiently these are waited for."""

    poll_seconds: float = Field(
        60.0,
        gt=0,
        le=3600,
        description="seconds between two looks at a batch; up to ten times that while nothing happens",
    )
    completion_window: str = Field(
        "24h", pattern=r"^[1-9][0-9]*[hd]$", description="within which the service promises to be done; OpenAI has 24h"
    )
    max_requests: int = Field(50_000, ge=1, le=50_000, description="requests in one batch, at most")
    max_bytes: int = Field(
        200_000_000, ge=1, le=200_000_000, description="bytes of one batch's file of requests, at most"
    )
    re_asks: int = Field(
        2,
        ge=0,
        le=10,
        description="times that a request is submitted anew which expired or met a busy or failing service",
    )
    max_wait_hours: float = Field(
        30.0,
        gt=0,
        le=720,
        description="hours to wait for one batch; after that the step fails, and a re-run goes on waiting",
    )
