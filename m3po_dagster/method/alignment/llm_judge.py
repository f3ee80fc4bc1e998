"""A vision-language model behind an OpenAI-compatible endpoint as a scorer: one request an answer (section 3.3).

An answer the judge could not judge is unscored with its reason. An endpoint that does not answer at all is an error: an
outage must stop the work, not turn into thousands of unscored answers.
"""

import os
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from m3po_dagster.method.alignment.calibration import Calibration, Identity
from m3po_dagster.method.alignment.judge_request import (
    ASPECTS,
    data_url,
    mean_grade,
    read_reply,
    request,
    request_version,
)
from m3po_dagster.method.alignment.scorer import Batch, EndpointError, Score, ScorerSettings
from m3po_dagster.method.prompt import Prompt

# Statuses that speak of this one request: too large, an image or a text the service won't take.
REFUSED = (400, 413, 422)
NO_KEY = "none"
HIDDEN = "***"
MESSAGE_LENGTH = 300


class LlmJudgeSettings(ScorerSettings):
    """A vision-language model behind an OpenAI-compatible endpoint, as the judge."""

    kind: Literal["llm_judge"] = Field("llm_judge", description="a served vision-language model grades each answer")
    name: str = Field("llm_judge", pattern=r"^[a-z][a-z0-9_]*$", description="column of the MAS table")
    model: str = Field(min_length=1, description="name of the model at the endpoint")
    base_url: str = Field(
        description="address of the endpoint up to and with its version, for example http://127.0.0.1:8000/v1"
    )
    calibration: Calibration = Field(
        Identity(), description="map of the raw value to [0, 1]; the raw value already lies there"
    )
    api_key_env: str | None = Field(
        None,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="name of the environment variable that holds the key; null for an endpoint without one",
    )
    max_reply_tokens: int = Field(512, ge=64, le=32768, description="a reply is cut, and unscored, after this many")
    timeout: float = Field(60.0, gt=0, le=3600, description="seconds to wait for one reply")
    max_retries: int = Field(
        5,
        ge=0,
        le=20,
        description="repeats of a request that met no answer, a busy endpoint (429, its Retry-After is kept) or a 5xx",
    )
    max_parallel: int = Field(8, ge=1, le=256, description="requests in flight at once")

    @field_validator("base_url")
    @classmethod
    def _address(cls, value: str) -> str:
        # urlsplit's own errors would say the value again.
        try:
            parts = urlsplit(value)
            plain = parts.port != 0 and not (parts.query or parts.fragment or "@" in value)
        except ValueError:
            plain = False
        if not plain:
            raise ValueError("give the plain address: a key belongs in the variable that api_key_env names")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("give an address that starts with http:// or https://")
        return value.rstrip("/")

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
        from openai import DefaultHttpxClient, OpenAI

        self.settings = settings
        self.name = settings.name
        self.sub_scores = tuple(settings.sub_scores)
        self._key = _key(settings)
        self._client = OpenAI(
            base_url=settings.base_url,
            api_key=self._key or NO_KEY,
            timeout=settings.timeout,
            max_retries=settings.max_retries,
            # A redirect would take the image and the answer to a place that the study does not name.
            http_client=DefaultHttpxClient(follow_redirects=False),
        )
        # The client takes these from the environment; the endpoint need not be the one they belong to.
        self._client.organization = self._client.project = None
        self._client._custom_headers = {}

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
            image = data_url(prompt)
        except OSError:
            image = None
        return [pool.submit(self._score, prompt, image, answer) for answer in answers]

    def _score(self, prompt: Prompt, image: str | None, answer: str) -> Score:
        import openai

        if not answer.strip():
            return Score.unscored("empty answer")
        if image is None:
            return Score.unscored("image can't be read")
        asked = request(self.settings.model, self.settings.max_reply_tokens, prompt, image, answer)
        try:
            reply = self._client.chat.completions.with_raw_response.create(**asked)
        except openai.APIStatusError as error:
            status = f"HTTP {error.status_code}"
            said = error.message.removeprefix(f"Error code: {error.status_code}").lstrip(" -")
            if error.status_code in REFUSED:
                return Score.unscored(f"request refused ({status})", self._without_key(said))
            if error.response.has_redirect_location:
                status += f", a redirect to {error.response.headers['location']}, which is not followed"
            # The client's own errors are not chained: a log would print their text as it came.
            raise EndpointError(self._failure(f"answers {status}: {said}")) from None
        except openai.APIConnectionError as error:
            raise EndpointError(self._failure(f"can't be reached: {error.__cause__ or error.message}")) from None
        score = read_reply(reply.content, self.name)
        return replace(score, words=self._without_key(score.words))

    def _without_key(self, said: str) -> str:
        """What came from outside: an endpoint may send back the headers it was sent."""
        return said.replace(self._key, HIDDEN) if self._key else said

    def _failure(self, what: str) -> str:
        settings, said = self.settings, " ".join(self._without_key(what).split())[:MESSAGE_LENGTH]
        return (
            f"scorer '{self.name}': {settings.endpoint} (model {settings.model!r}) {said} "
            f"(after up to {settings.max_retries} retries). Correct base_url, model or api_key_env, "
            "or run it again when the endpoint answers"
        )


def _key(settings: LlmJudgeSettings) -> str | None:
    if settings.api_key_env is None:
        return None
    key = os.environ.get(settings.api_key_env, "").strip()
    if not key:
        raise ValueError(
            f"scorer '{settings.name}': the environment variable {settings.api_key_env} (api_key_env) is not set; "
            f"put the key of {settings.base_url} there"
        )
    # In a header such a key is an error whose text spells it in another way.
    if not (key.isascii() and key.isprintable()):
        raise ValueError(
            f"scorer '{settings.name}': the environment variable {settings.api_key_env} (api_key_env) holds characters "
            "that no key has (a line break, an accent); put the key alone there"
        )
    return key
