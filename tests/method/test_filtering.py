import hashlib
import io
import json
import struct
import warnings
import zlib
from dataclasses import dataclass

import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from m3po_dagster.method import filtering
from m3po_dagster.method.filtering import FilterSettings, filter_records, strip_image_token
from m3po_dagster.method.prompt import Message, Prompt
from m3po_dagster.storage.tables import DROPPED, FILTERED_INSTRUCTIONS

SMALL = FilterSettings(min_side=8)


@dataclass(frozen=True)
class Read:
    """A record as a reader gives it."""

    record: int
    source_id: str
    image: str | None
    conversation: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Refused:
    record: int
    source_id: str
    detail: str
    reason: str = "malformed record"


def ask(question, image="a.png", record=0, answer="A bus."):
    return Read(record, f"id{record}", image, (("human", question), ("gpt", answer)))


def run(records, root, settings=SMALL, **options):
    return filter_records(records, root, settings, source="toy", **options)


def reason(records, root, settings=SMALL):
    result = run(records, root, settings)
    assert not result.kept
    return result.dropped[0]["reason"]


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for name, colour in (("a.png", "red"), ("b.png", "blue")):
        Image.new("RGB", (20, 10), colour).save(folder / name)
    return folder


def test_a_kept_record_is_a_row_of_the_table(root):
    result = run([ask("<image>\nWhat is it?", record=4)], root)
    (row,) = result.kept
    sha256 = hashlib.sha256((root / "a.png").read_bytes()).hexdigest()
    canonical = json.dumps([sha256, [["user", "What is it?"]]], separators=(",", ":"))
    assert row == {
        "prompt_id": hashlib.sha256(canonical.encode()).hexdigest()[:32],
        "image_uri": "a.png",
        "image_sha256": sha256,
        "width": 20,
        "height": 10,
        "messages": [{"role": "user", "text": "What is it?"}],
        "reference": "A bus.",
        "source": "toy",
        "source_id": "id4",
    }
    pa.Table.from_pylist(result.kept, FILTERED_INSTRUCTIONS.schema).validate(full=True)
    assert (result.dropped, result.counts) == ([], {})


CONVERSATION = (("human", "<image>\nFirst?"), ("gpt", "One."), ("human", "Second?"), ("gpt", "Two."))


@pytest.mark.parametrize(
    ("turns", "conversation", "texts", "reference"),
    [
        ("first", CONVERSATION, ["First?"], "One."),
        ("last", CONVERSATION, ["First?", "One.", "Second?"], "Two."),
        ("last", CONVERSATION[:3], ["First?", "One.", "Second?"], None),
        ("last", CONVERSATION[:2], ["First?"], "One."),
        ("first", CONVERSATION[:1], ["First?"], None),
    ],
)
def test_first_asks_alone_and_last_brings_the_turns_before_it(root, turns, conversation, texts, reference):
    (row,) = run([Read(0, "1", "a.png", conversation)], root, turns=turns).kept
    assert [turn["text"] for turn in row["messages"]] == texts
    assert [turn["role"] for turn in row["messages"]] == ["user", "assistant", "user"][: len(texts)]
    assert row["reference"] == reference


@pytest.mark.parametrize(
    ("text", "stripped"),
    [
        ("<image>\nWhat is it?", "What is it?"),
        ("What is it?\n<image>", "What is it?"),
        ("<image>What is it?", "What is it?"),
        ("<image>\r\nWhat is it?", "What is it?"),
        ("See:\n<image>\nWhat is it?", "See:\nWhat is it?"),
        ("See <image> here", "See  here"),
        ("See:<image>\nWhat?", "See:\nWhat?"),
        ("<image>\n<image>\nWhat?", "What?"),
        ("<im<image>age>What?", "What?"),
        ("  two  spaces, kept \n", "  two  spaces, kept \n"),
        ("What is this photo about'?\n<image>", "What is this photo about'?"),
    ],
)
def test_the_image_token_and_its_newline_go_and_the_question_is_verbatim(text, stripped):
    assert strip_image_token(text) == stripped


@given(st.text(st.sampled_from(list("<image>\r\n a")), max_size=60))
@example("<image>" * 3)
def test_no_image_token_is_left_and_other_text_is_untouched(text):
    stripped = strip_image_token(text)
    assert "<image>" not in stripped
    if "<image>" not in text:
        assert stripped == text


@given(
    st.text(st.characters(exclude_characters="<", codec="utf-8"), min_size=1).filter(lambda text: text[0] not in "\r\n")
)
def test_prefix_and_suffix_form_are_one_question(question):
    assert strip_image_token(f"<image>\n{question}") == question
    if question[-1] not in "\r\n":
        assert strip_image_token(f"{question}\n<image>") == question


def test_text_is_composed_so_that_two_spellings_are_one_prompt(root):
    result = run(
        [ask("Is it a café?"), ask("Is it a cafe\u0301?", record=1)],
        root,
        FilterSettings(min_side=8, dedup_normalised=False),
    )
    assert [row["messages"][0]["text"] for row in result.kept] == ["Is it a café?"]
    assert result.counts == {filtering.DUPLICATE: 1}


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (Refused(0, "1", "id is missing"), "malformed record"),
        (Read(0, "1", None, (("human", "What is it?"),)), filtering.TEXT_ONLY),
        (Read(0, "1", "a.png", (("gpt", "A bus."), ("human", "What is it?"))), filtering.NOT_HUMAN_FIRST),
        (Read(0, "1", "a.png", (("human", "Hello?"), ("human", "What?"))), filtering.NOT_ALTERNATING),
        (ask("<image>\n \t\n"), filtering.INSTRUCTION_EMPTY),
        (ask("   x     "), filtering.INSTRUCTION_SHORT),
        (ask("x" * 1_000_000), filtering.INSTRUCTION_LONG),
        (ask("What is it?", "none.png"), filtering.IMAGE_MISSING),
        (ask("What is it?", "."), filtering.IMAGE_MISSING),
        (ask("What is it?", "x" * 5000), filtering.IMAGE_MISSING),
        (ask("What is it?", "../a.png"), filtering.IMAGE_OUTSIDE),
        (ask("What is it?", "/etc/passwd"), filtering.IMAGE_OUTSIDE),
    ],
)
def test_each_reason_drops(root, record, expected):
    result = run([record], root)
    assert result.counts == {expected: 1}
    assert result.dropped[0]["item_id"] == "toy#0"
    pa.Table.from_pylist(result.dropped, DROPPED.schema).validate(full=True)


def test_an_empty_turn_of_the_history_drops_under_last_only(root):
    record = Read(0, "1", "a.png", (("human", "What is it?"), ("gpt", " "), ("human", "And this?")))
    assert run([record], root, turns="last").counts == {filtering.INSTRUCTION_EMPTY: 1}
    assert len(run([record], root, turns="first").kept) == 1


def png_header(width, height):
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


def promising(width, height):
    chunk = b"IDAT" + zlib.compress(b"\0" * 100)
    body = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return png_header(width, height) + body


def truncated(kind):
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 50).convert("RGB").save(buffer, kind)
    return buffer.getvalue()[: len(buffer.getvalue()) // 2]


def text_bomb():
    chunk = b"zTXt" + b"k\0\0" + zlib.compress(b"x" * 80_000_000)
    body = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return png_header(16, 16) + body


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", filtering.IMAGE_UNDECODABLE),
        (b"GIF is what this claims to be", filtering.IMAGE_UNDECODABLE),
        (truncated("PNG"), filtering.IMAGE_UNDECODABLE),
        (truncated("JPEG"), filtering.IMAGE_UNDECODABLE),
        (text_bomb(), filtering.IMAGE_UNDECODABLE),
        (promising(12_000, 12_000), filtering.IMAGE_TOO_LARGE),
        (promising(400_000, 400_000), filtering.IMAGE_TOO_LARGE),
        (b"P6 16 16 255\n" + b"x" * 768, filtering.IMAGE_UNDECODABLE),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n", filtering.IMAGE_UNDECODABLE),
    ],
)
def test_hostile_images_are_counted_and_the_next_is_kept(root, content, expected):
    (root / "bad.png").write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = run([ask("What is it?", "bad.png"), ask("What is it?", "a.png", 1)], root)
    assert result.counts == {expected: 1}
    assert [row["source_id"] for row in result.kept] == ["id1"]


@given(st.binary(max_size=200), st.integers(0, 400), st.integers(0, 255))
def test_no_bytes_crash_the_filter(tmp_path_factory, tail, at, value):
    folder = tmp_path_factory.mktemp("fuzz")
    buffer = io.BytesIO()
    Image.new("RGB", (12, 12), "red").save(buffer, "PNG")
    content = bytearray(buffer.getvalue() + tail)
    content[at % len(content)] = value
    (folder / "a.png").write_bytes(bytes(content))
    result = run([ask("What is it?")], folder)
    assert len(result.kept) + len(result.dropped) == 1


def test_what_is_kept_opens_as_a_prompt_with_the_stated_size(root):
    upright = Image.effect_noise((40, 20), 50).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    upright.save(root / "turned.jpg", exif=exif)
    upright.convert("L").save(root / "gray.png")
    upright.convert("RGBA").save(root / "alpha.png")
    upright.convert("P").save(root / "palette.gif")
    upright.convert("CMYK").save(root / "cmyk.jpg")
    names = ["turned.jpg", "gray.png", "alpha.png", "palette.gif", "cmyk.jpg"]
    kept = run([ask("What is it?", name, number) for number, name in enumerate(names)], root).kept
    assert [(row["width"], row["height"]) for row in kept] == [(20, 40)] + [(40, 20)] * 4
    for row in kept:
        image = Prompt(row["prompt_id"], root / row["image_uri"], (Message("user", "?"),)).open_image()
        assert (image.mode, image.size) == ("RGB", (row["width"], row["height"]))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"min_side": 10}, None),
        ({"min_side": 11}, filtering.IMAGE_TOO_SMALL),
        ({"min_side": 8, "max_aspect": 2.0}, None),
        ({"min_side": 8, "max_aspect": 1.9}, filtering.IMAGE_TOO_LONG),
        ({"min_side": 8, "max_megapixels": 200e-6}, None),
        ({"min_side": 8, "max_megapixels": 199e-6}, filtering.IMAGE_TOO_LARGE),
        ({"min_side": 8, "min_characters": 11}, None),
        ({"min_side": 8, "min_characters": 12}, filtering.INSTRUCTION_SHORT),
        ({"min_side": 8, "max_characters": 11}, None),
        ({"min_side": 8, "max_characters": 10}, filtering.INSTRUCTION_LONG),
    ],
)
def test_bounds_are_inclusive(root, settings, expected):
    result = run([ask("What is it?")], root, FilterSettings(**settings))
    assert result.counts == ({expected: 1} if expected else {})


def test_duplicates_are_of_image_content_and_normalised_question(root):
    (root / "copy.png").write_bytes((root / "a.png").read_bytes())
    questions = [
        ("What is it?", "a.png", None),
        ("<image>\nwhat  IS it?", "a.png", filtering.DUPLICATE),
        ("What is it?", "copy.png", filtering.DUPLICATE),
        ("What is it?", "b.png", None),
        ("What was it?", "a.png", None),
    ]
    records = [ask(question, image, number) for number, (question, image, _) in enumerate(questions)]
    result = run(records, root)
    assert [row["source_id"] for row in result.kept] == ["id0", "id3", "id4"]
    assert [row["reason"] for row in result.dropped] == [filtering.DUPLICATE] * 2
    assert "toy#0" in result.dropped[1]["detail"]
    verbatim_only = run(records, root, FilterSettings(min_side=8, dedup_normalised=False))
    assert [row["source_id"] for row in verbatim_only.kept] == ["id0", "id1", "id3", "id4"]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["What is it?", "WHAT is it?", "Why?", ""]), st.sampled_from(["a.png", "b.png", "no.png"])
        ),
        max_size=12,
    )
)
def test_every_record_is_kept_or_dropped_in_order_and_prompt_ids_are_unique(tmp_path_factory, asked):
    folder = tmp_path_factory.mktemp("order")
    for name, colour in (("a.png", "red"), ("b.png", "blue")):
        Image.new("RGB", (8, 8), colour).save(folder / name)
    result = run([ask(question, image, number) for number, (question, image) in enumerate(asked)], folder)
    kept = [int(row["source_id"][2:]) for row in result.kept]
    dropped = [int(row["item_id"].partition("#")[2]) for row in result.dropped]
    assert kept == sorted(kept)
    assert dropped == sorted(dropped)
    assert sorted(kept + dropped) == list(range(len(asked)))
    assert sum(result.counts.values()) == len(dropped)
    assert len({row["prompt_id"] for row in result.kept}) == len(kept)


def test_an_image_is_opened_once_and_progress_is_told(root, monkeypatch):
    opened = []
    real_open = Image.open
    monkeypatch.setattr(Image, "open", lambda *args, **options: opened.append(1) or real_open(*args, **options))
    told = []
    run(
        [ask(f"Question {number}?", "a.png", number) for number in range(5)], root, progress=lambda *at: told.append(at)
    )
    assert len(opened) == 1
    assert told == [(number, 5) for number in range(1, 6)]


@pytest.mark.parametrize(
    "bad",
    [{"min_side": 0}, {"max_aspect": 0.5}, {"min_characters": 5, "max_characters": 4}, {"max_aspect": float("nan")}],
)
def test_settings_that_keep_nothing_are_refused(bad):
    with pytest.raises(ValidationError):
        FilterSettings(**bad)
