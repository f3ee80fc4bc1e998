"""An adapter in short, and the pairs it was trained on."""

import pytest

from m3po_dagster.lineage.manifests import Manifests
from m3po_dagster.lineage.pairs import adapter_pairs
from m3po_dagster.lineage.profile import TRAINED_ON_COLUMNS, abridged, flattened, profile, trained_on_rows
from m3po_dagster.storage.errors import StoreError
from m3po_dagster.storage.tables import PAIRS
from tests.lineage.lineage_oracle import Oracle


@pytest.mark.parametrize("part", [("lora_adapter", "m3po"), ("adapter", "m3po|0"), ("adapter", "m3po|1")])
def test_the_pairs_of_an_adapter_are_exactly_its_own(world, wanted, part):
    made = world.make(wanted.but(seeds=(0, 1), recipes={"m3po": 0.5, "other": 9.0}))
    world.make(wanted.but(judge="lenient"))
    shards, table = adapter_pairs(Manifests(world.store), made[part])
    assert shards == {shard: made["preference_pairs", f"m3po|{shard}"].fingerprint for shard in ("s0", "s1")}
    assert table.column_names == ["shard", *PAIRS.schema.names]
    rows = [(row["prompt_id"], row["shard"], row["pair_id"]) for row in table.to_pylist()]
    expected = Oracle(world.store.root).trained_pairs(part[0], made[part].fingerprint)
    assert sorted(rows) == sorted(row[:3] for row in expected) and rows


def test_rows_name_pairs_scores_and_judge_of_every_shard(world, wanted):
    made = world.make(wanted)
    second = world.make(wanted.but(judge="lenient", judged_apart=("s1",)))
    rows = trained_on_rows(Manifests(world.store), second["lora_adapter", "m3po"])
    assert [tuple(row) for row in rows] == [TRAINED_ON_COLUMNS] * 2
    # What the new judge scores alike is not selected again: the pairs of s0 keep the judge they were made with.
    for row, source in zip(rows, (made, second), strict=True):
        pairs = source["preference_pairs", f"m3po|{row['shard']}"]
        assert row["pairs fingerprint"] == pairs.fingerprint and row["pairs content"] == pairs.data_version
        assert row["pairs"] + row["no pair"] == 6
        assert row["mas fingerprint"] == source["mas_table", row["shard"]].fingerprint
        assert row["judge"] == source["judge_identity", ""].data_version
    assert abridged(rows)[0]["judge"] == made["judge_identity", ""].data_version[:12]


def test_what_left_the_store_is_none_in_the_rows_and_an_error_for_the_pairs(world, wanted):
    made = world.make(wanted)
    adapter = made["lora_adapter", "m3po"]
    (made["preference_pairs", "m3po|s1"].folder / "manifest.json").unlink()
    manifests = Manifests(world.store)
    rows = trained_on_rows(manifests, adapter)
    assert [row["pairs"] is None for row in rows] == [False, True] and abridged(rows)[1]["judge"] == "-"
    assert profile(manifests, adapter).pairs == rows[0]["pairs"]
    with pytest.raises(StoreError, match=r"shard s1.*no longer in the store"):
        adapter_pairs(manifests, adapter)
    with pytest.raises(StoreError, match="not trained on preference pairs"):
        adapter_pairs(manifests, made["base_model", ""])


def test_a_profile_names_recipe_seeds_training_and_versions(world, wanted):
    made = world.make(wanted.but(seeds=(0, 1)))
    short = profile(Manifests(world.store), made["lora_adapter", "m3po"])
    assert (short.recipe, short.seeds, short.training["beta"]) == ("m3po", (0, 1), 0.1)
    assert short.pairs == sum(made["preference_pairs", f"m3po|s{n}"].table().num_rows for n in (0, 1))
    assert {asset: len(found) for asset, found in short.versions.items()} == dict.fromkeys(
        {part[0] for part in made} - {"adapter", "lora_adapter"}, 1
    )
    assert short.versions["source_dataset"][0].rows == 2
    assert short.versions["filtered_instructions"][0].rows == 12
    one = profile(Manifests(world.store), made["adapter", "m3po|1"])
    assert (one.recipe, one.seeds, one.pairs) == ("m3po", (1,), short.pairs)


def test_a_dataset_that_grew_elsewhere_is_told_as_it_was_trained_on(world, wanted):
    """Pairs that came out the same lead to the dataset as it was; the adapter's own prompts lead to the new one."""
    world.make(wanted)
    second = world.make(wanted.but(prompts=13))
    (version,) = profile(Manifests(world.store), second["lora_adapter", "m3po"]).versions["source_dataset"]
    assert version.contents == (second["source_dataset", ""].data_version,)


def test_settings_flatten_to_dotted_keys():
    nested = {"a": {"b": 1, "c": {}}, "d": None, "e": [1]}
    assert list(flattened(nested)) == [("a.b", 1), ("a.c", {}), ("d", None), ("e", [1])]
    assert list(flattened(None)) == []
