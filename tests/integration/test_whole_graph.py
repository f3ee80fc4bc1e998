"""The whole graph through real Dagster on a small study."""

import pyarrow.compute as pc
from dagster._core.definitions.data_version import StaleStatus

from m3po_dagster.current import read_heads
from m3po_dagster.graph import all_parts


def test_everything_is_made_once_and_is_fresh(made):
    parts = list(all_parts(made.load()))
    assert made.events() == dict.fromkeys(parts, 1)
    assert {item.state for item in made.standings()} == {"fresh"}


def test_dagster_says_the_same_of_staleness(made):
    assert set(made.dagster_staleness().values()) == {StaleStatus.FRESH}


def test_a_second_run_does_nothing(copy_of_made):
    assert copy_of_made.run() == []


def test_no_candidate_or_prompt_is_lost_between_the_tables(made):
    with made.instance() as instance:
        heads = read_heads(instance)
    for shard in made.load().shards:
        tables = {
            name: made.store.find(name, shard, heads[name, shard].fingerprint)
            for name in ("filtered_instructions", "candidates", "mas_table", "logprob_table")
        }
        prompts = tables["filtered_instructions"].table()["prompt_id"].to_pylist()
        candidates = tables["candidates"].table()
        assert list(dict.fromkeys(candidates["prompt_id"].to_pylist())) == prompts
        multiplicities = candidates.group_by("prompt_id").aggregate([("multiplicity", "sum")])["multiplicity_sum"]
        assert pc.unique(multiplicities).to_pylist() == [8]
        for name in ("mas_table", "logprob_table"):
            assert tables[name].table()["candidate_id"].equals(candidates["candidate_id"])
        for recipe in ("sft", "m3po"):
            pairs = made.store.find(
                "preference_pairs", f"{recipe}|{shard}", heads["preference_pairs", f"{recipe}|{shard}"].fingerprint
            )
            known = pairs.table()["prompt_id"].to_pylist() + pairs.table("dropped")["item_id"].to_pylist()
            assert sorted(known) == sorted(prompts)


def test_planted_defects_are_dropped_with_their_reason(made):
    with made.instance() as instance:
        heads = read_heads(instance)
    reasons = {}
    for shard in made.load().shards:
        found = made.store.find("filtered_instructions", shard, heads["filtered_instructions", shard].fingerprint)
        for reason in found.table("dropped")["reason"].to_pylist():
            reasons[reason] = reasons.get(reason, 0) + 1
    assert sum(reasons.values()) == 5
    assert set(reasons) == {
        "text-only",
        "image missing",
        "image undecodable",
        "exact duplicate",
        "instruction empty",
    }


def test_every_asset_check_was_evaluated_and_passed(made):
    graph = made.definitions().resolve_asset_graph()
    blocking = {key.name for key in graph.asset_check_keys if graph.get(key).blocking}
    assert blocking == {
        "uncontaminated",
        "prompts_answered",
        "scored",
        "not_inverted",
        "confidence_finite",
        "pairs_well_formed",
        "weights_finite",
        "untrained",
    }
    with made.instance() as instance:
        for key in graph.asset_check_keys:
            records = instance.event_log_storage.get_asset_check_execution_history(key, limit=50)
            passed = [record.event.asset_check_evaluation.passed for record in records]
            assert passed and (all(passed) or not graph.get(key).blocking), key
