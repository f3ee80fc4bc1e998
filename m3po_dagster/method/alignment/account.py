"""Who asks a served judge and pays for it: where its replies are kept, for which study and run, up to which budget."""

import threading
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from m3po_dagster.method.alignment.budget import Purse
    from m3po_dagster.method.alignment.ledger import Ledger


@dataclass
class Tally:
    """What one scorer asked for an account, and what that took; `groups` counts what it was wanted for.

    `from_ledger` are groups that needed no request, `repairs` are among `requests`.
    """

    groups: int = 0
    from_ledger: int = 0
    requests: int = 0
    repairs: int = 0
    unanswered: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0


class Tallies:
    """The tally of each scorer, added to from many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.by_scorer: defaultdict[str, Tally] = defaultdict(Tally)

    def add(self, scorer: str, **counts: float) -> None:
        """Adds to the figures named."""
        with self._lock:
            tally = self.by_scorer[scorer]
            for name, count in counts.items():
                setattr(tally, name, getattr(tally, name) + count)


@dataclass(frozen=True)
class Account:
    """Handed to a served scorer by `at`; without one a scorer asks anew and keeps nothing, as a probe must.

    `revisions` holds, by scorer name, what the probe last found of the model behind the endpoint: it is part of every
    ledger key, so that a model swapped under its name is asked again. `again`: what the ledger holds no usable grades
    for is asked once more, as a re-run after a failure does. `log` is told of long waits.
    """

    ledger: "Ledger"
    purse: "Purse"
    study: str
    run: str
    revisions: Mapping[str, str] = field(default_factory=dict)
    again: bool = False
    tallies: Tallies = field(default_factory=Tallies)
    log: Callable[[str], None] = field(default=lambda line: None)
