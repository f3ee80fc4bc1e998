import socket
import sys
from typing import get_args

import pytest
from pydantic import TypeAdapter

from m3po_dagster.datasets.readers import READERS, read_source, source_files
from m3po_dagster.datasets.record import DatasetError, Record
from m3po_dagster.datasets.settings import PACKED, AnySource
from tests.datasets.sources import FORMATS, MAX_RECORD_BYTES, PAIRS, source, write


def test_each_format_of_the_settings_has_a_reader():
    schema = TypeAdapter(AnySource).json_schema()
    assert set(READERS) == set(schema["discriminator"]["mapping"]) == set(FORMATS)
    assert len(get_args(get_args(AnySource)[0])) == 5
    assert len({reader.name for reader in READERS.values()}) == len(READERS)


@pytest.mark.parametrize("format", FORMATS)
def test_the_same_records_come_out_of_every_format(tmp_path, format):
    path = write(format, tmp_path)
    records = list(read_source(source(format, path), MAX_RECORD_BYTES))
    assert records == [
        Record(
            record=number,
            source_id=pair.id,
            image=pair.image,
            conversation=(("human", pair.question), ("gpt", pair.answer)),
            sha256=records[number].sha256,
            image_bytes=pair.data if format in PACKED else None,
        )
        for number, pair in enumerate(PAIRS)
    ]
    assert len({record.sha256 for record in records}) == len(PAIRS)
    assert records == list(read_source(source(format, path), MAX_RECORD_BYTES))


@pytest.mark.parametrize("format", FORMATS)
def test_a_format_without_records_has_none(tmp_path, format):
    assert list(read_source(source(format, write(format, tmp_path, [])), MAX_RECORD_BYTES)) == []


@pytest.mark.parametrize(
    ("format", "names"),
    [
        ("llava_instruct", ["data.json"]),
        ("sharegpt4v", ["data.json"]),
        ("jsonl", ["data.jsonl"]),
        ("rlaif_v", [f"RLAIF-V-Dataset_{number:03d}.parquet" for number in range(3)]),
        ("huggingface", ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"]),
        ("webdataset", ["000000.tar", "000001.tar"]),
    ],
)
def test_the_files_of_a_source_are_named_in_the_order_they_are_read(tmp_path, format, names):
    path = write(format, tmp_path)
    if path.is_dir():
        (path / "README.md").write_text("not a record")
        (path / "images").mkdir()
    files = source_files(source(format, path))
    assert files == [path / name if path.is_dir() else path for name in names]
    assert [file.name for file in files] == names


@pytest.mark.parametrize("format", FORMATS)
def test_a_source_that_is_not_there_is_named(tmp_path, format):
    missing = source(format, tmp_path / "nowhere.json")
    for ask in (lambda: source_files(missing), lambda: list(read_source(missing, MAX_RECORD_BYTES))):
        with pytest.raises(DatasetError, match=r"nowhere\.json: no such dataset file"):
            ask()


@pytest.mark.parametrize("format", ["rlaif_v", "huggingface", "webdataset"])
def test_a_folder_without_files_of_the_format_is_named(tmp_path, format):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(b"")
    with pytest.raises(DatasetError, match=r"images: no \.(parquet|tar).* file in this folder"):
        source_files(source(format, tmp_path / "images"))


@pytest.mark.parametrize("format", ["llava_instruct", "jsonl"])
def test_a_folder_is_no_file_with_records(tmp_path, format):
    with pytest.raises(DatasetError, match="is a folder"):
        source_files(source(format, tmp_path))


OPENED: list[str] = []
WATCHING = [False]


def _watch(event, args):
    if WATCHING[0] and event == "open" and isinstance(args[0], str):
        OPENED.append(args[0])
    elif WATCHING[0] and event in ("socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.system"):
        OPENED.append(event)


sys.addaudithook(_watch)


@pytest.mark.parametrize("format", FORMATS)
def test_no_image_and_no_path_from_the_data_is_opened_and_no_network_asked(tmp_path, format):
    (tmp_path / "images").mkdir()
    for pair in PAIRS:
        (tmp_path / "images" / pair.image).write_bytes(pair.data)
    asked = source(format, write(format, tmp_path))
    list(read_source(asked, MAX_RECORD_BYTES))  # what is imported on the way is imported now
    OPENED.clear()
    WATCHING[0] = True
    try:
        records = list(read_source(asked, MAX_RECORD_BYTES))
        with pytest.raises(OSError), socket.socket() as probe:  # the watch works
            probe.connect(("127.0.0.1", 1))
    finally:
        WATCHING[0] = False
    assert OPENED[-1] == "socket.connect"
    allowed = {str(file) for file in source_files(asked)}
    described = {str(asked.path / name) for name in ("state.json", "dataset_info.json")}
    assert set(OPENED[:-1]) <= allowed | described
    assert len(records) == len(PAIRS)
