"""Simulated RLHF through Dagster: every scored answer in, an adapter that answers the benchmarks out."""

import dagster as dg
import pytest

from m3po_dagster.current import read_heads
from m3po_dagster.export.made import Made
from m3po_dagster.export.model_card import model_card
from m3po_dagster.lineage.manifests import Manifests
from m3po_dagster.resources.study import StoreResource
from m3po_dagster.runner import Selection

RLHF = {
    "selection": {"rule": "every_answer"},
    "training": {
        "kind": "rlhf",
        "learning_rate": 1e-3,
        "answers": 4,
        "max_new_tokens": 40,
        "answers_at_once": 16,
        "lora": {"r": 4, "alpha": 8},
    },
}


@pytest.mark.slow
def test_a_recipe_of_simulated_rlhf(copy_of_made, small_study):
    """It shares what is sampled and scored with the others: only its own recipe, pairs, adapter and scores are made."""
    project = copy_of_made
    before = project.events()
    project.write({**small_study, "recipes": {**small_study["recipes"], "rlhf": RLHF}})
    outcomes = project.run(Selection(assets=("preference_pairs", "recipe_config", "lora_adapter", "benchmark_scores")))
    assert [outcome.error for outcome in outcomes if outcome.error] == []
    new = {part for part, number in project.events().items() if number != before.get(part, 0)}
    assert {part for part in new if part[1].split("|")[0] != "rlhf"} == set()

    with project.instance() as instance:
        heads = read_heads(instance, ["preference_pairs", "mas_table", "lora_adapter", "benchmark_scores"])
    mine = project.store.find("lora_adapter", "rlhf", heads["lora_adapter", "rlhf"].fingerprint)
    (row,) = mine.table().to_pylist()
    adapter = project.store.find("adapter", "rlhf|0", row["fingerprint"])
    facts = adapter.manifest.metadata
    shards = ("s0", "s1")
    scored, prompts = 0, set()
    for shard in shards:
        mas = project.store.find("mas_table", shard, heads["mas_table", shard].fingerprint).table()
        scored += mas.num_rows - mas["mas"].null_count
        pairs = project.store.find(
            "preference_pairs", f"rlhf|{shard}", heads["preference_pairs", f"rlhf|{shard}"].fingerprint
        ).table()
        prompts |= set(pairs["prompt_id"].to_pylist())
    assert facts["examples"] == scored
    assert facts["reward prompts"] + facts["reward told prompts"] == facts["policy prompts"] == len(prompts)
    log = adapter.table("training_log").to_pylist()
    assert [row["pairs_seen"] for row in log] == [32 * step for step in range(1, len(log) + 1)]
    assert len(log) == -(-len(prompts) // 8)
    assert all(row["reward"] is not None and row["kl"] is not None and row["pair_ids"] == [] for row in log)
    assert adapter.table("margins").num_rows == 0
    checks = mine.manifest.metadata["checks"]
    assert checks["weights_finite"]["passed"] and checks["proxy_reward"]["figures"]["rank_correlation"] <= 1
    scores = project.store.find("benchmark_scores", "rlhf", heads["benchmark_scores", "rlhf"].fingerprint).table()
    assert {"pope", "chair"} <= set(scores["benchmark"].to_pylist())
    assert {item.part[0] for item in project.unsettled()} == {"leaderboard"}
    with project.instance() as instance:
        records = instance.fetch_materializations(dg.AssetKey("lora_adapter"), limit=10).records
    shown = {record.asset_materialization.partition: record.asset_materialization.metadata for record in records}[
        "rlhf"
    ]
    assert shown["scored answers"].value == scored and shown["prompts"].value == len(prompts)
    assert not [name for name in shown if "pair" in name or "margin" in name or "log-prob" in name]
    made = Made(Manifests(project.store), project.load(), StoreResource(root=project.root).identities())
    card = model_card(made, made.adapter("rlhf"), merged=False)
    assert "a proxy reward is fitted to the scores" in card and "teaches the preference" not in card
    assert f"| answers selected | {scored:,} |" in card and "| reward rank correlation | " in card
    assert "pairs" not in card.split("## Data")[1].split("## Training")[0] and "| reference" not in card
