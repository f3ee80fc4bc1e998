"""The grid in one pass equals one selection a point, over one table or many shards."""

import itertools

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from selection_tables import candidates, random_table

from m3po_dagster.method.selection import (
    NO_PAIR_SCHEMA,
    OVERLAP_SCHEMA,
    SWEEP_SCHEMA,
    SelectionSettings,
    select_pairs,
    sweep,
)
from m3po_dagster.storage.tables import SWEEP, SWEEP_NO_PAIR, SWEEP_OVERLAP

ALPHAS = [0.0, 0.1, 0.25, 0.5, 0.75, 1.0]
DELTAS = [0.0, 0.1, 0.2, 0.3, 0.5]


def by_selection(
    table: pa.Table, alphas: list, deltas: list, settings: SelectionSettings
) -> tuple[list[dict], list[dict], list[dict]]:
    """The sweep's rows, overlaps and reasons, from one select_pairs a grid point."""
    default = select_pairs(table, settings)
    known, rows = [], []
    for alpha, delta in itertools.product(alphas, deltas):
        result = select_pairs(table, settings.model_copy(update={"alpha": alpha, "delta": delta}))
        ids = result.pairs["pair_id"].to_pylist()
        same = sum(a == b for a, b in zip(ids, default.pairs["pair_id"].to_pylist(), strict=True))
        rows.append(
            {
                "alpha": alpha,
                "delta": delta,
                "n_pairs": len(ids),
                "n_no_pair": result.dropped.num_rows,
                "identical_to": known.index(ids) if ids in known else None,
                "overlap": same / len(ids),
                "no_pair_share": result.dropped.num_rows / result.stats["prompts"],
                **{name: result.stats[name] for name in SWEEP_SCHEMA.names if name in result.stats},
            }
        )
        known.append(ids)
    points = list(itertools.product(alphas, deltas))
    overlap = [
        dict(zip(OVERLAP_SCHEMA.names, (*one, *other, len(set(a) & set(b)) / len(a)), strict=True))
        for (one, a), (other, b) in itertools.product(zip(points, known, strict=True), repeat=2)
    ]
    reasons = default.stats["dropped_by_reason"]
    no_pair = [(name, count, count / default.stats["prompts"]) for name, count in reasons.items()]
    return rows, overlap, [dict(zip(NO_PAIR_SCHEMA.names, row, strict=True)) for row in no_pair]


def nearly(row: dict) -> dict:
    """Sums of floats depend on their order; counts and identities must be exact."""
    return {name: pytest.approx(value) if isinstance(value, float) else value for name, value in row.items()}


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"confidence": "sum", "candidates": 6},
        {"allow_bonus": True, "min_gap": 0.25, "min_chosen_mas": 0.75},
        {"alpha": 0.3, "delta": 0.7, "max_length_difference": 1},
        {"score": "style", "score_noise": 0.2},
    ],
    ids=str,
)
def test_every_point_equals_its_own_selection(seed, options):
    table = random_table(seed, prompts=80)
    settings = SelectionSettings(**options)
    got, (rows, overlap, no_pair) = (
        sweep(table, ALPHAS, DELTAS, settings),
        by_selection(table, ALPHAS, DELTAS, settings),
    )
    assert (got.points.schema, got.overlap.schema, got.no_pair.schema) == (SWEEP_SCHEMA, OVERLAP_SCHEMA, NO_PAIR_SCHEMA)
    for one, other in zip(got.points.to_pylist(), rows, strict=True):
        assert one == nearly(other)
    assert len(set(got.points["overlap"].to_pylist())) > 1
    assert got.overlap.to_pylist() == overlap
    assert sorted(got.no_pair.to_pylist(), key=lambda row: row["reason"]) == no_pair != []


def test_a_regular_table_of_continuous_scores_has_distinct_points_but_for_alpha_0():
    """4 of the paper's 24 grid points are one: 21 are distinct."""
    rng = np.random.default_rng(0)
    table = pa.concat_tables(
        candidates(list(rng.random(32)), list(-10 * rng.random(32)), list(rng.integers(5, 20, 32)), prompt=str(n))
        for n in range(200)
    )
    grid = sweep(table, ALPHAS, DELTAS[:4]).points
    assert grid["identical_to"].to_pylist() == [None, 0, 0, 0] + [None] * 20
    expected, _, _ = by_selection(table, ALPHAS, DELTAS[:4], SelectionSettings())
    assert grid["overlap"].to_pylist() == [row["overlap"] for row in expected]
    assert grid["n_pairs"].to_pylist() == [200] * 24


def test_a_front_of_more_than_256_losers_is_told_apart():
    """Places no longer fit a byte: one that wrapped would call the last the first."""
    size = 257
    table = candidates([1.0, *(np.arange(size) / -1000)], [-1.0, *(-2.0 - np.arange(size))])
    result = sweep(table, [0.0, 4.0], [0.0])
    assert [row["overlap"] for row in result.overlap.to_pylist()] == [1.0, 0.0, 0.0, 1.0]
    assert result.points["identical_to"].to_pylist() == [None, None]
    assert [row["mean_mas_gap"] for row in result.points.to_pylist()] == pytest.approx([1.256, 1.0])


def test_schemas_are_the_stores():
    for ours, stored in ((SWEEP_SCHEMA, SWEEP), (OVERLAP_SCHEMA, SWEEP_OVERLAP), (NO_PAIR_SCHEMA, SWEEP_NO_PAIR)):
        assert [(field.name, field.type) for field in ours] == [(field.name, field.type) for field in stored.schema]


def test_shards_add_up():
    table = random_table(4, prompts=60)
    shard = pa.array([int(name.split("-")[1]) % 3 for name in table["prompt_id"].to_pylist()])
    pieces = (table.filter(pc.equal(shard, part)) for part in range(3))
    whole, parts = sweep(table, ALPHAS, DELTAS), sweep(pieces, ALPHAS, DELTAS)
    for one, other in zip(parts.points.to_pylist(), whole.points.to_pylist(), strict=True):
        assert one == nearly(other)
    assert parts.overlap == whole.overlap and parts.no_pair == whole.no_pair


def test_points_that_differ_only_in_a_late_shard_are_not_called_identical():
    same = candidates([1, 0], [-1, -2], prompt="same")
    apart = candidates([1, 0, 0.75], [-1, -5, -1], prompt="apart")
    assert sweep([same], [0, 1], [0]).points["identical_to"].to_pylist() == [None, 0]
    assert sweep([same, apart], [0, 1], [0]).points["identical_to"].to_pylist() == [None, None]


def test_no_rows_and_no_pairs():
    empty = candidates([], [])
    for table in (empty, [], [empty], candidates([1, 1], [-1, -1])):
        result = sweep(table, [0.5], [0.1])
        (row,) = result.points.to_pylist()
        assert row["n_pairs"] == 0
        assert row["overlap"] is None and row["mean_mas_gap"] is None
        assert result.overlap["overlap"].to_pylist() == [None]
        assert sum(result.no_pair["n_prompts"].to_pylist()) == row["n_no_pair"]
    assert sweep(empty, [], [0.1]).points.num_rows == sweep(empty, [], [0.1]).overlap.num_rows == 0


@pytest.mark.parametrize(
    ("alphas", "deltas", "settings", "words"),
    [
        ([-0.1], [0], None, "alpha = -0.1 in the grid"),
        ([0.1], [float("nan")], None, "delta = nan in the grid"),
        ([0.1], [0.1], SelectionSettings(rule="vanilla"), "vanilla has no alpha and delta to sweep"),
    ],
)
def test_a_bad_grid_is_refused(alphas, deltas, settings, words):
    with pytest.raises(ValueError, match=words):
        sweep(candidates([1, 0], [-1, -1]), alphas, deltas, settings)
