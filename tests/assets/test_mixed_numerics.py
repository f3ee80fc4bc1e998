"""Log-probs of two numerics never meet: not in a shard's table, not over a recipe's shards."""

import pyarrow as pa
import pytest

from m3po_dagster.assets.adapters import examples_with_reference
from m3po_dagster.assets.pairs import numerics_of
from m3po_dagster.materialise import Work
from m3po_dagster.method.generation.numerics import MixedNumerics
from m3po_dagster.resources.trainer import TrainerResource
from m3po_dagster.storage.artifact import Artifact
from m3po_dagster.storage.store import ArtifactStore
from m3po_dagster.storage.tables import LOGPROBS, PAIRS


def committed(store: ArtifactStore, part, table, schema, **metadata) -> Artifact:
    with store.open(*part, "0" * 64) as draft:
        return draft.commit({"data": (table, schema)}, code_version="1", metadata=metadata)


def logprobs(*numerics: str) -> pa.Table:
    rows = [
        {"candidate_id": f"p:{k}", "prompt_id": "p", "sum_logp": -1.0, "n_tokens": 1, "numerics": name}
        for k, name in enumerate(numerics)
    ]
    return pa.Table.from_pylist(rows, schema=LOGPROBS.schema)


def work_on(part, store: ArtifactStore, inputs) -> Work:
    return Work(part, None, store, None, {}, inputs, print)


def test_a_shard_of_two_numerics_is_refused(tmp_path):
    store = ArtifactStore(tmp_path)
    one = committed(store, ("logprob_table", "s0"), logprobs("vllm-1/float32", "vllm-1/float32"), LOGPROBS)
    two = committed(store, ("logprob_table", "s1"), logprobs("vllm-1/float32", "transformers/float32"), LOGPROBS)
    work = work_on(("preference_pairs", "m3po|s0"), store, {})
    assert numerics_of(work, one) == "vllm-1/float32"
    with pytest.raises(
        MixedNumerics,
        match=r"preference_pairs\[m3po\|s0\]: .*\(transformers/float32, vllm-1/float32\) can't be compared",
    ):
        numerics_of(work, two)


def test_shards_of_two_numerics_train_no_adapter(tmp_path):
    store = ArtifactStore(tmp_path)
    inputs = {}
    for shard, numerics in (("s0", "vllm-1/bfloat16"), ("s1", None), ("s2", "vllm-2/bfloat16")):
        part = ("preference_pairs", f"m3po|{shard}")
        inputs[part] = committed(store, part, PAIRS.schema.empty_table(), PAIRS, numerics=numerics)
    work = work_on(("lora_adapter", "m3po"), store, inputs)
    with pytest.raises(MixedNumerics, match=r"lora_adapter\[m3po\]: .*\(vllm-1/bfloat16, vllm-2/bfloat16\)"):
        examples_with_reference(work, TrainerResource())
