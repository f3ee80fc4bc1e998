"""A training that was broken off goes on from its last whole checkpoint, and ends as if nothing had been."""

import json
import logging
import shutil
from dataclasses import asdict
from types import SimpleNamespace

import pytest
from optimization_world import World

from m3po_dagster.method.optimization.checkpoints import ROWS, WHOLE, Checkpoints
from m3po_dagster.method.optimization.dpo import train_dpo
from m3po_dagster.method.optimization.execution import Execution
from m3po_dagster.method.optimization.settings import DpoSettings, LoraSettings, SftSettings
from m3po_dagster.method.optimization.sft import train_sft

N, BATCH, EPOCHS = 10, 4, 2
STEPS = 6
# Dropout draws random numbers in every step, and a cosine tells the steps' learning rates apart.
COMMON = {"batch_size": BATCH, "epochs": EPOCHS, "learning_rate": 5e-3, "schedule": "cosine"}
DPO = DpoSettings(**COMMON, reference_sample=1, lora=LoraSettings(dropout=0.2))
SFT = SftSettings(**COMMON, lora=LoraSettings(dropout=0.2))


def slow(value):
    return pytest.param(value, marks=pytest.mark.slow)


class Broken(Exception):
    """What ends an attempt."""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("checkpoints"), N)


def train(world, out, execution, break_at=None, settings=DPO):
    """The adapter's bytes, the result, and the steps that were done."""
    done = []

    def progress(step, steps):
        done.append(step)
        # A step is told before its checkpoint is written: this one's never is.
        if step == break_at:
            raise Broken

    run = train_dpo if settings.kind == "dpo" else train_sft
    result = run(world.settings, world.examples, settings, 3, out, progress, execution)
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}, result, done


@pytest.fixture(scope="module")
def undisturbed(world, tmp_path_factory):
    return train(world, tmp_path_factory.mktemp("undisturbed"), Execution())


def every_step(folder) -> Execution:
    return Execution(checkpoints=Checkpoints(folder, minutes=0))


def figures(result) -> dict:
    """All of a result but what depends on the attempts."""
    told = {name: value for name, value in asdict(result).items() if name not in ("seconds", "counts", "resumed_from")}
    return {**told, "health": {name: value for name, value in told["health"].items() if name != "seconds"}}


# In the first epoch, at its end, in the second.
@pytest.mark.parametrize("break_at", [slow(2), slow(4), 6])
def test_it_ends_with_the_same_weights_byte_by_byte(world, undisturbed, tmp_path, break_at):
    with pytest.raises(Broken):
        train(world, tmp_path / "out", every_step(tmp_path / "checkpoints"), break_at)
    assert [path.name for path in (tmp_path / "checkpoints").glob("checkpoint-*")] == [f"checkpoint-{break_at - 1}"]
    files, result, done = train(world, tmp_path / "out", every_step(tmp_path / "checkpoints"))
    assert files == undisturbed[0]
    assert done == list(range(break_at, STEPS + 1))
    assert figures(result) == figures(undisturbed[1])
    assert result.resumed_from == break_at - 1


@pytest.mark.slow
def test_counts_and_seconds_are_the_whole_trainings(world, undisturbed, tmp_path):
    with pytest.raises(Broken):
        train(world, tmp_path / "out", every_step(tmp_path / "checkpoints"), 3)
    spent = json.loads((tmp_path / "checkpoints" / "checkpoint-2" / ROWS).read_text())["spent"]
    _, result, _ = train(world, tmp_path / "out", every_step(tmp_path / "checkpoints"))
    check = 1
    assert spent["counts"]["language_model_forwards"] == check + 2
    forwards = undisturbed[1].counts["language_model_forwards"]
    assert result.counts["language_model_forwards"] == forwards + check
    assert result.seconds > spent["seconds"] > 0


@pytest.mark.slow
def test_sft_too(world, tmp_path):
    files, whole, _ = train(world, tmp_path / "undisturbed", Execution(), settings=SFT)
    with pytest.raises(Broken):
        train(world, tmp_path / "out", every_step(tmp_path / "checkpoints"), 5, SFT)
    again, result, done = train(world, tmp_path / "out", every_step(tmp_path / "checkpoints"), settings=SFT)
    assert (again, done, figures(result)) == (files, [5, 6], figures(whole))


@pytest.mark.parametrize("damage", [slow("no list"), "a file cut", slow("a file gone")])
def test_a_checkpoint_that_is_not_whole_is_passed_over(world, undisturbed, tmp_path, damage, caplog):
    folder = tmp_path / "checkpoints"
    with pytest.raises(Broken):
        train(world, tmp_path / "out", every_step(folder), 3)
    # As if the second had been there still while the third was written.
    damaged = folder / "checkpoint-3"
    shutil.copytree(folder / "checkpoint-2", damaged)
    weights = damaged / "adapter_model.safetensors"
    if damage == "no list":
        (damaged / WHOLE).unlink()
    elif damage == "a file cut":
        weights.write_bytes(weights.read_bytes()[:-4])
    else:
        (damaged / "optimizer.pt").unlink()
    with caplog.at_level(logging.WARNING):
        files, result, done = train(world, tmp_path / "out", every_step(folder))
    assert (files, done, result.resumed_from) == (undisturbed[0], [3, 4, 5, 6], 2)
    assert "checkpoint-3 is not taken up: its" in caplog.text


@pytest.fixture
def at_step():
    """As much of a trainer as its checkpoints need, at one step of a training."""
    from accelerate import Accelerator

    def make(step: int) -> SimpleNamespace:
        return SimpleNamespace(
            accelerator=Accelerator(cpu=True),
            args=SimpleNamespace(per_device_train_batch_size=BATCH),
            state=SimpleNamespace(global_step=step),
            step_rows=[{"step": step}],
            trajectory=[],
        )

    return make


def written(folder, trainer, keep=()):
    """The checkpoint of the trainer's step, written as `Checkpoints` does; `keep` stays beside it."""
    kept = {path: path.rename(path.with_name("kept")) for path in keep}
    place = folder / f"checkpoint-{trainer.state.global_step}"
    place.mkdir(parents=True)
    (place / "adapter_model.safetensors").write_bytes(b"weights")
    checkpoints = Checkpoints(folder, minutes=0)
    checkpoints.spent = lambda: {"seconds": 1.0, "counts": {}}
    checkpoints.complete(trainer)
    for path, aside in kept.items():
        aside.rename(path)
    return place


@pytest.mark.parametrize("content", ["", "{", "{}", "[]", '{"layout": 1, "files": 3}', b"\xff"], ids=repr)
def test_a_list_that_cannot_be_read_stops_no_later_attempt(at_step, tmp_path, caplog, content):
    older = written(tmp_path, at_step(2))
    newer = written(tmp_path, at_step(3), keep=[older])
    (newer / WHOLE).write_bytes(content if isinstance(content, bytes) else content.encode())
    checkpoints, trainer = Checkpoints(tmp_path, minutes=0), at_step(0)
    with caplog.at_level(logging.WARNING):
        assert checkpoints.take_up(trainer) == str(older)
    checkpoints.release()
    assert f"checkpoint-3 is not taken up: its list of files, {WHOLE}, can't be read" in caplog.text
    assert trainer.step_rows == [{"step": 2}] and not newer.exists()


def test_what_lies_beside_the_checkpoints_is_left_alone(at_step, tmp_path):
    mine = written(tmp_path, at_step(2))
    (tmp_path / "checkpoint-old").mkdir()
    (tmp_path / "checkpoint-7").write_text("no folder")
    checkpoints = Checkpoints(tmp_path, minutes=0)
    assert checkpoints.take_up(at_step(0)) == str(mine)
    checkpoints.release()
    written(tmp_path, at_step(4))
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-4", "checkpoint-7", "checkpoint-old", "lock"}


@pytest.mark.slow
def test_nothing_is_written_before_its_time_and_a_long_training_keeps_its_end(world, tmp_path):
    train(world, tmp_path / "out", Execution(checkpoints=Checkpoints(tmp_path / "rarely", minutes=60)))
    assert [path.name for path in (tmp_path / "rarely").iterdir()] == ["lock"]
    train(world, tmp_path / "out", every_step(tmp_path / "often"))
    kept = tmp_path / "often" / f"checkpoint-{STEPS}"
    assert sorted(path.name for path in (tmp_path / "often").iterdir()) == [kept.name, "lock"]
    assert {"adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", ROWS, WHOLE} <= {
        path.name for path in kept.iterdir()
    }
    files, result, done = train(world, tmp_path / "again", every_step(tmp_path / "often"))
    assert done == [] and result.resumed_from == STEPS
    assert files["adapter_model.safetensors"] == (tmp_path / "out" / "adapter_model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_checkpoint_of_another_division_is_not_taken_up(world, undisturbed, tmp_path, caplog):
    folder = tmp_path / "checkpoints"
    with pytest.raises(Broken):
        train(world, tmp_path / "out", Execution(Checkpoints(folder, minutes=0), pass_size=2), 3)
    with caplog.at_level(logging.WARNING):
        files, _, done = train(world, tmp_path / "out", every_step(folder))
    assert (files, done) == (undisturbed[0], list(range(1, STEPS + 1)))
    assert "'pass_size': 2}, this one is" in caplog.text


@pytest.mark.parametrize("settings", [DPO.model_copy(update={"nll_weight": 0.5}), SFT], ids=["dpo", "sft"])
def test_passes_are_the_same_step(world, tmp_path, settings):
    """Fewer examples at once: the same losses, gradients and rows up to rounding, a short last step included."""
    settings = settings.model_copy(update={"lora": LoraSettings()})
    runs = [train(world, tmp_path / str(size), Execution(pass_size=size), settings=settings)[1] for size in (None, 2)]
    for name in ("loss", "grad_norm", "token_accuracy", "reward_margin", "chosen_logp"):
        one, other = ([row[name] for row in run.log] for run in runs)
        assert one == pytest.approx(other, abs=1e-4), name
    assert [sorted(row["pair_ids"]) for row in runs[0].log] == [sorted(row["pair_ids"]) for row in runs[1].log]
    rows, theirs = ({(row["pair_id"], row["step"]): row for row in run.trajectory} for run in runs)
    assert rows.keys() == theirs.keys()
    assert [row["loss"] for row in rows.values()] == pytest.approx([theirs[key]["loss"] for key in rows], abs=1e-4)
    in_training = [
        run.counts["language_model_forwards"] - -(-N // size) for run, size in zip(runs, (4, 2), strict=True)
    ]
    check = 1 if settings.kind == "dpo" else 0
    assert in_training == [2 * 3 + check, 2 * 5 + check]
