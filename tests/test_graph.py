"""The graph table by itself: what is made from what, and what is due."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3po_dagster.graph import STAGES, Head, all_parts, due, inputs_of, made_from, standings
from m3po_dagster.study import load_study

STUDY = load_study(Path(__file__).parents[1] / "studies" / "easy_scenes.yaml")


class KnownIdentities:
    """Identities that a test sets instead of reading files."""

    def __init__(self, **changes: object):
        self.changes = changes

    def __getattr__(self, name):
        return lambda study, *key: {"is": self.changes.get("_".join((name, *key)), 0)}


def make_all(identities, heads, content=lambda part, fingerprint: fingerprint):
    """Makes what is due, round after round, until nothing is; gives the parts made."""
    made = []
    while todo := due(STUDY, identities, heads):
        for part in todo:
            fingerprint = made_from(part, STUDY, identities, heads, found="answers")
            heads[part] = Head(fingerprint, "answers" if STAGES[part[0]].observed else content(part, fingerprint))
            made.append(part)
    return made


def test_inputs_come_before_what_is_made_from_them():
    seen = set()
    for part in all_parts(STUDY):
        assert set(inputs_of(*part, STUDY)) <= seen
        seen.add(part)


def test_shared_dimensions_match_and_others_fan_in():
    assert inputs_of("preference_pairs", "m3po|s1", STUDY) == [
        ("candidates", "s1"),
        ("mas_table", "s1"),
        ("logprob_table", "s1"),
        ("recipe_config", "m3po"),
    ]
    pairs = [part for part in inputs_of("lora_adapter", "sft", STUDY) if part[0] == "preference_pairs"]
    assert pairs == [("preference_pairs", f"sft|{shard}") for shard in STUDY.shards]
    scores = [part for part in inputs_of("leaderboard", "", STUDY) if part[0] == "benchmark_scores"]
    assert scores == [("benchmark_scores", recipe) for recipe in STUDY.recipes]


def test_everything_is_made_once_then_nothing_is_due():
    heads = {}
    made = make_all(KnownIdentities(), heads)
    assert sorted(made) == sorted(all_parts(STUDY))
    assert make_all(KnownIdentities(), heads) == []


@pytest.mark.parametrize(
    ("change", "touched", "untouched"),
    [
        ({"recipe_m3po": 1}, {"preference_pairs", "lora_adapter", "leaderboard"}, {"candidates", "mas_table"}),
        ({"judge": 1}, {"mas_table", "preference_pairs", "selection_sweep"}, {"candidates", "logprob_table"}),
        # Every version is another content here; in a run, filters that drop the same stop it at filtered_instructions.
        ({"benchmarks": 1}, {"benchmark_scores", "leaderboard", "filtered_instructions"}, {"source_dataset"}),
        ({"model": 1}, {"candidates", "mas_table", "lora_adapter"}, {"filtered_instructions"}),
    ],
)
def test_a_change_outside_touches_what_follows_from_it(change, touched, untouched):
    heads = {}
    make_all(KnownIdentities(), heads)
    assets = {part[0] for part in make_all(KnownIdentities(**change), heads)}
    assert touched <= assets and not untouched & assets


def test_the_study_s_name_is_the_report_s_title_and_no_more():
    heads = {}
    make_all(KnownIdentities(), heads)
    renamed = STUDY.model_copy(update={"name": "another"})
    assert due(renamed, KnownIdentities(), heads) == [("leaderboard", "")]


def test_a_recipe_leaves_other_recipes_alone():
    heads = {}
    make_all(KnownIdentities(), heads)
    made = make_all(KnownIdentities(recipe_m3po=1), heads)
    assert {part[1].split("|")[0] for part in made} == {"m3po", ""}


def test_the_same_content_stops_the_cascade():
    heads = {}

    def content(part, fingerprint):
        return "same" if part[0] == "mas_table" else fingerprint

    make_all(KnownIdentities(), heads, content)
    made = make_all(KnownIdentities(judge=1), heads, content)
    assert {part[0] for part in made} == {"judge_identity", "mas_table"}


def test_a_part_waits_while_anything_above_it_is_pending():
    heads = {}
    make_all(KnownIdentities(), heads)
    found = {item.part: item for item in standings(STUDY, KnownIdentities(judge=1), heads)}
    assert found["judge_identity", ""].state == "stale"
    assert found["mas_table", "s0"].state == "pending" and "judge_identity" in found["mas_table", "s0"].why
    assert found["lora_adapter", "m3po"].state == "pending"
    assert found["candidates", "s0"].state == "fresh"


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["judge", "model", "dataset", "recipe_m3po", "recipe_sft"]), st.integers(0, 2)),
        min_size=1,
        max_size=5,
    )
)
def test_any_history_of_changes_ends_where_a_new_start_would(changes):
    heads, state = {}, {}
    for name, value in changes:
        state[name] = value
        make_all(KnownIdentities(**state), heads)
    anew = {}
    make_all(KnownIdentities(**state), anew)
    assert heads == anew


def test_every_input_is_an_asset_of_the_table():
    assert {name for stage in STAGES.values() for name in stage.inputs} <= set(STAGES)
