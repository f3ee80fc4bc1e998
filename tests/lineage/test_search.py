"""Where a pair, a prompt or an image went, against SQL over the store's files."""

from collections import Counter

import pytest

from m3po_dagster.lineage import render
from m3po_dagster.lineage.manifests import Manifests
from m3po_dagster.lineage.search import find_image, find_pair
from m3po_dagster.storage.artifact import Artifact
from m3po_dagster.storage.errors import StoreError
from tests.lineage.lineage_oracle import Oracle
from tests.lineage.lineage_world import DROPPED, PAIRS, digest, table


def first_pair(made, part=("preference_pairs", "m3po|s0")) -> dict:
    return made[part].table().to_pylist()[0]


def check_trainings(world, found) -> None:
    """Steps, weight and margin of every training as SQL says them; and no adapter is forgotten."""
    oracle = Oracle(world.store.root)
    for item in found.selected:
        pair_id = item.row["pair_id"]
        for training in item.trainings:
            steps, total = oracle.exposures(training.fingerprint, pair_id)
            assert (list(training.steps), training.seen_in_all) == (steps, total) and steps
            assert training.share == len(steps) / total
            assert training.margin["reward_margin"] == oracle.margin(training.fingerprint, pair_id)
        adapters = {
            adapter.fingerprint
            for adapter in world.store.list("adapter")
            for _, pairs in oracle.inputs("adapter", adapter.fingerprint, "preference_pairs")
            if pairs in item.pairs
        }
        assert {training.fingerprint for training in item.trainings} == adapters


def test_a_pair_is_followed_to_every_recipe_and_adapter(world, wanted):
    made = world.make(wanted.but(recipes={"m3po": 0.5, "twin": 0.5, "other": 9.0}, seeds=(0, 1), epochs=2))
    row = first_pair(made)
    found = find_pair(Manifests(world.store), row["pair_id"][:10].upper())
    assert (found.kind, found.id) == ("pair", row["pair_id"])
    pairs = {fingerprint for item in found.selected for fingerprint in item.pairs}
    assert pairs == Oracle(world.store.root).holders("pair_id", row["pair_id"])
    assert {"m3po", "twin"} <= {item.recipe for item in found.selected}
    for item in found.selected:
        assert item.row == row and item.selection["alpha"] == {"other": 9.0}.get(item.recipe, 0.5)
        assert [training.seed for training in item.trainings] == [0, 1]
        assert all(len(training.steps) == 2 for training in item.trainings)
        assert item.judge == made["judge_identity", ""].data_version
        number = row["chosen_id"].split(":")[1]
        assert item.chosen_text == f"Answer {number} of model one."
        assert item.chosen_mas - item.rejected_mas == pytest.approx(row["mas_gap"])
    assert [prompt.row["prompt_id"] for prompt in found.prompts] == [row["prompt_id"]]
    check_trainings(world, found)


def test_a_prompt_is_found_by_its_id_with_all_its_pairs_or_the_reason_of_none(world, wanted):
    made = world.make(wanted.but(prompts=30, recipes={"m3po": 0.5, "other": 9.0}))
    row = first_pair(made)
    found = find_pair(Manifests(world.store), row["prompt_id"])
    assert found.kind == "prompt" and {item.recipe for item in found.selected} == {"m3po", "other"}
    assert found.without_pair == ()
    check_trainings(world, found)
    dropped = made["preference_pairs", "m3po|s0"].table("dropped")["item_id"].to_pylist()
    found = find_pair(Manifests(world.store), dropped[0][:8])
    assert found.selected == () and len(found.prompts) == 1
    assert {(item.partition, item.reason) for item in found.without_pair} == {
        ("m3po|s0", "one_distinct_candidate"),
        ("other|s0", "one_distinct_candidate"),
    }


def test_an_image_is_followed_through_all_its_prompts(world, wanted):
    made = world.make(wanted.but(recipes={"m3po": 0.5, "other": 9.0}))
    sha256 = digest("image", "scenes", 0)
    found = find_image(Manifests(world.store), sha256[:9])
    assert (found.kind, found.id) == ("image", sha256)
    prompts = {digest("prompt", "scenes", n)[:32] for n in (0, 1)}
    assert {prompt.row["prompt_id"] for prompt in found.prompts} == prompts
    oracle = Oracle(world.store.root)
    holders = {name for prompt in prompts for name in oracle.holders("prompt_id", prompt)}
    assert {fingerprint for item in found.selected for fingerprint in item.pairs} == holders
    check_trainings(world, found)
    assert made["lora_adapter", "m3po"].fingerprint in {
        name for item in found.selected for training in item.trainings for name in training.recipe_adapters
    }


def dropped(artifact) -> bool:
    return artifact.table("dropped").num_rows > 0


def test_an_image_that_gave_no_prompt_says_why(world, wanted):
    made = world.make(wanted)
    world.make(wanted.but(dataset="streets"))
    found = find_image(Manifests(world.store), digest("image", "scenes", 6))
    assert found.prompts == found.selected == ()
    (shard,) = [key for (asset, key), one in made.items() if asset == "filtered_instructions" and dropped(one)]
    assert [(item.item, item.reason, item.partition) for item in found.without_pair] == [
        ("scenes#12", "exact duplicate", shard)
    ]


def test_a_re_run_and_a_new_judge_keep_the_old_answer_beside_the_new(world, wanted):
    wanted = wanted.but(prompts=24)
    first = world.make(wanted)
    second = world.make(wanted.but(judge="lenient"))
    row = first_pair(first)
    found = find_pair(Manifests(world.store), row["prompt_id"])
    versions = {item.pairs: item for item in found.selected}
    old = versions[(first["preference_pairs", "m3po|s0"].fingerprint,)]
    assert old.judge == first["judge_identity", ""].data_version and old.row == row
    assert [training.fingerprint for training in old.trainings] == [first["adapter", "m3po|0"].fingerprint]
    for item in found.selected:
        if item is not old:
            assert item.judge == second["judge_identity", ""].data_version
            assert [training.fingerprint for training in item.trainings] == [second["adapter", "m3po|0"].fingerprint]
    assert len(found.selected) + len(found.without_pair) == 2
    check_trainings(world, found)


def test_pairs_made_again_with_the_same_content_are_one_version(world, wanted):
    first = world.make(wanted)
    second = world.make(wanted.but(seeds=(0, 1)))
    part = ("preference_pairs", "m3po|s0")
    assert first[part].key != second[part].key and first[part].data_version == second[part].data_version
    (item,) = find_pair(Manifests(world.store), first_pair(first)["pair_id"]).selected
    assert set(item.pairs) == {first[part].fingerprint, second[part].fingerprint}
    assert [training.seed for training in item.trainings] == [0, 1]
    both = {first["lora_adapter", "m3po"].fingerprint, second["lora_adapter", "m3po"].fingerprint}
    assert set(item.trainings[0].recipe_adapters) == both
    assert set(item.trainings[1].recipe_adapters) == {second["lora_adapter", "m3po"].fingerprint}


def test_the_same_pair_id_of_two_models_shows_both_texts(world, wanted):
    first = world.make(wanted)
    world.make(wanted.but(model="two"))
    found = find_pair(Manifests(world.store), first_pair(first)["pair_id"])
    assert {item.chosen_text.split("model ")[1] for item in found.selected} == {"one.", "two."}
    assert [len(item.trainings) for item in found.selected] == [1, 1]


def test_collecting_garbage_leaves_the_answer_of_every_adapter(world, wanted):
    made = world.make(wanted)
    pair_id = first_pair(made)["pair_id"]
    before = find_pair(Manifests(world.store), pair_id)
    untrained = world.make(wanted.but(judge="lenient"))
    for asset in ("adapter", "lora_adapter"):
        for part, artifact in untrained.items():
            if part[0] == asset:
                (artifact.folder / "manifest.json").unlink()
    assert world.store.gc(set(), dry_run=False, older_than=0)
    assert find_pair(Manifests(world.store), pair_id) == before


def test_adapters_whose_pairs_are_lost_are_named_as_not_searched(world, wanted):
    made = world.make(wanted)
    pair_id = first_pair(made)["pair_id"]
    (made["preference_pairs", "m3po|s1"].folder / "manifest.json").unlink()
    found = find_pair(Manifests(world.store), pair_id)
    assert len(found.selected[0].trainings) == 1 and found.unsearched == (str(made["adapter", "m3po|0"].key),)


def test_texts_are_read_only_of_the_shard_that_holds_the_pair(world, wanted, monkeypatch):
    made = world.make(wanted.but(prompts=24, shards=4, recipes={"m3po": 0.5, "other": 9.0}))
    read: list[tuple[str, str, str]] = []
    looked_at: Counter[tuple] = Counter()
    whole_table, store = Artifact.table, type(world.store)
    find, listed = store.find, store.list

    def reading(artifact, name="data", columns=None):
        names = columns or artifact.manifest.tables[name].columns
        read.extend((artifact.key.asset, artifact.key.partition, column) for column in names)
        return whole_table(artifact, name, columns)

    monkeypatch.setattr(Artifact, "table", reading)
    monkeypatch.setattr(store, "find", lambda self, *key: (looked_at.update([key]), find(self, *key))[1])
    monkeypatch.setattr(store, "list", lambda self, asset: (looked_at.update([asset]), listed(self, asset))[1])
    pair_id = whole_table(made["preference_pairs", "m3po|s1"])["pair_id"][0].as_py()
    for search, digits in ((find_pair, pair_id), (find_image, digest("image", "scenes", 1))):
        assert search(Manifests(world.store), digits).selected
        assert {partition for _, partition, column in read if column in ("text", "messages", "mas")} == {"s1"}
        assert not any(column == "token_ids" for _, _, column in read)
        assert {partition for _, partition, column in read if column == "m3p_score"} <= {"m3po|s1", "other|s1"}
        assert set(looked_at.values()) == {1}
        read.clear()
        looked_at.clear()


@pytest.mark.parametrize("digits", ["abcd", "not hex", "", "m3po|0", "../../x"])
def test_what_is_no_id_is_refused(world, wanted, digits):
    world.make(wanted)
    for search in (find_pair, find_image):
        with pytest.raises(StoreError, match="at least 6 hex digits"):
            search(Manifests(world.store), digits)


def test_unknown_and_ambiguous_ids_are_errors(world, wanted):
    made = world.make(wanted)
    manifests = Manifests(world.store)
    for search in (find_pair, find_image):
        with pytest.raises(StoreError, match="begins with"):
            search(manifests, "0123456789")
    row = first_pair(made)
    twin = {**row, "pair_id": row["pair_id"][:8] + "0" * 56}
    with world.store.open("preference_pairs", "twin|s0", digest("twin")) as draft:
        draft.commit({"data": table([twin], PAIRS), "dropped": table([], DROPPED)}, code_version="1")
    with pytest.raises(StoreError, match=rf"fits 2 pair or prompt ids: .*{row['pair_id'][:8]}.*give more digits"):
        find_pair(Manifests(world.store), row["pair_id"][:8])
    assert find_pair(Manifests(world.store), row["pair_id"]).selected[0].shard == "s0"


def test_a_models_words_cannot_command_a_terminal():
    assert render.printable("red\x1b[2Jblue\nx\u202eevil\x9b") == "red [2Jblue x evil "


def test_a_pair_of_two_recipes_that_share_a_training_was_seen_by_it_under_both(world, wanted):
    made = world.make(wanted.but(recipes={"ablation": 0.0, "twin": 0.0, "m3po": 0.5}, same={"twin": "ablation"}))
    keep = {artifact.key for artifact in made.values()}
    pair_id = made["preference_pairs", "twin|s0"].table()["pair_id"][0].as_py()

    def look():
        found = find_pair(Manifests(world.store), pair_id)
        by_recipe = {item.recipe: item.trainings for item in found.selected}
        return found, {name: [(one.recipe, one.recipe_adapters) for one in seen] for name, seen in by_recipe.items()}

    found, seen = look()
    heads = {name: (made["lora_adapter", name].fingerprint,) for name in ("ablation", "twin")}
    assert seen["ablation"] == [("ablation", heads["ablation"])] and seen["twin"] == [("ablation", heads["twin"])]
    lines = "\n".join(render.found_lines(found, heads["twin"]))
    shared = made["adapter", "ablation|0"].fingerprint[:12]
    assert lines.count(f"adapter {shared}") == 2 and lines.count(f"{shared} of ablation, which is the same") == 1
    # Current by its own name alone.
    assert lines.count(", current") == 1
    # The first recipe is gone from the study: its adapter is kept for the other, and so is all that it stands on.
    gone = {("preference_pairs", "ablation|s0"), ("lora_adapter", "ablation")}
    world.store.gc({tuple(key) for key in keep if key[:2] not in gone}, dry_run=False, older_than=0)
    assert look() == (found, seen)
