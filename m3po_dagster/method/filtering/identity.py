"""What makes two prompts one: the bytes of the image and the conversation (section 3.1)."""

import hashlib
import json
from collections.abc import Callable, Sequence

from m3po_dagster.method.filtering.unicode_form import to_form
from m3po_dagster.method.prompt import Message

PROMPT_ID_CHARACTERS = 32


def prompt_id(image_sha256: str, messages: Sequence[Message]) -> str:
    """The first 32 hexadecimal digits of the sha256 over the image's hash and the conversation's canonical JSON."""
    return _digest(image_sha256, messages, str)


def normalised_id(image_sha256: str, messages: Sequence[Message]) -> str:
    """As `prompt_id`, but the same for turns that differ only in case, spacing and compatibility forms (NFKC)."""
    return _digest(image_sha256, messages, _normalised)


def _digest(image_sha256: str, messages: Sequence[Message], form: Callable[[str], str]) -> str:
    identity = [image_sha256, [[message.role, form(message.text)] for message in messages]]
    canonical = json.dumps(identity, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()[:PROMPT_ID_CHARACTERS]


def _normalised(text: str) -> str:
    return " ".join(to_form("NFKC", text).casefold().split())
