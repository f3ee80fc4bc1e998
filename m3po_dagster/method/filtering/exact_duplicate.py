"""Which prompts ask the same of the same image as an earlier one (section 4.1)."""

from collections.abc import Sequence

from m3po_dagster.method.filtering.identity import normalised_id, prompt_id
from m3po_dagster.method.filtering.result import Dropped
from m3po_dagster.method.prompt import Message

DUPLICATE = "exact duplicate"
SAME_PROMPT = "same prompt"


class Repeats:
    """The prompts met so far, each by what makes two of them one."""

    def __init__(self, normalised: bool) -> None:
        """Prompts that are equal to the letter are one; `normalised`: up to case, spacing and compatibility forms."""
        self.reason = DUPLICATE if normalised else SAME_PROMPT
        self._key = normalised_id if normalised else prompt_id
        self._first: dict[str, str] = {}

    def __call__(self, item_id: str, image_sha256: str, messages: Sequence[Message]) -> Dropped | None:
        """Why the prompt is dropped; the first of its kind is not, and is remembered."""
        first = self._first.setdefault(self._key(image_sha256, messages), item_id)
        return None if first == item_id else Dropped(self.reason, f"asks the same of the same image as {first}")
