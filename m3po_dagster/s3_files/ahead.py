"""Files of a bucket fetched before they are asked for, many at once: who computes on them never waits for one.

with ahead(prompt.image_path for prompt in prompts):
    ...  # opens them, about in this order
"""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from m3po_dagster.s3_files.cache import ObjectCache, object_cache
from m3po_dagster.s3_files.path import S3Path
from m3po_dagster.storage.errors import StoreError
from m3po_dagster.storage.s3 import Seen

Item = TypeVar("Item")
Answer = TypeVar("Answer")
WINDOW, THREADS = 512, 24
"""Files fetched beyond the last that was asked for, and requests at once."""


class Plan:
    """Files in the order in which they will be asked for; threads fetch those of the window.

    `fetched`: file -> its copy, and the object as it was when that was made.
    The window moves on as files are asked for, so that no more is fetched than a small cache can hold until it is read.
    """

    def __init__(self, cache: ObjectCache, files: Sequence[S3Path], window: int) -> None:
        self._cache, self._files, self._window = cache, files, window
        self._place = {file: place for place, file in enumerate(files)}
        self._queue: queue.SimpleQueue[S3Path | None] = queue.SimpleQueue()
        self._lock, self._next, self._threads = threading.Lock(), 0, min(THREADS, len(files))
        self.fetched: dict[S3Path, tuple[Path, Seen]] = {}
        # As daemons: a service that is away would keep the process from ending.
        for number in range(self._threads):
            threading.Thread(target=self._fetch, name=f"ahead {number}", daemon=True).start()
        self._move(0)

    def reached(self, file: S3Path) -> None:
        """Moves the window on to a file that was asked for; nothing for one that is not of the plan."""
        if (place := self._place.get(file)) is not None:
            self._move(place)

    def end(self) -> None:
        """Fetches no more."""
        with self._lock:
            self._next = len(self._files)
            with suppress(queue.Empty):
                while True:
                    self._queue.get_nowait()
            for _ in range(self._threads):
                self._queue.put(None)

    def _move(self, place: int) -> None:
        with self._lock:
            end = min(len(self._files), place + self._window)
            for file in self._files[self._next : end]:
                self._queue.put(file)
            self._next = max(self._next, end)

    def _fetch(self) -> None:
        while (file := self._queue.get()) is not None:
            # Whoever asks for the file is told what is wrong with it.
            with suppress(OSError, StoreError):
                self.fetched[file] = self._cache.fetch(file)


@contextmanager
def ahead(paths: Iterable[Path], window: int = WINDOW) -> Iterator[None]:
    """Fetches those of the paths that lie in a bucket while the block asks for them; nothing for files of this machine.

    They may be asked for in another order, only later then.
    """
    files = list(dict.fromkeys(path for path in paths if isinstance(path, S3Path)))
    if not files:
        yield
        return
    cache = object_cache()
    plan = Plan(cache, files, window)
    cache.plans.append(plan)
    try:
        yield
    finally:
        cache.plans.remove(plan)
        plan.end()


def side_by_side(call: Callable[[Item], Answer], items: Sequence[Item], waits: bool) -> list[Answer]:
    """Each item's answer in order; many at once where they wait for a service. Raises what the first failed with."""
    if not waits or len(items) < 2:
        return [call(item) for item in items]
    with ThreadPoolExecutor(min(THREADS, len(items)), thread_name_prefix="waiting") as pool:
        return list(pool.map(call, items))
