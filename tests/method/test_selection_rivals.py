"""Sweet spot, margin pairs, longest, every answer; other scores, noise, fewer samples, losers of like length."""

import collections
import hashlib
import itertools
import statistics

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import rival_oracle
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.special import ndtri
from selection_oracle import oracle_pairs
from selection_tables import candidates, random_table

from m3po_dagster.method.selection import ScoreTableError, SelectionSettings, select_pairs
from m3po_dagster.method.selection_noise import gaussian_noise
from m3po_dagster.method.selection_settings import FIELDS_OF_RULE
from m3po_dagster.storage.fingerprint import canonical_json

SEEDS = range(3)
CUTS = [{}, {"candidates": 5}, {"score": "style"}, {"score": "style", "candidates": 7}]


def pairs_of(table: pa.Table, **options) -> list[dict]:
    """Rows in the order of the prompts' names; those of a prompt stay in their order."""
    rows = select_pairs(table, SelectionSettings(**options)).pairs.to_pylist()
    return sorted(rows, key=lambda row: row["prompt_id"])


def ids(rows: list[dict]) -> list[tuple]:
    return [(row["prompt_id"], row["chosen_id"], row["rejected_id"]) for row in rows]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("rule", "options", "oracle"),
    [
        ("sweet_spot", {}, {"sweet_spot": True}),
        ("sweet_spot", {"min_gap": 0.25}, {"sweet_spot": True, "min_gap": 0.25}),
        ("sweet_spot", {"confidence": "sum"}, {"sweet_spot": True, "confidence": "sum"}),
        ("sweet_spot", {"max_length_difference": 1}, {"sweet_spot": True, "max_length": 1}),
        ("sweet_spot", {"score": "style", "candidates": 8}, {"sweet_spot": True, "score": "style", "candidates": 8}),
        ("longest", {}, {"score": "n_tokens", "alpha": 0.0}),
        ("longest", {"candidates": 4}, {"score": "n_tokens", "alpha": 0.0, "candidates": 4}),
        ("m3p", {"max_length_difference": 0}, {"max_length": 0}),
        ("m3p", {"max_length_difference": 1, "min_gap": 0.25}, {"max_length": 1, "min_gap": 0.25}),
        ("m3p", {"candidates": 4}, {"candidates": 4}),
        ("m3p", {"score": "style", "alpha": 1.0}, {"score": "style", "alpha": 1.0}),
    ],
    ids=str,
)  # fmt: skip
def test_one_pair_a_prompt_equals_the_oracle(seed, rule, options, oracle):
    table = random_table(seed, prompts=100)
    expected = oracle_pairs(table, **{"alpha": 0.5, "delta": 0.1} | oracle)
    assert len(expected) >= 10
    got = pairs_of(table, rule=rule, **options)
    assert ids(got) == [row[:3] for row in expected]
    if rule == "m3p":
        assert [row["m3p_score"] for row in got] == [row[3] for row in expected]
    else:
        assert all(row["m3p_score"] is None for row in got)
    for row, (*_, logp_gap, ref_chosen, ref_rejected) in zip(got, expected, strict=True):
        assert (row["logp_gap"], row["ref_chosen_logp"], row["ref_rejected_logp"]) == (
            logp_gap,
            ref_chosen,
            ref_rejected,
        )


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "options",
    [{}, {"min_gap": 0.25, "max_pairs": 1}, {"max_pairs": 3, "seed": 7, "min_chosen_mas": 0.75}, {"max_pairs": 500}]
    + [cut | {"max_pairs": 4} for cut in CUTS[1:]],
    ids=str,
)
def test_margin_pairs_equal_the_oracle(seed, options):
    table = random_table(seed, prompts=100)
    names = {"min_chosen_mas": "min_chosen"}
    expected = rival_oracle.margin_pairs(
        table.to_pylist(), **{names.get(name, name): value for name, value in options.items()}
    )
    assert len(expected) >= 10
    assert ids(pairs_of(table, rule="margin_pairs", **options)) == expected


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("options", CUTS, ids=str)
def test_every_answer_equals_the_oracle(seed, options):
    table = random_table(seed)
    rows = pairs_of(table, rule="every_answer", **options)
    got = [(row["prompt_id"], row["chosen_id"], row["chosen_mas"]) for row in rows]
    assert got == rival_oracle.every_answer(table.to_pylist(), **options)
    assert all(row[name] is None for row in rows for name in ("rejected_id", "mas_gap", "ref_rejected_logp"))
    assert len({row["pair_id"] for row in rows}) == len(rows)


def test_worked_sweet_spot():
    """One answer lies 5.6 standard deviations below the mean: too far for the sweet spot, and what alpha = 0 takes."""
    scores = [0.75, 0.25] * 16
    (pair,) = pairs_of(candidates(scores, [-1.0] * 32), rule="sweet_spot")
    assert (pair["chosen_id"], pair["rejected_id"], pair["mas_gap"]) == ("p:0", "p:1", 0.5)
    lone = candidates([*scores, -10.0], [-1.0] * 33)
    (pair,) = pairs_of(lone, rule="sweet_spot")
    assert (pair["rejected_id"], pair["mas_gap"]) == ("p:1", 0.5)
    (worst,) = pairs_of(lone, rule="m3p", alpha=0)
    assert worst["rejected_id"] == "p:32"


def test_longest_needs_no_mas_and_never_prefers_a_cut_answer():
    table = candidates([None, 1.0, 0.0, 0.5], [-1.0] * 4, [9, 4, 2, 30], finish_reason=["stop", "stop", None, "length"])
    (pair,) = pairs_of(table, rule="longest")
    assert (pair["chosen_id"], pair["rejected_id"]) == ("p:0", "p:2")
    assert pair["chosen_mas"] is None and pair["mas_gap"] is None
    same = select_pairs(candidates([1, 0], [-1, -1], [3, 3]), SelectionSettings(rule="longest")).dropped.to_pylist()
    assert [row["reason"] for row in same] == ["no_loser_above_min_gap"]


def test_a_loser_of_another_length_has_a_reason_of_its_own():
    table = candidates([1, 0, 0.5], [-1, -1, -1], [5, 1, 9])
    result = select_pairs(table, SelectionSettings(max_length_difference=3))
    assert result.dropped["reason"].to_pylist() == ["no_loser_of_like_length"]
    assert result.dropped["detail"].to_pylist() == ["none has 5 tokens, as the chosen one, give or take 3"]
    assert ids(pairs_of(table, max_length_difference=4)) == [("p", "p:0", "p:1")]


def test_margin_pairs_that_all_favour_the_longer_answer_are_left_out_with_a_reason():
    """Two prompts of one kind against one of the other: one prompt too many, and it is said of which kind."""
    table = pa.concat_tables(
        candidates([1, 0], [-1, -1], lengths, prompt=name)
        for name, lengths in (("a", [5, 2]), ("b", [7, 3]), ("c", [2, 4]), ("even", [3, 3]))
    )
    result = select_pairs(table, SelectionSettings(rule="margin_pairs"))
    kept = result.pairs["prompt_id"].to_pylist()
    assert len(kept) == 3 and kept[-2:] == ["c", "even"]
    (lost,) = result.dropped.to_pylist()
    assert lost["reason"] == "left_out_for_length_balance" and "longer one in all 1" in lost["detail"]
    assert {lost["prompt_id"], kept[0]} == {"a", "b"}
    assert result.stats["dropped_by_reason"] == {"left_out_for_length_balance": 1}


seeds = st.integers(0, 10_000)


@settings(max_examples=25, deadline=None)
@given(seed=seeds, max_pairs=st.integers(1, 6), draw=st.integers(0, 5), min_gap=st.sampled_from([0.0, 0.25, 0.5]))
def test_laws_of_margin_pairs(seed, max_pairs, draw, min_gap):
    table = random_table(seed, prompts=12, width=7)
    rows = {row["candidate_id"]: row for row in table.to_pylist()}
    options = {"rule": "margin_pairs", "max_pairs": max_pairs, "seed": draw, "min_gap": min_gap}
    result = select_pairs(table, SelectionSettings(**options))
    pairs = result.pairs.to_pylist()
    longer = [rows[pair["chosen_id"]]["n_tokens"] - rows[pair["rejected_id"]]["n_tokens"] for pair in pairs]
    assert sum(value > 0 for value in longer) == sum(value < 0 for value in longer)
    assert all(pair["mas_gap"] > min_gap for pair in pairs)
    counts = collections.Counter(pair["prompt_id"] for pair in pairs)
    assert max(counts.values(), default=0) <= max_pairs
    assert set(counts).isdisjoint(result.dropped["prompt_id"].to_pylist())
    assert len(counts) + result.dropped.num_rows == len(set(table["prompt_id"].to_pylist()))
    # Prompts stand together, each with its widest gap first.
    order = [pair["prompt_id"] for pair in pairs]
    assert order == [name for name in dict.fromkeys(order) for _ in range(counts[name])]
    for one, other in itertools.pairwise(pairs):
        assert one["prompt_id"] != other["prompt_id"] or one["mas_gap"] >= other["mas_gap"]


def test_the_draw_of_margin_pairs_is_that_of_the_seed():
    table = random_table(3, prompts=80)
    drawn = [ids(pairs_of(table, rule="margin_pairs", seed=seed)) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


@settings(max_examples=25, deadline=None)
@given(
    seed=seeds,
    cut=st.integers(1, 8),
    rule=st.sampled_from(["m3p", "vanilla", "margin_pairs", "every_answer", "longest"]),
)
def test_fewer_candidates_is_a_smaller_table(seed, cut, rule):
    """With or without k, whose place the order of the rows takes."""
    table = random_table(seed, prompts=10, width=8)
    small = table.filter(pc.less(table["k"], cut))
    assert pairs_of(table, rule=rule, candidates=cut) == pairs_of(small, rule=rule)
    bare = table.sort_by([("prompt_id", "ascending"), ("k", "ascending")]).drop(["k"])
    assert pairs_of(bare, rule=rule, candidates=cut) == pairs_of(small, rule=rule)


def test_what_lies_beyond_the_candidates_is_counted_and_explained():
    result = select_pairs(random_table(0, prompts=20, width=6), SelectionSettings(candidates=2))
    assert result.stats["left_out"] == sum(k >= 2 for k in random_table(0, prompts=20, width=6)["k"].to_pylist()) > 0
    late = candidates([1, 0], [-1, -1], k=[4, 5])
    (dropped,) = select_pairs(late, SelectionSettings(candidates=4)).dropped.to_pylist()
    assert dropped["reason"] == "no_scored_candidate" and "k below 4" in dropped["detail"]


@pytest.mark.parametrize(
    "rule", ["m3p", "flipped", "sweet_spot", "vanilla", "random", "margin_pairs", "best_only", "every_answer"]
)
def test_a_noisy_judge_is_the_judge_with_that_noise(rule):
    """Selecting with noise equals selecting from scores that already hold it, in every column of every pair."""
    table = random_table(4, prompts=80)
    noise = [0.3 * value for value in expected_noise(table["candidate_id"].to_pylist(), seed=5)]
    mas = [None if m is None else m + n for m, n in zip(table["mas"].to_pylist(), noise, strict=True)]
    noisy = table.set_column(table.column_names.index("mas"), "mas", pa.array(mas, pa.float64()))
    got = pairs_of(table, rule=rule, score_noise=0.3, noise_seed=5)
    wanted = pairs_of(noisy, rule=rule)
    assert ids(got) == ids(wanted) != ids(pairs_of(table, rule=rule))
    for one, other in zip(got, wanted, strict=True):
        assert one == {name: pytest.approx(v) if isinstance(v, float) else v for name, v in other.items()}


def expected_noise(names: list[str], seed: int) -> list[float]:
    """By another route: SciPy's quantile function of the same bits."""
    bits = [int(hashlib.sha256(f"{seed}:{name}".encode()).hexdigest()[:13], 16) for name in names]
    return [float(ndtri((number + 0.5) / 2**52)) for number in bits]


def test_noise_is_gaussian_and_belongs_to_the_candidate():
    names = [f"prompt-{n}:{k}" for n in range(2500) for k in range(8)]
    noise = gaussian_noise(pa.chunked_array([names]), 0)
    assert noise == pytest.approx(expected_noise(names, 0), abs=1e-9)
    assert abs(statistics.fmean(noise)) < 0.03 and abs(statistics.stdev(noise) - 1) < 0.03
    assert np.abs(np.corrcoef(noise, gaussian_noise(pa.chunked_array([names]), 1))[0, 1]) < 0.03
    assert gaussian_noise(pa.chunked_array([names[7:9][::-1]]), 0).tolist() == [noise[8], noise[7]]
    quantiles = statistics.quantiles(noise, n=20)
    assert quantiles == pytest.approx([statistics.NormalDist().inv_cdf(n / 20) for n in range(1, 20)], abs=0.05)


def test_noise_needs_ids_and_leaves_the_unscored_unscored():
    table = candidates([1, None, 0.5], [-1, -1, -1])
    assert "p:1" not in str(pairs_of(table, rule="every_answer", score_noise=5.0))
    with pytest.raises(ScoreTableError, match="column candidate_id is missing"):
        select_pairs(table.drop(["candidate_id"]), SelectionSettings(score_noise=1.0))


def test_another_score_stands_for_mas_in_every_figure():
    table = candidates([0.1, 0.9], [-1, -2], clip=[3.0, 1.0])
    (pair,) = pairs_of(table, score="clip")
    assert (pair["chosen_id"], pair["chosen_mas"], pair["mas_gap"]) == ("p:0", 3.0, 2.0)
    with pytest.raises(ScoreTableError, match="column other is missing"):
        pairs_of(table, score="other")


@pytest.mark.parametrize(
    ("given_", "words"),
    [
        ({"noise_seed": 1}, "noise_seed does nothing without score_noise"),
        ({"rule": "longest", "min_gap": 0.1}, "longest does not use min_gap"),
        ({"rule": "every_answer", "seed": 1}, "every_answer does not use seed"),
        ({"rule": "vanilla", "max_pairs": 3}, "vanilla does not use max_pairs"),
        ({"rule": "reward_max_min", "reward": "clip", "score": "clip"}, "reward_max_min does not use score"),
        ({"candidates": 0}, "greater than or equal to 1"),
        ({"max_length_difference": -1}, "greater than or equal to 0"),
        ({"score_noise": float("inf")}, "finite"),
    ],
)
def test_settings_refuse_what_has_no_effect(given_, words):
    with pytest.raises(ValidationError, match=words):
        SelectionSettings(**given_)


OLD_HASHES = {
    "m3p": "912e1f8c9042f7cd",
    "flipped": "5f9efd44239eb57d",
    "vanilla": "2dd4c7e6afd4d431",
    "random": "f38ce9c28acc296c",
    "reward_max_min": "fc5bd7f75aea62c8",
    "best_only": "9e8d5534e5416bb3",
}
"""Recorded before there were other scores, noise, candidates and max_length_difference."""


@pytest.mark.parametrize("rule", OLD_HASHES)
def test_a_recipe_that_names_none_of_the_later_fields_has_the_hash_it_had(rule):
    """A changed dump would train every recipe again that is there already."""
    later = {name: SelectionSettings.model_fields[name].default for name in ("candidates", "score", "score_noise")}
    later = {name: value for name, value in later.items() if name in FIELDS_OF_RULE[rule]}
    reward = {"reward": "clip"} if rule == "reward_max_min" else {}
    dumped = SelectionSettings(rule=rule, **reward, **later).model_dump(mode="json")
    assert hashlib.sha256(canonical_json(dumped).encode()).hexdigest()[:16] == OLD_HASHES[rule]


def test_a_later_field_that_is_named_is_dumped():
    later = {"candidates": 8, "max_length_difference": 0, "score_noise": 0.5, "score": "clip"}
    dumped = SelectionSettings(**later).model_dump()
    assert later.items() <= dumped.items() and "noise_seed" not in dumped
    assert SelectionSettings(**dumped).model_dump() == dumped
