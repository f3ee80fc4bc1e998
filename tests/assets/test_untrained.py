"""Whether a recipe was trained on what it is measured with, told by bytes and by COCO id."""

from types import SimpleNamespace

import pyarrow as pa
import pytest

from m3po_dagster.assets.untrained import untrained
from m3po_dagster.evaluation.judged import JUDGEMENTS
from m3po_dagster.storage.errors import StoreError
from m3po_dagster.storage.store import ArtifactStore
from m3po_dagster.storage.tables import ADAPTERS, BENCHMARK_IMAGES, BENCHMARK_JUDGEMENTS, FILTERED_INSTRUCTIONS

KEY = "0" * 64
BENCHMARK = [("val2014/COCO_val2014_000000310196.jpg", "a" * 64), ("own.png", "b" * 64)]


def commit(store, asset, partition, tables, inputs=()):
    with store.open(asset, partition, KEY) as draft:
        return draft.commit(tables, code_version="1", inputs=dict(inputs))


def work(tmp_path, prompts: list[tuple[str, str | None, str]], adapter: str = "1" * 64):
    """A step of benchmark_scores: prompts as (image_uri, image_name, sha256)."""
    store = ArtifactStore(tmp_path)
    rows = [
        {
            "prompt_id": str(number),
            "image_name": name,
            "image_uri": uri,
            "image_sha256": sha256,
            "width": 1,
            "height": 1,
            "messages": [],
            "reference": None,
            "source": "s",
            "source_id": "1",
            "turn": 0,
        }
        for number, (uri, name, sha256) in enumerate(prompts)
    ]
    table = pa.Table.from_pylist(rows, FILTERED_INSTRUCTIONS.schema)
    filtered = commit(store, "filtered_instructions", "s0", {"data": (table, FILTERED_INSTRUCTIONS)})
    images = [
        {"benchmark": "pope", "image_uri": uri, "image_sha256": sha256, "phash": None} for uri, sha256 in BENCHMARK
    ]
    data = pa.Table.from_pylist(images, BENCHMARK_IMAGES.schema)
    benchmarks = commit(store, "benchmark_data", "", {"images": (data, BENCHMARK_IMAGES)})
    adapters = [{"adapter_id": adapter, "seed": 0, "fingerprint": None, "data_version": adapter}]
    trained = commit(
        store,
        "lora_adapter",
        "m3po",
        {"data": (pa.Table.from_pylist(adapters, ADAPTERS.schema), ADAPTERS)},
        {
            "filtered_instructions[s0]": {
                "asset": "filtered_instructions",
                "partition": "s0",
                "fingerprint": KEY,
                "data_version": filtered.data_version,
            }
        },
    )
    made = {"benchmark_data": benchmarks, "lora_adapter": trained}
    return SimpleNamespace(one=made.__getitem__, store=store), filtered


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        (("copied.png", None, "b" * 64), "copied.png is own.png of pope"),
        (("train2017/000000310196.jpg", None, "c" * 64), "is val2014/COCO_val2014_000000310196.jpg of pope"),
        ((".m3po/unpacked/1.jpg", "000000310196.jpg", "c" * 64), "000000310196.jpg is val2014"),
    ],
)
def test_an_image_of_a_benchmark_fails_the_check(tmp_path, prompt, said):
    step, _ = work(tmp_path, [("fine.png", "fine.png", "d" * 64), prompt, prompt])
    check = untrained(step)
    assert not check.passed and check.blocking and said in check.description
    assert check.figures == {"images": 2, "hits": 1}


def test_other_images_pass_and_the_base_model_was_trained_on_none(tmp_path):
    step, _ = work(tmp_path, [("fine.png", "000000000001.jpg", "d" * 64)])
    assert untrained(step).passed and untrained(step).figures == {"images": 1, "hits": 0}
    step, _ = work(tmp_path / "base", [("own.png", None, "b" * 64)], adapter="base")
    assert untrained(step).passed and untrained(step).figures["images"] == 0


def test_prompts_that_left_the_store_are_an_error(tmp_path):
    step, filtered = work(tmp_path, [("fine.png", None, "d" * 64)])
    (filtered.folder / "manifest.json").unlink()
    with pytest.raises(StoreError, match=r"no longer holds filtered_instructions\[s0\] as the recipe was trained on"):
        untrained(step)


def test_judgements_are_stored_as_they_are_made():
    stored = BENCHMARK_JUDGEMENTS.schema
    assert [(f.name, f.type, f.nullable) for f in stored] == [(f.name, f.type, f.nullable) for f in JUDGEMENTS]
