"""SIGKILL in a training, then the same asset again: the adapter an undisturbed run gives, and no step lost but one."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from m3po_dagster.storage.store import ArtifactStore

SEEDS, EPOCHS = (0, 1), 4


@pytest.mark.slow
def test_a_killed_training_ends_with_the_same_weights(made, tmp_path):
    settings = yaml.safe_load(made.study_file.read_text())
    settings["trainer"] = {"kind": "local", "checkpoint_minutes": 0}
    settings["recipes"]["m3po"]["seeds"] = list(SEEDS)
    settings["recipes"]["m3po"]["training"] |= {"epochs": EPOCHS, "lora": {"r": 4, "alpha": 8, "dropout": 0.1}}
    study = tmp_path / "study.yaml"
    study.write_text(yaml.safe_dump(settings))
    roots = [tmp_path / "undisturbed", tmp_path / "killed"]
    for root in roots:
        shutil.copytree(made.root, root, ignore=shutil.ignore_patterns("adapter"))
    script = Path(__file__).with_name("training_under_kill.py")
    command = [sys.executable, str(script), str(study), *map(str, roots), str(made.folder / "home"), "m3po", "7"]
    output = subprocess.run(command, env=made.environment(), capture_output=True, text=True, timeout=500, check=False)
    assert output.returncode == 0, output.stderr[-2000:]
    told = json.loads(output.stdout.splitlines()[-1])
    kills = told["codes"].count(-signal.SIGKILL)
    assert kills >= 1 and told["codes"][-1] == 0

    whole, killed = ({a.key.partition: a for a in ArtifactStore(root).list("adapter")} for root in roots)
    assert set(whole) == set(killed) == {f"m3po|{seed}" for seed in SEEDS}
    for partition, one in whole.items():
        other = killed[partition]
        assert one.manifest.files == other.manifest.files, "the adapter's bytes"
        steps = one.table("training_log")["step"].to_pylist()
        assert steps == list(range(1, len(steps) + 1)) and len(steps) % EPOCHS == 0
        for table in ("training_log", "margins", "trajectory"):
            assert one.table(table).equals(other.table(table)), table
        assert not (other.folder / "scratch").exists()
    assert any(artifact.manifest.metadata["resumed from step"] for artifact in killed.values())

    # A step is told before its checkpoint is written: a kill costs that one step, and no seed that is done.
    assert len(told["killed"]) - len(told["undisturbed"]) <= kills
    assert sorted(set(map(tuple, told["killed"]))) == sorted(map(tuple, told["undisturbed"]))
    seeds = [seed for seed, _ in told["killed"]]
    assert seeds == sorted(seeds)
