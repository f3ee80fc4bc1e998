"""`m3po pairs unlearned`, and the same question asked of the Parquet files in SQL."""

import json
import re
from pathlib import Path

import duckdb
import pytest
from typer.testing import CliRunner

from m3po_dagster.cli.main import app
from tests.lineage.lineage_world import Wanted, World

DOCS = Path(__file__).parents[2] / "docs" / "training-runs.md"
UNLEARNED = 3


@pytest.fixture
def world(tmp_path, monkeypatch) -> World:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "no home"))
    return World(tmp_path / "store")


def call(world, *arguments: str, code: int = 0):
    result = CliRunner().invoke(app, ["pairs", "unlearned", *arguments, "--store", str(world.store.root)])
    assert result.exit_code == code, result.output
    return result


def test_the_worst_come_first_with_texts_and_trajectory(world):
    made = world.make(Wanted(seeds=(0, 1), epochs=2, unlearned=UNLEARNED))
    answer = json.loads(call(world, "m3po", "--json", "--limit", "2").stdout)
    margins = made["adapter", "m3po|0"].table("margins").to_pylist()
    assert (answer["seed"], answer["pairs"], answer["not_learned"]) == (0, len(margins), UNLEARNED)
    assert [row["margin"]["reward_margin"] for row in answer["shown"]] == [-3.0, -2.0]
    assert [row["pair_id"] for row in answer["shown"]] == [row["pair_id"] for row in margins[:2]]
    pairs = {
        row["pair_id"]: row
        for (asset, _), artifact in made.items()
        if asset == "preference_pairs"
        for row in artifact.table().to_pylist()
    }
    steps = made["adapter", "m3po|0"].table("training_log").to_pylist()
    for row in answer["shown"]:
        pair = pairs[row["pair_id"]]
        assert re.fullmatch(r"Question \d+\?", row["question"])
        for side in ("chosen", "rejected"):
            assert row[f"{side}_text"] == f"Answer {pair[f'{side}_id'].split(':')[1]} of model one."
        assert [seen["step"] for seen in row["trajectory"]] == [
            step["step"] for step in steps if row["pair_id"] in step["pair_ids"]
        ]


def test_in_words(world):
    world.make(Wanted(seeds=(0, 1), unlearned=UNLEARNED))
    text = call(world, "m3po", "--seed", "1").stdout
    assert "seed          1 of 0, 1\n" in text
    assert re.search(r"not learned   3 of \d+ pairs \(\d+\.\d%\), 3 shown\n", text)
    for line in (
        "  margin          0.0000 -> -3.0000",
        "  loss            0.7000 -> 0.8000",
        "  chosen log P    -1.0000 -> -0.5000",
        "  step 1          loss 0.7000, margin 0.0000",
    ):
        assert f"{line}\n" in text
    assert re.search(r"^  rejected log P  -?\d+\.\d{4} -> -?\d+\.\d{4}$", text, re.MULTILINE)


def test_what_has_no_answer(world):
    world.make(Wanted())
    assert "has no adapter of seed 7: there are 0" in call(world, "m3po", "--seed", "7", code=1).stderr
    assert "no adapter" in call(world, "nothing", code=1).stderr
    assert json.loads(call(world, "m3po", "--json").stdout)["shown"] == []


def test_simulated_rlhf_has_no_pairs_to_learn(world):
    world.make(Wanted(kind="rlhf"))
    for name in ("m3po", "m3po|0"):
        refused = call(world, name, code=1)
        assert "trained against a proxy reward, on no pairs" in refused.stderr and refused.stdout == ""


def test_the_documented_query_gives_the_same_pairs(world):
    made = world.make(Wanted(unlearned=UNLEARNED))
    (query,) = re.findall(r"```sql\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert "'.m3po/store/" in query
    rows = duckdb.sql(query.replace("'.m3po/store/", f"'{world.store.root}/")).to_arrow_table().to_pylist()
    margins = made["adapter", "m3po|0"].table("margins").to_pylist()
    assert [row["pair_id"] for row in rows] == [row["pair_id"] for row in margins[:UNLEARNED]]
    assert [row["reward_margin"] for row in rows] == [-3.0, -2.0, -1.0]
    assert all(row["steps"] and row["losses"] == [0.7] * len(row["steps"]) for row in rows)
