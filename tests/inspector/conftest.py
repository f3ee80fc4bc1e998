"""Studies made for the inspector's tests: a real store and a real event log, with texts of the test's choice."""

import sys
from pathlib import Path

import dagster as dg
import pytest
from starlette.testclient import TestClient

sys.path.append(str(Path(__file__).parents[1] / "method"))  # selection_tables

from made_study import PORT, MadeStudy, some_prompts

from m3po_dagster.inspector.app import build_app
from m3po_dagster.inspector.watch import Watch

QUESTIONS = [
    {"question_id": f"random/{n}", "image_uri": "red.png", "question": f"Is there a cat {n}?", "expected": label}
    for n, label in enumerate(["yes", "no", "yes", "no"])
]


def client_of(study: MadeStudy) -> TestClient:
    """A browser's view of a study; `client.watch.settle()` waits until all is read."""
    watch = Watch(study.path, study.store, study.instance)
    client = TestClient(build_app(watch, PORT), base_url=f"http://127.0.0.1:{PORT}", raise_server_exceptions=False)
    client.watch, client.study = watch, study
    return client


@pytest.fixture
def made_study(tmp_path):
    """A study of two shards, nothing made."""
    with dg.DagsterInstance.ephemeral() as instance:
        yield MadeStudy(tmp_path, instance)


@pytest.fixture
def client(made_study) -> TestClient:
    """The empty study's pages, nothing read yet."""
    return client_of(made_study)


@pytest.fixture(scope="session")
def complete(tmp_path_factory):
    """Pages of a study that no test changes: two shards, three recipes that select, answers of base and m3po."""
    with dg.DagsterInstance.ephemeral() as instance:
        study = MadeStudy(tmp_path_factory.mktemp("complete"), instance)
        study.add_shard("s0", some_prompts(6))
        study.add_shard("s1", some_prompts(6, start=6))
        study.add_answers("base", {0: ["Yes.", "Yes.", "No.", "No."]}, QUESTIONS)
        study.add_answers("m3po", {0: ["No.", "No.", "No.", "No."], 1: ["Yes."] * 4}, QUESTIONS)
        client = client_of(study)
        client.watch.settle()
        yield client


@pytest.fixture
def small(made_study, client) -> TestClient:
    """Pages of a study of one prompt with a pair, free to change; all read."""
    made_study.add_shard("s0", some_prompts(1))
    client.watch.settle()
    return client
