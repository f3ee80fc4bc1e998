"""Formats told by what a file holds: every published layout, benchmarks by name, and what is no dataset."""

import gzip
import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict, Features, Image, Value
from PIL import Image as Picture

from m3po_dagster.datasets.detect import NotInstructionData, detect
from m3po_dagster.datasets.readers import read_source
from m3po_dagster.datasets.record import DatasetError
from m3po_dagster.datasets.settings import (
    HuggingFaceSource,
    JsonArraySource,
    JsonLinesSource,
    RlaifVSource,
    WebDatasetSource,
)

LLAVA = {
    "id": "000000033471",
    "image": "000000033471.jpg",
    "conversations": [{"from": "human", "value": "<image>\nWhat is this?"}, {"from": "gpt", "value": "A bus."}],
}
POPE = {"question_id": 1, "image": "COCO_val2014_000000310196.jpg", "text": "Is there a snowboard?", "label": "yes"}


def png() -> bytes:
    content = io.BytesIO()
    Picture.new("RGB", (8, 6), "red").save(content, "PNG")
    return content.getvalue()


def written(path: Path, *records: object, lines: bool = False) -> Path:
    path.write_text("\n".join(map(json.dumps, records)) if lines else json.dumps(list(records)))
    return path


def an_image(path: str = "a.png") -> dict:
    return {"bytes": png(), "path": path}


def table(path: Path, columns: dict) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def test_llavas_array_is_told_whatever_its_name(tmp_path):
    for name in ("llava_instruct_150k.json", "train.jsonl", "noext"):
        source = detect(written(tmp_path / name, LLAVA))
        assert isinstance(source, JsonArraySource) and source.format == "llava_instruct"


def test_text_only_records_in_front_and_a_byte_order_mark_hide_nothing(tmp_path):
    path = tmp_path / "mix665k.json"
    text_only = [{"id": n, "conversations": LLAVA["conversations"]} for n in range(5)]
    path.write_text("\ufeff \n" + json.dumps([*text_only, LLAVA]), encoding="utf-8")
    assert detect(path).format == "llava_instruct"


@pytest.mark.parametrize(
    "record",
    [
        {"image": "a.jpg", "question": "What is this?", "answer": "A bus."},
        {"image": "a.jpg", "messages": [{"role": "user", "content": "What is this?"}]},
        LLAVA,
    ],
)
def test_json_lines_are_told_by_their_records_and_not_by_json_in_the_name(tmp_path, record):
    source = detect(written(tmp_path / "mine.json", record, record, lines=True))
    assert isinstance(source, JsonLinesSource)


def test_a_control_character_in_every_line_hides_nothing(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"image": "a.jpg", "question": "What\tis this?"}\n' * 3)
    source = detect(path)
    assert isinstance(source, JsonLinesSource)
    assert [record.conversation[0][1] for record in read_source(source, 10_000)] == ["What\tis this?"] * 3


def test_one_line_is_a_dataset_too_and_a_broken_first_line_is_the_readers_to_count(tmp_path):
    path = written(tmp_path / "one.jsonl", {"image": "a.jpg", "question": "What?"}, lines=True)
    assert detect(path).format == "jsonl"
    path.write_text('{"image": broken\n' + path.read_text())
    assert detect(path).format == "jsonl"


@pytest.mark.parametrize(
    ("records", "lines", "name"),
    [
        ([POPE, POPE], True, "POPE"),
        ([POPE], True, "POPE"),
        ([POPE], False, "POPE"),
        ([{"question_id": 0, "image": "1.jpg", "text": "Why?", "category": "conv"}] * 2, True, "LLaVA-Bench"),
        ([{"question_id": 0, "image": "1.jpg", "text": "Describe.", "objects": ["bus"]}] * 2, True, "CHAIR"),
        (
            [{"image": "VizWiz_val_00000001.jpg", "question": "What?", "answers": [], "answerable": 1}],
            False,
            "VizWiz",
        ),
        (
            [{"image": "http://x/a.jpg", "instruction": "Go.", "components": ["c"], "component_weight": [10]}],
            False,
            "MIA-Bench",
        ),
    ],
)  # fmt: skip
def test_a_benchmark_is_named_and_refused(tmp_path, records, lines, name):
    with pytest.raises(NotInstructionData, match=name) as told:
        detect(written(tmp_path / "questions.json", *records, lines=lines))
    assert "not instruction data" in str(told.value) and str(tmp_path) in str(told.value)


def test_mme_is_named_as_a_folder_of_categories_and_as_one_category(tmp_path):
    category = tmp_path / "MME_Benchmark_release_version" / "existence"
    category.mkdir(parents=True)
    (category / "000000006040.jpg").write_bytes(png())
    (category / "000000006040.txt").write_text("Is there a train?\tYes\nIs there a bus?\tNo\n")
    for folder in (category, category.parent):
        with pytest.raises(NotInstructionData, match=r"MME.*kind: mme"):
            detect(folder)


def test_cocos_annotations_are_named_in_one_line_and_in_many(tmp_path):
    coco = {"info": {}, "images": [{"id": 1}], "annotations": []}
    for text in (json.dumps(coco), json.dumps(coco, indent=1)):
        (tmp_path / "captions_train2017.json").write_text(text)
        with pytest.raises(NotInstructionData, match="COCO's annotations"):
            detect(tmp_path / "captions_train2017.json")


def test_rlaif_v_by_its_columns_as_a_file_and_as_a_folder(tmp_path):
    columns = {name: ["x"] for name in ("ds_name", "question", "chosen", "rejected", "idx", "image_path")}
    path = table(tmp_path / "RLAIF-V-Dataset_000.parquet", {**columns, "image": [an_image()]})
    assert isinstance(detect(path), RlaifVSource) and isinstance(detect(tmp_path), RlaifVSource)


def test_columns_of_a_parquet_are_guessed_from_names_and_types(tmp_path):
    path = table(
        tmp_path / "t.parquet",
        {
            "image_id": [1],
            "picture": [an_image()],
            "instruction": ["What is this?"],
            "response": ["A bus."],
            "question_id": [7],
        },
    )
    source = detect(path)
    assert isinstance(source, HuggingFaceSource)
    guessed = (source.image_column, source.question_column, source.answer_column, source.id_column)
    assert guessed == ("picture", "instruction", "response", "question_id")
    assert source.conversation_column is None


def test_a_conversation_column_counts_before_a_question_column(tmp_path):
    turns = pa.array([[{"from": "human", "value": "What?"}]])
    path = table(tmp_path / "t.parquet", {"image": [an_image()], "conversations": turns, "question": ["What?"]})
    source = detect(path)
    assert (source.conversation_column, source.question_column, source.answer_column) == ("conversations", None, None)


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"text": ["a"]}, "without an image column"),
        ({"images": [[an_image()]], "question": ["a"]}, "a prompt has one image"),
        ({"image": [an_image()], "label": [1]}, "without a question or conversation column"),
    ],
)
def test_a_table_that_asks_nothing_is_refused_with_its_columns(tmp_path, columns, reason):
    with pytest.raises(DatasetError, match=reason) as told:
        detect(table(tmp_path / "t.parquet", columns))
    assert all(name in str(told.value) for name in columns)


def test_lmms_evals_tables_are_benchmarks(tmp_path):
    columns = {"question_id": ["existence/1.jpg"], "question": ["Is?"], "answer": ["Yes"], "category": ["existence"]}
    with pytest.raises(NotInstructionData, match="MME"):
        detect(table(tmp_path / "test.parquet", {**columns, "image": [an_image()]}))


@pytest.fixture
def saved() -> Dataset:
    features = Features({"image": Image(), "question": Value("string"), "answer": Value("string")})
    return Dataset.from_dict(
        {"image": [an_image()] * 2, "question": ["What?"] * 2, "answer": ["A bus."] * 2}, features=features
    )


def test_a_folder_of_save_to_disk_and_its_arrow_file(tmp_path, saved):
    saved.save_to_disk(tmp_path / "saved")
    source = detect(tmp_path / "saved")
    assert (source.format, source.image_column, source.question_column) == ("huggingface", "image", "question")
    stream = next((tmp_path / "saved").glob("*.arrow"))
    assert detect(stream).answer_column == "answer"


@pytest.mark.parametrize(("splits", "wanted"), [(("test", "train"), "train"), (("validation",), "validation")])
def test_the_split_of_a_dataset_of_several(tmp_path, saved, splits, wanted):
    DatasetDict(dict.fromkeys(splits, saved)).save_to_disk(tmp_path / "saved")
    assert detect(tmp_path / "saved").split == wanted


@pytest.mark.parametrize(
    ("splits", "wanted"),
    [(("test", "train"), "train"), (("validation", "test"), "test"), (("only",), None)],
)
def test_the_split_of_files_named_as_on_the_hub(tmp_path, splits, wanted):
    for split in splits:
        table(tmp_path / f"{split}-00000-of-00001.parquet", {"image": [an_image()], "question": ["What?"]})
    source = detect(tmp_path)
    assert source.split == wanted and len(list(read_source(source, 10**6))) == 1


def test_parquet_is_read_by_its_name_so_another_is_to_be_changed(tmp_path):
    with pytest.raises(DatasetError, match=r"let it end in \.parquet"):
        detect(table(tmp_path / "downloaded", {"image": [an_image()], "question": ["What?"]}))


def test_tar_shards_by_content_and_as_a_folder(tmp_path):
    for name in ("00000.tar", "shard_without_suffix"):
        with tarfile.open(tmp_path / name, "w") as tar:
            member = tarfile.TarInfo("a.png")
            member.size = len(png())
            tar.addfile(member, io.BytesIO(png()))
        assert isinstance(detect(tmp_path / name), WebDatasetSource)
    assert isinstance(detect(tmp_path), WebDatasetSource)


def test_what_is_packed_is_to_be_unpacked(tmp_path):
    path = tmp_path / "llava.json.gz"
    path.write_bytes(gzip.compress(json.dumps([LLAVA]).encode()))
    with pytest.raises(DatasetError, match="gunzip"):
        detect(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b" \n\n", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\n", "git lfs pull"),
        (b"<!doctype html><html>404</html>", "web page"),
        (b"PK\x03\x04rest", "zip"),
        (b"\x00\x01\x02\x03" * 600, "binary"),
        (b"id,image,question\n1,a.jpg,What?\n", "no JSON"),
        (b"[1, 2, 3]", "does not begin with objects"),
        (b'[{"image": "a.jpg", "question": "What?"}]', "jq -c"),
        (b'[{"caption": "a bus"}]', "without conversations"),
        (b'{"image": "a.jpg"}\n{"image": "b.jpg"}\n', "without a question"),
        (b'{"data": [1, 2]}', "one JSON object"),
        (b"PAR1 and then nothing that is Parquet", "no Parquet or Arrow file"),
        (b"ARROW1\0\0cut", "no Parquet or Arrow file"),
        (b'[{"id": "1", "conversations": [{"from": "human"', "cut short"),
        (b"[" * 100_000, "record 0"),
    ],
)
def test_what_is_no_dataset_is_refused_with_the_reason_and_the_file(tmp_path, content, reason):
    path = tmp_path / "downloaded"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=reason) as told:
        detect(path)
    assert str(path) in str(told.value)


def test_an_unknown_file_says_what_was_looked_for(tmp_path):
    (tmp_path / "x").write_text("hello")
    with pytest.raises(DatasetError, match=r"Looked for: .*LLaVA.*RLAIF-V.*save_to_disk.*tar"):
        detect(tmp_path / "x")


RLAIF_V = {"image": [an_image()], "question": ["What?"], "chosen": ["This."], "rejected": ["That."]}


@pytest.fixture
def hub_folder(tmp_path) -> Path:
    """A dataset as the hub's client downloads it: its card, what it notes for itself, and the tables one level down."""
    folder = tmp_path / "RLAIF-V"
    for name in ("data", "images", ".cache/huggingface"):
        (folder / name).mkdir(parents=True)
    (folder / "README.md").write_text("# A card")
    (folder / "dataset_infos.json").write_text("{}")
    (folder / ".cache" / "part.parquet").write_bytes(b"")
    table(folder / "data" / "train-00000-of-00001.parquet", RLAIF_V)
    return folder


@pytest.mark.parametrize("only", [None, "rlaif_v"])
def test_a_folder_as_the_hub_gives_it_is_the_folder_of_its_tables(hub_folder, only):
    source = detect(hub_folder, only=only)
    assert (source.format, source.path) == ("rlaif_v", hub_folder / "data")
    assert source.image_root == hub_folder / "data_images"
    assert [record.image_bytes for record in read_source(source, 10_000)] == [png()]


def test_a_saved_dataset_and_tar_shards_one_level_down(tmp_path, saved):
    saved.save_to_disk(str(tmp_path / "a" / "saved"))
    assert detect(tmp_path / "a").path == tmp_path / "a" / "saved"
    (tmp_path / "b" / "shards").mkdir(parents=True)
    with tarfile.open(tmp_path / "b" / "shards" / "0.tar", "w"):
        pass
    assert detect(tmp_path / "b").format == "webdataset"


def test_of_several_folders_with_tables_one_is_to_be_named(hub_folder):
    (hub_folder / "more").mkdir()
    table(hub_folder / "more" / "a.parquet", RLAIF_V)
    with pytest.raises(DatasetError, match=r"RLAIF-V: 2 of its folders have .*; name one of them: data, more"):
        detect(hub_folder)


def test_json_files_beside_a_folder_of_shards_are_not_passed_over(hub_folder):
    written(hub_folder / "train.json", LLAVA)
    with pytest.raises(DatasetError, match=r"name one of its files: train\.json\."):
        detect(hub_folder)


def test_a_folder_of_json_files_names_them(tmp_path):
    written(tmp_path / "detail_23k.json", LLAVA)
    with pytest.raises(DatasetError, match=r"name one of its files: detail_23k\.json"):
        detect(tmp_path)


def test_no_file_and_a_split_that_leads_elsewhere(tmp_path):
    with pytest.raises(DatasetError, match="no such file"):
        detect(tmp_path / "nowhere.json")
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["../../etc"]}')
    with pytest.raises(DatasetError, match="no name of a split"):
        detect(tmp_path)


def test_the_image_root_is_where_the_first_image_lies(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    path = written(data / "llava.json", LLAVA)
    assert detect(path).image_root == data
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / LLAVA["image"]).write_bytes(png())
    assert detect(path).image_root == detect(path, only="llava_instruct").image_root == tmp_path / "images"
    (data / LLAVA["image"]).write_bytes(png())
    assert detect(path).image_root == data
    assert detect(path, tmp_path / "mine").image_root == tmp_path / "mine"


@pytest.mark.parametrize("image", ["/etc/hostname", "../secret.jpg"])
def test_no_image_outside_the_folder_says_where_the_root_is(tmp_path, image):
    (tmp_path / "data").mkdir()
    (tmp_path / "secret.jpg").write_bytes(png())
    path = written(tmp_path / "data" / "llava.json", {**LLAVA, "image": image})
    assert detect(path).image_root == tmp_path / "data"


def test_a_format_that_is_named_is_not_guessed(tmp_path):
    path = written(tmp_path / "pope.json", POPE, lines=True)
    assert detect(path, only="jsonl").format == "jsonl"
    assert detect(written(tmp_path / "l.json", LLAVA), only="sharegpt4v").format == "sharegpt4v"
    with pytest.raises(DatasetError, match="no Parquet or Arrow"):
        detect(path, only="huggingface")
    with pytest.raises(DatasetError, match="is no format"):
        detect(path, only="csv")


def test_images_inside_are_unpacked_beside_the_files_that_are_read(tmp_path):
    folder = tmp_path / "shards"
    folder.mkdir()
    table(folder / "a.parquet", {"image": [an_image()], "question": ["What?"]})
    assert detect(folder).image_root == tmp_path / "shards_images"
    assert detect(folder / "a.parquet").image_root == folder / "a_images"
