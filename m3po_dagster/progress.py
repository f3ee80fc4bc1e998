"""Progress of long work: a bar on a terminal, a line with the rate in the log every few seconds."""

import sys
import time
from collections.abc import Callable
from contextlib import contextmanager

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def progress(log: Callable[[str], None], label: str, unit: str):
    """Gives a callback `advance(done, total)`; `done` counts from 0 to `total` over the whole work.

    A total of 0 is an unknown one.
    """
    bar = tqdm(desc=label, unit=unit, disable=not sys.stderr.isatty(), leave=False)
    started = last_line = time.monotonic()

    def advance(done: int, total: int) -> None:
        nonlocal last_line
        bar.total = total or None
        bar.update(done - bar.n)
        now = time.monotonic()
        if now - last_line >= SECONDS_BETWEEN_LINES or done == total:
            last_line = now
            of = f" of {total}" if total else ""
            log(f"{label}: {done}{of} {unit}s, {done / max(now - started, 1e-9):.1f} {unit}s/s")

    try:
        yield advance
    finally:
        bar.close()
