"""MIA-Bench: instructions of one to five weighted components about an image, scored component by component by a judge.

Read from its published file. What the published notebook leaves to the judge is done here: the total is the sum of the
component scores over the sum of the weights (8 in two records, 10 in the others), each component counts by itself
where a record has a type twice, and an answer that can't be judged is unscored, counted and never 0.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import pyarrow as pa

from m3po_dagster.evaluation.benchmark import Headline, results_table
from m3po_dagster.evaluation.component_request import Component, ComponentInquiry, component_request_version
from m3po_dagster.evaluation.intervals import Estimate, Sums, ratio
from m3po_dagster.evaluation.judged import JUDGEMENTS, JudgedBenchmark, judgement, silent, unscored, unscored_of
from m3po_dagster.evaluation.mia_files import read_records
from m3po_dagster.evaluation.question import BenchmarkError, Question, check_answers
from m3po_dagster.evaluation.settings import MiaBenchSettings
from m3po_dagster.method.judging import (
    HOW_REQUESTS_TRAVEL,
    SCORED,
    UNREADABLE_IMAGE,
    Account,
    JudgeImage,
    ServedJudgeSettings,
    ask_all,
    revision_of,
)

EMPTY = "the answer is empty: no component is followed"
# Counts of components in the per-question table are named after their type: "given describe", "followed describe".
_GIVEN, _FOLLOWED = "given ", "followed "


class MiaBench(JudgedBenchmark):
    """MIA-Bench's records; question ids are type/number, the number being the record's place in the file from 1."""

    kind: ClassVar[str] = "mia_bench"
    headlines: ClassVar[tuple[Headline, ...]] = (
        Headline("score", "MIA-Bench ↑"),
        Headline("coverage", "MIA-Bench judged"),
    )

    def __init__(self, settings: MiaBenchSettings):
        self.settings = settings

    @property
    def served_judge(self) -> ServedJudgeSettings:
        """The judge of the settings."""
        return self.settings.judge

    def load(self) -> list[Question]:
        """The questions; `expected` is the JSON list of the components: text, weight, type.

        Raises BenchmarkError that names the record and its field, or the images that are missing and how to get them.
        """
        return self._read()[0]

    def judge_identity(self) -> dict:
        """The judge's settings and its request; not how requests travel."""
        settings = self.settings.judge.model_dump(mode="json", exclude=set(HOW_REQUESTS_TRAVEL))
        return {"settings": settings, "request": component_request_version()}

    def judge_answers(
        self,
        questions: Sequence[Question],
        answers: Mapping[str, str],
        account: Account | None,
        against: Mapping[str, str] | None = None,
        advance: Callable[[int, int], None] = silent,
    ) -> pa.Table:
        """One request an answer, a row a component; nothing is compared, so `against` is not used.

        An empty answer follows no component and is not sent. Raises as JudgedBenchmark says, and ValueError without an
        account, or when the key's variable is not set.
        """
        check_answers(questions, answers)
        if account is None:
            raise ValueError("MIA-Bench's judge is served: it is asked through an account")
        inquiries: dict[str, ComponentInquiry] = {}
        for question in questions:
            if answers[question.question_id].strip():
                inquiry = self._inquiry(question, answers[question.question_id], account)
                if inquiry is not None:
                    inquiries[question.question_id] = inquiry
        ask_all(self.settings.judge, account, list(inquiries.values()), advance)
        rows = []
        for question in questions:
            name = question.question_id
            for number, (component, _) in enumerate(components_of(question), start=1):
                key = str(number)
                if not answers[name].strip():
                    rows.append(judgement(name, key, 0.0, component.weight, EMPTY))
                elif name not in inquiries:
                    rows.append(unscored(name, key, UNREADABLE_IMAGE, component.weight))
                elif (found := inquiries[name].grades.get(key)) is not None:
                    rows.append(judgement(name, key, found.score, component.weight, found.evidence))
                else:
                    rows.append(unscored_of(inquiries[name], key, name, key, component.weight))
        return pa.Table.from_pylist(rows, JUDGEMENTS)

    def per_question(
        self, questions: Sequence[Question], answers: Mapping[str, str], rule: str = "official"
    ) -> pa.Table:
        """Counts: judged, whether every component has a score; score, the share of the weights that the answer got.

        `given TYPE` and `followed TYPE`: components of that type in judged answers, and the shares of their weights
        that they got. Raises BenchmarkError also where no answer could be judged.
        """
        self.check_rule(rule)
        check_answers(questions, answers)
        judgements = self.judgements_of(questions)
        parts = [components_of(question) for question in questions]
        types = sorted({kind for some in parts for _, kind in some})
        names = [f"{prefix}{kind}" for prefix in (_GIVEN, _FOLLOWED) for kind in types]
        counts = {name: [0.0] * len(questions) for name in ("judged", "score", *names)}
        for i, (question, some) in enumerate(zip(questions, parts, strict=True)):
            rows = _rows_of(question, some, judgements[question.question_id])
            if any(row["status"] != SCORED for row in rows):
                continue
            counts["judged"][i] = 1.0
            counts["score"][i] = sum(row["score"] for row in rows) / sum(component.weight for component, _ in some)
            for row, (component, kind) in zip(rows, some, strict=True):
                counts[f"{_GIVEN}{kind}"][i] += 1
                counts[f"{_FOLLOWED}{kind}"][i] += row["score"] / component.weight
        if not any(counts["judged"]):
            first = next(row for some in judgements.values() for row in some.values() if row["status"] != SCORED)
            raise BenchmarkError(
                f"{self.kind}: none of {len(questions)} answers could be judged; the first: {first['status']}"
                + (f", {first['words']}" if first["words"] else "")
            )
        groups = [question.group for question in questions]
        return results_table(questions, groups, [""] * len(questions), counts)

    def reading(self, question: Question, answer: str, rule: str = "official") -> str:
        """The score with that of each component, or why there is none, by the bound judgements."""
        self.check_rule(rule)
        some = components_of(question)
        rows = _rows_of(question, some, self.judgements_of([question])[question.question_id])
        said = [
            f"{component.text}: "
            + (row["status"] if row["score"] is None else f"{row['score']:g}/{component.weight:g}")
            for row, (component, _) in zip(rows, some, strict=True)
        ]
        if any(row["score"] is None for row in rows):
            return f"unscored ({'; '.join(said)})"
        total, most = sum(row["score"] for row in rows), sum(component.weight for component, _ in some)
        return f"{total:g} of {most:g} ({'; '.join(said)})"

    def metrics(self, sums: Sums) -> dict[str, Estimate]:
        """All in per cent. score, the mean over judged answers; coverage, the share of answers that are judged.

        TYPE/score for each type of instruction (basic to complex); component/TYPE for each type of component (describe,
        mention, length_limit, ...), the mean share of its weight.
        """
        total = {name: sum(sums[group, name] for group in sums.groups) for name in ("questions", "judged", "score")}
        found = {
            "score": _share(total["score"], total["judged"]),
            "coverage": _share(total["judged"], total["questions"]),
        }
        for group in sums.groups:
            found[f"{group}/score"] = _share(sums[group, "score"], sums[group, "judged"])
        for kind in sorted({name.removeprefix(_GIVEN) for _, name in sums.values if name.startswith(_GIVEN)}):
            given, followed = (
                sum(sums[group, f"{prefix}{kind}"] for group in sums.groups) for prefix in (_GIVEN, _FOLLOWED)
            )
            found[f"component/{kind}"] = _share(followed, given)
        return found

    def notes(self, questions: Sequence[Question]) -> list[str]:
        """Which judge it was, and the records that were left out."""
        judge = self.settings.judge
        model = f"{judge.model} ({judge.revision})" if judge.revision else judge.model
        notes = [f"MIA-Bench is judged by {model}; published figures are by GPT-4o and another prompt"]
        if left_out := self._read()[1]:
            notes.append(f"{left_out} of MIA-Bench's records are left out: their images are missing")
        return notes

    def _read(self) -> tuple[list[Question], int]:
        """The questions, and how many records are left out for want of their image."""
        records, left_out = read_records(
            self.settings.path, self.settings.image_root, self.settings.skip_missing_images
        )
        questions = [
            Question(
                f"{record.type}/{record.number}",
                record.image_path,
                record.image_uri,
                record.instruction,
                json.dumps(record.components, ensure_ascii=False),
            )
            for record in records
        ]
        return questions, left_out

    def _inquiry(self, question: Question, answer: str, account: Account) -> ComponentInquiry | None:
        """What is asked about an answer; None when there is no image file any more."""
        judge = self.settings.judge
        try:
            image = JudgeImage(question.image_path, judge.image_urls, judge.detail)
        except OSError:
            return None
        components = [component for component, _ in components_of(question)]
        revision = revision_of(judge, account)
        return ComponentInquiry(question.question_id, image, question.text, components, answer, judge, revision)


def components_of(question: Question) -> list[tuple[Component, str]]:
    """The components that a question of this benchmark carries, each with its type."""
    return [(Component(one["text"], one["weight"]), one["type"]) for one in json.loads(question.expected)]


def _rows_of(question: Question, parts: Sequence, found: Mapping[str, dict]) -> list[dict]:
    """The judgements of an answer in the order of its components. Raises BenchmarkError when they are of others."""
    rows = [found.get(str(number)) for number in range(1, len(parts) + 1)]
    if len(found) != len(parts) or None in rows:
        raise BenchmarkError(
            f"{question.question_id}: judged are the components {', '.join(found)}, it has {len(parts)}: the stored "
            "judgements are of another file"
        )
    return rows


def _share(part, whole) -> Estimate:
    return Estimate(100 * ratio(part, whole), whole)
