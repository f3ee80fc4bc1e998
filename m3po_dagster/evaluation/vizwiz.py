"""VizWiz-VQA: questions that blind people asked about their own pictures, each with the answers of ten others.

VQA accuracy by the official rule or another tool's, over all and by type of answer. Many questions can't be answered,
so it is read beside the share of answers that say so and the accuracy of an answerer who always does.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa

from m3po_dagster.evaluation.benchmark import Benchmark, Headline, results_table
from m3po_dagster.evaluation.intervals import Estimate, Sums, ratio
from m3po_dagster.evaluation.question import (
    BenchmarkError,
    Question,
    benchmark_image,
    check_answers,
    read_text,
    text_field,
)
from m3po_dagster.evaluation.rules.vqa import VQA_RULES, normaliser, vqa_accuracy
from m3po_dagster.evaluation.settings import VizwizSettings

UNANSWERABLE = "unanswerable"
PHRASE_WORDS = 5
_PEOPLE = 10


class Vizwiz(Benchmark):
    """VizWiz's annotations over one folder of images; a question's id is the name of its image, which has no other."""

    kind: ClassVar[str] = "vizwiz"
    rules: ClassVar[tuple[str, ...]] = tuple(VQA_RULES)
    headlines: ClassVar[tuple[Headline, ...]] = (
        Headline("accuracy", "VizWiz accuracy ↑"),
        Headline("format", "VizWiz format ↑"),
    )

    def __init__(self, settings: VizwizSettings):
        self.settings = settings

    def load(self) -> list[Question]:
        """The questions, each followed by the suffix. `expected` is JSON, {"answer_type", "answers": [text, ...]}.

        Raises BenchmarkError that names file and record.
        """
        return [
            Question(
                image,
                benchmark_image(self.settings.image_root, image, where),
                image,
                text_field(record, "question", where) + self.settings.prompt_suffix,
                expected,
            )
            for where, record, image, expected in annotated(self.settings.annotations)
        ]

    @classmethod
    def per_question(
        cls, questions: Sequence[Question], answers: Mapping[str, str], rule: str = "official"
    ) -> pa.Table:
        """Counts correct, the answer's VQA accuracy from 0 to 1; constant, that of the answer "unanswerable".

        Besides unanswerable, whether the rule reads the answer as that word, and compliant, whether it is a single word
        or phrase. The group is the type of answer. No settings are needed.
        """
        cls.check_rule(rule)
        check_answers(questions, answers)
        counts: dict[str, list[float]] = {name: [] for name in ("correct", "constant", "unanswerable", "compliant")}
        groups = []
        for question in questions:
            answer, (answer_type, references) = answers[question.question_id], _expected(question)
            groups.append(answer_type)
            counts["correct"].append(vqa_accuracy(answer, references, rule))
            counts["constant"].append(vqa_accuracy(UNANSWERABLE, references, rule))
            counts["unanswerable"].append(VQA_RULES[rule].normalise(answer) == UNANSWERABLE)
            counts["compliant"].append(is_phrase(answer))
        return results_table(questions, groups, [""] * len(questions), counts)

    def reading(self, question: Question, answer: str, rule: str = "official") -> str:
        """The text that the rule compares with the references. Raises BenchmarkError for an unknown rule."""
        self.check_rule(rule)
        return normaliser(_expected(question)[1], rule)(answer)

    def metrics(self, sums: Sums) -> dict[str, Estimate]:
        """accuracy, over all and as accuracy/<type of answer>; unanswerable_rate, constant_unanswerable and format.

        All in per cent: mean VQA accuracy, share of answers that are "unanswerable", accuracy of always giving that
        answer, share of answers that are a single word or phrase.
        """
        n = _over_types(sums, "questions")
        result = {name: Estimate(100 * share, n) for name, share in answer_shares(sums).items()}
        for answer_type, share in type_accuracies(sums).items():
            result[f"accuracy/{answer_type}"] = Estimate(100 * share, sums[answer_type, "questions"])
        return result

    def notes(self, questions: Sequence[Question]) -> list[str]:
        """Says so when a question has not ten references: accuracy is worth less or more there."""
        other = sum(len(_expected(question)[1]) != _PEOPLE for question in questions)
        return [f"{other} of {len(questions)} questions have other than {_PEOPLE} references"] if other else []


def answer_shares(sums: Sums) -> dict[str, np.ndarray]:
    """accuracy, unanswerable_rate, constant_unanswerable and format over all questions, 0 to 1."""
    counts = {
        "accuracy": "correct",
        "unanswerable_rate": "unanswerable",
        "constant_unanswerable": "constant",
        "format": "compliant",
    }
    n = _over_types(sums, "questions")
    return {name: ratio(_over_types(sums, count), n) for name, count in counts.items()}


def type_accuracies(sums: Sums) -> dict[str, np.ndarray]:
    """Accuracy by type of answer, 0 to 1."""
    return {kind: ratio(sums[kind, "correct"], sums[kind, "questions"]) for kind in sums.groups}


def is_phrase(answer: str) -> bool:
    """Whether an answer is a single word or phrase, as the prompt asks: one to five words in one line, no sentence.

    Several words with a ".", "!" or "?" at the end are a sentence.
    """
    words = answer.split()
    sentence = len(words) > 1 and words[-1].endswith((".", "!", "?"))
    return 0 < len(words) <= PHRASE_WORDS and not sentence and len(answer.strip().splitlines()) == 1


def annotated(path: Path) -> Iterator[tuple[str, dict, str, str]]:
    """Where each record of an annotation file stands, the record, its image and its references as JSON.

    Raises BenchmarkError, naming the record, for what is no VizWiz annotation, for a record without answers (the test
    split) and for an image that has two.
    """
    seen: dict[str, str] = {}
    for where, record in read_json_array(path):
        image = text_field(record, "image", where)
        where = f"{where} ({image})"
        if image in seen:
            raise BenchmarkError(f"{where}: the image stands in {seen[image]} too, and answers join on it")
        seen[image] = where
        if "answers" not in record:
            raise BenchmarkError(
                f"{where}: no answers. A test split's are not published: score the validation split (val.json)"
            )
        expected = {"answer_type": text_field(record, "answer_type", where), "answers": _references(record, where)}
        yield where, record, image, json.dumps(expected, ensure_ascii=False)
    if not seen:
        raise BenchmarkError(f"{path}: no records")


def read_json_array(path: Path) -> Iterator[tuple[str, dict]]:
    """Where each record of a file with one JSON array of objects stands, and the record. Raises BenchmarkError."""
    try:
        records = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise BenchmarkError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(records, list):
        raise BenchmarkError(f"{path}: expected one JSON array of records")
    for number, record in enumerate(records, start=1):
        where = f"{path}, record {number}"
        if not isinstance(record, dict):
            raise BenchmarkError(f"{where}: expected an object")
        yield where, record


def _references(record: Mapping, where: str) -> list[str]:
    given = record["answers"]
    texts = [item.get("answer") if isinstance(item, dict) else None for item in given] if type(given) is list else []
    if not texts or not all(isinstance(text, str) for text in texts):
        raise BenchmarkError(f'{where}: answers: expected a list of {{"answer": text, "answer_confidence": ...}}')
    return texts


def _expected(question: Question) -> tuple[str, list[str]]:
    expected = json.loads(question.expected)
    return expected["answer_type"], expected["answers"]


def _over_types(sums: Sums, count: str) -> np.ndarray:
    return np.sum([sums[kind, count] for kind in sums.groups], axis=0)
