"""What a study says of its automation: what starts by itself, and when."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from m3po_dagster.settings import Settings


def _cron(text: str) -> str:
    from dagster._utils.schedules import is_valid_cron_schedule

    if not is_valid_cron_schedule(text):
        raise ValueError(f"{text!r} is no cron expression: give minute, hour, day of month, month, day of week")
    return text


Cron = Annotated[str, AfterValidator(_cron)]


class AutomationSettings(Settings):
    """What Dagster's daemon does by itself. Whatever it says, everything can be started by hand."""

    running: bool = Field(
        False,
        description="whether sensors and schedules run from the start; the UI switches each on and off either way",
    )
    look_every: int = Field(
        60, ge=5, description="seconds between two looks at dataset, base model, judge, benchmarks and recipes"
    )
    training: Literal["sensor", "schedule", "by_hand"] = Field(
        "sensor",
        description="what starts lora_adapter. sensor: as soon as all its pairs are up to date; schedule: at "
        "training_schedule, if they are; by_hand: nothing but you",
    )
    training_schedule: Cron = Field("0 1 * * *", description="when a scheduled training may start, in UTC")
    judge_check: Cron = Field(
        "0 3 * * *",
        description="when a served judge is asked its probe set again, in UTC: other answers are another judge",
    )
    max_failures: int = Field(
        3, ge=1, description="runs that may fail for one and the same result before it is held for you to look at"
    )
    retry_after: float = Field(
        60.0, ge=0, description="seconds before a failed run is tried again; four times as long each further time"
    )
