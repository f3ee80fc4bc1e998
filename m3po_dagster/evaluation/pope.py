"""POPE, Polling-based Object Probing Evaluation: does the model say yes to objects that are not there?

Official answer rule, per split and as the unweighted mean over the splits. Answers are joined on ids: the official
script pairs by order and shifts silently when one is missing.
"""

import re
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
    id_field,
    read_json_lines,
    text_field,
)
from m3po_dagster.evaluation.settings import PopeSettings

_STARTS_WITH_YES_OR_NO = re.compile(r"\s*(?:yes|no)\b", re.IGNORECASE)
_SPLITS = 3


def says_yes(answer: str) -> bool:
    """The official rule, to the letter: no if "No", "no" or "not" is a word of the first sentence, otherwise yes.

    A sentence ends at the first '.', commas are deleted, words are parted by single spaces and by nothing else. So the
    empty answer, "NO", "Nope" and "no!" are a yes.
    """
    words = answer.split(".")[0].replace(",", "").split(" ")
    return not {"No", "no", "not"} & set(words)


class Pope(Benchmark):
    """POPE's splits over one folder of images; question ids are split/id, as ids repeat across splits."""

    kind: ClassVar[str] = "pope"
    headlines: ClassVar[tuple[Headline, ...]] = (
        Headline("accuracy", "POPE accuracy ↑"),
        Headline("adversarial/accuracy", "POPE adversarial ↑"),
        Headline("yes_ratio", "POPE yes-ratio"),
        Headline("format", "POPE format ↑"),
    )

    def __init__(self, settings: PopeSettings):
        self.settings = settings

    def load(self) -> list[Question]:
        """The questions of all splits. Raises BenchmarkError that names file and line."""
        return [
            question
            for split, path in self.settings.labels.items()
            for question in _split_questions(split, path, self.settings.image_root)
        ]

    def per_question(self, questions: Sequence[Question], answers: Mapping[str, str]) -> pa.Table:
        """Counts tp, fp, tn, fn (positive is yes) and compliant: the answer starts with yes or no as a word."""
        check_answers(questions, answers)
        counts: dict[str, list[int]] = {name: [] for name in ("tp", "fp", "tn", "fn", "compliant")}
        for question in questions:
            answer = answers[question.question_id]
            yes, expected = says_yes(answer), question.expected == "yes"
            counts["tp"].append(yes and expected)
            counts["fp"].append(yes and not expected)
            counts["tn"].append(not yes and not expected)
            counts["fn"].append(not yes and expected)
            counts["compliant"].append(_STARTS_WITH_YES_OR_NO.match(answer) is not None)
        # One image answers for all splits: they share images and are resampled together.
        groups = [question.group for question in questions]
        return results_table(questions, groups, [""] * len(questions), counts)

    def metrics(self, sums: Sums) -> dict[str, Estimate]:
        """Per split, and without prefix the unweighted mean over the splits there are.

        accuracy, precision, recall, f1, yes_ratio (predicted yes) and format, all in per cent. Precision and F1 are 0
        when nothing is predicted yes, where the official script divides by zero.
        """
        by_split = {split: _split_metrics(sums, split) for split in sums.groups}
        result = {f"{split}/{name}": item for split, items in by_split.items() for name, item in items.items()}
        for name in next(iter(by_split.values())):
            items = [metrics[name] for metrics in by_split.values()]
            result[name] = Estimate(
                np.mean([item.value for item in items], axis=0), np.sum([item.n for item in items], axis=0)
            )
        return result

    def notes(self, questions: Sequence[Question]) -> list[str]:
        """Says so when the mean is not over all three splits."""
        splits = list(dict.fromkeys(question.group for question in questions))
        if len(splits) == _SPLITS:
            return []
        return [f"the mean is over {len(splits)} of {_SPLITS} splits: {', '.join(splits)}"]


def _split_metrics(sums: Sums, split: str) -> dict[str, Estimate]:
    tp, fp, tn, fn, n, compliant = (sums[split, name] for name in ("tp", "fp", "tn", "fn", "questions", "compliant"))
    values = {
        "accuracy": ratio(tp + tn, n),
        "precision": ratio(tp, tp + fp, empty=0.0),
        "recall": ratio(tp, tp + fn, empty=0.0),
        "f1": ratio(2 * tp, 2 * tp + fp + fn, empty=0.0),
        "yes_ratio": ratio(tp + fp, n),
        "format": ratio(compliant, n),
    }
    return {name: Estimate(100 * value, n) for name, value in values.items()}


def _split_questions(split: str, path: Path, image_root: Path) -> Iterator[Question]:
    seen: dict[str, str] = {}
    for where, record in read_json_lines(path):
        question_id = id_field(record, where)
        if question_id in seen:
            raise BenchmarkError(f"{where}: question_id {question_id} stands in {seen[question_id]} too")
        seen[question_id] = where
        label = text_field(record, "label", where)
        if label not in ("yes", "no"):
            raise BenchmarkError(f"{where}: label is {label[:40]!r}, expected 'yes' or 'no'")
        uri = text_field(record, "image", where)
        image = benchmark_image(image_root, uri, where)
        yield Question(f"{split}/{question_id}", image, uri, text_field(record, "text", where), label)
    if not seen:
        raise BenchmarkError(f"{path}: no questions")
