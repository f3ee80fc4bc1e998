"""What lora_adapter shows of training on pairs, on single answers, and against a reward: none speaks of another's."""

from types import SimpleNamespace

import pytest

from m3po_dagster.assets.learned import from_shards, learned
from m3po_dagster.lineage.manifests import Manifests
from m3po_dagster.lineage.profile import trained_on_rows
from m3po_dagster.storage.store import ArtifactStore
from m3po_dagster.storage.tables import MARGINS
from tests.lineage.lineage_world import Wanted, World, table

REWARD = {
    "policy prompts": 24,
    "reward r2": 0.5,
    "reward rank correlation": 0.7,
    "reward rank correlation low": 0.6,
    "reward rank correlation high": 0.8,
    "reward prompts": 12,
    "reward answers": 45,
    "reward told prompts": 12,
    "reward told answers": 59,
}


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


@pytest.mark.parametrize(("kind", "what", "other"), [("dpo", "pairs", "answers"), ("sft", "answers", "pairs")])
def test_pairs_are_called_pairs_and_answers_answers(tmp_path, kind, what, other):
    world = World(tmp_path / "store")
    made = world.make(Wanted(kind=kind, unlearned=2))
    adapter = made["adapter", "m3po|0"]
    work = SimpleNamespace(store=world.store, log=print)
    shards = trained_on_rows(Manifests(world.store), made["lora_adapter", "m3po"])
    shown = from_shards(shards, kind) | learned(work, {"0": adapter}, 12)
    assert shown[what] == 12 and shown[f"{what} not learned"] == {"0": 2}
    assert len(shown[f"worst {what}"].records) == 10
    assert ("reference log-probs" in shown) == ("reward margins" in shown) == (kind == "dpo")
    columns = {column.name for column in shown[f"trained on {what}"].schema.columns}
    assert {what, f"{what} fingerprint", f"no {what.removesuffix('s')}"} <= columns
    assert all(record.data[what] for record in shown[f"trained on {what}"].records)
    assert not [name for name in [*shown, *columns] if other in name]


def test_simulated_rlhf_shows_its_reward(tmp_path):
    store, trained = ArtifactStore(tmp_path / "store"), {}
    for seed in ("0", "1"):
        with store.open("adapter", f"rlhf|{seed}", seed * 64) as draft:
            trained[seed] = draft.commit(
                {"margins": table([], MARGINS)},
                settings={"training": {"kind": "rlhf"}},
                inputs={},
                code_version="1",
                metadata={**REWARD, "reward r2": 0.5 + int(seed), "reference": "stored"},
            )
    shown = from_shards([], "rlhf") | learned(SimpleNamespace(store=store, log=print), trained, 104)
    assert (shown["scored answers"], shown["prompts"]) == (104, 24)
    rows = [record.data for record in shown["proxy reward"].records]
    assert [row["seed"] for row in rows] == [0, 1] and [row["reward r2"] for row in rows] == [0.5, 1.5]
    assert all(
        row[name] == value for row in rows for name, value in REWARD.items() if name in row and name != "reward r2"
    )
    assert {"reward rank correlation low", "reward told answers"} <= rows[0].keys()
    assert not [name for name in shown if "pair" in name or "margin" in name or "log-prob" in name]
