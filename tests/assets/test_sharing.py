"""What an adapter is known by: the content it was trained on and how, whichever recipe selected the pairs."""

from dataclasses import dataclass

import pytest

from m3po_dagster.assets.sharing import place_of, trained_already, training_fingerprint
from m3po_dagster.storage.store import ArtifactStore

SETTINGS = {"training": {"kind": "dpo", "beta": 0.1}, "seed": 0}


def inputs(recipe: str, **versions: str) -> dict[str, dict[str, str]]:
    """References to a recipe's pairs of two shards, and to the base model, as manifests have them."""
    contents = {"s0": "a", "s1": "b", "model": "m"} | versions
    refs = [("preference_pairs", f"{recipe}|{shard}", contents[shard]) for shard in ("s0", "s1")]
    refs.append(("base_model", "", contents["model"]))
    keys = ("asset", "partition", "data_version")
    return {f"{ref[0]}[{ref[1]}]": {**dict(zip(keys, ref, strict=True)), "fingerprint": f"{recipe}"} for ref in refs}


def key(recipe: str = "m3po", settings=SETTINGS, code: str = "1", **versions: str) -> str:
    return training_fingerprint(inputs(recipe, **versions), settings, code)


def test_the_recipes_name_is_no_part_of_a_training():
    assert key("m3po") == key("twin")


@pytest.mark.parametrize(
    "other",
    [
        {"s0": "other"},
        {"s0": "b", "s1": "a"},
        {"model": "other"},
        {"settings": {**SETTINGS, "seed": 1}},
        {"settings": {**SETTINGS, "training": {"kind": "dpo", "beta": 0.2}}},
        {"code": "2"},
    ],
    ids=str,
)
def test_all_else_is(other):
    assert key(**other) != key()


@dataclass
class Named:
    """As much of a step's work as its place needs."""

    study: object
    partition: str


@dataclass
class Firsts:
    firsts: dict[str, str]

    def same_as(self, recipe: str) -> str:
        return self.firsts[recipe]


def test_a_training_lies_under_the_first_name_and_is_found_under_any(tmp_path):
    store, fingerprint = ArtifactStore(tmp_path), key()
    study = Firsts({"ablation": "ablation", "twin": "ablation"})
    places = {name: place_of(Named(study, name), 3) for name in study.firsts}
    assert set(places.values()) == {("adapter", "ablation|3")}
    assert trained_already(store, places["twin"], fingerprint) is None
    with store.open("adapter", "gone|3", fingerprint) as draft:
        (draft.folder() / "weights").write_text("weights")
        draft.commit(code_version="1")
    assert trained_already(store, places["twin"], fingerprint).key.partition == "gone|3"
    assert trained_already(store, places["twin"], key(s0="other")) is None
