"""The embedded world's second judge: as good as the first, from other tiles, and another net."""

import numpy as np
import pytest

from m3po_dagster.world import assessor
from m3po_dagster.world.assessor import ASSESSOR_FOLDER, TILES, build_assessor
from m3po_dagster.world.judge import JUDGE_FOLDER, SceneJudgeSettings
from m3po_dagster.world.judge_card import draw_cases, measure_judge
from m3po_dagster.world.judge_model import train
from m3po_dagster.world.tiles import ROLES


def test_the_committed_assessor_reads_cells_and_orders_answers(monkeypatch):
    monkeypatch.setattr("m3po_dagster.world.judge_card.SCENES", 60)
    figures = measure_judge(ASSESSOR_FOLDER, with_clip=False)
    floors = {
        "cells read right, validation tiles": 98.5,
        "cells read right, test tiles": 97.5,
        "scene judge: true above wrong, descriptions": 95,
        "scene judge: true above omitting, descriptions": 95,
        "scene judge: rank correlation with F1 of noisy descriptions": 0.9,
    }
    assert {name: figures[name] for name, floor in floors.items() if not figures[name] >= floor} == {}
    assert not any("clip" in name for name in figures)


def test_its_tiles_are_not_those_of_the_judge_the_prompts_or_the_benchmarks():
    (split, own) = ROLES[TILES]
    others = [numbers for role, (other, numbers) in ROLES.items() if role != TILES and other == split]
    assert len(others) == 3 and not any(set(own) & set(numbers) for numbers in others)


def test_it_reads_images_otherwise_than_the_judge_does(tmp_path):
    prompts = [case.prompt for case in draw_cases("test", 10, 3, tmp_path)]
    readings = [
        SceneJudgeSettings(model=str(folder)).build().read(prompts) for folder in (ASSESSOR_FOLDER, JUDGE_FOLDER)
    ]
    for prompt in prompts:
        ours, theirs = (found[prompt.image_path].cells for found in readings)
        assert not np.allclose(ours, theirs, atol=1e-6)
        assert (ours.argmax(axis=1) == theirs.argmax(axis=1)).sum() >= 3


def test_a_build_writes_a_folder_that_loads_and_a_card_that_says_what_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr("m3po_dagster.world.judge_card.SCENES", 10)
    monkeypatch.setattr(assessor, "train", lambda *given: train(*given, steps=2))
    seen = []
    figures = build_assessor(tmp_path, progress=lambda *step: seen.append(step))
    assert [step[1:3] for step in seen] == [(1, 2), (2, 2)]
    card = (tmp_path / "README.md").read_text()
    assert "seed 2" in card and "images 0-1999" in card and all(name in card for name in figures)
    settings = SceneJudgeSettings(model=str(tmp_path), calibration=None)
    assert settings.resolved_calibration().kind == "identity"
    with pytest.raises(ValueError, match="no entry 'other'"):
        settings.model_copy(update={"name": "other"}).resolved_calibration()
