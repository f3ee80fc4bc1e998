"""A served judge asked through the Batch API: first every group, then once more what the replies spoiled."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from m3po_dagster.method.alignment.account import Account
from m3po_dagster.method.alignment.batch_api import BatchQueue
from m3po_dagster.method.alignment.batch_lines import BatchFailure
from m3po_dagster.method.alignment.batch_record import Asker
from m3po_dagster.method.alignment.judge_group import NO_ANSWER, Group
from m3po_dagster.method.alignment.judge_paying import keep_reply, most_of
from m3po_dagster.method.alignment.scorer import UNREADABLE_IMAGE
from m3po_dagster.method.alignment.turn import Spend
from m3po_dagster.method.endpoint import REFUSED, Endpoint

if TYPE_CHECKING:
    from m3po_dagster.method.alignment.llm_judge import LlmJudgeSettings

FOLDER = ".batches"
"""Inside the ledger's folder: the records of the batches that are under way."""


@dataclass(frozen=True)
class _Wanted:
    """A request, and the groups that want its reply: one image may lie in two files."""

    groups: list[Group]
    purpose: str


class _Bodies(Mapping[str, dict]):
    """The bodies of requests, each made when it is looked up: a batch's images together fit in no memory."""

    def __init__(self, wanted: Mapping[str, _Wanted]) -> None:
        self._wanted = wanted

    def __getitem__(self, key: str) -> dict:
        group = self._wanted[key].groups[0]
        _, body = group.next_request()
        group.image.forget()
        return body

    def __iter__(self) -> Iterator[str]:
        return iter(self._wanted)

    def __len__(self) -> int:
        return len(self._wanted)


class BatchAsking:
    """Asks about many groups; the caller may be killed while it waits, and the next one finds the batches again."""

    def __init__(self, settings: "LlmJudgeSettings", account: Account, endpoint: Endpoint) -> None:
        self._settings, self._account, self._endpoint = settings, account, endpoint
        folder = account.ledger.folder / FOLDER
        self._queue = BatchQueue(endpoint, folder, settings.batch, self._told)
        self._asker = Asker(study=account.study, run=account.run, scorer=settings.name)

    def ask(self, groups: Sequence[Group]) -> None:
        """Fills the groups with grades, or with the reasons why there are none.

        Raises BudgetSpent when the budget has no room for another request, with what was answered until then in the
        ledger, and what `BatchQueue.ask` raises.
        """
        pending, whole = [], 0
        for group in groups:
            left = group.recall(self._account.ledger.turns(group.key), self._account.again)
            whole += not group.missing
            if left:
                pending.append((group, left))
        self._account.tallies.add(self._settings.name, groups=len(groups), from_ledger=whole)
        while pending:
            again = self._ask_once([group for group, _ in pending])
            pending = [(group, left - 1) for group, left in pending if left > 1 and group.key in again]

    def _ask_once(self, groups: Sequence[Group]) -> set[str]:
        """One request a question; gives the keys of the groups that another one may complete."""
        wanted: dict[str, _Wanted] = {}
        for group in groups:
            try:
                purpose, _ = group.next_request()
            except OSError:
                group.give_up(UNREADABLE_IMAGE)
                continue
            group.image.forget()
            name = _custom_id(group.key, len(self._account.ledger.turns(group.key)))
            wanted.setdefault(name, _Wanted([], purpose)).groups.append(group)
        if not wanted:
            return set()
        again = set()
        for some in self._payable(wanted):
            for name, found in self._queue.ask(_Bodies(some), self._asker):
                asked = wanted[name]
                if isinstance(found, BatchFailure):
                    for group in asked.groups:
                        self._give_up(group, found)
                    continue
                reply = self._endpoint.without_key(found.decode("utf-8", errors="replace"))
                self._keep(asked, reply)
                for group in asked.groups:
                    group.take(reply)
                    if group.missing and not group.settled:
                        again.add(group.key)
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
        most = [most_of(wanted[name].groups[0], self._settings, measured) for name in new]
        while new:
            # Where not even one has room, its reservation waits for others, or says that the budget is spent.
            lot = max(1, self._account.purse.room(most))
            with self._account.purse.reserve(sum(most[:lot], Spend())):
                yield {name: wanted[name] for name in new[:lot]}
            new, most = new[lot:], most[lot:]

    def _keep(self, asked: _Wanted, reply: str) -> None:
        """Keeps a reply unless a process beside this one was given the same and has kept it: it was paid for once."""
        group = asked.groups[0]
        turns = self._account.ledger.turns(group.key)
        if reply not in [turn.reply for turn in turns]:
            keep_reply(self._account, self._settings, group, len(turns), asked.purpose, reply)

    def _give_up(self, group: Group, failure: BatchFailure) -> None:
        if failure.status in REFUSED:
            group.give_up(f"request refused (HTTP {failure.status})", failure.said)
        else:
            self._account.tallies.add(self._settings.name, unanswered=1)
            group.give_up(f"{NO_ANSWER} in a batch ({failure.reason})", failure.said)

    def _told(self, done: int, of: int) -> None:
        self._account.log(f"{self._settings.name}: {done} of {of} requests of the batches are done")


def _custom_id(key: str, number: int) -> str:
    """What a request is called at the service: each try of a question its own name, the same after a restart."""
    return hashlib.sha256(f"{key} {number}".encode()).hexdigest()
