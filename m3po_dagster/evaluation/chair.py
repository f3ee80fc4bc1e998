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
    id_field,
    read_json_lines,
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
    """Descriptions against the objects that the file lists for each image."""

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
        """The questions; `expected` is the JSON list of the image's objects. Raises BenchmarkError naming the line.

        A line is {"question_id", "image", "text": the instruction, "objects": [name, ...]}, or
        {"synonyms": {name: [spelling, ...]}}.
        """
        return self._content()[0]

    def vocabulary(self) -> Vocabulary:
        """All objects that the file names, in images or synonyms, with their spellings."""
        questions, synonyms = self._content()
        spellings = {name: name for question in questions for name in _objects(question)}
        for where, given in synonyms:
            if not isinstance(given, dict):
                raise BenchmarkError(f"{where}: synonyms: expected an object of name: [spelling, ...]")
            for name, others in given.items():
                (folded,) = _names([name], f"{where}: synonyms")
                for spelling in (folded, *_names(others, f"{where}: synonyms of {name!r}")):
                    if spellings.setdefault(spelling, folded) != folded:
                        both = f"{spellings[spelling]!r} and {folded!r}"
                        raise BenchmarkError(f"{where}: synonyms: {spelling!r} stands for {both}")
        return Vocabulary(spellings)

    def per_question(
        self, questions: Sequence[Question], answers: Mapping[str, str], rule: str = "official"
    ) -> pa.Table:
        """Counts of distinct objects: named, hallucinated (named, not there), present, recalled (named and there).

        Besides: hallucinating, whether any named object is not there; and words, the length of the answer.
        """
        self.check_rule(rule)
        check_answers(questions, answers)
        vocabulary = self.vocabulary()
        counts: dict[str, list[int]] = {
            name: [] for name in ("named", "hallucinated", "hallucinating", "present", "recalled", "words")
        }
        for question in questions:
            answer, present = answers[question.question_id], _objects(question)
            named = vocabulary.objects(answer)
            counts["named"].append(len(named))
            counts["hallucinated"].append(len(named - present))
            counts["hallucinating"].append(bool(named - present))
            counts["present"].append(len(present))
            counts["recalled"].append(len(named & present))
            counts["words"].append(len(answer.split()))
        return results_table(questions, [_GROUP] * len(questions), [""] * len(questions), counts)

    def reading(self, question: Question, answer: str, rule: str = "official") -> str:
        """The objects that the answer names, those that are not in the image marked; the vocabulary is read anew."""
        self.check_rule(rule)
        present = _objects(question)
        named = sorted(self.vocabulary().objects(answer))
        return ", ".join(name if name in present else f"{name} (not there)" for name in named) or "no object"

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

    def _content(self) -> tuple[list[Question], list[tuple[str, dict]]]:
        """The file's questions, and its synonyms, each with where it stands."""
        questions: dict[str, Question] = {}
        synonyms = []
        for where, record in read_json_lines(self.settings.path):
            if "synonyms" in record:
                synonyms.append((where, record["synonyms"]))
                continue
            question = self._question(where, record)
            if question.question_id in questions:
                raise BenchmarkError(f"{where}: question_id {question.question_id} stands twice")
            questions[question.question_id] = question
        if not any(_objects(question) for question in questions.values()):
            raise BenchmarkError(f"{self.settings.path}: no image has an object, so nothing can be recalled")
        return list(questions.values()), synonyms

    def _question(self, where: str, record: dict) -> Question:
        uri = text_field(record, "image", where)
        image = benchmark_image(self.settings.image_root, uri, where)
        objects = sorted(set(_names(record.get("objects"), f"{where}: objects")))
        expected = json.dumps(objects, ensure_ascii=False)
        return Question(id_field(record, where), image, uri, text_field(record, "text", where), expected)


def _objects(question: Question) -> set[str]:
    return set(json.loads(question.expected))


def _names(values: object, where: str) -> list[str]:
    if not isinstance(values, list):
        raise BenchmarkError(f"{where}: expected a list of names")
    if bad := [value for value in values if not isinstance(value, str) or not value.strip()]:
        raise BenchmarkError(f"{where}: {str(bad[0])[:40]!r} is no name")
    return [_folded(value) for value in values]


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())
