"""A study with a cascade: what would select otherwise than with every answer judged is refused, by its key."""

from pathlib import Path

import pytest
import yaml

from m3po_dagster.graph import STAGES
from m3po_dagster.identity import Identities
from m3po_dagster.storage.fingerprint import canonical_json, file_sha256
from m3po_dagster.study import Study, load_study
from m3po_dagster.study_errors import StudyError

ROOT = Path(__file__).parents[1]
JUDGE = {"kind": "llm_judge", "model": "m", "base_url": "http://127.0.0.1:8000/v1"}


def study_with(tmp_path: Path, selection: dict | None = None, judge: dict | None = None, **changes) -> Study:
    """The embedded study with a served judge, a cascade and without the recipe that draws at random."""
    extended = {
        "extends": str(ROOT / "studies" / "easy_scenes.yaml"),
        "judge": {"scorers": [{"kind": "clip", "model": "local-dir:clip"}, JUDGE], "cascade": {}} | (judge or {}),
        "recipes": {"vanilla": {"selection": selection or {"rule": "m3p", "alpha": 1.0}}},
        **changes,
    }
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(extended))
    return load_study(path)


def test_recipes_that_need_only_the_pair_are_taken(tmp_path):
    study = study_with(tmp_path)
    assert study.judge.cascade.alpha_max == 1.0
    assert study_with(tmp_path, {"rule": "reward_max_min", "reward": "clip"}).judge.cascade
    assert study_with(tmp_path, {"rule": "m3p", "score": "clip", "score_noise": 0.1, "alpha": 5.0}).judge.cascade
    assert study_with(tmp_path, {"rule": "longest"}).judge.cascade
    assert study_with(tmp_path, {"rule": "random"}, {"cascade": None}).judge.cascade is None


@pytest.mark.parametrize(
    ("selection", "judge", "message"),
    [
        ({"rule": "vanilla"}, {}, r"recipes\.vanilla\.selection: rule vanilla looks at all"),
        ({"rule": "random"}, {}, "rule random looks at all"),
        ({"rule": "sweet_spot"}, {}, "rule sweet_spot looks at all answers"),
        ({"rule": "margin_pairs"}, {}, "rule margin_pairs looks at all answers"),
        ({"rule": "m3p", "candidates": 8}, {}, "with candidates an answer can become"),
        ({"rule": "m3p", "max_length_difference": 0}, {}, "with max_length_difference an answer can become"),
        ({"rule": "m3p", "score_noise": 0.1}, {}, "with score_noise an answer can become"),
        ({"rule": "m3p", "score": "llm_judge"}, {}, "ranks by llm_judge"),
        ({"rule": "reward_max_min", "reward": "mas"}, {}, "ranks by mas"),
        ({"rule": "reward_max_min", "reward": "llm_judge"}, {}, "ranks by llm_judge"),
        ({"rule": "m3p", "alpha": 1.5}, {}, r"alpha 1\.5 is above alpha_max 1"),
        ({"rule": "flipped", "alpha": 1.5}, {}, r"alpha 1\.5 is above alpha_max 1"),
        ({"rule": "m3p", "confidence": "sum"}, {"cascade": {"confidence": ["mean"]}}, "scale 'sum' is not among"),
        ({"rule": "m3p", "confidence": "sum"}, {"cascade": {"confidence": ["sum"]}}, "scale 'mean' is not among"),
        (None, {"scorers": [{"kind": "clip", "model": "local-dir:clip"}]}, "nothing to save"),
        (None, {"scorers": [{"kind": "clip", "model": "local-dir:clip"}, JUDGE | {"weight": 0}]}, "nothing to save"),
    ],
)
def test_what_needs_more_is_refused(tmp_path, selection, judge, message):
    with pytest.raises(StudyError, match=message):
        study_with(tmp_path, selection, judge)


def test_the_sweep_counts_with_its_default_point(tmp_path):
    with pytest.raises(StudyError, match="sweep: alpha 2 is above"):
        study_with(tmp_path, sweep={"alpha": [0.0, 2.0]})
    with pytest.raises(StudyError, match=r"sweep: alpha 0\.5 is above alpha_max 0\.3"):
        recipes = {name: {"selection": {"rule": "m3p", "alpha": 0.1}} for name in ("vanilla", "m3po")}
        study_with(tmp_path, judge={"cascade": {"alpha_max": 0.3}}, sweep={"alpha": [0.1]}, recipes=recipes)


def test_log_probs_of_another_pass_are_refused(tmp_path):
    with pytest.raises(StudyError, match="use recorded, or remove the cascade"):
        study_with(tmp_path, confidence={"source": "rescored"})


def test_a_cascade_is_part_of_what_makes_the_mas_table(tmp_path):
    def settings(**judge) -> str:
        return canonical_json(
            STAGES["mas_table"].settings(study_with(tmp_path, None, judge), Identities(file_sha256), "")
        )

    assert settings() == settings()
    assert len({settings(), settings(cascade=None), settings(cascade={"alpha_max": 2.0})}) == 3
    assert "cascade" not in settings(cascade=None)
