"""What scores took, over a store of a few objects whose seconds, devices and memory are known."""

import hashlib
from dataclasses import replace

import pyarrow as pa
import pytest

from m3po_dagster.evaluation.leaderboard_costs import recipe_table
from m3po_dagster.lineage.costs import costs
from m3po_dagster.lineage.manifests import Manifests
from m3po_dagster.storage.store import ArtifactStore
from m3po_dagster.storage.tables import COSTS, IDENTITY

GPU = {"device": "a GPU", "devices": 1}
TWO = {"device": "a GPU", "devices": 2}


class Store:
    """Commits objects with known seconds; `seconds` of a manifest come from a clock that is set."""

    def __init__(self, root, monkeypatch) -> None:
        self.store, self._clock = ArtifactStore(root), 0.0
        monkeypatch.setattr("m3po_dagster.storage.draft.time.monotonic", lambda: self._clock)

    def add(self, asset, partition, seconds, inputs=(), named=None, **metadata):
        """`named` are further inputs by name."""
        key = hashlib.sha256(f"{asset}|{partition}".encode()).hexdigest()
        table = pa.Table.from_pylist([{"fact": "of", "value": partition}], schema=IDENTITY.schema)
        refs = {
            name: {**one.key._asdict(), "data_version": one.data_version}
            for name, one in ({f"{one.key.asset}[{one.key.partition}]": one for one in inputs} | (named or {})).items()
        }
        with self.store.open(asset, partition, key) as draft:
            self._clock += seconds
            return draft.commit({"data": (table, IDENTITY)}, code_version="1", inputs=refs, metadata=metadata)


@pytest.fixture
def world(tmp_path, monkeypatch):
    """Two shards; base, sft (one seed) and m3po (two), each asked one benchmark; the store and the scores by recipe."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    made = Store(tmp_path / "store", monkeypatch)
    model = made.add("base_model", "", 1)
    data, pairs = [], {}
    for shard in ("s0", "s1"):
        sampled = made.add("candidates", shard, 3600, [model], **TWO, **{"peak memory": 16})
        paid = {"judge": {"cost": 0.5}, "free": {"cost": 0.0}}
        judged = made.add(
            "mas_table", shard, 1800, [sampled], **GPU, asked=paid, priced=["judge"], **{"peak memory": 4}
        )
        inside = made.add("logprob_table", shard, 0, [sampled], **GPU, **{"peak memory": 17})
        data += [sampled]
        for recipe in ("base", "sft", "m3po"):
            pair = made.add("preference_pairs", f"{recipe}|{shard}", 900, [sampled, judged, inside])
            pairs.setdefault(recipe, []).append(pair)
    scores, answers_of_base = {}, None
    for recipe, seeds in {"base": (), "sft": (0,), "m3po": (0, 1)}.items():
        trained = [
            # The second seed in an hour and a half by two processes.
            made.add(
                "adapter", f"{recipe}|{seed}", 7200 - 1800 * seed, [*pairs[recipe], *data], **GPU, processes=1 + seed
            )
            for seed in seeds
        ]
        adapters = made.add("lora_adapter", recipe, 9999, [*pairs[recipe], *trained])
        answers = [
            made.add("benchmark_answers", f"{recipe}|{seed}|pope", 360, [model, *trained[seed : seed + 1]], **GPU)
            for seed in (seeds or (0,))
        ]
        answers_of_base = answers_of_base or answers[0]
        words = made.add(
            "benchmark_judgements", f"{recipe}|0|pope", 36, [answers[0], answers_of_base],
            device="a server", devices=1, **{"peak memory": None},
        )  # fmt: skip
        scores[recipe] = made.add("benchmark_scores", recipe, 5000, [adapters, model, *answers, words])
    return made.store, scores


def found(store, scores):
    table = costs(Manifests(store), scores)
    assert table.schema == COSTS.schema
    return {(row["stage"], row["part"]): row for row in table.to_pylist()}


def test_what_all_share_counts_once_and_by_devices(world):
    rows = found(*world)
    candidates = rows["candidates", ""]
    assert (candidates["device_hours"], candidates["objects"], candidates["recipes"]) == (4.0, 2, 2)
    assert (candidates["recipe"], candidates["device"], candidates["peak_memory"]) == (None, "a GPU", 16)
    assert (rows["mas_table", ""]["device_hours"], rows["mas_table", ""]["money"]) == (1.0, 1.0)
    assert rows["candidates", ""]["money"] is None


def test_a_training_is_a_row_a_seed(world):
    rows = found(*world)
    trained = {part: row["device_hours"] for (stage, part), row in rows.items() if stage == "adapter"}
    assert trained == {"sft|0": 2.0, "m3po|0": 2.0, "m3po|1": 3.0}
    assert (rows["adapter", "m3po|1"]["recipe"], rows["adapter", "m3po|1"]["seed"]) == ("m3po", 1)
    assert rows["adapter", "m3po|1"]["peak_memory"] is None


def test_trainings_and_answers_are_called_as_the_scores_call_them(tmp_path, monkeypatch):
    """Recipes of today over trainings of before: `new` was `old`; `twin` shares one of two."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    made = Store(tmp_path / "store", monkeypatch)
    before = made.add("adapter", "old|0", 3600, **GPU)
    twins = [
        made.add("adapter", f"{name}|{seed}", 7200 + 3600 * seed, **GPU) for seed, name in enumerate(("a", "gone"))
    ]
    kept = {"new": {0: before}, "a": {0: twins[0]}, "twin": {0: twins[0], 1: twins[1]}}
    scores = {}
    for recipe, trained in kept.items():
        named = {f"adapter[{recipe}|{seed}]": one for seed, one in trained.items()}
        adapters = made.add("lora_adapter", recipe, 1, named=named)
        partition = "old|0|pope" if recipe == "new" else f"{recipe}|0|pope"
        answers = made.add("benchmark_answers", partition, 360, [trained[0]], **GPU)
        scores[recipe] = made.add("benchmark_scores", recipe, 1, [adapters, answers])
    rows = found(made.store, scores)
    trained = {part: row for (stage, part), row in rows.items() if stage == "adapter"}
    assert {part: (row["recipe"], row["seed"], row["trained_for"]) for part, row in trained.items()} == {
        "new|0": ("new", 0, ["new|0"]),
        "a|0": ("a", 0, ["a|0", "twin|0"]),
        "twin|1": ("twin", 1, ["twin|1"]),
    }
    assert {part for stage, part in rows if stage == "benchmark_answers"} == {"new", "a", "twin"}
    assert [line[::2] for line in recipe_table(list(rows.values()), list(kept))] == [
        ("new", "1", "– / –"),
        ("a", "2", "– / –"),
        ("twin", "2.5", "– / –"),
    ]


def test_answers_count_for_who_gave_them(world):
    rows = found(*world)
    answered = {part: row["device_hours"] for (stage, part), row in rows.items() if stage == "benchmark_answers"}
    assert answered == pytest.approx({"base": 0.1, "sft": 0.1, "m3po": 0.2})
    assert rows["benchmark_judgements", "sft"]["device"] == "a server"
    assert rows["benchmark_judgements", "sft"]["recipes"] == 1


def test_base_stands_on_no_data_though_it_has_shards_of_pairs(world):
    store, scores = world
    assert {stage for stage, _ in found(store, {"base": scores["base"]})} == {
        "benchmark_answers",
        "benchmark_judgements",
    }


def test_steps_without_a_model_and_what_only_sums_up_are_no_stages(world):
    stages = {stage for stage, _ in found(*world)}
    assert not stages & {"preference_pairs", "lora_adapter", "benchmark_scores", "base_model"}


def test_a_training_that_was_resumed_took_all_its_attempts(world):
    store, scores = world
    manifests = Manifests(store)
    (resumed,) = [one for one in manifests.all("adapter") if one.key.partition == "m3po|1"]
    whole = {**resumed.manifest.metadata, "training seconds": 2 * resumed.manifest.seconds}
    manifests._found[resumed.key] = replace(resumed, manifest=resumed.manifest.model_copy(update={"metadata": whole}))
    rows = {(row["stage"], row["part"]): row for row in costs(manifests, scores).to_pylist()}
    assert rows["adapter", "m3po|1"]["device_hours"] == 6.0


def test_what_the_store_lost_is_counted_and_old_results_have_no_device(world):
    store, scores = world
    manifests = Manifests(store)
    (lost,) = [one for one in manifests.all("adapter") if one.key.partition == "m3po|1"]
    (old,) = [one for one in manifests.all("adapter") if one.key.partition == "sft|0"]
    manifests._found[lost.key] = None
    bare = old.manifest.model_copy(update={"metadata": {}})
    manifests._found[old.key] = replace(old, manifest=bare)
    rows = {(row["stage"], row["part"]): row for row in costs(manifests, scores).to_pylist()}
    assert (rows["adapter", "m3po|1"]["lost"], rows["adapter", "m3po|1"]["device_hours"]) == (1, 0)
    assert (rows["adapter", "sft|0"]["device"], rows["adapter", "sft|0"]["device_hours"]) == ("not recorded", 2.0)
