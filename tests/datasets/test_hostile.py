"""What a dataset of a stranger can hold, in every format where it can occur: each costs its record, or names the file.

The table says for each case what becomes of a good record, a hostile one and a good one again: 'kept', 'malformed', or
'error' for a DatasetError.
"""

import io
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from m3po_dagster.datasets.readers import read_source
from m3po_dagster.datasets.record import DatasetError, Record
from tests.datasets.sources import MAX_RECORD_BYTES, source

JSON_FORMATS = ("llava_instruct", "jsonl", "webdataset")

HOSTILE_JSON = {
    # what stands for the question's JSON string -> what becomes of the record, what is said
    "nothing hostile": ('"What?"', "kept", ""),
    "NaN": ("NaN", "malformed", "the number nan"),
    "Infinity": ("-Infinity", "malformed", "the number -inf"),
    "deep nesting": ("[" * 5000 + "]" * 5000, "malformed", "nested more than 100 deep"),
    "a number without end": ("7" * 99_000, "malformed", "a number can't be read"),
    "half a surrogate pair": (r'"\ud83d"', "malformed", "half a surrogate pair"),
    "a surrogate pair": (r'"\ud83d\ude8c"', "kept", ""),
    "NUL": (r'"a\u0000b"', "malformed", "NUL character"),
    "wrong type": ('{"a": [1, null]}', "malformed", "expected a string"),
    "too long": ('"' + "x" * MAX_RECORD_BYTES + '"', "too long", "100,000"),
    "control character": ('"a\x01b"', "kept", ""),
    "NUL as it is": ('"a\0b"', "malformed", "question holds a NUL character|value holds a NUL character"),
    "not UTF-8": ('"\udcff"', "broken", "UTF-8"),
    "no value": ("", "broken", "record 1 is broken|no JSON"),
}

BROKEN_WITH_THE_RECORD = {"jsonl": "malformed", "webdataset": "malformed", "llava_instruct": "error"}
"""A line and a member end by themselves; an array doesn't."""


def _record(format, name, value, more):
    turn = f'{{"from": "human", "value": {value}}}'
    asked = f'"conversations": [{turn}]' if format == "llava_instruct" else f'"question": {value}'
    return f'{{"id": "{name}", "image": "{name}.jpg", {asked}{more}}}'.encode("utf-8", "surrogateescape")


def _write(format, folder, values, more=""):
    """A file of the format with a record for each JSON text that stands for a question; `more` follows it in each."""
    texts = [_record(format, f"r{number}", value, more) for number, value in enumerate(values)]
    path = folder / "data.json"
    if format == "webdataset":
        with tarfile.open(path, "w") as tar:
            for number, text in enumerate(texts):
                info = tarfile.TarInfo(f"r{number}.json")
                info.size = len(text)
                tar.addfile(info, io.BytesIO(text))
    else:
        path.write_bytes(b"[" + b", ".join(texts) + b"]" if format == "llava_instruct" else b"\n".join(texts))
    return path


def outcomes(asked):
    """What became of each record: kept, malformed, or error; and all that was said."""
    became, said = [], []
    try:
        for item in read_source(asked, MAX_RECORD_BYTES):
            became.append("kept" if isinstance(item, Record) else "malformed")
            said.append("" if isinstance(item, Record) else item.detail)
    except DatasetError as error:
        became.append("error")
        said.append(str(error))
    return became, said


@pytest.mark.parametrize("format", JSON_FORMATS)
@pytest.mark.parametrize("case", HOSTILE_JSON)
def test_a_hostile_value_costs_its_record_or_names_the_file(tmp_path, format, case):
    value, fate, words = HOSTILE_JSON[case]
    fate = BROKEN_WITH_THE_RECORD[format] if fate in ("broken", "too long") else fate
    became, said = outcomes(source(format, _write(format, tmp_path, ['"A?"', value, '"B?"'])))
    assert became == (["kept", "error"] if fate == "error" else ["kept", fate, "kept"])
    assert any(word.lower() in text.lower() for word in words.split("|") for text in said)
    assert fate != "error" or str(tmp_path / "data.json") in said[-1]


@pytest.mark.parametrize("format", JSON_FORMATS)
def test_a_key_that_nothing_reads_may_hold_what_it_likes(tmp_path, format):
    path = _write(format, tmp_path, ['"What?"'], r', "score": NaN, "more": ["\ud83d", "\u0000", 1e999, {}]')
    assert outcomes(source(format, path)) == (["kept"], [""])


HOSTILE_TEXTS = {
    "NUL": (b"a\0b", "malformed", "NUL"),
    "not UTF-8": (b"\xff\xfe", "malformed", "UTF8"),
    "half a surrogate pair": ("\ud83d".encode("utf-8", "surrogatepass"), "malformed", "UTF8"),
    "too long": (b"x" * MAX_RECORD_BYTES, "malformed", "more than 100,000"),
    "nothing hostile": ("\U0001f68c".encode(), "kept", ""),
}


COLUMNS = ("question", "chosen", "id", "path")
PLACES = [("rlaif_v", "parquet", column) for column in COLUMNS] + [
    ("huggingface", end, column) for end in ("parquet", "arrow") for column in (*COLUMNS, "turns")
]


@pytest.mark.parametrize(("format", "end", "column"), PLACES)
@pytest.mark.parametrize("case", HOSTILE_TEXTS)
def test_a_hostile_text_in_a_column_costs_its_row(tmp_path, format, end, column, case):
    value, fate, words = HOSTILE_TEXTS[case]

    def texts(name):
        values = [b"fine", value if name == column else b"fine", b"fine"]
        ends = [sum(map(len, values[:number])) for number in range(4)]
        offsets = pa.py_buffer(b"".join(end.to_bytes(4, "little") for end in ends))
        return pa.Array.from_buffers(pa.string(), 3, [None, offsets, pa.py_buffer(b"".join(values))])

    image = pa.StructArray.from_arrays([pa.array([b"x"] * 3, pa.binary()), texts("path")], ["bytes", "path"])
    turns = pa.StructArray.from_arrays([pa.array(["human"] * 3), texts("turns")], ["from", "value"])
    columns = {"image": image, "question": texts("question"), "chosen": texts("chosen"), "idx": texts("id")}
    columns["turns"] = pa.ListArray.from_arrays([0, 1, 2, 3], turns)
    table, path = pa.table(columns), tmp_path / f"data.{end}"
    if end == "parquet":
        pq.write_table(table, path)
    else:
        with pa.ipc.new_stream(str(path), table.schema) as writer:
            writer.write_table(table)
    more = {}
    if format == "huggingface":
        asked = {"question_column": "question", "answer_column": "chosen", "conversation_column": None}
        talked = {"question_column": None, "answer_column": None, "conversation_column": "turns"}
        more = {"id_column": "idx", **(talked if column == "turns" else asked)}
    became, said = outcomes(source(format, path, **more))
    assert became == ["kept", fate, "kept"]
    assert words in said[1]


@pytest.mark.parametrize(
    ("format", "content", "said"),
    [
        ("llava_instruct", b"", "found an empty file"),
        ("llava_instruct", b'{"id": 1}', "found a file that starts with '{'"),
        ("llava_instruct", b"[] []", "the array has ended, but '[' follows"),
        ("llava_instruct", b"[]\0", "the array has ended, but '\\x00' follows"),
        ("llava_instruct", "[]".encode("utf-16"), "byte 0: record 0 is not UTF-8"),
        ("llava_instruct", b"PK\x03\x04", "starts with 'P'"),
        ("jsonl", "{}".encode("utf-16"), "save it as UTF-8"),
        ("jsonl", b"[\n1\n]", "looks like a JSON array"),
        ("rlaif_v", b"", "can't be read"),
        ("rlaif_v", b"PAR1" + b"\xff" * 100 + b"PAR1", "can't be read"),
        ("huggingface", b"", "can't be read"),
        ("huggingface", b"ARROW1\0\0" + b"\xff" * 100, "can't be read"),
        ("huggingface", b"[1]", "can't be read"),
        ("webdataset", b"", "no tar file"),
        ("webdataset", b"\x1f\x8b" + b"\0" * 1000, "no tar file"),
    ],
)
def test_a_file_that_is_something_else_is_named(tmp_path, format, content, said):
    path = tmp_path / f"data.{'parquet' if format == 'rlaif_v' else 'bin'}"
    path.write_bytes(content)
    became, (*_, words) = outcomes(source(format, path))
    assert became[-1] == "error"
    assert "kept" not in became
    assert str(path) in words
    assert said in words
