"""mas_table and logprob_table: every candidate seen from outside and from inside (sections 3.3 and 3.4)."""

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby

import dagster as dg
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from m3po_dagster.assets.checks import confidence_finite, scored, spread
from m3po_dagster.assets.display import counts, histogram, preview
from m3po_dagster.assets.instructions import prompts_of
from m3po_dagster.assets.options import options
from m3po_dagster.assets.parts import in_parts
from m3po_dagster.materialise import Built, Work, materialise
from m3po_dagster.method.prompt import Prompt
from m3po_dagster.resources.generator import GeneratorResource
from m3po_dagster.resources.judge import JudgeResource
from m3po_dagster.resources.study import StoreResource, StudyResource
from m3po_dagster.storage.artifact import Artifact
from m3po_dagster.storage.tables import LOGPROBS, mas_schema
from m3po_dagster.study import Study

Answers = tuple[Prompt, list[dict]]
"""A prompt and the rows of its candidates."""


def assets(study: Study) -> list[dg.AssetsDefinition]:
    """The two score tables, a partition a shard."""

    @dg.asset(**options("mas_table", study), group_name="scores", kinds={"pytorch"})
    def mas_table(
        context: dg.AssetExecutionContext, study: StudyResource, store: StoreResource, judge: JudgeResource
    ) -> dg.MaterializeResult:
        """MAS of every candidate (section 3.3): each scorer calibrated to [0, 1], and their weighted mean."""
        return materialise(context, study, store, lambda work: score_outside(work, judge), describe_mas)

    @dg.asset(**options("logprob_table", study, LOGPROBS), group_name="scores", kinds={"pytorch"})
    def logprob_table(
        context: dg.AssetExecutionContext,
        study: StudyResource,
        store: StoreResource,
        generator: dg.ResourceParam[GeneratorResource],
    ) -> dg.MaterializeResult:
        """log P(R | I, Q) of every candidate under the base model at temperature 1 (section 3.4), in nats."""
        return materialise(context, study, store, lambda work: score_inside(work, generator), describe_logprobs)

    return [mas_table, logprob_table]


def score_outside(work: Work, judge: JudgeResource) -> Built:
    """MAS of the shard's candidates, part by part."""
    scorer = judge.load(work.study.judge)
    schema = mas_schema(scorer.scorers, scorer.sub_scores)

    def score(some: Sequence[Answers], advance: Callable[[int, int], None]) -> pa.Table:
        found = scorer.score([(prompt, [row["text"] for row in given]) for prompt, given in some])
        ids = [row["candidate_id"] for _, given in some for row in given]
        named = [{"candidate_id": key, **row} for key, row in zip(ids, found, strict=True)]
        return pa.Table.from_pylist(named, schema=schema.schema)

    columns = ["candidate_id", "prompt_id", "text"]
    table = in_parts(work, answers_of(work, columns), score, schema.schema, "judging")
    return Built(
        {"data": (table, schema)},
        facts={"unscored by reason": reasons(table)},
        checks=(scored(table, work.study.judge.max_unscored), spread(table)),
    )


def answers_of(work: Work, columns: list[str]) -> list[Answers]:
    """Every prompt with the rows of its candidates, adjacent in the table, in the table's order."""
    prompts = {prompt.prompt_id: prompt for prompt in prompts_of(work.one("filtered_instructions").table(), work.study)}
    rows = work.one("candidates").table(columns=columns).to_pylist()
    return [(prompts[key], list(some)) for key, some in groupby(rows, key=lambda row: row["prompt_id"])]


def reasons(table: pa.Table) -> dict[str, int]:
    """Why candidates have no MAS, with counts."""
    unscored = table.filter(pc.is_null(table["mas"]))["status"].value_counts().to_pylist()
    return {item["values"]: item["counts"] for item in unscored}


def score_inside(work: Work, generator: GeneratorResource) -> Built:
    """The log-probs noted while sampling; or a pass of their own when the study asks for it."""
    # The device is left out: log-probs of one engine and dtype are one numerics, wherever they were computed.
    numerics = f"{work.study.generation.engine}/{work.study.model.dtype}/{work.study.confidence.source}"
    if work.study.confidence.source == "recorded":
        columns = ["candidate_id", "prompt_id", "sum_logp", "eos_logp", "n_tokens"]
        table = work.one("candidates").table(columns=columns)
        table = table.append_column("numerics", pa.array([numerics] * len(table), pa.string())).cast(LOGPROBS.schema)
    else:
        table = rescored(work, generator, numerics)
    return Built({"data": (table, LOGPROBS)}, checks=(confidence_finite(table),))


def rescored(work: Work, generator: GeneratorResource, numerics: str) -> pa.Table:
    """log P of the sampled token ids by a pass over each prompt's prefix and its candidates, part by part."""
    from m3po_dagster.method.confidence import score_continuations

    def score(some: Sequence[Answers], advance: Callable[[int, int], None]) -> pa.Table:
        loaded, found = generator.load(work.study.model), []
        for done, (prompt, given) in enumerate(some, start=1):
            sums = score_continuations(loaded, prompt, [row["token_ids"] for row in given])
            for row, (total, eos) in zip(given, sums, strict=True):
                ids = {name: row[name] for name in ("candidate_id", "prompt_id", "n_tokens")}
                found.append({**ids, "sum_logp": total, "eos_logp": eos, "numerics": numerics})
            advance(done, len(some))
        return pa.Table.from_pylist(found, schema=LOGPROBS.schema)

    columns = ["candidate_id", "prompt_id", "token_ids", "n_tokens"]
    return in_parts(work, answers_of(work, columns), score, LOGPROBS.schema, "scoring")


def describe_mas(artifact: Artifact, work: Work) -> Mapping[str, object]:
    """The distribution of MAS, why candidates have none, and the sub-scores of the first rows."""
    table = artifact.table()
    return {
        "unscored": table["mas"].null_count,
        "unscored by reason": counts(artifact.manifest.metadata["unscored by reason"]),
        "candidates/s": round(len(table) / max(artifact.manifest.seconds, 1e-9), 1),
        "MAS": histogram(table["mas"].drop_null().to_numpy(), "MAS"),
        "preview": preview(table),
    }


def describe_logprobs(artifact: Artifact, work: Work) -> Mapping[str, object]:
    """The distribution of the per-token mean."""
    table = artifact.table()
    means = table["sum_logp"].to_numpy() / np.maximum(table["n_tokens"].to_numpy(), 1)
    return {
        "source": work.study.confidence.source,
        "confidence": histogram(means, "log-prob a token, nats"),
        "preview": preview(table),
    }
