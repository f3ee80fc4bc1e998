"""What lies outside the graph, each with a data version: dataset files, base model, judge, benchmarks, recipes."""

from collections.abc import Iterator, Mapping
from contextlib import closing
from itertools import islice

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc

from m3po_dagster.assets.display import counts, preview
from m3po_dagster.assets.judge_checks import probe_order
from m3po_dagster.assets.options import stage_asset
from m3po_dagster.assets.pictures import gallery, thumbnails
from m3po_dagster.assets.records import RECORDS, records_file
from m3po_dagster.datasets.images import DatasetImages
from m3po_dagster.datasets.row import ROWS
from m3po_dagster.datasets.shards import read_shard
from m3po_dagster.graph import STAGES, label
from m3po_dagster.materialise import Built, Work, materialise
from m3po_dagster.resources.study import StoreResource, StudyResource
from m3po_dagster.storage.artifact import Artifact
from m3po_dagster.storage.file_facts import FileFacts
from m3po_dagster.storage.fingerprint import canonical_json
from m3po_dagster.storage.tables import BENCHMARK_IMAGES, IDENTITY, PROBE, SOURCE_SHARDS
from m3po_dagster.study import Study

SHOWN, PREVIEWED = 6, 24
"""Images shown of a dataset, and records that they are taken from."""
FACTS, FACT_CHARACTERS = 20, 400


def assets(study: Study) -> list[dg.AssetsDefinition]:
    """The identity assets."""

    @stage_asset("source_dataset", study, SOURCE_SHARDS, group_name="outside", kinds={"json"}, section="4.1")
    def source_dataset(
        context: dg.AssetExecutionContext, study: StudyResource, store: StoreResource
    ) -> Iterator[dg.MaterializeResult]:
        """The dataset's files: image-instruction pairs as downloaded (section 4.1).

        In: the files and image folders that the study names. Out: a file of records a shard, each record with what is
        known of its image; records of one image share a shard. A changed file or image gives it another data version.
        """
        yield from materialise(context, study, store, read_dataset, describe_dataset)

    @stage_asset("base_model", study, IDENTITY, group_name="outside", kinds={"huggingface"}, section="3.6")
    def base_model(
        context: dg.AssetExecutionContext, study: StudyResource, store: StoreResource
    ) -> Iterator[dg.MaterializeResult]:
        """The vision-language model to improve, P_ref of equation 4 (section 3.6).

        In: the model that the study names. Out: the hashes of its config, weights and processor, which decide what it
        answers. Every other model of the graph is this one with an adapter.
        """
        yield from materialise(context, study, store, identity, describe)

    @stage_asset("sampling_scorer", study, IDENTITY, group_name="outside", kinds={"yaml"}, section="4.9")
    def sampling_scorer(
        context: dg.AssetExecutionContext, study: StudyResource, store: StoreResource
    ) -> Iterator[dg.MaterializeResult]:
        """The cheap scorer that says between rounds whether a prompt needs more samples (section 4.9).

        In: the scorer that the study names for an adaptive N, and its model files. Out: settings, calibration, hashes;
        nothing with a fixed N. Another scorer draws other candidates; the judge of the pairs is not asked.
        """
        yield from materialise(context, study, store, identity, describe)

    @stage_asset("judge_probe", study, PROBE, group_name="outside", kinds={"openai"}, section="3.3")
    def judge_probe(
        context: dg.AssetExecutionContext, study: StudyResource, store: StoreResource
    ) -> Iterator[dg.MaterializeResult]:
        """What the judge's served scorers (section 3.3) answer to a fixed set of questions.

        In: the served scorers, asked anew each time. Out: a row an answer; none where no scorer is served. A provider
        can change the model behind a name: its answers show it, and they are part of the judge's identity.
        """
        yield from materialise(context, study, store, ask_probe_set, describe)

    @stage_asset("judge_identity", study, IDENTITY, group_name="outside", kinds={"yaml"}, section="3.3")
    def judge_identity(
        context: dg.AssetExecutionContext, study: StudyResource, store: StoreResource
    ) -> Iterator[dg.MaterializeResult]:
        """The external assessor (section 3.3): what decides the scores it gives.

        In: the study's judge settings, its model files, the probe of a served judge. Out: scorers, weights,
        calibration, hashes. Another judge re-scores mas_table and what follows; candidates and log-probs stay.
        """
        yield from materialise(context, study, store, identity, describe)

    @stage_asset("benchmark_data", study, IDENTITY, group_name="outside", kinds={"json"}, section="4.1")
    def benchmark_data(
        context: dg.AssetExecutionContext, study: StudyResource, store: StoreResource
    ) -> Iterator[dg.MaterializeResult]:
        """The benchmarks' questions, labels and images (section 4.1).

        In: the files that the study names. Out: their settings and hashes, and hashes of their images, which no prompt
        may show. Nothing of them is trained on.
        """
        yield from materialise(context, study, store, look_at_benchmarks, describe_benchmarks)

    @stage_asset("recipe_config", study, IDENTITY, group_name="outside", kinds={"yaml"}, section="3.5")
    def recipe_config(
        context: dg.AssetExecutionContext, study: StudyResource, store: StoreResource
    ) -> Iterator[dg.MaterializeResult]:
        """A recipe: how pairs are chosen and trained on (sections 3.5 and 3.6). A partition a recipe.

        In: the recipe as the study file gives it. Out: its settings. An edited recipe touches its own pairs and what
        follows from them, nothing else.
        """
        yield from materialise(context, study, store, identity, describe)

    return [source_dataset, base_model, sampling_scorer, judge_probe, judge_identity, benchmark_data, recipe_config]


def read_dataset(work: Work) -> Built:
    """Reads every source once, looks at every image, and writes each record to its shard."""
    from m3po_dagster.datasets.index import DatasetIndex
    from m3po_dagster.datasets.shards import write_shards

    dataset = work.study.dataset
    with (
        closing(FileFacts.kept_in(work.store.cache_folder)) as memory,
        DatasetIndex(dataset, memory) as index,
        work.progress("reading", "record") as advance,
    ):
        counted = write_shards(index.rows(advance), work.draft.folder(RECORDS), dataset.shards)
    rows = [{"shard": name, **found} for name, found in counted.items()]
    return Built({"data": (pa.Table.from_pylist(rows, SOURCE_SHARDS.schema), SOURCE_SHARDS)})


def describe_dataset(artifact: Artifact, work: Work) -> Mapping[str, object]:
    """Records and images in all and by shard, the first records and the first images."""
    table = artifact.table()
    first = islice(read_shard(records_file(artifact, table["shard"][0].as_py())), PREVIEWED)
    records = pa.Table.from_pylist([row.to_dict() for row in first], ROWS)
    images = DatasetImages(work.study.dataset)
    shown = {(row["source"], row["image_uri"]) for row in records.to_pylist() if row["width"] is not None}
    totals = {name: pc.sum(table[name]).as_py() for name in table.column_names if name != "shard"}
    return {
        "records": totals.pop("records"),
        **{name.replace("_", " "): value for name, value in totals.items()},
        "by shard": preview(table, rows=len(table)),
        "preview": preview(records),
        "shown images": thumbnails(images.locate(*place) for place in sorted(shown)[:SHOWN]),
    }


def look_at_benchmarks(work: Work) -> Built:
    """The identity of the benchmarks, and a hash of the bytes and of the looks of each of their images."""
    from m3po_dagster.datasets.image_looks import ImageLooks
    from m3po_dagster.datasets.settings import MOST_MEGAPIXELS
    from m3po_dagster.evaluation.registry import load_questions

    rows = []
    with closing(FileFacts.kept_in(work.store.cache_folder)) as memory, ImageLooks(memory, MOST_MEGAPIXELS) as looks:
        for name, settings in work.study.benchmarks.items():
            uris = {question.image_path: question.image_uri for question in load_questions(settings)}
            for path, facts in looks.at(uris).items():
                row = {"benchmark": name, "image_uri": uris[path], "image_sha256": facts.sha256, "phash": facts.phash}
                rows.append(row)
    images = pa.Table.from_pylist(rows, BENCHMARK_IMAGES.schema)
    return Built({**identity(work).tables, "images": (images, BENCHMARK_IMAGES)})


def ask_probe_set(work: Work) -> Built:
    """Asks every served scorer; what it was found to answer before stands while it is the same judge.

    Raises OSError naming the endpoint when it can't be asked.
    """
    from m3po_dagster.method.alignment.probe import changed, probe

    judge = work.study.judge
    answers = pa.Table.from_pylist(probe(judge), schema=PROBE.schema)
    head = work.heads.get(work.part)
    before = work.store.find(*work.part, head.fingerprint) if head else None
    if before and before.manifest.settings == STAGES["judge_probe"].settings(work.study, work.identities, ""):
        said = changed(before.table().to_pylist(), answers.to_pylist(), judge.probe_tolerance)
        work.log(f"judge_probe: {said or 'the judge answers as it did'}")
        answers = answers if said else before.table()
    return Built({"data": (answers, PROBE)}, checks=(probe_order(answers),))


def identity(work: Work) -> Built:
    """What the fingerprint was computed from, as a table of its facts: its content hash is the data version."""
    found = STAGES[work.part[0]].settings(work.study, work.identities, work.partition)
    found |= {label(part): artifact.data_version for part, artifact in work.inputs.items()}
    rows = sorted((key, canonical_json(value)) for key, value in found.items())
    table = pa.table({"fact": [key for key, _ in rows], "value": [value for _, value in rows]}, schema=IDENTITY.schema)
    return Built({"data": (table, IDENTITY)})


def describe(artifact: Artifact, work: Work) -> Mapping[str, object]:
    """The facts themselves."""
    return {"preview": preview(artifact.table(), rows=FACTS, cell=FACT_CHARACTERS)}


def describe_benchmarks(artifact: Artifact, work: Work) -> Mapping[str, object]:
    """The facts, and the first questions of each benchmark with their images."""
    from m3po_dagster.evaluation.registry import benchmark

    images = artifact.table("images")
    loaded = {name: benchmark(settings).load() for name, settings in work.study.benchmarks.items()}
    asked = [
        (question.image_path, (name, question.text, question.expected or ""))
        for name, questions in loaded.items()
        for question in islice(questions, 2)
    ]
    return {
        **describe(artifact, work),
        "images": len(images),
        "images without a perceptual hash": images["phash"].null_count,
        "questions by benchmark": counts({name: len(questions) for name, questions in loaded.items()}),
        "questions": gallery(("benchmark", "question", "expected"), asked),
    }
