"""Token log-probs in the tables: as many as tokens, their sum the answer's, recorded and rescored alike."""

import numpy as np
import pytest

from m3po_dagster.current import read_heads
from m3po_dagster.runner import Selection
from m3po_dagster.storage.artifact import Artifact


def tables_of(project, asset: str) -> dict[str, Artifact]:
    with project.instance() as instance:
        heads = read_heads(instance, [asset])
    return {shard: project.store.find(asset, shard, head.fingerprint) for (_, shard), head in heads.items()}


def check(rows: list[dict]) -> None:
    assert rows
    for row in rows:
        logps = np.array(row["token_logps"], dtype=np.float32)
        assert len(logps) == row["n_tokens"] and np.isfinite(logps).all() and (logps <= 0).all()
        assert logps.astype(np.float64).sum() == pytest.approx(row["sum_logp"], rel=1e-12)
        if row["eos_logp"] is not None:
            assert np.float32(row["eos_logp"]) == logps[-1]


def test_every_token_has_its_log_prob(made):
    recorded = tables_of(made, "logprob_table")
    for shard, artifact in tables_of(made, "candidates").items():
        rows = artifact.table().to_pylist()
        check(rows)
        assert [len(row["token_ids"]) for row in rows] == [row["n_tokens"] for row in rows]
        assert artifact.table()["token_logps"].equals(recorded[shard].table()["token_logps"])
        check(recorded[shard].table().to_pylist())


def test_a_scoring_pass_gives_the_same(copy_of_made, small_study):
    recorded = {shard: item.table().to_pylist() for shard, item in tables_of(copy_of_made, "logprob_table").items()}
    copy_of_made.write({**small_study, "confidence": {"source": "rescored"}})
    outcomes = copy_of_made.run(Selection(assets=("logprob_table",)))
    assert [outcome.error for outcome in outcomes if outcome.error] == [] and len(outcomes) == 2
    for shard, artifact in tables_of(copy_of_made, "logprob_table").items():
        rows = artifact.table().to_pylist()
        check(rows)
        for row, before in zip(rows, recorded[shard], strict=True):
            assert row["token_logps"] == pytest.approx(before["token_logps"], abs=1e-4)
            assert row["numerics"] == before["numerics"] == "transformers/float32"


def test_selection_reads_no_token_lists(made, monkeypatch):
    """Most of the tables' bytes are token lists and words, which no rule looks at."""
    from m3po_dagster.assets.pairs import joined

    asked: list[str] = []
    table = Artifact.table

    def watched(self, name: str = "data", columns: list[str] | None = None):
        asked.extend(self.manifest.tables[name].columns if columns is None else columns)
        return table(self, name, columns)

    found = [tables_of(made, name)["s0"] for name in ("candidates", "mas_table", "logprob_table")]
    monkeypatch.setattr(Artifact, "table", watched)
    names = joined(*found, scores=["mas", "clip"]).column_names
    assert set(asked) == {
        "candidate_id", "prompt_id", "k", "text", "finish_reason", "mas", "clip", "sum_logp", "n_tokens",
    }  # fmt: skip
    assert set(names) == set(asked)
