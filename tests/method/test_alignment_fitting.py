"""A calibration fitted by asking a scorer, and where it comes from when a judge is put together."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from m3po_dagster.method.alignment.calibration import (
    CALIBRATION_FILE,
    CalibrationEntry,
    Identity,
    Linear,
    write_calibrations,
)
from m3po_dagster.method.alignment.clip import ClipScorerSettings
from m3po_dagster.method.alignment.fitting import at_the_ends, fitted_entry, raw_values
from m3po_dagster.method.alignment.llm_judge import LlmJudgeSettings
from m3po_dagster.method.alignment.rounds import TOGETHER
from m3po_dagster.method.alignment.scorer import Score
from m3po_dagster.method.prompt import Message, Prompt
from m3po_dagster.study import JudgeSettings
from m3po_dagster.world.judge import JUDGE_FOLDER, SceneJudgeSettings

ABOUT = {"model": "0123", "study": "s", "shards": {"s0": "v"}, "seed": 3, "prompts": 40}
FOLDER = str(JUDGE_FOLDER)


@dataclass
class Lengths:
    """Values an answer by its length; an answer of one letter it can't judge."""

    name: str = "lengths"
    sub_scores: tuple[str, ...] = ()
    batches: list[int] = field(default_factory=list)

    def score(self, batch):
        self.batches.append(len(batch))
        return [
            [Score(len(a) * 10.0) if len(a) > 1 else Score.unscored("one letter") for a in some] for _, some in batch
        ]


def sample(prompts: int) -> list[tuple[Prompt, list[str]]]:
    asked = (Message("user", "?"),)
    return [(Prompt(f"p{i}", Path("unused.png"), asked), ["x", "y" * (i + 2)]) for i in range(prompts)]


def test_raw_values_come_without_a_map_a_few_prompts_at_a_time():
    scorer, heard = Lengths(), []
    found = raw_values(scorer, sample(40), lambda done, total: heard.append((done, total)))
    assert found.values == tuple(10.0 * (i + 2) for i in range(40))
    assert found.unscored == {"one letter": 40}
    assert scorer.batches == [TOGETHER, TOGETHER, 8]
    assert heard == [(16, 40), (32, 40), (40, 40)]


def test_a_scorer_that_wants_more_at_once_gets_it():
    scorer = Lengths()
    scorer.together = 40
    raw_values(scorer, sample(40))
    assert scorer.batches == [40]


def test_the_entry_says_on_what_it_was_fitted():
    raw = raw_values(Lengths(), sample(40))
    entry = fitted_entry(raw, "linear", 0.1, **ABOUT)
    low, high = np.quantile(raw.values, [0.1, 0.9])
    assert entry.map == Linear(low=low, high=high)
    assert (entry.fit.values, entry.fit.unscored, entry.fit.tails) == (40, {"one letter": 40}, 0.1)
    assert (entry.fit.model, entry.fit.seed, entry.fit.prompts) == ("0123", 3, 40)
    assert (entry.fit.quantiles["0"], entry.fit.quantiles["0.5"], entry.fit.quantiles["1"]) == (20.0, 215.0, 410.0)
    # 4 of 40 values lie below the 10 % quantile, 4 above the 90 % quantile.
    assert at_the_ends(entry, raw.values) == (0.1, 0.1)
    assert at_the_ends(fitted_entry(raw, "zscore", 0.1, **ABOUT), raw.values) == (0.0, 0.0)


@pytest.mark.parametrize("answers", [[], ["x"], ["xx"], ["xx", "yy"]])
def test_a_sample_without_spread_makes_no_entry(answers):
    raw = raw_values(Lengths(), [(sample(1)[0][0], answers)])
    with pytest.raises(ValueError, match=r"at least 2 finite|nothing to calibrate"):
        fitted_entry(raw, "linear", 0.05, **ABOUT)


HAND = Linear(low=-1, high=1)
FILE = Linear(low=0, high=0.5)


def judge(tmp_path: Path, *scorers, **entries) -> JudgeSettings:
    path = tmp_path / "maps.json"
    write_calibrations(path, {name: CalibrationEntry(map=one) for name, one in entries.items()})
    return JudgeSettings.model_validate({"scorers": scorers, "calibrations": str(path)})


CLIP = {"kind": "clip", "model": FOLDER, "tiles": 2}
SERVED = {"kind": "llm_judge", "model": "m", "base_url": "http://127.0.0.1:1/v1"}


def test_the_studys_own_map_goes_before_its_file_and_that_before_the_models_folder(tmp_path):
    clips = [
        {**CLIP, "name": "clip"},
        {**CLIP, "name": "by_hand", "calibration": HAND.model_dump()},
    ]
    read = judge(tmp_path, *clips, SERVED, clip=FILE, by_hand=FILE, llm_judge=FILE, somebody_elses=FILE)
    maps = {scorer.name: scorer.calibration for scorer in read.calibrated().scorers}
    assert maps == {"clip": FILE, "by_hand": HAND, "llm_judge": FILE}

    without = read.model_copy(update={"calibrations": None}).calibrated()
    maps = {scorer.name: scorer.calibration for scorer in without.scorers}
    assert maps["by_hand"] == HAND and maps["llm_judge"] == Identity()
    assert maps["clip"] == ClipScorerSettings(model=FOLDER).resolved_calibration() != FILE


def test_a_default_of_the_kind_gives_way_to_the_file_but_the_same_map_written_out_does_not(tmp_path):
    scene = {"kind": "scene_judge", "model": FOLDER}
    by_default = judge(tmp_path, scene, scene_judge=FILE).calibrated().scorers[0]
    written = judge(tmp_path, {**scene, "calibration": {"kind": "identity"}}, scene_judge=FILE).calibrated().scorers[0]
    assert (by_default.calibration, written.calibration) == (FILE, Identity())


def test_the_judge_that_is_built_maps_by_the_file(tmp_path):
    image = tmp_path / "scene.png"
    from PIL import Image

    Image.new("RGB", (64, 64), (200, 40, 40)).save(image)
    batch = [(Prompt("p", image, (Message("user", "Describe the image."),)), ["There is a red circle."])]
    (raw,) = (score.value for row in ClipScorerSettings(**CLIP).build().score(batch) for score in row)
    (row,) = judge(tmp_path, CLIP, clip=Linear(low=raw - 0.1, high=raw + 0.3)).build().score(batch)
    assert row["clip"] == pytest.approx(0.25, abs=1e-6) == row["mas"]


def test_a_judge_whose_maps_are_written_out_is_another_key_when_the_file_changes(tmp_path):
    """What keeps judges warm looks them up by their settings: the same path may hold other maps."""
    before = judge(tmp_path, CLIP, clip=FILE)
    first = before.calibrated()
    after = judge(tmp_path, CLIP, clip=HAND)
    assert before == after and hash(before) == hash(after)
    assert first != after.calibrated()


def test_a_missing_file_says_what_writes_it(tmp_path):
    read = JudgeSettings.model_validate({"scorers": [CLIP], "calibrations": str(tmp_path / "none.json")})
    with pytest.raises(FileNotFoundError, match=r"none\.json does not exist .*m3po judge calibrate"):
        read.build()


def test_a_fit_in_the_models_folder_is_read_too(tmp_path):
    raw = raw_values(Lengths(), sample(40))
    entry = fitted_entry(raw, "quantile", 0.05, **ABOUT)
    write_calibrations(tmp_path / CALIBRATION_FILE, {"scene": entry})
    settings = ClipScorerSettings(name="scene", model=str(tmp_path))
    assert settings.resolved_calibration() == entry.map
    assert settings.calibration_entry({}).fit == entry.fit


def test_settings_of_a_kind_with_a_default_have_no_own_calibration():
    assert LlmJudgeSettings(model="m", base_url="http://127.0.0.1:1/v1").own_calibration is None
    assert SceneJudgeSettings(model=FOLDER, calibration=HAND).own_calibration == HAND
