"""CHAIR: Caption Hallucination Assessment with Image Relevance.

Which objects of a vocabulary a description names, and which of them are not in the image. A model that says less
hallucinates less, so the figures come with recall and length. What is in an image stands beside the question, or in
COCO's annotations.
"""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import ClassVar

import pyarrow as pa

from m3po_dagster.evaluation.benchmark import Benchmark, Headline, results_table
from m3po_dagster.evaluation.coco import coco_vocabulary, objects_of_images, read_instances, without_caption
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
from m3po_dagster.evaluation.vocabulary import Vocabulary, folded

_GROUP = "all"
_COUNTS = (
    *("named", "hallucinated", "hallucinating", "present", "recalled", "words"),
    *("mentions", "hallucinated_mentions"),
)


class Chair(Benchmark):
    """Descriptions against the objects that are listed for each image, or that COCO's annotations have there."""

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
        {"synonyms": {name: [spelling, ...]}}. With `instances` it has neither objects nor synonyms.
        """
        records = self._records()
        present = self._present(records)
        if not any(present):
            raise BenchmarkError(f"{self.settings.path}: no image has an object, so nothing can be recalled")
        return [
            Question(
                id_field(record, where),
                benchmark_image(self.settings.image_root, text_field(record, "image", where), where),
                record["image"],
                text_field(record, "text", where),
                json.dumps(sorted(objects), ensure_ascii=False),
            )
            for (where, record), objects in zip(records, present, strict=True)
        ]

    def vocabulary(self) -> Vocabulary:
        """All objects that the file names, in images or synonyms, or those of COCO, with their spellings."""
        if self.settings.instances is not None:
            return coco_vocabulary(self.settings.instances, self.settings.synonyms)
        spellings = {name: name for objects in self._present(self._records()) for name in objects}
        for where, record in read_json_lines(self.settings.path):
            if "synonyms" not in record:
                continue
            if not isinstance(record["synonyms"], dict):
                raise BenchmarkError(f"{where}: synonyms: expected an object of name: [spelling, ...]")
            for name, others in record["synonyms"].items():
                (first,) = _names([name], f"{where}: synonyms")
                for spelling in (first, *_names(others, f"{where}: synonyms of {name!r}")):
                    if spellings.setdefault(spelling, first) != first:
                        both = f"{spellings[spelling]!r} and {first!r}"
                        raise BenchmarkError(f"{where}: synonyms: {spelling!r} stands for {both}")
        return Vocabulary(spellings)

    def per_question(
        self, questions: Sequence[Question], answers: Mapping[str, str], rule: str = "official"
    ) -> pa.Table:
        """Counts of distinct objects: named, hallucinated (named, not there), present, recalled (named and there).

        Besides: hallucinating, whether any named object is not there; words, the length of the answer; mentions and
        hallucinated_mentions, which count an object as often as it is named.
        """
        self.check_rule(rule)
        check_answers(questions, answers)
        vocabulary = self.vocabulary()
        counts: dict[str, list[int]] = {name: [] for name in _COUNTS}
        for question in questions:
            answer, present = answers[question.question_id], _objects(question)
            mentions = vocabulary.mentions(answer)
            named = set(mentions)
            counts["named"].append(len(named))
            counts["hallucinated"].append(len(named - present))
            counts["hallucinating"].append(bool(named - present))
            counts["present"].append(len(present))
            counts["recalled"].append(len(named & present))
            counts["words"].append(len(answer.split()))
            counts["mentions"].append(len(mentions))
            counts["hallucinated_mentions"].append(sum(name not in present for name in mentions))
        return results_table(questions, [_GROUP] * len(questions), [""] * len(questions), counts)

    @cached_property
    def _words(self) -> Vocabulary:
        """The vocabulary, read once for many answers."""
        return self.vocabulary()

    def reading(self, question: Question, answer: str, rule: str = "official") -> str:
        """The objects that the answer names, those that are not in the image marked."""
        self.check_rule(rule)
        present = _objects(question)
        named = sorted(self._words.objects(answer))
        return ", ".join(name if name in present else f"{name} (not there)" for name in named) or "no object"

    def metrics(self, sums: Sums) -> dict[str, Estimate]:
        """chair_i, hallucinated of all named objects (0 when none is named); chair_s, answers with one; both per cent.

        recall, objects named of all that are there, per cent; words and objects, means an answer. An object counts once
        an answer, as CHAIR's definition has it, so that saying a thing twice gains nothing; chair_i_mentions counts it
        as often as it is named, as the public script does.
        """
        n = sums[_GROUP, "questions"]
        values = {
            "chair_i": 100 * ratio(sums[_GROUP, "hallucinated"], sums[_GROUP, "named"], empty=0.0),
            "chair_i_mentions": 100 * ratio(sums[_GROUP, "hallucinated_mentions"], sums[_GROUP, "mentions"], empty=0.0),
            "chair_s": 100 * ratio(sums[_GROUP, "hallucinating"], n),
            "recall": 100 * ratio(sums[_GROUP, "recalled"], sums[_GROUP, "present"]),
            "words": ratio(sums[_GROUP, "words"], n),
            "objects": ratio(sums[_GROUP, "named"], n),
        }
        return {name: Estimate(value, n) for name, value in values.items()}

    def notes(self, questions: Sequence[Question]) -> list[str]:
        """Says so when COCO's captions, which the published CHAIR counts too, are left out or lack images.

        The file of captions is read anew.
        """
        if self.settings.instances is None:
            return []
        if self.settings.captions is None:
            return ["objects that only COCO's captions name count as not there: with captions the rates are lower"]
        coco = read_instances(self.settings.instances)
        images = {coco.image_id(question.image_uri, question.question_id) for question in questions}
        if missing := without_caption(self.settings.captions, images):
            return [f"{missing} of {len(images)} images have no caption: only what is annotated counts as there"]
        return []

    def _records(self) -> list[tuple[str, dict]]:
        """Where each question stands, and its record. Raises BenchmarkError for an id that stands twice."""
        records: dict[str, tuple[str, dict]] = {}
        for where, record in read_json_lines(self.settings.path):
            if "synonyms" in record:
                if self.settings.instances is not None:
                    raise BenchmarkError(f"{where}: with instances, give a file of `synonyms` instead")
                continue
            question_id = id_field(record, where)
            if question_id in records:
                raise BenchmarkError(f"{where}: question_id {question_id} stands twice")
            records[question_id] = where, record
        return list(records.values())

    def _present(self, records: Sequence[tuple[str, dict]]) -> list[set[str]]:
        """The objects in each record's image."""
        if self.settings.instances is None:
            return [set(_names(record.get("objects"), f"{where}: objects")) for where, record in records]
        if twice := [where for where, record in records if "objects" in record]:
            raise BenchmarkError(f"{twice[0]}: objects stand here, but are to come from {self.settings.instances}")
        coco = read_instances(self.settings.instances)
        images = [coco.image_id(text_field(record, "image", where), where) for where, record in records]
        within = objects_of_images(coco, self.settings.captions, self.vocabulary(), images)
        return [within[image] for image in images]


def _objects(question: Question) -> set[str]:
    return set(json.loads(question.expected))


def _names(values: object, where: str) -> list[str]:
    if not isinstance(values, list):
        raise BenchmarkError(f"{where}: expected a list of names")
    if bad := [value for value in values if not isinstance(value, str) or not value.strip()]:
        raise BenchmarkError(f"{where}: {str(bad[0])[:40]!r} is no name")
    return [folded(value) for value in values]
