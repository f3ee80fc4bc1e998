"""Work that many threads want done at once, done once for all of them: one request where there would be many."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

Found = TypeVar("Found")


class Coalesced(Generic[Found]):
    """Calls of it share runs of `work`, of which there is one at a time. Safe to use from many threads."""

    def __init__(self, work: Callable[[], Found]) -> None:
        self._work = work
        self._lock, self._running = threading.Lock(), threading.Lock()
        self._next: Future[Found] | None = None

    def __call__(self) -> Found:
        """What a run gives that begins after this call. Raises what that run raises, in all threads that share it."""
        with self._lock:
            run, mine = self._next or Future(), self._next is None
            self._next = run
        if not mine:
            return run.result()
        try:
            with self._running:
                with self._lock:
                    self._next = None  # who comes from now on may have come too late for this run
                found = self._work()
        except BaseException as error:
            with self._lock:
                if self._next is run:
                    self._next = None
            run.set_exception(error)
            raise
        run.set_result(found)
        return found
