import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from m3po_dagster.datasets.record import DatasetError, Malformed, Record
from m3po_dagster.datasets.rlaif_v import read
from tests.datasets.sources import IMAGE, PAIRS, rlaif_table

LIMIT = 10_000


def write(path, table, **more):
    pq.write_table(table, path, **more)
    return path


def changed(column, values, kind=None):
    table = rlaif_table(PAIRS[: len(values)])
    return table.set_column(table.schema.get_field_index(column), column, pa.array(values, kind))


def test_a_published_row_comes_back_with_the_preferred_answer(tmp_path):
    table = changed("ds_name", ["RLAIF-V"])
    (record,) = read([write(tmp_path / "a.parquet", table)], LIMIT)
    pair = PAIRS[0]
    conversation = (("human", pair.question), ("gpt", pair.answer))
    assert record == Record(0, f"RLAIF-V/{pair.id}", pair.image, conversation, record.sha256, pair.data)


def test_rows_that_ask_the_same_of_the_same_image_are_records_of_their_own(tmp_path):
    table = pa.concat_tables([rlaif_table(PAIRS[:1])] * 3)
    records = list(read([write(tmp_path / "a.parquet", table)], LIMIT))
    assert [record.record for record in records] == [0, 1, 2]
    assert len({record.sha256 for record in records}) == 1


def test_without_ids_and_paths_rows_are_counted_over_all_files(tmp_path):
    table = rlaif_table(PAIRS[:2]).select(["image", "question", "chosen"])
    files = [write(tmp_path / f"{name}.parquet", table) for name in "ab"]
    records = list(read(files, LIMIT))
    assert [(record.record, record.source_id, record.image) for record in records] == [
        (number, str(number), PAIRS[number % 2].image) for number in range(4)
    ]


def test_the_hash_leaves_the_image_s_bytes_and_the_other_columns_out(tmp_path):
    tables = {
        "same": rlaif_table(PAIRS[:1]),
        "bytes": changed("image", [{"bytes": b"other", "path": PAIRS[0].image}], IMAGE),
        "rejected": changed("rejected", ["Other."]),
        "chosen": changed("chosen", ["Other."]),
    }
    hashes = {
        name: next(read([write(tmp_path / f"{name}.parquet", table)], LIMIT)).sha256 for name, table in tables.items()
    }
    assert hashes["same"] == hashes["bytes"] == hashes["rejected"] != hashes["chosen"]


def test_a_row_without_a_preferred_answer_asks_all_the_same(tmp_path):
    (record,) = read([write(tmp_path / "a.parquet", changed("chosen", [None], pa.string()))], LIMIT)
    assert record.conversation == (("human", PAIRS[0].question),)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (None, (None, None)),
        ({"bytes": None, "path": None}, (None, None)),
        ({"bytes": None, "path": "a/b.jpg"}, ("a/b.jpg", None)),
        ({"bytes": b"x", "path": None}, (None, b"x")),
        ({"bytes": b"x", "path": "../../etc/passwd"}, ("../../etc/passwd", b"x")),
    ],
)
def test_what_an_image_can_lack(tmp_path, image, expected):
    table = changed("image", [image], IMAGE).drop_columns(["image_path"])
    (record,) = read([write(tmp_path / "a.parquet", table)], LIMIT)
    assert (record.image, record.image_bytes) == expected


@pytest.mark.parametrize("absent", ["", None])
@pytest.mark.parametrize("own_path", ["own.jpg", "", None])
def test_an_empty_path_is_none_and_the_image_s_own_takes_its_place(tmp_path, absent, own_path):
    table = changed("image", [{"bytes": b"x", "path": own_path}], IMAGE)
    table = table.set_column(table.schema.get_field_index("image_path"), "image_path", pa.array([absent], pa.string()))
    (record,) = read([write(tmp_path / "a.parquet", table)], LIMIT)
    assert (record.image, record.image_bytes) == (own_path or None, b"x")


BROKEN_TEXT = pa.Array.from_buffers(
    pa.string(), 2, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0\5\0\0\0"), pa.py_buffer(b"\xff\xfeHm?")]
)


@pytest.mark.parametrize(
    ("column", "values", "kind", "detail"),
    [
        ("question", [None, "?"], pa.string(), "question is null, expected a string"),
        ("question", ["a\0b", "?"], pa.string(), "question holds a NUL"),
        ("question", BROKEN_TEXT, None, "Invalid UTF8 sequence"),
        ("question", ["x" * 10_000, "?"], pa.string(), "bytes of text, more than 10,000"),
        ("chosen", ["a\0b", "?"], pa.string(), "chosen holds a NUL"),
        ("idx", ["x" * 600, "1"], pa.string(), "idx has 600 characters"),
        ("idx", ["", "1"], pa.string(), "idx has 0 characters"),
        ("image_path", ["a\0", "a.jpg"], pa.string(), "image_path holds a NUL"),
        ("image", [{"bytes": b"", "path": "a"}, None], IMAGE, "image.bytes has 0 bytes"),
        ("image", [{"bytes": b"x", "path": "a\0"}, None], IMAGE, "image.path holds a NUL"),
    ],
)
def test_a_row_that_is_no_record_is_named_and_the_next_is_read(tmp_path, column, values, kind, detail):
    table = changed(column, values, kind)
    bad, good = read([write(tmp_path / "a.parquet", table)], LIMIT)
    assert isinstance(bad, Malformed)
    assert bad.detail.startswith("a.parquet, row 0: ")
    assert detail in bad.detail
    assert (bad.record, good.record, type(good)) == (0, 1, Record)


def test_ids_may_be_whole_numbers_and_texts_of_any_layout(tmp_path):
    table = changed("idx", [7], pa.int64())
    for column in ("question", "chosen"):
        number = table.schema.get_field_index(column)
        table = table.set_column(number, column, table.column(column).cast(pa.large_string()).dictionary_encode())
    (record,) = read([write(tmp_path / "a.parquet", table)], LIMIT)
    assert (record.source_id, record.conversation[0][1]) == ("7", PAIRS[0].question)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (rlaif_table(PAIRS).drop_columns(["chosen"]), "no column 'chosen'; its columns are 'ds_name', 'image'"),
        (rlaif_table(PAIRS).drop_columns(["image"]), "no column 'image'"),
        (changed("question", [1, 2], pa.int64()), "column 'question' is int64, expected text"),
        (changed("idx", [1.5], pa.float64()), "column 'idx' is double, expected text or a whole number"),
        (changed("image", [[1]], pa.list_(pa.int8())), "column 'image' is list<"),
        (changed("image", [{"bytes": "x", "path": "a"}]), "column 'image' is struct<bytes: string"),
        (rlaif_table(PAIRS).append_column("chosen", [["x"] * len(PAIRS)]), "2 columns are named 'chosen'"),
    ],
)
def test_columns_that_are_not_the_format_s_are_named(tmp_path, table, said):
    with pytest.raises(DatasetError) as error:
        list(read([write(tmp_path / "a.parquet", table)], LIMIT))
    assert str(tmp_path / "a.parquet") in str(error.value)
    assert said in str(error.value)


def test_a_corrupt_file_is_named_with_the_row(tmp_path):
    path = write(tmp_path / "a.parquet", rlaif_table(PAIRS), row_group_size=2, write_page_checksum=True)
    content = bytearray(path.read_bytes())
    start = pq.read_metadata(path).row_group(2).column(0).data_page_offset
    content[start + 20 : start + 40] = b"\xff" * 20
    path.write_bytes(content)
    given = []
    with pytest.raises(DatasetError, match=r"a\.parquet, row 4: can't be read"):
        given.extend(record.record for record in read([path], LIMIT))
    path.write_bytes(content[:1000])
    with pytest.raises(DatasetError, match=r"a\.parquet, row 0: can't be read"):
        list(read([path], LIMIT))


def test_a_page_whose_checksum_is_wrong_is_not_taken_for_data(tmp_path):
    path = tmp_path / "a.parquet"
    write(path, rlaif_table(PAIRS), compression="none", write_page_checksum=True, use_dictionary=False)
    content = path.read_bytes()
    assert content.count(b"What is it, 3") == 1
    path.write_bytes(content.replace(b"What is it, 3", b"What is it, 8"))
    with pytest.raises(DatasetError, match=r"a\.parquet, row 0: can't be read: .*(?i:crc|checksum)"):
        list(read([path], LIMIT))


def test_memory_holds_a_part_of_a_row_group(tmp_path):
    images = [{"bytes": bytes([number]) * 500_000, "path": f"{number}.jpg"} for number in range(100)]
    table = pa.table({"image": pa.array(images, IMAGE), "question": ["What?"] * 100, "chosen": ["That."] * 100})
    # Pages of four images; a page is the least that a Parquet reader holds.
    path = write(tmp_path / "a.parquet", table, row_group_size=100, write_batch_size=4, compression="none")
    del table, images
    before = pa.total_allocated_bytes()
    most = count = 0
    for record in read([path], LIMIT):
        count += len(record.image_bytes) == 500_000
        most = max(most, pa.total_allocated_bytes() - before)
    assert count == 100
    assert most < 20_000_000
