"""Files of known pairs: read as they stand, refused by file, line and field."""

import json

import pytest

from m3po_dagster.method.alignment.known_pairs import KnownPairsError, known_pair_files, read_known_pairs
from tests.rule_judge import grey_image

GOOD = {"image": "grey-1.png", "question": "What?", "better": "this", "worse": "that"}


def written(folder, *lines) -> object:
    grey_image(folder, 1)
    path = folder / "pairs.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def test_pairs_of_one_image_and_question_have_one_prompt(tmp_path):
    grey_image(tmp_path, 2)
    path = written(
        tmp_path,
        {**GOOD, "note": "kept aside"},
        "",
        {**GOOD, "worse": "neither"},
        {**GOOD, "question": "Why?"},
        {**GOOD, "image": "grey-2.png"},
    )
    pairs = read_known_pairs(path)
    assert {pair.better for pair in pairs} == {"this"}
    assert [pair.worse for pair in pairs] == ["that", "neither", "that", "that"]
    assert pairs[0].prompt == pairs[1].prompt and pairs[0].prompt.question == "What?"
    assert len({pair.prompt.prompt_id for pair in pairs}) == 3
    assert known_pair_files(path) == [path, tmp_path / "grey-1.png", tmp_path / "grey-2.png"]


def test_a_prompts_id_stands_for_the_images_bytes_not_its_name(tmp_path):
    one = read_known_pairs(written(tmp_path, GOOD))[0].prompt.prompt_id
    (tmp_path / "copy.png").write_bytes((tmp_path / "grey-1.png").read_bytes())
    assert read_known_pairs(written(tmp_path, {**GOOD, "image": "copy.png"}))[0].prompt.prompt_id == one


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", ["line 2", "JSON"]),
        ("[1]", ["line 2", "object"]),
        ({key: value for key, value in GOOD.items() if key != "worse"}, ["line 2", "worse"]),
        ({**GOOD, "better": "  "}, ["line 2", "better"]),
        ({**GOOD, "question": 3}, ["line 2", "question"]),
        ({**GOOD, "worse": "this"}, ["line 2", "same text"]),
        ({**GOOD, "image": "lost.png"}, ["line 2", "image", "lost.png"]),
        ({**GOOD, "image": "../grey-1.png"}, ["line 2", "image", "image root"]),
    ],
    ids=["broken", "no object", "missing", "empty", "number", "no difference", "no file", "outside"],
)
def test_a_bad_line_is_named(tmp_path, line, said):
    path = written(tmp_path, GOOD, line)
    with pytest.raises(KnownPairsError) as error:
        read_known_pairs(path)
    assert all(word in str(error.value) for word in [str(path), *said])


def test_a_file_without_pairs_or_no_file_is_refused(tmp_path):
    with pytest.raises(KnownPairsError, match="no pairs"):
        read_known_pairs(written(tmp_path, ""))
    with pytest.raises(FileNotFoundError, match=r"judge\.quality\.known_pairs"):
        read_known_pairs(tmp_path / "nothing.jsonl")
