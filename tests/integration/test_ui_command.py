"""`m3po ui`: the web interface, its daemon and the inspector come and go together; a new recipe is loaded by itself."""

import os
import signal
import socket
import subprocess
import time
import urllib.request
from copy import deepcopy
from pathlib import Path

import psutil
import pytest

from tests.integration.daemon import M3PO, descendants

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def wait_for(holds, seconds: float, said: Path) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, said.read_text()[-3000:]
        time.sleep(0.5)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as page:
            return page.status == 200
    except OSError:
        return False


@pytest.mark.slow
def test_a_new_recipe_is_made_and_ctrl_c_ends_everything(copy_of_made, small_study):
    project, ports, said = copy_of_made, (free_port(), free_port()), copy_of_made.folder / "ui.log"
    study = deepcopy(small_study)
    study["automation"] = {"running": True, "look_every": 5, "training": "by_hand"}
    project.write(study)
    words = [M3PO, "ui", "--port", str(ports[0]), "--inspector-port", str(ports[1])]
    with said.open("wb") as log:
        process = subprocess.Popen(words, cwd=ROOT, env=project.environment(), stdout=log, stderr=log)
    try:
        wait_for(lambda: all(answers(f"http://127.0.0.1:{port}/") for port in ports), 180, said)
        study["recipes"]["flat"] = deepcopy(study["recipes"]["m3po"]) | {"selection": {"rule": "m3p", "alpha": 0}}
        project.write(study)
        wait_for(lambda: project.events().get(("preference_pairs", "flat|s1"), 0) == 1, 240, said)
        assert "definitions reloaded" in said.read_text()
        started = descendants(process.pid)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        wait_for(lambda: not any(psutil.pid_exists(pid) for pid in started), 60, said)
    finally:
        for pid in (*descendants(process.pid), process.pid):
            if psutil.pid_exists(pid):
                os.kill(pid, signal.SIGKILL)
