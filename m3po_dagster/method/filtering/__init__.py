"""Which image-instruction pairs are kept (paper, section 4.1): every other one is dropped with a counted reason.

The paper says "high-quality image-instruction pairs" and gives no rule; docs/filters.md describes those used here.
"""

from m3po_dagster.method.filtering.contamination import BenchmarkImages, Leak, contaminated
from m3po_dagster.method.filtering.conversation import questions
from m3po_dagster.method.filtering.identity import PROMPT_ID_CHARACTERS, prompt_id
from m3po_dagster.method.filtering.images_seen import ImagesSeen
from m3po_dagster.method.filtering.pipeline import filter_rows
from m3po_dagster.method.filtering.result import Drops, FilterResult
from m3po_dagster.method.filtering.settings import FilterSettings

__all__ = [
    "PROMPT_ID_CHARACTERS",
    "BenchmarkImages",
    "Drops",
    "FilterResult",
    "FilterSettings",
    "ImagesSeen",
    "Leak",
    "contaminated",
    "filter_rows",
    "prompt_id",
    "questions",
]
