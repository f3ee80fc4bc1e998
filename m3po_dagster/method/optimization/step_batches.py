"""Which examples are in which step, and which process computes which of them in which pass.

A step is the recipe's batch. However many processes share it and however few examples each takes at once, the steps
hold the same examples in the same order of steps: what one process does in one pass is what defines them.
"""

from collections.abc import Iterator


class StepBatches:
    """The batches of one process, an epoch an iteration, as lists of indices into `n` examples.

    `batch_size` examples make a step, the last one of an epoch takes what is left; `pass_size` is the most that a
    process takes at once. The order is drawn from `seed` and the epoch, as TRL's trainers draw it for one process.
    Every process gets the same number of batches, for all must take part in every pass: one that would have none gets
    the index `n`, a stand-in that counts nothing.
    """

    def __init__(self, n: int, batch_size: int, pass_size: int, processes: int, process: int, seed: int) -> None:
        from accelerate.data_loader import SeedableRandomSampler

        self._n, self._batch_size, self._pass_size = n, batch_size, pass_size
        self._processes, self._process = processes, process
        self._order = SeedableRandomSampler(range(n), data_seed=seed)

    def set_epoch(self, epoch: int) -> None:
        """Says which epoch the next iteration is; transformers' trainer does, also when it resumes in the middle."""
        self._order.set_epoch(epoch)

    def __len__(self) -> int:
        full, rest = divmod(self._n, self._batch_size)
        return full * self._passes(self._batch_size) + self._passes(rest)

    def __iter__(self) -> Iterator[list[int]]:
        order = list(self._order)
        for start in range(0, self._n, self._batch_size):
            yield from self._mine(order[start : start + self._batch_size])

    def _passes(self, size: int) -> int:
        return -(-size // (self._pass_size * self._processes))

    def _mine(self, step: list[int]) -> Iterator[list[int]]:
        """This process's batches of a step: the step cut as evenly as can be, passes before processes."""
        pieces = self._passes(len(step)) * self._processes
        least, longer = divmod(len(step), pieces)
        ends = [least * i + min(i, longer) for i in range(pieces + 1)]
        for piece in range(self._process, pieces, self._processes):
            yield step[ends[piece] : ends[piece + 1]] or [self._n]
