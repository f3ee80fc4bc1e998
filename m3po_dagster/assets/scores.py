"""mas_table and logprob_table: every candidate seen from outside and from inside (sections 3.3 and 3.4)."""

from collections.abc import Iterator, Mapping, Sequence

import dagster as dg
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from m3po_dagster.assets.checks import confidence_finite, scored, spread, unscored_rows
from m3po_dagster.assets.display import counts, preview
from m3po_dagster.assets.instructions import prompts_of
from m3po_dagster.assets.judge_checks import judge_checks
from m3po_dagster.assets.judging import Answers, ShardJudging
from m3po_dagster.assets.options import stage_asset
from m3po_dagster.assets.parts import Rows, in_parts
from m3po_dagster.assets.pictures import gallery, histograms
from m3po_dagster.assets.prompt_rows import by_prompt
from m3po_dagster.assets.spending import left_out, spending
from m3po_dagster.device_use import DeviceUse
from m3po_dagster.inspector.links import prompts_url
from m3po_dagster.materialise import Built, Work, materialise
from m3po_dagster.method.alignment.cascade import FACTS
from m3po_dagster.resources.generator import GeneratorResource
from m3po_dagster.resources.judge import JudgeResource
from m3po_dagster.resources.study import StoreResource, StudyResource
from m3po_dagster.s3_files.ahead import ahead
from m3po_dagster.storage.artifact import Artifact
from m3po_dagster.storage.tables import LOGPROBS, TableSchema, mas_schema
from m3po_dagster.study import JudgeSettings, Study

SHOWN_PROMPTS = 3
"""Prompts whose best and worst answers are shown."""


def assets(study: Study) -> list[dg.AssetsDefinition]:
    """The two score tables, a partition a shard."""

    @stage_asset("mas_table", study, table_of(study.judge), group_name="scores", kinds={"pytorch"}, section="3.3")
    def mas_table(
        context: dg.AssetExecutionContext, study: StudyResource, store: StoreResource, judge: JudgeResource
    ) -> Iterator[dg.MaterializeResult]:
        """MAS of every candidate: how well image, instruction and answer fit (section 3.3). A partition a shard.

        In: the shard's candidates with their images, and the judge. Out: each scorer's value calibrated to [0, 1],
        their weighted mean MAS, the sub-scores and the judge's words. An answer that could not be judged has a reason
        and no number.
        """
        yield from materialise(context, study, store, lambda work: score_outside(work, judge), describe_mas)

    @stage_asset("logprob_table", study, LOGPROBS, group_name="scores", kinds={"pytorch"}, section="3.4")
    def logprob_table(
        context: dg.AssetExecutionContext,
        study: StudyResource,
        store: StoreResource,
        generator: dg.ResourceParam[GeneratorResource],
    ) -> Iterator[dg.MaterializeResult]:
        """log P(R | I, Q) of every candidate: how sure the model is of it (section 3.4). A partition a shard.

        In: the shard's candidates and the base model. Out: the sum of the tokens' log-probs in nats at temperature 1,
        and each token's. Noted while sampling; a pass of its own only where the study asks for it.
        """
        yield from materialise(context, study, store, lambda work: score_inside(work, generator), describe_logprobs)

    return [mas_table, logprob_table]


def score_outside(work: Work, judge: JudgeResource) -> Built:
    """MAS of the shard's candidates, part by part; too many without one end the work."""
    answers = answers_of(work, ["candidate_id", "prompt_id", *FACTS])
    use = DeviceUse(served=all(scorer.served for scorer in work.study.judge.assessors))
    judging = ShardJudging(work, judge, answers)
    schema = table_of(work.study.judge)
    table = in_parts(work, answers, judging.score, schema.schema, "judging", judging.asked_again)
    lengths = work.one("candidates").table(columns=["candidate_id", "n_tokens"])
    checks = judge_checks(table, lengths, judging.controls(table), work.study.judge)
    return Built(
        {"data": (table, schema)},
        facts={
            "unscored by reason": reasons(table),
            **({"cascade": left_out(table)} if work.study.judge.cascade else {}),
            **judging.facts(),
            **use.facts(),
        },
        checks=(scored(table, work.study.judge.max_unscored), spread(table), *checks),
    )


def table_of(judge: JudgeSettings) -> TableSchema:
    """The MAS table of a judge, from its settings alone: no model is loaded."""
    meanings = judge.sub_scores
    return mas_schema([scorer.name for scorer in judge.scorers], meanings, meanings)


def answers_of(work: Work, columns: list[str]) -> dict[str, Answers]:
    """Every prompt with the rows of its candidates, adjacent in the table, in the table's order, by prompt id."""
    prompts = {prompt.prompt_id: prompt for prompt in prompts_of(work.one("filtered_instructions").table(), work.study)}
    return {key: (prompts[key], rows) for key, rows in by_prompt(work.one("candidates").table(columns=columns))}


def reasons(table: pa.Table) -> dict[str, int]:
    """Why candidates have no MAS, with counts."""
    unscored = table.filter(unscored_rows(table))["status"].value_counts().to_pylist()
    return {item["values"]: item["counts"] for item in unscored}


def score_inside(work: Work, generator: GeneratorResource) -> Built:
    """The log-probs noted while sampling; or a pass of their own when the study asks for it."""
    use = DeviceUse()
    if work.study.confidence.source == "recorded":
        columns = ["candidate_id", "prompt_id", "sum_logp", "eos_logp", "token_logps", "n_tokens"]
        sampled = work.one("candidates")
        table, numerics = sampled.table(columns=columns), sampled.manifest.metadata.get("numerics")
        table = table.append_column("numerics", pa.array([numerics] * len(table), pa.string()))
        table = table.select(LOGPROBS.schema.names).cast(LOGPROBS.schema)
    else:
        table = rescored(work, generator)
    return Built({"data": (table, LOGPROBS)}, facts=use.facts(), checks=(confidence_finite(table),))


def rescored(work: Work, generator: GeneratorResource) -> pa.Table:
    """log P of the sampled token ids by a pass over each prompt's prefix and its candidates, part by part."""
    from m3po_dagster.method.confidence import score_continuations

    def score(some: Sequence[Answers]) -> Iterator[Rows]:
        loaded = generator.load(work.study.model)
        with ahead(prompt.image_path for prompt, _ in some):
            for prompt, given in some:
                found = []
                scores = score_continuations(loaded, prompt, [row["token_ids"] for row in given])
                for row, score in zip(given, scores, strict=True):
                    known = {name: row[name] for name in ("candidate_id", "prompt_id", "n_tokens")}
                    logps = {name: getattr(score, name) for name in ("sum_logp", "eos_logp", "token_logps")}
                    found.append({**known, **logps, "numerics": loaded.numerics})
                yield found

    columns = ["candidate_id", "prompt_id", "token_ids", "n_tokens"]
    return in_parts(work, answers_of(work, columns), score, LOGPROBS.schema, "scoring")


def describe_mas(artifact: Artifact, work: Work) -> Mapping[str, object]:
    """How MAS and every scorer spread, why candidates have none, and the best and worst answers of some prompts."""
    table = artifact.table()
    scorers = [scorer.name for scorer in work.study.judge.scorers]
    values = ["mas", *scorers, *work.study.judge.sub_scores]
    mean, facts = pc.mean(table["mas"]).as_py(), artifact.manifest.metadata
    run = facts["this run"]
    return {
        "unscored": sum(facts["unscored by reason"].values()),
        "unscored by reason": counts(facts["unscored by reason"]),
        "candidates/s": round(run["candidates"] / max(run["seconds"], 1e-9), 1),
        **spending(facts),
        "mean MAS": None if mean is None else round(mean, 4),
        "preview": preview(table, columns=["candidate_id", "status", *values]),
        "scores": histograms({name: table[name].to_pylist() for name in values}),
        "best and worst": best_and_worst(table, work),
        "inspector": dg.MetadataValue.url(prompts_url(shard=work.partition)),
    }


def best_and_worst(table: pa.Table, work: Work) -> dg.MarkdownMetadataValue:
    """The first prompts with the answers that MAS puts first and last."""
    prompts = prompts_of(work.one("filtered_instructions").table().slice(0, SHOWN_PROMPTS), work.study)
    shown = pa.array([prompt.prompt_id for prompt in prompts], pa.string())
    texts = work.one("candidates").table(columns=["candidate_id", "prompt_id", "text"])
    texts = texts.filter(pc.is_in(texts["prompt_id"], value_set=shown))
    known = dict(zip(texts["candidate_id"].to_pylist(), texts["text"].to_pylist(), strict=True))
    scored, rows = table.filter(pc.is_valid(table["mas"])), []
    for prompt in prompts:
        answers = scored.filter(pc.equal(scored["prompt_id"], prompt.prompt_id)).sort_by([("mas", "descending")])
        ends = [answers.slice(0, 1), answers.slice(len(answers) - 1)] if len(answers) > 1 else []
        for number, row in enumerate(end.to_pylist()[0] for end in ends):
            cells = ("" if number else prompt.question, known[row["candidate_id"]], row["mas"], row["words"] or "")
            rows.append((None if number else prompt.image_path, cells))
    return gallery(("instruction", "answer", "MAS", "the judge's words"), rows)


def describe_logprobs(artifact: Artifact, work: Work) -> Mapping[str, object]:
    """How the log-probs spread, as sums and a token."""
    table = artifact.table(columns=["candidate_id", "sum_logp", "eos_logp", "n_tokens", "numerics"])
    means = table["sum_logp"].to_numpy() / np.maximum(table["n_tokens"].to_numpy(), 1)
    return {
        "source": work.study.confidence.source,
        "mean log-prob a token": round(float(means.mean()), 4) if len(means) else None,
        "preview": preview(table),
        "confidence": histograms(
            {"log-prob a token, nats": means, "log-prob an answer, nats": table["sum_logp"].to_pylist()}
        ),
        "inspector": dg.MetadataValue.url(prompts_url(shard=work.partition)),
    }
