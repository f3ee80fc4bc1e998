"""What judging may cost: prices, limits, and the purse that every request is paid from.

A request in flight has its share reserved, so that neither threads nor processes can pass a limit together.
"""

import logging
import threading
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate

from pydantic import Field, model_validator

from m3po_dagster.method.alignment.ledger import Ledger
from m3po_dagster.method.alignment.reservations import Reservation
from m3po_dagster.method.alignment.turn import Spend
from m3po_dagster.settings import Settings

_PER = 1_000_000
# Sums of prices that should meet a limit exactly must not pass it by rounding.
_ROUNDING = 1e-9
_LOG = logging.getLogger(__name__)


class PriceSettings(Settings):
    """What the tokens of a served model cost, in any one currency, a million tokens."""

    input: float = Field(ge=0, allow_inf_nan=False, description="price of a million prompt tokens")
    cached_input: float | None = Field(
        None,
        ge=0,
        allow_inf_nan=False,
        description="price of a million prompt tokens that the provider had cached; null: as `input`",
    )
    output: float = Field(ge=0, allow_inf_nan=False, description="price of a million tokens of the reply")
    batch_discount: float = Field(0.5, ge=0, le=1, description="share of all prices that the Batch API takes off")

    def in_batches(self) -> "PriceSettings":
        """What the same tokens cost through the Batch API."""
        share = 1 - self.batch_discount
        cached = None if self.cached_input is None else self.cached_input * share
        return PriceSettings(input=self.input * share, cached_input=cached, output=self.output * share)

    def cost(self, prompt_tokens: int, cached_tokens: int, completion_tokens: int) -> float:
        """The price of a request; `cached_tokens` are part of `prompt_tokens`."""
        cached = min(cached_tokens, prompt_tokens)
        cached_price = self.input if self.cached_input is None else self.cached_input
        full = (prompt_tokens - cached) * self.input + cached * cached_price + completion_tokens * self.output
        return full / _PER


class LimitSettings(Settings):
    """How much may be spent: money, requests, or both."""

    cost: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="most to spend, in the currency of the prices; null: no limit"
    )
    requests: int | None = Field(None, ge=1, description="most requests to have answered; null: no limit")

    @model_validator(mode="after")
    def _limits_something(self) -> "LimitSettings":
        if self.cost is None and self.requests is None:
            raise ValueError("a limit names `cost`, `requests` or both; leave it out for no limit")
        return self


class BudgetSettings(Settings):
    """Limits that stop the judging; what was answered by then is kept, and a re-run pays for the rest alone."""

    run: LimitSettings | None = Field(None, description="what one run may spend")
    study: LimitSettings | None = Field(None, description="what the study may spend over all its runs")

    @property
    def limits_cost(self) -> bool:
        """Whether money is limited, which needs prices."""
        return any(limit is not None and limit.cost is not None for limit in (self.run, self.study))


class BudgetSpent(ValueError):
    """The next request would pass a limit; the message says which, and what to raise."""


def check_priced(budget: BudgetSettings, prices: dict[str, PriceSettings | None]) -> None:
    """Raises ValueError for a limit on cost that a served scorer without prices would escape.

    `prices` holds every served scorer's, by its name.
    """
    if budget.limits_cost and (unpriced := [name for name, price in prices.items() if price is None]):
        raise ValueError(
            f"judge.budget limits cost, but scorer '{unpriced[0]}' has no `prices`: give it prices (0 for a model of "
            "your own), or limit `requests` instead"
        )


class Purse:
    """What a run of a study may still spend. Safe to use from many threads, beside all processes at its ledger."""

    def __init__(self, ledger: Ledger, budget: BudgetSettings, study: str, run: str) -> None:
        self._ledger, self._study, self._run = ledger, study, run
        self._limits = {"run": budget.run, "study": budget.study}
        self._limited = budget.run is not None or budget.study is not None
        self._reservations = ledger.reservations()

    @contextmanager
    def reserve(self, expected: Spend) -> Iterator[None]:
        """Hold the most that a request can take while it is asked; add its turn to the ledger within.

        Waits while what others have in flight could leave no room for it: most take less than they reserve. A thread
        that holds a reservation already does not wait, so that no two can wait for each other. Take it within
        `Ledger.asking`, not around it. Raises BudgetSpent when the limit has no room for it, LedgerError.
        """
        if not self._limited:
            yield
            return
        with self._ledger.explained("reserve a share of the budget in"):
            reservation = self._reserved(expected)
        try:
            yield
        finally:
            with self._ledger.explained("give back a share of the budget in"):
                self._reservations.give_back(reservation)

    def room(self, expected: Sequence[Spend]) -> int:
        """How many of these requests, from the first on, the limits have room for now beside all that is in flight."""
        if not self._limited:
            return len(expected)
        sums = list(accumulate(expected))
        with self._ledger.explained("look at the budget in"):
            held = self._reservations.held()
            return bisect_left(sums, True, key=lambda total: self._over(total, held) is not None)

    def _reserved(self, expected: Spend) -> Reservation:
        mine = Reservation(self._study, self._run, expected, threading.get_ident())
        waited = False

        def objection(held: list[Reservation]) -> str | None:
            # Spent is looked up last: a reply that was added and is still reserved counts twice, never not at all.
            over = self._over(expected, held)
            if over and any(one.thread == mine.thread for one in held):
                raise BudgetSpent(over)
            if over and (alone := self._over(expected, [])):
                raise BudgetSpent(alone)
            return over

        while True:
            over = self._reservations.attempt(mine, objection)
            if over is None:
                return mine
            if not waited:
                _LOG.info("waiting for requests in flight: %s", over)
                waited = True
            self._reservations.wait()

    def _over(self, expected: Spend, held: list[Reservation]) -> str | None:
        """Which limit `expected` would pass beside what is spent and held, in words; None when it passes none."""
        for name, limit in self._limits.items():
            if limit is None:
                continue
            run = self._run if name == "run" else None
            in_flight = sum((one.spend for one in held if one.study == self._study and run in (None, one.run)), Spend())
            spent = self._ledger.spent(study=self._study, run=run)
            whose = f"run {self._run} of study '{self._study}'" if run else f"study '{self._study}'"
            wanted = spent + in_flight + expected
            if limit.requests is not None and wanted.requests > limit.requests:
                used = f"{spent.requests:,} of {limit.requests:,} requests"
                return _words(whose, name, "requests", used, f"{in_flight.requests:,}", f"{expected.requests:,}")
            if limit.cost is not None and wanted.cost > limit.cost * (1 + _ROUNDING):
                used = f"{spent.cost:,.4f} of {limit.cost:,.4f}"
                return _words(whose, name, "cost", used, f"{in_flight.cost:,.4f}", f"{expected.cost:,.4f}")
        return None


def _words(whose: str, limit: str, kind: str, used: str, in_flight: str, expected: str) -> str:
    return (
        f"the budget of {whose} is spent: {used} used, {in_flight} in flight, {expected} wanted for the next request. "
        "Every answer so far is kept; raise "
        f"judge.budget.{limit}.{kind} and run again: only the rest is asked and paid for"
    )
