"""What lies outside the graph, each with a data version: dataset files, base model, judge, benchmarks, recipes."""

from collections.abc import Mapping

import dagster as dg
import pyarrow as pa

from m3po_dagster.assets.display import counts, preview
from m3po_dagster.assets.options import options
from m3po_dagster.graph import STAGES
from m3po_dagster.identity import existing
from m3po_dagster.materialise import Built, Work, materialise
from m3po_dagster.resources.study import StoreResource, StudyResource
from m3po_dagster.storage.artifact import Artifact
from m3po_dagster.storage.fingerprint import canonical_json
from m3po_dagster.storage.tables import IDENTITY, SOURCE_INDEX
from m3po_dagster.study import Study


def assets(study: Study) -> list[dg.AssetsDefinition]:
    """The identity assets."""

    @dg.asset(**options("source_dataset", study, SOURCE_INDEX), group_name="outside", kinds={"json"})
    def source_dataset(
        context: dg.AssetExecutionContext, study: StudyResource, store: StoreResource
    ) -> dg.MaterializeResult:
        """Image-instruction pairs as downloaded (section 4.1): one row a record, its image's hash, its shard."""
        return materialise(context, study, store, index_records, describe_records)

    @dg.asset(**options("base_model", study, IDENTITY), group_name="outside", kinds={"huggingface"})
    def base_model(
        context: dg.AssetExecutionContext, study: StudyResource, store: StoreResource
    ) -> dg.MaterializeResult:
        """The LVLM to improve, P_ref of equation 4: hashes of its config, weights and processor."""
        return materialise(context, study, store, identity, describe)

    @dg.asset(**options("judge_identity", study, IDENTITY), group_name="outside", kinds={"yaml"})
    def judge_identity(
        context: dg.AssetExecutionContext, study: StudyResource, store: StoreResource
    ) -> dg.MaterializeResult:
        """The external assessor of section 3.3: its scorers, weights, calibration and model files."""
        return materialise(context, study, store, identity, describe)

    @dg.asset(**options("benchmark_data", study, IDENTITY), group_name="outside", kinds={"json"})
    def benchmark_data(
        context: dg.AssetExecutionContext, study: StudyResource, store: StoreResource
    ) -> dg.MaterializeResult:
        """The benchmarks' questions, labels and images (section 4.1)."""
        return materialise(context, study, store, identity, describe)

    @dg.asset(**options("recipe_config", study, IDENTITY), group_name="outside", kinds={"yaml"})
    def recipe_config(
        context: dg.AssetExecutionContext, study: StudyResource, store: StoreResource
    ) -> dg.MaterializeResult:
        """A recipe's settings as the study file gives them: how pairs are chosen and trained on."""
        return materialise(context, study, store, identity, describe)

    return [source_dataset, base_model, judge_identity, benchmark_data, recipe_config]


def index_records(work: Work) -> Built:
    """Reads the dataset once and says which shard holds which record."""
    from m3po_dagster.datasets.index import index_dataset

    settings = work.study.dataset
    existing(settings.path, "dataset.path")
    existing(settings.image_root, "dataset.image_root")
    return Built({"data": (index_dataset(settings, work.identities.file_hash), SOURCE_INDEX)})


def describe_records(artifact: Artifact, work: Work) -> Mapping[str, object]:
    """Records a shard and the first rows."""
    table = artifact.table()
    shards = table["shard"].value_counts().to_pylist()
    return {
        "records by shard": counts({item["values"]: item["counts"] for item in shards}),
        "missing images": table["image_sha256"].null_count,
        "preview": preview(table),
    }


def identity(work: Work) -> Built:
    """What the fingerprint was computed from, as a table of its facts: its content hash is the data version."""
    found = STAGES[work.part[0]].settings(work.study, work.identities, work.partition)
    rows = sorted((key, canonical_json(value)) for key, value in found.items())
    table = pa.table({"fact": [key for key, _ in rows], "value": [value for _, value in rows]}, schema=IDENTITY.schema)
    return Built({"data": (table, IDENTITY)})


def describe(artifact: Artifact, work: Work) -> Mapping[str, object]:
    """The facts themselves."""
    return {"identity": preview(artifact.table(), rows=20)}
