"""A vision-language model behind an OpenAI-compatible endpoint as a scorer (paper, section 3.3).

The answers of a prompt are graded in groups, each in one request, in an order that chance decides; or one by one. What
the judge could not grade is asked for once more and is then unscored with its reason. An endpoint that answers nobody
is an error: an outage must stop the work, not turn into thousands of unscored answers.

With an account every reply is kept in its ledger and asked for once: not again after a crash, nor for another study.
"""

import copy
import re
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Literal

from pydantic import Field, JsonValue, field_validator

from m3po_dagster.method.alignment.account import Account
from m3po_dagster.method.alignment.batch_settings import BatchSettings
from m3po_dagster.method.alignment.budget import PriceSettings
from m3po_dagster.method.alignment.calibration import Calibration, Identity
from m3po_dagster.method.alignment.estimate import Estimate, expected
from m3po_dagster.method.alignment.judge_batches import BatchAsking
from m3po_dagster.method.alignment.judge_group import (
    NO_ANSWER,
    Group,
    in_groups,
    named,
    shown_order,
)
from m3po_dagster.method.alignment.judge_image import ImageUrls, JudgeImage
from m3po_dagster.method.alignment.judge_paying import keep_reply, most_of
from m3po_dagster.method.alignment.judge_reply import mean_grade
from m3po_dagster.method.alignment.judge_request import ASPECTS, request_texts, request_version, response_format
from m3po_dagster.method.alignment.rounds import TOGETHER
from m3po_dagster.method.alignment.scorer import UNREADABLE_IMAGE, Batch, Score, ScorerSettings
from m3po_dagster.method.alignment.turn import Spend, Turn
from m3po_dagster.method.endpoint import Endpoint, EndpointSettings, Refused, Unanswered
from m3po_dagster.method.prompt import Prompt

OUTAGE = 8
"""Requests in a row that got no answer after every retry, after which the endpoint counts as down."""
EMPTY_ANSWER = "empty answer"

# How requests travel, not what is asked.
_FREE = {"calibration", "api_key_env", "timeout", "max_retries", "max_parallel", "image_urls", "prices", "batch"}
# What the request itself says field by field.
_SECRET = re.compile(r"key$|header|secret|password|authorization", re.IGNORECASE)
_OWN_FIELDS = {
    "messages", "response_format", "model", "temperature", "max_completion_tokens", "max_tokens", "stream", "n",
}  # fmt: skip


class LlmJudgeSettings(EndpointSettings, ScorerSettings):
    """A vision-language model behind an OpenAI-compatible endpoint, as the judge."""

    kind: Literal["llm_judge"] = Field("llm_judge", description="a served vision-language model grades each answer")
    name: str = Field("llm_judge", pattern=r"^[a-z][a-z0-9_]*$", description="column of the MAS table")
    calibration: Calibration = Field(
        Identity(), description="map of the raw value to [0, 1]; the raw value already lies there"
    )
    revision: str = Field(
        "",
        description="what tells this model from another that is served under the same name, for example a commit; the "
        "ledger knows a model by name, revision and probe, not by its address",
    )
    group_size: int = Field(
        8,
        ge=1,
        le=16,
        description="answers of a prompt that one request grades, at most; 1 grades each by itself, which costs the "
        "image and the rubric once an answer",
    )
    order_seed: int = Field(0, ge=0, description="seed of the order in which a request shows its answers")
    temperature: float | None = Field(
        0.0, ge=0, le=2, description="sampling temperature; null leaves it out, for a model that refuses it"
    )
    detail: Literal["auto", "low", "high"] = Field(
        "auto", description="how closely an endpoint of OpenAI's looks at images; auto leaves it to the endpoint"
    )
    image_urls: ImageUrls | None = Field(
        None, description="where the endpoint fetches the images itself; null: each request carries its image"
    )
    max_reply_tokens: int = Field(
        2048, ge=64, le=65536, description="a reply is cut, and unscored, after this many tokens"
    )
    request_fields: dict[str, JsonValue] = Field(
        default_factory=dict,
        description="further fields of every request as the endpoint takes them, for example reasoning_effort: low",
    )
    prices: PriceSettings | None = Field(None, description="what the endpoint charges; null: costs are not counted")
    batch: BatchSettings | None = Field(
        None,
        description="ask through the Batch API, for less and within a day; {} for its defaults; null: directly",
    )

    @field_validator("request_fields")
    @classmethod
    def _not_its_own(cls, value: dict[str, JsonValue]) -> dict[str, JsonValue]:
        if own := sorted(_OWN_FIELDS & set(value)):
            raise ValueError(f"{', '.join(own)} is set by the judge itself; leave it out, or use its setting")
        if secret := [name for name in value if _SECRET.search(name)]:
            raise ValueError(
                f"{', '.join(secret)}: what stands here is part of the judge's identity and is written down; a key "
                "belongs in the variable that api_key_env names"
            )
        return value

    @property
    def endpoint(self) -> str:
        """The address that is asked."""
        return self.base_url

    @property
    def served_model(self) -> tuple[str, str]:
        """Name and revision by which the ledger knows the model."""
        return self.model, self.revision

    @property
    def sub_scores(self) -> dict[str, str]:
        """NAME_relevance, NAME_accuracy, NAME_adherence and NAME_position."""
        grades = {f"{self.name}_{aspect}": f"grade for {aspect}, a whole number 1 to 5" for aspect in ASPECTS}
        return grades | {f"{self.name}_position": "place of the answer in the request that graded it, from 1"}

    def identity(self) -> dict:
        """Endpoint, model and request decide the grades; key, patience, parallelism and prices don't."""
        settings = self.model_dump(mode="json", exclude=_FREE)
        return {"settings": settings, "calibration": self.calibration.version, "request": request_version()}

    @property
    def charged(self) -> PriceSettings | None:
        """What a request costs the way it is asked."""
        return self.prices.in_batches() if self.prices and self.batch else self.prices

    @property
    def fields(self) -> dict[str, Any]:
        """The fields of every request beside what is asked."""
        given = {} if self.temperature is None else {"temperature": self.temperature}
        return {
            "model": self.model,
            **given,
            "max_completion_tokens": self.max_reply_tokens,
            "response_format": response_format(self.group_size),
            **self.request_fields,
        }

    def build(self, device: str = "cpu") -> "LlmJudge":
        """The scorer; nothing is asked yet. Raises ValueError when the key's variable is not set."""
        return LlmJudge(self)


class LlmJudge:
    """Raw value: the mean grade mapped from [1, 5] to [0, 1].

    Sub-scores: NAME_relevance, NAME_accuracy, NAME_adherence (whole numbers 1 to 5), NAME_position (from 1). Words: the
    judge's evidence.
    """

    def __init__(self, settings: LlmJudgeSettings) -> None:
        self.settings = settings
        self.name = settings.name
        self.sub_scores = tuple(settings.sub_scores)
        self.graded = tuple(f"{self.name}_{aspect}" for aspect in ASPECTS)
        self._endpoint = Endpoint(settings, f"scorer '{settings.name}'")
        self._account: Account | None = None
        self._reverse = False
        self._lock = threading.Lock()
        self._silent = 0

    def at(self, account: Account) -> "LlmJudge":
        """The same judge, its replies kept in the account's ledger and paid from its budget."""
        return self._with(_account=account)

    def swapped(self) -> "LlmJudge":
        """The same judge, the answers of each request in the reverse order."""
        return self._with(_reverse=not self._reverse)

    def _with(self, **changed: object) -> "LlmJudge":
        other = copy.copy(self)
        vars(other).update(changed, _lock=threading.Lock(), _silent=0)
        return other

    @property
    def together(self) -> int:
        """Prompts to hand over at once: enough to keep every request in flight busy; all of them for a batch."""
        return sys.maxsize if self.settings.batch else max(TOGETHER, self.settings.max_parallel)

    def value(self, sub_scores: Mapping[str, float]) -> float:
        """The raw value that these sub-scores make."""
        return mean_grade([sub_scores[name] for name in self.graded])

    def score(self, batch: Batch) -> list[list[Score]]:
        """One request a group of answers, `max_parallel` at once; an image is read and encoded once a prompt.

        Unscored: an empty answer and an unreadable image (neither is sent), a request that the endpoint refuses or does
        not answer, grades that can't be used. Raises EndpointError when the endpoint answers nobody or refuses key or
        model, BudgetSpent when the account may not pay for a request; what was answered until then is in the ledger.
        """
        if self.settings.batch and self._account:
            return self._score_in_batches(batch)
        rows: list[list[Score]] = []
        waiting: deque[tuple[Sequence[str], list[Future[dict[int, Score]]]]] = deque()
        pool = ThreadPoolExecutor(self.settings.max_parallel, thread_name_prefix=self.name)
        try:
            for prompt, answers in batch:
                waiting.append((answers, self._submit(pool, prompt, answers)))
                # Enough is queued to keep every thread busy; more would only hold more images in memory.
                while len(waiting) > 1 and sum(len(asked) for _, asked in waiting) > 2 * self.settings.max_parallel:
                    rows.append(self._collected(*waiting.popleft()))
            return rows + [self._collected(answers, asked) for answers, asked in waiting]
        finally:
            pool.shutdown(cancel_futures=True)

    def _collected(self, answers: Sequence[str], asked: Sequence[Future[dict[int, Score]]]) -> list[Score]:
        return in_place(answers, [future.result() for future in asked])

    def _score_in_batches(self, batch: Batch) -> list[list[Score]]:
        groups = [self._groups_or_none(prompt, answers) for prompt, answers in batch]
        asked = BatchAsking(self.settings, self._account, self._endpoint)
        asked.ask([group for some in groups if some for group in some])
        return [
            in_place(answers, [unread(answers)] if some is None else [group.scores(self.name) for group in some])
            for (_, answers), some in zip(batch, groups, strict=True)
        ]

    def estimate(self, batch: Batch) -> Estimate:
        """What `score` will ask for these answers, known replies left out; repairs and retries are not foreseen."""
        measured, prices, wanted, known = self._measured(), self.settings.charged, [], 0
        for prompt, answers in batch:
            try:
                groups = self.groups(prompt, answers)
                asked = [group for group in groups if not self._known(group)]
                size = asked[0].image.size if asked else (1, 1)
            except OSError:
                continue
            known += len(groups) - len(asked)
            for group in asked:
                texts = request_texts(group.prompt, group.answers)
                wanted.append(expected(texts, *size, len(group.answers), prices, measured))
        return Estimate.of(wanted, known, prices, measured)

    def _known(self, group: Group) -> bool:
        turns = self._account.ledger.turns(group.key) if self._account else ()
        return not group.recall(turns, self._again)

    @property
    def _again(self) -> bool:
        return self._account is not None and self._account.again

    def groups(self, prompt: Prompt, answers: Sequence[str]) -> list[Group]:
        """The requests that grade these answers, empty ones left out. Raises OSError when there is no image file."""
        places = [place for place, answer in enumerate(answers) if answer.strip()]
        if not places:
            return []
        image = JudgeImage(prompt.image_path, self.settings.image_urls, self.settings.detail)
        order = [
            places[i] for i in shown_order([answers[i] for i in places], prompt.prompt_id, self.settings.order_seed)
        ]
        found = []
        for group in in_groups(order, self.settings.group_size):
            ids = named(group[::-1] if self._reverse else group)
            texts = {key: answers[place] for key, place in ids.items()}
            found.append(Group(prompt, image, ids, texts, self.settings.fields, self._revision))
        return found

    @property
    def _revision(self) -> str:
        probed = self._account.revisions.get(self.name, "") if self._account else ""
        return f"{self.settings.revision} {probed}"

    def _submit(
        self, pool: ThreadPoolExecutor, prompt: Prompt, answers: Sequence[str]
    ) -> list[Future[dict[int, Score]]]:
        groups = self._groups_or_none(prompt, answers)
        if groups is None:
            return [pool.submit(unread, answers)]
        return [pool.submit(self._grade, group) for group in groups]

    def _groups_or_none(self, prompt: Prompt, answers: Sequence[str]) -> list[Group] | None:
        """The groups; None when there is no image file."""
        try:
            return self.groups(prompt, answers)
        except OSError:
            return None

    def _grade(self, group: Group) -> dict[int, Score]:
        self._ask(group)
        return group.scores(self.name)

    def _ask(self, group: Group) -> None:
        with self._held(group) as turns:
            number = len(turns)
            for _ in range(group.recall(turns, self._again)):
                try:
                    purpose, body = group.next_request()
                    most = most_of(group, self.settings, self._measured())
                except OSError:
                    group.give_up(UNREADABLE_IMAGE)
                    break
                try:
                    with self._reserved(most):
                        reply = self._endpoint.chat(body)
                        text = self._endpoint.without_key(reply.decode("utf-8", errors="replace"))
                        self._keep(group, number, purpose, text)
                except Refused as error:
                    group.give_up(f"request refused (HTTP {error.status})", error.said)
                    break
                except Unanswered as error:
                    self._note_silence(error)
                    group.give_up(NO_ANSWER, error.what)
                    break
                with self._lock:
                    self._silent = 0
                number += 1
                group.take(text)
                if group.settled or not group.missing:
                    break
            self._count(groups=1, from_ledger=int(number == len(turns) and not group.missing))

    def _note_silence(self, error: Unanswered) -> None:
        self._count(unanswered=1)
        with self._lock:
            self._silent += 1
            if self._silent >= OUTAGE:
                raise error

    @contextmanager
    def _held(self, group: Group) -> Iterator[Sequence[Turn]]:
        if self._account is None:
            yield ()
            return
        with self._account.ledger.asking(group.key) as turns:
            yield turns

    @contextmanager
    def _reserved(self, most: Spend) -> Iterator[None]:
        if self._account is None:
            yield
            return
        with self._account.purse.reserve(most):
            yield

    def _measured(self) -> Spend:
        return self._account.ledger.measured(self.settings.model) if self._account else Spend()

    def _keep(self, group: Group, number: int, purpose: str, reply: str) -> None:
        if self._account is not None:
            keep_reply(self._account, self.settings, group, number, purpose, reply)

    def _count(self, **counts: float) -> None:
        if self._account is not None:
            self._account.tallies.add(self.name, **counts)


def in_place(answers: Sequence[str], found: Iterable[Mapping[int, Score]]) -> list[Score]:
    """The scores in the order of the answers; those that were in no request are empty."""
    by_place = {place: score for scores in found for place, score in scores.items()}
    return [by_place.get(place) or Score.unscored(EMPTY_ANSWER) for place in range(len(answers))]


def unread(answers: Sequence[str]) -> dict[int, Score]:
    """The scores of answers whose image can't be read, by place."""
    return {place: Score.unscored(UNREADABLE_IMAGE) for place, answer in enumerate(answers) if answer.strip()}
