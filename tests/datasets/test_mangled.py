"""Whatever is put anywhere into a valid record or a valid file, a reader gives records or a DatasetError."""

import io
import json
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3po_dagster.datasets.readers import read_source
from m3po_dagster.datasets.record import DatasetError, Malformed, Record
from tests.datasets.sources import FORMATS, MAX_RECORD_BYTES, PAIRS, source, write


def check(items):
    """What holds of everything that a reader gives."""
    positions = [item.record for item in items]
    assert positions == list(range(len(items)))
    for item in items:
        assert isinstance(item, (Record, Malformed))
        texts = [item.source_id, item.sha256]
        if isinstance(item, Record):
            texts += [item.image or "", *(text for turn in item.conversation for text in turn)]
            assert item.conversation
            assert {speaker for speaker, _ in item.conversation} <= {"human", "gpt"}
            assert item.image != ""
        else:
            texts += [item.detail]
            assert item.detail
        for text in texts:
            text.encode("utf-8")
            assert "\0" not in text or isinstance(item, Malformed)


def collect(asked):
    items = []
    try:
        for item in read_source(asked, MAX_RECORD_BYTES):
            items.append(item)
    except DatasetError as error:
        assert str(asked.path.parent) in str(error)
    check(items)
    return items


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["id", "from", "value", "role", "content", "type", "text"]), inner)
    ),
    max_leaves=6,
)

VALID = [
    {"id": "1", "image": "1.jpg", "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
    {
        "id": 2,
        "image": "2.jpg",
        "messages": [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a"}]},
            {"role": "assistant", "content": "b"},
        ],
    },
    {"id": "3", "image": "3.jpg", "question": "a", "answer": "b"},
]


def places(value, path=()):
    """Every place in a JSON value where another could stand."""
    yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*path, key))


def with_value(value, path, other):
    if not path:
        return other
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = with_value(copy[path[0]], path[1:], other)
    return copy


mangled = st.sampled_from(VALID).flatmap(
    lambda valid: st.builds(with_value, st.just(valid), st.sampled_from(list(places(valid))), values)
)


@pytest.mark.parametrize("format", ["llava_instruct", "jsonl", "webdataset"])
@given(records=st.lists(mangled, max_size=3))
def test_any_value_at_any_place_of_a_record_costs_no_other_record(tmp_path_factory, format, records):
    folder = tmp_path_factory.mktemp("mangled")
    good = VALID[0] if format == "llava_instruct" else VALID[2]
    texts = [json.dumps(record).encode() for record in [good, *records, good]]
    path = folder / "data"
    if format == "webdataset":
        with tarfile.open(path, "w") as tar:
            for number, text in enumerate(texts):
                info = tarfile.TarInfo(f"{number}.json")
                info.size = len(text)
                tar.addfile(info, io.BytesIO(text))
    else:
        path.write_bytes(b"[" + b",".join(texts) + b"]" if format == "llava_instruct" else b"\n".join(texts))
    items = collect(source(format, path))
    assert len(items) == len(texts)
    assert isinstance(items[0], Record)
    assert isinstance(items[-1], Record)


edits = st.lists(
    st.tuples(st.integers(0, 1 << 20), st.sampled_from(["set", "insert", "cut"]), st.binary(min_size=1, max_size=8)),
    min_size=1,
    max_size=6,
)


def edited(content: bytes, changes) -> bytes:
    for where, what, data in changes:
        at = where % (len(content) + 1)
        rest = content[at:] if what == "insert" else content[at + len(data) :]
        content = content[:at] + (b"" if what == "cut" else data) + rest
    return content


@pytest.fixture(scope="module", params=FORMATS)
def valid(request, tmp_path_factory):
    """A valid source of each format, and its files with their content."""
    folder = tmp_path_factory.mktemp(request.param)
    path = write(request.param, folder, PAIRS)
    files = sorted(file for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file())
    return source(request.param, path), {file: file.read_bytes() for file in files}


@given(data=st.data(), changes=edits)
def test_any_bytes_at_any_place_of_a_file_give_records_or_a_named_error(valid, data, changes):
    asked, contents = valid
    file = data.draw(st.sampled_from(list(contents)))
    file.write_bytes(edited(contents[file], changes))
    try:
        collect(asked)
    finally:
        file.write_bytes(contents[file])
