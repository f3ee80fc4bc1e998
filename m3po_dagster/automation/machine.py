"""Which machine a process id belongs to: a host may restart, change its name, or be one of several containers."""

import os
import socket
from functools import lru_cache
from pathlib import Path

import psutil

NAME_VARIABLE = "M3PO_MACHINE"
"""Environment variable by which a deployment names the one container that its runs are in. Started anew, a container
has another space of process ids and often another host name; under this name it is known that its predecessor is gone.
"""
_NAMED = "="  # no host name begins so


@lru_cache(maxsize=1)
def this_machine() -> str:
    """The deployment's name for it or the host name, start of the system and space of process ids.

    As far as the system tells them apart."""
    name = os.environ.get(NAME_VARIABLE, "").split()
    host = _NAMED + "-".join(name) if name else socket.gethostname()
    boot, ids = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    started = boot.read_text().strip() if boot.is_file() else f"{psutil.boot_time():.0f}"
    space = os.readlink(ids) if os.path.islink(ids) else "all"
    return f"{host} {started} {space}"


def same_machine(other: str) -> bool | None:
    """Whether process ids of `other` are those of this machine; None when it is this one before a restart.

    Of two containers that a deployment gave the same name, the other one is the former.
    """
    (mine_host, *mine), (host, *theirs) = this_machine().split(" "), other.split(" ")
    if mine == theirs:
        return True
    restarted = theirs[-1:] == mine[-1:] and theirs[:1] != mine[:1]
    return None if host == mine_host and (restarted or host.startswith(_NAMED)) else False
