"""What fits in memory, found by halving (paper, section 3.2)."""

import logging
from dataclasses import dataclass

_LOG = logging.getLogger(__name__)


@dataclass
class MemoryLimits:
    """The most prompts in flight, and rows of one prompt at once, since a batch did not fit; None: as asked for."""

    prompts: int | None = None
    rows: int | None = None

    def capped(self, prompts: int, rows: int) -> tuple[int, int]:
        """`prompts` and `rows`, or fewer. Rows are grouped only where prompts go one by one."""
        return min(prompts, self.prompts or prompts), min(rows, self.rows or rows)

    def halve(self, prompts: int, rows: int) -> bool:
        """After `prompts` of `rows` rows each did not fit: goes on with half, and says so. False when there is none."""
        if prompts > 1:
            self.prompts = prompts // 2
        elif rows > 1:
            self.prompts, self.rows = 1, rows // 2
        else:
            return False
        _LOG.warning(
            "%d prompts with %d rows each did not fit in memory: going on with %s prompts in flight%s",
            prompts,
            rows,
            self.prompts,
            f" in groups of {self.rows} rows" if self.rows else "",
        )
        return True


def out_of_memory(error: Exception) -> bool:
    """Whether an allocation failed, on a GPU or in the CPU's memory; if so, frees what is cached."""
    from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

    if isinstance(error, MemoryError) or should_reduce_batch_size(error):
        clear_device_cache(garbage_collection=True)
        return True
    return False
