import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from m3po_dagster.datasets.readers import read_source, source_files
from m3po_dagster.datasets.record import DatasetError, Malformed, Record
from tests.datasets.sources import IMAGE, PAIRS, hub_dataset, source

LIMIT = 10_000
PLAIN = {"question_column": "question", "answer_column": "answer", "id_column": "id"}


def read(path, limit=LIMIT, **columns):
    columns = columns or PLAIN
    missing = dict.fromkeys(("question_column", "answer_column", "id_column"))
    return list(read_source(source("huggingface", path, **(missing | columns)), limit))


def ids(items):
    return [item.source_id for item in items]


@pytest.fixture
def saved(tmp_path):
    hub_dataset(PAIRS).save_to_disk(str(tmp_path / "saved"), num_shards=2)
    return tmp_path / "saved"


@pytest.mark.parametrize("end", ["parquet", "arrow stream", "arrow file"])
def test_parquet_and_arrow_files_are_the_same_rows(tmp_path, end):
    table = hub_dataset(PAIRS).data.table
    path = tmp_path / f"data.{end.split()[0]}"
    if end == "parquet":
        hub_dataset(PAIRS).to_parquet(str(path))
    else:
        new = pa.ipc.new_file if end == "arrow file" else pa.ipc.new_stream
        with new(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=3)
    for asked in (path, tmp_path):
        records = read(asked)
        assert ids(records) == [pair.id for pair in PAIRS]
        assert [record.image_bytes for record in records] == [pair.data for pair in PAIRS]


def test_a_split_of_a_saved_dictionary(tmp_path):
    splits = {"train": hub_dataset(PAIRS[:4]), "test": hub_dataset(PAIRS[4:])}
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "saved"))
    assert ids(read(tmp_path / "saved", split="train", **PLAIN)) == [pair.id for pair in PAIRS[:4]]
    assert ids(read(tmp_path / "saved", split="test", **PLAIN)) == [pair.id for pair in PAIRS[4:]]
    (file,) = source_files(source("huggingface", tmp_path / "saved", split="test"))
    assert file == tmp_path / "saved" / "test" / "data-00000-of-00001.arrow"
    with pytest.raises(DatasetError, match="no split 'dev'; it has train, test"):
        read(tmp_path / "saved", split="dev", **PLAIN)
    with pytest.raises(DatasetError, match="has several splits, train, test: name one as the source's split"):
        read(tmp_path / "saved")


def test_the_only_split_of_a_saved_dictionary_is_read_whatever_its_name(tmp_path):
    datasets.DatasetDict({"validation": hub_dataset(PAIRS[:2])}).save_to_disk(str(tmp_path / "saved"))
    assert ids(read(tmp_path / "saved")) == [pair.id for pair in PAIRS[:2]]
    with pytest.raises(DatasetError, match="no split 'train'; it has validation"):
        read(tmp_path / "saved", split="train", **PLAIN)


def test_a_saved_split_is_the_one_that_its_state_names(tmp_path):
    table = hub_dataset(PAIRS)
    for split in (datasets.Split.VALIDATION, None):
        folder = tmp_path / str(split)
        datasets.Dataset(table.data, split=split).save_to_disk(str(folder))
        assert ids(read(folder)) == [pair.id for pair in PAIRS]
        there = "it has validation" if split else "its files name none, so leave split out"
        with pytest.raises(DatasetError, match=f"no split 'train'; {there}"):
            read(folder, split="train", **PLAIN)
    assert len(read(tmp_path / "validation", split="validation", **PLAIN)) == len(PAIRS)


def test_a_split_never_leads_out_of_the_folder(tmp_path):
    hub_dataset(PAIRS).save_to_disk(str(tmp_path / "secret"))
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["../secret"]}')
    for split in (None, "../secret"):
        with pytest.raises(DatasetError, match="splits is no list of names"):
            read(tmp_path / "saved", split=split, **PLAIN)


@pytest.mark.parametrize("prefix", ["", "llava-"])
def test_a_split_of_files_named_like_the_hub_s(tmp_path, prefix):
    for number, name in enumerate(["train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"]):
        hub_dataset([PAIRS[number]]).to_parquet(str(tmp_path / f"{prefix}{name}.parquet"))
    assert ids(read(tmp_path, split="train", **PLAIN)) == [PAIRS[0].id, PAIRS[1].id]
    assert ids(read(tmp_path, split="test", **PLAIN)) == [PAIRS[2].id]
    with pytest.raises(DatasetError, match=f"no split 'dev'; it has {prefix}test, {prefix}train"):
        read(tmp_path, split="dev", **PLAIN)
    with pytest.raises(DatasetError, match=f"has several splits, {prefix}test, {prefix}train: name one"):
        read(tmp_path)


def test_one_split_alone_is_read_whatever_its_name(tmp_path):
    hub_dataset(PAIRS[:1]).to_parquet(str(tmp_path / "test-00000-of-00001.parquet"))
    assert ids(read(tmp_path)) == [PAIRS[0].id]
    with pytest.raises(DatasetError, match="no split 'train'; it has test"):
        read(tmp_path, split="train", **PLAIN)


def test_a_split_is_refused_of_files_that_name_none(tmp_path):
    hub_dataset(PAIRS[:1]).to_parquet(str(tmp_path / "data.parquet"))
    for path in (tmp_path, tmp_path / "data.parquet"):
        with pytest.raises(DatasetError, match="no split 'train'; its files name none, so leave split out"):
            read(path, split="train", **PLAIN)


def test_a_list_of_images_is_refused_with_what_is_expected(tmp_path):
    rows = {"images": [[{"bytes": b"x", "path": "a.jpg"}]], "question": ["What?"]}
    pq.write_table(pa.table(rows), tmp_path / "a.parquet")
    with pytest.raises(DatasetError, match=r"column 'images' is list<.*, expected .* one image a row"):
        read(tmp_path, image_column="images", question_column="question")


def test_an_image_of_bytes_whose_path_is_empty_has_no_name(tmp_path):
    rows = {"id": ["1"], "image": [{"bytes": b"x", "path": ""}], "question": ["What?"], "answer": ["That."]}
    pq.write_table(pa.table(rows), tmp_path / "a.parquet")
    (record,) = read(tmp_path)
    assert (record.image, record.image_bytes) == (None, b"x")


def test_a_selection_is_saved_and_read_as_a_selection(tmp_path):
    hub_dataset(PAIRS).select([5, 2]).save_to_disk(str(tmp_path / "saved"))
    assert ids(read(tmp_path / "saved")) == [PAIRS[5].id, PAIRS[2].id]


def test_a_format_that_was_set_before_saving_changes_nothing(tmp_path):
    hub_dataset(PAIRS).with_format("numpy", columns=["id"]).save_to_disk(str(tmp_path / "saved"))
    assert [record.conversation[0][1] for record in read(tmp_path / "saved")] == [pair.question for pair in PAIRS]


TURNS = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "That."}]
PARTS = [{"type": "image", "text": None}, {"type": "text", "text": "What?"}]
MESSAGES = [
    {"role": "user", "content": PARTS},
    {"role": "assistant", "content": [{"type": "text", "text": "That."}]},
]


@pytest.mark.parametrize("turns", [TURNS, MESSAGES])
@pytest.mark.parametrize("way", ["saved", "parquet"])
def test_conversations_of_both_kinds(tmp_path, turns, way):
    dataset = datasets.Dataset.from_list([{"image": "a.jpg", "talk": turns}, {"image": "b.jpg", "talk": turns[:1]}])
    dataset.save_to_disk(str(tmp_path / "data")) if way == "saved" else dataset.to_parquet(str(tmp_path / "data"))
    if way == "parquet":
        (tmp_path / "data").rename(tmp_path / "data.parquet")
    path = tmp_path / ("data" if way == "saved" else "data.parquet")
    one, two = read(path, conversation_column="talk")
    assert one == Record(0, "0", "a.jpg", (("human", "What?"), ("gpt", "That.")), one.sha256, own_id=False)
    assert two == Record(1, "1", "b.jpg", (("human", "What?"),), two.sha256, own_id=False)


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        ([b"x", None], pa.binary(), [(None, b"x"), (None, None)]),
        ([b"x", None], pa.large_binary(), [(None, b"x"), (None, None)]),
        (["a/b.jpg", None], pa.string(), [("a/b.jpg", None), (None, None)]),
        ([{"bytes": None, "path": "a.jpg"}, None], IMAGE, [("a.jpg", None), (None, None)]),
        ([{"bytes": b"x", "path": "a.jpg"}, None], IMAGE, [("a.jpg", b"x"), (None, None)]),
        ([None, None], pa.null(), [(None, None), (None, None)]),
    ],
)
def test_an_image_column_of_each_kind(tmp_path, values, kind, expected):
    pq.write_table(pa.table({"picture": pa.array(values, kind), "ask": ["What?", "Where?"]}), tmp_path / "data.parquet")
    records = read(tmp_path / "data.parquet", image_column="picture", question_column="ask")
    assert [(record.image, record.image_bytes) for record in records] == expected


def test_a_null_answer_is_no_turn_and_a_null_question_no_record(tmp_path):
    table = pa.table({"image": ["a", "b"], "q": ["What?", None], "a": pa.array([None, "That."], pa.string())})
    pq.write_table(table, tmp_path / "data.parquet")
    one, two = read(tmp_path / "data.parquet", question_column="q", answer_column="a")
    assert one.conversation == (("human", "What?"),)
    assert two == Malformed(1, "1", two.sha256, "data.parquet, row 1: q is null, expected a string")


@pytest.mark.parametrize(
    ("table", "columns", "said"),
    [
        ({"image": ["a"], "q": ["b"]}, {"question_column": "question"}, "no column 'question'; its columns are"),
        ({"image": ["a"], "q": [3]}, {"question_column": "q"}, "column 'q' is int64, expected text"),
        ({"image": ["a"], "q": ["b"]}, {"conversation_column": "q"}, "column 'q' is string, expected a list of turns"),
        ({"image": [3], "q": ["b"]}, {"question_column": "q"}, "column 'image' is int64, expected an image feature"),
        ({"image": ["a"], "q": ["b"], "id": [0.5]}, PLAIN | {"question_column": "q", "answer_column": "q"}, "'id' is"),
    ],
)
@pytest.mark.parametrize("way", ["saved", "parquet"])
def test_columns_that_do_not_fit_are_named(tmp_path, table, columns, said, way):
    path = tmp_path / ("saved" if way == "saved" else "data.parquet")
    if way == "saved":
        datasets.Dataset.from_dict(table).save_to_disk(str(path))
    else:
        pq.write_table(pa.table(table), path)
    with pytest.raises(DatasetError) as error:
        read(path, **columns)
    assert str(path) in str(error.value)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("../secret.arrow", "'../secret.arrow' is no name of a file in the folder"),
        ("/etc/passwd", "'/etc/passwd' is no name of a file in the folder"),
        ("..", "'..' is no name of a file"),
        ("", "'' is no name of a file"),
        (3, "3 is no name of a file"),
    ],
)
def test_a_saved_dataset_names_no_file_elsewhere(tmp_path, saved, name, said):
    (saved / "data-00000-of-00002.arrow").rename(tmp_path / "secret.arrow")
    state = json.loads((saved / "state.json").read_text())
    state["_data_files"][0]["filename"] = name
    (saved / "state.json").write_text(json.dumps(state))
    for ask in (read, lambda path: source_files(source("huggingface", path))):
        with pytest.raises(DatasetError) as error:
            ask(saved)
        assert str(saved / "state.json") in str(error.value)
        assert said in str(error.value)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("state.json", b"{"),
        ("state.json", b"\xff"),
        ("state.json", b"[" * 5000),
        ("state.json", b"[]"),
        ("state.json", b"{}"),
        ("state.json", b'{"_data_files": 3}'),
        ("state.json", b'{"_data_files": [{"filename": "data-00000-of-00002.arrow"}]}'),
        ("dataset_info.json", b"{"),
        ("dataset_info.json", b"[]"),
        ("dataset_info.json", b'{"features": {"image": {"_type": "Unknown"}}}'),
        ("data-00000-of-00002.arrow", b""),
        ("data-00000-of-00002.arrow", b"\xff" * 1000),
    ],
)
def test_a_saved_dataset_that_is_broken_is_named(saved, file, content):
    (saved / file).write_bytes(content)
    with pytest.raises(DatasetError, match="saved"):
        read(saved)


def test_an_arrow_file_s_claims_about_its_buffers_are_checked_before_a_value_is_touched(tmp_path):
    offsets = pa.py_buffer((0).to_bytes(4, "little") + (1 << 30).to_bytes(4, "little") + (5).to_bytes(4, "little"))
    questions = pa.Array.from_buffers(pa.string(), 2, [None, offsets, pa.py_buffer(b"What?")])
    table = pa.table({"image": ["a.jpg", "b.jpg"], "q": questions})
    with pa.ipc.new_stream(str(tmp_path / "data.arrow"), table.schema) as writer:
        writer.write_table(table)
    items = read(tmp_path / "data.arrow", question_column="q")
    assert [type(item) for item in items] == [Malformed, Malformed]
    assert all("data.arrow, row" in item.detail for item in items)


@pytest.mark.parametrize("ends", [(0, 1, 1 << 30, 3), (0, 2, 1, 3), (0, -5, 2, 3)])
def test_so_are_those_of_a_list_in_it(tmp_path, ends):
    turn = pa.StructArray.from_arrays([["human"] * 3, ["What?"] * 3], ["from", "value"])
    offsets = pa.py_buffer(b"".join(end.to_bytes(4, "little", signed=True) for end in ends))
    talks = pa.Array.from_buffers(pa.list_(turn.type), 3, [None, offsets], children=[turn])
    table = pa.table({"image": ["a", "b", "c"], "talk": talks})
    with pa.ipc.new_stream(str(tmp_path / "data.arrow"), table.schema) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays([pa.array(["a", "b", "c"]), talks], ["image", "talk"]))
    items = read(tmp_path / "data.arrow", conversation_column="talk")
    assert len(items) == 3
    assert {type(item) for item in items} == {Record, Malformed}


def test_one_text_that_is_not_utf8_costs_no_other_row(tmp_path):
    offsets = pa.py_buffer(b"".join(end.to_bytes(4, "little") for end in (0, 5, 7, 12)))
    questions = pa.Array.from_buffers(pa.string(), 3, [None, offsets, pa.py_buffer(b"What?\xff\xfeWhat?")])
    pq.write_table(pa.table({"image": ["a", "b", "c"], "q": questions}), tmp_path / "data.parquet")
    items = read(tmp_path / "data.parquet", question_column="q")
    assert [type(item) for item in items] == [Record, Malformed, Record]
    assert "row 1: " in items[1].detail
    assert "UTF8" in items[1].detail
