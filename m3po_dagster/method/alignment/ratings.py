"""Human ratings of answers, read from a CSV file: every error names the file, the line and the column."""

import csv
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from m3po_dagster.image_files import ImageOutsideRoot, ImageRoot
from m3po_dagster.method.filtering import prompt_id
from m3po_dagster.method.prompt import Message, Prompt

COLUMNS = ("image", "question", "answer", "rating")
RATER = "rater"
TOLD_AT_ONCE = 10


class RatingsError(ValueError):
    """A file of ratings that can't be used; a line a problem."""


@dataclass(frozen=True)
class RatedAnswer:
    """One answer to one prompt with every rating it got; higher is better, on the raters' own scale."""

    prompt: Prompt
    image_sha256: str
    answer: str
    ratings: tuple[float, ...]

    @property
    def rating(self) -> float:
        """The mean of its ratings."""
        return math.fsum(self.ratings) / len(self.ratings)


def read_ratings(path: Path, image_root: Path | None = None) -> list[RatedAnswer]:
    """The rated answers in the order in which each first appears.

    The columns `image` (a path below `image_root`, or below the file's own folder), `question`, `answer` and `rating`
    are read, and `rater` where there is one; others are ignored. Several rows of one answer are several raters. Raises
    RatingsError, which names the file, the line and the column, for what can't be used; OSError when the file can't be
    read.
    """
    problems: list[str] = []
    images = _Images(image_root or path.parent)
    found: dict[tuple[str, str, str], _Row] = {}
    for line, row in _rows(path):
        try:
            image, sha256 = images.read(row["image"])
            question, rating = _given(row, "question"), _number(row["rating"])
            entry = found.setdefault((sha256, question, row["answer"]), _Row(image, [], {}))
            rater = row.get(RATER)
            if rater is not None and (before := entry.raters.setdefault(rater, line)) != line:
                raise _Problem(RATER, f"{rater!r} rated this answer in line {before} already")
        except _Problem as problem:
            problems.append(f"{path}, line {line}, column {problem}")
            continue
        entry.ratings.append(rating)
    if problems:
        more = len(problems) - TOLD_AT_ONCE
        raise RatingsError("\n".join(problems[:TOLD_AT_ONCE] + ([f"and {more} more"] if more > 0 else [])))
    if not found:
        raise RatingsError(f"{path}: no ratings, only a header")
    return [
        RatedAnswer(_prompt(row.image, sha256, question), sha256, answer, tuple(row.ratings))
        for (sha256, question, answer), row in found.items()
    ]


def by_prompt(rated: Sequence[RatedAnswer]) -> dict[Prompt, list[int]]:
    """Prompt -> the places of its answers in `rated`."""
    places: dict[str, list[int]] = {}
    for place, one in enumerate(rated):
        places.setdefault(one.prompt.prompt_id, []).append(place)
    return {rated[some[0]].prompt: some for some in places.values()}


@dataclass(frozen=True)
class _Row:
    image: Path
    ratings: list[float]
    raters: dict[str, int]


class _Problem(Exception):
    def __init__(self, column: str, what: str) -> None:
        super().__init__(f"{column}: {what}")


class _Images:
    """Images by the path that the file gives, each read once."""

    def __init__(self, root: Path) -> None:
        self._root = ImageRoot(root)
        self._known: dict[str, tuple[Path, str]] = {}

    def read(self, name: str) -> tuple[Path, str]:
        if name not in self._known:
            if not name.strip():
                raise _Problem("image", "is empty")
            try:
                path = self._root.locate(name)
                self._known[name] = path, hashlib.sha256(path.read_bytes()).hexdigest()
            except ImageOutsideRoot as error:
                raise _Problem("image", str(error)) from None
            except OSError as error:
                raise _Problem("image", f"{path} can't be read: {error.strerror or error}") from None
        return self._known[name]


def _rows(path: Path) -> Iterator[tuple[int, Mapping[str, str]]]:
    """The number of the line at which each row begins, and its cells by column."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, None)
            if header is None:
                raise RatingsError(f"{path}: is empty; it needs the columns {', '.join(COLUMNS)}")
            _check(path, header)
            line = reader.line_num + 1
            for cells in reader:
                if cells and len(cells) != len(header):
                    raise RatingsError(
                        f"{path}, line {line}: {len(cells)} cells where the header has {len(header)} columns; a text "
                        "with a comma or a line break stands in double quotes"
                    )
                if cells:
                    yield line, dict(zip(header, cells, strict=True))
                line = reader.line_num + 1
    except csv.Error as error:
        raise RatingsError(f"{path}, line {reader.line_num}: not valid CSV: {error}") from None
    except UnicodeDecodeError as error:
        raise RatingsError(f"{path}: not UTF-8 (byte {error.object[error.start]:#04x}): save it as UTF-8") from None


def _check(path: Path, header: Sequence[str]) -> None:
    if missing := [name for name in COLUMNS if name not in header]:
        raise RatingsError(f"{path}, line 1: no column {missing[0]!r}; there are {', '.join(map(repr, header))}")
    if twice := [name for name in (*COLUMNS, RATER) if header.count(name) > 1]:
        raise RatingsError(f"{path}, line 1: the column {twice[0]!r} stands twice")


def _given(row: Mapping[str, str], column: str) -> str:
    if not row[column].strip():
        raise _Problem(column, "is empty")
    return row[column]


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise _Problem("rating", f"{text!r} is no number (decimals take a point)") from None
    if not math.isfinite(number):
        raise _Problem("rating", f"{text!r} is no finite number")
    return number


def _prompt(image: Path, sha256: str, question: str) -> Prompt:
    asked = (Message("user", question),)
    return Prompt(prompt_id(sha256, asked), image, asked)
