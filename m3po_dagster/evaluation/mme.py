"""MME: two yes/no questions an image in 14 categories of perception and cognition.

Official answer rule and score: accuracy plus the share of images with both questions right, 0 to 200 a category.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa

from m3po_dagster.evaluation.benchmark import Benchmark, Headline, results_table
from m3po_dagster.evaluation.intervals import Estimate, Sums, ratio
from m3po_dagster.evaluation.question import BenchmarkError, Question, benchmark_image, check_answers, read_text
from m3po_dagster.evaluation.settings import MmeSettings

PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
_PARTS = {"perception": PERCEPTION, "cognition": COGNITION}
_QUESTIONS_AN_IMAGE = 2


def parse_answer(answer: str) -> Literal["yes", "no", "other"]:
    """The official rule: "yes", else "no", anywhere in the first four characters, in lower case and not stripped.

    So "not sure" and "know" are a no, "Eyes" is a yes, "Y", "**Yes**" and "Answer: yes" are other, which is wrong.
    """
    start = answer.lower()[:4]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


class Mme(Benchmark):
    """MME's folder of categories; question ids are category/image/number."""

    kind: ClassVar[str] = "mme"
    headlines: ClassVar[tuple[Headline, ...]] = (Headline("total", "MME total ↑"),)

    def __init__(self, settings: MmeSettings):
        self.settings = settings

    def load(self) -> list[Question]:
        """The questions of every category folder, in either published layout.

        The text file of an image lies beside it, or in questions_answers_YN/ with the image in images/. An image
        without text file is asked nothing. Raises BenchmarkError that names file and line.
        """
        root = self.settings.root
        if not root.is_dir():
            raise BenchmarkError(f"{root}: no such folder; correct the benchmark's root in the study")
        folders = sorted(item for item in root.iterdir() if item.is_dir() and not item.name.startswith("."))
        questions = [question for folder in folders for question in _category_questions(root, folder)]
        if not questions:
            raise BenchmarkError(f"{root}: no category folder with text files of questions")
        return questions

    def per_question(self, questions: Sequence[Question], answers: Mapping[str, str]) -> pa.Table:
        """Counts correct, yes, other; and images and both, once an image: 1, and whether both questions are right."""
        check_answers(questions, answers)
        parsed = [parse_answer(answers[question.question_id]) for question in questions]
        correct = [given == question.expected.lower() for given, question in zip(parsed, questions, strict=True)]
        by_image: dict[tuple[str, str], list[int]] = {}
        for position, question in enumerate(questions):
            by_image.setdefault((question.group, question.image_uri), []).append(position)
        images, both = [0] * len(questions), [False] * len(questions)
        for positions in by_image.values():
            images[positions[0]] = 1
            both[positions[0]] = all(correct[position] for position in positions)
        counts = {
            "correct": correct,
            "yes": [given == "yes" for given in parsed],
            "other": [given == "other" for given in parsed],
            "images": images,
            "both": both,
        }
        # Category sizes are the benchmark's design: each category keeps its number of images in every resample.
        groups = [question.group for question in questions]
        return results_table(questions, groups, groups, counts)

    def metrics(self, sums: Sums) -> dict[str, Estimate]:
        """Per category accuracy and accuracy_plus in per cent and score (their sum); over all: see below.

        perception and cognition are the sums of the official categories there are, total of all categories, MME's own
        or not; yes_ratio and other (neither yes nor no was read) are shares of all answers in per cent.
        """
        result: dict[str, Estimate] = {}
        scores: dict[str, Estimate] = {}
        for category in sums.groups:
            n = sums[category, "questions"]
            accuracy = 100 * ratio(sums[category, "correct"], n)
            accuracy_plus = 100 * ratio(sums[category, "both"], sums[category, "images"])
            scores[category] = Estimate(accuracy + accuracy_plus, n)
            result[f"{category}/accuracy"] = Estimate(accuracy, n)
            result[f"{category}/accuracy_plus"] = Estimate(accuracy_plus, sums[category, "images"])
            result[f"{category}/score"] = scores[category]
        for part, categories in _PARTS.items():
            if present := [scores[category] for category in categories if category in scores]:
                result[part] = _sum(present)
        result["total"] = _sum(list(scores.values()))
        n = result["total"].n
        for name in ("yes", "other"):
            share = 100 * ratio(np.sum([sums[category, name] for category in sums.groups], axis=0), n)
            result["yes_ratio" if name == "yes" else name] = Estimate(share, n)
        return result

    def notes(self, questions: Sequence[Question]) -> list[str]:
        """Says which official categories are absent and which categories are not MME's."""
        present = dict.fromkeys(question.group for question in questions)
        notes = [
            f"{part} is the sum of {len(found)} of {len(categories)} official categories: {', '.join(found)}"
            for part, categories in _PARTS.items()
            if 0 < len(found := [category for category in categories if category in present]) < len(categories)
        ]
        if other := [category for category in present if category not in PERCEPTION + COGNITION]:
            notes.append(f"counted in total alone, being no categories of MME: {', '.join(other)}")
        return notes


def _sum(estimates: Sequence[Estimate]) -> Estimate:
    return Estimate(np.sum([item.value for item in estimates], axis=0), np.sum([item.n for item in estimates], axis=0))


def _category_questions(root: Path, folder: Path) -> Iterator[Question]:
    nested = (folder / "images").is_dir()
    texts_folder, images_folder = (folder / "questions_answers_YN", folder / "images") if nested else (folder, folder)
    if not texts_folder.is_dir():
        raise BenchmarkError(f"{folder}: has images/ but no questions_answers_YN/")
    images: dict[str, list[str]] = {}
    for item in sorted(images_folder.iterdir()):
        if item.suffix.lower() != ".txt" and not item.is_dir():
            images.setdefault(item.stem, []).append(item.name)
    for path in sorted(texts_folder.glob("*.txt")):
        names = images.get(path.stem, [])
        if len(names) != 1:
            raise BenchmarkError(f"{path}: expected one image of that name in {images_folder}, found {names or 'none'}")
        uri = f"{images_folder.relative_to(root).as_posix()}/{names[0]}"
        image = benchmark_image(root, uri, str(path))
        for number, (text, label) in enumerate(_lines(path)):
            yield Question(f"{folder.name}/{names[0]}/{number}", image, uri, text, label)


def _lines(path: Path) -> list[tuple[str, str]]:
    questions = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        fields = [field.strip() for field in line.strip().split("\t")]
        if len(fields) != 2 or not fields[0] or fields[1].lower() not in ("yes", "no"):
            raise BenchmarkError(
                f"{path}, line {number}: expected a question, a tab and Yes or No, found {line[:80]!r}"
            )
        questions.append((fields[0], fields[1]))
    if len(questions) != _QUESTIONS_AN_IMAGE:
        raise BenchmarkError(f"{path}: {len(questions)} questions, MME has {_QUESTIONS_AN_IMAGE} an image")
    return questions
