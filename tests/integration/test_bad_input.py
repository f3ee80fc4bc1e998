"""What goes wrong on a user's machine: each a clear sentence, nothing lost, nothing half-written trusted."""

import json
import shutil
import subprocess
import sys
import time
from copy import deepcopy
from pathlib import Path

import pytest

from m3po_dagster.current import read_heads
from m3po_dagster.graph import part_fingerprint
from m3po_dagster.resources.study import StoreResource
from m3po_dagster.runner import Selection
from tests.integration.daemon import M3PO

DATA_ASSETS = ("source_dataset", "benchmark_data", "filtered_instructions")


def m3po(project, *words: str, **options) -> subprocess.CompletedProcess:
    """The command line, as a user types it."""
    command = [sys.executable, "-c", "from m3po_dagster.cli.main import main; main()", *words]
    return subprocess.run(command, env=project.environment(), capture_output=True, text=True, timeout=300, **options)


def copied_dataset(project, small_study) -> tuple[dict, Path, Path]:
    """The study over a copy of the dataset that a test may spoil."""
    changed = deepcopy(small_study)
    source = changed["dataset"]["sources"]["scenes"]
    shutil.copytree(Path(source["path"]).parent, project.folder / "instructions")
    source["path"] = str(project.folder / "instructions" / "llava_instruct.json")
    source["image_root"] = str(project.folder / "instructions" / "images")
    return changed, Path(source["path"]), Path(source["image_root"])


def dropped(project) -> dict[str, int]:
    """Dropped records by reason over all shards."""
    reasons: dict[str, int] = {}
    with project.instance() as instance:
        for (asset, shard), head in read_heads(instance).items():
            if asset == "filtered_instructions":
                for drop in project.store.find(asset, shard, head.fingerprint).manifest.metadata["drops"]:
                    reasons[drop["reason"]] = reasons.get(drop["reason"], 0) + drop["count"]
    return reasons


def test_a_corrupt_image_is_a_counted_drop(fresh, small_study):
    settings, _, root = copied_dataset(fresh, small_study)
    fresh.write(settings)
    fresh.run(Selection(assets=DATA_ASSETS))
    before, prompts = dropped(fresh), kept(fresh)
    used = prompts[0]
    (root / used).write_bytes((root / used).read_bytes()[:60])
    outcomes = fresh.run(Selection(assets=DATA_ASSETS))
    assert [outcome.error for outcome in outcomes if outcome.error] == []
    assert used not in kept(fresh) and len(kept(fresh)) == len(prompts) - prompts.count(used)
    lost = sum(dropped(fresh).values()) - sum(before.values())
    assert lost == prompts.count(used) <= dropped(fresh)["image undecodable"] - before["image undecodable"]


def kept(project) -> list[str]:
    """The image of every kept prompt."""
    with project.instance() as instance:
        heads = read_heads(instance, ["filtered_instructions"])
    tables = [project.store.find(*part, head.fingerprint).table() for part, head in heads.items()]
    return [uri for table in tables for uri in table["image_uri"].to_pylist()]


def test_an_empty_shard_passes_through_the_whole_graph(fresh, small_study):
    settings, path, _ = copied_dataset(fresh, small_study)
    records = json.loads(path.read_text())
    first = next(record for record in records if record.get("image"))["image"]
    path.write_text(json.dumps([record for record in records if record.get("image") == first]))
    settings["recipes"].pop("sft")
    fresh.write(settings)
    outcomes = fresh.run(
        Selection(assets=(*DATA_ASSETS, "base_model", "sampling_scorer", "judge_probe", "judge_identity",
                          "recipe_config", "candidates", "mas_table", "logprob_table", "preference_pairs",
                          "selection_sweep"))
    )  # fmt: skip
    assert [outcome.error for outcome in outcomes if outcome.error] == []
    with fresh.instance() as instance:
        heads = read_heads(instance)
    rows = [
        fresh.store.find("candidates", s, heads["candidates", s].fingerprint).table().num_rows for s in ("s0", "s1")
    ]
    assert sorted(rows)[0] == 0 and sorted(rows)[1] > 0


def test_a_missing_dataset_file_is_named_with_its_key(fresh, small_study):
    settings = deepcopy(small_study)
    settings["dataset"]["sources"]["scenes"]["path"] = str(fresh.folder / "nowhere.json")
    fresh.write(settings)
    done = m3po(fresh, "run", "--asset", "source_dataset")
    assert done.returncode == 1
    assert (
        "nowhere.json" in done.stderr
        and "dataset.sources.scenes.path" in done.stderr
        and "Traceback" not in done.stderr
    )


def test_broken_json_names_file_and_position(fresh, small_study):
    settings, path, _ = copied_dataset(fresh, small_study)
    path.write_text(path.read_text()[:-40])
    fresh.write(settings)
    outcomes = fresh.run(Selection(assets=("source_dataset",)))
    assert str(path) in outcomes[0].error and "Traceback" not in outcomes[0].error


def test_a_bad_alpha_is_refused_before_anything_runs(fresh, small_study):
    settings = deepcopy(small_study)
    settings["recipes"]["m3po"]["selection"]["alpha"] = -1
    fresh.write(settings)
    done = m3po(fresh, "run")
    assert done.returncode == 2
    assert "recipes.m3po.selection.alpha" in done.stderr and "greater than or equal to 0" in done.stderr
    assert not (fresh.folder / "store").exists()


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (("--shard", "s9"), "no shard 's9' in study small; there are s0, s1"),
        (("--recipe", "m4po"), "no recipe 'm4po'"),
        (("--asset", "candidate"), "no asset 'candidate'"),
    ],
)
def test_a_partition_that_does_not_exist_is_refused(fresh, words, wanted):
    done = m3po(fresh, "run", *words)
    assert done.returncode == 2 and wanted in done.stderr


def test_a_store_that_cannot_be_written_says_so(fresh):
    (fresh.folder / "store").write_text("a file where the store should be")
    done = m3po(fresh, "run", "--asset", "base_model")
    assert done.returncode == 1
    assert str(fresh.folder / "store") in done.stderr and "Traceback" not in done.stderr


def test_a_second_run_of_one_result_waits_for_the_first(copy_of_made, small_study):
    project = copy_of_made
    settings = deepcopy(small_study)
    settings["recipes"]["m3po"]["selection"]["alpha"] = 0.9
    project.write(settings)
    project.run(Selection(assets=("recipe_config",)))
    with project.instance() as instance:
        heads = read_heads(instance)
    part = ("preference_pairs", "m3po|s0")
    fingerprint = part_fingerprint(part, project.load(), StoreResource(root=project.root).identities(), heads)
    command = [M3PO, "run", "--asset", "preference_pairs"]
    with project.store.open(*part, fingerprint):
        second = subprocess.Popen(command, env=project.environment(), stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 120
        while not said(project, "being written by process"):
            assert time.monotonic() < deadline and second.poll() is None
            time.sleep(0.2)
    _, errors = second.communicate(timeout=120)
    assert second.returncode == 0, errors
    assert project.store.find(*part, fingerprint) is not None


def said(project, words: str) -> bool:
    """Whether the log of a run says these words."""
    with project.instance() as instance:
        return any(
            words in record.user_message
            for run in instance.get_runs(limit=3)
            for record in instance.all_logs(run.run_id)
        )


def test_an_artifact_removed_from_the_store_is_made_again(copy_of_made):
    project = copy_of_made
    with project.instance() as instance:
        head = read_heads(instance)["mas_table", "s0"]
    shutil.rmtree(project.store.find("mas_table", "s0", head.fingerprint).path("data.parquet").parent)
    outcomes = project.run()
    assert outcomes[0].assets == ("mas_table",) and outcomes[0].partition == "s0" and outcomes[0].reused == ()
    assert {item.state for item in project.standings()} == {"fresh"}
    with project.instance() as instance:
        assert read_heads(instance)["mas_table", "s0"] == head


def test_too_many_unscored_answers_train_nothing(fresh, small_study):
    settings = deepcopy(small_study)
    # The scene judge knows the scenes' questions alone; asked others, it scores nothing.
    changed, path, _ = copied_dataset(fresh, small_study)
    records = json.loads(path.read_text())
    for record in records:
        for turn in record.get("conversations", []):
            if turn["from"] == "human" and "<image>" in turn["value"]:
                turn["value"] = "<image>\nWhat is there?"
    path.write_text(json.dumps(records))
    settings["dataset"] = changed["dataset"]
    settings["recipes"].pop("sft")
    fresh.write(settings)
    outcomes = fresh.run()
    (error, *_) = [outcome.error for outcome in outcomes if outcome.error]
    assert "more than judge.max_unscored = 0.05 allows" in error and "scene_judge: question not about a scene" in error
    assert list(fresh.store.list("adapter")) == []
    with fresh.instance() as instance:
        heads = read_heads(instance)
    assert not any(asset in ("mas_table", "preference_pairs", "lora_adapter") for asset, _ in heads)
    found = {item.part: item for item in fresh.standings()}
    assert found["mas_table", "s0"].state == "missing"
    assert ("mas_table", "s0") in found["preference_pairs", "m3po|s0"].waits_for
