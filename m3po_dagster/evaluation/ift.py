"""IFT, instruction following: does an answer keep to constraints that a rule can check, without any judge?

The paper's Instruction Following Test is not published. This is the project's own kind of set, of IFEval's form with an
image to each instruction: its figures compare models on the same file and are not the paper's.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import pyarrow as pa

from m3po_dagster.evaluation.benchmark import Benchmark, Headline, results_table
from m3po_dagster.evaluation.constraints.constraint import Constraint, met_loosely, met_strictly
from m3po_dagster.evaluation.constraints.registry import KINDS, read_constraints
from m3po_dagster.evaluation.intervals import Estimate, Sums, ratio
from m3po_dagster.evaluation.question import (
    Question,
    benchmark_image,
    check_answers,
    id_field,
    read_json_lines,
    text_field,
    unique_questions,
)
from m3po_dagster.evaluation.settings import IftSettings

_GROUP = "all"
_MEASURES: dict[str, Callable[[Constraint, str], bool]] = {"strict": met_strictly, "loose": met_loosely}
# Counts of constraints in the per-question table are named after the kind: "given max_words", "strict max_words".
_GIVEN = "given "
_KINDS_OF_FORMAT = {one.model_fields["kind"].default for one in KINDS if one.about == "format"}


class Ift(Benchmark):
    """Instructions with constraints, in a file of JSON lines."""

    kind: ClassVar[str] = "ift"
    headlines: ClassVar[tuple[Headline, ...]] = (Headline("prompt_strict", "IFT ↑"),)

    def __init__(self, settings: IftSettings):
        self.settings = settings

    def load(self) -> list[Question]:
        """The questions; `expected` is the JSON list of the constraints. Raises BenchmarkError naming line and field.

        A line is {"question_id", "image", "text", "constraints": [{"kind", ...}, ...]}.
        """
        path = self.settings.path
        return unique_questions(
            path, ((where, self._question(where, record)) for where, record in read_json_lines(path))
        )

    def per_question(
        self, questions: Sequence[Question], answers: Mapping[str, str], rule: str = "official"
    ) -> pa.Table:
        """Counts for each question of prompts whose constraints are all met, of constraints, and of those met.

        prompt_strict, prompt_loose: whether all are met. `given KIND`, `strict KIND`, `loose KIND`: constraints of that
        kind, and those of them that are met. formatted: whether it has constraints of format; compliant: whether it
        meets those strictly. Strict and loose are IFEval's; an empty answer meets nothing.
        """
        self.check_rule(rule)
        check_answers(questions, answers)
        constraints = [constraints_of(question) for question in questions]
        kinds = sorted({one.kind for some in constraints for one in some})
        names = [f"{prefix} {kind}" for prefix in ("given", *_MEASURES) for kind in kinds]
        counts: dict[str, list[float]] = {
            name: [0.0] * len(questions) for name in ("prompt_strict", "prompt_loose", "formatted", "compliant", *names)
        }
        for i, (question, some) in enumerate(zip(questions, constraints, strict=True)):
            answer = answers[question.question_id]
            for one in some:
                counts[f"{_GIVEN}{one.kind}"][i] += 1
            for name, meets in _MEASURES.items():
                met = [meets(one, answer) for one in some]
                counts[f"prompt_{name}"][i] = all(met)
                for one, is_met in zip(some, met, strict=True):
                    counts[f"{name} {one.kind}"][i] += is_met
            about_format = [one for one in some if one.about == "format"]
            counts["formatted"][i] = bool(about_format)
            counts["compliant"][i] = bool(about_format) and all(met_strictly(one, answer) for one in about_format)
        return results_table(questions, [_GROUP] * len(questions), [""] * len(questions), counts)

    def reading(self, question: Question, answer: str, rule: str = "official") -> str:
        """Which constraints the answer breaks, in the words of the instruction."""
        self.check_rule(rule)
        broken = [
            f"{one.describe()}{' (met loosely)' if met_loosely(one, answer) else ''}"
            for one in constraints_of(question)
            if not met_strictly(one, answer)
        ]
        return f"broken: {' '.join(broken)}" if broken else "all met"

    def metrics(self, sums: Sums) -> dict[str, Estimate]:
        """prompt_strict and prompt_loose, shares of prompts all of whose constraints are met; all in per cent.

        constraint_strict and constraint_loose, shares of all constraints, and the same by kind as KIND/constraint_...;
        format, of the prompts that ask for one the share whose constraints of format are all met strictly; there is no
        such metric where none asks.
        """
        prompts = sums[_GROUP, "questions"]
        found = {f"prompt_{name}": _share(sums[_GROUP, f"prompt_{name}"], prompts) for name in _MEASURES}
        kinds = sorted(name.removeprefix(_GIVEN) for _, name in sums.values if name.startswith(_GIVEN))
        given = {kind: sums[_GROUP, f"{_GIVEN}{kind}"] for kind in kinds}
        met = {name: {kind: sums[_GROUP, f"{name} {kind}"] for kind in kinds} for name in _MEASURES}
        for name, by_kind in met.items():
            found[f"constraint_{name}"] = _share(sum(by_kind.values()), sum(given.values()))
        if _KINDS_OF_FORMAT.intersection(kinds):
            found["format"] = _share(sums[_GROUP, "compliant"], sums[_GROUP, "formatted"])
        for kind in kinds:
            for name, by_kind in met.items():
                found[f"{kind}/constraint_{name}"] = _share(by_kind[kind], given[kind])
        return found

    def notes(self, questions: Sequence[Question]) -> list[str]:
        """That the set is no published one."""
        return ["IFT is this file's own set of rule-checked instructions, not the paper's, which is not published"]

    def _question(self, where: str, record: dict) -> Question:
        uri, text = text_field(record, "image", where), text_field(record, "text", where)
        image = benchmark_image(self.settings.image_root, uri, where)
        constraints = read_constraints(record.get("constraints"), where)
        if self.settings.say_constraints:
            text = " ".join([text, *(one.describe() for one in constraints)])
        expected = json.dumps([one.model_dump(mode="json") for one in constraints], ensure_ascii=False)
        return Question(id_field(record, where), image, uri, text, expected)


def constraints_of(question: Question) -> tuple[Constraint, ...]:
    """The constraints that a question of this benchmark carries."""
    return read_constraints(json.loads(question.expected), question.question_id)


def _share(part, whole) -> Estimate:
    return Estimate(100 * ratio(part, whole), whole)
