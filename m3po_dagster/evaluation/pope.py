"""POPE, Polling-based Object Probing Evaluation: does the model say yes to objects that are not there?

By the official answer rule or another tool's, per split and as the unweighted mean over the splits. Answers are joined
on ids: the official script pairs by order and shifts silently when one is missing.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
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
from m3po_dagster.evaluation.rules.yes_no import POPE_RULES, starts_with_yes_or_no
from m3po_dagster.evaluation.settings import PopeSettings

_SPLITS = 3


@dataclass(frozen=True)
class _Counting:
    """What a tool does beside reading an answer."""

    other_is_missed: bool = False  # neither yes nor no, where yes is expected, counts against recall
    ratio_of_labels: bool = False  # yes_ratio is over what is expected, not over what is answered


_COUNTING = {
    "official": _Counting(),
    "lmms-eval": _Counting(ratio_of_labels=True),
    "vlmevalkit": _Counting(other_is_missed=True),
}


class Pope(Benchmark):
    """POPE's splits over one folder of images; question ids are split/id, as ids repeat across splits."""

    kind: ClassVar[str] = "pope"
    reads_form: ClassVar[bool] = True
    rules: ClassVar[tuple[str, ...]] = tuple(POPE_RULES)
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

    @classmethod
    def per_question(
        cls, questions: Sequence[Question], answers: Mapping[str, str], rule: str = "official"
    ) -> pa.Table:
        """Counts tp, fp, tn, fn (positive is yes); yes, of which yes_ratio is the share; and compliant.

        An answer that the rule reads as neither yes nor no is wrong: in none of the four under lmms-eval, which leaves
        it out of precision, recall and F1; fn or nothing under vlmevalkit, for which it is no yes. lmms-eval's `yes`
        counts the labels. compliant: the answer starts with yes or no as a word, whatever the rule. No settings needed.
        """
        cls.check_rule(rule)
        check_answers(questions, answers)
        counting = _COUNTING[rule]
        counts: dict[str, list[bool]] = {name: [] for name in ("tp", "fp", "tn", "fn", "yes", "compliant")}
        for question in questions:
            answer, present = answers[question.question_id], question.expected == "yes"
            read = POPE_RULES[rule](answer)
            missed = read == "no" or (read == "other" and counting.other_is_missed)
            counts["tp"].append(read == "yes" and present)
            counts["fp"].append(read == "yes" and not present)
            counts["tn"].append(read == "no" and not present)
            counts["fn"].append(missed and present)
            counts["yes"].append(present if counting.ratio_of_labels else read == "yes")
            counts["compliant"].append(starts_with_yes_or_no(answer))
        # One image answers for all splits: they share images and are resampled together.
        groups = [question.group for question in questions]
        return results_table(questions, groups, [""] * len(questions), counts)

    def reading(self, question: Question, answer: str, rule: str = "official") -> str:
        """yes, no, or other, which is wrong whatever was asked. Raises BenchmarkError for an unknown rule."""
        self.check_rule(rule)
        return POPE_RULES[rule](answer)

    def metrics(self, sums: Sums) -> dict[str, Estimate]:
        """Per split, and without prefix the unweighted mean over the splits there are.

        accuracy, precision, recall, f1, yes_ratio and format, all in per cent. Precision and F1 are 0 when nothing is
        predicted yes, where the official script divides by zero.
        """
        by_split = {
            split: {
                name: Estimate(100 * share, sums[split, "questions"])
                for name, share in split_shares(sums, split).items()
            }
            for split in sums.groups
        }
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


def split_shares(sums: Sums, split: str) -> dict[str, np.ndarray]:
    """accuracy, precision, recall, f1, yes_ratio and format of a split, 0 to 1; an empty denominator gives 0."""
    tp, fp, tn, fn, n = (sums[split, name] for name in ("tp", "fp", "tn", "fn", "questions"))
    return {
        "accuracy": ratio(tp + tn, n),
        "precision": ratio(tp, tp + fp, empty=0.0),
        "recall": ratio(tp, tp + fn, empty=0.0),
        "f1": ratio(2 * tp, 2 * tp + fp + fn, empty=0.0),
        "yes_ratio": ratio(sums[split, "yes"], n),
        "format": ratio(sums[split, "compliant"], n),
    }


def labelled_lines(path: Path) -> Iterator[tuple[str, dict, str, str]]:
    """Where each line of a label file stands, its record, question_id and label.

    Raises BenchmarkError that names file and line for an id that stands twice, and for a label other than yes and no.
    """
    seen: dict[str, str] = {}
    for where, record in read_json_lines(path):
        question_id = id_field(record, where)
        if question_id in seen:
            raise BenchmarkError(f"{where}: question_id {question_id} stands in {seen[question_id]} too")
        seen[question_id] = where
        label = text_field(record, "label", where)
        if label not in ("yes", "no"):
            raise BenchmarkError(f"{where}: label is {label[:40]!r}, expected 'yes' or 'no'")
        yield where, record, question_id, label
    if not seen:
        raise BenchmarkError(f"{path}: no questions")


def _split_questions(split: str, path: Path, image_root: Path) -> Iterator[Question]:
    for where, record, question_id, label in labelled_lines(path):
        uri = text_field(record, "image", where)
        image = benchmark_image(image_root, uri, where)
        yield Question(f"{split}/{question_id}", image, uri, text_field(record, "text", where), label)
