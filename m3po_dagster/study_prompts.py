"""A few of a study's own prompts, before anything was materialised: what a check asks with."""

from m3po_dagster.datasets.index import read_records
from m3po_dagster.image_files import ImageRoot
from m3po_dagster.method.filtering import filter_records
from m3po_dagster.method.prompt import Prompt
from m3po_dagster.study import Study


def first_prompts(study: Study, n: int) -> list[Prompt]:
    """The first `n` prompts that pass the study's filters, each on an image of its own; fewer where there are fewer.

    Raises DatasetError or OSError when the dataset can't be read.
    """
    dataset, root = study.dataset, ImageRoot(study.dataset.image_root)
    found: dict[str, Prompt] = {}
    for record in read_records(dataset):
        kept = filter_records(
            [record], dataset.image_root, study.filters, source=dataset.name, turns=dataset.turns
        ).kept
        for row in kept:
            found.setdefault(row["image_sha256"], Prompt.from_row(row, root.locate(row["image_uri"])))
        if len(found) >= n:
            break
    return list(found.values())
