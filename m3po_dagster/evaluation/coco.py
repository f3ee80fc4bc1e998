"""COCO's annotations for CHAIR: which objects are in an image, and the published lists of what people call them.

The rules about double words are those of the public script (LisaAnne/Hallucination, utils/chair.py).
"""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

from m3po_dagster.evaluation.question import BenchmarkError, read_text
from m3po_dagster.evaluation.vocabulary import Vocabulary, folded

_DOUBLE_WORDS = (
    *("motor bike", "motor cycle", "air plane", "traffic light", "street light", "traffic signal", "stop light"),
    *("fire hydrant", "stop sign", "parking meter", "suit case", "sports ball", "baseball bat", "baseball glove"),
    *("tennis racket", "wine glass", "hot dog", "cell phone", "mobile phone", "teddy bear", "hair drier"),
    *("potted plant", "laptop computer", "home plate", "train track"),
)
_ANIMALS = ("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "animal", "cub")
_QUALIFIED = {
    **{f"{age} {animal}": animal for age in ("baby", "adult") for animal in _ANIMALS},
    **{f"passenger {vehicle}": vehicle for vehicle in ("jet", "train")},
    "bow tie": "tie",
    "toilet seat": "toilet",
}
_ID = re.compile(r"[0-9]{12}$")
_KINDS = {int: "a whole number", str: "text"}


@dataclass(frozen=True)
class CocoImages:
    """What a file of instance annotations says: its categories, and of each image id the categories in it."""

    path: Path
    categories: tuple[str, ...]
    ids: dict[str, int]
    """Image ids by file name."""
    within: dict[int, frozenset[str]]

    def image_id(self, uri: str, where: str) -> int:
        """The id of the image that a path names, by the file's name, or by the 12 digits at its end.

        COCO names one picture differently in 2014 and 2017 and keeps its id. Raises BenchmarkError naming `where`.
        """
        name = PurePosixPath(uri)
        found = self.ids.get(name.name)
        if found is None and (digits := _ID.search(name.stem)) and int(digits[0]) in self.within:
            found = int(digits[0])
        if found is None:
            raise BenchmarkError(f"{where}: {self.path} has no image {uri}: these are annotations of another split")
        return found


class CocoVocabulary(Vocabulary):
    """The published synonyms under the rules of the public script.

    A double word is one word: "hot dog" is no dog, "train track" no train. "baby", "adult" and "passenger" before an
    animal or a vehicle are no person. "toilet seat" is a toilet, and beside a toilet a "seat" is no chair.
    """

    def __init__(self, spellings: Mapping[str, str]):
        double: dict[str, str | None] = {word: spellings.get(word) for word in _DOUBLE_WORDS}
        qualified = {phrase: spellings.get(word) for phrase, word in _QUALIFIED.items()}
        super().__init__({**spellings, **double, **qualified})

    def spellings(self, text: str) -> list[str]:
        """As Vocabulary's, but for a "seat" beside a toilet."""
        found = super().spellings(text)
        if {"toilet", "toilet seat"} & set(found):
            return [spelling for spelling in found if spelling != "seat"]
        return found


def coco_vocabulary(coco: Path, synonyms: Path | None) -> CocoVocabulary:
    """The spellings of a list of synonyms; without one COCO's own names of its categories. Raises BenchmarkError."""
    if synonyms is not None:
        return CocoVocabulary(read_synonyms(synonyms))
    names = map(folded, read_instances(coco).categories)
    return CocoVocabulary({name: name for name in names})


def objects_of_images(
    coco: CocoImages, captions: Path | None, vocabulary: CocoVocabulary, images: Collection[int]
) -> dict[int, set[str]]:
    """The objects in each image: those annotated, and those that its captions name, if there is a file of captions.

    Raises BenchmarkError for a category that the vocabulary lacks, and where none of the images has a caption.
    """
    if missing := [name for name in coco.categories if vocabulary.object_of.get(folded(name)) is None]:
        raise BenchmarkError(f"no synonym is COCO's category {missing[0]!r}: the list must name all of {coco.path}")
    found = {image: {vocabulary.object_of[folded(name)] for name in coco.within[image]} for image in images}
    if captions is not None:
        captioned = False
        for image, text in read_captions(captions, found):
            found[image] |= vocabulary.objects(text)
            captioned = True
        if not captioned:
            raise BenchmarkError(f"{captions}: no caption is of an image asked about: captions of another split?")
    return found


def without_caption(captions: Path, images: Collection[int]) -> int:
    """How many of these images no caption is of. Raises BenchmarkError."""
    asked = set(images)
    return len(asked - {image for image, _ in read_captions(captions, asked)})


def read_synonyms(path: Path) -> dict[str, str]:
    """Object of each spelling, both folded: a line an object, its name first, parted by commas.

    Raises BenchmarkError that names file and line for a spelling of two objects and for a file without any.
    """
    objects: dict[str, str] = {}
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        names = [name for part in line.split(",") if (name := folded(part))]
        for name in names:
            if objects.setdefault(name, names[0]) != names[0]:
                both = f"{objects[name]!r} and {names[0]!r}"
                raise BenchmarkError(f"{path}, line {number}: {name!r} is a synonym of {both}")
    if not objects:
        raise BenchmarkError(f"{path}: no synonyms")
    return objects


def read_instances(path: Path) -> CocoImages:
    """What COCO's instances_*.json says, read once while the file stays as it is. Raises BenchmarkError."""
    try:
        stat = path.stat()
    except OSError as error:
        raise BenchmarkError(f"{path}: can't be read: {error.strerror}") from None
    return _read_instances(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=2)
def _read_instances(path: Path, _size: int, _mtime_ns: int) -> CocoImages:
    images = {item["file_name"]: item["id"] for item in _section(path, "images", {"file_name": str, "id": int})}
    names = {item["id"]: item["name"] for item in _section(path, "categories", {"id": int, "name": str})}
    if not images or not names:
        raise BenchmarkError(f"{path}: no images and categories: expected COCO's instances_*.json")
    within: dict[int, set[str]] = {number: set() for number in images.values()}
    for item in _section(path, "annotations", {"image_id": int, "category_id": int}):
        if item["image_id"] not in within or item["category_id"] not in names:
            raise BenchmarkError(
                f"{path}: an annotation is of image {item['image_id']} and category {item['category_id']}, "
                "one of which the file lacks"
            )
        within[item["image_id"]].add(names[item["category_id"]])
    found = {number: frozenset(categories) for number, categories in within.items()}
    return CocoImages(path, tuple(names.values()), images, found)


def read_captions(path: Path, images: Collection[int]) -> Iterator[tuple[int, str]]:
    """Image id and text of the captions of these images in COCO's captions_*.json.

    Raises BenchmarkError, also for a file without any caption.
    """
    item = None
    for item in _section(path, "annotations", {"image_id": int, "caption": str}):
        if item["image_id"] in images:
            yield item["image_id"], item["caption"]
    if item is None:
        raise BenchmarkError(f"{path}: no captions: expected COCO's captions_*.json")


def _section(path: Path, name: str, fields: Mapping[str, type]) -> Iterator[dict]:
    """The records of one list of the file, streamed: train2014's annotations take half a gigabyte.

    Raises BenchmarkError that names the record which lacks a field, or has one of another type.
    """
    import ijson

    try:
        with path.open("rb") as file:
            for number, item in enumerate(ijson.items(file, f"{name}.item", use_float=True), start=1):
                where = f"{path}: {name}, record {number}"
                if not isinstance(item, dict) or not all(key in item for key in fields):
                    raise BenchmarkError(f"{where}: expected {' and '.join(fields)}")
                for key, kind in fields.items():
                    # type, not isinstance: a bool is an int.
                    if type(item[key]) is not kind:
                        raise BenchmarkError(f"{where}: {key} is {str(item[key])[:40]!r}, expected {_KINDS[kind]}")
                yield item
    except (ijson.JSONError, UnicodeDecodeError) as error:
        raise BenchmarkError(f"{path}: not valid JSON: {error}") from None
    except OSError as error:
        raise BenchmarkError(f"{path}: can't be read: {error.strerror}") from None
