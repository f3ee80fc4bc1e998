"""A study of 99 shards: what a tick of the sensors asks of the event log, and how many runs it starts."""

import hashlib
from copy import deepcopy

import dagster as dg
import pyarrow as pa
import pytest

from m3po_dagster.automation.sensors import MOST_AT_ONCE
from m3po_dagster.current import DATA_VERSION_TAG, FINGERPRINT_METADATA
from m3po_dagster.graph import STAGES, Head, all_parts, made_from
from m3po_dagster.resources.study import StoreResource, StudyResource
from m3po_dagster.storage.tables import IDENTITY
from tests.integration.conftest import Project

SHARDS = 99


def materialised(project: Project, instance: dg.DagsterInstance, part: tuple[str, str], head: Head) -> None:
    """An artifact and an event as a step leaves them."""
    with project.store.open(*part, head.fingerprint) as draft:
        if not draft.committed:
            rows = pa.table({"fact": [], "value": []}, schema=IDENTITY.schema)
            draft.commit({"data": (rows, IDENTITY)}, code_version="1", metadata={"checks": {}})
    instance.report_runless_asset_event(
        dg.AssetMaterialization(
            part[0],
            partition=part[1] or None,
            metadata={FINGERPRINT_METADATA: head.fingerprint},
            tags={DATA_VERSION_TAG: head.data_version},
        )
    )


def another(name: str) -> Head:
    """What is current once something else was made."""
    return Head(hashlib.sha256(name.encode()).hexdigest(), name)


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
            materialised(project, instance, part, heads[part])
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


def scheduled(project, instance: dg.DagsterInstance, repository: dg.RepositoryDefinition, name: str):
    """One evaluation of a schedule, without the daemon."""
    context = dg.build_schedule_context(
        instance=instance,
        repository_def=repository,
        resources={"study": StudyResource(path=str(project.study_file)), "store": StoreResource(root=project.root)},
    )
    with context:
        return repository.get_schedule_def(name).evaluate_tick(context)


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


def test_nightly_training_is_for_studies_that_ask_for_it(many, repository, study_file):
    project, heads = many
    part = ("lora_adapter", "m3po")
    with project.instance() as instance:
        materialised(project, instance, part, another("adapter of other pairs"))
        try:
            assert "training: sensor" in scheduled(project, instance, repository, "train_nightly").skip_message
            (asked,) = tick(project, instance, repository, "keep_up").run_requests
            assert asked.partition_key == "m3po"
            study_file.write_text(study_file.read_text() + "automation: {training: schedule}\n")
            assert "not up to date: lora_adapter[m3po]" in tick(project, instance, repository, "keep_up").skip_message
            (nightly,) = scheduled(project, instance, repository, "train_nightly").run_requests
            assert nightly.partition_key == "m3po" and nightly.run_key == asked.run_key
            materialised(project, instance, ("mas_table", "s1"), another("scores of another judge"))
            said = scheduled(project, instance, repository, "train_nightly")
            assert not said.run_requests and "not up to date: mas_table[s1]" in said.skip_message
        finally:
            materialised(project, instance, ("mas_table", "s1"), heads["mas_table", "s1"])
            materialised(project, instance, part, heads[part])


def test_the_judge_is_asked_at_night_only_where_it_is_served(many, repository):
    with many[0].instance() as instance:
        assert (
            "no scorer of the study is served" in scheduled(*many[:1], instance, repository, "check_judge").skip_message
        )


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
        materialised(project, instance, ("judge_identity", ""), another("judge"))
        asked = tick(project, instance, repository, "keep_up").run_requests
    assert len(asked) == MOST_AT_ONCE
    assert {request.asset_selection[0].to_user_string() for request in asked} == {"mas_table"}
    assert len({request.run_key for request in asked}) == MOST_AT_ONCE
