"""A benchmark's question, and the join of questions and answers on ids, never on order."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from m3po_dagster.image_files import ImageOutsideRoot, locate
from m3po_dagster.method.prompt import Message, Prompt
from m3po_dagster.s3_files.path import survey

SHOWN_IDS = 5


class BenchmarkError(ValueError):
    """A benchmark's files or answers are not what they should be; the message names file and line, or the ids."""


@dataclass(frozen=True)
class Question:
    """One question about one image; `question_id` is unique inside its benchmark, '/' parts its groups.

    `expected` is the label as the benchmark's file gives it.
    """

    question_id: str
    image_path: Path
    image_uri: str
    text: str
    expected: str | None

    @property
    def group(self) -> str:
        """The first part of the id: POPE's split, MME's category."""
        return self.question_id.partition("/")[0]

    def prompt(self) -> Prompt:
        """The question as a prompt for the model."""
        return Prompt(self.question_id, self.image_path, (Message("user", self.text),), self.expected)


def check_answers(questions: Sequence[Question], answers: Mapping[str, str]) -> None:
    """Raises BenchmarkError unless there is exactly one answer, a string, for each question; it names the ids."""
    ids = [question.question_id for question in questions]
    if not ids:
        raise BenchmarkError("there are no questions")
    known = set(ids)
    if len(known) < len(ids):
        seen: set[str] = set()
        twice = [name for name in ids if name in seen or seen.add(name)]
        raise BenchmarkError(f"{len(twice)} question ids are duplicates: {_shown(twice)}")
    if missing := [name for name in ids if name not in answers]:
        raise BenchmarkError(f"{len(missing)} of {len(ids)} answers are missing: {_shown(missing)}")
    if extra := [name for name in answers if name not in known]:
        raise BenchmarkError(f"{len(extra)} answers belong to no question: {_shown(extra)}")
    if other := [name for name in ids if not isinstance(answers[name], str)]:
        raise BenchmarkError(f"{len(other)} answers are not text: {_shown(other)}")


def benchmark_image(image_root: Path, uri: str, where: str) -> Path:
    """The image's path. Raises BenchmarkError, naming `where`, when it leads out of the root or there is no file."""
    try:
        path = locate(image_root, uri)
        survey([image_root])
        exists = path.is_file()
    except (ImageOutsideRoot, OSError) as error:
        raise BenchmarkError(f"{where}: {error}") from None
    if not exists:
        raise BenchmarkError(f"{where}: no image {uri} below {image_root}")
    return path


def read_text(path: Path) -> str:
    """The file's UTF-8 text. Raises BenchmarkError that names the file."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise BenchmarkError(f"{path}: no such file: correct its path") from None
    except UnicodeDecodeError as error:
        raise BenchmarkError(f"{path}: not UTF-8: {error}") from None
    except OSError as error:
        raise BenchmarkError(f"{path}: can't be read: {error}") from None


def read_json_lines(path: Path) -> Iterator[tuple[str, dict]]:
    """Where each record stands (file and line) and the record. Raises BenchmarkError that names it."""
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise BenchmarkError(f"{where}: not valid JSON: {error}") from None
        if not isinstance(record, dict):
            raise BenchmarkError(f"{where}: expected one JSON object a line")
        yield where, record


def unique_questions(path: Path, found: Iterable[tuple[str, Question]]) -> list[Question]:
    """The questions of a file, given with where each stands.

    Raises BenchmarkError for an id that stands twice, and for a file without questions.
    """
    questions: dict[str, Question] = {}
    for where, question in found:
        if question.question_id in questions:
            raise BenchmarkError(f"{where}: question_id {question.question_id} stands twice")
        questions[question.question_id] = question
    if not questions:
        raise BenchmarkError(f"{path}: no questions")
    return list(questions.values())


def id_field(record: Mapping, where: str) -> str:
    """A record's question_id, a number or text, as text. Raises BenchmarkError that names `where`."""
    value = record.get("question_id")
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        raise BenchmarkError(f"{where}: question_id is {str(value)[:40]!r}, expected a whole number or text")
    return _storable(str(value), "question_id", where)


def text_field(record: Mapping, key: str, where: str) -> str:
    """A record's non-empty string. Raises BenchmarkError that names `where` and the key."""
    if key not in record:
        raise BenchmarkError(f"{where}: {key} is missing")
    value = record[key]
    if not isinstance(value, str) or not value.strip():
        raise BenchmarkError(f"{where}: {key} is {str(value)[:40]!r}, expected text")
    return _storable(value, key, where)


def _storable(value: str, key: str, where: str) -> str:
    """The text. Raises BenchmarkError where no file name or table could hold it, though JSON can spell it."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        half = value[error.start]
        raise BenchmarkError(f"{where}: {key} holds {half!r}, half a surrogate pair, which is no character") from None
    if "\0" in value:
        raise BenchmarkError(f"{where}: {key} is {value[:40]!r}, expected text without NUL")
    return value


def _shown(ids: Sequence[str]) -> str:
    return ", ".join(ids[:SHOWN_IDS]) + (", ..." if len(ids) > SHOWN_IDS else "")
