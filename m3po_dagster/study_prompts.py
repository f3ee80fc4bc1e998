"""A few of a study's own prompts, before anything was materialised: what a check asks with."""

from m3po_dagster.datasets.images import DatasetImages
from m3po_dagster.datasets.index import DatasetIndex
from m3po_dagster.method.filtering import filter_rows
from m3po_dagster.method.prompt import Prompt
from m3po_dagster.study import Study


def first_prompts(study: Study, n: int) -> list[Prompt]:
    """The first `n` prompts that pass the study's filters, each on an image of its own; fewer where there are fewer.

    What a record alone can't tell, near-duplicates and benchmarks' images, is not looked for. Raises DatasetError or
    OSError when the dataset can't be read.
    """
    images = DatasetImages(study.dataset)
    found: dict[str, Prompt] = {}
    # A batch no larger than wanted: nothing is fetched for a look at a few prompts that nobody asked for.
    with DatasetIndex(study.dataset, batch=n) as index:
        for record in index.rows():
            for row in filter_rows([record], study.filters, turns=study.dataset.turns).kept:
                path = images.locate(row["source"], row["image_uri"])
                found.setdefault(row["image_sha256"], Prompt.from_row(row, path))
            if len(found) >= n:
                break
    return list(found.values())[:n]
