"""Health checks in the graph: what they stand on, that they are reused, and what a diverged recipe trips."""

import shutil
from pathlib import Path

import duckdb
import pytest

from m3po_dagster.current import read_heads


def current(project, asset: str, partition: str):
    with project.instance() as instance:
        heads = read_heads(instance, [asset])
    return project.store.find(asset, partition, heads[asset, partition].fingerprint)


def checks(project, asset: str, recipe: str) -> dict:
    return current(project, asset, recipe).manifest.metadata["checks"]


def adapter(project, recipe: str):
    (kept,) = current(project, "lora_adapter", recipe).manifest.metadata["adapters"].values()
    return project.store.find("adapter", kept["partition"], kept["fingerprint"])


def test_checks_stand_on_the_figures_in_the_adapters_manifest(made):
    for recipe in ("m3po", "sft"):
        health, found = adapter(made, recipe).manifest.metadata["health"], checks(made, "lora_adapter", recipe)
        assert health["kl_to_base"] > 0 and health["sampled"] >= 10
        for name in ("kl_to_base", "chosen_drift"):
            assert found[name]["figures"] == {"worst": health[name], "seed 0": health[name]}
        assert found["image_ablation"]["figures"]["seed 0"] == health["image_gain"]
    assert "agrees_with_mas" in found and found["agrees_with_mas"]["figures"] == {}, "SFT prefers nothing"


def test_drift_is_that_of_the_margins_table(made):
    trained = adapter(made, "m3po")
    margins, tokens = trained.table("margins"), {}
    for reference in trained.manifest.inputs.values():
        if reference.asset == "candidates":
            candidates = made.store.find("candidates", reference.partition, reference.fingerprint)
            tokens |= {row["candidate_id"]: row["n_tokens"] for row in candidates.table().to_pylist()}
    pairs = [
        row
        for reference in trained.manifest.inputs.values()
        if reference.asset == "preference_pairs"
        for row in made.store.find("preference_pairs", reference.partition, reference.fingerprint).table().to_pylist()
    ]
    length = {pair["pair_id"]: tokens[pair["chosen_id"]] for pair in pairs}
    moved = [
        (row["chosen_logp_after"] - row["chosen_logp_before"]) / length[row["pair_id"]] for row in margins.to_pylist()
    ]
    assert trained.manifest.metadata["health"]["chosen_drift"] == pytest.approx(sum(moved) / len(moved))


def test_length_drift_is_that_of_the_answers_tables(made):
    ours, base = (current(made, "benchmark_scores", recipe).table("answers") for recipe in ("m3po", "base"))
    length = "SELECT avg(n_tokens) FROM {} WHERE benchmark = 'chair'"
    ((expected,),) = duckdb.sql(f"SELECT ({length.format('ours')}) / ({length.format('base')})").fetchall()
    assert len(ours) == len(base)
    figures = checks(made, "benchmark_scores", "m3po")["length_drift"]["figures"]
    assert figures == {"chair, seed 0": pytest.approx(expected)}


def test_answers_are_compared_with_those_that_the_base_model_gave_once(made):
    asked = [artifact.manifest.partition for artifact in made.store.list("benchmark_answers")]
    assert sorted(asked) == sorted(
        f"{recipe}|0|{name}" for recipe in ("base", "sft", "m3po") for name in made.load().benchmarks
    )


def test_checks_are_made_again_from_the_adapters_without_training(copy_of_made):
    before, trained = checks(copy_of_made, "lora_adapter", "m3po"), adapter(copy_of_made, "m3po")
    files = Path(copy_of_made.root, "adapter")
    written = {path: path.stat().st_mtime_ns for path in files.rglob("*") if path.is_file()}
    shutil.rmtree(Path(copy_of_made.root, "lora_adapter", "m3po"))
    assert [outcome.error for outcome in copy_of_made.run() if outcome.error] == []
    assert checks(copy_of_made, "lora_adapter", "m3po") == before
    assert adapter(copy_of_made, "m3po").fingerprint == trained.fingerprint
    assert {path: path.stat().st_mtime_ns for path in files.rglob("*") if path.is_file()} == written


@pytest.mark.slow
def test_a_diverged_recipe_trips_the_checks_of_training_and_of_answers(copy_of_made, small_study):
    """A learning rate a hundred times too high: numbers stay finite, so it is benchmarked, and everything warns."""
    wild = {"kind": "dpo", "learning_rate": 3e-2, "warmup_ratio": 0, "epochs": 4}
    study = {
        **small_study,
        "recipes": {**small_study["recipes"], "wild": {**small_study["recipes"]["m3po"], "training": wild}},
    }
    copy_of_made.write(study)
    assert [outcome.error for outcome in copy_of_made.run() if outcome.error] == []
    failed = {
        name
        for asset in ("lora_adapter", "benchmark_scores")
        for name, outcome in checks(copy_of_made, asset, "wild").items()
        if not outcome["passed"]
    }
    assert {"chosen_drift", "kl_to_base", "image_ablation", "answer_format", "length_drift"} <= failed
    assert {"weights_finite", "untrained"} & failed == set()
