"""The grid in one pass equals one selection a point, over one table or many shards."""

import itertools

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from selection_tables import candidates, random_table

from m3po_dagster.method.selection import SWEEP_SCHEMA, SelectionSettings, select_pairs, sweep

ALPHAS = [0.0, 0.1, 0.25, 0.5, 0.75, 1.0]
DELTAS = [0.0, 0.1, 0.2, 0.3, 0.5]


def by_selection(table: pa.Table, alphas: list, deltas: list, settings: SelectionSettings) -> list[dict]:
    """The sweep's rows from one select_pairs a grid point."""
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
                **{name: result.stats[name] for name in SWEEP_SCHEMA.names if name in result.stats},
            }
        )
        known.append(ids)
    return rows


def nearly(row: dict) -> dict:
    """Sums of floats depend on their order; counts and identities must be exact."""
    return {name: pytest.approx(value) if isinstance(value, float) else value for name, value in row.items()}


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    "options",
    [{}, {"confidence": "sum"}, {"allow_bonus": True, "min_gap": 0.25}, {"alpha": 0.3, "delta": 0.7}],
    ids=str,
)
def test_every_point_equals_its_own_selection(seed, options):
    table = random_table(seed, prompts=80)
    settings = SelectionSettings(**options)
    got, expected = sweep(table, ALPHAS, DELTAS, settings), by_selection(table, ALPHAS, DELTAS, settings)
    assert got.schema == SWEEP_SCHEMA and got.num_rows == len(expected)
    for one, other in zip(got.to_pylist(), expected, strict=True):
        assert one == nearly(other)
    assert len(set(got["overlap"].to_pylist())) > 1


def test_a_regular_table_of_continuous_scores_has_distinct_points_but_for_alpha_0():
    """4 of the paper's 24 grid points are one: 21 are distinct."""
    rng = np.random.default_rng(0)
    table = pa.concat_tables(
        candidates(list(rng.random(32)), list(-10 * rng.random(32)), list(rng.integers(5, 20, 32)), prompt=str(n))
        for n in range(200)
    )
    grid = sweep(table, ALPHAS, DELTAS[:4])
    assert grid["identical_to"].to_pylist() == [None, 0, 0, 0] + [None] * 20
    expected = by_selection(table, ALPHAS, DELTAS[:4], SelectionSettings())
    assert grid["overlap"].to_pylist() == [row["overlap"] for row in expected]
    assert grid["n_pairs"].to_pylist() == [200] * 24


def test_shards_add_up():
    table = random_table(4, prompts=60)
    shard = pa.array([int(name.split("-")[1]) % 3 for name in table["prompt_id"].to_pylist()])
    pieces = (table.filter(pc.equal(shard, part)) for part in range(3))
    whole, parts = sweep(table, ALPHAS, DELTAS).to_pylist(), sweep(pieces, ALPHAS, DELTAS).to_pylist()
    for one, other in zip(parts, whole, strict=True):
        assert one == nearly(other)


def test_points_that_differ_only_in_a_late_shard_are_not_called_identical():
    same = candidates([1, 0], [-1, -2], prompt="same")
    apart = candidates([1, 0, 0.75], [-1, -5, -1], prompt="apart")
    assert sweep([same], [0, 1], [0])["identical_to"].to_pylist() == [None, 0]
    assert sweep([same, apart], [0, 1], [0])["identical_to"].to_pylist() == [None, None]


def test_no_rows_and_no_pairs():
    empty = candidates([], [])
    for table in (empty, [], [empty], candidates([1, 1], [-1, -1])):
        (row,) = sweep(table, [0.5], [0.1]).to_pylist()
        assert row["n_pairs"] == 0
        assert row["overlap"] is None and row["mean_mas_gap"] is None
    assert sweep(empty, [], [0.1]).num_rows == 0


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
