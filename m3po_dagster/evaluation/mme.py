"""MME: two yes/no questions an image in 14 categories of perception and cognition.

The official score: accuracy plus the share of images with both questions right, 0 to 200 a category. The answers are
read by the official rule, or by another tool's.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa

from m3po_dagster.evaluation.benchmark import Benchmark, Headline, results_table
from m3po_dagster.evaluation.intervals import Estimate, Sums, ratio
from m3po_dagster.evaluation.question import BenchmarkError, Question, benchmark_image, check_answers, read_text
from m3po_dagster.evaluation.rules.yes_no import MME_RULES, starts_with_yes_or_no
from m3po_dagster.evaluation.settings import MmeSettings
from m3po_dagster.s3_files.ahead import ahead
from m3po_dagster.s3_files.path import survey

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
PARTS = {"perception": PERCEPTION, "cognition": COGNITION}
QUESTIONS_AN_IMAGE = 2


NOISE = (
    "MME is noisy: an answer turned moves a category of few images by several points, and totals of one model move by "
    "20 between set-ups; read differences by their intervals"
)


class Mme(Benchmark):
    """MME's folder of categories; question ids are category/image/number."""

    kind: ClassVar[str] = "mme"
    reads_form: ClassVar[bool] = True
    rules: ClassVar[tuple[str, ...]] = tuple(MME_RULES)
    headlines: ClassVar[tuple[Headline, ...]] = (Headline("total", "MME total ↑"),)

    def __init__(self, settings: MmeSettings):
        self.settings = settings

    def load(self) -> list[Question]:
        """The questions of every category folder, in either published layout.

        The text file of an image lies beside it, or in questions_answers_YN/ with the image in images/. An image
        without text file is asked nothing. Raises BenchmarkError that names file and line.
        """
        root = self.settings.root
        survey([root])
        if not root.is_dir():
            raise BenchmarkError(f"{root}: no such folder; correct the benchmark's root in the study")
        folders = sorted(item for item in root.iterdir() if item.is_dir() and not item.name.startswith("."))
        questions = [question for folder in folders for question in _category_questions(root, folder)]
        if not questions:
            raise BenchmarkError(f"{root}: no category folder with text files of questions")
        return questions

    @classmethod
    def per_question(
        cls, questions: Sequence[Question], answers: Mapping[str, str], rule: str = "official"
    ) -> pa.Table:
        """Counts correct, yes, other; and images and both, once an image: 1, and whether both questions are right.

        Besides compliant: the answer starts with yes or no as a word, whatever the rule. No settings are needed.
        """
        cls.check_rule(rule)
        check_answers(questions, answers)
        given = [answers[question.question_id] for question in questions]
        parsed = [MME_RULES[rule](answer) for answer in given]
        correct = [read == question.expected.lower() for read, question in zip(parsed, questions, strict=True)]
        by_image: dict[tuple[str, str], list[int]] = {}
        for position, question in enumerate(questions):
            by_image.setdefault((question.group, question.image_uri), []).append(position)
        images, both = [0] * len(questions), [False] * len(questions)
        for positions in by_image.values():
            images[positions[0]] = 1
            both[positions[0]] = all(correct[position] for position in positions)
        counts = {
            "correct": correct,
            "yes": [read == "yes" for read in parsed],
            "other": [read == "other" for read in parsed],
            "compliant": [starts_with_yes_or_no(answer) for answer in given],
            "images": images,
            "both": both,
        }
        # Category sizes are the benchmark's design: each category keeps its number of images in every resample.
        groups = [question.group for question in questions]
        return results_table(questions, groups, groups, counts)

    def reading(self, question: Question, answer: str, rule: str = "official") -> str:
        """yes, no, or other, which is wrong whatever was asked. Raises BenchmarkError for an unknown rule."""
        self.check_rule(rule)
        return MME_RULES[rule](answer)

    def metrics(self, sums: Sums) -> dict[str, Estimate]:
        """Per category accuracy and accuracy_plus in per cent and score (their sum); over all: see below.

        perception and cognition are the sums of the official categories there are, total of all categories, MME's own
        or not; yes_ratio, other (neither yes nor no was read) and format (the answer starts with yes or no as a word)
        are shares of all answers in per cent.
        """
        result: dict[str, Estimate] = {}
        scores: dict[str, Estimate] = {}
        for category in sums.groups:
            n = sums[category, "questions"]
            accuracy, accuracy_plus = (100 * share for share in category_shares(sums, category))
            scores[category] = Estimate(accuracy + accuracy_plus, n)
            result[f"{category}/accuracy"] = Estimate(accuracy, n)
            result[f"{category}/accuracy_plus"] = Estimate(accuracy_plus, sums[category, "images"])
            result[f"{category}/score"] = scores[category]
        for part, categories in PARTS.items():
            if present := [scores[category] for category in categories if category in scores]:
                result[part] = _sum(present)
        result["total"] = _sum(list(scores.values()))
        n = result["total"].n
        return result | {name: Estimate(100 * share, n) for name, share in answer_shares(sums).items()}

    def notes(self, questions: Sequence[Question]) -> list[str]:
        """Says how far MME can be trusted, which official categories are absent and which are not MME's."""
        present = dict.fromkeys(question.group for question in questions)
        notes = [
            f"{part} is the sum of {len(found)} of {len(categories)} official categories: {', '.join(found)}"
            for part, categories in PARTS.items()
            if 0 < len(found := [category for category in categories if category in present]) < len(categories)
        ]
        if other := [category for category in present if category not in PERCEPTION + COGNITION]:
            notes.append(f"counted in total alone, being no categories of MME: {', '.join(other)}")
        return [NOISE, *notes]


def category_shares(sums: Sums, category: str) -> tuple[np.ndarray, np.ndarray]:
    """The official tool's acc and acc_plus of a category, 0 to 1: right answers, and images with both right."""
    return (
        ratio(sums[category, "correct"], sums[category, "questions"]),
        ratio(sums[category, "both"], sums[category, "images"]),
    )


def answer_shares(sums: Sums) -> dict[str, np.ndarray]:
    """yes_ratio, other and format, each a share of all answers, 0 to 1."""
    counts = {"yes_ratio": "yes", "other": "other", "format": "compliant"}
    n = _over_categories(sums, "questions")
    return {name: ratio(_over_categories(sums, count), n) for name, count in counts.items()}


def _over_categories(sums: Sums, count: str) -> np.ndarray:
    return np.sum([sums[category, count] for category in sums.groups], axis=0)


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
    # Archives made on a Mac bring a ._1.txt beside each 1.txt.
    texts = sorted(path for path in texts_folder.glob("*.txt") if not path.name.startswith("."))
    with ahead(texts):
        for path in texts:
            names = images.get(path.stem, [])
            if len(names) != 1:
                raise BenchmarkError(
                    f"{path}: expected one image of that name in {images_folder}, found {names or 'none'}"
                )
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
    if len(questions) != QUESTIONS_AN_IMAGE:
        raise BenchmarkError(f"{path}: {len(questions)} questions, MME has {QUESTIONS_AN_IMAGE} an image")
    return questions
