"""The ensemble: what several judges make of an answer, who is asked when they disagree, and what is unscored."""

from collections import Counter
from pathlib import Path
from statistics import median

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from m3po_dagster.identity import Identities
from m3po_dagster.method.alignment.calibration import CalibrationEntry, Identity, Linear, write_calibrations
from m3po_dagster.method.alignment.ensemble import Ensemble, EnsembleSettings
from m3po_dagster.method.alignment.llm_judge import LlmJudgeSettings
from m3po_dagster.method.alignment.mas import MasScorer
from m3po_dagster.method.alignment.probe import N_CASES, probe
from m3po_dagster.method.prompt import Message, Prompt
from m3po_dagster.storage.fingerprint import canonical_json, file_sha256
from m3po_dagster.storage.tables import mas_schema
from m3po_dagster.study import JudgeSettings, load_study
from m3po_dagster.study_errors import StudyError
from m3po_dagster.study_reference import missing_paths
from tests.method.listed_scorer import Listed, prompt
from tests.served_judge import ServedJudge, graded

ROOT = Path(__file__).parents[2]
SERVED = {"kind": "llm_judge", "model": "m", "base_url": "http://127.0.0.1:1/v1"}
EVERY = [SERVED | {"name": name} for name in ("first", "second", "third")]


def settings_of(**given) -> EnsembleSettings:
    judge = {"kind": "ensemble", "judges": EVERY, **given}
    return JudgeSettings.model_validate({"scorers": [judge]}).scorers[0]


def ensemble_of(values: dict[str, dict], sub_scores: bool = True, **given) -> Ensemble:
    """An ensemble whose members read their values off lists: member -> answer -> raw value or None."""
    subs = {name: (f"{name}_sub",) if sub_scores else () for name in values}
    return Ensemble(settings_of(**given), {name: Listed(name, column, subs[name]) for name, column in values.items()})


def scored(ensemble: Ensemble, answers: str):
    return dict(zip(answers, ensemble.score([(prompt("p"), list(answers))])[0], strict=True))


VALUES = {
    "first": {"a": 0.2, "b": 1.0, "c": 0.5, "d": 0.0},
    "second": {"a": 0.4, "b": 1.0, "c": 0.5, "d": 0.25},
    "third": {"a": 0.9, "b": 0.1, "c": 0.5, "d": 1.0},
}
VALUES_OF_A = {"first": 0.2, "second": 0.4, "third": 0.9}


@pytest.mark.parametrize(
    ("combine", "expected"),
    [
        ("mean", {"a": 0.5, "b": 0.7, "c": 0.5, "d": 1.25 / 3}),
        ("median", {"a": 0.4, "b": 1.0, "c": 0.5, "d": 0.25}),
        ("majority", {"a": 0.4, "b": 1.0, "c": 0.5, "d": 0.25}),
    ],
)
def test_values_are_combined_as_asked(combine, expected):
    found = scored(ensemble_of(VALUES, combine=combine), "abcd")
    assert {answer: score.value for answer, score in found.items()} == pytest.approx(expected)
    assert found["a"].sub_scores == pytest.approx(
        {
            "ensemble_disagreement": 0.7,
            **VALUES_OF_A,
            **{f"{name}_sub": 10 * value for name, value in VALUES_OF_A.items()},
        }
    )
    assert found["a"].words == "third: third says 0.9 | second: second says 0.4 | first: first says 0.2"


values = st.lists(st.sampled_from((0.0, 0.25, 0.5, 0.75, 1.0, None)), min_size=3, max_size=3)


@settings(max_examples=200, deadline=None)
@given(values, st.sampled_from(("mean", "median", "majority")), st.integers(1, 3))
def test_combinations_follow_their_definition(given_values, combine, enough):
    names = ("first", "second", "third")
    columns = {name: {"a": value} for name, value in zip(names, given_values, strict=True)}
    score = scored(ensemble_of(columns, combine=combine, min_judges=enough), "a")["a"]
    there = [value for value in given_values if value is not None]
    if len(there) < enough:
        assert score.value is None
        missing = [name for name, value in zip(names, given_values, strict=True) if value is None]
        assert score.reason == ", ".join(f"{name} declined" for name in missing)
        return
    counts = Counter(there)
    modes = [value for value, n in counts.items() if n == max(counts.values())]
    expected = sum(there) / len(there) if combine == "mean" else median(there)
    if combine == "majority" and len(modes) == 1:
        (expected,) = modes
    assert score.value == pytest.approx(expected)
    assert min(there) <= score.value <= max(there)
    assert score.sub_scores.get("ensemble_disagreement") == (max(there) - min(there) if len(there) > 1 else None)


def test_a_mean_weighs_its_judges():
    judges = [EVERY[0] | {"weight": 3.0}, EVERY[1]]
    found = scored(ensemble_of({name: VALUES[name] for name in ("first", "second")}, judges=judges), "a")
    assert found["a"].value == pytest.approx(0.25)


def test_each_judge_is_calibrated_before_it_counts():
    judges = [EVERY[0] | {"calibration": Linear(low=0, high=10)}, EVERY[1]]
    found = scored(ensemble_of({"first": {"a": 5.0}, "second": {"a": 0.7}}, judges=judges), "a")
    assert (found["a"].value, found["a"].sub_scores["first"]) == (pytest.approx(0.6), 0.5)


REFEREE = {"judge": SERVED | {"name": "referee"}, "disagreement": 0.5}


def test_the_referee_is_asked_where_the_judges_disagree_and_its_value_counts():
    columns = {**VALUES, "referee": {"a": 0.35, "b": None, "d": 0.6}}
    ensemble = ensemble_of(columns, referee=REFEREE)
    found = scored(ensemble, "abcd")
    referee = ensemble.members[3]
    assert referee.asked == {"a": 1, "b": 1, "d": 1}
    assert {answer: score.value for answer, score in found.items()} == {"a": 0.35, "b": None, "c": 0.5, "d": 0.6}
    assert {answer: score.sub_scores["ensemble_referee"] for answer, score in found.items()} == dict(
        zip("abcd", (1.0, 1.0, 0.0, 1.0), strict=True)
    )
    assert found["a"].sub_scores["referee"] == 0.35 and "referee" not in found["c"].sub_scores
    assert found["b"].reason == "referee declined"
    assert found["a"].words.startswith("referee: referee says 0.35 | ")


def test_a_disagreement_as_large_as_the_bound_is_none():
    columns = {"first": {"a": 0.25}, "second": {"a": 0.75}, "third": {"a": 0.5}, "referee": {}}
    assert scored(ensemble_of(columns, referee=REFEREE), "a")["a"].value == 0.5


def test_a_referee_does_not_stand_in_for_judges_that_are_missing():
    columns = {"first": {"a": None}, "second": {"a": 0.0}, "third": {"a": 1.0}, "referee": {}}
    assert scored(ensemble_of(columns, referee=REFEREE), "a")["a"].reason == "first declined"


def test_rows_of_the_mas_table_keep_what_each_member_said():
    columns = {**VALUES, "third": {"a": None, "c": 0.5}, "referee": {}}
    ensemble = ensemble_of(columns, sub_scores=False, referee=REFEREE)
    mas = MasScorer([ensemble], {"ensemble": 1.0}, {"ensemble": Identity()})
    a, c = mas.score([(prompt("p"), ["a", "c"])])
    assert set(a) | {"candidate_id"} == set(mas_schema(mas.scorers, mas.sub_scores).schema.names)
    assert (a["mas"], a["status"], a["first"], a["third"]) == (None, "ensemble: third declined", 0.2, None)
    assert (a["ensemble_disagreement"], a["referee"]) == (pytest.approx(0.2), None)
    assert (c["mas"], c["status"], c["ensemble_referee"]) == (0.5, "scored", 0.0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"judges": EVERY[:1]}, "at least 2"),
        ({"min_judges": 4}, "there are 3 judges"),
        ({"judges": [EVERY[0], EVERY[0]]}, "'first' would appear twice"),
        ({"referee": {"judge": EVERY[0]}}, "'first' would appear twice"),
        (
            {"combine": "median", "judges": [EVERY[0] | {"weight": 2}, EVERY[1]]},
            "does not weigh: remove the weight of first",
        ),
        ({"judges": [EVERY[0] | {"weight": 0}, EVERY[1]]}, "weight 0 has no part"),
        ({"referee": {"judge": SERVED | {"name": "r", "weight": 2}}}, "remove its weight"),
        ({"referee": {"judge": SERVED | {"name": "r"}, "disagreement": 1}}, "less than 1"),
        ({"judges": [{"kind": "ensemble", "judges": EVERY}, EVERY[1]]}, "does not match any of the expected tags"),
    ],
)
def test_what_can_not_be_combined_is_refused(given, message):
    with pytest.raises(ValidationError, match=message):
        settings_of(**given)


def test_members_share_no_column_with_other_scorers():
    with pytest.raises(ValidationError, match="'first' would appear 2 times"):
        JudgeSettings.model_validate({"scorers": [{"kind": "ensemble", "judges": EVERY}, SERVED | {"name": "first"}]})


def test_members_take_their_maps_from_the_file_that_the_study_names(tmp_path):
    maps = {"first": Linear(low=0, high=2), "referee": Linear(low=0.5, high=1), "ensemble": Linear(low=0, high=4)}
    write_calibrations(tmp_path / "maps.json", {name: CalibrationEntry(map=one) for name, one in maps.items()})
    judges = [EVERY[0], EVERY[1] | {"calibration": Linear(low=0, high=8)}, EVERY[2]]
    judge = JudgeSettings.model_validate(
        {
            "scorers": [{"kind": "ensemble", "judges": judges, "referee": REFEREE}],
            "calibrations": str(tmp_path / "maps.json"),
        }
    ).calibrated()
    given = {one.name: one.resolved_calibration() for one in (judge.scorers[0], *judge.assessors)}
    assert given == {**maps, "second": Linear(low=0, high=8), "third": Identity()}
    assert (
        JudgeSettings.model_validate_json(judge.model_dump_json()).scorers[0].identity() == judge.scorers[0].identity()
    )


def test_it_is_served_as_soon_as_one_member_is():
    local = [{"kind": "clip", "name": name, "model": "ViT-B-32"} for name in ("one", "two")]
    assert not settings_of(judges=local).served
    assert settings_of(judges=local, referee=REFEREE).served
    judge = JudgeSettings.model_validate(
        {"scorers": [local[0], {"kind": "ensemble", "judges": EVERY, "referee": REFEREE}]}
    )
    assert [one.name for one in judge.assessors] == ["one", "first", "second", "third", "referee"]


def study_with(tmp_path, ensemble: dict):
    judge = {"scorers": [{"kind": "ensemble", **ensemble}], "quality": {"known_pairs": None}}
    path = tmp_path / "study.yaml"
    path.write_text(f"extends: {ROOT / 'studies' / 'easy_scenes.yaml'}\njudge: {canonical_json(judge)}\n")
    return load_study(path)


LOCAL = [
    {"kind": kind, "name": kind, "model": str(ROOT / "m3po_dagster" / "world" / "weights" / "judge")}
    for kind in ("clip", "scene_judge")
]


def test_what_decides_its_values_is_its_identity(tmp_path):
    def identity(**ensemble) -> str:
        judge = Identities(file_sha256).judge(study_with(tmp_path, ensemble))
        return canonical_json(judge)

    found = Identities(file_sha256).judge(study_with(tmp_path, {"judges": [*LOCAL, EVERY[0]]}))["ensemble"]
    assert "open_clip_model.safetensors" in found["members"]["clip"]["files"]
    assert found["members"]["first"]["settings"]["model"] == "m"
    variants = [
        {"judges": LOCAL},
        {"judges": [*LOCAL, EVERY[0]]},
        {"judges": [*LOCAL, EVERY[0] | {"model": "n"}]},
        {"judges": [LOCAL[0] | {"weight": 2}, LOCAL[1]]},
        {"judges": LOCAL, "combine": "median"},
        {"judges": LOCAL, "min_judges": 1},
        {"judges": LOCAL, "referee": REFEREE},
        {"judges": LOCAL, "referee": REFEREE | {"disagreement": 0.4}},
    ]
    assert len({identity(**one) for one in variants}) == len(variants)
    assert identity(judges=LOCAL) == identity(judges=LOCAL[::-1]) == identity(judges=LOCAL)


def test_served_members_are_probed_and_local_ones_looked_for(tmp_path):
    study = study_with(tmp_path, {"judges": [LOCAL[0] | {"model": str(tmp_path / "gone")}, EVERY[0]]})
    assert set(Identities(file_sha256).served_judge(study)["scorers"]) == {"first"}
    assert missing_paths(study)["judge.scorers.clip.model"] == str(tmp_path / "gone")


def test_an_ensemble_can_score_between_rounds_when_nobody_of_it_is_served(tmp_path):
    embedded = ROOT / "studies" / "easy_scenes.yaml"

    def study(*judges: dict):
        scorer = canonical_json({"kind": "ensemble", "judges": judges})
        path = tmp_path / "study.yaml"
        path.write_text(f"extends: {embedded}\ngeneration:\n  n: {{first: 4, max: 16, scorer: {scorer}}}\n")
        return load_study(path)

    found = study(LOCAL[0] | {"model": str(tmp_path / "gone")}, LOCAL[1])
    assert missing_paths(found)["generation.n.scorer.clip.model"] == str(tmp_path / "gone")
    assert set(Identities(file_sha256).sampling_scorer(study(*LOCAL))["members"]) == {"clip", "scene_judge"}
    with pytest.raises(StudyError, match="can't score between rounds"):
        study(LOCAL[0], EVERY[0])


def test_two_models_under_one_name_need_a_revision_each():
    """The ledger would answer one for the other."""
    there = SERVED | {"name": "second", "base_url": "http://127.0.0.1:2/v1"}
    for scorers in ([EVERY[0], there], [{"kind": "ensemble", "judges": [EVERY[0], there]}]):
        with pytest.raises(ValidationError, match=r"'first' and 'second' ask for a model 'm' at two addresses"):
            JudgeSettings.model_validate({"scorers": scorers})
    JudgeSettings.model_validate({"scorers": [EVERY[0], there | {"revision": "b"}]})
    JudgeSettings.model_validate({"scorers": EVERY})


def test_the_probe_asks_each_served_member(picture):
    with ServedJudge() as first, ServedJudge() as second:
        servers = {"first": first, "second": second}
        judges = [
            SERVED | {"name": name, "base_url": at.base_url, "model": at.model, "revision": name}
            for name, at in servers.items()
        ]
        judge = JudgeSettings.model_validate({"scorers": [{"kind": "ensemble", "judges": [*judges, LOCAL[0]]}]})
        rows = probe(judge)
        assert Counter(row["scorer"] for row in rows) == {"first": N_CASES, "second": N_CASES}
        assert first.requests == second.requests > 0


def test_it_takes_as_many_prompts_at_once_as_its_members_want():
    columns = {name: {} for name in ("first", "second", "third")}
    ensemble = ensemble_of(columns)
    assert ensemble.together == 16
    ensemble.members[1].together = 48
    assert ensemble.together == 48


def test_a_wrong_key_of_a_member_is_named(tmp_path):
    with pytest.raises(StudyError, match=r"judge\.scorers\.0\.judges\.0\.modle: unknown key\. Did you mean 'model'"):
        study_with(tmp_path, {"judges": [LOCAL[0] | {"modle": "x"}, EVERY[0]]})
    with pytest.raises(StudyError, match=r"judge\.scorers\.0\.referee\.judge\.modle"):
        study_with(tmp_path, {"judges": LOCAL, "referee": {"judge": SERVED | {"modle": "x"}}})


@pytest.fixture
def picture(tmp_path) -> Prompt:
    Image.new("RGB", (24, 16), (255, 0, 0)).save(tmp_path / "red.png")
    return Prompt("p", tmp_path / "red.png", (Message("user", "Which colour is it?"),))


def test_real_judges_over_http(picture):
    """Two judges and a referee, each a server of its own; the referee gets what they disagree on and nothing else."""
    answers = ["The picture is red.", "The picture is blue.", "Red it is."]
    with ServedJudge() as kind, ServedJudge() as strict, ServedJudge() as stronger:
        strict.instead[answers[0]] = [graded(1, 1, 1, "no")]
        members = {"kind": kind, "strict": strict, "stronger": stronger}
        at = {
            name: LlmJudgeSettings(name=name, model=server.model, revision=name, base_url=server.base_url, group_size=1)
            for name, server in members.items()
        }
        given = {
            "judges": [at["kind"].model_dump(), at["strict"].model_dump()],
            "referee": {"judge": at["stronger"].model_dump(), "disagreement": 0.5},
        }
        judge = JudgeSettings.model_validate({"scorers": [{"kind": "ensemble", **given}]}).build()
        rows = judge.score([(picture, answers)])
        assert (kind.requests, strict.requests, stronger.requests) == (3, 3, 1)
        assert stronger.asked == {answers[0]: 1}
        assert [row["ensemble_referee"] for row in rows] == [1.0, 0.0, 0.0]
        assert rows[0]["mas"] == rows[0]["stronger"] == rows[0]["kind"] > rows[0]["strict"] == 0.0
        assert rows[0]["stronger_relevance"] == 5 and rows[1]["stronger_relevance"] is None
        assert judge.swapped().score([(picture, answers)])[1]["mas"] == rows[1]["mas"]
