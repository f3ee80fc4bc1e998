"""`accelerate launch` of a training: the steps of one process, its errors in a sentence, its end with its owner."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from optimization_world import World

from m3po_dagster.device_use import processor
from m3po_dagster.method.optimization.job import Job, read_job, write_job
from m3po_dagster.method.optimization.launch import environment, launch
from m3po_dagster.method.optimization.settings import DpoSettings, LoraSettings, SftSettings
from m3po_dagster.method.optimization.train import train
from m3po_dagster.method.optimization.trainer_settings import (
    LAUNCH_CONFIGS,
    AccelerateTrainerSettings,
    LocalTrainerSettings,
)

# Steps of 4, 3, 4 and 3 pairs: the last pass of a short one has a pair for one of the two processes.
N, BATCH, STEPS = 7, 4, 4
COMMON = {"batch_size": BATCH, "epochs": 2, "learning_rate": 5e-3, "warmup_ratio": 0}
DPO = DpoSettings(**COMMON, reference_sample=2, nll_weight=0.3)
SFT = SftSettings(**COMMON)
TWO = AccelerateTrainerSettings(processes=2, per_device_batch_size=1, checkpoint_minutes=None)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("launch"), N)


def run(trainer, world, folder, settings=DPO):
    """The result, the adapter's weights and the steps told."""
    from safetensors.torch import load_file

    told = []
    result = train(
        trainer,
        world.settings,
        world.examples,
        settings,
        0,
        folder / "out",
        folder / "scratch",
        lambda *step: told.append(step),
    )
    return result, load_file(folder / "out" / "adapter_model.safetensors"), told


@pytest.mark.parametrize("path", sorted(LAUNCH_CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_configuration_that_ships_is_accelerates_own(path):
    """Its own parser knows every key of it, and every option below a section is one of its launcher's."""
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    config = load_config_from_file(str(path))
    wanted = {"ddp": "MULTI_GPU", "fsdp": "FSDP", "deepspeed_zero2": "DEEPSPEED", "deepspeed_zero3": "DEEPSPEED"}
    assert config.distributed_type == wanted[path.stem]
    assert (config.num_machines, config.use_cpu, config.mixed_precision) == (1, False, "no")
    known = {action.dest for action in launch_command_parser()._actions}
    given = {*config.fsdp_config, *config.deepspeed_config}
    assert given <= known, given - known
    assert bool(given) is (path.stem != "ddp")


def test_a_job_is_read_as_it_was_written(world, tmp_path):
    job = Job(
        model=world.settings,
        training=SFT,
        seed=3,
        out=tmp_path / "out",
        checkpoints=None,
        checkpoint_minutes=0,
        pass_size=2,
        processes=2,
        owner=1,
        owner_started=2.5,
    )
    examples = [*world.examples, replace(world.examples[0], pair_id="x", rejected_ids=None, ref_rejected_logp=None)]
    write_job(tmp_path, job, examples)
    assert read_job(tmp_path) == (job, examples)


class Listening:
    """The addresses that this process's children listen on."""

    def __init__(self) -> None:
        self.found, self._ended = set(), threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> set:
        self._thread.start()
        return self.found

    def __exit__(self, *_) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.05):
            for child in psutil.Process().children(recursive=True):
                try:
                    self.found |= {c.laddr.ip for c in child.net_connections() if c.status == psutil.CONN_LISTEN}
                except psutil.Error:
                    continue


@pytest.fixture(scope="module")
def of_two(world, tmp_path_factory):
    """A DPO run in two processes, and what they listened on."""
    with Listening() as addresses:
        found = run(TWO, world, tmp_path_factory.mktemp("two"))
    return *found, addresses


def same_training(ones, others):
    """Results and weights equal up to rounding."""
    (one, weights, told), (other, their_weights, their_told) = ones, others
    assert told == their_told == [(step, STEPS) for step in range(1, STEPS + 1)]
    assert [sorted(row["pair_ids"]) for row in one.log] == [sorted(row["pair_ids"]) for row in other.log]
    assert [row["pairs_seen"] for row in one.log] == [4, 7, 11, 14]
    for name in ("loss", "learning_rate", "grad_norm", "token_accuracy", "reward_margin", "chosen_logp"):
        assert [row[name] for row in one.log] == pytest.approx([row[name] for row in other.log], abs=1e-4), name
    for table in ("trajectory", "margins"):
        rows, theirs = (sorted(getattr(result, table), key=repr_of) for result in (one, other))
        assert [repr_of(row) for row in rows] == [repr_of(row) for row in theirs]
        for row, their in zip(rows, theirs, strict=True):
            assert row == {k: pytest.approx(v, abs=1e-3) if isinstance(v, float) else v for k, v in their.items()}
    assert weights.keys() == their_weights.keys()
    for name, weight in weights.items():
        # Adam's step is the learning rate whatever the gradient's size: where that is rounding, so is the step's sign.
        difference = (weight - their_weights[name]).abs()
        assert difference.max() < COMMON["learning_rate"] * 0.05, name
        assert difference.mean() < 1e-5, name


def repr_of(row):
    return row["pair_id"], row.get("step", 0)


@pytest.mark.slow
def test_two_processes_train_as_one(world, of_two, tmp_path):
    result, weights, told, addresses = of_two
    # The launched processes' own account: of this one's memory, theirs say nothing.
    assert (result.used["device"], result.used["devices"]) == (processor(), 1)
    assert result.used["peak memory"] > 50_000_000
    same_training((result, weights, told), run(LocalTrainerSettings(), world, tmp_path))
    # Two processes at least met somewhere, and nowhere that a network reaches.
    assert addresses == {"127.0.0.1"}
    in_training = 2 * (2 + 2) * 2
    # Each process compares both sampled pairs, one a pass.
    check, measuring = 2 * 2, 2 * 4
    assert result.counts["language_model_forwards"] == in_training + check + measuring


@pytest.mark.slow
def test_sft_too(world, tmp_path):
    same_training(run(TWO, world, tmp_path / "two", SFT), run(LocalTrainerSettings(), world, tmp_path / "one", SFT))


@pytest.mark.slow
def test_the_first_error_is_the_trainings_in_one_sentence(world, tmp_path):
    off = [replace(example, ref_chosen_logp=example.ref_chosen_logp - 1) for example in world.examples]
    with pytest.raises(ValueError, match=r"^process [01] of 2: the stored reference log-probs are not this model's: "):
        launch(TWO, world.settings, off, DPO, 0, tmp_path / "out", tmp_path / "scratch", lambda *_: None)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_killed_it_ends_altogether_and_goes_on_to_the_same_weights(world, of_two, tmp_path):
    """SIGKILL of the process that waits for the training: the others end; then the training resumes."""
    dropout = DPO.model_copy(update={"lora": LoraSettings(dropout=0.2)})
    trainer = TWO.model_copy(update={"checkpoint_minutes": 0.0})
    whole, weights, _ = run(trainer, world, tmp_path / "undisturbed", dropout)
    job = Job(
        model=world.settings,
        training=dropout,
        seed=0,
        out=tmp_path,
        checkpoints=None,
        checkpoint_minutes=0,
        pass_size=1,
        processes=2,
        owner=os.getpid(),
        owner_started=0,
    )
    (tmp_path / "asked").mkdir()
    write_job(tmp_path / "asked", job, world.examples)
    folder = tmp_path / "killed"
    script = str(Path(__file__).with_name("launched_training.py"))
    command = [sys.executable, script, str(tmp_path / "asked"), str(folder / "out"), str(folder / "scratch")]
    owner = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True)
    assert owner.stdout.readline() == "1\n"
    while not list((folder / "scratch" / "checkpoints").glob("checkpoint-*/whole.json")):
        time.sleep(0.01)
    family = psutil.Process(owner.pid).children(recursive=True)
    assert len(family) >= 3, "the launcher and two workers"
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    _, alive = psutil.wait_procs(family, timeout=60)
    assert alive == []
    result, resumed, told = run(trainer, world, folder, dropout)
    assert result.resumed_from >= 1
    assert [step for step, _ in told] == list(range(result.resumed_from + 1, STEPS + 1))
    assert result.log == whole.log and result.trajectory == whole.trajectory
    assert all(resumed[name].equal(weights[name]) for name in weights)
