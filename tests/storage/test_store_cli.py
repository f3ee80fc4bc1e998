"""`m3po store`."""

import json

import dagster as dg
import pytest
from store_samples import NUMBERS, commit, key, numbers
from typer.testing import CliRunner

from m3po_dagster.cli.store import app
from m3po_dagster.current import DATA_VERSION_TAG, FINGERPRINT_METADATA
from m3po_dagster.storage.store import ArtifactStore


@pytest.fixture
def store(tmp_path):
    return ArtifactStore(tmp_path / "store")


def call(store: ArtifactStore, *arguments: str, code: int = 0):
    result = CliRunner().invoke(app, arguments, env={"M3PO_STORE": str(store.root), "COLUMNS": "200"})
    assert result.exit_code == code, result.output
    return result


def test_ls_lists_what_is_there(store):
    artifact = commit(store)
    with store.open(*key(code="2")) as draft:
        draft.write_part(0, numbers(0), NUMBERS)
    text = call(store, "ls").stdout
    assert artifact.fingerprint[:12] in text and "3 rows, 1 files" in text and "1 parts" in text
    assert "1 artifacts, 1 unfinished" in text
    rows = json.loads(call(store, "ls", "--json").stdout)
    assert [(row["state"], row["fingerprint"]) for row in rows] == [
        ("committed", artifact.fingerprint),
        ("unfinished", key(code="2")[2]),
    ]
    assert rows[0]["rows"] == {"data": 3} and rows[0]["data_version"] == artifact.data_version
    assert json.loads(call(store, "ls", "other", "--json").stdout) == []


def test_show_tells_all_by_a_prefix(store):
    origin = commit(store, "base", "")
    artifact = commit(store, origin=origin)
    text = call(store, "show", artifact.fingerprint[:10]).stdout
    for part in (artifact.data_version, origin.fingerprint[:12], "value: double", "files/note.txt", '"rows": 3'):
        assert part in text
    shown = call(store, "show", artifact.fingerprint, "--json").stdout
    assert shown == (artifact.folder / "manifest.json").read_text()


def test_errors_go_to_stderr_with_exit_code_1(store):
    result = call(store, "ls", code=1)
    assert result.stdout == "" and f"error: there is no store at {store.root}" in result.stderr
    commit(store)
    assert "no artifact" in call(store, "show", "0000000", code=1).stderr


def test_gc_keeps_what_dagster_calls_current(store, tmp_path, monkeypatch):
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    current, old = commit(store, "leaderboard", ""), commit(store, "leaderboard", "", code="old")
    assert "no current artifact" in call(store, "gc", "--older-than", "0", code=1).stderr
    event = dg.AssetMaterialization(
        "leaderboard",
        metadata={FINGERPRINT_METADATA: current.fingerprint},
        tags={DATA_VERSION_TAG: current.data_version},
    )
    with dg.DagsterInstance.get() as instance:
        instance.report_runless_asset_event(event)
    text = call(store, "gc", "--older-than", "0").stdout
    assert old.fingerprint[:12] in text and "1 would go" in text
    assert "Nothing to remove" in call(store, "gc").stdout
    call(store, "gc", "--older-than", "0", "--no-dry-run", code=1)
    assert {artifact.key for artifact in store.list()} == {current.key, old.key}
    assert "1 removed" in call(store, "gc", "--older-than", "0", "--no-dry-run", "--yes").stdout
    assert [artifact.key for artifact in store.list()] == [current.key]
