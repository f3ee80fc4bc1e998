import pytest
from export_world import ExportWorld, nothing

from m3po_dagster.export.pairs import FORMATS, export_pairs, image_mode


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> ExportWorld:
    """Pairs of every kind; nothing writes to it after it is made."""
    return ExportWorld(tmp_path_factory.mktemp("export-world"))


@pytest.fixture
def exported(world, tmp_path):
    """Exports the world's pairs, or those `of` another; gives the folder and the tally."""

    def export(name, mode=None, of=None):
        out = tmp_path / f"out-{name}-{mode}"
        made, layout = of or world, FORMATS[name]
        return out, export_pairs(made.shards, made.study, layout, image_mode(layout, mode), out, nothing)

    return export


@pytest.fixture
def load(tmp_path):
    """`datasets.load_dataset` as anybody calls it, its cache in the test's folder."""
    import datasets

    def load(*args, **kwargs):
        return datasets.load_dataset(*args, split="train", cache_dir=str(tmp_path / "cache"), **kwargs)

    return load
