"""candidates: N answers a prompt from the base model, with their log-probs (section 3.2)."""

from collections.abc import Callable, Mapping, Sequence

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc

from m3po_dagster.assets.checks import diversity, prompts_answered
from m3po_dagster.assets.display import histogram, preview
from m3po_dagster.assets.instructions import prompts_of
from m3po_dagster.assets.options import options
from m3po_dagster.assets.parts import in_parts
from m3po_dagster.materialise import Built, Work, materialise
from m3po_dagster.method.prompt import Prompt
from m3po_dagster.resources.generator import GeneratorResource
from m3po_dagster.resources.study import StoreResource, StudyResource
from m3po_dagster.storage.artifact import Artifact
from m3po_dagster.storage.tables import CANDIDATES, DROPPED
from m3po_dagster.study import Study


def assets(study: Study) -> list[dg.AssetsDefinition]:
    """The candidates, a partition a shard."""

    @dg.asset(**options("candidates", study, CANDIDATES), group_name="generation", kinds={"pytorch", "huggingface"})
    def candidates(
        context: dg.AssetExecutionContext,
        study: StudyResource,
        store: StoreResource,
        generator: dg.ResourceParam[GeneratorResource],
    ) -> dg.MaterializeResult:
        """N sampled answers to every prompt (section 3.2), equal texts merged, with log P(R | I, Q) as sampled."""
        return materialise(context, study, store, lambda work: sample_shard(work, generator), describe)

    return [candidates]


def sample_shard(work: Work, generator: GeneratorResource) -> Built:
    """Samples the shard part by part; a prompt that can't be sampled is counted with its reason."""
    prompts = prompts_of(work.one("filtered_instructions").table(), work.study)
    rows = in_parts(
        work, prompts, lambda some, advance: sample_part(work, generator, some, advance), PART_SCHEMA, "sampling"
    )
    sampled = rows.filter(pc.is_null(rows["failure"])).drop_columns(["failure"]).cast(CANDIDATES.schema)
    failed = rows.filter(pc.is_valid(rows["failure"]))
    reasons = pa.array(["not sampled"] * len(failed), pa.string())
    dropped = pa.table([failed["prompt_id"], reasons, failed["failure"]], schema=DROPPED.schema)
    return Built(
        {"data": (sampled, CANDIDATES), "dropped": (dropped, DROPPED)},
        facts={"numerics": generator.load(work.study.model).numerics} if prompts else {},
        checks=(prompts_answered(len(prompts) - len(failed), len(failed)), diversity(sampled)),
    )


def sample_part(
    work: Work, generator: GeneratorResource, prompts: Sequence[Prompt], advance: Callable[[int, int], None]
) -> pa.Table:
    """One part: the distinct candidates of some prompts, and a row with the reason for a prompt without answers."""
    from m3po_dagster.method.generation.candidates import distinct
    from m3po_dagster.method.generation.sampler import Failure, prompt_seed, sample

    settings = work.study.generation
    seeds = [prompt_seed(settings.seed, prompt.prompt_id, settings.n) for prompt in prompts]
    answers = sample(generator.load(work.study.model), prompts, settings, seeds, progress=advance)
    rows = []
    for prompt, seed, found in zip(prompts, seeds, answers, strict=True):
        if isinstance(found, Failure):
            # Where the images lie on this machine is no part of the result.
            reason = found.reason.replace(str(prompt.image_path), prompt.image_path.name)
            rows.append({"prompt_id": prompt.prompt_id, "failure": reason})
            continue
        rows += [candidate.row(prompt.prompt_id, seed) for candidate in distinct(found)]
    return pa.Table.from_pylist(rows, schema=PART_SCHEMA)


PART_SCHEMA = pa.schema([*(field.with_nullable(True) for field in CANDIDATES.schema), ("failure", pa.string())])
"""A part's rows: candidates, and prompts without any with the reason."""


def describe(artifact: Artifact, work: Work) -> Mapping[str, object]:
    """How many, how different, how long."""
    table = artifact.table()
    prompts = len(set(table["prompt_id"].to_pylist()))
    samples = pc.sum(table["multiplicity"]).as_py() or 0
    tokens = pc.sum(pc.multiply(table["n_tokens"], table["multiplicity"])).as_py() or 0
    return {
        "prompts": prompts,
        "samples": samples,
        "distinct candidates": len(table),
        "tokens/s": round(tokens / max(artifact.manifest.seconds, 1e-9), 1),
        "prompts not sampled": artifact.manifest.tables["dropped"].rows,
        "length": histogram(table["n_tokens"].to_numpy(), "tokens a candidate"),
        "preview": preview(table, columns=["candidate_id", "text", "finish_reason", "multiplicity", "sum_logp"]),
    }
