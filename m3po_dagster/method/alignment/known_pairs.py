"""Pairs of answers whose order is known: what a judge must get right before its scores are trained on.

A JSON Lines file, one object a line: `image` (a path relative to the file), `question`, `better`, `worse`, and where a
scorer compares with it the dataset's answer as `reference`; what else an object holds is left alone.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, StringConstraints, ValidationError, model_validator

from m3po_dagster.image_files import ImageOutsideRoot, ImageRoot
from m3po_dagster.method.filtering import prompt_id
from m3po_dagster.method.prompt import Message, Prompt

_Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class KnownPairsError(ValueError):
    """A file of known pairs is not what it should be; the message names file, line and field."""


class _Line(BaseModel):
    image: _Text
    question: _Text
    better: _Text
    worse: _Text
    reference: _Text | None = None

    @model_validator(mode="after")
    def _differ(self) -> "_Line":
        if self.better == self.worse:
            raise ValueError("better and worse are the same text")
        return self


@dataclass(frozen=True)
class KnownPair:
    """A prompt with a better and a worse answer. Pairs of one image and question have equal prompts."""

    prompt: Prompt
    better: str
    worse: str


def read_known_pairs(path: Path) -> list[KnownPair]:
    """The pairs of a file, in its order.

    Raises FileNotFoundError for a missing file and KnownPairsError for an empty one, and for a line that is no JSON
    object, lacks a field, or whose image is not there.
    """
    root, hashes, pairs = ImageRoot(path.parent), {}, []
    for where, line in _lines(path):
        image = _image(root, line.image, where)
        if image not in hashes:
            hashes[image] = hashlib.sha256(image.read_bytes()).hexdigest()
        messages = (Message("user", line.question),)
        prompt = Prompt(prompt_id(hashes[image], messages), image, messages, line.reference)
        pairs.append(KnownPair(prompt, line.better, line.worse))
    return pairs


def known_pair_files(path: Path) -> list[Path]:
    """The file and the images it names, each once, in its order. Raises as `read_known_pairs`."""
    root = ImageRoot(path.parent)
    return list(dict.fromkeys([path, *(_image(root, line.image, where) for where, line in _lines(path))]))


def _lines(path: Path) -> Iterator[tuple[str, _Line]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path} does not exist (judge.quality.known_pairs of the study). Correct the path; the embedded world's "
            "files are written by `m3po world write`."
        ) from None
    except UnicodeDecodeError as error:
        raise KnownPairsError(f"{path}: not UTF-8: {error}") from None
    numbered = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if not numbered:
        raise KnownPairsError(f"{path} holds no pairs: give at least one, or leave judge.quality.known_pairs out")
    for number, line in numbered:
        where = f"{path}, line {number}"
        try:
            yield where, _Line.model_validate_json(line)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"])
            raise KnownPairsError(f"{where}: {f'{field}: ' if field else ''}{first['msg']}") from None


def _image(root: ImageRoot, uri: str, where: str) -> Path:
    try:
        path = root.locate(uri)
        exists = path.is_file()
    except (ImageOutsideRoot, OSError) as error:
        raise KnownPairsError(f"{where}: image: {error}") from None
    if not exists:
        raise KnownPairsError(f"{where}: image: no file {uri} below {root.folder}")
    return path
