"""Lineage on a study that Dagster ran: what the manifests say is what the event log and the files say."""

from copy import deepcopy

import dagster as dg
import pyarrow as pa
import pytest
import yaml
from typer.testing import CliRunner

from m3po_dagster.cli.main import app
from m3po_dagster.current import read_heads
from m3po_dagster.datasets.images import DatasetImages
from m3po_dagster.graph import made_from
from m3po_dagster.lineage.diff import diff
from m3po_dagster.lineage.manifests import Manifests
from m3po_dagster.lineage.naming import Current, choose
from m3po_dagster.lineage.pairs import adapter_pairs
from m3po_dagster.lineage.profile import TRAINED_ON_COLUMNS, trained_on_rows
from m3po_dagster.lineage.search import find_image, find_pair
from m3po_dagster.lineage.study import held_parts
from m3po_dagster.lineage.tree import each, trace
from m3po_dagster.resources.study import StoreResource
from m3po_dagster.storage.fingerprint import file_sha256
from m3po_dagster.storage.store import ArtifactStore
from m3po_dagster.storage.tables import IDENTITY
from tests.lineage.lineage_oracle import Oracle


def heads_of(project):
    with project.instance() as instance:
        return read_heads(instance)


def current(project) -> Current:
    return Current({part: head.fingerprint for part, head in heads_of(project).items()}, "the event log")


def test_an_adapter_leads_back_to_the_dataset_and_its_pairs(made):
    manifests, heads = Manifests(made.store), heads_of(made)
    chosen = choose(manifests, "m3po", current(made))
    assert chosen.artifact.fingerprint == heads["lora_adapter", "m3po"].fingerprint
    for node in each(trace(manifests, chosen.artifact)):
        assert not node.remark
        if node.asset != "adapter":
            head = heads[node.asset, node.partition]
            assert (node.fingerprint, node.data_version) == (head.fingerprint, head.data_version)
    expected = Oracle(made.root).trained_pairs("lora_adapter", chosen.artifact.fingerprint)
    pairs = adapter_pairs(manifests, chosen.artifact)[1]
    assert sorted(pairs["pair_id"].to_pylist()) == sorted(row[2] for row in expected) and expected


def test_the_store_and_the_study_file_know_what_the_event_log_calls_current(made):
    held = held_parts(Manifests(made.store), made.load(), StoreResource(root=made.root).identities())
    assert held.parts == heads_of(made) and held.assumed == ()


def test_of_several_answers_of_a_judge_the_newest_counts_and_the_answer_says_so(copy_of_made, tmp_path):
    project, part = copy_of_made, ("judge_probe", "")
    study, identities = project.load(), StoreResource(root=project.root).identities()
    rows = pa.Table.from_pylist([{"fact": "answers", "value": "others"}], schema=IDENTITY.schema)

    def answered(store, fingerprint):
        with store.open(*part, fingerprint) as draft:
            return draft.commit({"data": (rows, IDENTITY)}, code_version="1")

    content = answered(ArtifactStore(tmp_path / "elsewhere"), "0" * 64).data_version
    newest = answered(project.store, made_from(part, study, identities, {}, found=content))
    held = held_parts(Manifests(project.store), study, identities)
    assert held.parts[part].fingerprint == newest.fingerprint and ("lora_adapter", "m3po") not in held.parts
    (sentence,) = held.assumed
    assert sentence.startswith("judge_probe as of ") and sentence.endswith("the newest of 2")


def test_two_recipes_differ_as_sql_says(made):
    manifests = Manifests(made.store)
    m3po, sft = (choose(manifests, name).artifact for name in ("m3po", "sft"))
    result = diff(manifests, m3po, sft)
    expected = Oracle(made.root).diff("lora_adapter", m3po.fingerprint, sft.fingerprint)
    assert {row["prompt_id"]: row["kind"] for row in result.pairs.to_pylist()} == expected
    assert {item.topic for item in result.differences} == {"adapter", "recipe", "training"}
    base = choose(manifests, "base").artifact
    assert diff(manifests, base, m3po).totals()["added"] == result.first.pairs


def test_every_pair_of_a_real_training_is_found_with_its_weight(made):
    manifests, oracle = Manifests(made.store), Oracle(made.root)
    adapter = choose(manifests, "m3po|0").artifact
    for row in adapter_pairs(manifests, adapter)[1].to_pylist()[:3]:
        found = find_pair(manifests, row["pair_id"])
        (item,) = [item for item in found.selected if item.recipe == "m3po"]
        (training,) = item.trainings
        steps, total = oracle.exposures(adapter.fingerprint, row["pair_id"])
        assert (list(training.steps), training.seen_in_all) == (steps, total) and steps
        assert training.margin["reward_margin"] == oracle.margin(adapter.fingerprint, row["pair_id"])
        assert item.chosen_mas - item.rejected_mas == row["mas_gap"]


def test_an_image_file_is_found_by_its_bytes(made):
    study = made.load()
    prompts = made.store.find("filtered_instructions", "s0", heads_of(made)["filtered_instructions", "s0"].fingerprint)
    row = prompts.table().to_pylist()[0]
    found = find_image(
        Manifests(made.store), file_sha256(DatasetImages(study.dataset).locate(row["source"], row["image_uri"]))
    )
    assert found.id == row["image_sha256"]
    assert row["prompt_id"] in {prompt.row["prompt_id"] for prompt in found.prompts}
    assert {"sft", "m3po"} <= {item.recipe for item in found.selected if item.trainings}


def test_the_ui_shows_which_pairs_trained_an_adapter(made):
    with made.instance() as instance:
        records = instance.fetch_materializations(dg.AssetKey("lora_adapter"), limit=10).records
    found = {record.asset_materialization.partition: record.asset_materialization.metadata for record in records}
    adapter = choose(Manifests(made.store), "m3po").artifact
    rows = trained_on_rows(Manifests(made.store), adapter)
    assert found["m3po"]["trained on pairs in full"].value == rows
    shown = [record.data for record in found["m3po"]["trained on pairs"].records]
    assert all(set(row) == set(TRAINED_ON_COLUMNS) for row in shown)
    assert [row["pairs"] for row in shown] == [row["pairs"] for row in rows]
    assert all(row["judge"] == heads_of(made)["judge_identity", ""].data_version[:12] for row in shown)


@pytest.mark.slow
def test_after_a_new_judge_both_adapters_are_known_by_study_and_after_gc(copy_of_made, small_study, monkeypatch):
    project = copy_of_made
    old_file = project.folder / "old.yaml"
    old_file.write_text(yaml.safe_dump(small_study))
    old = choose(Manifests(project.store), "m3po").artifact
    changed = deepcopy(small_study)
    changed["judge"]["scorers"][1]["weight"] = 1
    project.write(changed)
    assert [outcome.error for outcome in project.run() if outcome.error] == []
    new = choose(Manifests(project.store), "m3po", current(project))
    assert new.artifact.key != old.key and [other.key for other in new.others] == [old.key]
    result = diff(Manifests(project.store), old, new.artifact)
    assert {(item.topic, item.key) for item in result.differences} == {("judge", "clip.settings.weight")}
    expected = Oracle(project.root).diff("lora_adapter", old.fingerprint, new.artifact.fingerprint)
    assert {row["prompt_id"]: row["kind"] for row in result.pairs.to_pylist()} == expected
    pair_id = adapter_pairs(Manifests(project.store), old)[1]["pair_id"][0].as_py()
    before = find_pair(Manifests(project.store), pair_id)
    keep = {(*part, head.fingerprint) for part, head in heads_of(project).items()}
    assert project.store.gc(keep, dry_run=False, older_than=0) is not None
    assert find_pair(Manifests(project.store), pair_id) == before
    monkeypatch.setenv("DAGSTER_HOME", str(project.folder / "no home"))
    for study, adapter in ((old_file, old), (project.study_file, new.artifact)):
        arguments = ["lineage", "adapter", "m3po", "--study", str(study), "--store", project.root]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0 and adapter.fingerprint[:12] in result.stdout.splitlines()[0], result.output
    result = CliRunner().invoke(app, ["lineage", "adapter", "m3po", "--store", project.root])
    assert result.exit_code == 1 and "nothing says which is current" in result.stderr
