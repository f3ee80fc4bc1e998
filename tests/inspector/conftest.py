"""Studies made for the inspector's tests: a real store and a real event log, with texts of the test's choice."""

import sys
from pathlib import Path

import dagster as dg
import pytest
from starlette.testclient import TestClient

sys.path.append(str(Path(__file__).parents[1] / "method"))  # selection_tables

from made_study import PORT, MadeStudy

from m3po_dagster.inspector.app import build_app
from m3po_dagster.inspector.watch import Watch


@pytest.fixture
def made_study(tmp_path):
    """An empty study: two shards, nothing made."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    with dg.DagsterInstance.from_config(str(home)) as instance:
        yield MadeStudy(tmp_path, instance)


@pytest.fixture
def watch(made_study) -> Watch:
    """The study watched, nothing read yet."""
    return Watch(made_study.path, made_study.store, made_study.instance)


@pytest.fixture
def client(watch) -> TestClient:
    """A browser's view of the study; `client.watch.settle()` waits until all is read."""
    client = TestClient(build_app(watch, PORT), base_url=f"http://127.0.0.1:{PORT}", raise_server_exceptions=False)
    client.watch = watch
    return client
