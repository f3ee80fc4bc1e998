"""What a part of the graph owes, and how a failed run is told, on events of real runs."""

import dagster as dg
import pytest

from m3po_dagster.runner import Selection, sentence


@pytest.mark.parametrize(
    ("selection", "owed", "not_owed"),
    [
        (
            Selection(shards=["s0"]),
            ["source_dataset", "candidates[s0]", "mas_table[s0]", "preference_pairs[m3po|s0]"],
            ["candidates[s1]", "selection_sweep", "lora_adapter[m3po]", "benchmark_scores[base]", "leaderboard"],
        ),
        (
            Selection(recipes=["m3po"]),
            ["candidates[s1]", "selection_sweep", "lora_adapter[m3po]", "benchmark_scores[m3po]"],
            ["recipe_config[sft]", "lora_adapter[sft]", "leaderboard"],
        ),
        (Selection(["leaderboard"], recipes=["m3po"]), ["leaderboard"], ["lora_adapter[m3po]"]),
        (Selection(), ["candidates[s1]", "leaderboard", "lora_adapter[sft]"], []),
    ],
)
def test_a_part_of_the_graph_owes_what_it_can_make_by_itself(selection, owed, not_owed):
    def ask(name: str) -> bool:
        asset, _, partition = name.removesuffix("]").partition("[")
        return selection.owes(asset, partition)

    assert [name for name in owed if not ask(name)] == []
    assert [name for name in not_owed if ask(name)] == []


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (dg.Failure("broken[s0]: the first line says what.\nThe second how to mend it."), None),
        (dg.Failure("needs: a colon"), "broken: needs: a colon"),
        (ValueError("first: what\nsecond: hint"), "broken: ValueError: first: what\nsecond: hint"),
        (KeyError("gone"), "broken: KeyError: 'gone'"),
    ],
)
def test_a_failure_is_told_whole_and_without_dagsters_words(raised, told):
    @dg.asset
    def broken():
        raise raised

    with dg.DagsterInstance.ephemeral() as instance:
        result = dg.materialize([broken], instance=instance, raise_on_error=False)
    (event,) = result.get_step_failure_events() if hasattr(result, "get_step_failure_events") else ()
    assert sentence(event) == (told or raised.description)
