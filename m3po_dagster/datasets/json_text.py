"""JSON values out of text that a stranger wrote: what no Python value should be made of is named, not raised."""

import hashlib
import json
import re
from dataclasses import dataclass

MAX_DEPTH = 100
"""Deepest nesting that is read. Python's own limit counts the caller's stack in: a record would be good or bad by who
reads it."""

# Not strict: a line feed or a tab in a string breaks no record, and what may not stand in a text is judged there.
_DECODER = json.JSONDecoder(strict=False)
_SPACE = re.compile(r"[ \t\n\r]*")
_BRACKETS = re.compile(r'"(?:[^"\\]++|\\.)*+(?P<closed>"?)|(?P<opening>[\[{])|[\]}]', re.DOTALL)
_SCALAR = re.compile(r"[^\s,\]}]*")


@dataclass(frozen=True)
class Unreadable:
    """A value that is whole but isn't read; `detail` says why, `sha256` hashes its text."""

    detail: str
    sha256: str


def decode(text: str, start: int = 0) -> tuple[object, int]:
    """The JSON value that starts at a character, and the character after it.

    A value nested deeper than MAX_DEPTH, or with a number of more digits than Python's int takes, comes back as
    Unreadable. NaN and Infinity are numbers, and strings may hold control characters as they are. Raises
    json.JSONDecodeError for a value that is broken or cut short.
    """
    try:
        value, end = _DECODER.raw_decode(text, start)
    except json.JSONDecodeError:
        raise
    except RecursionError:
        detail, end = _too_deep(), _extent(text, start)[0]
    except ValueError as error:  # int() takes no number of thousands of digits
        detail, end = f"a number can't be read: {error}", _extent(text, start)[0]
    else:
        brackets = text.count("[", start, end) + text.count("{", start, end)
        if brackets <= MAX_DEPTH or _extent(text, start)[1] <= MAX_DEPTH:
            return value, end
        detail = _too_deep()
    return Unreadable(detail, hashlib.sha256(text[start:end].encode("utf-8")).hexdigest()), end


def loads(text: str) -> object:
    """The one JSON value that the text is, as `decode` gives it. Raises json.JSONDecodeError."""
    value, end = decode(text, skip_space(text, 0))
    if (rest := skip_space(text, end)) < len(text):
        raise json.JSONDecodeError("Extra data", text, rest)
    return value


def said_by(error: json.JSONDecodeError) -> str:
    """What is wrong, as a whole sentence: the decoder's own may end before the position that it leaves to others."""
    return error.msg.removesuffix(" at").removesuffix(" starting")


def skip_space(text: str, start: int) -> int:
    """The first character from `start` that is no white space, or the text's end."""
    return _SPACE.match(text, start).end()


def canonical_sha256(value: object) -> str:
    """Hash of the value's canonical JSON: keys in order, no spaces, whatever the file's layout was.

    Values that JSON has no form for, which columns of a table can hold, enter as their text.
    """
    # ASCII escapes: half a surrogate pair, which JSON can hold, has no UTF-8 form.
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


def _extent(text: str, start: int) -> tuple[int, int]:
    """Where the value at `start` ends, and how deep it is nested, from its brackets alone."""
    if text[start] not in "[{":
        return _SCALAR.match(text, start).end(), 0
    depth = deepest = 0
    for token in _BRACKETS.finditer(text, start):
        if token["closed"] == "":
            break
        if token["closed"]:
            continue
        depth += 1 if token["opening"] else -1
        deepest = max(deepest, depth)
        if depth == 0:
            return token.end(), deepest
    raise json.JSONDecodeError("Brackets without an end", text, len(text))


def _too_deep() -> str:
    return f"nested more than {MAX_DEPTH} deep"
