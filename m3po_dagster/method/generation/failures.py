"""Prompts that got no answer: counted by reason, and too many of them end the work (paper, section 3.2)."""

import re
from collections import Counter
from collections.abc import Sequence

SHOWN_REASONS = 3


class TooManyFailed(ValueError):
    """More prompts failed than may; the message counts the reasons and gives the first in full."""


def too_many(failed: int, prompts: int, max_failed: float) -> bool:
    """Whether `failed` of all `prompts` are a larger share than `max_failed`."""
    return failed > 0 and failed / prompts > max_failed


class Failures:
    """The failed prompts of a shard with `prompts` prompts, of which a share of `max_failed` may fail."""

    def __init__(self, prompts: int, max_failed: float) -> None:
        self.prompts, self.max_failed = prompts, max_failed
        self.first = ""
        self.kinds: Counter[str] = Counter()

    def add(self, reason: str, names: Sequence[str]) -> None:
        """Counts one. Reasons that differ in `names` (of the prompt, of its image) and in numbers are one kind."""
        self.first = self.first or reason
        self.kinds[_kind(reason, names)] += 1

    def check(self) -> None:
        """Raises TooManyFailed when no result can come out any more that may be used."""
        failed = self.kinds.total()
        if too_many(failed, self.prompts, self.max_failed):
            kinds = [f"{count} x {kind}" for kind, count in self.kinds.most_common(SHOWN_REASONS)]
            more = ["..."] if len(self.kinds) > SHOWN_REASONS else []
            raise TooManyFailed(
                f"{failed} of {self.prompts} prompts could not be sampled so far, more than generation.max_failed = "
                f"{self.max_failed:g} allows: {'; '.join([*kinds, *more])}. The first: {self.first}. What was sampled "
                "is kept. Mend the cause and run it again, which asks the failed prompts again; or raise "
                "generation.max_failed to go on without them."
            )


def _kind(reason: str, names: Sequence[str]) -> str:
    # The longest first: a prompt's id may hold its image's name.
    for name in sorted(names, key=len, reverse=True):
        reason = reason.replace(name, "*")
    return re.sub(r"\d+", "#", reason).removeprefix("prompt * (image *): ")
