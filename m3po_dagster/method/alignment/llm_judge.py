"""A vision-language model behind an OpenAI-compatible endpoint as a scorer: one request an answer (section 3.3).

An answer the judge could not judge is unscored with its reason. An endpoint that does not answer at all is an error: an
outage must stop the work, not turn into thousands of unscored answers.
"""

from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Literal

from pydantic import Field

from m3po_dagster.method.alignment.calibration import Calibration, Identity
from m3po_dagster.method.alignment.judge_request import ASPECTS, mean_grade, read_reply, request, request_version
from m3po_dagster.method.alignment.scorer import Batch, Score, ScorerSettings
from m3po_dagster.method.endpoint import Endpoint, EndpointSettings, Refused
from m3po_dagster.method.image_url import data_url
from m3po_dagster.method.prompt import Prompt


class LlmJudgeSettings(EndpointSettings, ScorerSettings):
    """A vision-language model behind an OpenAI-compatible endpoint, as the judge."""

    kind: Literal["llm_judge"] = Field("llm_judge", description="a served vision-language model grades each answer")
    name: str = Field("llm_judge", pattern=r"^[a-z][a-z0-9_]*$", description="column of the MAS table")
    calibration: Calibration = Field(
        Identity(), description="map of the raw value to [0, 1]; the raw value already lies there"
    )
    max_reply_tokens: int = Field(512, ge=64, le=32768, description="a reply is cut, and unscored, after this many")

    @property
    def endpoint(self) -> str:
        """The address that is asked."""
        return self.base_url

    @property
    def sub_scores(self) -> dict[str, str]:
        """NAME_relevance, NAME_accuracy and NAME_adherence."""
        return {f"{self.name}_{aspect}": f"grade for {aspect}, a whole number 1 to 5" for aspect in ASPECTS}

    def identity(self) -> dict:
        """Endpoint, model and request decide the grades; key, patience and parallelism don't."""
        free = {"calibration", "api_key_env", "timeout", "max_retries", "max_parallel"}
        settings = self.model_dump(mode="json", exclude=free)
        return {"settings": settings, "calibration": self.calibration.version, "request": request_version()}

    def build(self, device: str = "cpu") -> "LlmJudge":
        """The scorer; nothing is asked yet. Raises ValueError when the key's variable is not set."""
        return LlmJudge(self)


class LlmJudge:
    """Raw value: the mean grade mapped from [1, 5] to [0, 1].

    Sub-scores: NAME_relevance, NAME_accuracy, NAME_adherence (whole numbers 1 to 5). Words: the judge's evidence.
    """

    def __init__(self, settings: LlmJudgeSettings) -> None:
        self.settings = settings
        self.name = settings.name
        self.sub_scores = tuple(settings.sub_scores)
        self._endpoint = Endpoint(settings, f"scorer '{settings.name}'")

    def value(self, sub_scores: Mapping[str, float]) -> float:
        """The raw value that these sub-scores make."""
        return mean_grade([sub_scores[name] for name in self.sub_scores])

    def score(self, batch: Batch) -> list[list[Score]]:
        """One request an answer, `max_parallel` at once; an image is read and encoded once a prompt.

        Unscored: an empty answer and an unreadable image (neither is sent), a request the endpoint refuses, a reply
        that can't be used. Raises EndpointError when the endpoint does not answer after the retries, or refuses key or
        model.
        """
        rows: list[list[Score]] = []
        waiting: deque[list[Future[Score]]] = deque()
        pool = ThreadPoolExecutor(self.settings.max_parallel, thread_name_prefix=self.name)
        try:
            for prompt, answers in batch:
                waiting.append(self._submit(pool, prompt, answers))
                # Enough is queued to keep every thread busy; more would only hold more images in memory.
                while len(waiting) > 1 and sum(map(len, waiting)) > 2 * self.settings.max_parallel:
                    rows.append([asked.result() for asked in waiting.popleft()])
            return rows + [[asked.result() for asked in row] for row in waiting]
        finally:
            pool.shutdown(cancel_futures=True)

    def _submit(self, pool: ThreadPoolExecutor, prompt: Prompt, answers: list[str]) -> list[Future[Score]]:
        try:
            image = data_url(prompt.image_path)
        except OSError:
            image = None
        return [pool.submit(self._score, prompt, image, answer) for answer in answers]

    def _score(self, prompt: Prompt, image: str | None, answer: str) -> Score:
        if not answer.strip():
            return Score.unscored("empty answer")
        if image is None:
            return Score.unscored("image can't be read")
        try:
            reply = self._endpoint.chat(
                request(self.settings.model, self.settings.max_reply_tokens, prompt, image, answer)
            )
        except Refused as error:
            return Score.unscored(f"request refused (HTTP {error.status})", error.said)
        score = read_reply(reply, self.name)
        return replace(score, words=self._endpoint.without_key(score.words))
