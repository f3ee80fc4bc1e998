"""Which machine a process id belongs to: a host may restart, change its name, or be one of several containers."""

import os
import socket
from functools import lru_cache
from pathlib import Path

import psutil


@lru_cache(maxsize=1)
def this_machine() -> str:
    """Host name, start of the system and space of process ids, as far as the system tells them apart."""
    boot, ids = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    started = boot.read_text().strip() if boot.is_file() else f"{psutil.boot_time():.0f}"
    space = os.readlink(ids) if os.path.islink(ids) else "all"
    return f"{socket.gethostname()} {started} {space}"


def same_machine(other: str) -> bool | None:
    """Whether process ids of `other` are those of this machine; None when it is this one before a restart."""
    (mine_host, *mine), (host, *theirs) = this_machine().split(" "), other.split(" ")
    if mine == theirs:
        return True
    restarted = host == mine_host and theirs[-1:] == mine[-1:] and theirs[:1] != mine[:1]
    return None if restarted else False
