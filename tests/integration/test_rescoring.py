"""What a change makes anew, told by Dagster's event log and by counts of the work that is dear."""

from collections import Counter
from contextlib import contextmanager
from copy import deepcopy

import pytest
from dagster._core.definitions.data_version import StaleStatus

from m3po_dagster.graph import all_parts


@contextmanager
def dear_work(monkeypatch):
    """Counts language-model forwards, loads of the base model, images the judge encodes, and trainings."""
    import m3po_dagster.method.alignment.clip_encoder as encoder
    import m3po_dagster.method.optimization.dpo as dpo
    import m3po_dagster.resources.generator as generator
    from m3po_dagster.resources import judge
    from m3po_dagster.torchvision_repair import repair_torchvision

    repair_torchvision()
    from transformers.models.llama.modeling_llama import LlamaModel

    generator._warm.cache_clear()
    judge._warm.cache_clear()
    counts: Counter[str] = Counter()

    def counted(owner, name, label):
        inner = getattr(owner, name)

        def wrapper(*args, **kwargs):
            counts[label] += 1
            return inner(*args, **kwargs)

        monkeypatch.setattr(owner, name, wrapper)

    counted(LlamaModel, "forward", "language model forwards")
    counted(encoder.ClipEncoder, "encode_images", "judge encodes")
    counted(dpo, "fit_dpo", "trainings")
    yield counts
    monkeypatch.undo()


def changes(project, before) -> dict[str, int]:
    """New materialisations by asset."""
    after = project.events()
    new: Counter[str] = Counter()
    for part, number in after.items():
        new[part[0]] += number - before.get(part, 0)
    return {asset: number for asset, number in new.items() if number}


def changed_parts(project, before) -> set[tuple[str, str]]:
    return {part for part, number in project.events().items() if number != before.get(part, 0)}


@pytest.fixture
def with_alpha(small_study):
    def settings(alpha: float) -> dict:
        changed = deepcopy(small_study)
        changed["recipes"]["m3po"]["selection"]["alpha"] = alpha
        return changed

    return settings


def test_a_new_alpha_touches_its_recipe_alone_and_going_back_is_free(copy_of_made, with_alpha, monkeypatch):
    project, before = copy_of_made, copy_of_made.events()
    project.write(with_alpha(2.0))
    assert {item.part for item in project.standings() if item.state == "stale"} == {("recipe_config", "m3po")}
    with dear_work(monkeypatch) as counts:
        outcomes = project.run()
    assert [outcome.error for outcome in outcomes if outcome.error] == []
    # The leaderboard follows only where an answer changed: equal scores stop the cascade.
    assert changed_parts(project, before) - {("leaderboard", "")} == {
        ("recipe_config", "m3po"),
        ("preference_pairs", "m3po|s0"),
        ("preference_pairs", "m3po|s1"),
        ("lora_adapter", "m3po"),
        ("benchmark_scores", "m3po"),
    }
    assert counts["judge encodes"] == 0
    assert counts["trainings"] == 1
    assert set(project.dagster_staleness().values()) == {StaleStatus.FRESH}

    before = project.events()
    project.write(with_alpha(0.5))
    with dear_work(monkeypatch) as counts:
        outcomes = project.run()
    assert all(set(outcome.reused) == set(outcome.assets) for outcome in outcomes)
    assert counts == {}
    assert {part[0] for part in changed_parts(project, before)} - {"leaderboard"} == {
        "recipe_config",
        "preference_pairs",
        "lora_adapter",
        "benchmark_scores",
    }
    assert {item.state for item in project.standings()} == {"fresh"}


def test_until_training_the_base_model_is_not_even_loaded(copy_of_made, with_alpha, monkeypatch):
    from m3po_dagster.runner import Selection

    project = copy_of_made
    project.write(with_alpha(3.0))
    with dear_work(monkeypatch) as counts:
        project.run(Selection(assets=("recipe_config", "preference_pairs", "selection_sweep")))
    assert counts == {}


def test_dagster_shows_stale_what_status_shows_stale(copy_of_made, with_alpha):
    from m3po_dagster.runner import Selection

    project = copy_of_made
    project.write(with_alpha(2.0))
    project.run(Selection(assets=("recipe_config",)))
    ours = {item.part for item in project.standings() if item.state == "stale"}
    theirs = {part for part, status in project.dagster_staleness().items() if status != StaleStatus.FRESH}
    assert ours == theirs
    assert ("preference_pairs", "m3po|s0") in ours and ("preference_pairs", "sft|s0") not in ours


def test_a_changed_judge_rescores_without_sampling_again(copy_of_made, small_study, monkeypatch):
    project, before = copy_of_made, copy_of_made.events()
    changed = deepcopy(small_study)
    changed["judge"]["scorers"][1]["weight"] = 1.0
    project.write(changed)
    with dear_work(monkeypatch) as counts:
        outcomes = project.run()
    assert [outcome.error for outcome in outcomes if outcome.error] == []
    touched = {part[0] for part in changed_parts(project, before)}
    assert {"judge_identity", "mas_table", "preference_pairs", "lora_adapter"} <= touched
    assert not touched & {"source_dataset", "filtered_instructions", "candidates", "logprob_table", "base_model"}
    assert counts["judge encodes"] > 0


def test_an_added_recipe_leaves_the_others_alone(copy_of_made, small_study, monkeypatch):
    project, before = copy_of_made, copy_of_made.events()
    changed = deepcopy(small_study)
    changed["recipes"]["vanilla"] = {**small_study["recipes"]["m3po"], "selection": {"rule": "vanilla"}}
    project.write(changed)
    with dear_work(monkeypatch) as counts:
        assert [outcome.error for outcome in project.run() if outcome.error] == []
    mine = {part for part in all_parts(project.load()) if "vanilla" in part[1]}
    assert changed_parts(project, before) == mine | {("leaderboard", "")}
    assert counts["trainings"] == 1 and counts["judge encodes"] == 0


def test_an_added_seed_trains_itself_alone(copy_of_made, small_study, monkeypatch):
    project = copy_of_made
    changed = deepcopy(small_study)
    changed["recipes"]["m3po"]["seeds"] = [0, 1]
    project.write(changed)
    with dear_work(monkeypatch) as counts:
        assert [outcome.error for outcome in project.run() if outcome.error] == []
    assert counts["trainings"] == 1
    assert len(list(project.store.list("adapter"))) == 3


@pytest.mark.slow
def test_a_lost_dagster_home_costs_no_work(copy_of_made, monkeypatch):
    import shutil

    project = copy_of_made
    shutil.rmtree(project.folder / "home")
    with dear_work(monkeypatch) as counts:
        outcomes = project.run()
    assert counts == {}
    assert all(set(outcome.reused) == set(outcome.assets) for outcome in outcomes)
