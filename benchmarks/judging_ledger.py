"""What a ledger of many replies takes: reading it whole at the first use, and each look after that."""

import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from m3po_dagster.method.alignment.ledger import Ledger
from m3po_dagster.method.alignment.turn import Turn

RUNS = 20
LOOKS = 2000


def write_replies(folder: Path, like: Turn, count: int) -> None:
    """A ledger of `count` replies, each as `like` with a key of its own, of a few runs of one study."""
    (folder / like.model).mkdir(parents=True)
    with open(folder / like.model / "20260101T000000Z-1-00000000.jsonl", "wb") as file:
        for run in range(RUNS):
            line = replace(like, study="earlier", run=f"run {run}").to_line()
            before, after = line.split(like.key.encode(), 1)
            for _ in range(count * run // RUNS, count * (run + 1) // RUNS):
                file.write(before + secrets.token_hex(32).encode() + after)


def measured_apart(folder: Path, like: Turn) -> dict:
    """What `measure` gives in a process of its own, whose peak memory is the ledger's alone."""
    code = (
        "import json; from pathlib import Path; from judging_ledger import measure; "
        f"print(json.dumps(measure(Path({str(folder)!r}), {like.to_line()!r})))"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, check=True, stdout=subprocess.PIPE)
    return json.loads(found.stdout)


def measure(folder: Path, like: bytes) -> dict:
    """CPU seconds and peak memory of the first look, and CPU microseconds of each kind of look after it."""
    turn = Turn.from_line(like)
    size = sum(path.stat().st_size for path in folder.rglob("*.jsonl"))
    before, cpu, wall = _memory_mb("VmRSS"), time.process_time(), time.monotonic()
    ledger = Ledger(folder)
    replies = ledger.spent().requests
    found = {
        "replies": replies,
        "file_mb": size / 1e6,
        "cpu_s": time.process_time() - cpu,
        "wall_s": time.monotonic() - wall,
        "memory_mb": _memory_mb("VmHWM") - before,
    }
    keys = [secrets.token_hex(32) for _ in range(LOOKS)]
    return found | {
        "unknown_key_us": _microseconds(ledger.turns, keys),
        "add_us": _microseconds(lambda key: ledger.add(replace(turn, key=key)), keys),
        "known_key_us": _microseconds(ledger.turns, keys),
        "measured_us": _microseconds(lambda _: ledger.measured(turn.model), keys),
    }


def _microseconds(look: Callable[[str], object], keys: list[str]) -> float:
    cpu = time.process_time()
    for key in keys:
        look(key)
    return (time.process_time() - cpu) / len(keys) * 1e6


def _memory_mb(name: str) -> float:
    # Linux gives a child's ru_maxrss from its parent's; these are the process's own.
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise KeyError(name)


def last_turn(folder: Path) -> Turn:
    """The last reply that was added to a ledger of one file."""
    (path,) = folder.rglob("*.jsonl")
    with open(path, "rb") as file:
        file.seek(max(0, os.path.getsize(path) - (1 << 16)))
        return Turn.from_line(file.read().splitlines()[-1])
