"""`m3po judge calibrate`: fit, file, study, another judge; and back. On a real graph with real models."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from judge_project import PROBE, UP_TO_CANDIDATES, JudgeProject

from m3po_dagster.method.alignment.calibration import read_calibrations
from m3po_dagster.method.alignment.clip import ClipScorerSettings
from m3po_dagster.storage.store import ArtifactStore
from m3po_dagster.world.judge import JUDGE_FOLDER
from tests.served_judge import ServedJudge


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> JudgeProject:
    project = JudgeProject(tmp_path_factory.mktemp("made"))
    project.run(*UP_TO_CANDIDATES)
    return project


@pytest.fixture
def project(made) -> JudgeProject:
    """The run project with the study as it was first."""
    made.write()
    return made


def calibrated(project: JudgeProject, out: Path, *options: object) -> dict:
    return json.loads(project.call("judge", "calibrate", "--out", out, *options, "--json").stdout)


def mas_fingerprints(project: JudgeProject) -> set[str]:
    return {artifact.fingerprint for artifact in ArtifactStore(project.folder / "store").list("mas_table")}


def answers_of(project: JudgeProject) -> int:
    store = ArtifactStore(project.folder / "store")
    return sum(artifact.manifest.tables["data"].rows for artifact in store.list("candidates"))


def test_the_map_is_fitted_on_the_raw_values_of_the_answers_that_were_made(project, tmp_path):
    found = calibrated(project, tmp_path / "maps.json")["scorers"]
    assert list(found) == ["clip"]  # the scene judge's value lies in [0, 1] by itself
    fit = found["clip"]["fit"]
    assert (fit["values"], fit["prompts"], fit["unscored"]) == (answers_of(project), 12, {})

    raw = []
    scorer = ClipScorerSettings(model=str(JUDGE_FOLDER), tiles=2).build()
    from m3po_dagster.assets.instructions import prompts_of
    from m3po_dagster.study import load_study

    store, study = ArtifactStore(project.folder / "store"), load_study(project.study)
    prompts = {p.prompt_id: p for a in store.list("filtered_instructions") for p in prompts_of(a.table(), study)}
    for row in (row for artifact in store.list("candidates") for row in artifact.table().to_pylist()):
        raw.append(scorer.score([(prompts[row["prompt_id"]], [row["text"]])])[0][0].value)
    low, high = np.quantile(raw, [0.05, 0.95])
    assert found["clip"]["map"] == {"kind": "linear", "low": pytest.approx(low), "high": pytest.approx(high)}
    assert fit["quantiles"]["0.5"] == pytest.approx(np.median(raw))
    assert found["clip"]["at 0"] == pytest.approx(np.mean(np.array(raw) <= low), abs=0.02)


def test_the_study_names_the_file_and_mas_follows_and_going_back_makes_nothing(project, tmp_path):
    project.run("judge_probe", "judge_identity", "mas_table")
    before = mas_fingerprints(project)
    calibrated(project, tmp_path / "maps.json", "--kind", "quantile", "--prompts", "6")

    project.write(calibrations=str(tmp_path / "maps.json"))
    outcomes = project.run("judge_probe", "judge_identity", "mas_table", "candidates")
    assert {name for one in outcomes for name in one["assets"]} == {"judge_identity", "mas_table"}
    fitted = mas_fingerprints(project) - before
    assert len(fitted) == 2  # a shard each
    table = next(
        a for a in ArtifactStore(project.folder / "store").list("mas_table") if a.fingerprint in fitted
    ).table()
    knots = read_calibrations(tmp_path / "maps.json")["clip"].map
    raw = dict(zip(table["candidate_id"].to_pylist(), table["clip"].to_pylist(), strict=True))
    mixed = [
        0.5 * clip + 0.5 * scene for clip, scene in zip(raw.values(), table["scene_judge"].to_pylist(), strict=True)
    ]
    assert table["mas"].to_pylist() == pytest.approx(mixed, abs=2e-6)
    assert knots.kind == "quantile" and len({round(value, 6) for value in raw.values()}) > 2

    project.write()
    outcomes = project.run("judge_probe", "judge_identity", "mas_table")
    assert outcomes and all(set(one["reused"]) == set(one["assets"]) for one in outcomes)
    assert mas_fingerprints(project) == before | fitted


def test_equal_maps_are_the_same_judge_whatever_they_were_fitted_on(project, tmp_path):
    calibrated(project, tmp_path / "maps.json")
    project.write(calibrations=str(tmp_path / "maps.json"))
    project.run("judge_probe", "judge_identity", "mas_table")
    content = json.loads((tmp_path / "maps.json").read_text())
    content["clip"]["fit"]["seed"] = 99
    (tmp_path / "elsewhere.json").write_text(json.dumps(content))
    project.write(calibrations=str(tmp_path / "elsewhere.json"))
    assert project.run("judge_probe", "judge_identity", "mas_table") == []


def test_a_fit_for_another_model_or_other_settings_is_refused_before_anything_is_scored(project, tmp_path):
    maps = tmp_path / "maps.json"
    calibrated(project, maps)
    other = tmp_path / "judge"
    shutil.copytree(JUDGE_FOLDER, other)
    (other / "open_clip_config.json").write_text((other / "open_clip_config.json").read_text() + "\n")
    scene, clip = project.scorers
    try:
        for changed in ({**clip, "model": str(other)}, {**clip, "tiles": 1}):
            project.scorers = [scene, changed]
            project.write(calibrations=str(maps))
            result = project.call("run", "--asset", "judge_probe", "--asset", "judge_identity", code=1)
            assert "scorer 'clip': its calibration was fitted on another model or under other settings" in result.output
        # Neither the column's name nor its weight says anything about the raw values.
        project.scorers = [scene, {**clip, "weight": 0.25}]
        project.write(calibrations=str(maps))
        project.run("judge_probe", "judge_identity")
    finally:
        project.scorers = [scene, clip]


def test_the_same_seed_draws_the_same_prompts_and_another_seed_others(project, tmp_path):
    fits = [calibrated(project, tmp_path / f"{n}.json", "--prompts", 5, "--seed", n % 2)["scorers"] for n in range(3)]
    assert fits[0] == fits[2]
    assert fits[0]["clip"]["fit"]["quantiles"] != fits[1]["clip"]["fit"]["quantiles"]


def test_entries_of_other_scorers_stay_in_the_file(project, tmp_path):
    maps = tmp_path / "maps.json"
    maps.write_text('{"somebody_elses": {"kind": "identity"}, "clip": {"kind": "identity"}}')
    assert calibrated(project, maps)["kept"] == ["somebody_elses"]
    read = read_calibrations(maps)
    assert read["somebody_elses"].map.kind == "identity" and read["clip"].map.kind == "linear"


def test_what_is_printed(project, tmp_path):
    output = project.call("judge", "calibrate", "--out", project.folder / "maps.json", "--prompts", 5).stdout
    assert "5 prompts" in output and "linear low" in output and "(judge: calibrations: ./maps.json)" in output
    elsewhere = project.call("judge", "calibrate", "--out", tmp_path / "maps.json", "--prompts", 5).stdout
    named = elsewhere.split("calibrations: ")[1].split(")")[0]
    assert (project.folder / named).resolve() == tmp_path / "maps.json" and named.startswith("../")
    project.write(calibrations=str(tmp_path / "maps.json"))
    again = project.call("judge", "calibrate", "--out", tmp_path / "maps.json", "--kind", "zscore").stdout
    assert "zscore mean" in again and "name it in" not in again


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--scorer", "nobody"], "no scorer 'nobody' in study small; there are scene_judge, clip"),
        (["--out", "/nowhere/at/all.json"], "there is no folder /nowhere/at"),
        (["--out", "broken.json"], "broken.json: not valid JSON"),
    ],
)
def test_refusals(project, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.json").write_text("{")
    result = project.call("judge", "calibrate", "--out", "maps.json", *options, code=2)
    assert message in result.stderr and "Traceback" not in result.output


def test_a_map_of_the_study_itself_would_win_and_is_named(project, tmp_path):
    scene, clip = project.scorers
    try:
        project.scorers = [scene, {**clip, "calibration": {"kind": "linear", "low": 0, "high": 1}}]
        project.write()
        out = ("judge", "calibrate", "--out", tmp_path / "maps.json")
        assert "no scorer of study small needs a map" in project.call(*out, code=2).stderr
        assert "goes before any file" in project.call(*out, "--scorer", "clip", code=2).stderr
        # The scene judge's own scale can be fitted when it is asked for.
        assert "scene_judge" in project.call(*out, "--scorer", "scene_judge").stdout
    finally:
        project.scorers = [scene, clip]


def test_without_candidates_the_command_says_what_to_run(tmp_path):
    project = JudgeProject(tmp_path)
    result = project.call("judge", "calibrate", "--out", tmp_path / "maps.json", code=1)
    assert "no candidates that are up to date" in result.stderr
    assert result.stderr.rstrip().endswith("m3po run " + " ".join(f"--asset {name}" for name in UP_TO_CANDIDATES))
    assert not (tmp_path / "maps.json").exists()


def test_a_served_scorer_says_what_it_will_ask_and_many_requests_need_a_yes(project, tmp_path, monkeypatch):
    scene, clip = project.scorers
    with ServedJudge() as server:
        served = {"kind": "llm_judge", "model": server.model, "base_url": server.base_url}
        try:
            project.scorers = [scene, served]
            project.write()
            asked = ("judge", "calibrate", "--out", tmp_path / "maps.json", "--scorer", "llm_judge")
            monkeypatch.setattr("m3po_dagster.cli.judge_requests.WITHOUT_YES", 3)
            refused = project.call(*asked, code=2)
            assert server.requests == 0 and "give --yes" in refused.stderr
            result = project.call(*asked, "--yes")
        finally:
            project.scorers = [scene, clip]
        said = f"llm_judge: {server.requests - PROBE} requests to {server.base_url}"
        assert said in result.stderr and said in refused.stderr
    assert read_calibrations(tmp_path / "maps.json")["llm_judge"].fit.values == answers_of(project)
