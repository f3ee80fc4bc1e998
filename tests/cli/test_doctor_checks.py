"""`m3po doctor store` and `m3po doctor installation`, as they are typed."""

import json
import sys
from pathlib import Path

import dagster as dg
import pytest
from typer.testing import CliRunner, Result

from m3po_dagster.cli.main import app
from m3po_dagster.current import DATA_VERSION_TAG, FINGERPRINT_METADATA
from m3po_dagster.home import ensure_home
from m3po_dagster.storage.store import ArtifactStore

sys.path.append(str(Path(__file__).parents[1] / "storage"))
from store_samples import commit

ROOT = Path(__file__).parents[2]


@pytest.fixture
def store(tmp_path, monkeypatch) -> ArtifactStore:
    """A store with one artifact that Dagster knows, and one that it doesn't."""
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("M3PO_STORE", str(tmp_path / "store"))
    store = ArtifactStore(tmp_path / "store")
    known = commit(store, "candidates", "s0")
    commit(store, "numbers")
    ensure_home()
    with dg.DagsterInstance.get() as instance:
        event = dg.AssetMaterialization(
            "candidates",
            partition="s0",
            metadata={FINGERPRINT_METADATA: known.fingerprint},
            tags={DATA_VERSION_TAG: known.data_version},
        )
        instance.report_runless_asset_event(event)
    return store


def call(*words: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, ["doctor", *words])
    assert result.exit_code == code, result.output
    return result


def test_a_sound_store(store):
    said = call("store").stdout
    how = "every value of the tables, every byte of the files hashed"
    assert f"{store.root}: 2 artifacts whole ({how})" in said and "made with" in said
    assert "ok      Dagster: all 1 current artifacts" in said
    found = json.loads(call("store", "--quick", "--json").stdout)
    assert found["hashed"] is False and found["whole"] == 2 and found["damaged"] == 0 and found["formats"] == {"2": 2}


def test_damage_is_told_repaired_and_gone_from_the_store_until_it_is_made_again(store):
    artifact = next(store.list("candidates"))
    path = artifact.folder / "data.parquet"
    path.write_bytes(path.read_bytes()[::-1])
    assert "2 artifacts whole (sizes compared)" in call("store", "--quick").stdout
    told = call("store", code=1)
    assert "PROBLEM candidates[s0]" in told.stdout and "--repair" in told.stdout
    assert "1 problem found" in told.stderr and path.exists()
    said = call("store", "--repair").stdout
    assert "note    candidates[s0]" in said and "Set aside in" in said and "set aside: 1," in said
    assert not path.exists()
    told = call("store", "--json", code=1)
    found = json.loads(told.stdout)
    assert [one["about"] for one in found["findings"] if one["level"] == "problem"] == ["candidates[s0]"]
    assert len(found["quarantine"]) == 1 and found["quarantine"][0]["reason"]


def test_a_store_without_an_event_log_is_checked_and_none_is_made(store, tmp_path, monkeypatch):
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "nowhere"))
    assert "note    Dagster: its event log knows no artifact" in call("store").stdout
    assert not (tmp_path / "nowhere").exists()
    monkeypatch.setenv("M3PO_STORE", str(tmp_path / "nothing"))
    assert "there is no store at" in call("store", code=1).stderr


def test_an_installation(tmp_path, monkeypatch):
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("M3PO_STORE", str(tmp_path / "store"))
    text = (ROOT / "studies" / "easy_scenes.yaml").read_text()
    weights = ROOT / "m3po_dagster" / "world" / "weights"
    study = tmp_path / "study.yaml"
    study.write_text(text.replace("../m3po_dagster/world/weights", str(weights)).replace("../data", str(tmp_path)))
    result = CliRunner().invoke(app, ["doctor", "installation", "--study", str(study), "--json"])
    found = json.loads(result.stdout)
    by_level: dict[str, set] = {}
    for one in found["findings"]:
        by_level.setdefault(one["level"], set()).add(one["about"])
    assert result.exit_code == 1 and found["study"] == "easy_scenes"
    assert {"python", "torch", "model.path", "event log"} <= by_level["ok"]
    assert "dataset.sources.easy_scenes.path" in by_level["problem"]
    assert not {name for name in by_level["problem"] if not name.startswith(("dataset", "benchmarks", "judge.quality"))}
    assert not (tmp_path / "store").exists()
    assert "study.yaml" in CliRunner().invoke(app, ["doctor", "installation", "--study", "no/study.yaml"]).stderr
