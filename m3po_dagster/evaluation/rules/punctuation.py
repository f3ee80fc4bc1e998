"""The punctuation step of VQA evaluation (VQA a013f00), which VLMEvalKit (e8e78f0) also puts before yes and no."""

import re

MARKS = ';/[]"{}()=+\\_-><@`,?!'
MAX_PERIODS = 32
"""The tools pass re.UNICODE, whose value is 32, where `sub` takes the number of replacements."""

LONE_PERIOD = re.compile(r"(?<!\d)\.(?!\d)")
"""VLMEvalKit: a period with no digit on either side."""

_THOUSANDS = re.compile(r"\d,\d")


def strip_punctuation(text: str, period: re.Pattern[str]) -> str:
    """Deletes or blanks every mark, then deletes the first 32 matches of `period`. Apostrophes and colons stay.

    A mark is deleted everywhere if it stands beside a space anywhere in the text, and all marks are if a comma stands
    between two digits anywhere; else it becomes a space.
    """
    thousands = _THOUSANDS.search(text) is not None
    table = {ord(mark): "" if thousands or f"{mark} " in text or f" {mark}" in text else " " for mark in MARKS}
    return period.sub("", text.translate(table), count=MAX_PERIODS)
