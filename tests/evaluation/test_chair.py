import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3po_dagster.evaluation.chair import Chair
from m3po_dagster.evaluation.question import BenchmarkError
from m3po_dagster.evaluation.settings import ChairSettings
from m3po_dagster.evaluation.vocabulary import Vocabulary

ROWS = [
    {"question_id": 1, "image": "1.png", "text": "Describe the image.", "objects": ["red circle", "blue triangle"]},
    {"question_id": 2, "image": "2.png", "text": "Describe the image.", "objects": ["gray box"]},
    {"question_id": 3, "image": "3.png", "text": "What is there?", "objects": []},
]


def build(folder, *rows):
    for entry in ROWS:
        (folder / entry["image"]).write_bytes(b"x")
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows or ROWS]
    (folder / "chair.jsonl").write_text("\n".join(lines) + "\n")
    return Chair(ChairSettings(path=folder / "chair.jsonl", image_root=folder))


def values(chair, answers):
    return {metric.metric: metric.value for metric in chair.score(chair.load(), answers, resamples=20)}


def test_a_worked_example(tmp_path):
    answers = {
        "1": "There is a red circle. There is a gray box. There is a RED circle.",
        "2": "There are two gray boxes and a blue\ntriangle.",
        "3": "Nothing.",
    }
    # 1: red circle (there), gray box (not). 2: gray box (there), blue triangle (not). 3: none named.
    assert values(build(tmp_path), answers) == {
        "chair_i": 50.0,
        # Of five mentions the gray box and the blue triangle; the red circle was named twice.
        "chair_i_mentions": 40.0,
        "chair_s": pytest.approx(200 / 3),
        "recall": pytest.approx(200 / 3),
        "words": pytest.approx((15 + 9 + 1) / 3),
        "objects": pytest.approx(4 / 3),
    }


def test_naming_nothing_hallucinates_nothing_and_recalls_nothing(tmp_path):
    found = values(build(tmp_path), dict.fromkeys(("1", "2", "3"), ""))
    assert found == {"chair_i": 0, "chair_i_mentions": 0, "chair_s": 0, "recall": 0, "words": 0, "objects": 0}


def test_the_questions_carry_the_instruction_and_the_objects(tmp_path):
    questions = build(tmp_path).load()
    assert [question.question_id for question in questions] == ["1", "2", "3"]
    assert json.loads(questions[0].expected) == ["blue triangle", "red circle"]
    assert [question.text for question in questions] == ["Describe the image."] * 2 + ["What is there?"]


def test_the_reading_names_the_objects_and_marks_what_is_not_there(tmp_path):
    chair = build(tmp_path)
    question = chair.load()[0]
    assert chair.reading(question, "A red circle, no gray boxes.") == "gray box (not there), red circle"
    assert chair.reading(question, "Nothing.") == "no object"
    for call in (lambda: chair.reading(question, "", "lmms-eval"), lambda: chair.score([question], {}, "lmms-eval")):
        with pytest.raises(BenchmarkError, match="chair has no rule 'lmms-eval'; it has official"):
            call()


@pytest.mark.parametrize(
    ("text", "objects"),
    [
        ("a traffic light by the light", {"traffic light", "light"}),
        ("a traffic light", {"traffic light"}),
        ("lights, TRAFFIC  LIGHTS!", {"traffic light", "light"}),
        ("buses and a bus", {"bus"}),
        ("a light bulb, a light, light bulbs", {"light bulb", "light"}),
        ("a light bulb", {"light bulb"}),
        ("a busy lightning delight", set()),
        ("men and a man", {"person"}),
        ("no bus at all", {"bus"}),
        ("light-house", {"light"}),
        ("red" + " " * 100_000 + "light", {"light"}),
        ("a traffic-light, Traffic -\nLights", {"traffic light"}),
        ("light-bulbs", {"light bulb"}),
        ("a t-shirt", {"shirt"}),
        ("a red-t-shirt", {"uniform"}),
        ("a t shirt", set()),
        ("", set()),
        ("policemen, ladies, children", {"person"}),
        ("two knives and a carving knife", {"knife"}),
        ("clear blue skies", set()),
        ("torches, radios and potatoes", {"torch", "radio", "potato"}),
        ("ladys, mans, childs, busies", set()),
    ],
)
def test_whole_words_longest_first_plurals_and_synonyms(text, objects):
    spellings = {
        "traffic light": "traffic light",
        "light": "light",
        "light bulb": "light bulb",
        "bus": "bus",
        "man": "person",
        "men": "person",
        "policeman": "person",
        "lady": "person",
        "child": "person",
        "knife": "knife",
        "ski": "skis",
        "torch": "torch",
        "radio": "radio",
        "potato": "potato",
        "t-shirt": "shirt",
        "red t-shirt": "uniform",
    }
    assert Vocabulary(spellings).objects(text) == objects


@given(st.lists(st.sampled_from(["cat", "dog", "hot dog", "a", "."]), max_size=12))
def test_mentions_are_what_reading_word_by_word_finds(words):
    found, text, position = set(), " ".join(words).split(), 0
    while position < len(text):
        if text[position : position + 2] == ["hot", "dog"]:
            found.add("hot dog")
            position += 2
            continue
        found |= {text[position]} & {"cat", "dog"}
        position += 1
    assert Vocabulary({name: name for name in ("cat", "dog", "hot dog")}).objects(" ".join(words)) == found


def test_synonyms_in_the_file_widen_the_vocabulary(tmp_path):
    synonyms = {"synonyms": {"gray box": ["grey box", "crate"], "Star": ["asterisk"]}}
    chair = build(tmp_path, synonyms, *ROWS)
    found = values(chair, {"1": "a star", "2": "a crate", "3": "an asterisk and a Grey Box"})
    assert (found["chair_i"], found["objects"]) == (75.0, pytest.approx(4 / 3))
    assert found["recall"] == pytest.approx(100 / 3)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("{", "not valid JSON"),
        ("[]", "expected one JSON object a line"),
        (ROWS[0], "question_id 1 stands twice"),
        ({"image": "1.png", "text": "?", "objects": ["a"]}, "question_id is 'None'"),
        ({"question_id": 4, "text": "?", "objects": ["a"]}, "image is missing"),
        ({"question_id": 4, "image": "1.png", "objects": ["a"]}, "text is missing"),
        ({"question_id": 4, "image": "1.png", "text": "?"}, "objects: expected a list"),
        ({"question_id": 4, "image": "1.png", "text": "?", "objects": [3]}, "objects: '3' is no name"),
        ({"question_id": 4, "image": "1.png", "text": "?", "objects": [" "]}, "is no name"),
        ({"question_id": 4, "image": "9.png", "text": "?", "objects": ["a"]}, "no image 9.png"),
        ({"question_id": 4, "image": "../1.png", "text": "?", "objects": ["a"]}, "below the image root"),
    ],
)
def test_a_malformed_line_is_an_error_that_names_it(tmp_path, row, said):
    with pytest.raises(BenchmarkError) as error:
        build(tmp_path, *ROWS, row).load()
    assert said in str(error.value)
    assert "chair.jsonl, line 4" in str(error.value)


def test_a_file_without_any_object_is_refused(tmp_path):
    with pytest.raises(BenchmarkError, match="no image has an object"):
        build(tmp_path, ROWS[2]).load()


@pytest.mark.parametrize(
    ("synonyms", "said"),
    [
        ([], "expected an object"),
        ({"gray box": "crate"}, "expected a list"),
        ({"gray box": ["red circle"]}, "stands for 'red circle' and 'gray box'"),
        ({"star": ["thing"], "moon": ["thing"]}, "'thing' stands for"),
    ],
)
def test_synonyms_that_are_no_synonyms_are_refused(tmp_path, synonyms, said):
    with pytest.raises(BenchmarkError, match=said):
        build(tmp_path, *ROWS, {"synonyms": synonyms}).vocabulary()
