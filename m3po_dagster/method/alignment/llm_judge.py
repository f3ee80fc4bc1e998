"""A vision-language model behind an OpenAI-compatible endpoint as a scorer (paper, section 3.3).

The answers of a prompt are graded in groups, each in one request, in an order that chance decides; or one by one. What
the judge could not grade is asked for once more and is then unscored with its reason. An endpoint that answers nobody
is an error: an outage must stop the work, not turn into thousands of unscored answers.

With an account every reply is kept in its ledger and asked for once: not again after a crash, nor for another study.
"""

import copy
import sys
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal

from pydantic import Field

from m3po_dagster.method.alignment.account import Account
from m3po_dagster.method.alignment.calibration import Calibration, Identity
from m3po_dagster.method.alignment.estimate import Estimate, expected
from m3po_dagster.method.alignment.judge_asking import Asking, revision_of
from m3po_dagster.method.alignment.judge_batches import BatchAsking
from m3po_dagster.method.alignment.judge_group import Group, in_groups, named, shown_order
from m3po_dagster.method.alignment.judge_image import JudgeImage
from m3po_dagster.method.alignment.judge_reply import mean_grade
from m3po_dagster.method.alignment.judge_request import ASPECTS, request_version, response_format
from m3po_dagster.method.alignment.judge_settings import HOW_REQUESTS_TRAVEL, ServedJudgeSettings
from m3po_dagster.method.alignment.rounds import TOGETHER
from m3po_dagster.method.alignment.scorer import UNREADABLE_IMAGE, Batch, Score, ScorerSettings
from m3po_dagster.method.endpoint import Endpoint
from m3po_dagster.method.prompt import Prompt

EMPTY_ANSWER = "empty answer"


class LlmJudgeSettings(ServedJudgeSettings, ScorerSettings):
    """A vision-language model behind an OpenAI-compatible endpoint, as the judge."""

    kind: Literal["llm_judge"] = Field("llm_judge", description="a served vision-language model grades each answer")
    name: str = Field("llm_judge", pattern=r"^[a-z][a-z0-9_]*$", description="column of the MAS table")
    calibration: Calibration = Field(
        Identity(), description="map of the raw value to [0, 1]; the raw value already lies there"
    )
    group_size: int = Field(
        8,
        ge=1,
        le=16,
        description="answers of a prompt that one request grades, at most; 1 grades each by itself, which costs the "
        "image and the rubric once an answer",
    )
    order_seed: int = Field(0, ge=0, description="seed of the order in which a request shows its answers")

    @property
    def sub_scores(self) -> dict[str, str]:
        """NAME_relevance, NAME_accuracy, NAME_adherence and NAME_position."""
        grades = {f"{self.name}_{aspect}": f"grade for {aspect}, a whole number 1 to 5" for aspect in ASPECTS}
        return grades | {f"{self.name}_position": "place of the answer in the request that graded it, from 1"}

    def identity(self) -> dict:
        """Endpoint, model and request decide the grades; key, patience, parallelism and prices don't."""
        settings = self.model_dump(mode="json", exclude={"calibration", *HOW_REQUESTS_TRAVEL})
        return {"settings": settings, "calibration": self.calibration.version, "request": request_version()}

    @property
    def fields(self) -> dict[str, Any]:
        """The fields of every request beside what is asked."""
        return self.fields_of(response_format(self.group_size))

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
        self._asking = Asking(settings, self._endpoint, None)
        self._reverse = False

    def at(self, account: Account) -> "LlmJudge":
        """The same judge, its replies kept in the account's ledger and paid from its budget."""
        return self._with(account, self._reverse)

    def swapped(self) -> "LlmJudge":
        """The same judge, the answers of each request in the reverse order."""
        return self._with(self._account, not self._reverse)

    def _with(self, account: Account | None, reverse: bool) -> "LlmJudge":
        other = copy.copy(self)
        other._account, other._reverse = account, reverse
        other._asking = Asking(self.settings, self._endpoint, account)
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
        measured, prices, wanted, known = self._asking.measured, self.settings.charged, [], 0
        for prompt, answers in batch:
            try:
                groups = self.groups(prompt, answers)
                asked = [group for group in groups if not self._known(group)]
                size = asked[0].image.size if asked else (1, 1)
            except OSError:
                continue
            known += len(groups) - len(asked)
            for group in asked:
                wanted.append(expected(group.texts, *size, len(group.answers), prices, measured))
        return Estimate.of(wanted, known, prices, measured)

    def _known(self, group: Group) -> bool:
        turns = self._account.ledger.turns(group.key) if self._account else ()
        return not group.recall(turns, self._account is not None and self._account.again)

    def groups(self, prompt: Prompt, answers: Sequence[str]) -> list[Group]:
        """The requests that grade these answers, empty ones left out. Raises OSError when there is no image file."""
        places = [place for place, answer in enumerate(answers) if answer.strip()]
        if not places:
            return []
        image = JudgeImage(prompt.image_path, self.settings.image_urls, self.settings.detail)
        order = [
            places[i] for i in shown_order([answers[i] for i in places], prompt.prompt_id, self.settings.order_seed)
        ]
        found, revision = [], revision_of(self.settings, self._account)
        for group in in_groups(order, self.settings.group_size):
            ids = named(group[::-1] if self._reverse else group)
            texts = {key: answers[place] for key, place in ids.items()}
            found.append(Group(prompt, image, ids, texts, self.settings.fields, revision))
        return found

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
        self._asking.ask(group)
        return group.scores(self.name)


def in_place(answers: Sequence[str], found: Iterable[Mapping[int, Score]]) -> list[Score]:
    """The scores in the order of the answers; those that were in no request are empty."""
    by_place = {place: score for scores in found for place, score in scores.items()}
    return [by_place.get(place) or Score.unscored(EMPTY_ANSWER) for place in range(len(answers))]


def unread(answers: Sequence[str]) -> dict[int, Score]:
    """The scores of answers whose image can't be read, by place."""
    return {place: Score.unscored(UNREADABLE_IMAGE) for place, answer in enumerate(answers) if answer.strip()}
