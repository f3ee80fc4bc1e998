"""The embedded world's judges under the checks of a judge: real models and scenes, answers as models give them."""

import numpy as np
import pyarrow as pa
import pytest

from m3po_dagster.assets import checks
from m3po_dagster.assets.judge_checks import judge_checks
from m3po_dagster.method.alignment.clip import ClipScorerSettings
from m3po_dagster.method.alignment.mas import MasSettings
from m3po_dagster.method.alignment.quality import Controls, QualitySettings, controls
from m3po_dagster.world.judge import JUDGE_FOLDER, SceneJudgeSettings
from m3po_dagster.world.judge_card import draw_cases
from m3po_dagster.world.known_pairs import write_known_pairs

SCENES = 60


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Prompts with their answers, the answers as a table, and known pairs."""
    folder = tmp_path_factory.mktemp("world")
    write_known_pairs(folder, np.random.SeedSequence(5))
    items = []
    for case in draw_cases("prompts", SCENES, 3, folder):
        texts = dict.fromkeys((case.true, case.wrong, *([case.omitting] if case.omitting else []), *case.noisy))
        rows = [
            {"candidate_id": f"{case.prompt.prompt_id}:{k}", "text": text, "n_tokens": len(text.split())}
            for k, text in enumerate(texts)
        ]
        items.append((case.prompt, rows))
    candidates = pa.Table.from_pylist([row for _, rows in items for row in rows])
    return items, candidates, folder / "known_pairs.jsonl"


def found(world, scorer, prompts: int = 16) -> tuple[dict[str, checks.Check], Controls]:
    items, candidates, known = world
    judge = MasSettings[type(scorer)](scorers=(scorer,))
    built = judge.build()
    rows = built.score([(prompt, [row["text"] for row in given]) for prompt, given in items])
    ids = candidates["candidate_id"].to_pylist()
    table = pa.Table.from_pylist([{"candidate_id": key, **row} for key, row in zip(ids, rows, strict=True)])
    asked = controls(built, items, table, judge.scorers, QualitySettings(prompts=prompts, known_pairs=known), 0)
    every = (checks.spread(table), *judge_checks(table, candidates, asked, judge))
    return {check.name: check for check in every}, asked


def test_the_scene_judge_passes_every_check(world):
    scene, asked = found(world, SceneJudgeSettings(model=str(JUDGE_FOLDER)))
    assert [name for name, check in scene.items() if not check.passed] == []
    assert scene["shuffled_image"].figures["scene_judge_fall_low"] > 0.05
    assert scene["known_pairs"].figures["share"] >= 0.95
    # It judges each answer by itself: nothing is asked in another order.
    assert asked.swapped == {} and len({row["prompt_id"] for row in asked.shuffled.values()}) == 16


def test_clip_sees_the_image_but_does_not_know_what_was_left_out(world):
    clip, _ = found(world, ClipScorerSettings(model=str(JUDGE_FOLDER), tiles=2))
    assert [name for name, check in clip.items() if not check.passed] == ["known_pairs"]
    assert clip["shuffled_image"].figures["clip_fall_low"] > 0.05
    assert 0.5 < clip["known_pairs"].figures["share"] < 0.75
