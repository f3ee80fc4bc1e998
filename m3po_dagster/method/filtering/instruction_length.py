"""Which questions are too short or too long (section 4.1)."""

from m3po_dagster.method.filtering.result import Dropped
from m3po_dagster.method.filtering.settings import InstructionLengthFilter

TOO_SHORT = "instruction too short"
TOO_LONG = "instruction too long"


def wrong_length(question: str, settings: InstructionLengthFilter) -> Dropped | None:
    """Why the question is dropped."""
    characters = len(question.strip())
    if characters < settings.min_characters:
        return Dropped(TOO_SHORT, f"{characters} characters, min_characters is {settings.min_characters}")
    if characters > settings.max_characters:
        return Dropped(TOO_LONG, f"{characters} characters, max_characters is {settings.max_characters}")
    return None
