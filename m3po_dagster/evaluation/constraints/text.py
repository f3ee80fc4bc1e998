"""How answers are cut into words, sentences and lists. Any script; words are parted by spaces or punctuation."""

import re
import unicodedata

# A point or a comma that does not stand between digits parts words; 3.5 and 1,000 are one each.
_PARTS = re.compile(r"(?<!\d)[.,]|[.,](?!\d)")
_JOINS = "'’-.,"
_MARK = re.compile(r"^\s*(?:[-*+•]|\d{1,3}[.)])\s+")
_BULLET = re.compile(r"^\s*(?:[-*+•])\s+\S")
# After an end mark and any closing quote, bracket or emphasis. After Chinese and Japanese marks there need be no space,
# and then emphasis is the next sentence's.
_END = re.compile(
    r"(?<=[.!?…])(?P<closing>[\"'”’)\]*_]*)\s+|(?<=[。！？])(?:[”’」』）*_]+(?=\s|$)|[”’」』）]*)\s*",
)
# An underscore, which is emphasis here, is of a word for \b.
_NO_END = re.compile(r"(?<![^\W_])(?:mr|mrs|ms|dr|prof|st|vs|e\.g|i\.e|(?-i:[A-Z]))\.[*_]*$", re.IGNORECASE)
_WITHOUT_SPACES = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR")


def words(text: str) -> list[str]:
    """The words as they stand; "don't", "well-known" and "3.5" are one each."""
    kept = (
        character if _is_of_a_word(character) or character in _JOINS else " "
        for character in _PARTS.sub(" ", unicodedata.normalize("NFC", text))
    )
    return [word for part in "".join(kept).split() if (word := part.strip(_JOINS))]


def sentences(text: str) -> list[str]:
    """The sentences, list marks removed. A line's end ends a sentence; titles, initials and "e.g." do not.

    A sentence may open with a small letter, but not after a closing quote, bracket or emphasis: 'He said "Go!" and
    left.' is one.
    """
    found = []
    for line in text.splitlines():
        line, start = _MARK.sub("", line), 0
        for end in _END.finditer(line):
            begun = line[start : end.end()].strip()
            goes_on = end["closing"] and line[end.end() :][:1].islower()
            if not goes_on and not _NO_END.search(begun):
                found.append(begun)
                start = end.end()
        found.append(line[start:].strip())
    return [sentence for sentence in found if any(map(str.isalnum, sentence))]


def bullets(text: str) -> list[str]:
    """The lines that are an item of a list: they open with -, *, + or • and a space."""
    return [line.strip() for line in text.splitlines() if _BULLET.match(line)]


def mentions(text: str, phrase: str) -> int:
    """How often the text holds a word or phrase as whole words, in any case and spacing."""
    text, pattern = folded(text), re.escape(folded(phrase))
    return sum(
        not any(map(_is_of_a_word, text[: match.start()][-1:] + text[match.end() :][:1]))
        for match in re.finditer(pattern, text)
    )


def cuts_a_word(before: str, after: str) -> bool:
    """Whether a cut between these two characters, or none at an end of the text, goes through a word.

    Where a script puts no spaces between words it can't be told, and does not.
    """
    both = (before, after)
    return all(both) and all(
        _is_of_a_word(one) and not unicodedata.name(one, "").startswith(_WITHOUT_SPACES) for one in both
    )


def folded(text: str) -> str:
    """As words and phrases are compared: case folded, single spaces."""
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def listed(texts: tuple[str, ...], last: str) -> str:
    """The texts in quotes as an enumeration: "a", "b" and "c"."""
    quoted = [f'"{text}"' for text in texts]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} {last} {quoted[-1]}"


def _is_of_a_word(character: str) -> bool:
    # Marks are part of the letters of many scripts, and no \\w.
    return character.isalnum() or unicodedata.category(character)[0] == "M"
