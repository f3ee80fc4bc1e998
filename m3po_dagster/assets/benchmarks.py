"""benchmark_scores: what each recipe is worth (section 4)."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc

from m3po_dagster.assets.answer_checks import answer_checks
from m3po_dagster.assets.answers import answered, answers_to
from m3po_dagster.assets.display import column_schema, preview, rows_table
from m3po_dagster.assets.judgements import Judging, judged, with_columns
from m3po_dagster.assets.options import stage_asset
from m3po_dagster.assets.pictures import Interval, intervals
from m3po_dagster.assets.sharing import BASE, adapters_of
from m3po_dagster.assets.untrained import untrained
from m3po_dagster.evaluation.benchmark import OFFICIAL
from m3po_dagster.evaluation.judged import JudgedBenchmark
from m3po_dagster.inspector.links import answers_url
from m3po_dagster.materialise import Built, Work, materialise, reference
from m3po_dagster.resources.generator import GeneratorResource
from m3po_dagster.resources.judge import JudgeResource
from m3po_dagster.resources.study import StoreResource, StudyResource
from m3po_dagster.storage.artifact import Artifact
from m3po_dagster.storage.tables import ANSWERS, JUDGEMENTS_OF_RECIPE, SCORES
from m3po_dagster.study import BASE_RECIPE, Study


def assets(study: Study) -> list[dg.AssetsDefinition]:
    """The scores, a partition a recipe."""

    @stage_asset("benchmark_scores", study, SCORES, group_name="evaluation", kinds={"pytorch"}, section="4.1")
    def benchmark_scores(
        context: dg.AssetExecutionContext,
        study: StudyResource,
        store: StoreResource,
        generator: dg.ResourceParam[GeneratorResource],
        judge: JudgeResource,
    ) -> Iterator[dg.MaterializeResult]:
        """What the recipe's adapter scores on the benchmarks (section 4.1). A partition a recipe.

        In: the adapter of each seed, the base model, the benchmarks. Out: every metric by the official rule and by
        those of other public tools, with its bootstrap interval over images; each greedy answer it was computed from,
        and what a judge said of it where the benchmark has one.
        """
        yield from materialise(context, study, store, lambda work: evaluate(work, generator, judge), describe_scores)

    return [benchmark_scores]


def evaluate(work: Work, generator: GeneratorResource, judge: JudgeResource) -> Built:
    """Answers of every seed's adapter, and their scores by every rule there is."""
    from m3po_dagster.evaluation.registry import benchmark

    suite = {name: benchmark(settings) for name, settings in work.study.benchmarks.items()}
    questions = {name: item.load() for name, item in suite.items()}
    base: dict[str, Artifact] = {}
    if work.partition != BASE_RECIPE:
        # Asked once for all recipes, its own among them.
        base = answered(work, generator, BASE, questions)
    answers, judgements, rows, made_with = [], [], [], {}
    for adapter in adapters_of(work.one("lora_adapter")):
        seed = adapter["seed"]
        for name, artifact in answered(work, generator, adapter, questions).items():
            item, given = suite[name], artifact.table()
            made_with[f"benchmark_answers[{artifact.manifest.partition}]"] = reference(artifact)
            answers.append(given)
            if isinstance(item, JudgedBenchmark):
                against = base.get(name)
                found = judged(work, judge, Judging(name, item, questions[name], artifact, seed, against))
                made_with[f"benchmark_judgements[{found.manifest.partition}]"] = reference(found)
                judgements.append(with_columns(found.table(), seed, name))
                item = item.judged(found.table())
            by_id = answers_to(given, seed)
            rows += [
                {
                    "recipe": work.partition,
                    "seed": seed,
                    "benchmark": name,
                    "rule": rule,
                    **{field: getattr(metric, field) for field in ("metric", "value", "n", "ci_low", "ci_high")},
                }
                for rule in item.rules
                for metric in item.score(questions[name], by_id, rule)
            ]
    scores, said = pa.Table.from_pylist(rows, schema=SCORES.schema), pa.concat_tables(answers)
    theirs = {name: artifact.table() for name, artifact in base.items()}
    empty = JUDGEMENTS_OF_RECIPE.schema.empty_table()
    return Built(
        {
            "data": (scores, SCORES),
            "answers": (said, ANSWERS),
            "judgements": (pa.concat_tables([empty, *judgements], promote_options="permissive"), JUDGEMENTS_OF_RECIPE),
        },
        facts={"notes": [f"{name}: {note}" for name, item in suite.items() for note in item.notes(questions[name])]},
        checks=(*answer_checks(suite, questions, scores, said, theirs), untrained(work)),
        made_with=made_with,
    )


def describe_scores(artifact: Artifact, work: Work) -> Mapping[str, object]:
    """The headline metrics beside those of the base model, every metric, and some answers with what was expected."""
    table, answers = artifact.table(), artifact.table("answers")
    rows, base, own = official(table).to_pylist(), base_scores(artifact, work), work.partition == BASE_RECIPE
    figures, means = {}, {}
    for name, metric, title in shown_columns(work.study):
        theirs = [(BASE_RECIPE, row) for row in base if _is(row, name, metric)]
        ours = [(BASE_RECIPE if own else f"seed {row['seed']}", row) for row in rows if _is(row, name, metric)]
        if ours:
            means[title] = fmean(row["value"] for _, row in ours)
        figures[title] = [
            Interval(label, row["value"], row["ci_low"], row["ci_high"], stands_out=number >= len(theirs))
            for number, (label, row) in enumerate(theirs + ours)
        ]
    columns = ["seed", "benchmark", "rule", "metric", "value", "ci_low", "ci_high", "n"]
    return {
        "questions": len(answers),
        "notes": "; ".join(artifact.manifest.metadata["notes"]) or "none",
        **means,
        "against base": intervals(figures, zero=False),
        "by rule": rule_table(table.to_pylist(), work.study),
        "preview": preview(answers, rows=10, columns=["benchmark", "question", "expected", "answer"]),
        "scores": rows_table(table.to_pylist(), column_schema(table.select(columns).schema)),
        "inspector": dg.MetadataValue.url(answers_url(recipe=work.partition)),
    }


def official(scores: pa.Table) -> pa.Table:
    """The scores by the official rules, which recipes are compared by."""
    return scores.filter(pc.equal(scores["rule"], OFFICIAL))


def rule_table(rows: Sequence[Mapping[str, Any]], study: Study) -> dg.TableMetadataValue:
    """The metrics that the leaderboard shows, mean over seeds, by each rule in a column of its own.

    Where they disagree, the answers' form is at stake, not what the model sees: the share in the asked format is among
    them.
    """
    shown = {(name, metric) for name, metric, _ in shown_columns(study)}
    shown |= {(row["benchmark"], "format") for row in rows if row["metric"] == "format"}
    values: dict[tuple[str, str], dict[str, list[float]]] = {}
    for row in rows:
        if (row["benchmark"], row["metric"]) in shown:
            by_rule = values.setdefault((row["benchmark"], row["metric"]), {})
            by_rule.setdefault(row["rule"], []).append(row["value"])
    several = {key: by_rule for key, by_rule in values.items() if len(by_rule) > 1}
    rules = list(dict.fromkeys(rule for by_rule in several.values() for rule in by_rule))
    return rows_table(
        [
            {"benchmark": name, "metric": metric} | {rule: fmean(found) for rule, found in by_rule.items()}
            for (name, metric), by_rule in several.items()
        ],
        ["benchmark", "metric", *rules],
    )


def _is(row: Mapping[str, object], benchmark: str, metric: str) -> bool:
    return (row["benchmark"], row["metric"]) == (benchmark, metric)


def shown_columns(study: Study) -> list[tuple[str, str, str]]:
    """Benchmark, metric and title of what the leaderboard shows."""
    from m3po_dagster.evaluation.board import columns_of
    from m3po_dagster.evaluation.registry import benchmark

    columns = columns_of({name: benchmark(settings) for name, settings in study.benchmarks.items()})
    return [(column.benchmark, column.metric, column.label) for column in columns]


def base_scores(artifact: Artifact, work: Work) -> list[dict]:
    """The base model's scores on the very same questions, where the store has them; none for the base model itself."""
    if work.partition == BASE_RECIPE:
        return []
    mine, same = artifact.manifest, ("base_model", "benchmark_data")
    for other in work.store.list("benchmark_scores"):
        theirs = other.manifest
        versions = [(mine.inputs[name].data_version, theirs.inputs[name].data_version) for name in same]
        if theirs.partition == BASE_RECIPE and theirs.settings == mine.settings and all(a == b for a, b in versions):
            return official(other.table()).to_pylist()
    return []
