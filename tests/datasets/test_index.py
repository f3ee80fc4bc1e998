import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3po_dagster.datasets.index import index_dataset, shard_names
from m3po_dagster.datasets.llava_instruct import DatasetSettings
from m3po_dagster.storage.tables import SOURCE_INDEX

TURNS = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A bus."}]


def file_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def settings(folder: Path, records: list, shards: int = 5) -> DatasetSettings:
    (folder / "images").mkdir(exist_ok=True)
    (folder / "data.json").write_text(json.dumps(records))
    return DatasetSettings(path=folder / "data.json", image_root=folder / "images", shards=shards)


def record(name, image=None):
    return {"id": str(name), "conversations": TURNS} | ({"image": image} if image else {})


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    for number in range(60):
        (tmp_path / "images" / f"{number}.jpg").write_bytes(b"image %d" % number)
    return tmp_path


def test_the_table_is_the_schema_s(folder):
    table = index_dataset(settings(folder, [record(1, "1.jpg"), record(2), "broken", record(3, "none.jpg")]), file_hash)
    assert table.schema.names == SOURCE_INDEX.schema.names
    table.cast(SOURCE_INDEX.schema).validate(full=True)
    assert table.column("image_uri").to_pylist() == ["1.jpg", None, None, "none.jpg"]
    assert table.column("image_sha256").to_pylist() == [file_hash(folder / "images" / "1.jpg"), None, None, None]
    assert table.column("source_id").to_pylist() == ["1", "2", "#2", "3"]
    assert set(table.column("shard").to_pylist()) <= set(shard_names(5))


def test_an_empty_dataset_is_an_empty_table(folder):
    table = index_dataset(settings(folder, []), file_hash)
    assert table.cast(SOURCE_INDEX.schema).num_rows == 0


@given(st.lists(st.integers(0, 59), min_size=1, max_size=40), st.integers(1, 99), st.integers(0, 40))
def test_an_image_has_one_shard_and_more_records_move_none(tmp_path_factory, images, shards, cut):
    folder = tmp_path_factory.mktemp("index")
    (folder / "images").mkdir()
    for number in set(images):
        # Half of the names hold the other half's bytes.
        (folder / "images" / f"{number}.jpg").write_bytes(b"image %d" % (number % 30))
    records = [record(position, f"{number}.jpg") for position, number in enumerate(images)]
    rows = index_dataset(settings(folder, records, shards), file_hash).to_pylist()
    fewer = index_dataset(settings(folder, records[:cut], shards), file_hash).to_pylist()
    assert fewer == rows[:cut]
    assert len({(row["image_sha256"], row["shard"]) for row in rows}) == len({row["image_sha256"] for row in rows})
    assert {row["shard"] for row in rows} <= set(shard_names(shards))


def test_shards_are_evenly_filled(folder):
    table = index_dataset(settings(folder, [record(number) for number in range(4000)], 8), file_hash)
    sizes = Counter(table.column("shard").to_pylist())
    assert len(sizes) == 8
    assert 400 < min(sizes.values()) <= max(sizes.values()) < 600


def test_a_file_is_hashed_once_and_nothing_outside_the_root_is_opened(folder):
    (folder / "secret.jpg").write_bytes(b"outside")
    (folder / "images" / "link.jpg").symlink_to(folder / "secret.jpg")
    (folder / "images" / "folder").mkdir()
    hashed = []

    def counting(path):
        hashed.append(path.name)
        return file_hash(path)

    outside = ["../secret.jpg", str(folder / "secret.jpg"), "link.jpg", "folder", "x" * 5000]
    records = [record(1, "1.jpg"), record(2, "./1.jpg"), *(record(3, uri) for uri in outside)]
    told = []
    table = index_dataset(settings(folder, records), counting, lambda *done: told.append(done))
    assert hashed == ["1.jpg"]
    assert table.column("image_sha256").to_pylist()[2:] == [None] * 5
    assert told[-1] == (7, 0)


def test_an_image_that_can_not_be_read_is_no_crash(folder):
    def refusing(path):
        raise PermissionError(13, "Permission denied", str(path))

    table = index_dataset(settings(folder, [record(1, "1.jpg")]), refusing)
    assert table.column("image_sha256").to_pylist() == [None]
