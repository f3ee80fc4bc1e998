"""A study of 99 shards: what a tick of the sensors asks of the event log, and how many runs it starts."""

from copy import deepcopy

import dagster as dg
import pytest

from m3po_dagster.automation.sensors import MOST_AT_ONCE
from m3po_dagster.current import DATA_VERSION_TAG, FINGERPRINT_METADATA
from m3po_dagster.graph import STAGES, Head, all_parts, made_from
from m3po_dagster.resources.study import StoreResource, StudyResource
from tests.integration.conftest import Project

SHARDS = 99


def materialised(instance: dg.DagsterInstance, part: tuple[str, str], head: Head) -> None:
    """An event as a step leaves it."""
    instance.report_runless_asset_event(
        dg.AssetMaterialization(
            part[0],
            partition=part[1] or None,
            metadata={FINGERPRINT_METADATA: head.fingerprint},
            tags={DATA_VERSION_TAG: head.data_version},
        )
    )


@pytest.fixture(scope="module")
def many(tmp_path_factory, small_study):
    """A project of 99 shards in whose event log everything is up to date, and those heads."""
    study = deepcopy(small_study)
    study["dataset"]["shards"] = SHARDS
    project = Project(tmp_path_factory.mktemp("many"))
    project.write(study)
    loaded, heads = project.load(), {}
    identities = StoreResource(root=project.root).identities()
    with project.instance() as instance:
        for part in all_parts(loaded):
            fingerprint = made_from(part, loaded, identities, heads, found="no answers")
            heads[part] = Head(fingerprint, "no answers" if STAGES[part[0]].observed else fingerprint)
            materialised(instance, part, heads[part])
    return project, heads


@pytest.fixture(scope="module")
def repository(many) -> dg.RepositoryDefinition:
    """The definitions as they were loaded before a test edits the study."""
    return many[0].definitions().get_repository_def()


@pytest.fixture
def study_file(many):
    """The study file, as it was again afterwards."""
    path = many[0].study_file
    text = path.read_text()
    yield path
    path.write_text(text)


def tick(project, instance: dg.DagsterInstance, repository: dg.RepositoryDefinition, name: str):
    """One evaluation of a sensor, without the daemon."""
    context = dg.build_sensor_context(
        instance=instance,
        repository_def=repository,
        resources={"study": StudyResource(path=str(project.study_file)), "store": StoreResource(root=project.root)},
    )
    with context:
        return repository.get_sensor_def(name).evaluate_tick(context)


def test_nothing_outside_changed_so_nothing_is_looked_at_anew(many, repository):
    project, _ = many
    with project.instance() as instance:
        assert not tick(project, instance, repository, "watch_outside").run_requests


def test_an_edited_recipe_asks_for_one_look(many, repository, study_file):
    study_file.write_text(study_file.read_text().replace("alpha: 0.5", "alpha: 0.75"))
    with many[0].instance() as instance:
        (asked,) = tick(many[0], instance, repository, "watch_outside").run_requests
    assert asked.asset_selection == [dg.AssetKey("recipe_config")] and asked.partition_key == "m3po"


def test_a_recipe_that_the_definitions_do_not_have_yet_waits_for_them(many, repository, study_file):
    study_file.write_text(study_file.read_text().replace("  base: {}", "  base: {}\n  later: {}"))
    with many[0].instance() as instance:
        assert "later" in many[0].load().recipes
        assert not tick(many[0], instance, repository, "watch_outside").run_requests


@pytest.mark.parametrize("sensor", ["watch_outside", "keep_up"])
def test_a_broken_study_file_is_said_and_starts_nothing(many, repository, study_file, sensor):
    study_file.write_text("name: [")
    with many[0].instance() as instance:
        said = tick(many[0], instance, repository, sensor)
    assert not said.run_requests and "not valid YAML" in said.skip_message


def test_a_tick_reads_new_events_only_and_starts_a_bounded_number_of_runs(many, repository, monkeypatch):
    project, heads = many
    read = []
    inner = dg.DagsterInstance.fetch_materializations

    def counted(self, records_filter, limit, **more):
        found = inner(self, records_filter, limit=limit, **more)
        read.append(len(found.records))
        return found

    monkeypatch.setattr(dg.DagsterInstance, "fetch_materializations", counted)
    with project.instance() as instance:
        assert not tick(project, instance, repository, "keep_up").run_requests
        read.clear()
        assert not tick(project, instance, repository, "keep_up").run_requests
        assert sum(read) == len([part for part in heads if not part[1]])
        materialised(instance, ("judge_identity", ""), Head("another", "judge"))
        asked = tick(project, instance, repository, "keep_up").run_requests
    assert len(asked) == MOST_AT_ONCE
    assert {request.asset_selection[0].to_user_string() for request in asked} == {"mas_table"}
    assert len({request.run_key for request in asked}) == MOST_AT_ONCE
