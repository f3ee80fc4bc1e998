"""A plan at several sizes, for a person and for a script."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields

from m3po_dagster.cost.assumptions import Range
from m3po_dagster.cost.figures import shown
from m3po_dagster.cost.scale import JudgeLoad, Scale
from m3po_dagster.cost.told import ends, rounded


def scale_facts(scale: Scale) -> dict:
    """The figures as JSON values by their field's name; a range is [low, high], of three significant digits."""
    return {one.name: _value(getattr(scale, one.name)) for one in fields(scale)}


def _value(value: object) -> object:
    if isinstance(value, Range):
        return ends(value)
    if isinstance(value, tuple):
        return [{one.name: _value(getattr(judge, one.name)) for one in fields(JudgeLoad)} for judge in value]
    return rounded(value) if isinstance(value, float) else value


def table(rows: Sequence[Mapping]) -> Iterator[tuple[str, list[str]]]:
    """The rows a person reads: a label, and a cell for each size. `rows`: `told.facts` and `scale_facts` of each."""

    def line(label: str, name: str, unit: str = "") -> tuple[str, list[str]]:
        return f"{label}{', ' + unit if unit else ''}", [shown(row[name]) for row in rows]

    def hours(label: str, name: str) -> tuple[str, list[str]]:
        return f"{label}, GPU-hours", [shown(row["GPU-hours"][name]) for row in rows]

    yield line("candidates", "candidates")
    yield line("tokens generated", "generated tokens")
    yield hours("sampling", "sampling")
    if any(any(row["GPU-hours"]["scoring log-probs"]) for row in rows):
        yield hours("log-probs again", "scoring log-probs")
    for recipe, one in rows[0]["GPU-hours"]["training"].items():
        cells = [shown(row["GPU-hours"]["training"][recipe]["all"]) for row in rows]
        yield f"training {recipe}, {one['runs']} runs, GPU-hours", cells
    yield hours("all", "total")
    if rows[0]["gpu_money"] is not None:
        yield line("GPUs", "gpu_money", "money")
    yield line("shards", "shards")
    yield line("prompts a shard", "prompts_a_shard")
    yield line("answering a shard", "shard_hours", "hours")
    yield line("parts a shard", "parts_a_shard")
    yield line("memory to put a shard together", "shard_memory_gb", "GB")
    yield line("answering, on the clock", "answering_hours", "hours")
    yield line("all trainings, on the clock", "training_hours", "hours")
    yield line("store", "storage_gb", "GB")
    yield line("store", "storage_month", "money a month")
    yield line("artifacts", "artifacts")
    yield line("writes to the bucket", "writes")
    yield line("reads, images among them", "reads")
    yield line("requests to the bucket", "request_money", "money")
    yield from _judges(rows)
    yield line("event log", "event_log_gb", "GB")
    yield line("inspector's memory", "inspector_gb", "GB")
    yield line("inspector's first start", "inspector_minutes", "minutes")
    yield line("images, the first look", "images_first_hours", "CPU hours")
    yield line("images, each later look", "images_again_minutes", "CPU minutes")
    yield line("images compared, in each shard's step", "images_memory_gb", "GB")


def _judges(rows: Sequence[Mapping]) -> Iterator[tuple[str, list[str]]]:
    for number, judge in enumerate(rows[0]["judges"]):
        for label, name in (
            ("requests", "requests"),
            ("tokens in", "prompt tokens"),
            ("tokens out", "completion tokens"),
        ):
            yield f"{judge['name']}, {label}", [shown(row["judges"][number][name]) for row in rows]
        if judge["cost"] is not None:
            yield f"{judge['name']}, money", [shown(row["judges"][number]["cost"]) for row in rows]
    for number, judge in enumerate(rows[0]["loads"]):
        for label, name in (
            ("requests a second to keep pace", "requests_a_second"),
            ("ledger, GB", "ledger_gb"),
            ("ledger's index in memory, GB", "index_gb"),
        ):
            yield f"{judge['name']}, {label}", [shown(row["loads"][number][name]) for row in rows]
