"""The file of open instructions: what is read, and what is refused in which words."""

import json

import pytest
from PIL import Image

from m3po_dagster.evaluation.preference import Preference
from m3po_dagster.evaluation.preference_settings import PreferenceSettings, ServedAssessorSettings
from m3po_dagster.evaluation.question import BenchmarkError

Served = PreferenceSettings[ServedAssessorSettings]


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ('{"image": "a.png", "text": "t"}', "line 1: question_id"),
        ('{"question_id": 1, "text": "t"}', "line 1: image is missing"),
        ('{"question_id": 1, "image": "a.png", "text": " "}', "line 1: text"),
        ('{"question_id": 1, "image": "a.png", "text": "t", "reference": 3}', "line 1: reference"),
        ('{"question_id": 1, "image": "b.png", "text": "t"}', "line 1: no image b.png"),
        ('{"question_id": 1, "image": "../a.png", "text": "t"}', "line 1"),
        ('{"question_id": 1, "image": "a.png", "text": "t"}\n' * 2, "line 2: question_id 1 stands twice"),
        ("", "no questions"),
        ("[]", "line 1: expected one JSON object"),
    ],
)
def test_a_wrong_file_is_named_with_its_line(tmp_path, line, wanted):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "q.jsonl").write_text(line)
    judge = ServedAssessorSettings(model="m", base_url="http://127.0.0.1:1/v1")
    benchmark = Preference(Served(questions=tmp_path / "q.jsonl", image_root=tmp_path, judge=judge))
    with pytest.raises(BenchmarkError) as caught:
        benchmark.load()
    assert str(tmp_path / "q.jsonl") in str(caught.value) and wanted in str(caught.value)


def test_a_reference_is_optional(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    lines = [{"question_id": 1, "image": "a.png", "text": "t"}, {"question_id": "b", "image": "a.png", "text": "t"}]
    lines[1]["reference"] = "good"
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    judge = ServedAssessorSettings(model="m", base_url="http://127.0.0.1:1/v1")
    questions = Preference(Served(questions=tmp_path / "q.jsonl", image_root=tmp_path, judge=judge)).load()
    assert [(one.question_id, one.expected) for one in questions] == [("1", None), ("b", "good")]
