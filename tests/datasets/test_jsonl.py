import hashlib
import json

import pytest

from m3po_dagster.datasets.jsonl import read
from m3po_dagster.datasets.record import DatasetError, Malformed, Record

LIMIT = 10_000


def write(path, *lines):
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines))
    return path


def test_what_a_user_writes_by_hand(tmp_path):
    path = write(
        tmp_path / "a.jsonl",
        {"image": "a.jpg", "question": "What is it?", "answer": "A bus.", "id": "first", "mood": "ignored"},
        b"",
        {"image": "b.jpg", "question": "And this?"},
        b"  \t",
        {"question": "No image?", "image": None, "id": 7, "answer": None},
    )
    one, two, three = read(path, LIMIT)
    assert one == Record(0, "first", "a.jpg", (("human", "What is it?"), ("gpt", "A bus.")), one.sha256)
    assert two == Record(1, "3", "b.jpg", (("human", "And this?"),), two.sha256, own_id=False)
    assert three == Record(2, "7", None, (("human", "No image?"),), three.sha256)


def test_images_beside_an_image_are_another_key_and_no_images_are_text_only(tmp_path):
    asked = {"question": "What is it?"}
    path = write(tmp_path / "a.jsonl", {**asked, "image": "a.jpg", "images": ["b.jpg"]}, {**asked, "images": []})
    assert [record.image for record in read(path, LIMIT)] == ["a.jpg", None]


CONVERSATION = (("human", "What is it?"), ("gpt", "A bus."), ("human", "Red?"))


@pytest.mark.parametrize(
    "form",
    [
        {
            "conversations": [
                {"from": "human", "value": "What is it?"},
                {"from": "gpt", "value": "A bus."},
                {"from": "human", "value": "Red?"},
            ]
        },
        {
            "messages": [
                {"role": "user", "content": "What is it?"},
                {"role": "assistant", "content": "A bus."},
                {"role": "user", "content": "Red?"},
            ]
        },
        {
            "messages": [
                {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
                {"role": "assistant", "content": [{"type": "text", "text": "A bus."}]},
                {"role": "user", "content": [{"type": "text", "text": "Red?"}]},
            ],
            "question": None,
        },
    ],
)
def test_each_form_of_a_conversation_is_the_same_conversation(tmp_path, form):
    (record,) = read(write(tmp_path / "a.jsonl", {"image": "a.jpg", **form}), LIMIT)
    assert record.conversation == CONVERSATION


def test_texts_of_several_parts_are_lines(tmp_path):
    parts = [{"type": "text", "text": "One."}, {"type": "image", "text": None}, {"type": "text", "text": "Two."}]
    (record,) = read(write(tmp_path / "a.jsonl", {"messages": [{"role": "user", "content": parts}]}), LIMIT)
    assert record.conversation == (("human", "One.\nTwo."),)


def user(content):
    return {"messages": [{"role": "user", "content": content}]}


@pytest.mark.parametrize(
    ("line", "detail"),
    [
        (b"{", "line 1: no JSON at character 1"),
        (b'{"question": "a', "line 1: no JSON at character 13: Unterminated string"),
        (b'{"question": "a\0b"}', "line 1: question holds a NUL character"),
        (b'{"question": "a"} {"question": "b"}', "line 1: no JSON at character 18: Extra data"),
        (b'{"question": "\xff"}', "line 1: not UTF-8 at byte 14: invalid start byte"),
        (b"[1]", "line 1: a record is an object, this is an array"),
        ({"image": "a.jpg"}, "line 1: question is missing, and so are conversations and messages"),
        ({"question": "a", "messages": []}, "line 1: both question and messages are there"),
        ({"question": 3}, "question is the number 3"),
        ({"question": "a", "answer": ["b"]}, "answer is an array"),
        ({"question": "a", "image": ["a.jpg", "b.jpg"]}, "image is an array of 2"),
        (
            {"question": "a", "images": ["a.jpg"]},
            "images is an array of 1, and image is missing: a record has one image",
        ),
        ({"question": "a", "image": None, "images": "a.jpg"}, "images is a string, and image is missing"),
        ({"question": "a", "id": 1.5}, "id is the number 1.5"),
        ({"messages": []}, "messages is empty"),
        ({"messages": [{"role": "system", "content": "Be kind."}]}, "messages[0].role is 'system'"),
        ({"messages": [{"role": "user"}]}, "messages[0].content is null"),
        (user(["text"]), "messages[0].content[0] is a string, expected an object"),
        (user([{"type": "audio"}]), "messages[0].content[0].type is 'audio'"),
        (user([{"type": "text"}]), "messages[0].content[0].text is null"),
        (user([{"type": "image", "url": "http://x/y.jpg"}]), "messages[0].content[0].url names an image"),
        (user([{"type": "image"}] * 2), "messages holds 2 images, a record has one"),
        (b'{"question": "a", "x": ' + b"[" * 5000 + b"]" * 5000 + b"}", "line 1: 10,024 bytes, more than 10,000"),
        (b'{"question": "a", "x": ' + b"[" * 500 + b"]" * 500 + b"}", "line 1: nested more than 100 deep"),
        (b'{"question": "a", "x": ' + b"7" * 5000 + b"}", "line 1: a number can't be read"),
    ],
)
def test_a_broken_line_is_one_malformed_record_and_the_next_is_read(tmp_path, line, detail):
    bad, good = read(write(tmp_path / "a.jsonl", line, {"question": "fine?"}), LIMIT)
    assert isinstance(bad, Malformed)
    assert detail in bad.detail and not bad.detail.endswith(" at")
    assert (bad.record, good.record, good.source_id) == (0, 1, "2")


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b""])
def test_the_limit_of_a_line_is_to_the_byte(tmp_path, end):
    line = json.dumps({"question": "x" * 80}).encode()
    path = tmp_path / "a.jsonl"
    path.write_bytes(line + end)
    (good,) = read(path, len(line))
    (bad,) = read(path, len(line) - 1)
    assert isinstance(good, Record)
    assert bad == Malformed(0, "#0", hashlib.sha256(line).hexdigest(), bad.detail)
    assert f"line 1: {len(line)} bytes, more than {len(line) - 1}" in bad.detail


def test_a_huge_line_is_skipped_in_constant_memory(tmp_path, bytes_read):
    huge = b'{"question": "' + b"x" * 5_000_000 + b'"}'
    bad, good = read(write(tmp_path / "a.jsonl", huge, {"question": "fine?"}), 1000)
    assert bad.sha256 == hashlib.sha256(huge).hexdigest()
    assert f"line 1: {len(huge):,} bytes, more than 1,000" in bad.detail
    assert good.conversation == (("human", "fine?"),)
    assert sum(bytes_read) > len(huge)
    assert max(bytes_read) <= 1 << 20


def test_a_byte_order_mark_is_no_error(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b'{"question": "a"}\r\n{"question": "b"}\r\n')
    assert [record.conversation[0][1] for record in read(path, LIMIT)] == ["a", "b"]


def test_utf_16_is_named(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"question": "a"}\n', encoding="utf-16")
    with pytest.raises(DatasetError, match=r"a\.jsonl: the file is UTF-16; save it as UTF-8"):
        list(read(path, LIMIT))


@pytest.mark.parametrize("indent", [None, 1])
def test_a_json_array_is_told_which_format_reads_it(tmp_path, indent):
    path = tmp_path / "a.jsonl"
    path.write_text("\n" + json.dumps([{"id": "1", "question": "a"}], indent=indent))
    with pytest.raises(DatasetError, match="looks like a JSON array, which format llava_instruct reads"):
        list(read(path, LIMIT))


def test_one_good_line_makes_a_file_of_lines(tmp_path):
    items = list(read(write(tmp_path / "a.jsonl", b"[1]", {"question": "a"}), LIMIT))
    assert [type(item) for item in items] == [Malformed, Record]


def test_an_empty_file_has_no_records(tmp_path):
    assert list(read(write(tmp_path / "a.jsonl"), LIMIT)) == []


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(DatasetError, match=r"none\.jsonl: no such dataset file"):
        list(read(tmp_path / "none.jsonl", LIMIT))
    with pytest.raises(DatasetError, match="can't be read"):
        list(read(tmp_path, LIMIT))
