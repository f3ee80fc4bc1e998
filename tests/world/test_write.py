"""The written world: same bytes every time, whole or not there, and its labels true of its pictures."""

import json
import re
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from pixel_reader import read_scene

from m3po_dagster.evaluation.settings import VizwizSettings
from m3po_dagster.evaluation.vizwiz import Vizwiz
from m3po_dagster.method.alignment.known_pairs import read_known_pairs
from m3po_dagster.world.write import MME_CATEGORIES, SPLITS, whole_world, write_world

PROMPTS, SCENES = 100, 24
NUMBERS = ("zero", "one", "two", "three", "four")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world") / "easy"
    write_world(folder, PROMPTS, SCENES, seed=7)
    return folder


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def scene_of(path):
    return read_scene(np.asarray(Image.open(path)))


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def answer_by_eye(question, scene):
    """The right answer from what the oracle sees, worded as the data word it."""
    question = question.removesuffix(" Please answer yes or no.")
    number = f"{NUMBERS[len(scene)]} object{'s' * (len(scene) != 1)}"
    counted = f"there {'is' if len(scene) == 1 else 'are'} {number}"
    if question == "Describe the image.":
        return " ".join(f"There is a {name}." for name in scene.values())
    if question == "How many objects are there?":
        return f"{counted.capitalize()}."
    if match := re.fullmatch(r"Is there a (\w+ \w+)(?: in (?:the|this) image)?\?", question):
        for position, name in scene.items():
            if name == match[1]:
                return f"Yes, there is a {name} at the {position}."
        return f"No, there is no {match[1]}."
    if match := re.fullmatch(r"What is at the (\w+ \w+)\?", question):
        return f"There is {'a ' + scene[match[1]] if match[1] in scene else 'nothing'} at the {match[1]}."
    if match := re.fullmatch(r"(?:Is|Are) there (\w+ objects?)\?", question):
        return f"{'Yes' if match[1] == number else 'No'}, {counted}."
    if match := re.fullmatch(r"Is the (\w+ \w+) at the (\w+ \w+)\?", question):
        position = next(position for position, name in scene.items() if name == match[1])
        return f"{'Yes' if position == match[2] else 'No'}, the {match[1]} is at the {position}."
    shapes = {name.split()[0]: name.split()[1] for name in scene.values()}
    if match := re.fullmatch(r"Is the (\w+) object a (\w+)\?", question):
        return f"{'Yes' if shapes[match[1]] == match[2] else 'No'}, the {match[1]} object is a {shapes[match[1]]}."
    if match := re.fullmatch(r"What shape is the (\w+) object\?", question):
        return f"The {match[1]} object is a {shapes[match[1]]}."
    match = re.fullmatch(r"Is the (\w+) (\w+)\?", question)
    colours = [colour for colour, shape in shapes.items() if shape == match[1]]
    named = match[2] if match[2] in colours else colours[0]
    return f"{'Yes' if match[2] == named else 'No'}, the {match[1]} is {named}."


def test_the_same_parameters_give_the_same_bytes(world, tmp_path):
    write_world(tmp_path / "again", PROMPTS, SCENES, seed=7)
    assert tree(tmp_path / "again") == tree(world)
    write_world(tmp_path / "other", PROMPTS, SCENES, seed=8)
    assert tree(tmp_path / "other") != tree(world)


def test_references_are_true_of_the_pictures(world):
    folder = world / "instructions"
    records = json.loads((folder / "llava_instruct.json").read_text())
    usable = [record for record in records if re.fullmatch(r"easy_\d+", record["id"])]
    assert len({record["id"] for record in usable}) == PROMPTS
    forms = Counter()
    for record in usable:
        human, gpt = record["conversations"]
        assert (human["from"], gpt["from"]) == ("human", "gpt") and human["value"].count("<image>") == 1
        question = human["value"].removeprefix("<image>\n").removesuffix("\n<image>")
        assert "<image>" not in question and "\n" not in question
        assert gpt["value"] == answer_by_eye(question, scene_of(folder / "images" / record["image"]))
        forms[human["value"].startswith("<image>\n")] += 1
    assert forms[True] > forms[False] > 0


STARTS = {
    "describe": "Describe the image",
    "exists": r"Is there a \w+ \w+",
    "other": "How many|What is at|What shape|Is the",
}


def test_prompts_are_mixed_as_planned(world):
    records = json.loads((world / "instructions" / "llava_instruct.json").read_text())
    texts = {
        record["id"]: record["conversations"][0]["value"].replace("<image>", "").strip()
        for record in records
        if re.fullmatch(r"easy_\d+", record["id"])
    }
    kinds = Counter(next(kind for kind, start in STARTS.items() if re.match(start, text)) for text in texts.values())
    assert kinds == {"describe": PROMPTS // 2, "exists": 3 * PROMPTS // 10, "other": PROMPTS // 5}


STARTS = {
    "describe": "Describe the image",
    "exists": r"Is there a \w+ \w+",
    "other": "How many|What is at|What shape|Is the",
}


def test_the_defects_give_filtering_real_work(world):
    folder = world / "instructions"
    records = json.loads((folder / "llava_instruct.json").read_text())
    assert len(records) == PROMPTS + 5
    assert [record["id"] for record in records if "image" not in record] == ["easy_text_only"]
    assert len(records) - len({json.dumps(record, sort_keys=True) for record in records}) == 1
    images = {record["image"] for record in records if "image" in record}
    assert {name for name in images if not (folder / "images" / name).exists()} == {"lost.png"}
    broken = []
    for name in images - {"lost.png"}:
        try:
            Image.open(folder / "images" / name).load()
        except OSError:
            broken.append(name)
    assert broken == ["cut_off.png"]
    empty = [record["id"] for record in records if record["conversations"][0]["value"].strip() == "<image>"]
    assert empty == ["easy_nothing_asked"]


@pytest.mark.parametrize("split", SPLITS)
def test_pope_labels_are_true_of_the_pictures(world, split):
    folder = world / "benchmarks" / split
    yes_questions = []
    for sampling in ("random", "popular", "adversarial"):
        rows = lines(folder / "pope" / f"coco_pope_{sampling}.json")
        assert [row["question_id"] for row in rows] == list(range(1, 2 * SCENES + 1))
        assert Counter(row["label"] for row in rows) == {"yes": SCENES, "no": SCENES}
        for row in rows:
            assert list(row) == ["question_id", "image", "text", "label"]
            assert re.fullmatch(r"Is there a \w+ \w+ in the image\?", row["text"])
            answer = answer_by_eye(row["text"], scene_of(folder / "images" / row["image"]))
            assert answer.split(",")[0].lower() == row["label"]
        yes_questions.append([(row["image"], row["text"]) for row in rows if row["label"] == "yes"])
    assert yes_questions[0] == yes_questions[1] == yes_questions[2]


@pytest.mark.parametrize("split", SPLITS)
def test_mme_asks_a_yes_and_a_no_question_an_image(world, split):
    folder = world / "benchmarks" / split / "mme"
    assert {path.name for path in folder.iterdir()} == set(MME_CATEGORIES)
    for category in MME_CATEGORIES:
        files = sorted((folder / category).glob("*.txt"))
        assert len(files) == SCENES // len(MME_CATEGORIES)
        for file in files:
            scene = scene_of(file.with_suffix(".png"))
            rows = [line.split("\t") for line in file.read_text().splitlines()]
            assert [label for _, label in rows] == ["Yes", "No"]
            for question, label in rows:
                assert question.endswith(" Please answer yes or no.")
                assert answer_by_eye(question, scene).split(",")[0] == label


@pytest.mark.parametrize("split", SPLITS)
def test_chair_lists_the_objects_of_the_pictures(world, split):
    folder = world / "benchmarks" / split
    rows = lines(folder / "chair.jsonl")
    assert len(rows) == SCENES
    for row in rows:
        assert row["text"] == "Describe the image."
        assert row["objects"] == list(scene_of(folder / "images" / row["image"]).values())


@pytest.mark.parametrize("split", SPLITS)
def test_the_open_instructions_have_true_references_and_ask_about_every_fourth_scene(world, split):
    folder = world / "benchmarks" / split
    rows = lines(folder / "preference.jsonl")
    assert [row["question_id"] for row in rows] == list(range(1, SCENES // 4 + 1))
    described = [row["image"] for row in lines(folder / "chair.jsonl")]
    assert [row["image"] for row in rows] == described[::4]
    for row in rows:
        assert list(row) == ["question_id", "image", "text", "reference"] and row["text"] == "Describe the image."
        assert row["reference"] == answer_by_eye(row["text"], scene_of(folder / "images" / row["image"]))


def test_of_a_known_pair_the_better_answer_is_true_of_its_picture_and_the_worse_is_not(world):
    rows = lines(world / "known_pairs.jsonl")
    assert len({row["image"] for row in rows}) == 40 and 60 <= len(rows) <= 80
    for row in rows:
        true = answer_by_eye(row["question"], scene_of(world / row["image"]))
        assert row["better"] == true != row["worse"]
    assert len(read_known_pairs(world / "known_pairs.jsonl")) == len(rows)


def test_a_whole_world_is_left_alone_and_a_damaged_one_written_anew(tmp_path):
    folder = tmp_path / "easy"
    write_world(folder, 10, 10)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    write_world(folder, 10, 10)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    whole = tree(folder)
    (folder / "benchmarks" / "test" / "images" / "test_0003.png").unlink()
    assert whole_world(folder) is None
    write_world(folder, 10, 10)
    assert tree(folder) == whole


def test_other_parameters_take_the_place_of_the_world_written_before(tmp_path):
    folder = tmp_path / "easy"
    write_world(folder, 10, 10)
    manifest = write_world(folder, 12, 10)
    assert manifest["counts"]["instructions"]["usable_prompts"] == 12
    assert [path.name for path in tmp_path.iterdir()] == ["easy"]


def test_an_interrupted_write_leaves_nothing_that_looks_like_a_world(tmp_path):
    def interrupt(split):
        if split == "test":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_world(tmp_path / "easy", 10, 10, progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_something_else_is_not_touched(tmp_path):
    (tmp_path / "thesis.txt").write_text("words")
    with pytest.raises(FileExistsError, match="not an embedded world"):
        write_world(tmp_path, 10, 10)
    assert tree(tmp_path) == {"thesis.txt": b"words"}


def test_too_small_a_world_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least 10"):
        write_world(tmp_path / "easy", prompts=3)
    assert not (tmp_path / "easy").exists()


def plain(answer):
    """What people mean who word it differently: no article, no full stop, digits."""
    words = [word for word in answer.lower().rstrip(".").split() if word not in ("a", "object", "objects")]
    return " ".join(str(NUMBERS.index(word)) if word in NUMBERS else word for word in words)


@pytest.mark.parametrize("split", SPLITS)
def test_vizwiz_references_are_true_of_the_pictures(world, split):
    folder = world / "benchmarks" / split
    records = json.loads((folder / "vizwiz.json").read_text())
    assert [record["image"] for record in records] == sorted(path.name for path in (folder / "images").iterdir())
    types = Counter()
    for record in records:
        assert list(record) == ["image", "question", "answers", "answer_type", "answerable"]
        assert record["answerable"] == (record["answer_type"] != "unanswerable")
        assert {tuple(item) for item in record["answers"]} == {("answer", "answer_confidence")}
        assert {item["answer_confidence"] for item in record["answers"]} <= {"yes", "maybe", "no"}
        said = Counter(plain(item["answer"]) for item in record["answers"])
        assert said.total() == 10
        types[record["answer_type"]] += 1
        scene = scene_of(folder / "images" / record["image"])
        if record["answer_type"] == "unanswerable":
            colour = re.fullmatch(r"What shape is the (\w+) object\?", record["question"])[1]
            assert colour not in " ".join(scene.values())
            assert set(said) <= {"unanswerable", "unsuitable image", f"no {colour}"}
            assert said.most_common(1)[0][0] == "unanswerable"
            continue
        true = answer_by_eye(record["question"], scene)
        if record["answer_type"] == "other":
            thing = next(name for name in scene.values() if name in true or f"{name.split()[0]} object" in true)
            truth = {thing, thing.split()[1]}
        elif record["answer_type"] == "number":
            truth = {str(len(scene))}
        else:
            truth = {true.split(",")[0].lower()}
        assert set(said) <= truth | {"unanswerable"} and said["unanswerable"] < 5
    assert types == {"other": 10, "yes/no": 5, "number": 5, "unanswerable": 4}


def test_people_word_the_same_answer_differently(world):
    records = json.loads((world / "benchmarks" / "test" / "vizwiz.json").read_text())
    spellings = [len({item["answer"] for item in record["answers"]}) for record in records]
    assert max(spellings) >= 3 and sum(number > 1 for number in spellings) > len(spellings) // 2
    texts = {item["answer"] for record in records for item in record["answers"]}
    assert {"yes", "no", "unanswerable"} <= texts and any(text.startswith("a ") for text in texts)


def test_vizwiz_s_set_is_read_by_the_benchmark_of_the_published_one(world):
    folder = world / "benchmarks" / "test"
    vizwiz = Vizwiz(VizwizSettings(annotations=folder / "vizwiz.json", image_root=folder / "images", prompt_suffix=""))
    questions = vizwiz.load()
    most_popular = {
        record["image"]: Counter(item["answer"] for item in record["answers"]).most_common(1)[0][0]
        for record in json.loads((folder / "vizwiz.json").read_text())
    }
    found = {item.metric: item.value for item in vizwiz.score(questions, most_popular, "evalai", resamples=20)}
    assert found["accuracy"] == found["format"] == 100 and vizwiz.notes(questions) == []
    assert found["accuracy/unanswerable"] == 100 > found["constant_unanswerable"]
