"""Errors for want of memory, as torch, pyarrow and Python word them, and what a user is told."""

import resource
import subprocess
import sys

import pyarrow as pa
import pytest
import torch

from m3po_dagster.graph import STAGES
from m3po_dagster.out_of_memory import out_of_memory, what_to_do

CUDA = torch.OutOfMemoryError(
    "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which 512.00 MiB is "
    "free.\nIf reserved but unallocated memory is large try setting PYTORCH_ALLOC_CONF=expandable_segments:True"
)


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (CUDA, True),
        (MemoryError(), True),
        (pa.ArrowMemoryError("malloc of size 64 failed"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (ValueError("process 1 of 4: CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (OSError(12, "Cannot allocate memory"), False),
        (ValueError("the memory of the judge is bad"), False),
    ],
)
def test_which_errors_are_ones(error, is_one):
    assert out_of_memory(error) is is_one


def test_torchs_own_words_on_a_cpu_are_recognised():
    with pytest.raises(RuntimeError) as met:
        torch.empty(2**60, dtype=torch.uint8)
    assert out_of_memory(met.value)


@pytest.mark.parametrize("asset", STAGES)
def test_each_step_says_what_asks_for_less(asset):
    said = what_to_do(asset, CUDA)
    assert "GPU's memory did not suffice (CUDA out of memory. Tried to allocate 20.00 GiB" in said
    assert "\n" not in said and "PYTORCH" not in said and "Finished parts are kept" in said
    assert what_to_do(asset, MemoryError()).startswith("memory did not suffice (MemoryError).")


def test_the_settings_it_names_are_settings():
    from m3po_dagster.study import Study

    reference = str(Study.model_json_schema())
    named = {
        word.strip(";:,().").rpartition(".")[2]
        for asset in STAGES
        for word in what_to_do(asset, CUDA).split()
        if word.startswith(("generation.", "model.", "trainer.", "training.", "answers.", "dataset.", "confidence."))
    }
    assert named and all(f"'{name}'" in reference for name in named), named


def test_a_process_with_too_little_memory_ends_with_an_error_that_is_recognised():
    """Under a limit of its own: pyarrow and numpy, which hold the tables, say so and don't crash."""
    work = (
        "import resource, numpy, pyarrow as pa\n"
        "from m3po_dagster.out_of_memory import out_of_memory\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), used + (64 << 20)))\n"
        "for work in (lambda: numpy.ones(1 << 30), lambda: pa.concat_arrays([pa.array(range(1 << 10))] * (1 << 20))):\n"
        "    try:\n        work()\n"
        "    except Exception as error:\n        print(out_of_memory(error), type(error).__name__)\n"
    )
    done = subprocess.run([sys.executable, "-c", work], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2 and all(line.startswith("True") for line in lines), lines
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY
