"""MME of anybody's answers: a folder of results as the official eval_tool reads it.

One <category>.txt a category, one line a question: image, question, ground truth and response, parted by tabs. The
tool takes two consecutive lines for an image; here the image's name pairs them, which is the same for its own files.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from m3po_dagster.evaluation.intervals import Clusters
from m3po_dagster.evaluation.mme import PARTS, QUESTIONS_AN_IMAGE, Mme, answer_shares, category_shares
from m3po_dagster.evaluation.question import SHOWN_IDS, BenchmarkError, Question, read_text

OFFICIAL_QUESTIONS = {
    "existence": 60,
    "count": 60,
    "position": 60,
    "color": 60,
    "posters": 294,
    "celebrity": 340,
    "scene": 400,
    "landmark": 400,
    "artwork": 400,
    "OCR": 40,
    "commonsense_reasoning": 140,
    "numerical_calculation": 40,
    "text_translation": 40,
    "code_reasoning": 40,
}
"""Categories of MME's release, perception first, and how many questions each has there."""

_FIELDS = 4


@dataclass(frozen=True)
class CategoryScore:
    """acc and acc_plus as the official tool has them, 0 to 1; score is 100 acc + 100 acc_plus."""

    acc: float
    acc_plus: float
    score: float


@dataclass(frozen=True)
class MmeScores:
    """What `rule` gives: the categories in the official order, and yes_ratio, other and format of all answers."""

    rule: str
    categories: Mapping[str, CategoryScore]
    questions: Mapping[str, int]
    shares: Mapping[str, float]

    @property
    def parts(self) -> dict[str, float]:
        """perception and cognition, each the sum of its categories there are, and their total."""
        sums = {
            part: sum((self.categories[name].score for name in names if name in self.categories), 0.0)
            for part, names in PARTS.items()
        }
        return {**sums, "total": sum(sums.values())}

    @property
    def missing(self) -> list[str]:
        """Official categories without a file; the official tool stops at the first."""
        return [name for name in OFFICIAL_QUESTIONS if name not in self.categories]

    def as_json(self) -> dict:
        """perception, cognition, total and categories; and missing, if there are any."""
        categories = {name: asdict(one) for name, one in self.categories.items()}
        missing = {"missing": self.missing} if self.missing else {}
        return {**self.parts, "categories": categories, **missing}

    def notes(self) -> list[str]:
        """What sets the figures apart from those of a whole run."""
        notes = []
        for part, names in PARTS.items():
            absent = [name for name in names if name not in self.categories]
            if absent:
                there = len(names) - len(absent)
                notes.append(f"{part} is the sum of {there} of {len(names)} categories; missing: {', '.join(absent)}")
        other = [
            f"{name} {number} of {OFFICIAL_QUESTIONS[name]}"
            for name, number in self.questions.items()
            if number != OFFICIAL_QUESTIONS[name]
        ]
        if other:
            notes.append(f"not the number of questions of MME's release: {', '.join(other)}")
        return notes


def read_mme(folder: Path) -> tuple[list[Question], dict[str, str]]:
    """The questions and the answers to them, of every <category>.txt; other kinds of files are left alone.

    Raises BenchmarkError that names file and line: for a text file that is no category of MME, a line without its four
    fields, a question that stands twice with one ground truth, and an image that has not exactly two questions.
    """
    if not folder.is_dir():
        raise BenchmarkError(f"{folder}: no such folder")
    found = (path for path in folder.iterdir() if path.suffix == ".txt" and not path.name.startswith("."))
    files = sorted(path for path in found if path.is_file())
    if unknown := [path.name for path in files if path.stem not in OFFICIAL_QUESTIONS]:
        raise BenchmarkError(
            f"{folder}: no categories of MME: {', '.join(unknown)}; there are {', '.join(OFFICIAL_QUESTIONS)}"
        )
    if not files:
        raise BenchmarkError(f"{folder}: no <category>.txt; the official tool reads existence.txt, count.txt, ...")
    questions: list[Question] = []
    answers: dict[str, str] = {}
    by_category = {path.stem: path for path in files}
    for category in OFFICIAL_QUESTIONS:
        if category in by_category:
            for question, answer in _category(category, by_category[category]):
                questions.append(question)
                answers[question.question_id] = answer
    return questions, answers


def score_mme(questions: list[Question], answers: Mapping[str, str], rule: str) -> MmeScores:
    """Scores what `read_mme` read. Raises BenchmarkError for an unknown rule."""
    sums = Clusters.of(Mme.per_question(questions, answers, rule)).once()
    categories, numbers = {}, {}
    for category in dict.fromkeys(question.group for question in questions):
        acc, acc_plus = (float(share[0]) for share in category_shares(sums, category))
        categories[category] = CategoryScore(acc, acc_plus, 100 * acc + 100 * acc_plus)
        numbers[category] = round(float(sums[category, "questions"][0]))
    shares = {name: float(share[0]) for name, share in answer_shares(sums).items()}
    return MmeScores(rule, categories, numbers, shares)


def _category(category: str, path: Path) -> list[tuple[Question, str]]:
    rows: list[tuple[Question, str]] = []
    places: dict[str, dict[tuple[str, str], int]] = {}
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line:
            continue
        image, text, label, response = _fields(line, f"{path}, line {number}")
        asked = places.setdefault(image, {})
        # One text with both ground truths is two questions, as for the official tool.
        key = text, label.lower()
        if key in asked:
            raise BenchmarkError(f"{path}, line {number}: {image} and its question stand in line {asked[key]} too")
        asked[key] = number
        uri = f"{category}/{image}"
        rows.append((Question(f"{uri}/{len(asked)}", Path(image), uri, text, label), response))
    if not rows:
        raise BenchmarkError(f"{path}: no answers")
    wrong = [
        f"{image} has {len(asked)} (line {', '.join(map(str, asked.values()))})"
        for image, asked in places.items()
        if len(asked) != QUESTIONS_AN_IMAGE
    ]
    if wrong:
        shown = "; ".join(wrong[:SHOWN_IDS]) + ("; ..." if len(wrong) > SHOWN_IDS else "")
        raise BenchmarkError(f"{path}: MME asks {QUESTIONS_AN_IMAGE} questions an image, but {shown}")
    return rows


def _fields(line: str, where: str) -> list[str]:
    # A tab inside the response, where the official tool crashes, is part of it: no rule could mean anything else.
    fields = line.split("\t", _FIELDS - 1)
    if len(fields) != _FIELDS:
        raise BenchmarkError(
            f"{where}: expected image, question, ground truth and response parted by tabs, found {line[:80]!r}; "
            "a response must be a single line"
        )
    image, text, label, _ = fields
    if not image or not text:
        raise BenchmarkError(f"{where}: the {'question' if image else 'image'} is empty")
    if label.lower() not in ("yes", "no"):
        raise BenchmarkError(f"{where}: the ground truth of {image} is {label[:40]!r}, expected Yes or No")
    return fields
