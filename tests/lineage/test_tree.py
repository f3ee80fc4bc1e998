"""The tree of inputs: back to the dataset, with what happened to the artifacts since."""

import io

import pytest
from rich.console import Console

from m3po_dagster.lineage import render
from m3po_dagster.lineage.manifests import Manifests
from m3po_dagster.lineage.tree import each, trace
from m3po_dagster.storage.errors import StoreError
from tests.rewritten import rewrite


def remove(artifact) -> None:
    (artifact.folder / "manifest.json").unlink()


def test_every_branch_ends_outside_the_graph(world, wanted):
    made = world.make(wanted.but(seeds=(0, 1)))
    tree = trace(Manifests(world.store), made["adapter", "m3po|1"])
    assert tree.files and tree.settings["seed"] == 1
    leaves = {node.asset for node in each(tree) if not node.inputs}
    assert leaves == {"source_dataset", "judge_probe", "base_model", "recipe_config"}
    others = {("adapter", "m3po|0"), ("lora_adapter", "m3po")}
    expected = {(*artifact.key, artifact.data_version) for part, artifact in made.items() if part not in others}
    assert [node.identity for node in each(tree)].count(tree.identity) == 1
    assert {node.identity for node in each(tree)} == expected
    assert not any(node.remark for node in each(tree))
    rows = {node.asset: node.rows["data"] for node in each(tree) if node.asset in ("source_dataset", "base_model")}
    assert rows == {"source_dataset": 2, "base_model": 1}


def test_what_left_the_store_is_remarked_where_it_was_used(world, wanted):
    made = world.make(wanted)
    remove(made["preference_pairs", "m3po|s1"])
    remarks = [node.name for node in each(trace(Manifests(world.store), made["adapter", "m3po|0"])) if node.remark]
    assert remarks == ["preference_pairs[m3po|s1]"]


def test_other_content_under_the_same_fingerprint_is_remarked(world, wanted):
    made = world.make(wanted)
    gone = made["base_model", ""]
    table = gone.table()
    remove(gone)
    with world.store.open(*gone.key) as draft:
        from m3po_dagster.storage.tables import IDENTITY

        again = draft.commit({"data": (table.slice(0, 0), IDENTITY)}, code_version="1")
    tree = trace(Manifests(world.store), made["lora_adapter", "m3po"])
    remarked = {(node.asset, node.data_version, node.remark) for node in each(tree) if node.remark}
    assert [(asset, version) for asset, version, _ in remarked] == [("base_model", gone.data_version)]
    assert all(again.data_version[:12] in remark for _, _, remark in remarked)


def test_a_manifest_that_leads_to_itself_is_an_error(world, wanted):
    made = world.make(wanted)
    path = made["candidates", "s0"].folder / "manifest.json"
    loop = {**made["mas_table", "s0"].key._asdict(), "data_version": "x"}
    rewrite(path, inputs={"loop": loop})
    with pytest.raises(StoreError, match="input of itself"):
        trace(Manifests(world.store), made["mas_table", "s0"])


def test_a_manifest_is_read_once_however_many_branches_lead_to_it(world, wanted, monkeypatch):
    from collections import Counter

    made = world.make(wanted.but(seeds=(0, 1, 2)))
    read: Counter[tuple] = Counter()
    find = type(world.store).find
    monkeypatch.setattr(type(world.store), "find", lambda store, *key: (read.update([key]), find(store, *key))[1])
    trace(Manifests(world.store), made["lora_adapter", "m3po"])
    assert len(read) == len(made) - 1 and set(read.values()) == {1}


def test_the_text_spells_out_each_artifact_once(world, wanted):
    made = world.make(wanted)
    text = io.StringIO()
    Console(file=text, width=200).print(render.tree(trace(Manifests(world.store), made["lora_adapter", "m3po"])))
    lines = text.getvalue().splitlines()
    assert lines[0].startswith("lora_adapter[m3po]") and "1 rows" in lines[0]
    spelled = [line for line in lines if "candidates[s0]" in line and "as above" not in line]
    assert len(spelled) == 1 and made["candidates", "s0"].fingerprint[:12] in spelled[0]
    assert sum("sources.scenes.settings.path: data.json" in line for line in lines) == 1
    entry = made["preference_pairs", "m3po|s1"].manifest.tables
    counts = f"{entry['data'].rows} rows, {entry['dropped'].rows} dropped"
    assert any("preference_pairs[m3po|s1]" in line and counts in line for line in lines)
