"""The world's instruction-following set: right answers keep to all that it asks, and it moves no other file."""

import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from m3po_dagster.evaluation.ift import Ift, constraints_of
from m3po_dagster.evaluation.settings import IftSettings
from m3po_dagster.world.ift_set import ASKED, FILE, implied
from m3po_dagster.world.language import KINDS, Question, parse_question, true_answer
from m3po_dagster.world.scenes import POSITIONS, Thing
from m3po_dagster.world.write import SPLITS, write_world
from tests.world.pixel_reader import read_scene

SCENES = 32


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world") / "easy"
    assert write_world(folder, 10, SCENES, seed=3)["counts"]["test"]["ift_questions"] == SCENES
    return folder


def ift(world, split) -> Ift:
    folder = world / "benchmarks" / split
    return Ift(IftSettings(path=folder / FILE, image_root=folder / "images", say_constraints=False))


def cells_of(path):
    seen = read_scene(np.asarray(Image.open(path)))
    return tuple(Thing(*seen[place].split()) if place in seen else None for place in POSITIONS)


def scores(found, answers):
    return {metric.metric: metric.value for metric in found.score(found.load(), answers, resamples=10)}


@pytest.mark.parametrize("split", SPLITS)
def test_right_answers_keep_to_every_constraint(world, split):
    found = ift(world, split)
    questions = found.load()
    right = {one.question_id: true_answer(cells_of(one.image_path), parse_question(one.text)) for one in questions}
    assert len(questions) == SCENES
    assert [found.reading(one, right[one.question_id]) for one in questions] == ["all met"] * SCENES


@pytest.mark.parametrize("split", SPLITS)
def test_scenes_take_turns_in_what_they_are_asked(world, split):
    questions = ift(world, split).load()
    asked = [parse_question(one.text) for one in questions]
    assert [(one.kind, one.short) for one in asked] == [*ASKED] * (SCENES // len(ASKED))
    assert len({one.image_uri for one in questions}) == SCENES
    kinds = Counter(one.kind for question in questions for one in constraints_of(question))
    assert len(kinds) == 9 and min(kinds.values()) >= SCENES // len(ASKED)


def test_every_way_to_say_too_much_or_too_little_is_caught(world):
    found = ift(world, "test")
    questions = found.load()
    right = {one.question_id: true_answer(cells_of(one.image_path), parse_question(one.text)) for one in questions}
    for spoil in (lambda answer: f"{answer} There is a pink dot.", lambda answer: answer.split(" ")[-1] + ", maybe"):
        spoiled = scores(found, {key: spoil(answer) for key, answer in right.items()})
        assert spoiled["prompt_strict"] == 0.0 < spoiled["constraint_strict"] < 100.0


def test_no_other_file_of_the_world_depends_on_the_set(world, tmp_path, monkeypatch):
    monkeypatch.setattr("m3po_dagster.world.write.write_ift", lambda folder, scenes, names, seed: 0)
    write_world(tmp_path / "without", 10, SCENES, seed=3)

    def files(folder):
        paths = [path for path in folder.rglob("*") if path.is_file() and path.name not in (FILE, "manifest.json")]
        return {str(path.relative_to(folder)): path.read_bytes() for path in paths}

    assert files(tmp_path / "without") == files(world)
    assert not list((tmp_path / "without").rglob(FILE)) and len(list(world.rglob(FILE))) == len(SPLITS)


def test_a_question_whose_form_implies_nothing_known_is_refused():
    known = {kind for kind, _ in ASKED}
    for kind in set(KINDS) - known:
        with pytest.raises(ValueError, match=f"of kind {kind}"):
            implied(Question(kind, Thing("red", "circle"), "red", "circle", "top left", 1), (None,) * 4)


def test_the_file_holds_lines_of_json(world):
    first = json.loads((world / "benchmarks" / "test" / FILE).read_text().splitlines()[0])
    assert list(first) == ["question_id", "image", "text", "constraints"]
    assert first["text"] == "Describe the image." and first["image"] == "test_0000.png"
