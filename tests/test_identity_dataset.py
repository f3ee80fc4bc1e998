"""The dataset's identity: everything that decides its records and nothing that reading it changes."""

import json
import os
import shutil
from pathlib import Path

import pytest

from m3po_dagster.datasets.settings import DatasetSettings
from m3po_dagster.identity import Identities
from m3po_dagster.storage.fingerprint import file_sha256
from m3po_dagster.study import load_study
from tests.datasets.dataset_files import picture, record, rows_of

STUDY = Path(__file__).parents[1] / "studies" / "easy_scenes.yaml"


def identity(sources: dict, **settings) -> dict:
    dataset = DatasetSettings.model_validate({"sources": sources, "shards": 2, **settings})
    return Identities(file_sha256).dataset(load_study(STUDY).model_copy(update={"dataset": dataset}))


@pytest.fixture
def source(tmp_path) -> dict:
    picture(tmp_path / "images" / "1.png", 1)
    (tmp_path / "data.json").write_text(json.dumps([record(1, "1.png")]))
    return {"format": "llava_instruct", "path": tmp_path / "data.json", "image_root": tmp_path / "images"}


def test_the_order_of_the_sources_counts_for_the_first_of_duplicates_is_kept(source):
    assert identity({"a": source, "b": source}) != identity({"b": source, "a": source})


@pytest.mark.parametrize(
    "changed",
    [{"max_record_megabytes": 1}, {"max_megapixels": 1}, {"shards": 3}],
    ids=lambda changed: next(iter(changed)),
)
def test_what_decides_a_record_counts(source, changed):
    assert identity({"a": source}) != identity({"a": source}, **changed)
    assert identity({"a": source}) == identity({"a": source}, turns="each"), "which turns are asked is the filter's"


def test_folders_that_change_places_are_another_dataset(source, tmp_path):
    for number, folder in enumerate(("x/img", "y/img")):
        picture(tmp_path / folder / "1.png", number)
    x, y = tmp_path / "x" / "img", tmp_path / "y" / "img"
    one, other = ({**source, "folders": folders} for folders in ({"p": x, "q": y}, {"q": x, "p": y}))
    assert identity({"a": one}) != identity({"a": other})


def test_what_is_hidden_below_the_image_root_is_no_part_of_it(source, tmp_path):
    before = identity({"a": source})
    for name in (".m3po/store/part.parquet", ".cache", "sub/.m3po/unpacked/a.png"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / name).write_bytes(b"x")
    assert identity({"a": source}) == before
    picture(tmp_path / "images" / "sub" / "2.png", 2)
    assert identity({"a": source}) != before


def packed(tmp_path) -> dict:
    import datasets

    one = picture(tmp_path / "one.png", 1).read_bytes()
    rows = {"image": [{"bytes": one, "path": None}], "question": ["What is it?"]}
    features = datasets.Features({"image": datasets.Image(decode=False), "question": datasets.Value("string")})
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "data.parquet")
    names = {"format": "huggingface", "path": tmp_path / "data.parquet", "question_column": "question"}
    return {**names, "image_root": tmp_path / "here"}


def test_reading_changes_nothing_and_images_that_are_gone_are_written_again(tmp_path):
    source = packed(tmp_path)
    before = identity({"a": source})
    (row,) = rows_of(DatasetSettings.model_validate({"sources": {"a": source}}))
    assert row.image.problem is None and (tmp_path / "here" / row.image_uri).is_file()
    assert identity({"a": source}) == before
    shutil.rmtree(tmp_path / "here")
    assert identity({"a": source}) != before, "what was unpacked is gone: it must be read again"
    assert identity({"a": {**source, "image_root": tmp_path / "elsewhere"}}) != before


def test_images_that_a_packed_format_names_by_path_count(tmp_path):
    source = packed(tmp_path)
    before = identity({"a": source})
    picture(tmp_path / "here" / "named.png", 3)
    named = identity({"a": source})
    assert named != before
    times = (tmp_path / "here" / "named.png").stat()
    os.utime(tmp_path / "here" / "named.png", ns=(times.st_atime_ns, times.st_mtime_ns + 10**9))
    assert identity({"a": source}) != named
