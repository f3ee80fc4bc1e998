"""SIGKILL in a stage, then a re-run: the table an undisturbed run gives, and no prompt of a whole part asked again."""

import signal
import subprocess
import sys
import time

import pyarrow.parquet as pq
import pytest

from m3po_dagster.current import read_heads


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


def assert_same_tables(project, other) -> None:
    """The same rows in the same order; numbers to 1e-5, since arithmetic in another process may round otherwise."""
    tables = []
    for one in (project, other):
        with one.instance() as instance:
            heads = read_heads(instance)
        tables.append({part: one.store.find(*part, head.fingerprint) for part, head in heads.items()})
    assert set(tables[0]) == set(tables[1])
    for part, artifact in tables[0].items():
        if part[0] == "lora_adapter":
            # An adapter is named by its weights; what it answers is in benchmark_scores.
            continue
        ours, theirs = (found.table().to_pylist() for found in (artifact, tables[1][part]))
        assert ours == [_approximately(row) for row in theirs], part


def _approximately(row: dict) -> dict:
    return {name: pytest.approx(value, abs=1e-5) if _is_number(value) else value for name, value in row.items()}


def _is_number(value: object) -> bool:
    """A float, or a list of them: the log-probs of an answer's tokens."""
    return isinstance(value, float) or (isinstance(value, list) and any(isinstance(item, float) for item in value))


@pytest.mark.slow
def test_killed_while_sampling(fresh, made, monkeypatch):
    from m3po_dagster.method.generation.sampler import TransformersEngine

    def parts() -> list:
        return list((fresh.folder / "store" / "candidates").glob("*/*/parts/*.parquet"))

    killed_when(fresh, lambda: len(parts()) >= 2)
    kept = {key for path in parts() for key in pq.read_table(path, columns=["prompt_id"])["prompt_id"].to_pylist()}
    asked = []
    inner = TransformersEngine.sample

    def counted(self, prompts, *args, **kwargs):
        asked.extend(prompt.prompt_id for prompt in prompts)
        return inner(self, prompts, *args, **kwargs)

    monkeypatch.setattr(TransformersEngine, "sample", counted)
    assert [outcome.error for outcome in fresh.run() if outcome.error] == []
    prompts = {
        key
        for shard, head in _heads(made, "filtered_instructions")
        for key in made.store.find("filtered_instructions", shard, head).table()["prompt_id"].to_pylist()
    }
    assert kept and sorted(asked) == sorted(prompts - kept)
    assert_same_tables(fresh, made)


def _heads(project, asset):
    with project.instance() as instance:
        return [(part[1], head.fingerprint) for part, head in read_heads(instance, [asset]).items()]


@pytest.mark.slow
@pytest.mark.parametrize("asset", ["mas_table", "preference_pairs", "adapter", "benchmark_answers"])
def test_killed_in_a_later_stage(fresh, made, asset):
    folder = fresh.folder / "store" / asset

    killed_when(fresh, lambda: any(folder.glob("*/*/*")))
    assert [outcome.error for outcome in fresh.run() if outcome.error] == []
    assert_same_tables(fresh, made)


@pytest.mark.parametrize("what", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_an_interrupt_ends_the_whole_command_and_keeps_what_is_done(fresh, what):
    store = fresh.folder / "store"
    process = start(fresh)
    while not list((store / "candidates").glob("*/*/parts/*.parquet")) and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(what)
    assert process.wait(60) == 130
    assert list((store / "candidates").glob("*/*/parts/*.parquet"))
    assert not (store / "preference_pairs").exists()
