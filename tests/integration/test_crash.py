"""SIGKILL in a stage, then a re-run: the table an undisturbed run gives, and at most one part made twice."""

import signal
import subprocess
import sys
import time

import pytest

from m3po_dagster.current import read_heads

PART_PROMPTS = 4


def start(project) -> subprocess.Popen:
    command = [sys.executable, "-c", "from m3po_dagster.cli.main import main; main()", "run"]
    return subprocess.Popen(command, env=project.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def killed_when(project, there) -> None:
    """Starts `m3po run` and kills it the moment `there()` is true."""
    process = start(project)
    try:
        deadline = time.monotonic() + 240
        while not there() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        assert process.poll() is None, "the run ended before it could be killed"
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def data_versions(project) -> dict:
    with project.instance() as instance:
        return {part: head.data_version for part, head in read_heads(instance).items()}


def test_killed_while_sampling(fresh, made, monkeypatch):
    import m3po_dagster.method.generation.sampler as sampler

    def parts() -> list:
        return list((fresh.folder / "store" / "candidates").glob("*/*/parts/*.parquet"))

    killed_when(fresh, lambda: len(parts()) >= 2)
    kept = len(parts())
    asked = []
    inner = sampler.sample

    def counted(loaded, prompts, *args, **kwargs):
        asked.append(len(prompts))
        return inner(loaded, prompts, *args, **kwargs)

    monkeypatch.setattr(sampler, "sample", counted)
    assert [outcome.error for outcome in fresh.run() if outcome.error] == []
    prompts = sum(
        made.store.find("filtered_instructions", shard, head).manifest.tables["data"].rows
        for shard, head in _heads(made, "filtered_instructions")
    )
    assert sum(asked) == prompts - kept * PART_PROMPTS
    assert data_versions(fresh) == data_versions(made)


def _heads(project, asset):
    with project.instance() as instance:
        return [(part[1], head.fingerprint) for part, head in read_heads(instance, [asset]).items()]


@pytest.mark.slow
@pytest.mark.parametrize("asset", ["mas_table", "preference_pairs", "adapter", "benchmark_answers"])
def test_killed_in_a_later_stage(fresh, made, asset):
    folder = fresh.folder / "store" / asset

    killed_when(fresh, lambda: any(folder.glob("*/*/*")))
    assert [outcome.error for outcome in fresh.run() if outcome.error] == []
    assert data_versions(fresh) == data_versions(made)
