"""What a benchmark's judge says of an adapter's answers: an object of the store, asked for once."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import pyarrow as pa
import pyarrow.compute as pc

from m3po_dagster.assets.answers import answers_to, benchmark_identity
from m3po_dagster.device_use import DeviceUse
from m3po_dagster.evaluation.judged import JudgedBenchmark
from m3po_dagster.evaluation.question import Question
from m3po_dagster.materialise import Work, reference
from m3po_dagster.method.generation.failures import too_many
from m3po_dagster.resources.judge import JudgeResource
from m3po_dagster.storage.artifact import Artifact
from m3po_dagster.storage.fingerprint import fingerprint
from m3po_dagster.storage.tables import BENCHMARK_JUDGEMENTS

JUDGEMENTS_ASSET = "benchmark_judgements"
CODE_VERSION = "2"
"""Of the judgements alone: another way to score or check the answers asks no judge again."""
SHOWN_REASONS = 5


class TooFewJudged(ValueError):
    """So many answers were not judged that the benchmark would say little; the message counts the reasons."""


@dataclass(frozen=True)
class Judging:
    """A benchmark, its questions, and the answers to judge: an artifact of benchmark_answers and a seed.

    `against` holds the base model's answers, None where these are the base model's own.
    """

    name: str
    item: JudgedBenchmark
    questions: Sequence[Question]
    answers: Artifact
    seed: int
    against: Artifact | None


def judged(work: Work, judge: JudgeResource, judging: Judging) -> Artifact:
    """The judgements, from the store or asked for now.

    Raises TooFewJudged when more than judge.max_unscored of them have no score: nothing is kept as a result then, what
    was answered stays in the ledger, and a re-run asks for the rest. Raises as `JudgedBenchmark.judge_answers` does.
    """
    settings = {
        "judge": judging.item.judge_identity(),
        "files": work.identities.benchmarks(work.study)[judging.name].get("judge files"),
        # The judge looks at the images too, of which the answers name only the paths.
        "benchmark": benchmark_identity(work, judging.name),
    }
    part = (JUDGEMENTS_ASSET, judging.answers.manifest.partition)
    inputs = {"answers": reference(judging.answers)}
    if judging.against is not None:
        inputs["against"] = reference(judging.against)
    versions = {name: item["data_version"] for name, item in inputs.items()}
    key = fingerprint(*part, CODE_VERSION, settings, versions)
    found = work.store.find(*part, key)
    if found is not None:
        # It may have been judged when more of them were allowed to be missing.
        _refuse_few(judging.name, found.table(), work.study.judge.max_unscored)
        return found
    with work.open(*part, key) as draft:
        if draft.committed:
            return draft.committed
        use = DeviceUse(served=judging.item.served_judge is not None)
        table, asked = _ask(work, judge, judging)
        _refuse_few(judging.name, table, work.study.judge.max_unscored)
        return draft.commit(
            {"data": (table, BENCHMARK_JUDGEMENTS)},
            code_version=CODE_VERSION,
            settings=settings,
            inputs=inputs,
            metadata={**use.facts(), **asked},
        )


def _ask(work: Work, judge: JudgeResource, judging: Judging) -> tuple[pa.Table, dict[str, object]]:
    """The judgements, and for the manifest what a served judge was asked for them and what that took."""
    answers = answers_to(judging.answers.table(), judging.seed)
    against = None if judging.against is None else answers_to(judging.against.table(), 0)
    account = judge.benchmark_account(work.study, work.store.location, work.run_id, work.log)
    with work.progress(f"judging {judging.name}", "request") as advance:
        found = judging.item.judge_answers(judging.questions, answers, account, against, advance)
    if account is None:
        return found, {}
    asked = {name: asdict(tally) for name, tally in sorted(account.tallies.by_scorer.items())}
    judge_asked = judging.item.served_judge
    priced = [judge_asked.name] if judge_asked and judge_asked.prices is not None else []
    return found, {"asked": asked, "priced": priced}


def _refuse_few(name: str, table: pa.Table, max_unscored: float) -> None:
    rows = table.select(["score", "status"]).to_pylist()
    reasons = Counter(row["status"] for row in rows if row["score"] is None)
    if too_many(reasons.total(), len(rows), max_unscored):
        shown = "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common(SHOWN_REASONS))
        raise TooFewJudged(
            f"benchmark {name}: {reasons.total()} of {len(rows)} judgements have no score, more than "
            f"judge.max_unscored = {max_unscored:g} allows: {shown}. What was answered is in the ledger. Mend the "
            "cause and run it again, which asks for the rest; or raise judge.max_unscored to go on without them."
        )


def with_columns(table: pa.Table, seed: int, benchmark: str) -> pa.Table:
    """Judgements with the columns that tell them apart among all of a recipe's."""
    seeds = pa.array([seed] * len(table), pa.int64())
    return table.add_column(0, "benchmark", pa.array([benchmark] * len(table))).add_column(0, "seed", seeds)


def bound(item: JudgedBenchmark, table: pa.Table, seed: int, benchmark: str) -> JudgedBenchmark:
    """The benchmark with those of a recipe's judgements that are of this seed and benchmark."""
    mine = table.filter(pc.and_(pc.equal(table["benchmark"], benchmark), pc.equal(table["seed"], seed)))
    return item.judged(mine.drop_columns(["seed", "benchmark"]))
