"""A thing outside that changed after it was looked at: nothing is made of it under the old fingerprint."""

import json
import shutil
from copy import deepcopy
from pathlib import Path

import dagster as dg
import pytest

from m3po_dagster.current import read_heads
from m3po_dagster.graph import STAGES, all_parts
from m3po_dagster.runner import Selection


def ui_run(project, asset: str, partition: str | None):
    """One asset materialised by hand, as the UI does it."""
    job = project.definitions().resolve_implicit_global_asset_job_def()
    with project.instance() as instance:
        return job.execute_in_process(
            instance=instance,
            asset_selection=[dg.AssetKey(asset)],
            partition_key=partition,
            raise_on_error=False,
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        )


def message(result) -> str:
    return "".join(event.event_specific_data.error_display_string for event in result.get_step_failure_events())


def test_an_edited_alpha_is_not_selected_with_before_its_recipe_is_looked_at(copy_of_made, small_study):
    project = copy_of_made
    with project.instance() as instance:
        before = read_heads(instance)
    changed = deepcopy(small_study)
    changed["recipes"]["m3po"]["selection"]["alpha"] = 3.0
    project.write(changed)
    result = ui_run(project, "preference_pairs", "m3po|s0")
    assert not result.success and "recipe_config[m3po] changed since it was last looked at" in message(result)
    with project.instance() as instance:
        assert read_heads(instance) == before
    assert ui_run(project, "preference_pairs", "sft|s0").success


@pytest.mark.parametrize("asset", [pytest.param("lora_adapter", marks=pytest.mark.slow), "selection_sweep"])
def test_scores_of_two_judges_are_not_joined(copy_of_made, small_study, asset):
    project = copy_of_made
    changed = deepcopy(small_study)
    changed["judge"]["scorers"][1]["weight"] = 1
    project.write(changed)
    outcomes = project.run(Selection(assets=("judge_identity", "mas_table", "preference_pairs"), shards=("s0",)))
    assert outcomes and not any(outcome.error for outcome in outcomes)
    with project.instance() as instance:
        before = read_heads(instance)
    result = ui_run(project, asset, "m3po" if asset == "lora_adapter" else None)
    assert not result.success
    assert "refuses inputs of mixed versions" in message(result) and "mas_table[s1] is stale" in message(result)
    with project.instance() as instance:
        assert read_heads(instance) == before
    assert [outcome.error for outcome in project.run() if outcome.error] == []
    assert ui_run(project, asset, "m3po" if asset == "lora_adapter" else None).success


def test_an_edited_dataset_is_not_filtered_before_it_is_looked_at(copy_of_made, small_study):
    project = copy_of_made
    changed = deepcopy(small_study)
    source = changed["dataset"]["sources"]["scenes"]
    shutil.copytree(Path(source["path"]).parent, project.folder / "instructions")
    path = project.folder / "instructions" / "llava_instruct.json"
    source |= {"path": str(path), "image_root": str(path.parent / "images")}
    project.write(changed)
    project.run(Selection(assets=("source_dataset",)))
    assert ui_run(project, "filtered_instructions", "s0").success
    records = json.loads(path.read_text())
    records[0]["conversations"][0]["value"] += " Please."
    path.write_text(json.dumps(records))
    result = ui_run(project, "filtered_instructions", "s0")
    assert not result.success and "source_dataset changed since it was last looked at" in message(result)


def test_a_lost_adapter_is_trained_again(copy_of_made):
    project = copy_of_made
    with project.instance() as instance:
        head = read_heads(instance)["lora_adapter", "m3po"]
    artifact = project.store.find("lora_adapter", "m3po", head.fingerprint)
    (lost,) = [ref for ref in artifact.manifest.inputs.values() if ref.asset == "adapter"]
    found = project.store.find("adapter", lost.partition, lost.fingerprint)
    shutil.rmtree(found.path("files").parent)
    assert ("lora_adapter", "m3po") in {item.part for item in project.standings() if item.state == "missing"}
    assert [outcome.error for outcome in project.run() if outcome.error] == []
    assert project.store.find("adapter", lost.partition, lost.fingerprint) is not None
    assert {item.state for item in project.standings()} == {"fresh"}


def test_gc_keeps_what_current_results_stand_on(copy_of_made):
    project = copy_of_made
    with project.instance() as instance:
        heads = {(*part, head.fingerprint) for part, head in read_heads(instance).items()}
    assert project.store.gc(heads, dry_run=True, older_than=0) == []


def test_a_thing_outside_that_is_gone_stops_only_what_needs_it(copy_of_made, small_study):
    project = copy_of_made
    changed = deepcopy(small_study)
    changed["judge"]["quality"] = {"known_pairs": str(project.folder / "nowhere.jsonl")}
    changed["generation"]["n"] = 2
    project.write(changed)
    found = {item.part: item for item in project.standings()}
    assert found["judge_identity", ""].state == "stale" and "nowhere.jsonl" in found["judge_identity", ""].why
    outcomes = project.run()
    failed = [outcome for outcome in outcomes if outcome.error]
    assert [outcome.assets for outcome in failed] == [("judge_identity",)]
    made = {(asset, outcome.partition) for outcome in outcomes for asset in outcome.assets}
    assert {("candidates", "s0"), ("candidates", "s1")} <= made
    assert not any(asset in ("mas_table", "lora_adapter") for asset, _ in made)


@pytest.mark.slow
def test_another_benchmark_filters_anew_and_where_nothing_else_is_dropped_nothing_follows(copy_of_made, small_study):
    project = copy_of_made
    changed = deepcopy(small_study)
    del changed["benchmarks"]["pope"]
    project.write(changed)
    outcomes = project.run()
    assert [outcome.error for outcome in outcomes if outcome.error] == []
    touched = {asset for outcome in outcomes for asset in outcome.assets if asset not in outcome.reused}
    assert touched == {"benchmark_data", "filtered_instructions", "benchmark_scores", "leaderboard"}


def test_every_edge_maps_each_partition_to_partitions_that_exist(made):
    graph = made.definitions().resolve_asset_graph()
    for asset, key in all_parts(made.load()):
        for name in STAGES[asset].inputs:
            child, parent = graph.get(dg.AssetKey(asset)), graph.get(dg.AssetKey(name))
            if child.partitions_def is None or parent.partitions_def is None:
                continue
            mapping = graph.get_partition_mapping(child.key, parent.key)
            subset = child.partitions_def.subset_with_partition_keys([key])
            result = mapping.get_upstream_mapped_partitions_result_for_partitions(
                subset, child.partitions_def, parent.partitions_def
            )
            assert not list(result.required_but_nonexistent_subset.get_partition_keys()), (asset, name)
            assert list(result.partitions_subset.get_partition_keys())


@pytest.mark.parametrize("words", [("run", "--asset", "lora_adapter"), ("leaderboard",)])
def test_a_command_that_can_do_nothing_says_so(fresh, words):
    import subprocess
    import sys

    command = [sys.executable, "-c", "from m3po_dagster.cli.main import main; main()", *words]
    done = subprocess.run(command, env=fresh.environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "not up to date" in done.stderr
