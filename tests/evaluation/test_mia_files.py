"""MIA-Bench's published file: what it holds is read as it is, and an error says where it stands and what to do."""

import json
import shlex

import pytest

from m3po_dagster.evaluation.question import BenchmarkError
from tests.evaluation.mia_bench_files import FILES, IDS, RECORDS, STOCK, build, record

JUDGE = {"model": "m", "base_url": "http://127.0.0.1:9/v1"}


def test_the_published_layout(tmp_path):
    questions = build(tmp_path, JUDGE).load()
    assert tuple(question.question_id for question in questions) == IDS
    assert [question.image_uri for question in questions] == [*FILES, "000000000001.jpg"]
    assert questions[1].text == "name the colour, 3 words"
    assert json.loads(questions[1].expected) == [
        {"text": "name the colour", "weight": 5, "type": "describe"},
        {"text": "3 words", "weight": 3, "type": "length_limit"},
    ]
    assert len(json.loads(questions[3].expected)) == 5


def test_an_image_may_be_a_path_below_the_root(tmp_path):
    (question,) = build(
        tmp_path, JUDGE, [record("3211872688_157085df0d_m.png", ("describe it", 10, "describe"))]
    ).load()
    assert question.image_path == tmp_path / "images" / "3211872688_157085df0d_m.png"


def test_a_missing_image_names_the_record_the_file_and_the_command(tmp_path):
    files = {name: colour for name, colour in FILES.items() if name != "spiral-staircase.png"}
    with pytest.raises(BenchmarkError) as caught:
        build(tmp_path, JUDGE, files=files).load()
    said = str(caught.value)
    assert "record 2: " in said and "1 of 4 records" in said and "skip_missing_images" in said
    command = shlex.split(said.split("`")[1])
    assert command == ["curl", "-fLo", str(tmp_path / "images" / "spiral-staircase.png"), STOCK]


def test_missing_images_can_be_left_out_and_are_counted(tmp_path):
    files = {"000000000001.jpg": "red"}
    found = build(tmp_path, JUDGE, files=files, skip_missing_images=True)
    questions = found.load()
    assert [question.question_id for question in questions] == ["basic/1", "advanced/4"]
    assert any(note.startswith("2 of MIA-Bench's records are left out") for note in found.notes(questions))
    (tmp_path / "images" / "000000000001.jpg").unlink()
    with pytest.raises(BenchmarkError, match="4 of 4 records"):
        build(tmp_path, JUDGE, files={}, skip_missing_images=True).load()


def test_addresses_that_end_alike_are_different_files(tmp_path):
    one, other = "https://a.example/1/image.png", "https://a.example/2/image.png?x"
    records = [record(address, ("describe it", 10, "describe")) for address in (one, other, one)]
    with pytest.raises(BenchmarkError, match="3 of 3 records") as caught:
        build(tmp_path, JUDGE, records).load()
    first = shlex.split(str(caught.value).split("`")[1])[2]
    (tmp_path / "images" / first.rpartition("/")[2]).write_bytes(b"x")
    with pytest.raises(BenchmarkError, match=r"record 2: .*1 of 3 records") as caught:
        build(tmp_path, JUDGE, records).load()
    assert shlex.split(str(caught.value).split("`")[1])[2] != first


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"components": "x"}, "components: expected a list"),
        ({"component_weight": [4, 3]}, "3 components, 2 component_weight, 3 component_type; expected as many"),
        ({"component_weight": [4, 3, 0]}, "component_weight: number 3 is no number above 0"),
        ({"component_weight": [True, 3, 3]}, "component_weight: number 1 is no number above 0"),
        ({"component_weight": ["4", 3, 3]}, "component_weight: number 1 is no number above 0"),
        ({"components": ["a", " ", "c"]}, "components: number 2 is no text"),
        ({"component_type": ["a", "b", 3]}, "component_type: number 3 is no text"),
        ({"components": [], "component_weight": [], "component_type": []}, "0 components"),
        ({"instruction": ""}, "instruction is ''"),
        ({"type": None}, "type is 'None'"),
        ({"image": 3}, "image is '3'"),
        ({"image": "../x.png"}, "not a path below the image root"),
    ],
)
def test_an_error_names_record_and_field(tmp_path, changed, message):
    with pytest.raises(BenchmarkError, match=rf"instruction_benchmark_all\.json, record 2: .*{message}"):
        build(tmp_path, JUDGE, [RECORDS[1], {**RECORDS[0], **changed}]).load()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("{}", "expected a JSON array"),
        ("[]", "no records"),
        ("[3]", "record 1: expected a JSON obj"),
    ],
)
def test_another_file_is_refused(tmp_path, content, message):
    with pytest.raises(BenchmarkError, match=message):
        build(tmp_path, JUDGE, content).load()
