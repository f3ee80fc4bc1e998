"""Who may judge what a study's pairs have led to, and who pays: what a study file with judged preference may say."""

from pathlib import Path

import pytest
import yaml

from m3po_dagster.evaluation.preference import Preference
from m3po_dagster.evaluation.registry import benchmark
from m3po_dagster.study import Study, load_study
from m3po_dagster.study_errors import StudyError
from m3po_dagster.study_reference import missing_paths

ROOT = Path(__file__).parents[1]
JUDGE, ASSESSOR = (str(ROOT / "m3po_dagster/world/weights" / name) for name in ("judge", "assessor"))
SERVED = {"kind": "served", "model": "org/vlm", "base_url": "http://127.0.0.1:1/v1"}
LLM = {"kind": "llm_judge", "model": "org/vlm", "base_url": "http://127.0.0.1:1/v1"}
SCENE = {"kind": "scene_judge", "model": JUDGE}


def study(tmp_path, preference: dict, scorers: list[dict] | None = None, budget: dict | None = None) -> Study:
    """The embedded study with judged preference; raises StudyError."""
    raw = yaml.safe_load((ROOT / "studies" / "easy_scenes.yaml").read_text())
    raw["judge"]["scorers"] = [SCENE] if scorers is None else scorers
    raw["benchmarks"] = {"preference": {"kind": "preference", "questions": "./q", "image_root": "./i", **preference}}
    if budget:
        raw["judge"]["budget"] = budget
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(raw))
    return load_study(path)


def test_another_judge_is_welcome_whether_served_or_loaded_here(tmp_path):
    clip = {"kind": "clip", "model": "ViT-B-32", "calibration": {"kind": "linear", "low": 0, "high": 1}}
    for judge in (SERVED, {"kind": "scene_judge", "model": ASSESSOR}, clip):
        made = study(tmp_path, {"judge": judge})
        assert isinstance(benchmark(made.benchmarks["preference"]), Preference)
    assert study(tmp_path, {"judge": {**SERVED, "revision": "2", "base_url": "http://127.0.0.1:2/v1"}}, [LLM])
    assert study(tmp_path, {"judge": {**clip, "pretrained": "laion2b"}}, [{**clip, "pretrained": "openai"}])


@pytest.mark.parametrize(
    ("judge", "scorers", "named"),
    [
        (SCENE, [SCENE], "scene_judge"),
        ({"kind": "clip", "model": JUDGE}, [{**SCENE, "name": "scenes"}], "scenes"),
        ({"kind": "scene_judge", "model": f"{JUDGE}/../judge"}, [SCENE], "scene_judge"),
        (SCENE, [{"kind": "clip", "model": ASSESSOR, "calibration": {"kind": "linear", "low": 0, "high": 1}},
                 {**SCENE, "weight": 0}], "scene_judge"),
        (SERVED, [LLM], "llm_judge"),
        ({**SERVED, "revision": "2"}, [LLM], "llm_judge"),
        ({**SERVED, "base_url": "http://127.0.0.1:2/v1"}, [LLM], "llm_judge"),
        (SERVED, [{"kind": "ensemble", "judges": [SCENE, LLM]}], "llm_judge"),
    ],
)  # fmt: skip
def test_a_judge_that_picks_the_pairs_is_refused_unless_the_study_says_so(tmp_path, judge, scorers, named):
    with pytest.raises(StudyError, match=rf"benchmarks\.preference\.judge: .*'{named}'.*allow_same_judge: true"):
        study(tmp_path, {"judge": judge}, scorers)
    made = study(tmp_path, {"judge": judge, "allow_same_judge": True}, scorers)
    notes = benchmark(made.benchmarks["preference"]).notes([])
    assert any("picked the pairs" in note for note in notes)
    other = benchmark(study(tmp_path, {"judge": {**SERVED, "model": "other"}}, scorers).benchmarks["preference"])
    assert other.notes([]) == ["in place of people judges other"]


@pytest.mark.parametrize(
    ("preference", "wanted"),
    [
        ({"judge": SERVED, "allow_same_judge": True}, "none of the study's scorers: remove it"),
        ({"judge": SERVED, "margin": 0.1}, "margin is for a judge that is loaded here"),
        ({"judge": {"kind": "scene_judge", "model": ASSESSOR, "weight": 2}}, "weight is a share in MAS"),
        ({"judge": {**SERVED, "group_size": 4}}, "benchmarks.preference.judge.group_size: unknown key"),
        ({"judge": {"kind": "reference"}}, "reference"),
        ({"judge": LLM}, "llm_judge"),
        ({}, "benchmarks.preference.judge: Field required"),
        ({"judge": SERVED, "margins": 1}, "Did you mean 'margin'"),
    ],
)
def test_what_would_do_nothing_is_refused_with_the_key(tmp_path, preference, wanted):
    with pytest.raises(StudyError) as caught:
        study(tmp_path, preference)
    assert wanted in str(caught.value) and str(caught.value).startswith(str(tmp_path / "study.yaml"))


def test_the_budget_covers_the_judge_of_a_benchmark(tmp_path):
    budget, prices = {"study": {"cost": 3}}, {"input": 1, "output": 2}
    with pytest.raises(StudyError, match="scorer 'assessor' has no `prices`"):
        study(tmp_path, {"judge": SERVED}, budget=budget)
    assert study(tmp_path, {"judge": {**SERVED, "prices": prices}}, budget=budget).benchmark_judges["preference"].prices
    with pytest.raises(StudyError, match="no judge is served"):
        study(tmp_path, {"judge": {"kind": "scene_judge", "model": ASSESSOR}}, budget=budget)
    with pytest.raises(StudyError, match="could not tell what either spent"):
        study(tmp_path, {"judge": {**SERVED, "model": "other", "name": "llm_judge"}}, [LLM])


def test_a_model_of_the_judge_that_is_not_there_is_missing(tmp_path):
    made = study(tmp_path, {"judge": {"kind": "scene_judge", "model": "./nowhere"}})
    found = missing_paths(made)
    assert found["benchmarks.preference.judge.model"] == str(tmp_path / "nowhere")
    assert {"benchmarks.preference.questions", "benchmarks.preference.image_root"} <= found.keys()


def test_the_documented_settings_are_valid(tmp_path):
    page = (ROOT / "docs" / "benchmarks-preference.md").read_text()
    examples = [yaml.safe_load(part.split("```")[0])["benchmarks"] for part in page.split("```yaml\n")[1:]]
    kinds = []
    for example in examples:
        text = yaml.safe_dump({"extends": str(ROOT / "studies" / "easy_scenes.yaml"), "benchmarks": example})
        (tmp_path / "study.yaml").write_text(text)
        kinds.append(load_study(tmp_path / "study.yaml").benchmarks["preference"].judge.kind)
    assert kinds == ["served", "scene_judge"]


def test_a_judge_that_runs_here_needs_a_map_of_its_own(tmp_path):
    with pytest.raises(
        StudyError, match=r"benchmarks\.preference\.judge: scorer 'clip' has no calibration.*of its own here"
    ):
        study(tmp_path, {"judge": {"kind": "clip", "model": "ViT-B-32"}})
