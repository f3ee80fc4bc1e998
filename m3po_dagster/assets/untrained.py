"""Whether a recipe was trained on what it is measured with."""

from m3po_dagster.assets.checks import Check, trained_on_benchmarks
from m3po_dagster.assets.sharing import BASE_ADAPTER
from m3po_dagster.materialise import Work
from m3po_dagster.method.known_images.known import coco_id
from m3po_dagster.storage.errors import StoreError

PROMPTS = "filtered_instructions"


def untrained(work: Work) -> Check:
    """Compares the images that the recipe's adapters were trained on with those of the study's benchmarks.

    By bytes, and by COCO id where names have one: what passed the filters of then may be a benchmark's of now. Raises
    StoreError when the store no longer holds the prompts.
    """
    images = work.one("benchmark_data").table("images").to_pylist()
    bytes_of = {row["image_sha256"]: f"{row['image_uri']} of {row['benchmark']}" for row in images}
    ids = {coco_id(row["image_uri"]): f"{row['image_uri']} of {row['benchmark']}" for row in images}
    ids.pop(None, None)
    hits: dict[str, str] = {}
    trained = set()
    adapters = work.one("lora_adapter")
    is_base = adapters.table()["adapter_id"].to_pylist() == [BASE_ADAPTER]
    for reference in adapters.manifest.inputs.values():
        if is_base or reference.asset != PROMPTS:
            continue
        artifact = work.store.find(PROMPTS, reference.partition, reference.fingerprint)
        if artifact is None:
            lost = f"{PROMPTS}[{reference.partition}] as the recipe was trained on"
            raise StoreError(f"the store {work.store.location} no longer holds {lost}: train the recipe again")
        for row in artifact.table(columns=["image_sha256", "image_name", "image_uri"]).to_pylist():
            trained.add(row["image_sha256"])
            name = row["image_name"] or row["image_uri"]
            same = bytes_of.get(row["image_sha256"]) or ids.get(coco_id(name))
            if same is not None:
                hits[row["image_sha256"]] = f"{name} is {same}"
    return trained_on_benchmarks(len(trained), list(hits.values()))
