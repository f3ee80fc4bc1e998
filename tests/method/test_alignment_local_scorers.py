"""Every scorer that runs here, in one judge: columns, calibration, identity by weights, errors a study may meet."""

import json
import re
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import tiny_scorers
import yaml
from tiny_llava import tiny_llava, tiny_prompts

from m3po_dagster.identity import Identities
from m3po_dagster.method.alignment.calibration import CALIBRATION_FILE
from m3po_dagster.storage.fingerprint import file_sha256
from m3po_dagster.study import JudgeSettings, load_study
from m3po_dagster.study_reference import missing_paths
from m3po_dagster.world.judge import JUDGE_FOLDER

ROOT = Path(__file__).parents[2]
WITH_MODEL = ("clip", "hf_clip", "blip2_itm", "vqascore", "reward_model")
LINEAR = {"kind": "linear", "low": -1, "high": 1}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    def saved(build):
        return tiny_scorers.saved(build, tmp_path_factory.mktemp("model"))

    return {
        "clip": JUDGE_FOLDER,
        "hf_clip": saved(tiny_scorers.siglip),
        "blip2_itm": saved(tiny_scorers.blip2_retrieval),
        "vqascore": tiny_llava(tmp_path_factory.mktemp("llava")),
        "reward_model": saved(partial(tiny_scorers.reward_model, "llava")),
    }


def judge_of(folders, **more) -> JudgeSettings:
    scorers = [{"kind": kind, "model": str(folders[kind])} for kind in WITH_MODEL]
    for scorer in scorers:
        # Cosines and logits lie on scales of their own.
        if scorer["kind"] in ("clip", "hf_clip", "reward_model"):
            scorer["calibration"] = LINEAR
        scorer |= more.get(scorer["kind"], {})
    return JudgeSettings.model_validate({"scorers": [*scorers, {"kind": "reference"}]})


@pytest.fixture
def judge(folders):
    return judge_of(folders)


@pytest.fixture
def study(judge):
    return load_study(ROOT / "studies" / "easy_scenes.yaml").model_copy(update={"judge": judge})


def test_together_they_make_one_row_an_answer(judge, tmp_path):
    prompts = [replace(prompt, reference="There is a red circle.") for prompt in tiny_prompts(tmp_path, 2)]
    answers = ["There is a red circle.", "A blue square. A cat is on it.", ""]
    rows = judge.build().score([(prompt, answers) for prompt in prompts])
    columns = {*(scorer.name for scorer in judge.scorers), *judge.sub_scores}
    assert len(rows) == 2 * 3
    for row in rows[:2] + rows[3:5]:
        assert row["status"] == "scored"
        assert all(row[name] is not None for name in columns)
        assert 0 <= row["mas"] <= 1
        assert all(row[f"{kind}_seen"] <= 1 for kind in WITH_MODEL[:4])
    for row in (rows[2], rows[5]):
        assert row["mas"] is None
        assert row["status"] == "; ".join(f"{scorer.name}: answer has no words" for scorer in judge.scorers)


def test_the_identity_of_each_holds_the_hash_of_its_weights(study, folders):
    found = Identities(file_sha256).judge(study)
    for kind in WITH_MODEL:
        weights = next(folders[kind].glob("*.safetensors"))
        assert found[kind]["files"][weights.name] == file_sha256(weights)
        assert str(folders[kind]) not in json.dumps(found[kind])
    assert set(found["reference"]) == {"settings", "calibration"}


def test_other_weights_are_another_judge_another_place_is_not(study, folders, tmp_path):
    there = Identities(file_sha256).judge(study)
    shutil.copytree(folders["vqascore"], tmp_path / "moved")
    moved = study.model_copy(update={"judge": judge_of({**folders, "vqascore": tmp_path / "moved"})})
    assert Identities(file_sha256).judge(moved) == there
    tiny_llava(tmp_path / "moved", seed=1)
    assert Identities(file_sha256).judge(moved) != there


@pytest.mark.parametrize(
    ("changed", "same"),
    [({"device_map": "auto"}, True), ({"dtype": "bfloat16"}, False), ({"template": "Is it so: {text}?"}, False)],
)
def test_precision_and_template_make_another_judge_where_layers_lie_does_not(study, folders, changed, same):
    other = study.model_copy(update={"judge": judge_of(folders, vqascore=changed)})
    identity = Identities(file_sha256)
    assert (identity.judge(study) == Identities(file_sha256).judge(other)) is same


def test_a_model_that_is_not_there_is_named_by_its_key(folders, study, tmp_path):
    absent = {**folders, "reward_model": tmp_path / "nowhere"}
    found = missing_paths(study.model_copy(update={"judge": judge_of(absent)}))
    assert found["judge.scorers.reward_model.model"] == str(tmp_path / "nowhere")
    assert not any(key.startswith("judge.scorers.reference") for key in found)


@pytest.mark.parametrize("kind", ["clip", "hf_clip", "reward_model"])
def test_what_is_no_probability_needs_a_calibration(folders, kind, tmp_path):
    settings = next(scorer for scorer in judge_of(folders).scorers if scorer.name == kind)
    bare = settings.model_copy(update={"model": str(tmp_path), "calibration": None})
    with pytest.raises(ValueError, match=f"scorer '{kind}' has no calibration"):
        bare.resolved_calibration()
    # One that lies in the model's folder is taken.
    (tmp_path / CALIBRATION_FILE).write_text(json.dumps({kind: LINEAR}))
    assert bare.resolved_calibration().low == -1


def test_the_examples_of_the_documentation_are_valid():
    text = (ROOT / "docs" / "scorers.md").read_text(encoding="utf-8")
    examples = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)]
    judges = [JudgeSettings.model_validate(example["judge"]) for example in examples]
    assert {scorer.kind for judge in judges for scorer in judge.scorers} == {*WITH_MODEL, "reference"}
    for judge in judges:
        for scorer in judge.scorers:
            assert scorer.resolved_calibration()
