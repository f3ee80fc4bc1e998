"""Benchmarks through the graph: every rule, a judge over a real connection, who is asked what, and how often."""

from collections import Counter
from copy import deepcopy

import pytest

from m3po_dagster.assets import answers as answering
from m3po_dagster.current import read_heads
from m3po_dagster.method.generation.sampler import TransformersEngine
from m3po_dagster.runner import Selection
from tests.evaluation.preference_judge import PreferenceJudge

SCORES_ALONE = Selection(assets=("benchmark_data", "filtered_instructions", "benchmark_scores"))


@pytest.fixture
def judge(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-tests")
    with PreferenceJudge() as server:
        yield server


def with_preference(small_study, world, judge) -> dict:
    """The study with a served judge of preference, and open questions scored by VQA accuracy."""
    changed, test = deepcopy(small_study), world / "benchmarks" / "test"
    images = {"image_root": str(test / "images")}
    changed["benchmarks"]["preference"] = {
        "kind": "preference",
        "questions": str(test / "preference.jsonl"),
        "judge": {"kind": "served", "model": judge.model, "base_url": judge.base_url},
        **images,
    }
    changed["benchmarks"]["vizwiz"] = {
        "kind": "vizwiz",
        "annotations": str(test / "vizwiz.json"),
        "prompt_suffix": "",
        **images,
    }
    del changed["recipes"]["sft"]
    return changed


def scores(project, recipe: str):
    with project.instance() as instance:
        head = read_heads(instance, ["benchmark_scores"])["benchmark_scores", recipe]
    return project.store.find("benchmark_scores", recipe, head.fingerprint)


@pytest.fixture
def questions_asked(monkeypatch):
    """Questions that the model answers, by who answers."""
    asked: Counter[bool] = Counter()
    real = TransformersEngine.answer

    def counted(engine, prompts, *rest):
        asked[engine.loaded.slot.current is None] += len(prompts)
        return real(engine, prompts, *rest)

    monkeypatch.setattr(TransformersEngine, "answer", counted)
    return asked


def test_rules_stand_beside_each_other_and_a_judge_is_asked_once(
    copy_of_made, small_study, world, judge, questions_asked
):
    project = copy_of_made
    project.write(with_preference(small_study, world, judge))
    assert [outcome.error for outcome in project.run() if outcome.error] == []
    base, tuned = scores(project, "base"), scores(project, "m3po")
    # The others were answered before; the base model answers once, whoever is compared with it.
    new = sum(row["benchmark"] in ("preference", "vizwiz") for row in base.table("answers").to_pylist())
    assert questions_asked == {True: new, False: new} and new > 0
    found = {(row["benchmark"], row["rule"]) for row in tuned.table().to_pylist()}
    assert {("pope", rule) for rule in ("official", "lmms-eval", "vlmevalkit")} <= found
    assert {("vizwiz", rule) for rule in ("official", "evalai", "lmms-eval", "vlmevalkit")} <= found
    assert ("preference", "official") in found and ("preference", "lmms-eval") not in found
    rows = {row["metric"] for row in tuned.table().to_pylist() if row["benchmark"] == "preference"}
    assert {"score", "win_rate", "consistency", "first_position_rate", "tie_rate"} <= rows
    assert {row["metric"] for row in base.table().to_pylist() if row["benchmark"] == "preference"} == {
        "score",
        "coverage",
    }
    judged = tuned.table("judgements").to_pylist()
    components = {row["component"] for row in judged}
    assert "grade" in components and components & {"shown first", "same answer"}
    assert tuned.manifest.metadata["checks"]["untrained"]["passed"]
    assert tuned.manifest.metadata["checks"]["untrained"]["figures"]["images"] > 0
    assert base.manifest.metadata["checks"]["untrained"]["figures"]["images"] == 0
    said = project.store.find("leaderboard", "", leaderboard_of(project)).manifest.metadata["markdown"]
    assert "Win rate" in said and "VizWiz accuracy" in said

    before, answered = judge.requests, sum(questions_asked.values())
    changed = with_preference(small_study, world, judge)
    changed["benchmarks"]["preference"]["judge"]["timeout"] = 33
    project.write(changed)
    assert project.run() == []
    changed["benchmarks"]["preference"]["judge"]["model"] = "another-assessor"
    project.write(changed)
    outcomes = project.run()
    assert [outcome.error for outcome in outcomes if outcome.error] == []
    touched = {asset for outcome in outcomes for asset in outcome.assets if asset not in outcome.reused}
    assert touched <= {"benchmark_scores", "leaderboard", "benchmark_data"}
    assert judge.requests > before and sum(questions_asked.values()) == answered, "judged anew, not answered anew"


def leaderboard_of(project) -> str:
    with project.instance() as instance:
        return read_heads(instance, ["leaderboard"])["leaderboard", ""].fingerprint


@pytest.mark.slow
def test_a_judge_that_fails_ends_the_step_and_a_re_run_asks_for_the_rest(
    copy_of_made, small_study, world, judge, questions_asked
):
    project = copy_of_made
    changed = with_preference(small_study, world, judge)
    changed["benchmarks"]["preference"]["judge"]["max_retries"] = 0
    project.write(changed)
    judge.up = False
    outcomes = project.run(SCORES_ALONE)
    assert any(
        "preference" in outcome.error or "model is loading" in outcome.error for outcome in outcomes if outcome.error
    )
    answered = sum(questions_asked.values())
    judge.up = True
    assert [outcome.error for outcome in project.run() if outcome.error] == []
    assert sum(questions_asked.values()) == answered > 0
    before = judge.requests
    assert project.run() == [] and judge.requests == before


@pytest.mark.slow
def test_answers_go_on_after_the_last_whole_part(copy_of_made, small_study, monkeypatch, questions_asked):
    project = copy_of_made
    changed = deepcopy(small_study)
    changed["answers"] = {"max_new_tokens": 13}
    del changed["recipes"]["sft"], changed["recipes"]["m3po"]
    project.write(changed)
    monkeypatch.setattr(answering, "PART_QUESTIONS", 8)
    real, calls = answering._ask, []

    def broken(*given):
        calls.append(given)
        if len(calls) == 3:
            raise RuntimeError("the power went")
        return real(*given)

    monkeypatch.setattr(answering, "_ask", broken)
    outcomes = project.run()
    assert any("the power went" in outcome.error for outcome in outcomes if outcome.error)
    # The descriptions' ten questions in parts of eight and two.
    assert questions_asked[True] == 10
    monkeypatch.setattr(answering, "_ask", real)
    assert [outcome.error for outcome in project.run() if outcome.error] == []
    assert questions_asked[True] == len(scores(project, "base").table("answers"))
