"""What fits in memory, found by halving (paper, section 3.2)."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

TRY_MORE_AFTER = 64

_LOG = logging.getLogger(__name__)


@dataclass
class MemoryLimits:
    """What fitted at once since something did not; None: as much as asked for.

    `prompts` in flight; `rows` of one prompt, where prompts go one by one; `answers` that are scored together.
    """

    prompts: int | None = None
    rows: int | None = None
    answers: int | None = None
    fitted: int = 0
    """Batches that fitted since the last one that did not."""

    def note_fit(self, prompts: int, rows: int) -> None:
        """A batch fitted. After TRY_MORE_AFTER of them twice as much is tried, up to what is asked for.

        One large image may have been the cause, and must not slow down all that comes after it.
        """
        self.fitted += 1
        if self.fitted < TRY_MORE_AFTER:
            return
        self.fitted = 0
        if self.rows is not None:
            self.rows = 2 * self.rows if 2 * self.rows < rows else None
        elif self.prompts is not None:
            self.prompts = 2 * self.prompts if 2 * self.prompts < prompts else None

    def halve_sampling(self, prompts: int, rows: int) -> bool:
        """After `prompts` of `rows` rows each did not fit: from now on half, and says so. False: there is no half."""
        self.fitted = 0
        if prompts > 1:
            self.prompts = prompts // 2
            _LOG.warning("%d prompts in flight did not fit in memory: going on with %d", prompts, self.prompts)
        elif rows > 1:
            self.prompts, self.rows = 1, rows // 2
            _LOG.warning("%d rows of a prompt did not fit in memory: going on with %d at a time", rows, self.rows)
        return prompts > 1 or rows > 1

    def halve_scoring(self, answers: int) -> bool:
        """As `halve_sampling`, for answers that are scored together."""
        if answers > 1:
            self.answers = answers // 2
            _LOG.warning("%d answers did not fit in memory: scoring %d at a time", answers, self.answers)
        return answers > 1


def fitting(work: Callable[[], T]) -> T | None:
    """What `work` gives; None when memory did not suffice, all that it had taken free again."""
    from accelerate.utils.memory import clear_device_cache

    try:
        return work()
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
    # Only here: the error's traceback would hold what is to be freed.
    clear_device_cache(garbage_collection=True)
    return None


def out_of_memory(error: Exception) -> bool:
    """Whether an allocation failed, on a GPU or in the CPU's memory."""
    from accelerate.utils.memory import should_reduce_batch_size

    return isinstance(error, MemoryError) or should_reduce_batch_size(error)


def too_little(what: str, device: str) -> MemoryError:
    """The error to raise when there is nothing left to halve."""
    return MemoryError(
        f"{what} doesn't fit in the memory of {device}: close what else uses it, ask for fewer new tokens, or set "
        "model.dtype, model.quantization or model.device_map"
    )
