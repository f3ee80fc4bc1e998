"""Which columns of training logs are drawn, logs of before a column came included."""

import pyarrow as pa

from m3po_dagster.assets.adapters import CURVES, training_curves
from m3po_dagster.assets.pictures import curves
from m3po_dagster.storage.tables import TRAINING_LOG

STEPS = [{"step": step, "pairs_seen": 8 * step, "pair_ids": [], "loss": 1 / step} for step in (1, 2)]


def test_a_log_of_before_a_column_came_is_drawn_without_it():
    new = pa.Table.from_pylist(
        [{**step, "learning_rate": 0.1, "grad_norm": 1.0, "reward": 0.5} for step in STEPS], schema=TRAINING_LOG.schema
    )
    old = new.drop_columns(["reward", "kl", "answer_tokens"])
    found = training_curves({"0": new, "1": old})
    assert set(found) == {name.replace("_", " ") for name in CURVES}
    assert found["loss"] == {"seed 0": ([1, 2], [1.0, 0.5]), "seed 1": ([1, 2], [1.0, 0.5])}
    assert found["reward"] == {"seed 0": ([1, 2], [0.5, 0.5])}
    assert curves(training_curves({"1": old}), "step").md_str.startswith("![](data:image/")
