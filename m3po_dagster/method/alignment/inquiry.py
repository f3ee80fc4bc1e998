"""One request to a served judge as it goes on: what is asked about an image, and what the replies so far give by id."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from pydantic import BaseModel

from m3po_dagster.method.alignment.judge_image import JudgeImage
from m3po_dagster.method.alignment.judge_reply import CUT_OFF, Reading, read_reply
from m3po_dagster.method.alignment.judge_request import chat_request, repair, request_key
from m3po_dagster.method.alignment.turn import Turn

REQUESTS = 2
"""Requests for one inquiry each time it is wanted: one, and one for what its reply left out or spoiled."""
NO_ANSWER = "no answer"


class Inquiry(ABC):
    """What is asked for in one request, by id. A reply gives each id its entry, or a problem.

    A subclass says in `texts` what is asked and in `entries` what layout the entry of each id has in the reply's
    "grades". `fields` are those of the request beside its messages; `revision` says which model stood behind the name.
    """

    def __init__(self, prompt_id: str, image: JudgeImage, fields: Mapping[str, Any], revision: str) -> None:
        self.prompt_id, self.image, self.fields, self.revision = prompt_id, image, fields, revision
        self.grades: dict[str, BaseModel] = {}
        self.last: Reading | None = None
        self._mendable: Reading | None = None

    @property
    @abstractmethod
    def texts(self) -> tuple[str, ...]:
        """What the judge is to do, then the material; what more requests share comes first."""

    @property
    @abstractmethod
    def entries(self) -> Mapping[str, type[BaseModel]]:
        """The layout of each id's entry, in the order in which the request shows them."""

    @cached_property
    def key(self) -> str:
        """The ledger's key. The image counts by its hash: no need to encode it to see whether the reply is known."""
        return request_key(self._body(self.image.unsent), self.image.sha256, self.revision)

    @property
    def missing(self) -> list[str]:
        """The ids without an entry."""
        return [key for key in self.entries if key not in self.grades]

    @property
    def settled(self) -> bool:
        """Whether asking the same again would help nobody: the last reply was a refusal, or ran on until it was cut."""
        return self.last is not None and (self.last.declined or CUT_OFF in self.last.problems.values())

    def recall(self, turns: Sequence[Turn], again: bool) -> int:
        """Takes in the replies that the ledger holds; gives the requests that are left to send, as `requests_left`."""
        for turn in turns:
            self.take(turn.reply)
        return self.requests_left(len(turns), again)

    def requests_left(self, turns: int, again: bool) -> int:
        """Requests to send for what is missing after `turns` known replies; `again`: as if it were asked anew."""
        if not self.missing:
            return 0
        if again:
            return REQUESTS
        return 0 if self.settled else max(0, REQUESTS - turns)

    def take(self, reply: str) -> None:
        """Takes in the body of a reply. What an earlier one gave stays as it is."""
        self.last = read_reply(reply, self.entries)
        for key, entry in self.last.grades.items():
            self.grades.setdefault(key, entry)
        if self.last.said.strip() and not self.settled:
            self._mendable = self.last

    def give_up(self, problem: str, said: str = "") -> None:
        """Notes that the ids without an entry get none, and why."""
        self.last = Reading(problems=dict.fromkeys(self.missing, problem), said=said)

    def next_request(self) -> tuple[str, dict]:
        """What to ask for the missing ids: `first`, or `repair` where there is something to mend; and the body.

        Raises OSError when the image can't be decoded.
        """
        first = self._body(self.image.part())
        if self._mendable is None:
            return "first", first
        problems = {key: self._mendable.problems[key] for key in self.missing}
        return "repair", repair(first, self._mendable.said, problems)

    def _body(self, image: Mapping[str, Any]) -> dict:
        return chat_request(self.fields, self.texts, image)
