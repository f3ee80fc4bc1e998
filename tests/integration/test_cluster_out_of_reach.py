"""`m3po run` where the cluster can't be had: a sentence, and no run that looks as if it were still to come."""

import socket
import subprocess
from pathlib import Path

import dagster as dg
import pytest

from m3po_dagster.deployment import VARIABLE
from tests.integration.conftest import Project
from tests.integration.daemon import M3PO

ROOT = str(Path(__file__).parents[2])
pytestmark = pytest.mark.slow


def run(project: Project, deployment: str) -> tuple[subprocess.CompletedProcess, list[dg.DagsterRun]]:
    """`m3po run` with a deployment file of this text; what it said, and the runs in the event log."""
    named = project.folder / "deployment.yaml"
    named.write_text(deployment)
    environment = project.environment() | {VARIABLE: str(named), "PYTHONPATH": ROOT}
    done = subprocess.run([M3PO, "run"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    with project.instance() as instance:
        return done, instance.get_runs()


def test_a_ray_cluster_that_does_not_answer_ends_the_run_with_a_sentence(fresh):
    pytest.importorskip("dagster_ray")
    with socket.socket() as held:  # bound, so that nobody else takes the port, and not listening
        held.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{held.getsockname()[1]}"
        done, (orchestrated,) = run(fresh, f"{{executor: ray, ray: {{address: '{address}'}}}}")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert address in done.stderr and "ray.address of the deployment file" in done.stderr
    assert orchestrated.status == dg.DagsterRunStatus.FAILURE


def test_on_kubernetes_a_shell_is_told_where_to_start_and_makes_no_run(fresh):
    pytest.importorskip("dagster_k8s")
    done, runs = run(fresh, "executor: k8s")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "start the job `everything` in Dagster on the cluster" in done.stderr and runs == []
