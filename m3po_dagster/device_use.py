"""What a step takes of the machine, for its manifest: the device it works on, and the most memory it holds there."""

import os
import platform
import resource
import sys
from functools import lru_cache
from pathlib import Path
from types import ModuleType

SERVER = "a server"
"""Stands for the device where the model is served: what runs it is not known here."""

DEVICE, DEVICES, PEAK_MEMORY = "device", "devices", "peak memory"
"""Names of these facts in a manifest's metadata."""

_STATUS = Path("/proc/self/status")


class DeviceUse:
    """Made when the work begins; `facts` when it is done.

    One at a time in a process: a new one counts memory from now on, for whoever asks later.
    """

    def __init__(self, served: bool = False) -> None:
        """`served`: the model at work is on a server, so that nothing is known of device or memory."""
        self._served = served
        if (torch := torch_with_gpu()) is not None:
            for number in range(torch.cuda.device_count()):
                torch.cuda.reset_peak_memory_stats(number)
        _reset_resident_peak()

    def facts(self) -> dict[str, object]:
        """The name of the device, how many were at work, and the peak memory of the fullest one, in bytes.

        On a GPU that is what was allocated; without one, the process's peak resident set. None for a server.
        """
        if self._served:
            return {DEVICE: SERVER, DEVICES: 1, PEAK_MEMORY: None}
        if (torch := torch_with_gpu()) is not None:
            peaks = [torch.cuda.max_memory_allocated(number) for number in range(torch.cuda.device_count())]
            if used := [number for number, peak in enumerate(peaks) if peak]:
                return {
                    DEVICE: torch.cuda.get_device_name(used[0]),
                    DEVICES: len(used),
                    PEAK_MEMORY: max(peaks),
                }
        return {DEVICE: processor(), DEVICES: 1, PEAK_MEMORY: resident_peak()}


def torch_with_gpu() -> ModuleType | None:
    """Torch once something has used a GPU through it: a step that loads no model must not load torch for this."""
    torch = sys.modules.get("torch")
    return torch if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized() else None


@lru_cache(maxsize=1)
def processor() -> str:
    """The processor's name and how many of its cores this process may use: `AMD EPYC 7B13, 2 cores`."""
    described = Path("/proc/cpuinfo")
    lines = described.read_text(encoding="utf-8").splitlines() if described.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{names[0] if names else platform.processor() or platform.machine()}, {cores} cores"


def resident_peak() -> int:
    """The process's peak resident set in bytes: since the last DeviceUse on Linux, elsewhere since it started."""
    if _STATUS.exists():
        # What getrusage says a process takes over from whoever started it.
        (peak,) = (line for line in _STATUS.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM:"))
        return int(peak.split()[1]) * 1024
    # macOS counts bytes, others kibibytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _reset_resident_peak() -> None:
    """Linux forgets the peak when it is told to; where it may not be told, the peak stays that of the process."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return
