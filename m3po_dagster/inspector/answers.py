"""Benchmark answers of adapters beside those of the base model: which differ, and which became right or wrong."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from urllib.parse import urlencode

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from m3po_dagster.evaluation.benchmark import Benchmark
from m3po_dagster.evaluation.question import BenchmarkError
from m3po_dagster.inspector.catalogue import Catalogue
from m3po_dagster.inspector.kept import Kept
from m3po_dagster.inspector.query import QueryError
from m3po_dagster.inspector.readings import bound_benchmark, question_of, readings
from m3po_dagster.storage.artifact import Artifact
from m3po_dagster.study import BASE_RECIPE, Study

PAGE_SIZE = 20
SHOWS = {
    "": "all questions",
    "differs": "differs from base",
    "right": "became right",
    "wrong": "became wrong",
}
_KEPT_TABLES = 32


@dataclass(frozen=True)
class AnswerQuery:
    """Which questions are shown, and whose answers beside the base model's."""

    recipes: tuple[str, ...]
    benchmark: str
    seed: int | None  # None for the first that each recipe has
    show: str
    q: str

    @classmethod
    def parse(cls, given: Sequence[tuple[str, str]], catalogue: Catalogue) -> "AnswerQuery":
        """From a page's query, in which `recipe` may stand several times; without one it is the last of rule
        m3p that has answers, or the last that has.

        Raises QueryError for names that the study lacks and for what is no seed.
        """
        values = dict(given)
        recipes = tuple(dict.fromkeys(value for name, value in given if name == "recipe" and value))
        unknown = [name for name in recipes if name not in catalogue.study.recipes]
        if unknown:
            raise QueryError(f"there is no recipe {unknown[0]!r}; there are {', '.join(catalogue.study.recipes)}")
        name = values.get("benchmark", "") or next(iter(catalogue.study.benchmarks))
        if name not in catalogue.study.benchmarks:
            raise QueryError(f"there is no benchmark {name!r}; there are {', '.join(catalogue.study.benchmarks)}")
        seed = values.get("seed", "")
        if seed and (not seed.isdecimal() or len(seed) > 18):
            raise QueryError(f"seed: {seed!r} is no seed")
        show = values.get("show", "")
        if show not in SHOWS:
            raise QueryError(f"there is no filter {show!r}; there are {', '.join(SHOWS)}")
        recipes = tuple(item for item in catalogue.study.recipes if item in recipes)
        if not recipes:
            answered = [item for item in catalogue.recipes if item in catalogue.scores]
            m3p = [item for item in answered if catalogue.study.recipes[item].selection.rule == "m3p"]
            recipes = tuple((m3p or answered or list(catalogue.recipes))[-1:])
        return cls(recipes, name, int(seed) if seed else None, show, values.get("q", "")[:500])

    def url(self, **changes: object) -> str:
        """The query as a URL's query string, with other or further fields."""
        given = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "recipes"}
        pairs = [("recipe", name) for name in self.recipes]
        pairs += [(name, str(value)) for name, value in {**given, **changes}.items() if value not in ("", None)]
        return urlencode(pairs)


@dataclass(frozen=True)
class Answer:
    """What one recipe answered; `right` is None where the benchmark has no right or wrong, or can't be scored.

    `readings` are what the benchmark's rules make of it.
    """

    recipe: str
    text: str
    right: bool | None
    differs: bool
    readings: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class AnsweredQuestion:
    """A question with the base model's answer first."""

    question_id: str
    image_uri: str
    question: str
    expected: str | None
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class AnswerPage:
    """A page of questions. `problems` says what could not be shown."""

    questions: list[AnsweredQuestion]
    total: int
    page: int
    pages: int
    seeds: tuple[int, ...]
    problems: tuple[str, ...]
    scorable: bool


class AnswerLists:
    """Reads and compares answers; tables read are kept while they are current."""

    def __init__(self) -> None:
        self._kept: Kept[tuple[pa.Table, np.ndarray | None, str]] = Kept(_KEPT_TABLES)
        self._benchmarks: Kept[Benchmark] = Kept(_KEPT_TABLES)

    def prepare(self, catalogue: Catalogue) -> None:
        """Reads and judges what the page shows first of each benchmark, so that no request has to."""
        for name in catalogue.study.benchmarks:
            self.page(catalogue, AnswerQuery.parse([("benchmark", name)], catalogue), 1)

    def page(self, catalogue: Catalogue, query: AnswerQuery, page: int) -> AnswerPage:
        """The questions that fit. Raises OSError or pa.ArrowException for files that can't be read."""
        problems: list[str] = []
        seeds: set[int] = set()
        columns: list[tuple[str, dict[str, int], pa.Table, np.ndarray | None]] = []
        readers = []
        for recipe in (BASE_RECIPE, *(name for name in query.recipes if name != BASE_RECIPE)):
            artifact = catalogue.scores.get(recipe)
            if artifact is None:
                command = catalogue.commands.run(recipe)
                problems.append(f"There are no benchmark answers of {recipe} yet: run `{command}`.")
                continue
            available = _seeds(artifact)
            seeds |= set(available) if recipe != BASE_RECIPE else set()
            seed = available[0] if recipe == BASE_RECIPE or query.seed is None else query.seed
            if seed not in available:
                shown = ", ".join(map(str, available))
                problems.append(f"Recipe {recipe} has no adapter of seed {seed}; it has {shown}.")
                continue
            table, right, problem = self._table(catalogue.study, artifact, query.benchmark, seed)
            if problem and problem not in problems:
                problems.append(problem)
            ids = {name: row for row, name in enumerate(table["question_id"].to_pylist())}
            columns.append((recipe, ids, table, right))
            readers.append(self._benchmark(catalogue.study, artifact, query.benchmark, seed))
        if not columns or columns[0][0] != BASE_RECIPE:
            return AnswerPage([], 0, 1, 1, tuple(sorted(seeds)), tuple(problems), False)
        _, _, base, base_right = columns[0]
        rows = [_aligned(base, ids) for _, ids, _, _ in columns]
        fits = _fits(query, base, base_right, columns[1:], rows[1:])
        numbers = np.flatnonzero(fits)
        pages = max(1, -(-len(numbers) // PAGE_SIZE))
        page = min(max(1, page), pages)
        shown = numbers[(page - 1) * PAGE_SIZE : page * PAGE_SIZE]
        texts = [table["answer"] for _, _, table, _ in columns]
        root = image_root(catalogue.study, query.benchmark)
        questions = []
        for row, record in zip(shown, base.take(pa.array(shown)).to_pylist(), strict=True):
            answers, question = [], question_of(record, root)
            for (recipe, _, _, right), places, answer, item in zip(columns, rows, texts, readers, strict=True):
                at = int(places[row])
                if at < 0:
                    continue
                text = answer[at].as_py()
                is_right = None if right is None else bool(right[at])
                read_as = readings(item, question, text)
                answers.append(Answer(recipe, text, is_right, text != record["answer"], read_as))
            named = ("question_id", "image_uri", "question", "expected")
            questions.append(AnsweredQuestion(**{name: record[name] for name in named}, answers=tuple(answers)))
        return AnswerPage(
            questions,
            len(numbers),
            page,
            pages,
            tuple(sorted(seeds)),
            tuple(problems),
            all(right is not None for _, _, _, right in columns),
        )

    def _table(self, study: Study, artifact: Artifact, name: str, seed: int) -> tuple[pa.Table, np.ndarray | None, str]:
        """One recipe's answers to a benchmark, which of them are right, and why that can't be said."""
        made = (artifact.key, artifact.data_version)
        key = (*made, name, seed, study.benchmarks[name].model_dump_json())

        def read() -> tuple[pa.Table, np.ndarray | None, str]:
            filters = [("benchmark", "=", name), ("seed", "=", seed)]
            path = artifact.path("answers.parquet")
            try:
                table = pq.read_table(path, filters=filters)
            except pa.ArrowException as error:
                raise ValueError(
                    f"{path} can't be read or is damaged ({error}): run `m3po doctor store --repair`"
                ) from None
            try:
                return table, _right(self._benchmark(study, artifact, name, seed), image_root(study, name), table), ""
            except (BenchmarkError, OSError) as error:
                return table, None, f"Right and wrong can't be told: {error}"

        return self._kept.get(key, read)

    def _benchmark(self, study: Study, artifact: Artifact, name: str, seed: int) -> Benchmark:
        """The benchmark as it was scored; a page asks it about many answers, and its files are read once."""
        key = (artifact.key, artifact.data_version, name, seed, study.benchmarks[name].model_dump_json())
        return self._benchmarks.get(key, lambda: bound_benchmark(study, name, artifact, seed))


def image_root(study: Study, name: str) -> Path:
    """The folder that a benchmark's image paths are relative to."""
    settings = study.benchmarks[name]
    return getattr(settings, "image_root", None) or settings.root


def _seeds(artifact: Artifact) -> list[int]:
    column = pq.read_table(artifact.path("data.parquet"), columns=["seed"])["seed"]
    return sorted(pc.unique(column).to_pylist())


def _right(item: Benchmark, root: Path, table: pa.Table) -> np.ndarray | None:
    """Whether each answer is right by the benchmark's own rule: a description is right when it invents nothing.

    An open answer is right when it scores more than half, which takes two of ten people's. None for a benchmark that
    has no such rule. Raises BenchmarkError.
    """
    if not table.num_rows:
        return None
    rows = table.select(["question_id", "image_uri", "question", "expected"]).to_pylist()
    questions = [question_of(row, root) for row in rows]
    answers = dict(zip(table["question_id"].to_pylist(), table["answer"].to_pylist(), strict=True))
    counted = item.per_question(questions, answers)
    names = set(counted.column_names)
    if {"tp", "tn"} <= names:
        right = pc.add(counted["tp"], counted["tn"])
    elif "correct" in names:
        right = counted["correct"]
    elif "hallucinating" in names:
        right = pc.subtract(1.0, counted["hallucinating"])
    else:
        return None
    by_id = dict(zip(counted["question_id"].to_pylist(), right.to_pylist(), strict=True))
    return np.array([by_id[question.question_id] > 0.5 for question in questions])


def _aligned(base: pa.Table, ids: Mapping[str, int]) -> np.ndarray:
    """The row of each of base's questions in another table; -1 where it has none."""
    return np.array([ids.get(name, -1) for name in base["question_id"].to_pylist()], dtype=np.int64)


def _fits(query: AnswerQuery, base, base_right, others, rows) -> np.ndarray:
    """Which of base's questions are shown: those where any of the other recipes does what `show` says."""
    if query.q:
        found = pc.or_(
            pc.match_substring(base["question"], query.q, ignore_case=True),
            pc.match_substring(base["image_uri"], query.q, ignore_case=True),
        )
        fits = found.combine_chunks().to_numpy(zero_copy_only=False)
    else:
        fits = np.ones(base.num_rows, dtype=bool)
    if not query.show:
        return fits
    any_fits = np.zeros(base.num_rows, dtype=bool)
    mine = np.array(base["answer"].to_pylist(), dtype=object)
    for (_, _, table, right), places in zip(others, rows, strict=True):
        there = places >= 0
        if query.show == "differs":
            texts = np.array([*table["answer"].to_pylist(), None], dtype=object)[places]
            any_fits |= there & (texts != mine)
        elif right is not None and base_right is not None:
            now = np.append(right, False)[places]
            any_fits |= there & ((now & ~base_right) if query.show == "right" else (~now & base_right))
    return fits & any_fits
