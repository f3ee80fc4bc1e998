"""VizWiz of anybody's answers: the JSON array that its evaluation server takes against a file of annotations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from m3po_dagster.evaluation.intervals import Clusters
from m3po_dagster.evaluation.question import BenchmarkError, Question, text_field
from m3po_dagster.evaluation.results.joining import check_joined
from m3po_dagster.evaluation.vizwiz import Vizwiz, annotated, answer_shares, read_json_array, type_accuracies


@dataclass(frozen=True)
class VizwizScores:
    """What `rule` gives, in per cent: accuracy, over all and by type of answer, and the shares read beside it."""

    rule: str
    accuracy: float
    by_answer_type: Mapping[str, float]
    questions: Mapping[str, int]
    unanswerable_rate: float
    constant_unanswerable: float
    format: float

    @property
    def n(self) -> int:
        """The number of questions."""
        return sum(self.questions.values())

    def as_json(self) -> dict:
        """accuracy, n, by_answer_type, unanswerable_rate, constant_unanswerable and format."""
        return {
            "accuracy": self.accuracy,
            "n": self.n,
            "by_answer_type": dict(self.by_answer_type),
            "unanswerable_rate": self.unanswerable_rate,
            "constant_unanswerable": self.constant_unanswerable,
            "format": self.format,
        }


def read_vizwiz(answers: Path, annotations: Path) -> tuple[list[Question], dict[str, str]]:
    """The questions of an annotation file and the answers to them, by image.

    Raises BenchmarkError that names file, record and image: for files of another layout, and for an answer that is
    missing, extra or there twice.
    """
    asked, questions = {}, []
    for where, _, image, expected in annotated(annotations):
        asked[image] = where
        # No image is opened: its name is the question's id.
        questions.append(Question(image, Path(image), image, "", expected))
    answered, answers_by_image = {}, {}
    for where, record in read_json_array(answers):
        image = text_field(record, "image", where)
        if image in answered:
            raise BenchmarkError(f"{where}: {image} is answered in {answered[image]} too")
        answered[image] = where
        if not isinstance(record.get("answer"), str):
            raise BenchmarkError(f"{where}: the answer of {image} is {str(record.get('answer'))[:40]!r}, no text")
        answers_by_image[image] = record["answer"]
    check_joined(answers, answered, annotations, asked)
    return questions, answers_by_image


def score_vizwiz(questions: Sequence[Question], answers: Mapping[str, str], rule: str) -> VizwizScores:
    """Scores what `read_vizwiz` read. Raises BenchmarkError for an unknown rule."""
    sums = Clusters.of(Vizwiz.per_question(questions, answers, rule)).once()
    by_type = {kind: 100 * float(share[0]) for kind, share in type_accuracies(sums).items()}
    numbers = {kind: round(float(sums[kind, "questions"][0])) for kind in by_type}
    shares = {name: 100 * float(share[0]) for name, share in answer_shares(sums).items()}
    return VizwizScores(rule, by_answer_type=by_type, questions=numbers, **shares)
