"""The named jobs as the launchpad offers them: typed choices, sentences for wrong ones, and only the needed runs."""

from collections import Counter
from copy import deepcopy

import dagster as dg
import pytest

from m3po_dagster import run_tags
from m3po_dagster.automation.jobs import upstream_of
from tests.integration.daemon import counts_since


def launch(project, job: str, config: dict, instance: dg.DagsterInstance):
    """A job run as from the launchpad."""
    (op,) = project.definitions().resolve_job_def(job).nodes
    return (
        project.definitions()
        .resolve_job_def(job)
        .execute_in_process(
            run_config={
                "ops": {op.name: {"config": config}},
                "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
            },
            instance=instance,
            raise_on_error=False,
        )
    )


def failure(result) -> str:
    return "".join(event.event_specific_data.error_display_string for event in result.get_step_failure_events())


def test_reselect_recipe_touches_its_own_pairs_and_nothing_else(copy_of_made, small_study):
    project, events = copy_of_made, Counter(copy_of_made.events())
    changed = deepcopy(small_study)
    changed["recipes"]["m3po"]["selection"]["alpha"] = 4.0
    project.write(changed)
    with project.instance() as instance:
        result = launch(project, "reselect_recipe", {"recipe": "m3po"}, instance)
        assert result.success, failure(result)
        children = instance.get_runs(dg.RunsFilter(tags={run_tags.STARTED_BY: result.run_id}))
    assert counts_since(project, events) == {"recipe_config": 1, "preference_pairs": 2}
    assert len(children) == 3 and {run.tags["m3po/recipe"] for run in children} == {"m3po"}
    assert {run.tags.get("m3po/shard") for run in children} == {None, "s0", "s1"}
    assert all(run.tags["m3po/study"] == "small" and run.tags["m3po/fingerprint"] for run in children)


def test_score_shard_brings_one_shard_up_to_its_scores(copy_of_made, small_study):
    project, events = copy_of_made, Counter(copy_of_made.events())
    changed = deepcopy(small_study)
    changed["judge"]["scorers"][1]["weight"] = 1
    project.write(changed)
    with project.instance() as instance:
        result = launch(project, "score_shard", {"shard": "s1"}, instance)
    assert result.success, failure(result)
    assert counts_since(project, events) == {"judge_identity": 1, "mas_table": 1}


def test_a_job_that_could_not_do_what_it_was_asked_for_says_so(copy_of_made, small_study):
    project = copy_of_made
    changed = deepcopy(small_study)
    changed["judge"]["scorers"][1]["weight"] = 1
    project.write(changed)
    with project.instance() as instance:
        result = launch(project, "reselect_recipe", {"recipe": "m3po"}, instance)
        tags = instance.get_run_by_id(result.run_id).tags
    assert not result.success
    assert "2 of the parts asked for are not up to date, the first: preference_pairs[m3po|s0]" in failure(result)
    assert "waits for mas_table[s0]" in failure(result)
    assert tags["m3po/study"] == "small" and tags["m3po/recipe"] == "m3po"


def test_everything_says_that_nothing_is_to_do(copy_of_made):
    events = Counter(copy_of_made.events())
    with copy_of_made.instance() as instance:
        assert launch(copy_of_made, "everything", {}, instance).success
    assert not counts_since(copy_of_made, events)


@pytest.mark.parametrize(
    ("job", "config", "sentence"),
    [
        ("everything", {"recipes": ["m3pp"]}, "no recipe 'm3pp' in study small; there are base, m3po, sft"),
        ("everything", {"shards": ["s7"]}, "no shard 's7' in study small; there are s0, s1"),
        ("everything", {"assets": ["mas"]}, "no asset 'mas' in study small; there are source_dataset"),
    ],
)
def test_a_wrong_name_is_refused_with_the_right_ones(made, job, config, sentence):
    with made.instance() as instance:
        result = launch(made, job, config, instance)
    assert not result.success and sentence in failure(result)


@pytest.mark.parametrize(
    ("job", "config"),
    [("score_shard", {"shard": "s7"}), ("reselect_recipe", {"recipe": "m3pp"}), ("score_shard", {"shrad": "s0"})],
)
def test_a_choice_that_is_not_there_can_not_be_launched(made, job, config):
    with made.instance() as instance, pytest.raises(dg.DagsterInvalidConfigError) as refused:
        launch(made, job, config, instance)
    assert next(iter(config.values())) in str(refused.value) or next(iter(config)) in str(refused.value)


def test_every_field_of_every_job_is_explained_and_has_a_default(made):
    for job in made.definitions().resolve_all_job_defs():
        if job.name.startswith("__"):
            continue
        (op,) = job.nodes
        fields = op.definition.config_schema.config_type.fields
        assert fields and all(field.description and not field.is_required for field in fields.values())
        assert job.description


def test_what_a_job_stands_on_is_in_its_order():
    assert upstream_of("preference_pairs")[:5] == (
        "source_dataset",
        "base_model",
        "sampling_scorer",
        "judge_probe",
        "judge_identity",
    )
    assert "lora_adapter" not in upstream_of("preference_pairs", "selection_sweep")
