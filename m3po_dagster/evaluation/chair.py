"""CHAIR: Caption Hallucination Assessment with Image Relevance.

Which objects of a vocabulary a description names, and which of them are not in the image. A model that says less
hallucinates less, so the figures come with recall and length.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import ClassVar

import pyarrow as pa

from m3po_dagster.evaluation.benchmark import Benchmark, Headline, results_table
from m3po_dagster.evaluation.intervals import Estimate, Sums, ratio
from m3po_dagster.evaluation.question import (
    BenchmarkError,
    Question,
    benchmark_image,
    check_answers,
    parse_json,
    read_text,
    text_field,
)
from m3po_dagster.evaluation.settings import ChairSettings

_GROUP = "all"


class Vocabulary:
    """Every spelling of every object. A mention is a whole word or phrase in any case, regular plurals included.

    The longest spelling wins where several fit ("traffic light" is no "light"). A negated mention counts as a mention,
    as in the original.
    """

    def __init__(self, spellings: Mapping[str, str]):
        """`spellings` maps each spelling, case-folded and with single spaces, to its object."""
        self._object_of = dict(spellings)
        longest_first = sorted(self._object_of, key=lambda spelling: (-len(spelling), spelling))
        phrases = "|".join(r"\s+".join(map(re.escape, spelling.split())) for spelling in longest_first)
        self._mention = re.compile(rf"(?<!\w)({phrases})(?:s|es)?(?!\w)")

    def objects(self, text: str) -> set[str]:
        """The objects that the text names."""
        return {self._object_of[_folded(match[1])] for match in self._mention.finditer(text.casefold())}


class Chair(Benchmark):
    """Descriptions against the objects that the file lists; question ids are the image paths."""

    kind: ClassVar[str] = "chair"
    headlines: ClassVar[tuple[Headline, ...]] = (
        Headline("chair_i", "CHAIR-i ↓"),
        Headline("chair_s", "CHAIR-s ↓"),
        Headline("recall", "CHAIR recall ↑"),
        Headline("words", "CHAIR words"),
    )

    def __init__(self, settings: ChairSettings):
        self.settings = settings

    def load(self) -> list[Question]:
        """One question an image; `expected` is the JSON list of its objects. Raises BenchmarkError naming the entry."""
        questions = []
        for number, (uri, objects) in enumerate(self._images()):
            image = benchmark_image(self.settings.image_root, uri, f"{self.settings.path}, images[{number}]")
            expected = json.dumps(sorted(objects), ensure_ascii=False)
            questions.append(Question(uri, image, uri, self.settings.question, expected))
        return questions

    def vocabulary(self) -> Vocabulary:
        """All objects that the file names in images or synonyms, with their spellings."""
        spellings = {name: name for _, objects in self._images() for name in objects}
        for name, others in self._synonyms().items():
            for spelling in (name, *others):
                if spellings.setdefault(spelling, name) != name:
                    raise BenchmarkError(
                        f"{self.settings.path}: synonyms: {spelling!r} stands for {spellings[spelling]!r} and {name!r}"
                    )
        return Vocabulary(spellings)

    def per_question(self, questions: Sequence[Question], answers: Mapping[str, str]) -> pa.Table:
        """Counts of distinct objects: named, hallucinated (named, not there), present, recalled (named and there).

        Besides: hallucinating, whether any named object is not there; and words, the length of the answer.
        """
        check_answers(questions, answers)
        vocabulary = self.vocabulary()
        counts: dict[str, list[int]] = {
            name: [] for name in ("named", "hallucinated", "hallucinating", "present", "recalled", "words")
        }
        for question in questions:
            answer, present = answers[question.question_id], set(json.loads(question.expected))
            named = vocabulary.objects(answer)
            counts["named"].append(len(named))
            counts["hallucinated"].append(len(named - present))
            counts["hallucinating"].append(bool(named - present))
            counts["present"].append(len(present))
            counts["recalled"].append(len(named & present))
            counts["words"].append(len(answer.split()))
        return results_table(questions, [_GROUP] * len(questions), [""] * len(questions), counts)

    def metrics(self, sums: Sums) -> dict[str, Estimate]:
        """chair_i, hallucinated of all named objects (0 when none is named); chair_s, answers with one; both per cent.

        recall, objects named of all that are there, per cent; words and objects, means an answer. An object counts once
        an answer, so that saying a thing twice gains nothing.
        """
        n = sums[_GROUP, "questions"]
        values = {
            "chair_i": 100 * ratio(sums[_GROUP, "hallucinated"], sums[_GROUP, "named"], empty=0.0),
            "chair_s": 100 * ratio(sums[_GROUP, "hallucinating"], n),
            "recall": 100 * ratio(sums[_GROUP, "recalled"], sums[_GROUP, "present"]),
            "words": ratio(sums[_GROUP, "words"], n),
            "objects": ratio(sums[_GROUP, "named"], n),
        }
        return {name: Estimate(value, n) for name, value in values.items()}

    def _content(self) -> dict:
        path = self.settings.path
        content = parse_json(read_text(path), str(path))
        if not isinstance(content, dict) or not isinstance(content.get("images"), list):
            raise BenchmarkError(f'{path}: expected {{"images": [{{"image": path, "objects": [name, ...]}}, ...]}}')
        return content

    def _images(self) -> list[tuple[str, set[str]]]:
        found: dict[str, set[str]] = {}
        for number, entry in enumerate(self._content()["images"]):
            where = f"{self.settings.path}, images[{number}]"
            if not isinstance(entry, dict):
                raise BenchmarkError(f"{where}: expected an object with image and objects")
            uri = text_field(entry, "image", where)
            if uri in found:
                raise BenchmarkError(f"{where}: image {uri} is listed twice")
            found[uri] = set(_names(entry.get("objects"), f"{where}.objects"))
        if not any(found.values()):
            raise BenchmarkError(f"{self.settings.path}: no image has an object, so nothing can be recalled")
        return list(found.items())

    def _synonyms(self) -> dict[str, list[str]]:
        synonyms = self._content().get("synonyms", {})
        where = f"{self.settings.path}, synonyms"
        if not isinstance(synonyms, dict):
            raise BenchmarkError(f"{where}: expected an object of name: [spelling, ...]")
        return {
            _names([name], where)[0]: _names(spellings, f"{where}[{name!r}]") for name, spellings in synonyms.items()
        }


def _names(values: object, where: str) -> list[str]:
    if not isinstance(values, list):
        raise BenchmarkError(f"{where}: expected a list of names")
    if bad := [value for value in values if not isinstance(value, str) or not value.strip()]:
        raise BenchmarkError(f"{where}: {str(bad[0])[:40]!r} is no name")
    return [_folded(value) for value in values]


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())
