"""candidates: N answers a prompt from the base model, with their log-probs (section 3.2)."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from itertools import groupby
from operator import itemgetter

import dagster as dg
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from m3po_dagster.assets.checks import diversity, prompts_answered
from m3po_dagster.assets.display import preview, rows_table
from m3po_dagster.assets.instructions import prompts_of
from m3po_dagster.assets.options import stage_asset
from m3po_dagster.assets.parts import in_parts
from m3po_dagster.assets.pictures import gallery, histograms
from m3po_dagster.assets.sampling import PART_SCHEMA, ShardSampling
from m3po_dagster.device_use import DeviceUse
from m3po_dagster.inspector.links import prompts_url
from m3po_dagster.materialise import Built, Work, materialise
from m3po_dagster.method.generation.adaptive import saved
from m3po_dagster.method.generation.diversity import Diversity, measure
from m3po_dagster.resources.generator import GeneratorResource
from m3po_dagster.resources.study import StoreResource, StudyResource
from m3po_dagster.storage.artifact import Artifact
from m3po_dagster.storage.tables import CANDIDATES, DROPPED
from m3po_dagster.study import Study

SHOWN_PROMPTS, SHOWN_ANSWERS = 3, 4


def assets(study: Study) -> list[dg.AssetsDefinition]:
    """The candidates, a partition a shard."""

    @stage_asset(
        "candidates", study, CANDIDATES, group_name="generation", kinds={"pytorch", "huggingface"}, section="3.2"
    )
    def candidates(
        context: dg.AssetExecutionContext,
        study: StudyResource,
        store: StoreResource,
        generator: dg.ResourceParam[GeneratorResource],
    ) -> Iterator[dg.MaterializeResult]:
        """N answers to every prompt, sampled from the base model (section 3.2). A partition a shard.

        In: the shard's prompts, the base model, and what scores between the rounds of an adaptive N (section 4.9).
        Out: a row a distinct answer with its tokens, how many of the samples say the same, and the log-prob of each
        token as it was sampled. The dearest step: no judge, recipe or training makes it due again.
        """
        yield from materialise(context, study, store, lambda work: sample_shard(work, generator), describe)

    return [candidates]


def sample_shard(work: Work, generator: GeneratorResource) -> Built:
    """Samples the shard; a prompt that can't be sampled is counted with its reason, too many of them end the work."""
    prompts = {prompt.prompt_id: prompt for prompt in prompts_of(work.one("filtered_instructions").table(), work.study)}
    use = DeviceUse(served=work.study.generator.kind == "server")
    sampling = ShardSampling(work, generator, prompts)
    rows = in_parts(
        work, prompts, sampling.sample, PART_SCHEMA, "sampling", sampling.asked_again, together=sampling.together
    )
    sampled = rows.filter(pc.is_null(rows["failure"])).select(CANDIDATES.schema.names).cast(CANDIDATES.schema)
    failed = rows.filter(pc.is_valid(rows["failure"]))
    reasons = pa.array(["not sampled"] * len(failed), pa.string())
    dropped = pa.table([failed["prompt_id"], reasons, failed["failure"]], schema=DROPPED.schema)
    found = measure(_answers(sampled))
    return Built(
        {"data": (sampled, CANDIDATES), "dropped": (dropped, DROPPED)},
        facts={**sampling.facts(), "diversity": asdict(found), **adaptive(rows, work.study), **use.facts()},
        checks=(
            prompts_answered(len(prompts) - len(failed), len(failed), work.study.generation.max_failed),
            diversity(found),
        ),
    )


def adaptive(rows: pa.Table, study: Study) -> dict[str, object]:
    """What an adaptive N saved and why prompts stopped, over all parts; nothing with a fixed N."""
    if study.generation.scorer is None:
        return {}
    tokens = pc.multiply(rows["n_tokens"], rows["multiplicity"])
    drawn = rows.append_column("tokens", tokens).filter(pc.is_null(rows["failure"])).group_by("prompt_id")
    by_prompt = drawn.aggregate([("multiplicity", "sum"), ("tokens", "sum")])
    samples, spent = by_prompt["multiplicity_sum"].to_pylist(), by_prompt["tokens_sum"].to_pylist()
    return {
        "adaptive": {
            **saved(samples, spent, study.generation.most),
            "prompts by samples": {str(number): count for number, count in sorted(Counter(samples).items())},
            "prompts by reason to stop": dict(Counter(rows["stopped"].drop_null().to_pylist()).most_common()),
        }
    }


def _answers(table: pa.Table) -> Iterator[tuple[list[str], list[int], list[bool]]]:
    """Each prompt's texts, multiplicities and whether they were cut; its rows are adjacent."""
    columns = [table[name].to_pylist() for name in ("prompt_id", "text", "multiplicity", "finish_reason")]
    for _, rows in groupby(zip(*columns, strict=True), key=itemgetter(0)):
        _, texts, multiplicities, reasons = zip(*rows, strict=True)
        yield texts, multiplicities, [reason == "length" for reason in reasons]


def describe(artifact: Artifact, work: Work) -> Mapping[str, object]:
    """How many, how different, how long, how fast; some prompts with answers."""
    columns = ["candidate_id", "prompt_id", "text", "finish_reason", "multiplicity", "n_tokens", "sum_logp"]
    table = artifact.table(columns=columns)
    by_prompt = table.group_by("prompt_id").aggregate([("multiplicity", "sum"), ("multiplicity", "count")])
    multiplicity = table["multiplicity"].to_numpy()
    facts = artifact.manifest.metadata
    found = Diversity(**facts["diversity"])
    return {
        "prompts": found.prompts,
        "samples": found.samples,
        "distinct candidates": found.distinct,
        "distinct share": _rounded(found.distinct_share),
        "distinct candidates a prompt": _rounded(found.distinct_a_prompt),
        "mean pairwise similarity": _rounded(found.mean_similarity),
        "truncated share": _rounded(found.truncated_share),
        "prompts not sampled": artifact.manifest.tables["dropped"].rows,
        **{name: facts[name] for name in ("numerics", "path") if name in facts},
        **speed(facts.get("this run", {})),
        **({"adaptive N": dg.MetadataValue.json(facts["adaptive"])} if "adaptive" in facts else {}),
        "preview": preview(table, columns=["candidate_id", "text", "finish_reason", "multiplicity", "sum_logp"]),
        "lengths": histograms(
            {
                "tokens a sample": np.repeat(table["n_tokens"].to_numpy(), multiplicity),
                "samples a prompt": by_prompt["multiplicity_sum"].to_pylist(),
                "distinct candidates a prompt": by_prompt["multiplicity_count"].to_pylist(),
            }
        ),
        "examples": examples(table, work),
        "inspector": dg.MetadataValue.url(prompts_url(shard=work.partition)),
    }


def speed(run: Mapping[str, float]) -> dict[str, object]:
    """Rates of the run that made the result, what an interrupted one before it had done left out; and its counts."""
    if not run:
        return {}
    seconds = max(run["seconds"], 1e-9)
    return {
        "tokens/s": round(run["tokens"] / seconds, 1),
        "prompts/s": round(run["prompts"] / seconds, 2),
        "this run": rows_table([{"what": name, "number": number} for name, number in run.items()], ["what", "number"]),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def examples(table: pa.Table, work: Work) -> dg.MarkdownMetadataValue:
    """The first prompts with some of their answers, the most frequent first."""
    rows = []
    for prompt in prompts_of(work.one("filtered_instructions").table().slice(0, SHOWN_PROMPTS), work.study):
        answers = table.filter(pc.equal(table["prompt_id"], prompt.prompt_id)).sort_by([("multiplicity", "descending")])
        for number, row in enumerate(answers.slice(0, SHOWN_ANSWERS).to_pylist()):
            first = number == 0
            cells = (prompt.question if first else "", row["text"], str(row["multiplicity"]), row["sum_logp"])
            rows.append((prompt.image_path if first else None, cells))
    return gallery(("instruction", "answer", "samples", "log-prob, nats"), rows)
