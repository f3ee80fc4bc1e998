"""Cuts an answer into the statements that a CLIP text tower can take one at a time."""

import re
from collections.abc import Callable

# After an end mark and any closing quote, before something that opens a sentence. Initials, titles, "e.g." and a list's
# numbers don't end one.
_BOUNDARY = re.compile(
    r"(?<!\b[A-Z0-9]\.)(?<!\b(?:Mr|Ms|Dr|St|vs)\.)(?<!\b(?:Mrs|e\.g|i\.e)\.)"
    r"(?:(?<=[.!?])|(?<=[.!?][\"')]))\s+(?=[\"'(]?[A-Z0-9])"
)
_BULLET = re.compile(r"^\s*(?:[-*\u2022]|\d{1,2}[.)])\s+")


def split_sentences(text: str) -> list[str]:
    """The sentences of `text` in order, list marks removed; empty when nothing but space and marks is there."""
    sentences = []
    for line in re.split(r"\n+", text):
        for sentence in _BOUNDARY.split(_BULLET.sub("", line)):
            if re.search(r"\w", sentence):
                sentences.append(" ".join(sentence.split()))
    return sentences


def as_statements(question: str, answer: str, short_words: int) -> list[str]:
    """The answer's sentences; a sole sentence of at most `short_words` words is joined to its question.

    CLIP can't see the instruction: "Yes." or "Two." alone matches every image alike.
    """
    sentences = split_sentences(answer)
    if len(sentences) == 1 and len(sentences[0].split()) <= short_words:
        return [f"{' '.join(question.split())} {sentences[0]}"]
    return sentences


def windows(text: str, fits: Callable[[str], bool]) -> list[str]:
    """`text` in consecutive pieces that each pass `fits`, halved at a word (a single long word: at a character).

    Nothing is lost: the pieces joined by spaces are the words of `text`.
    """
    if fits(text):
        return [text]
    words = text.split()
    if len(words) > 1:
        middle = len(words) // 2
        return windows(" ".join(words[:middle]), fits) + windows(" ".join(words[middle:]), fits)
    if len(text) < 2:
        raise ValueError(f"the text tower's context is too short for the single character {text!r}")
    return windows(text[: len(text) // 2], fits) + windows(text[len(text) // 2 :], fits)
