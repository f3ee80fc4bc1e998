"""The identity of a judge: model files where there are any, and of a served judge what it is asked for."""

import json
from pathlib import Path

import pytest

from m3po_dagster.identity import Identities
from m3po_dagster.storage.fingerprint import canonical_json, file_sha256
from m3po_dagster.study import JudgeSettings, Study, load_study
from m3po_dagster.study_reference import missing_paths
from tests.rule_judge import grey_image

ROOT = Path(__file__).parents[1]
SERVED = {"kind": "llm_judge", "model": "m", "base_url": "http://127.0.0.1:8000/v1"}


def study_with(**served) -> Study:
    study = load_study(ROOT / "studies" / "easy_scenes.yaml")
    scorers = [*(scorer.model_dump() for scorer in study.judge.scorers), SERVED | served]
    return study.model_copy(update={"judge": JudgeSettings.model_validate({"scorers": scorers})})


def judge(study: Study) -> dict:
    return Identities(file_sha256).judge(study)


def test_local_scorers_are_their_files_and_a_served_one_has_none():
    found = judge(study_with())
    assert "open_clip_model.safetensors" in found["scene_judge"]["files"]
    assert set(found["llm_judge"]) == {"settings", "calibration", "request"}
    assert canonical_json(found)


@pytest.mark.parametrize(
    ("changed", "same"),
    [
        ({"timeout": 1.5, "max_retries": 1, "max_parallel": 64, "api_key_env": "JUDGE_KEY"}, True),
        ({"model": "n"}, False),
        ({"base_url": "http://127.0.0.1:8001/v1"}, False),
    ],
)
def test_patience_and_parallelism_are_no_new_judge(changed, same):
    assert (judge(study_with(**changed)) == judge(study_with())) is same


def test_known_pairs_are_part_of_the_judge_wherever_they_lie(tmp_path):
    def with_pairs(folder, grey: int, worse: str = "no") -> Study:
        folder.mkdir(exist_ok=True)
        image = grey_image(folder, grey)
        pair = {"image": "one.png", "question": "Grey?", "better": "yes", "worse": worse}
        image.rename(folder / "one.png")
        (folder / "pairs.jsonl").write_text(json.dumps(pair))
        quality = {"known_pairs": str(folder / "pairs.jsonl")}
        return load_study(ROOT / "studies" / "easy_scenes.yaml").model_copy(
            update={"judge": JudgeSettings.model_validate({"scorers": [SERVED], "quality": quality})}
        )

    first = judge(with_pairs(tmp_path / "a", 1))
    assert set(first) == {"llm_judge", "known pairs"}
    assert judge(with_pairs(tmp_path / "b", 1)) == first
    assert judge(with_pairs(tmp_path / "b", 2)) != first != judge(with_pairs(tmp_path / "c", 1, worse="never"))
    assert "known pairs" not in judge(study_with())


def test_known_pairs_that_are_not_there_are_named(tmp_path):
    quality = {"known_pairs": str(tmp_path / "pairs.jsonl")}
    study = study_with()
    study = study.model_copy(update={"judge": JudgeSettings.model_validate({"scorers": [SERVED], "quality": quality})})
    assert missing_paths(study)["judge.quality.known_pairs"] == str(tmp_path / "pairs.jsonl")
    with pytest.raises(FileNotFoundError, match=r"judge\.quality\.known_pairs"):
        judge(study)


def test_a_served_model_named_like_a_folder_is_not_looked_for(tmp_path):
    study = study_with(model=str(tmp_path / "nowhere"))
    assert judge(study)["llm_judge"]["settings"]["model"] == str(tmp_path / "nowhere")
    assert not any(key.startswith("judge.") for key in missing_paths(study))
