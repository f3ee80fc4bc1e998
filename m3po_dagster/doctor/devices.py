"""torch and the devices it can use: whether they are there and compute."""

import shutil
from collections.abc import Iterator

from m3po_dagster.doctor.findings import Finding, note, ok, problem
from m3po_dagster.method.generation.settings import ModelSettings

_SIDE = 256
_TOLERANCE = 1e-2
"""Relative: a GPU may multiply in TF32."""


def check_devices(model: ModelSettings) -> Iterator[Finding]:
    """Computes a product on each device; `model` says whether a GPU is asked for."""
    try:
        import torch

        from m3po_dagster.torchvision_repair import repair_torchvision

        repair_torchvision()
        import torchvision
    except (ImportError, OSError, RuntimeError) as error:
        yield problem("torch", f"can't be imported: {str(error).splitlines()[0]}", "Set the environment up anew")
        return
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
    yield ok(
        "torch",
        f"{torch.__version__} ({build}), torchvision {torchvision.__version__}, {torch.get_num_threads()} threads",
    )
    if not torch.cuda.is_available():
        yield _no_gpu(model, torch.version.cuda is not None)
        return
    for number in range(torch.cuda.device_count()):
        yield _gpu(number)


def _no_gpu(model: ModelSettings, cuda_build: bool) -> Finding:
    driver = shutil.which("nvidia-smi")
    why = "torch sees none" if cuda_build else "this torch is a build for CPUs"
    if model.device == "cuda":
        return problem("GPU", f"model.device is cuda, {why}", "Install torch's CUDA build and a driver, or use auto")
    if driver and not cuda_build:
        return problem("GPU", f"{driver} is here, but {why}", "Install torch's CUDA build to use the GPU")
    return note("GPU", f"none ({why}): a model of billions of weights is slow here")


def _gpu(number: int) -> Finding:
    import torch

    from m3po_dagster.out_of_memory import out_of_memory

    name = f"GPU {number}"
    try:
        properties = torch.cuda.get_device_properties(number)
        free, total = torch.cuda.mem_get_info(number)
        left = torch.rand(_SIDE, _SIDE)
        there = left.to(f"cuda:{number}")
        gap = ((there @ there).cpu() - left @ left).abs().max() / (left @ left).abs().max()
    except RuntimeError as error:
        said = str(error).splitlines()[0]
        if out_of_memory(error):
            return problem(name, f"its memory is full ({said})", "End what else uses it: nvidia-smi lists it")
        return problem(name, f"can't compute: {said}", "Check that driver and torch's CUDA fit (nvidia-smi)")
    what = f"{properties.name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
    if not gap < _TOLERANCE:
        return problem(name, f"{what}, but computes wrongly: off by {float(gap):.2g}", "Use another GPU")
    return ok(name, what)
