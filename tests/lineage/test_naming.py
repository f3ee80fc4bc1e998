"""A name means one adapter, or it is refused with the list of those it could mean."""

import pytest

from m3po_dagster.lineage.manifests import Manifests
from m3po_dagster.lineage.naming import Current, choose
from m3po_dagster.storage.errors import StoreError


def named(world, name, current=None):
    return choose(Manifests(world.store), name, current)


def heads(made, binding=False, source="the event log") -> Current:
    return Current({part: artifact.fingerprint for part, artifact in made.items()}, source, binding)


def test_one_adapter_of_a_name_needs_nobody_to_say_which(world, wanted):
    made = world.make(wanted.but(seeds=(0, 1)))
    assert named(world, "m3po").artifact.key == made["lora_adapter", "m3po"].key
    chosen = named(world, "m3po|1")
    assert chosen.artifact.key == made["adapter", "m3po|1"].key and not chosen.others
    assert "only one" in chosen.reason
    by_digits = named(world, made["adapter", "m3po|0"].fingerprint[:10])
    assert by_digits.artifact.key == made["adapter", "m3po|0"].key and "begins with" in by_digits.reason


def test_an_unknown_name_lists_the_recipes(world, wanted):
    made = world.make(wanted.but(recipes={"m3po": 0.5, "vanilla": 0.0}))
    with pytest.raises(StoreError, match=r"recipe 'nobody'.*\['m3po', 'vanilla'\]"):
        named(world, "nobody")
    with pytest.raises(StoreError, match="fingerprint that begins so"):
        named(world, made["candidates", "s0"].fingerprint)


def test_a_seed_that_was_not_trained_lists_those_that_were(world, wanted):
    world.make(wanted.but(recipes={"m3po": 0.5, "vanilla": 0.0}, seeds=(0, 3)))
    with pytest.raises(StoreError, match=r"called 'm3po\|7': of the recipe 'm3po' there are m3po\|0, m3po\|3$"):
        named(world, "m3po|7")
    with pytest.raises(StoreError, match=r"recipe 'nobody\|7'.*\['m3po', 'vanilla'\]"):
        named(world, "nobody|7")


def test_digits_that_fit_several_list_them(world, wanted):
    one = world.make(wanted)["adapter", "m3po|0"].fingerprint
    twin = one[:6] + "0" * 58
    with world.store.open("adapter", "twin", twin) as draft:
        (draft.folder() / "weights").write_text("twin")
        draft.commit(code_version="1")
    with pytest.raises(StoreError, match=rf"fits 2 adapters: .*{one[:16]}.*{twin[:16]}"):
        named(world, one[:6])


def test_two_studies_with_the_same_name_are_never_guessed_between(world, wanted):
    first = world.make(wanted)
    second = world.make(wanted.but(dataset="streets"))
    fingerprints = [made["lora_adapter", "m3po"].fingerprint for made in (first, second)]
    with pytest.raises(StoreError, match="called 'm3po' and nothing says which") as error:
        named(world, "m3po")
    assert all(fingerprint[:16] in str(error.value) for fingerprint in fingerprints)
    with pytest.raises(StoreError, match=r"called 'm3po\|0'"):
        named(world, "m3po|0")
    for made in (first, second):
        for name, part in (("m3po", ("lora_adapter", "m3po")), ("m3po|0", ("adapter", "m3po|0"))):
            chosen = named(world, name, heads(made))
            assert chosen.artifact.key == made[part].key
            assert len(chosen.others) == 1 and chosen.reason == "current by the event log"


def test_the_current_adapter_counts_and_not_the_newest(world, wanted):
    old = world.make(wanted)
    world.make(wanted.but(judge="lenient"))
    back = named(world, "m3po", heads(old))
    assert back.artifact.key == old["lora_adapter", "m3po"].key and len(back.others) == 1
    assert back.others[0].manifest.created > back.artifact.manifest.created


def test_an_event_log_of_another_store_says_nothing_and_a_study_file_is_binding(world, wanted, tmp_path):
    elsewhere = type(world)(tmp_path / "other").make(wanted.but(dataset="streets"))
    made = world.make(wanted)
    assert "only one" in named(world, "m3po", heads(elsewhere)).reason
    with pytest.raises(StoreError, match=r"as study\.yaml asks for it: run the study"):
        named(world, "m3po", heads(elsewhere, binding=True, source="study.yaml"))
    assert named(world, "m3po", heads(made, binding=True)).artifact.key == made["lora_adapter", "m3po"].key


def test_a_recipe_whose_training_never_ended_is_known_by_the_seeds_it_has(world, wanted):
    made = world.make(wanted)
    (made["lora_adapter", "m3po"].folder / "manifest.json").unlink()
    assert named(world, "m3po").artifact.key == made["adapter", "m3po|0"].key


def test_a_recipe_that_shares_anothers_adapters_finds_them_by_its_own_name(world, wanted):
    shared = wanted.but(recipes={"ablation": 0.0, "twin": 0.0}, same={"twin": "ablation"}, seeds=(0, 2))
    made = world.make(shared)
    assert named(world, "twin").artifact.key == made["lora_adapter", "twin"].key
    for current in (None, heads(made), heads(made, binding=True)):
        chosen = named(world, "twin|2", current)
        assert chosen.artifact.key == made["adapter", "ablation|2"].key and not chosen.others
        assert chosen.reason.endswith("; twin|2 comes to the same training")
    assert "same training" not in named(world, "ablation|2", heads(made)).reason
    with pytest.raises(StoreError, match=r"called 'twin\|7': of the recipe 'twin' there are twin\|0, twin\|2$"):
        named(world, "twin|7")
    # Once edited, its name has two: the shared one of before, and its own.
    own = world.make(shared.but(recipes={"ablation": 0.0, "twin": 1.0}, same={}))
    assert named(world, "twin|0", heads(own)).artifact.key == own["adapter", "twin|0"].key
    assert [other.key for other in named(world, "twin|0", heads(own)).others] == [made["adapter", "ablation|0"].key]
    with pytest.raises(StoreError, match=r"2 adapters in .* are called 'twin\|0'"):
        named(world, "twin|0")
