"""Checkpoints of a training hold files that torch wrote: taking one up looks up no class for a pickle."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hostile_models import RunsWhenRead

from m3po_dagster.method.optimization.checkpoints import WHOLE

TESTS = Path(__file__).parents[1]
# In a process of its own: an audit hook stays for good.
TRAIN = """
import sys
looked_up = []
sys.addaudithook(lambda event, given: looked_up.append(given) if event == "pickle.find_class" else None)
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/method"]
import json, pickle
from pathlib import Path
from optimization_world import World
from m3po_dagster.method.optimization.checkpoints import Checkpoints
from m3po_dagster.method.optimization.dpo import train_dpo
from m3po_dagster.method.optimization.execution import Execution
from m3po_dagster.method.optimization.settings import DpoSettings

folder = Path(sys.argv[2])
settings = DpoSettings(batch_size=4, epochs=2, learning_rate=5e-3, reference_sample=1)
world = World(folder / "world", 6)

def train(break_at=None):
    def progress(step, steps):
        if step == break_at:
            raise KeyboardInterrupt
    execution = Execution(checkpoints=Checkpoints(folder / "checkpoints", minutes=0))
    return train_dpo(world.settings, world.examples, settings, 3, folder / "out", progress, execution)

if sys.argv[3] == "break":
    try:
        train(break_at=3)
    except KeyboardInterrupt:
        pass
else:
    print(json.dumps({"resumed from": train().resumed_from, "looked up": looked_up}))
    pickle.loads(pickle.dumps(Path))
    assert looked_up == [("pathlib", "Path")], "the hook sees nothing"
"""


def train(folder: Path, what: str) -> subprocess.CompletedProcess:
    script = [sys.executable, "-c", TRAIN, str(TESTS), str(folder), what]
    return subprocess.run(script, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def broken_off(tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    done = train(folder, "break")
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


def the_checkpoint(folder: Path) -> Path:
    (found,) = (folder / "checkpoints").glob("checkpoint-*")
    return found


@pytest.mark.slow
def test_a_pickle_that_somebody_put_into_a_checkpoint_is_not_run(broken_off, tmp_path):
    """Who can write to the store can also correct the hash in the list of files."""
    import shutil

    import torch

    folder = Path(shutil.copytree(broken_off, tmp_path / "training"))
    checkpoint, marker = the_checkpoint(folder), tmp_path / "was-run"
    torch.save({"state": RunsWhenRead(marker)}, checkpoint / "optimizer.pt")
    listed = json.loads((checkpoint / WHOLE).read_text())
    listed["files"]["optimizer.pt"] = hashlib.sha256((checkpoint / "optimizer.pt").read_bytes()).hexdigest()
    (checkpoint / WHOLE).write_text(json.dumps(listed))
    done = train(folder, "go on")
    assert done.returncode != 0 and "Weights only load failed" in done.stderr
    assert not marker.exists()
    torch.load(checkpoint / "optimizer.pt", weights_only=False)
    assert marker.exists()


@pytest.mark.slow
def test_going_on_from_a_checkpoint_unpickles_nothing(broken_off):
    assert {"optimizer.pt", "scheduler.pt"} <= {path.name for path in the_checkpoint(broken_off).iterdir()}
    done = train(broken_off, "go on")
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {"resumed from": 2, "looked up": []}
