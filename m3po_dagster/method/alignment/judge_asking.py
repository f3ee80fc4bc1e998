"""A served judge asked directly: many requests at once, each reply kept and paid for before the next is thought of.

What the judge could not answer is asked for once more and is then left with its reason. An endpoint that answers nobody
is an error: an outage must stop the work, not turn into thousands of answers without a score.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from m3po_dagster.method.alignment.account import Account
from m3po_dagster.method.alignment.inquiry import NO_ANSWER, Inquiry
from m3po_dagster.method.alignment.judge_batches import BatchAsking
from m3po_dagster.method.alignment.judge_paying import keep_reply, most_of
from m3po_dagster.method.alignment.judge_settings import ServedJudgeSettings
from m3po_dagster.method.alignment.scorer import UNREADABLE_IMAGE
from m3po_dagster.method.alignment.turn import Spend, Turn
from m3po_dagster.method.endpoint import Endpoint, Refused, Unanswered

OUTAGE = 8
"""Requests in a row that got no answer after every retry, after which the endpoint counts as down."""


class Asking:
    """Asks one judge, for one account or for none; safe to use from many threads.

    With an account every reply is kept in its ledger and asked for once: not again after a crash, nor for another
    study.
    """

    def __init__(self, settings: ServedJudgeSettings, endpoint: Endpoint, account: Account | None) -> None:
        self._settings, self._endpoint, self._account = settings, endpoint, account
        self._lock = threading.Lock()
        self._silent = 0

    def ask(self, inquiry: Inquiry) -> None:
        """Fills an inquiry with what the ledger and the judge say, or with the reasons why there is nothing.

        Raises EndpointError when the endpoint answers nobody or refuses key or model, BudgetSpent when the account may
        not pay for a request, LedgerError.
        """
        with self._held(inquiry) as turns:
            number = len(turns)
            for _ in range(inquiry.recall(turns, self._again)):
                try:
                    purpose, body = inquiry.next_request()
                    most = most_of(inquiry, self._settings, self.measured)
                except OSError:
                    inquiry.give_up(UNREADABLE_IMAGE)
                    break
                try:
                    with self._reserved(most):
                        reply = self._endpoint.chat(body)
                        text = self._endpoint.without_key(reply.decode("utf-8", errors="replace"))
                        if self._account is not None:
                            keep_reply(self._account, self._settings, inquiry, number, purpose, text)
                except Refused as error:
                    inquiry.give_up(f"request refused (HTTP {error.status})", error.said)
                    break
                except Unanswered as error:
                    self._note_silence(error)
                    inquiry.give_up(NO_ANSWER, error.what)
                    break
                with self._lock:
                    self._silent = 0
                number += 1
                inquiry.take(text)
                if inquiry.settled or not inquiry.missing:
                    break
            self._count(groups=1, from_ledger=int(number == len(turns) and not inquiry.missing))

    @property
    def measured(self) -> Spend:
        """What the ledger knows of the model's requests."""
        return self._account.ledger.measured(self._settings.model) if self._account else Spend()

    @property
    def _again(self) -> bool:
        return self._account is not None and self._account.again

    def _note_silence(self, error: Unanswered) -> None:
        self._count(unanswered=1)
        with self._lock:
            self._silent += 1
            if self._silent >= OUTAGE:
                raise error

    @contextmanager
    def _held(self, inquiry: Inquiry) -> Iterator[Sequence[Turn]]:
        if self._account is None:
            yield ()
            return
        with self._account.ledger.asking(inquiry.key) as turns:
            yield turns

    @contextmanager
    def _reserved(self, most: Spend) -> Iterator[None]:
        if self._account is None:
            yield
            return
        with self._account.purse.reserve(most):
            yield

    def _count(self, **counts: float) -> None:
        if self._account is not None:
            self._account.tallies.add(self._settings.name, **counts)


def revision_of(settings: ServedJudgeSettings, account: Account | None) -> str:
    """Which model stands behind the name, by its settings and by what the account's probe found of it."""
    probed = account.revisions.get(settings.name, "") if account else ""
    return f"{settings.revision} {probed}"


def ask_all(
    settings: ServedJudgeSettings,
    account: Account,
    inquiries: Sequence[Inquiry],
    advance: Callable[[int, int], None] = lambda done, of: None,
) -> None:
    """Fills all inquiries, `max_parallel` at once, or through the Batch API where the settings say so.

    `advance` is told how many are done, and of how many. An image is held in memory while it is asked about. Raises as
    `Asking.ask`, and ValueError when the key's variable is not set; what was answered until then is in the ledger.
    """
    endpoint = Endpoint(settings, f"judge '{settings.name}'")
    if settings.batch:
        BatchAsking(settings, account, endpoint).ask(inquiries)
        advance(len(inquiries), len(inquiries))
        return
    asking = Asking(settings, endpoint, account)

    def ask(inquiry: Inquiry) -> None:
        asking.ask(inquiry)
        inquiry.image.forget()

    pool = ThreadPoolExecutor(settings.max_parallel, thread_name_prefix=settings.name)
    try:
        for done, _ in enumerate(pool.map(ask, inquiries), start=1):
            advance(done, len(inquiries))
    finally:
        pool.shutdown(cancel_futures=True)
