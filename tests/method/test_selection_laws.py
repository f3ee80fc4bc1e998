"""Laws of selection: what must not matter does not, and what alpha and delta do is monotone."""

import itertools

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from selection_tables import candidates, random_table

from m3po_dagster.method.selection import SelectionSettings, select_pairs
from m3po_dagster.method.selection_settings import FIELDS_OF_RULE

rules = st.sampled_from(sorted(FIELDS_OF_RULE))
seeds = st.integers(0, 10_000)


def pick(table: pa.Table, rule: str = "m3p", **options) -> list[dict]:
    if rule == "reward_max_min":
        options["reward"] = "style"
    return sorted(
        select_pairs(table, SelectionSettings(rule=rule, **options)).pairs.to_pylist(), key=lambda row: row["prompt_id"]
    )


def small(seed: int) -> pa.Table:
    return random_table(seed, prompts=12, width=7)


# Multiples of 1/8 below 2^20: sums, differences and products with powers of 2 are exact, so a law holds to the bit.
exact = st.integers(-(2**10), 2**10).map(lambda n: n / 8)
logps = st.integers(-(2**10), 0).map(lambda n: n / 8)
prompts_of_figures = st.lists(st.tuples(exact, logps), min_size=2, max_size=9)


@settings(max_examples=20, deadline=None)
@given(seed=seeds, shuffle=seeds, rule=rules)
def test_the_order_of_the_rows_does_not_matter(seed, shuffle, rule):
    table = small(seed)
    order = np.random.default_rng(shuffle).permutation(table.num_rows)
    assert pick(table.take(pa.array(order)), rule) == pick(table, rule)


@settings(max_examples=20, deadline=None)
@given(seed=seeds, rule=rules.filter(lambda rule: rule != "longest"))
def test_an_unscored_candidate_changes_nothing(seed, rule):
    table = small(seed)
    extra = [
        {
            "prompt_id": name,
            "candidate_id": f"{name}:unscored",
            "k": -1,
            "sum_logp": -1.0,
            "n_tokens": 1,
            "text": "New.",
        }
        for name in set(table["prompt_id"].to_pylist())
    ]
    assert pick(pa.concat_tables([pa.Table.from_pylist(extra, schema=table.schema), table]), rule) == pick(table, rule)


@settings(max_examples=20, deadline=None)
@given(seed=seeds, rule=rules.filter(lambda rule: rule != "margin_pairs"), parts=st.integers(1, 4))
def test_shards_do_not_matter(seed, rule, parts):
    table = small(seed)
    shard = pa.array([int(name.split("-")[1]) % parts for name in table["prompt_id"].to_pylist()])
    pieces = [table.filter(pa.compute.equal(shard, part)) for part in range(parts)]
    together = sorted((row for piece in pieces for row in pick(piece, rule)), key=lambda row: row["prompt_id"])
    assert together == pick(table, rule)


@settings(max_examples=50, deadline=None)
@given(figures=prompts_of_figures, scale=st.sampled_from([0.25, 0.5, 2, 8]), shift=exact)
def test_scale_and_shift_of_mas(figures, scale, shift):
    """MAS scaled together with alpha, or shifted, gives the same pair, and S in the new scale."""
    mas, logp = zip(*figures, strict=True)
    before = pick(candidates(list(mas), list(logp)), alpha=0.5, delta=0.125)
    after = pick(candidates([m * scale + shift for m in mas], list(logp)), alpha=0.5 * scale, delta=0.125)
    assert [row["pair_id"] for row in before] == [row["pair_id"] for row in after]
    assert [row["m3p_score"] * scale for row in before] == [row["m3p_score"] for row in after]


@settings(max_examples=50, deadline=None)
@given(figures=prompts_of_figures, shift=st.integers(0, 800).map(lambda n: n / 8))
def test_shift_of_confidence(figures, shift):
    mas, logp = zip(*figures, strict=True)
    before = pick(candidates(list(mas), list(logp)), confidence="sum")
    after = pick(candidates(list(mas), [value - shift for value in logp]), confidence="sum")
    assert [row["pair_id"] for row in before] == [row["pair_id"] for row in after]


@settings(max_examples=50, deadline=None)
@given(figures=prompts_of_figures, delta=st.sampled_from([0.0, 0.125, 1.0]))
def test_more_alpha_never_takes_a_more_penalised_or_a_worse_loser(figures, delta):
    mas, logp = zip(*figures, strict=True)
    table = candidates(list(mas), list(logp))
    chain = [pick(table, alpha=alpha, delta=delta) for alpha in (0, 0.25, 0.5, 1, 4)]
    for less, more in itertools.pairwise(chain):
        for a, b in zip(less, more, strict=True):
            assert max(0, b["logp_gap"] - delta) <= max(0, a["logp_gap"] - delta)
            assert b["mas_gap"] <= a["mas_gap"]
            assert b["chosen_id"] == a["chosen_id"]


@settings(max_examples=50, deadline=None)
@given(figures=prompts_of_figures)
def test_the_ends_of_alpha_and_delta(figures):
    mas, logp = zip(*figures, strict=True)
    table = candidates(list(mas), list(logp))
    largest = max(mas) - min(mas)
    for row in pick(table, alpha=0) + pick(table, alpha=4, delta=1e6):
        assert row["m3p_score"] == row["mas_gap"] == largest


@settings(max_examples=50, deadline=None)
@given(figures=prompts_of_figures, min_gap=st.sampled_from([0.0, 0.125, 3.0]), rule=st.sampled_from(["m3p", "vanilla"]))
def test_a_loser_is_always_worse_by_more_than_min_gap(figures, min_gap, rule):
    mas, logp = zip(*figures, strict=True)
    pairs = pick(candidates(list(mas), list(logp)), rule, min_gap=min_gap)
    assert len(pairs) == (max(mas) - min(mas) > min_gap)
    assert all(row["mas_gap"] > min_gap for row in pairs)


@pytest.mark.parametrize("rule", ["vanilla", "random"])
def test_draws_depend_on_the_seed_and_the_prompt_alone(rule):
    table = random_table(2, prompts=40)
    whole = {row["prompt_id"]: row["pair_id"] for row in pick(table, rule, seed=9)}
    for name in list(whole)[:8]:
        alone = table.filter(pa.compute.equal(table["prompt_id"], name))
        assert [row["pair_id"] for row in pick(alone, rule, seed=9)] == [whole[name]]
