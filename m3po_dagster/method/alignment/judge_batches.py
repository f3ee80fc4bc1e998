"""A served judge asked through the Batch API: first every inquiry, then once more what the replies spoiled."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from m3po_dagster.method.alignment.account import Account
from m3po_dagster.method.alignment.batch_api import BatchQueue
from m3po_dagster.method.alignment.batch_lines import BatchFailure
from m3po_dagster.method.alignment.batch_record import Asker
from m3po_dagster.method.alignment.inquiry import NO_ANSWER, Inquiry
from m3po_dagster.method.alignment.judge_paying import keep_reply, most_of
from m3po_dagster.method.alignment.judge_settings import ServedJudgeSettings
from m3po_dagster.method.alignment.scorer import UNREADABLE_IMAGE
from m3po_dagster.method.alignment.turn import Spend
from m3po_dagster.method.endpoint import REFUSED, Endpoint

FOLDER = ".batches"
"""Inside the ledger's folder: the records of the batches that are under way."""


@dataclass(frozen=True)
class _Wanted:
    """A request, and the inquiries that want its reply: one image may lie in two files."""

    inquiries: list[Inquiry]
    purpose: str


class _Bodies(Mapping[str, dict]):
    """The bodies of requests, each made when it is looked up: a batch's images together fit in no memory."""

    def __init__(self, wanted: Mapping[str, _Wanted]) -> None:
        self._wanted = wanted

    def __getitem__(self, key: str) -> dict:
        inquiry = self._wanted[key].inquiries[0]
        _, body = inquiry.next_request()
        inquiry.image.forget()
        return body

    def __iter__(self) -> Iterator[str]:
        return iter(self._wanted)

    def __len__(self) -> int:
        return len(self._wanted)


class BatchAsking:
    """Makes many inquiries; the caller may be killed while it waits, and the next one finds the batches again."""

    def __init__(self, settings: ServedJudgeSettings, account: Account, endpoint: Endpoint) -> None:
        self._settings, self._account, self._endpoint = settings, account, endpoint
        folder = account.ledger.folder / FOLDER
        self._queue = BatchQueue(endpoint, folder, settings.batch, self._told)
        self._asker = Asker(study=account.study, run=account.run, scorer=settings.name)

    def ask(self, inquiries: Sequence[Inquiry]) -> None:
        """Fills the inquiries with grades, or with the reasons why there are none.

        Raises BudgetSpent when the budget has no room for another request, with what was answered until then in the
        ledger, and what `BatchQueue.ask` raises.
        """
        pending, whole = [], 0
        for inquiry in inquiries:
            left = inquiry.recall(self._account.ledger.turns(inquiry.key), self._account.again)
            whole += not inquiry.missing
            if left:
                pending.append((inquiry, left))
        self._account.tallies.add(self._settings.name, groups=len(inquiries), from_ledger=whole)
        while pending:
            again = self._ask_once([inquiry for inquiry, _ in pending])
            pending = [(inquiry, left - 1) for inquiry, left in pending if left > 1 and inquiry.key in again]

    def _ask_once(self, inquiries: Sequence[Inquiry]) -> set[str]:
        """One request a question; gives the keys of the inquiries that another one may complete."""
        wanted: dict[str, _Wanted] = {}
        for inquiry in inquiries:
            try:
                purpose, _ = inquiry.next_request()
            except OSError:
                inquiry.give_up(UNREADABLE_IMAGE)
                continue
            inquiry.image.forget()
            name = _custom_id(inquiry.key, len(self._account.ledger.turns(inquiry.key)))
            wanted.setdefault(name, _Wanted([], purpose)).inquiries.append(inquiry)
        if not wanted:
            return set()
        again = set()
        for some in self._payable(wanted):
            for name, found in self._queue.ask(_Bodies(some), self._asker):
                asked = wanted[name]
                if isinstance(found, BatchFailure):
                    for inquiry in asked.inquiries:
                        self._give_up(inquiry, found)
                    continue
                reply = self._endpoint.without_key(found.decode("utf-8", errors="replace"))
                self._keep(asked, reply)
                for inquiry in asked.inquiries:
                    inquiry.take(reply)
                    if inquiry.missing and not inquiry.settled:
                        again.add(inquiry.key)
        return again

    def _payable(self, wanted: Mapping[str, _Wanted]) -> Iterator[dict[str, _Wanted]]:
        """The requests in lots that the budget has room for, each reserved while it is asked.

        A request may take much more than it does: what a lot leaves over makes room for the next. What is in a batch
        already goes first, whatever the budget says: it is paid for, and to leave it there would only lose it.
        """
        claimed = self._queue.claimed(wanted)
        if claimed:
            yield {name: wanted[name] for name in claimed}
        new = [name for name in wanted if name not in claimed]
        measured = self._account.ledger.measured(self._settings.model)
        most = [most_of(wanted[name].inquiries[0], self._settings, measured) for name in new]
        while new:
            # Where not even one has room, its reservation waits for others, or says that the budget is spent.
            lot = max(1, self._account.purse.room(most))
            with self._account.purse.reserve(sum(most[:lot], Spend())):
                yield {name: wanted[name] for name in new[:lot]}
            new, most = new[lot:], most[lot:]

    def _keep(self, asked: _Wanted, reply: str) -> None:
        """Keeps a reply unless a process beside this one was given the same and has kept it: it was paid for once."""
        inquiry = asked.inquiries[0]
        turns = self._account.ledger.turns(inquiry.key)
        if reply not in [turn.reply for turn in turns]:
            keep_reply(self._account, self._settings, inquiry, len(turns), asked.purpose, reply)

    def _give_up(self, inquiry: Inquiry, failure: BatchFailure) -> None:
        if failure.status in REFUSED:
            inquiry.give_up(f"request refused (HTTP {failure.status})", failure.said)
        else:
            self._account.tallies.add(self._settings.name, unanswered=1)
            inquiry.give_up(f"{NO_ANSWER} in a batch ({failure.reason})", failure.said)

    def _told(self, done: int, of: int) -> None:
        self._account.log(f"{self._settings.name}: {done} of {of} requests of the batches are done")


def _custom_id(key: str, number: int) -> str:
    """What a request is called at the service: each try of a question its own name, the same after a restart."""
    return hashlib.sha256(f"{key} {number}".encode()).hexdigest()
