"""Untrusted text made safe to look at: what a reader can't see is shown as a mark, what is endless is cut.

Escaping is the templates' work (autoescape is on); this is about characters that deceive the eye.
"""

import re

SHOWN_CHARACTERS = 4000

# Line feeds and tabs stay. The rest of C0, DEL, C1, and everything that turns or hides text gets a visible name.
_INVISIBLE = re.compile(
    "[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f"
    "\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)
_C0_PICTURES = 0x2400
_DEL, _DEL_PICTURE = 0x7F, "\u2421"


_NUMBERS = re.compile(r"\[errno \d+\] ?", re.IGNORECASE)


def visible(text: object) -> str:
    """The text with control, direction and zero-width characters replaced by marks that can be seen.

    U+0000 to U+001F become their control pictures, others their code point in angle quotes. Lone surrogates, which no
    page can hold, become question marks.
    """
    plain = str(text)
    if plain.isascii() and plain.isprintable():
        return plain
    clean = plain.encode("utf-8", "replace").decode("utf-8")
    return _INVISIBLE.sub(_mark, clean)


def _mark(match: re.Match) -> str:
    code = ord(match[0])
    if code < 0x20:
        return chr(_C0_PICTURES + code)
    return _DEL_PICTURE if code == _DEL else f"\u2039U+{code:04X}\u203a"


def cut(text: object, length: int = SHOWN_CHARACTERS) -> str:
    """At most `length` characters of the text; `cut_off` says how many are missing."""
    return str(text)[:length]


def cut_off(text: object, length: int = SHOWN_CHARACTERS) -> int:
    """How many characters `cut` leaves out."""
    return max(0, len(str(text)) - length)


def number(value: float | None, digits: int = 3) -> str:
    """A figure for people; a dash where there is none."""
    if value is None or value != value:
        return "\u2013"
    return f"{value:.{digits}f}".replace("-", "\u2212")


def figure(value: object) -> str:
    """What a score column holds: a whole number beyond 1 is a count and has no digits after the point."""
    if isinstance(value, float) and abs(value) > 1 and value.is_integer():
        return number(value, 0)
    return number(value) if value is None or isinstance(value, float) else visible(value)


def share(value: float | None) -> str:
    """A share in per cent; a dash where there is none."""
    return "\u2013" if value is None else f"{100 * value:.1f} %"


def count(value: int) -> str:
    """A whole number with separated thousands."""
    return f"{value:,}"


def words(name: str) -> str:
    """A name in code as words: no_loser_above_min_gap -> no loser above min gap."""
    return name.replace("_", " ")


def reason(error: Exception) -> str:
    """An error as a person reads it: without the system's numbers, with the file where it is known."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return _NUMBERS.sub("", str(error))
