"""The checks of an installation, each against something that is wrong for real."""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import yaml
from safetensors.numpy import save_file

from m3po_dagster.doctor import devices, packages
from m3po_dagster.doctor.endpoints import check_endpoints
from m3po_dagster.doctor.findings import ok
from m3po_dagster.doctor.models import check_models, weights_of
from m3po_dagster.doctor.places import check_places
from m3po_dagster.method.generation.settings import ModelSettings
from m3po_dagster.study import load_study
from tests.loopback import Reply
from tests.served_judge import ServedJudge

ROOT = Path(__file__).parents[2]
LLAVA = ROOT / "m3po_dagster" / "world" / "weights" / "llava"


class Listing(ServedJudge):
    """A judge that lists its model."""

    def answer_other(self, method, path, headers):
        assert (method, path) == ("GET", "/v1/models")
        if self.key is not None and headers.get("authorization") != f"Bearer {self.key}":
            return Reply(401, b'{"error": {"message": "wrong key"}}')
        return Reply(body=json.dumps({"object": "list", "data": [{"id": self.model}]}).encode())


def study_with(folder: Path, judge: dict, model: str = str(LLAVA)):
    """The demo's study with this served judge beside its own."""
    fields = yaml.safe_load((ROOT / "studies" / "easy_scenes.yaml").read_text())
    for scorer in fields["judge"]["scorers"]:
        scorer["model"] = str(LLAVA.with_name("judge"))
    fields["judge"]["scorers"].append({"kind": "llm_judge", "name": "served", "weight": 0, **judge})
    fields["model"]["path"] = model
    (folder / "study.yaml").write_text(yaml.safe_dump(fields))
    return load_study(folder / "study.yaml")


def test_versions_are_compared_with_the_constraints(tmp_path):
    tested = ROOT / "constraints.txt"
    assert packages.constraints_file() == tested
    levels = {finding.about: finding for finding in packages.check_packages(tested)}
    assert levels["python"].level == levels["versions"].level == "ok" and set(levels) == {"python", "versions"}
    other = tmp_path / "constraints.txt"
    other.write_text("numpy==0.1  # long ago\nno-such-package==1\n")
    (found,) = (one for one in packages.check_packages(other) if one.about == "versions")
    assert found.level == "note" and f"numpy {np.__version__} (tested with 0.1)" in found.what
    assert "no-such-package" not in found.what, "what is not installed is not at another version"


def test_what_is_missing_or_does_not_fit_is_a_problem(monkeypatch):
    monkeypatch.setattr(
        packages.metadata, "requires", lambda name: ["numpy<1", "no-such-package>=2", "x; extra == 'dev'"]
    )
    found = [one for one in packages.check_packages(None) if one.level == "problem"]
    assert ["not installed: no-such-package" in found[0].what, "numpy" in found[1].what] == [True, True]
    assert len(found) == 2 and "make setup" in found[0].do


def test_a_gpu_that_is_asked_for_and_missing_is_a_problem(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    settings = ModelSettings(path=str(LLAVA), device="cuda")
    levels = [finding.level for finding in devices.check_devices(settings)]
    assert levels == ["ok", "problem"]
    levels = [finding.level for finding in devices.check_devices(settings.model_copy(update={"device": "auto"}))]
    assert levels[0] == "ok" and levels[1] != "ok"


def test_weights_are_whole_or_it_says_which_are_not(tmp_path):
    files, errors = weights_of(LLAVA)
    assert len(files) == 1 and errors == []
    save_file({"a": np.zeros(4), "b": np.zeros(4)}, tmp_path / "one.safetensors")
    save_file({"c": np.zeros(4)}, tmp_path / "two.safetensors")
    index = {"weight_map": {"a": "one.safetensors", "b": "one.safetensors", "c": "two.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert len(weights_of(tmp_path)[0]) == 2 and weights_of(tmp_path)[1] == []
    index["weight_map"] |= {"d": "two.safetensors", "e": "three.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    whole = (tmp_path / "one.safetensors").read_bytes()
    (tmp_path / "one.safetensors").write_bytes(whole[:-8])
    _, errors = weights_of(tmp_path)
    assert len(errors) == 3
    assert "one.safetensors is missing or cut" in errors[0] and "three.safetensors is missing" in errors[1]
    assert "two.safetensors lacks 1 tensors" in errors[2] and errors[2].endswith("d")


def test_models_of_a_study(tmp_path):
    shutil.copytree(LLAVA, tmp_path / "llava")
    study = study_with(tmp_path, {"model": "m", "base_url": "http://127.0.0.1:1/v1"}, str(tmp_path / "llava"))
    found = list(check_models(study))
    assert {finding.level for finding in found} == {"ok"} and len(found) == 2, "a model named twice is looked at once"
    (weights,) = (tmp_path / "llava").glob("*.safetensors")
    weights.rename(weights.with_name("pytorch_model.bin"))
    first = next(iter(check_models(study)))
    assert first.level == "problem" and "only pickled weights (pytorch_model.bin)" in first.what
    (tmp_path / "llava" / "pytorch_model.bin").unlink()
    assert "no weights" in next(iter(check_models(study))).what
    shutil.rmtree(tmp_path / "llava")
    assert "no folder here" in next(iter(check_models(study))).what
    hub = study_with(tmp_path, {"model": "m", "base_url": "http://127.0.0.1:1/v1"}, "nobody/no-such-model")
    first = next(iter(check_models(hub)))
    assert first.level == "note" and "not on this machine" in first.what


def test_an_endpoint_is_asked_for_its_models_and_for_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "a-secret-key")
    with Listing(key="a-secret-key") as judge:
        settings = {"model": judge.model, "base_url": judge.base_url, "api_key_env": "JUDGE_KEY"}
        (found,) = check_endpoints(study_with(tmp_path, settings))
        assert found.level == "ok" and judge.requests == 1 and judge.probes == 0
        (found,) = check_endpoints(study_with(tmp_path, settings | {"model": "another"}))
        assert found.level == "problem" and f"it has {judge.model}" in found.what
        monkeypatch.setenv("JUDGE_KEY", "wrong-secret")
        (found,) = check_endpoints(study_with(tmp_path, settings))
        assert found.level == "problem" and "401" in found.what and "wrong-secret" not in str(found)
        monkeypatch.delenv("JUDGE_KEY")
        (found,) = check_endpoints(study_with(tmp_path, settings))
        assert found.level == "problem" and "JUDGE_KEY" in found.what
    with ServedJudge() as silent:
        settings = {"model": silent.model, "base_url": silent.base_url}
        (found,) = check_endpoints(study_with(tmp_path, settings))
        assert found.level == "note" and "lists no models" in found.what
    (found,) = check_endpoints(study_with(tmp_path, settings))
    assert found.level == "problem" and "can't be reached" in found.what
    assert list(check_endpoints(load_study(ROOT / "studies" / "easy_scenes.yaml"))) == []


def test_places_have_room_rights_locks_and_the_same_clock(tmp_path, monkeypatch):
    places = (str(tmp_path / "store" / "not yet made"), tmp_path / "home")
    assert {finding.level for finding in check_places(*places)} <= {"ok", "note"}
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"
    monkeypatch.setattr("m3po_dagster.doctor.places.check_bucket", lambda url: ok("store", url))
    monkeypatch.setenv("M3PO_CACHE", str(tmp_path / "copies"))
    bucket = [finding.about for finding in check_places("s3://bucket/prefix", tmp_path)]
    assert set(bucket) == {"store", "copies", "DAGSTER_HOME"}

    usage = type("Usage", (), {"total": 2**40, "free": 2**20})
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage)
        assert [finding.level for finding in check_places(*places)] == ["problem", "problem"]
    with monkeypatch.context() as patch:
        patch.setattr("fcntl.flock", lambda *arguments: None)
        said = [str(finding) for finding in check_places(*places) if finding.level == "problem"]
        assert len(said) == 2 and "locks don't hold" in said[0]
    with monkeypatch.context() as patch:
        patch.setattr("time.time", lambda: 0.0)
        said = [str(finding) for finding in check_places(*places) if finding.level == "note"]
        assert any("the clock of" in text for text in said)


def test_a_store_whose_url_is_mistyped_is_a_problem(tmp_path):
    (found,) = [finding for finding in check_places("s3:/bucket/x", tmp_path) if finding.level == "problem"]
    assert found.about == "store" and "write s3://bucket/prefix" in found.what


def test_a_place_that_may_not_be_written_is_a_problem(tmp_path):
    work = (
        "import os, sys; from pathlib import Path; from m3po_dagster.doctor.places import check_places\n"
        "os.getuid() or os.setuid(65534)\n"
        "print(*check_places(sys.argv[1], Path('/tmp')), sep='\\n')"
    )
    above = [folder for folder in tmp_path.parents if folder.is_relative_to(tempfile.gettempdir())]
    for folder in above[:-1]:
        folder.chmod(0o755)
    tmp_path.chmod(0o555)
    done = subprocess.run([sys.executable, "-c", work, tmp_path / "store"], capture_output=True, text=True, cwd=ROOT)
    assert f"{tmp_path} can't be written or locked: Permission denied" in done.stdout, done.stderr
