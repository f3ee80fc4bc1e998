"""CHAIR over COCO's object annotations and the published synonyms, under the rules of the public script."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from m3po_dagster.evaluation.chair import Chair
from m3po_dagster.evaluation.coco import CocoVocabulary, read_instances, read_synonyms
from m3po_dagster.evaluation.question import BenchmarkError
from m3po_dagster.evaluation.settings import ChairSettings
from tests.evaluation.coco_files import CATEGORIES, SYNONYMS, write_coco

PARK, ROOM, ZOO = (f"COCO_val2014_{number:012d}.jpg" for number in (42, 73, 74))
IMAGES = {
    PARK: (42, ["dog", "person", "person"]),
    ROOM: (73, ["dining table", "chair", "cat"]),
    ZOO: (74, []),
}
CAPTIONS = [(42, "A man and his puppy on a bench."), (42, "A kitten looks on."), (74, "Two geese."), (99, "A train.")]


def build(folder, captions=False, synonyms=True, images=(PARK, ROOM, ZOO), **fields):
    instances = write_coco(folder, IMAGES, CAPTIONS)
    rows = [
        {"question_id": number, "image": name, "text": "Please describe this image in detail.", **fields}
        for number, name in enumerate(images)
    ]
    for name in images:
        (folder / name).write_bytes(b"x")
    (folder / "chair.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Chair(
        ChairSettings(
            path=folder / "chair.jsonl",
            image_root=folder,
            instances=instances,
            captions=folder / "captions_val2014.json" if captions else None,
            synonyms=folder / "synonyms.txt" if synonyms else None,
        )
    )


def values(chair, answers):
    return {item.metric: item.value for item in chair.score(chair.load(), answers, resamples=20)}


ANSWERS = {
    "0": "A man and a woman walk two dogs. The man waves. A cat sleeps.",
    "1": "A kitten on a stool beside the dining tables; a train.",
    "2": "A goose.",
}


def test_a_worked_example_without_captions(tmp_path):
    chair = build(tmp_path)
    assert [json.loads(question.expected) for question in chair.load()] == [
        ["dog", "person"],
        ["cat", "chair", "dining table"],
        [],
    ]
    # 0: person, person, dog, person, cat (not there). 1: cat, chair, table, train (not there). 2: bird (not there).
    assert values(chair, ANSWERS) == {
        "chair_i": pytest.approx(100 * 3 / 8),
        "chair_i_mentions": pytest.approx(100 * 3 / 10),
        "chair_s": 100,
        "recall": 100,
        "words": pytest.approx((14 + 11 + 2) / 3),
        "objects": pytest.approx(8 / 3),
    }
    assert "captions" in chair.notes(chair.load())[0]


def test_what_people_named_in_captions_is_there_too(tmp_path):
    chair = build(tmp_path, captions=True)
    assert [json.loads(question.expected) for question in chair.load()] == [
        ["cat", "dog", "person"],
        ["cat", "chair", "dining table"],
        ["bird"],
    ]
    found = values(chair, ANSWERS)
    assert (found["chair_i"], found["chair_s"]) == (pytest.approx(100 / 8), pytest.approx(100 / 3))
    assert chair.notes(chair.load()) == ["1 of 3 images have no caption: only what is annotated counts as there"]
    write_coco(tmp_path, IMAGES, [*CAPTIONS, (73, "A table.")])
    assert chair.notes(chair.load()) == []


@pytest.mark.parametrize(
    ("captions", "said"),
    [
        ([], "no captions: expected COCO's captions_*.json"),
        ([(99, "A train."), (7, "A dog.")], "no caption is of an image asked about: captions of another split?"),
        ([(42, "A dog."), (42, ["A dog."])], "annotations, record 2: caption is \"['A dog.']\", expected text"),
        ([(42, None)], "annotations, record 1: caption is 'None', expected text"),
        ([("42", "A dog.")], "annotations, record 1: image_id is '42', expected a whole number"),
        ([(True, "A dog.")], "annotations, record 1: image_id is 'True', expected a whole number"),
    ],
)
def test_captions_that_are_not_of_these_images_are_refused(tmp_path, captions, said):
    chair = build(tmp_path, captions=True)
    write_coco(tmp_path, IMAGES, captions)
    with pytest.raises(BenchmarkError) as error:
        chair.load()
    assert str(error.value) == f"{chair.settings.captions}: {said}"


def test_without_synonyms_coco_s_own_names_count(tmp_path):
    found = values(build(tmp_path, synonyms=False), ANSWERS)
    # 0: dog, cat (not there). 1: the dining table, train (not there).
    assert (found["objects"], found["chair_i"], found["recall"]) == (pytest.approx(4 / 3), 50, pytest.approx(40))


@pytest.mark.parametrize(
    ("text", "mentions"),
    [
        ("a hot dog", ["hot dog"]),
        ("hot dogs and a dog", ["hot dog", "dog"]),
        ("a train track", []),
        ("a train on train tracks", ["train"]),
        ("home plate", []),
        ("a baby bird, an adult cat", ["bird", "cat"]),
        ("a baby", ["person"]),
        ("a baby animal and a cub", []),
        ("an adult baby dog", ["person", "dog"]),
        ("a passenger jet", ["airplane"]),
        ("passenger trains with passengers", ["train", "person"]),
        ("a bow tie and a bow", ["tie", "tie"]),
        ("a toilet seat", ["toilet"]),
        ("the seat of the toilet", ["toilet"]),
        ("the seat of a urinal", ["chair", "toilet"]),
        ("a stool by the toilet seat", ["chair", "toilet"]),
        ("air planes, AIR  PLANE", ["airplane", "airplane"]),
        ("policemen, kids and children", ["person", "person", "person"]),
        ("a cell phone, a teddy bear", []),
        ("a hot-dog and hot-dogs", ["hot dog", "hot dog"]),
        ("a train-track", []),
        ("an adult-dog on a toilet-seat", ["dog", "toilet"]),
        ("a pair of skis under the skies", ["skis"]),
        ("a street light", ["traffic light"]),
    ],
)
def test_double_words_and_qualifiers_are_read_as_the_public_script_reads_them(tmp_path, text, mentions):
    (tmp_path / "synonyms.txt").write_text(SYNONYMS)
    assert CocoVocabulary(read_synonyms(tmp_path / "synonyms.txt")).mentions(text) == mentions


OBJECT_OF = {
    word.strip(): line.split(",")[0]
    for line in SYNONYMS.splitlines()
    for word in line.split(",")
    if word.strip() != "stove top oven"
}
DOUBLE = ["air plane", "traffic light", "street light", "stop light", "hot dog", "train track", "home plate"]
QUALIFIED = {
    **{f"{age} {name}": name for age in ("baby", "adult") for name in ("bird", "cat", "dog", "animal", "cub")},
    "passenger jet": "jet",
    "passenger train": "train",
    "bow tie": "tie",
    "toilet seat": "toilet",
}


def word_by_word(words):
    """The public script, told on words that are singular already: double words, the toilet's seat, synonyms."""
    read, i = [], 0
    while i < len(words):
        pair = " ".join(words[i : i + 2])
        if pair in DOUBLE or pair in QUALIFIED:
            read.append(QUALIFIED.get(pair, pair))
            i += 2
        else:
            read.append(words[i])
            i += 1
    if "toilet" in read and "seat" in read:
        read = [word for word in read if word != "seat"]
    return [OBJECT_OF[word] for word in read if word in OBJECT_OF]


SINGULAR = sorted({word for phrase in (*OBJECT_OF, *DOUBLE, *QUALIFIED) for word in phrase.split()} | {"a", "."})


@given(st.lists(st.sampled_from(SINGULAR), max_size=12))
def test_mentions_are_those_of_the_public_script(tmp_path_factory, words):
    path = tmp_path_factory.getbasetemp() / "synonyms.txt"
    path.write_text(SYNONYMS.replace(", stove top oven", ""))
    assert CocoVocabulary(read_synonyms(path)).mentions(" ".join(words)) == word_by_word(words)


@pytest.mark.parametrize("name", ["000000000042.jpg", "val2017/000000000042.jpg", f"val2014/{PARK}"])
def test_an_image_goes_by_its_name_or_by_the_id_in_it(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (question,) = build(tmp_path, images=(name,)).load()
    assert json.loads(question.expected) == ["dog", "person"]


def test_annotations_are_parsed_once_while_the_file_stays_as_it_is(tmp_path):
    instances = write_coco(tmp_path, IMAGES)
    first = read_instances(instances)
    assert read_instances(instances) is first
    assert first.categories == tuple(CATEGORIES) and first.within[42] == {"dog", "person"}
    write_coco(tmp_path, IMAGES | {ZOO: (74, ["bird"])})
    assert read_instances(instances).within[74] == {"bird"}


def test_images_of_another_split_are_refused(tmp_path):
    with pytest.raises(BenchmarkError, match=r"line 1: .*instances_val2014.json has no image COCO_train2014_") as error:
        build(tmp_path, images=("COCO_train2014_000000000009.jpg",)).load()
    assert "another split" in str(error.value)


def test_objects_and_synonyms_beside_coco_s_are_refused(tmp_path):
    with pytest.raises(BenchmarkError, match="line 1: objects stand here"):
        build(tmp_path, objects=["dog"]).load()
    with pytest.raises(BenchmarkError, match="line 1: with instances, give a file of `synonyms`"):
        chair = build(tmp_path)
        chair.settings.path.write_text('{"synonyms": {"dog": ["hound"]}}')
        chair.load()


def test_captions_and_synonyms_need_instances(tmp_path):
    for name in ("captions", "synonyms"):
        with pytest.raises(ValidationError, match="go with instances"):
            ChairSettings(path=tmp_path, image_root=tmp_path, **{name: tmp_path})


@pytest.mark.parametrize(
    ("synonyms", "said"),
    [
        ("dog, hound\ncat, hound\n", "line 2: 'hound' is a synonym of 'dog' and 'cat'"),
        (" , \n\n", "no synonyms"),
        ("dog, puppy\n", "no synonym is COCO's category 'person'"),
    ],
)
def test_a_list_of_synonyms_that_does_not_fit_is_refused(tmp_path, synonyms, said):
    chair = build(tmp_path)
    (tmp_path / "synonyms.txt").write_text(synonyms)
    with pytest.raises(BenchmarkError, match=re.escape(said)):
        chair.load()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not valid JSON"),
        ('{"images": [], "annotations": [], "categories": []}', "no images and categories"),
        (
            '{"annotations": [{"image_id": 1, "caption": "a dog"}], "images": [{"id": 1, "file_name": "1.jpg"}]}',
            "no im",
        ),
        ('{"images": [{"id": 1}]}', "images, record 1: expected file_name and id"),
        ('{"images": [{"id": "1", "file_name": "1.jpg"}]}', "images, record 1: id is '1', expected a whole number"),
        ('{"images": [{"id": 1, "file_name": 1}]}', "images, record 1: file_name is '1', expected text"),
        ('{"images": [{"id": {}, "file_name": "1.jpg"}]}', "images, record 1: id is '{}', expected a whole number"),
        (
            '{"images": [{"id": 1, "file_name": "1.jpg"}], "categories": [{"id": 1, "name": "dog"}], '
            '"annotations": [{"image_id": 1, "category_id": 1}, {"image_id": [], "category_id": 1}]}',
            r"annotations, record 2: image_id is '\[\]', expected a whole number",
        ),
        (
            '{"images": [{"id": 1, "file_name": "1.jpg"}], "categories": [{"id": 1, "name": "dog"}], '
            '"annotations": [{"image_id": 2, "category_id": 1}]}',
            "image 2 and category 1, one of which the file lacks",
        ),
        (None, "No such file"),
    ],
)
def test_a_file_that_is_no_instances_file_is_an_error_that_names_it(tmp_path, content, said):
    path = tmp_path / "instances.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(BenchmarkError, match=said) as error:
        read_instances(path)
    assert str(path) in str(error.value)
