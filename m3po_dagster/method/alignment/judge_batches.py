"""A served judge asked through the Batch API: first every group, then once more what the replies spoiled."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from m3po_dagster.method.alignment.account import Account
from m3po_dagster.method.alignment.batch_api import BatchQueue
from m3po_dagster.method.alignment.batch_lines import BatchFailure
from m3po_dagster.method.alignment.batch_record import Asker
from m3po_dagster.method.alignment.judge_group import REQUESTS, UNREADABLE_IMAGE, Group
from m3po_dagster.method.alignment.judge_paying import keep_reply, most_of
from m3po_dagster.method.alignment.turn import Spend
from m3po_dagster.method.endpoint import REFUSED, Endpoint

if TYPE_CHECKING:
    from m3po_dagster.method.alignment.llm_judge import LlmJudgeSettings

FOLDER = ".batches"
"""Inside the ledger's folder: the records of the batches that are under way."""


@dataclass(frozen=True)
class _Wanted:
    group: Group
    number: int
    purpose: str


class _Bodies(Mapping[str, dict]):
    """The bodies of requests, each made when it is looked up: a batch's images together fit in no memory."""

    def __init__(self, wanted: Mapping[str, _Wanted]) -> None:
        self._wanted = wanted

    def __getitem__(self, key: str) -> dict:
        group = self._wanted[key].group
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

        Raises BudgetSpent before anything of a batch is submitted that the budget would not pay for in full, and what
        `BatchQueue.ask` raises.
        """
        turns = {}
        for group in groups:
            known = self._account.ledger.turns(group.key)
            turns[group.key] = len(known)
            for turn in known:
                group.take(turn.reply)
        whole = sum(not group.missing for group in groups)
        self._account.tallies.add(self._settings.name, groups=len(groups), from_ledger=whole)
        pending = [group for group in groups if group.missing]
        for _ in range(REQUESTS):
            pending = self._ask_once(pending, turns)

    def _ask_once(self, groups: Sequence[Group], turns: dict[str, int]) -> list[Group]:
        """One request a group; gives the groups that another one may complete."""
        measured = self._account.ledger.measured(self._settings.model)
        wanted, most = {}, Spend()
        for group in groups:
            try:
                purpose, _ = group.next_request()
            except OSError:
                group.give_up(UNREADABLE_IMAGE)
                continue
            group.image.forget()
            number = turns[group.key]
            wanted[_custom_id(group.key, number)] = _Wanted(group, number, purpose)
            most += most_of(group, self._settings, measured)
        if not wanted:
            return []
        again = []
        with self._account.purse.reserve(most):
            for key, found in self._queue.ask(_Bodies(wanted), self._asker):
                asked = wanted[key]
                group = asked.group
                if isinstance(found, BatchFailure):
                    self._give_up(group, found)
                    continue
                reply = self._endpoint.without_key(found.decode("utf-8", errors="replace"))
                with self._account.ledger.asking(group.key) as known:
                    # A process beside this one may have been given the same reply, which was paid for once.
                    if len(known) == asked.number:
                        keep_reply(self._account, self._settings, group, asked.number, asked.purpose, reply)
                turns[group.key] += 1
                group.take(reply)
                if group.missing and not group.declined:
                    again.append(group)
        return again

    def _give_up(self, group: Group, failure: BatchFailure) -> None:
        if failure.status in REFUSED:
            group.give_up(f"request refused (HTTP {failure.status})", failure.said)
        else:
            self._account.tallies.add(self._settings.name, unanswered=1)
            group.give_up(f"no answer in a batch ({failure.reason})", failure.said)

    def _told(self, done: int, of: int) -> None:
        self._account.log(f"{self._settings.name}: {done} of {of} requests of the batches are done")


def _custom_id(key: str, number: int) -> str:
    """What a request is called at the service: each try of a question its own name, the same after a restart."""
    return hashlib.sha256(f"{key} {number}".encode()).hexdigest()
