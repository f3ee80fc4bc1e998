"""Lineage: from an adapter back to the dataset, from manifests alone."""

import io
import json

import pyarrow as pa
import pytest
from rich.console import Console
from typer.testing import CliRunner

from m3po_dagster.cli.lineage import app
from m3po_dagster.lineage import adapter_lineage, adapter_pairs, find_adapter, lineage, render
from m3po_dagster.storage.artifact import Artifact
from m3po_dagster.storage.errors import StoreError
from m3po_dagster.storage.fingerprint import fingerprint
from m3po_dagster.storage.store import ArtifactStore
from m3po_dagster.storage.tables import PAIRS, TableSchema, column

PLAIN = TableSchema("plain", ("id",), pa.schema([column("id", pa.string(), "an id")]))
SHARDS = ("s0", "s1")


def made(store, asset, partition, *inputs: Artifact, settings=None, table=None, code="1") -> Artifact:
    refs = {f"{a.key.asset}[{a.key.partition}]": {**a.key._asdict(), "data_version": a.data_version} for a in inputs}
    versions = {name: ref["data_version"] for name, ref in refs.items()}
    with store.open(asset, partition, fingerprint(asset, partition, code, settings, versions)) as draft:
        plain = pa.table({"id": [f"{asset} {partition} {code}"]}, schema=PLAIN.schema)
        if asset == "adapter":
            (draft.folder() / "weights").write_text(partition)
        tables = {"data": table or (plain, PLAIN)}
        return draft.commit(tables, code_version=code, settings=settings, inputs=refs)


def pairs(store, recipe, shard, *inputs: Artifact, count=2) -> Artifact:
    rows = [
        {
            "pair_id": f"{shard}:{index}",
            "prompt_id": f"p{index}",
            "chosen_id": f"p{index}:0",
            "rejected_id": f"p{index}:1",
            "m3p_score": 0.25 + index,
            "mas_gap": 0.5,
            "logp_gap": 0.5,
            "ref_chosen_logp": -1.5,
            "ref_rejected_logp": -2.5,
        }
        for index in range(count)
    ]
    table = (pa.Table.from_pylist(rows, schema=PAIRS.schema), PAIRS)
    return made(store, "preference_pairs", f"{recipe}|{shard}", *inputs, table=table)


@pytest.fixture
def world(tmp_path):
    """A small graph: two shards, two recipes; {name: artifact} and the store."""
    store = ArtifactStore(tmp_path / "store")
    found = {"source": made(store, "source_dataset", "", settings={"file": "ab" * 32, "name": "scenes"})}
    for shard in SHARDS:
        found[f"candidates {shard}"] = made(store, "candidates", shard, found["source"])
        for name in ("mas_table", "logprob_table"):
            found[f"{name} {shard}"] = made(store, name, shard, found[f"candidates {shard}"])
    for recipe in ("m3po", "vanilla"):
        for number, shard in enumerate(SHARDS):
            scores = [found[f"mas_table {shard}"], found[f"logprob_table {shard}"]]
            if recipe == "vanilla":
                scores = scores[:1]
            found[f"{recipe} {shard}"] = pairs(store, recipe, shard, *scores, count=2 + number)
        trained_on = [found[f"{recipe} {shard}"] for shard in SHARDS]
        for seed in (0, 1):
            settings = {"seed": seed}
            found[f"{recipe} seed {seed}"] = made(store, "adapter", f"{recipe}|{seed}", *trained_on, settings=settings)
        seeds = [found[f"{recipe} seed {seed}"] for seed in (0, 1)]
        found[f"{recipe} adapters"] = made(store, "lora_adapter", recipe, *trained_on, *seeds)
    found["base adapters"] = made(store, "lora_adapter", "base")
    return store, found


def nodes(node):
    yield node
    for child in node.inputs:
        yield from nodes(child)


def test_every_branch_ends_at_the_dataset(world):
    store, found = world
    tree = lineage(store, *found["m3po seed 0"].key)
    assert tree.files and tree.settings == {"seed": 0}
    leaves = [node for node in nodes(tree) if not node.inputs]
    assert {leaf.asset for leaf in leaves} == {"source_dataset"} and len(leaves) == 4
    stages = ("m3po", "mas_table", "logprob_table", "candidates")
    assert {(node.asset, node.partition, node.fingerprint) for node in nodes(tree)} == {
        tuple(found[name].key)
        for name in ["m3po seed 0", "source", *(f"{name} {shard}" for name in stages for shard in SHARDS)]
    }
    assert [child.rows for child in tree.inputs] == [{"data": 2}, {"data": 3}]
    assert not any(node.remark for node in nodes(tree))


def test_an_adapter_is_named_by_recipe_or_fingerprint(world):
    store, found = world
    assert find_adapter(store, "m3po").key == found["m3po adapters"].key
    assert find_adapter(store, "m3po|1").key == found["m3po seed 1"].key
    assert find_adapter(store, found["vanilla seed 0"].fingerprint[:12]).key == found["vanilla seed 0"].key
    again = made(store, "adapter", "m3po|2", *[found[f"m3po {shard}"] for shard in SHARDS], settings={"seed": 2})
    assert find_adapter(store, "m3po").key == again.key
    with pytest.raises(StoreError, match=r"recipe 'nobody'.*\['base', 'm3po', 'vanilla'\]"):
        find_adapter(store, "nobody")
    with pytest.raises(StoreError, match="begins with"):
        find_adapter(store, found["candidates s0"].fingerprint)


def test_an_ambiguous_prefix_lists_its_matches(world):
    store, found = world
    one = found["m3po seed 0"]
    prefix = one.fingerprint[:6]
    store_2 = ArtifactStore(store.root)
    with store_2.open("adapter", "twin", prefix + "0" * 58) as draft:
        (draft.folder() / "weights").write_text("twin")
        draft.commit(code_version="1")
    with pytest.raises(StoreError, match=rf"fits 2 artifacts: .*{one.fingerprint}.*{prefix}0000"):
        adapter_lineage(store, prefix)


@pytest.mark.parametrize("name", ["m3po", "m3po|0", "m3po|1"])
def test_the_pairs_of_an_adapter_are_exactly_its_own(world, name):
    store, found = world
    shards, table = adapter_pairs(store, name)
    assert shards == {shard: found[f"m3po {shard}"].fingerprint for shard in SHARDS}
    assert table.select(["shard", "pair_id"]).to_pylist() == [
        {"shard": "s0", "pair_id": "s0:0"},
        {"shard": "s0", "pair_id": "s0:1"},
        {"shard": "s1", "pair_id": "s1:0"},
        {"shard": "s1", "pair_id": "s1:1"},
        {"shard": "s1", "pair_id": "s1:2"},
    ]
    assert table.column_names == ["shard", *PAIRS.schema.names]


def test_newer_pairs_do_not_change_an_old_adapters_answer(world):
    store, found = world
    pairs(store, "m3po", "s0", found["mas_table s0"], count=5)
    shards, table = adapter_pairs(store, found["m3po seed 0"].fingerprint)
    assert shards["s0"] == found["m3po s0"].fingerprint and table.num_rows == 5
    store.gc(set(), dry_run=False, older_than=0)
    assert adapter_pairs(store, "m3po")[0] == shards


def test_pairs_that_cannot_be_shown_are_an_error(world):
    store, found = world
    with pytest.raises(StoreError, match="not trained on preference pairs"):
        adapter_pairs(store, "base")
    (found["m3po s1"].folder / "manifest.json").unlink()
    with pytest.raises(StoreError, match=r"shard s1.*no longer in the store"):
        adapter_pairs(store, "m3po")
    remarks = [node.remark for node in nodes(adapter_lineage(store, "m3po|0")) if node.remark]
    assert remarks == ["no longer in the store"]


def test_other_content_under_the_same_fingerprint_is_remarked(world):
    store, found = world
    gone = found["candidates s0"]
    (gone.folder / "manifest.json").unlink()
    with store.open(*gone.key) as draft:
        other = pa.table({"id": ["other"]}, schema=PLAIN.schema)
        again = draft.commit({"data": (other, PLAIN)}, code_version="1")
    remarked = [node for node in nodes(lineage(store, *found["mas_table s0"].key)) if node.remark]
    assert [(node.asset, node.data_version) for node in remarked] == [("candidates", gone.data_version)]
    assert again.data_version[:12] in remarked[0].remark


def test_a_manifest_that_leads_to_itself_is_an_error(world):
    store, found = world
    path = found["candidates s0"].folder / "manifest.json"
    manifest = json.loads(path.read_text())
    loop = {**found["mas_table s0"].key._asdict(), "data_version": "x"}
    path.write_text(json.dumps({**manifest, "inputs": {"loop": loop}}))
    with pytest.raises(StoreError, match="input of itself"):
        lineage(store, *found["mas_table s0"].key)
    with pytest.raises(StoreError, match="not in the store"):
        lineage(store, "mas_table", "s0", "0" * 64)


def test_the_text_spells_out_each_artifact_once(world):
    store, found = world
    text = io.StringIO()
    Console(file=text, width=200).print(render(adapter_lineage(store, "m3po")))
    lines = text.getvalue().splitlines()
    assert lines[0].startswith("lora_adapter[m3po]") and "1 rows" in lines[0]
    spelled = [line for line in lines if "candidates[s0]" in line and "as above" not in line]
    assert len(spelled) == 1 and found["candidates s0"].fingerprint[:12] in spelled[0]
    assert sum("name: scenes" in line for line in lines) == 1
    assert any("preference_pairs[m3po|s1]" in line and "3 rows" in line for line in lines)


def call(store, *arguments: str, code: int = 0):
    result = CliRunner().invoke(app, [*arguments, "--store", str(store.root)], env={"COLUMNS": "60"})
    assert result.exit_code == code, result.output
    return result


def test_the_command_prints_text_json_and_pairs(world):
    store, found = world
    text = call(store, "adapter", "m3po").stdout
    assert text.startswith("lora_adapter[m3po]") and found["source"].data_version[:12] in text
    assert json.loads(call(store, "adapter", "m3po", "--json").stdout) == adapter_lineage(store, "m3po").to_dict()
    listed = call(store, "adapter", "m3po", "--pairs").stdout.splitlines()
    assert listed[0] == f"s0  {found['m3po s0'].fingerprint}"
    assert listed[2].split("\t")[:2] == ["shard", "pair_id"] and listed[3].split("\t")[:2] == ["s0", "s0:0"]
    shards, table = adapter_pairs(store, "m3po")
    asked = json.loads(call(store, "adapter", "m3po", "--pairs", "--json").stdout)
    assert asked == {"shards": shards, "pairs": table.to_pylist()}
    assert "error: no adapter" in call(store, "adapter", "nobody", code=1).stderr
