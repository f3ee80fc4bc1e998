"""A few results kept for the next request. Requests are answered by several threads at once."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Generic, TypeVar

Result = TypeVar("Result")


class Kept(Generic[Result]):
    """The last `size` results by key; what was asked for longest ago goes first."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._results: OrderedDict[Hashable, Result] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], Result]) -> Result:
        """The result kept under `key`, or a new one. Two threads may make the same one; both get a good one."""
        (result,) = self.get_all([key], lambda _: [make()])
        return result

    def get_all(self, keys: Sequence[Hashable], make: Callable[[Sequence[Hashable]], Sequence[Result]]) -> list[Result]:
        """The results of different keys; `make` is asked once for all that are not kept, in their order."""
        with self._lock:
            found = {key: self._results[key] for key in keys if key in self._results}
            for key in found:
                self._results.move_to_end(key)
        lacking = [key for key in keys if key not in found]
        if lacking:
            found |= zip(lacking, make(lacking), strict=True)
        with self._lock:
            for key in lacking:
                self._results[key] = found[key]
            while len(self._results) > self._size:
                self._results.popitem(last=False)
        return [found[key] for key in keys]
