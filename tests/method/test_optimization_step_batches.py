"""How steps are divided over processes and passes: always the same steps."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3po_dagster.method.optimization.step_batches import StepBatches
from m3po_dagster.method.optimization.trainer_settings import AccelerateTrainerSettings, LocalTrainerSettings


def epoch_of(n, batch_size, pass_size, processes, seed=5, epoch=1):
    """Each process's batches of one epoch."""
    found = []
    for process in range(processes):
        batches = StepBatches(n, batch_size, pass_size, processes, process, seed)
        batches.set_epoch(epoch)
        found.append(list(batches))
        assert len(found[-1]) == len(batches)
    return found


@given(n=st.integers(1, 40), pass_size=st.integers(1, 4), passes=st.integers(1, 3), processes=st.integers(1, 5))
def test_the_steps_are_those_of_one_process(n, pass_size, passes, processes):
    batch_size = pass_size * passes * processes
    ((*steps,),) = epoch_of(n, batch_size, batch_size, 1)
    of_each = epoch_of(n, batch_size, pass_size, processes)
    assert len({len(batches) for batches in of_each}) == 1, "all processes take part in every pass"
    start = 0
    for step in steps:
        count = -(-len(step) // (pass_size * processes))
        mine = [batch for batches in of_each for batch in batches[start : start + count]]
        real = [batch for batch in mine if batch != [n]]
        assert sorted(row for batch in real for row in batch) == sorted(step)
        assert max(map(len, real)) <= pass_size and max(map(len, real)) - min(map(len, real)) <= 1
        assert len(mine) - len(real) == max(0, count * processes - len(step))
        start += count
    assert start == len(of_each[0])


def test_epochs_differ_and_an_order_is_its_seeds():
    first, again, other, later = (epoch_of(20, 4, 4, 1, **how) for how in ({}, {}, {"seed": 6}, {"epoch": 2}))
    assert first == again
    assert first != other and first != later


def test_a_batch_size_that_does_not_divide_is_refused():
    two = AccelerateTrainerSettings(processes=2, per_device_batch_size=2)
    assert two.division(8) == (2, 2) and two.division(4) == (2, 1) and two.division(2) == (1, 1)
    with pytest.raises(ValueError, match=r"batch_size 7 .* does not divide over 2 processes .* are 6 and 8"):
        two.division(7)
    with pytest.raises(
        ValueError, match=r"batch_size 6 gives each of 2 process\(es\) 3 examples a step, .* 2 does not"
    ):
        two.division(6)
    assert LocalTrainerSettings().division(8) == (8, 1)
    assert LocalTrainerSettings(per_device_batch_size=2).division(8) == (2, 4)
    assert AccelerateTrainerSettings(processes=4).division(8) == (2, 1)


def test_a_launch_configuration_is_one_that_ships_or_a_file(tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text("distributed_type: MULTI_GPU\n")
    assert AccelerateTrainerSettings(processes=2, config_file=str(own)).launch_config == own
    assert AccelerateTrainerSettings(processes=2, config_file="fsdp").launch_config.is_file()
    with pytest.raises(ValueError, match=r"'fspd' is no configuration that ships \(ddp, deepspeed_zero2,"):
        AccelerateTrainerSettings(processes=2, config_file="fspd")
