"""What clusters do to a run: full disks, lost databases, clocks that jump, memory that does not suffice, a twin.

Each ends with the results of an undisturbed run, or with a sentence that says what to do and then with them.
"""

import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml
from postgres import postgres_server

from m3po_dagster.resources.trainer import TrainerResource
from tests.integration.conftest import Project
from tests.integration.runs_under_kill import COMMAND
from tests.integration.test_bad_input import m3po
from tests.integration.test_kill_loop import materialisations, results_of

UP_TO_CANDIDATES = ("source_dataset", "base_model", "sampling_scorer", "benchmark_data", "filtered_instructions",
                    "candidates")  # fmt: skip


def begun(project: Project, asset: str = "candidates") -> bool:
    """Whether some of an asset's work is on disk."""
    return any((project.folder / "store" / asset).glob("*/*/parts/*.parquet"))


def wait_until(holds, process: subprocess.Popen, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert process.poll() is None and time.monotonic() < deadline, "it ended, or never came so far"
        time.sleep(0.005)


def same_results(project: Project, made: Project) -> None:
    """Fingerprint and data version of every part are an undisturbed run's."""
    assert results_of(project) == results_of(made) and project.unsettled() == []
    assert project.store.quarantined() == []
    assert max(materialisations(project).values()) == 1


@pytest.fixture
def small_disk(tmp_path):
    """Mounts a file system in memory of so many bytes at a folder; gone with the test."""
    mounted: list[Path] = []

    def mount(folder: Path, size: int) -> None:
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("mounting a small file system needs rights that this user lacks")
        mounted.append(folder)

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("full", ["store", "home"])
def test_a_disk_that_runs_full_costs_what_was_being_written(fresh, made, small_disk, full):
    small_disk(fresh.folder / full, 256 << 20)
    ballast = fresh.folder / full / "ballast"
    process = start_with_errors(fresh)
    wait_until(lambda: begun(fresh), process)
    with ballast.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(bytes(1 << 16))
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 1 and "Traceback" not in errors, errors[-3000:]
    wanted = {"store": "free some space and run again", "home": "its disk has room"}
    assert wanted[full] in errors, errors[-3000:]
    ballast.unlink()
    assert [outcome.error for outcome in fresh.run() if outcome.error] == []
    same_results(fresh, made)


def start_with_errors(project: Project) -> subprocess.Popen:
    command = [sys.executable, "-c", COMMAND, "run"]
    return subprocess.Popen(command, env=project.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                            text=True)  # fmt: skip


@pytest.mark.slow
def test_a_store_that_turned_read_only_says_so_and_loses_nothing(fresh, made, small_disk):
    small_disk(fresh.folder / "store", 256 << 20)
    # In a process of its own: this one would keep the cache of file hashes open, and with it the disk writable.
    words = [word for asset in UP_TO_CANDIDATES for word in ("--asset", asset)]
    assert m3po(fresh, "run", *words).returncode == 0
    folder = str(fresh.folder / "store")
    subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
    done = m3po(fresh, "run")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert folder in done.stderr and "give write access" in done.stderr
    done = m3po(fresh, "doctor", "installation")
    assert done.returncode == 1 and f"{folder} can't be written or locked: Read-only file system" in done.stdout
    done = m3po(fresh, "doctor", "store")
    assert done.returncode == 0, done.stderr
    subprocess.run(["mount", "-o", "remount,rw", folder], check=True)
    assert [outcome.error for outcome in fresh.run() if outcome.error] == []
    same_results(fresh, made)


@pytest.mark.slow
def test_two_whole_runs_at_once_make_each_part_once(fresh, made):
    """On one store and one event log; whoever comes second to a part waits for the first, and finds it made."""
    runs = [start_with_errors(fresh) for _ in range(2)]
    for run in runs:
        _, errors = run.communicate(timeout=500)
        assert run.returncode == 0, errors[-3000:]
    same_results(fresh, made)
    assert {part for part, times in materialisations(fresh).items() if times == 1} == set(results_of(made))
    # An adapter and the answers are no parts, but as dear: each is one object, made from one place.
    ours, theirs = (Counter(one.key for one in project.store.list()) for project in (fresh, made))
    assert ours == theirs


@pytest.mark.slow
def test_a_database_that_is_restarted_in_a_run(fresh, made):
    """Dagster's event log in Postgres: either the run outlives the restart, or it says what to do and goes on later."""
    with postgres_server() as server:
        settings = {"telemetry": {"enabled": False}, "storage": {"postgres": {"postgres_url": server.url}}}
        (fresh.folder / "home").mkdir()
        (fresh.folder / "home" / "dagster.yaml").write_text(yaml.safe_dump(settings))
        process = start_with_errors(fresh)
        wait_until(lambda: begun(fresh), process)
        server.stop()
        time.sleep(1)
        server.start()
        _, errors = process.communicate(timeout=300)
        assert "Traceback" not in errors, errors[-3000:]
        assert process.returncode == 0 or "goes on from there" in errors, errors[-3000:]
        done = m3po(fresh, "run")
        assert done.returncode == 0, done.stderr[-3000:]
        same_results(fresh, made)

        server.stop()
        try:
            done = m3po(fresh, "run")
        finally:
            server.start()
        assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr[-3000:]
        assert "event log" in done.stderr and "Connection refused" in done.stderr


@pytest.mark.slow
def test_a_training_that_runs_out_of_memory_says_what_asks_for_less(fresh, made, monkeypatch):
    """The allocation and its error are torch's own."""
    import torch

    train = TrainerResource.train

    def greedy(*arguments):
        torch.empty(1 << 60, dtype=torch.uint8)
        return train(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(TrainerResource, "train", greedy)
        errors = [outcome.error for outcome in fresh.run() if outcome.error]
    assert len(errors) == 2, "one a recipe that trains"
    for error in errors:
        assert "memory did not suffice" in error and "trainer.per_device_batch_size" in error and "\n" not in error
    assert [outcome.error for outcome in fresh.run() if outcome.error] == []
    same_results(fresh, made)


def faked_clock(project: Project, file: Path) -> dict[str, str]:
    """The environment of a process whose clock is off by what `file` says, also when that changes while it runs."""
    library = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
    if library is None:
        message = "no libfaketime on this machine (Debian: package faketime)"
        if os.environ.get("M3PO_REQUIRE_FAKETIME"):
            pytest.fail(message)
        pytest.skip(message)
    # A clock that is set moves no monotonic one; the times of files move with it.
    return {**project.environment(), "LD_PRELOAD": str(library), "FAKETIME_TIMESTAMP_FILE": str(file),
            "FAKETIME_NO_CACHE": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}  # fmt: skip


@pytest.mark.slow
def test_a_clock_that_jumps_changes_nothing(fresh, made):
    """Ahead by a month while sampling, back by two before judging ends, right again at the end."""
    clock = fresh.folder / "clock"
    clock.write_text("+0\n")
    environment = faked_clock(fresh, clock)
    command = [sys.executable, "-c", COMMAND, "run"]
    # Dagster's own watchers of a step's output don't live with a false clock.
    noop = {"module": "dagster._core.storage.noop_compute_log_manager", "class": "NoOpComputeLogManager"}
    (fresh.folder / "home").mkdir()
    settings = {"telemetry": {"enabled": False}, "compute_logs": noop}
    (fresh.folder / "home" / "dagster.yaml").write_text(yaml.safe_dump(settings))
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    for asset, shift in (("candidates", "+30d"), ("mas_table", "-30d")):
        wait_until(lambda asset=asset: any((fresh.folder / "store" / asset).glob("*/*")), process)
        clock.write_text(f"{shift}\n")
    _, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors[-3000:]
    created = sorted(artifact.manifest.created for artifact in fresh.store.list())
    assert (created[-1] - created[0]).days >= 50, "the clock was moved"
    same_results(fresh, made)
    # Files that seem to come from the future are read again until the clock has passed them, never trusted wrongly.
    done = m3po(fresh, "run")
    assert done.returncode == 0 and "Everything is up to date" in done.stdout
    current = {(*part, fingerprint) for part, (fingerprint, _) in results_of(fresh).items()}
    assert fresh.store.gc(current) == [], "what is in use is not old enough for anybody"
