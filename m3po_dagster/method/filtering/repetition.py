"""Which questions mostly repeat themselves (section 4.1)."""

import re

from m3po_dagster.method.filtering.result import Dropped
from m3po_dagster.method.filtering.settings import RepetitionFilter

REPETITIVE = "repeats itself"

LONGEST_UNIT = 8
"""Characters of the longest unit whose immediate repetition is a run: `haha` has units of 2."""
# Scripts written without spaces between words: Thai, Lao, Burmese, Khmer, kana, Chinese characters.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")


def repetitive(question: str, settings: RepetitionFilter) -> Dropped | None:
    """Why the question is dropped: its share of repetition is above max_share."""
    share = repetition_share(question, settings.words, settings.runs)
    if share <= settings.max_share:
        return None
    return Dropped(REPETITIVE, f"{share:.0%} of the characters repeat, max_share is {settings.max_share:.0%}")


def repetition_share(text: str, words: int, runs: int) -> float:
    """The share of the characters that are not white space which are repetition, case apart; 0 for an empty text.

    Repetition is a word of a sequence of `words` words that stood in the text before, or a character of a unit of 1 to
    8 characters that stands `runs` times or more in a row. A word is what stands between white space, or one character
    of a script without spaces. Time grows with the length of the text, and no faster.
    """
    text = text.casefold()
    spans = [token.span() for token in _WORD.finditer(text)]
    tokens = [text[start:end] for start, end in spans]
    sequences = list(zip(*(tokens[first:] for first in range(words)), strict=False))
    in_runs = _runs(text, runs)
    if not in_runs and len(set(sequences)) == len(sequences):
        return 0.0
    repeated = bytearray(len(text))
    for start, end in in_runs:
        repeated[start:end] = b"\1" * (end - start)
    seen: set[tuple[str, ...]] = set()
    marked = 0
    for first, sequence in enumerate(sequences):
        if sequence in seen:
            for start, end in spans[max(first, marked) : first + words]:
                repeated[start:end] = b"\1" * (end - start)
            marked = first + words
        seen.add(sequence)
    return sum(repeated[start:end].count(1) for start, end in spans) / sum(map(len, tokens))


def _runs(text: str, times: int) -> list[tuple[int, int]]:
    run = re.compile(rf"(\S(?:\S{{0,{LONGEST_UNIT - 1}}}?))\1{{{times - 1},}}")
    return [match.span() for match in run.finditer(text)]
