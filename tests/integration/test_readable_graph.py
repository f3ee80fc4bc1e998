"""What a person reads in the Dagster UI: of every asset, and of every materialisation of a finished study."""

import base64
import io
import re

import dagster as dg
import pytest
from PIL import Image

from m3po_dagster.assets.scores import table_of
from m3po_dagster.current import read_heads
from m3po_dagster.graph import STAGES
from m3po_dagster.inspector.links import answers_url, prompts_url, tune_url
from m3po_dagster.study import load_study

PICTURE = re.compile(r"!\[\]\(data:image/(?:png|webp);base64,([A-Za-z0-9+/=]+)\)")
LARGEST_EVENT = 60_000
"""Bytes of all metadata of one materialisation."""

PICTURES = {
    "source_dataset": {"shown images"},
    "benchmark_data": {"questions"},
    "filtered_instructions": {"sizes", "kept images", "thumbnails"},
    "candidates": {"lengths", "examples"},
    "mas_table": {"scores", "best and worst"},
    "logprob_table": {"confidence"},
    "preference_pairs": {"gaps", "thumbnails"},
    "selection_sweep": {"curves", "overlap"},
    "lora_adapter": {"curves", "health by seed", "reward margins"},
    "benchmark_scores": {"against base"},
}
INSPECTED = {
    "filtered_instructions": lambda recipe, shard: prompts_url(shard=shard),
    "candidates": lambda recipe, shard: prompts_url(shard=shard),
    "mas_table": lambda recipe, shard: prompts_url(shard=shard),
    "logprob_table": lambda recipe, shard: prompts_url(shard=shard),
    "preference_pairs": lambda recipe, shard: prompts_url(shard=shard, recipe=recipe),
    "selection_sweep": lambda recipe, shard: tune_url(),
    "lora_adapter": lambda recipe, shard: prompts_url(recipe=recipe),
    "benchmark_scores": lambda recipe, shard: answers_url(recipe=recipe),
}


@pytest.fixture(scope="module")
def events(made) -> list[tuple[str, str, dict]]:
    """Asset, partition and metadata of every materialisation."""
    with made.instance() as instance:
        return [
            (asset, record.asset_materialization.partition or "", dict(record.asset_materialization.metadata))
            for asset in STAGES
            for record in instance.fetch_materializations(dg.AssetKey(asset), limit=100).records
        ]


@pytest.fixture(scope="module")
def specs(made) -> list[dg.AssetSpec]:
    return list(made.definitions().resolve_all_asset_specs())


def pictures_in(markdown: str) -> list[Image.Image]:
    return [Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB") for data in PICTURE.findall(markdown)]


def nothing_to_draw(asset: str, partition: str, name: str) -> bool:
    """The base model's recipe has no pairs and no adapter; SFT's pairs have no rejected answer and so no gaps.

    The small study's recipes answer alike, so that its leaderboard has no difference to draw: another test has one.
    """
    recipe = partition.split("|")[0]
    return (recipe == "base" and asset in ("preference_pairs", "lora_adapter")) or (
        recipe == "sft" and name in ("gaps", "reward margins")
    )


def test_every_asset_says_what_it_is(specs):
    assert {spec.key.to_user_string() for spec in specs} == set(STAGES)
    for spec in specs:
        name = spec.key.to_user_string()
        assert spec.group_name not in (None, "default"), name
        assert list(spec.owners) == ["team:m3po"], name
        assert spec.kinds, name
        assert spec.code_version.startswith(STAGES[name].code_version), name
        assert spec.tags["m3po/study"] == "small" and re.fullmatch(r"[34]\.\d", spec.tags["m3po/section"]), name
        assert re.search(r"sections? [34]\.\d", spec.description), name
        assert "In: " in spec.description and "Out: " in spec.description, name
        assert not re.search(r"^ +\S", spec.description, re.MULTILINE), f"{name}: indented, so shown as code"
        assert len(spec.description.split("\n\n")[0]) <= 120, f"{name}: its first line is cut in the graph"


def test_every_column_of_every_asset_is_described(specs):
    for spec in specs:
        columns = spec.metadata["dagster/column_schema"].columns
        assert columns and all(column.description and column.type for column in columns), spec.key


def test_the_columns_of_mas_table_are_those_that_are_written(made, specs):
    (spec,) = (spec for spec in specs if spec.key.to_user_string() == "mas_table")
    declared = [column.name for column in spec.metadata["dagster/column_schema"].columns]
    assert {"mas", "scene_judge", "clip", "accuracy", "clip_low"} <= set(declared)
    described = {column.name: column.description for column in spec.metadata["dagster/column_schema"].columns}
    assert not any(text.startswith("sub-score ") for text in described.values())
    with made.instance() as instance:
        heads = read_heads(instance, ["mas_table"])
    for (asset, shard), head in heads.items():
        written = made.store.find(asset, shard, head.fingerprint).table()
        assert written.column_names == declared
        assert written.schema.equals(table_of(made.load().judge).schema)


def test_owners_come_from_the_study(fresh, small_study):
    fresh.write({**small_study, "owners": ["team:vision", "somebody@example.org"]})
    assert all(
        list(spec.owners) == ["team:vision", "somebody@example.org"]
        for spec in fresh.definitions().resolve_all_asset_specs()
    )
    fresh.write({**small_study, "owners": ["vision"]})
    with pytest.raises(ValueError, match=r"owners.*team:NAME"):
        load_study(fresh.study_file)


def test_every_materialisation_has_rows_and_a_preview_and_is_small(events):
    assert len(events) >= len(STAGES)
    for asset, partition, metadata in events:
        where = f"{asset}[{partition}]"
        assert metadata["dagster/row_count"].value >= 0, where
        assert isinstance(metadata["preview"], dg.TableMetadataValue), where
        size = sum(len(dg.serialize_value(value)) for value in metadata.values())
        assert size < LARGEST_EVENT, f"{where}: {size} bytes"


def test_row_counts_are_those_of_the_store(made, events):
    with made.instance() as instance:
        heads = read_heads(instance)
    for asset, partition, metadata in events:
        rows = made.store.find(asset, partition, heads[asset, partition].fingerprint).table().num_rows
        assert metadata["dagster/row_count"].value == rows, (asset, partition)
        assert (len(metadata["preview"].records) > 0) == (rows > 0), (asset, partition)


def test_every_picture_is_there_and_shows_something(events):
    seen = set()
    for asset, partition, metadata in events:
        for name in PICTURES.get(asset, ()):
            if nothing_to_draw(asset, partition, name):
                assert name not in metadata or PICTURE.search(metadata[name].md_str) is None
                continue
            found = pictures_in(metadata[name].md_str)
            assert found, (asset, partition, name)
            for picture in found:
                assert min(picture.size) >= 32 and max(picture.size) <= 960, (asset, name, picture.size)
                assert len(picture.getcolors(1 << 24)) > 1, (asset, partition, name)
            seen.add((asset, name))
    assert seen == {(asset, name) for asset, names in PICTURES.items() for name in names}


def test_pictures_come_from_the_event_and_nowhere_else(events):
    """A picture with an address would make the browser of whoever looks ask for it."""
    for asset, _, metadata in events:
        for name, value in metadata.items():
            if isinstance(value, dg.MarkdownMetadataValue):
                assert PICTURE.sub("", value.md_str).count("](") == 0, (asset, name)


def test_links_lead_to_the_inspector(events):
    linked = {asset for asset, _, metadata in events if "inspector" in metadata}
    assert linked == set(INSPECTED)
    for asset, partition, metadata in events:
        if asset in INSPECTED and not (asset == "lora_adapter" and partition == "base"):
            keys = dict(zip(STAGES[asset].dimensions, partition.split("|"), strict=False))
            expected = INSPECTED[asset](keys.get("recipe", ""), keys.get("shard", ""))
            assert metadata["inspector"].url == expected, (asset, partition)


def test_an_adapter_shows_the_pairs_it_learned_least(made, events):
    for asset, partition, metadata in events:
        if asset != "lora_adapter" or partition == "base":
            continue
        (adapter,) = (found for found in made.store.list("adapter") if found.key.partition == f"{partition}|0")
        margins = adapter.table("margins").to_pylist()
        gain = {
            "m3po": lambda row: row["reward_margin"],
            "sft": lambda row: row["chosen_logp_after"] - row["chosen_logp_before"],
        }[partition]
        expected = sorted(margins, key=lambda row: (gain(row), row["pair_id"]))[:10]
        what = {"m3po": "pairs", "sft": "answers"}[partition]
        records = [record.data for record in metadata[f"worst {what}"].records]
        assert [record["pair_id"] for record in records] == [row["pair_id"] for row in expected]
        assert all(record["prompt"] and record["R_w"] and record["steps"] for record in records)
        assert all(("R_l" in record) == (what == "pairs") for record in records)
        assert metadata[f"{what} not learned"].data == {"0": sum(gain(row) <= 0 for row in margins)}
        assert metadata[what].value == len(margins) and ("reference log-probs" in metadata) == (what == "pairs")


def test_figures_beside_the_pictures(made, events):
    """Numbers that Dagster plots over partitions and time, against the tables they are of."""
    with made.instance() as instance:
        heads = read_heads(instance)
    for asset, partition, metadata in events:
        table = made.store.find(asset, partition, heads[asset, partition].fingerprint).table()
        if asset == "candidates":
            prompts = len(set(table["prompt_id"].to_pylist()))
            assert metadata["prompts"].value == prompts
            assert metadata["samples"].value == 8 * prompts
            assert metadata["distinct candidates a prompt"].value == pytest.approx(len(table) / prompts, abs=0.005)
        if asset == "mas_table":
            known = [value for value in table["mas"].to_pylist() if value is not None]
            assert metadata["mean MAS"].value == pytest.approx(sum(known) / len(known), abs=5e-5)
        if asset == "benchmark_scores":
            (row,) = (r for r in table.to_pylist() if (r["benchmark"], r["metric"]) == ("chair", "chair_i"))
            assert metadata["CHAIR-i ↓"].value == row["value"]
        if asset == "preference_pairs":
            assert metadata["pairs"].value == len(table)


def test_checks_carry_their_figures(made):
    graph = made.definitions().resolve_asset_graph()
    with made.instance() as instance:
        for key in graph.asset_check_keys:
            (record, *_) = instance.event_log_storage.get_asset_check_execution_history(key, limit=1)
            evaluation = record.event.asset_check_evaluation
            assert "Found: " in evaluation.description, key
            # Of a judge that is not served, and a small shard, some checks have nothing to look at, and say so.
            nothing = ("no scorer", "not asked", "fewer than", "the study names no known pairs", "not measured")
            # The base model is trained on nothing and compared with nothing.
            nothing += ("nothing was trained", "nothing to compare")
            if not any(one in evaluation.description for one in nothing):
                assert evaluation.metadata, key
