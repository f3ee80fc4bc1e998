import json
import re
from pathlib import Path

import pytest
import yaml
from pydantic import TypeAdapter, ValidationError

from m3po_dagster.datasets.fetching import Fetcher
from m3po_dagster.datasets.jsonl import read as read_jsonl
from m3po_dagster.datasets.llava_instruct import read as read_llava
from m3po_dagster.datasets.record import Record
from m3po_dagster.datasets.settings import AnySource, DatasetSettings
from tests.datasets.sources import FORMATS

PAGE = (Path(__file__).parents[2] / "docs" / "datasets.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_every_study_on_the_page_is_one_and_every_format_is_on_it():
    formats = set()
    for block in blocks("yaml"):
        written = yaml.safe_load(block)
        dataset = DatasetSettings.model_validate(written.get("dataset", written))
        formats |= {source.format for source in dataset.sources.values()}
    assert formats == set(FORMATS)


def test_every_record_on_the_page_is_one(tmp_path):
    (array,), (lines,) = blocks("json"), blocks("jsonl")
    (tmp_path / "a.json").write_text(array)
    (tmp_path / "a.jsonl").write_text(lines)
    records = [*read_llava(tmp_path / "a.json", 10_000), *read_jsonl(tmp_path / "a.jsonl", 10_000)]
    assert [type(record) for record in records] == [Record] * 5
    assert len(json.loads(array)) == 1


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"format": "csv"}, "does not match any of the expected tags"),
        ({"format": "jsonl", "split": "train"}, "Extra inputs are not permitted"),
        ({"format": "jsonl", "take": 0}, "greater than or equal to 1"),
        ({"format": "jsonl", "by": "order", "take": 1}, "Input should be 'id-hash'"),
        ({"format": "jsonl", "by": "id-hash"}, "by without take: all records are read"),
        ({"format": "jsonl", "seed": 0}, "seed without take: all records are read"),
        ({"format": "webdataset", "by": "id-hash", "seed": 1}, "by and seed without take"),
        ({"format": "webdataset", "folders": {"a": "x"}}, "folders\n +Extra inputs are not permitted"),
        ({"format": "rlaif_v", "folders": {"a": "x"}}, "folders\n +Extra inputs are not permitted"),
        ({"format": "webdataset", "fetch_from": ["host"]}, "fetch_from\n +Extra inputs are not permitted"),
        ({"format": "rlaif_v", "fetch_from": ["host"]}, "fetch_from\n +Extra inputs are not permitted"),
        ({"format": "jsonl", "folders": {"../up": "x"}}, "no prefix of a relative path"),
        ({"format": "jsonl", "folders": {"/": "x"}}, "no prefix of a relative path"),
        ({"format": "jsonl", "fetch_from": ["http://127.0.0.1:8765/"]}, "host or host:port, here 127.0.0.1:8765"),
        ({"format": "jsonl", "fetch_from": ["https://me:secret@a.org/b"]}, "host or host:port, here a.org"),
        ({"format": "jsonl", "fetch_from": ["a.org/b"]}, "like images.example.org"),
        ({"format": "jsonl", "fetch_from": ["*.a.org"]}, "like images.example.org"),
        ({"format": "jsonl", "fetch_from": ["http://[::1"]}, "like images.example.org"),
        ({"format": "jsonl", "fetch_from": [""]}, "like images.example.org"),
        ({"format": "huggingface"}, "name one of question_column and conversation_column"),
        ({"format": "huggingface", "question_column": "q", "conversation_column": "c"}, "name one of question_column"),
        ({"format": "huggingface", "conversation_column": "c", "answer_column": "a"}, "answer_column goes with"),
    ],
)
def test_a_source_refuses_what_it_does_not_mean(more, said):
    with pytest.raises(ValidationError, match=said):
        TypeAdapter(AnySource).validate_python({"path": "a", "image_root": "b", **more})


JSON = {"format": "llava_instruct", "path": "a.json", "image_root": "b"}


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"shards": 0}, "greater than or equal to 1"),
        ({"shards": 100}, "less than or equal to 99"),
        ({"turns": "all"}, "Input should be 'first', 'last' or 'each'"),
        ({"sources": {}}, "at least 1 item"),
        ({"sources": {"": JSON}}, "should match pattern"),
        ({"pages": 1}, "Extra inputs are not permitted"),
    ],
)
def test_a_dataset_refuses_what_it_does_not_mean(bad, said):
    assert DatasetSettings.model_validate({"sources": {"one": JSON}}).shards == 8
    with pytest.raises(ValidationError, match=said):
        DatasetSettings.model_validate({"sources": {"one": JSON}, **bad})


@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.1:8765", "[::1]:80", "Images.example.org", "b\u00fccher.example"]
)
def test_every_host_that_is_accepted_is_one_that_images_are_fetched_from(tmp_path, host):
    given = {"format": "jsonl", "path": "a", "image_root": tmp_path, "fetch_from": [host]}
    source = TypeAdapter(AnySource).validate_python(given)
    with Fetcher(source.fetch_from, source.image_root) as fetcher:
        assert fetcher.allows(f"http://{host}/a.jpg") and not fetcher.allows("http://other.example/a.jpg")
