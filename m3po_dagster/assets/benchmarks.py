"""benchmark_scores and leaderboard: what each recipe is worth (section 4)."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc

from m3po_dagster.assets.adapters import BASE_ADAPTER
from m3po_dagster.assets.checks import answer_format
from m3po_dagster.assets.display import column_schema, preview, rows_table
from m3po_dagster.assets.options import stage_asset
from m3po_dagster.assets.pictures import Interval, intervals
from m3po_dagster.evaluation.question import Question
from m3po_dagster.graph import STAGES
from m3po_dagster.inspector.links import answers_url
from m3po_dagster.materialise import Built, Work, materialise, reference
from m3po_dagster.resources.generator import GeneratorResource
from m3po_dagster.resources.study import StoreResource, StudyResource
from m3po_dagster.storage.artifact import Artifact
from m3po_dagster.storage.fingerprint import fingerprint
from m3po_dagster.storage.tables import ANSWERS, LEADERBOARD, SCORES
from m3po_dagster.study import BASE_RECIPE, Study


def assets(study: Study) -> list[dg.AssetsDefinition]:
    """Scores, a partition a recipe; and the leaderboard over all recipes."""

    @stage_asset("benchmark_scores", study, SCORES, group_name="evaluation", kinds={"pytorch"}, section="4.1")
    def benchmark_scores(
        context: dg.AssetExecutionContext,
        study: StudyResource,
        store: StoreResource,
        generator: dg.ResourceParam[GeneratorResource],
    ) -> Iterator[dg.MaterializeResult]:
        """What the recipe's adapter scores on the benchmarks (section 4.1). A partition a recipe.

        In: the adapter of each seed, the base model, the benchmarks. Out: every official metric with its bootstrap
        interval over images, and each greedy answer it was computed from.
        """
        yield from materialise(context, study, store, lambda work: evaluate(work, generator), describe_scores)

    @stage_asset("leaderboard", study, LEADERBOARD, group_name="evaluation", kinds={"markdown"}, section="4.3")
    def leaderboard(
        context: dg.AssetExecutionContext, study: StudyResource, store: StoreResource
    ) -> Iterator[dg.MaterializeResult]:
        """Every recipe against the base model (sections 4.3 and 4.4).

        In: the scores and answers of every recipe. Out: each metric's mean over training seeds, its spread, and the
        difference to the base model with a paired bootstrap interval.
        """
        yield from materialise(context, study, store, compare, describe_leaderboard)

    return [benchmark_scores, leaderboard]


def evaluate(work: Work, generator: GeneratorResource) -> Built:
    """Answers and scores of every seed's adapter."""
    from m3po_dagster.evaluation.registry import benchmark

    suite = {name: benchmark(settings) for name, settings in work.study.benchmarks.items()}
    questions = {name: item.load() for name, item in suite.items()}
    answers, rows, made_with = [], [], {}
    for adapter in work.one("lora_adapter").table().to_pylist():
        artifact = answered(work, generator, adapter, questions)
        made_with[f"benchmark_answers[{artifact.manifest.partition}]"] = reference(artifact)
        given = artifact.table()
        answers.append(given)
        for name, item in suite.items():
            mine = given.filter(pc.equal(given["benchmark"], name))
            by_id = dict(zip(mine["question_id"].to_pylist(), mine["answer"].to_pylist(), strict=True))
            rows += [
                {
                    "recipe": work.partition,
                    "seed": adapter["seed"],
                    "benchmark": name,
                    **{field: getattr(metric, field) for field in ("metric", "value", "n", "ci_low", "ci_high")},
                }
                for metric in item.score(questions[name], by_id)
            ]
    scores = pa.Table.from_pylist(rows, schema=SCORES.schema)
    return Built(
        {"data": (scores, SCORES), "answers": (pa.concat_tables(answers), ANSWERS)},
        facts={"notes": [note for name, item in suite.items() for note in item.notes(questions[name])]},
        checks=(answer_format(scores),),
        made_with=made_with,
    )


def answered(
    work: Work, generator: GeneratorResource, adapter: dict, questions: Mapping[str, list[Question]]
) -> Artifact:
    """One adapter's answers to all benchmarks, from the store or asked now, a part a benchmark.

    They are an object of their own, so that a seed added to the recipe asks nothing of the others again.
    """
    stage = STAGES["benchmark_scores"]
    part = ("benchmark_answers", f"{work.partition}|{adapter['seed']}")
    settings = stage.settings(work.study, work.identities, work.partition)
    inputs = {name: reference(work.one(name)) for name in ("base_model", "benchmark_data")}
    if adapter["adapter_id"] != BASE_ADAPTER:
        inputs["adapter"] = {"asset": "adapter", "partition": part[1]} | {
            name: adapter[name] for name in ("fingerprint", "data_version")
        }
    versions = {name: item["data_version"] for name, item in inputs.items()}
    key = fingerprint(*part, stage.code_version, settings, versions)
    found = work.store.find(*part, key)
    if found is not None:
        return found
    with work.open(*part, key) as draft:
        if draft.committed:
            return draft.committed
        done = set(draft.parts(plan=list(questions)))
        for number, (name, asked) in enumerate(questions.items()):
            if number not in done:
                draft.write_part(number, ask(work, generator, adapter, name, asked), ANSWERS)
        table = draft.read_parts()
        return draft.commit(
            {"data": (table, ANSWERS)}, code_version=stage.code_version, settings=settings, inputs=inputs
        )


def ask(work: Work, generator: GeneratorResource, adapter: dict, name: str, questions: list[Question]) -> pa.Table:
    """One adapter's greedy answers to one benchmark. Raises RuntimeError naming a question that can't be asked."""
    from m3po_dagster.method.generation.adapter import Adapter
    from m3po_dagster.method.generation.samples import Failure

    trained = None
    if adapter["adapter_id"] != BASE_ADAPTER:
        seed, key = adapter["seed"], adapter["fingerprint"]
        folder = work.store.find("adapter", f"{work.partition}|{seed}", key).path("files")
        trained = Adapter(Path(folder), work.partition, seed, key)
    settings = work.study.answers
    with work.progress(f"seed {adapter['seed']} answering {name}", "question") as advance:
        prompts = [question.prompt() for question in questions]
        engine, given = generator.engine(work.study, trained), {}
        for i, answer in engine.answer(prompts, settings.max_new_tokens, settings.questions_per_batch):
            given[i] = answer
            advance(len(given), len(questions))
    failed = [answer.reason for _, answer in sorted(given.items()) if isinstance(answer, Failure)]
    if failed:
        raise RuntimeError(f"benchmark {name}: {len(failed)} questions can't be asked, the first: {failed[0]}")
    rows = [
        {
            "seed": adapter["seed"],
            "benchmark": name,
            "question_id": question.question_id,
            "image_uri": question.image_uri,
            "question": question.text,
            "expected": question.expected,
            "answer": given[i].text,
            "n_tokens": given[i].n_tokens,
        }
        for i, question in enumerate(questions)
    ]
    return pa.Table.from_pylist(rows, schema=ANSWERS.schema)


def describe_scores(artifact: Artifact, work: Work) -> Mapping[str, object]:
    """The headline metrics beside those of the base model, every metric, and some answers with what was expected."""
    table, answers = artifact.table(), artifact.table("answers")
    rows, base, own = table.to_pylist(), base_scores(artifact, work), work.partition == BASE_RECIPE
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
    columns = ["seed", "benchmark", "metric", "value", "ci_low", "ci_high", "n"]
    return {
        "questions": len(answers),
        "notes": "; ".join(artifact.manifest.metadata["notes"]) or "none",
        **means,
        "against base": intervals(figures, zero=False),
        "preview": preview(answers, rows=10, columns=["benchmark", "question", "expected", "answer"]),
        "scores": rows_table(rows, column_schema(table.select(columns).schema)),
        "inspector": dg.MetadataValue.url(answers_url(recipe=work.partition)),
    }


def _is(row: Mapping[str, object], benchmark: str, metric: str) -> bool:
    return (row["benchmark"], row["metric"]) == (benchmark, metric)


def shown_columns(study: Study) -> list[tuple[str, str, str]]:
    """Benchmark, metric and title of what the leaderboard shows."""
    from m3po_dagster.evaluation.leaderboard import headline_columns
    from m3po_dagster.evaluation.registry import benchmark

    return headline_columns({name: benchmark(settings) for name, settings in study.benchmarks.items()})


def base_scores(artifact: Artifact, work: Work) -> list[dict]:
    """The base model's scores on the very same questions, where the store has them; none for the base model itself."""
    if work.partition == BASE_RECIPE:
        return []
    mine, same = artifact.manifest, ("base_model", "benchmark_data")
    for other in work.store.list("benchmark_scores"):
        theirs = other.manifest
        versions = [(mine.inputs[name].data_version, theirs.inputs[name].data_version) for name in same]
        if theirs.partition == BASE_RECIPE and theirs.settings == mine.settings and all(a == b for a, b in versions):
            return other.table().to_pylist()
    return []


def compare(work: Work) -> Built:
    """The leaderboard's rows and its Markdown."""
    from m3po_dagster.evaluation.leaderboard import leaderboard, markdown
    from m3po_dagster.evaluation.registry import benchmark

    suite = {name: benchmark(settings) for name, settings in work.study.benchmarks.items()}
    questions = {name: item.load() for name, item in suite.items()}
    scores, results = [], {}
    for recipe, artifact in work.all("benchmark_scores").items():
        scores.append(artifact.table())
        given: dict[tuple[int, str], dict[str, str]] = {}
        for row in artifact.table("answers", columns=["seed", "benchmark", "question_id", "answer"]).to_pylist():
            given.setdefault((row["seed"], row["benchmark"]), {})[row["question_id"]] = row["answer"]
        for (seed, name), by_id in given.items():
            results[recipe, seed, name] = suite[name].per_question(questions[name], by_id)
    table = leaderboard(pa.concat_tables(scores), results, suite, BASE_RECIPE).cast(LEADERBOARD.schema)
    return Built({"data": (table, LEADERBOARD)}, facts={"markdown": markdown(table, suite, BASE_RECIPE)})


def describe_leaderboard(artifact: Artifact, work: Work) -> Mapping[str, object]:
    """The table as a person reads it, and the differences to the base model with their intervals."""
    table = artifact.table()
    rows = [row for row in table.to_pylist() if row["difference"] is not None]
    figures = {
        title: [
            Interval(row["recipe"], row["difference"], row["ci_low"], row["ci_high"], stands_out=row["significant"])
            for row in rows
            if _is(row, name, metric)
        ]
        for name, metric, title in shown_columns(work.study)
    }
    return {
        "leaderboard": dg.MetadataValue.md(artifact.manifest.metadata["markdown"]),
        "differences to base": intervals(figures, zero=True),
        "preview": preview(table),
    }
