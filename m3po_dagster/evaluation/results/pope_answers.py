"""POPE of anybody's answers: JSON lines of answers against a label file as POPE publishes it, a pair a split."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from m3po_dagster.evaluation.intervals import Clusters
from m3po_dagster.evaluation.pope import Pope, labelled_lines, split_shares
from m3po_dagster.evaluation.question import BenchmarkError, Question, id_field, read_json_lines
from m3po_dagster.evaluation.results.joining import check_joined

OFFICIAL_SHARES = ("accuracy", "precision", "recall", "f1", "yes_ratio")
"""What the official script prints."""


@dataclass(frozen=True)
class PopeScores:
    """What `rule` gives for each split: accuracy, precision, recall, f1, yes_ratio and format, 0 to 1; and n."""

    rule: str
    splits: Mapping[str, Mapping[str, float]]

    @property
    def mean(self) -> dict[str, float]:
        """The unweighted mean over the splits; n is their sum."""
        splits = list(self.splits.values())
        shares = {name: float(np.mean([one[name] for one in splits])) for name in splits[0] if name != "n"}
        return shares | {"n": sum(one["n"] for one in splits)}

    def as_json(self) -> dict:
        """The figures of the official script and n; of one split, or {"splits": {name: ...}, "mean": ...}."""
        splits = {name: _official(one) for name, one in self.splits.items()}
        if len(splits) == 1:
            return next(iter(splits.values()))
        return {"splits": splits, "mean": _official(self.mean)}


def read_pope(answers: Path, labels: Path) -> tuple[list[Question], dict[str, str]]:
    """The questions of a label file and the answers to them, by question id: the label file's stem/question_id.

    An answer is {"question_id", "answer"}, or a line of LLaVA's, {"question_id", "prompt", "text"}. Raises
    BenchmarkError that names file, line and ids: for a line that is malformed, and for an answer that is missing, extra
    or there twice.
    """
    asked, questions = {}, []
    for where, _, question_id, label in labelled_lines(labels):
        asked[question_id] = where
        # No image is opened, and none is resampled: the id stands for it.
        questions.append(Question(f"{labels.stem}/{question_id}", Path(question_id), question_id, "", label))
    answered, answers_by_id = {}, {}
    for where, record in read_json_lines(answers):
        question_id = id_field(record, where)
        if question_id in answered:
            raise BenchmarkError(f"{where}: question_id {question_id} is answered in {answered[question_id]} too")
        answered[question_id] = where
        answers_by_id[f"{labels.stem}/{question_id}"] = _answer(record, where, question_id)
    check_joined(answers, answered, labels, asked)
    return questions, answers_by_id


def score_pope(splits: Sequence[tuple[Sequence[Question], Mapping[str, str]]], rule: str) -> PopeScores:
    """Scores what `read_pope` read. Raises BenchmarkError for an unknown rule."""
    questions = [question for asked, _ in splits for question in asked]
    answers = {name: answer for _, given in splits for name, answer in given.items()}
    sums = Clusters.of(Pope.per_question(questions, answers, rule)).once()
    scores = {}
    for split in dict.fromkeys(question.group for question in questions):
        shares = {name: float(share[0]) for name, share in split_shares(sums, split).items()}
        scores[split] = shares | {"n": round(float(sums[split, "questions"][0]))}
    return PopeScores(rule, scores)


def _answer(record: Mapping, where: str, question_id: str) -> str:
    # The text of a label file is the question, which would be scored as an answer without a word.
    is_llavas = "prompt" in record and "label" not in record
    key = "text" if is_llavas and "answer" not in record else "answer"
    if key not in record:
        raise BenchmarkError(f"{where}: question_id {question_id} has no 'answer'")
    if not isinstance(record[key], str):
        raise BenchmarkError(f"{where}: the {key} of question_id {question_id} is {str(record[key])[:40]!r}, no text")
    return record[key]


def _official(shares: Mapping[str, float]) -> dict[str, float]:
    return {name: shares[name] for name in (*OFFICIAL_SHARES, "n")}
