"""What a study says of a vision-language model that judges behind an OpenAI-compatible endpoint."""

import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, JsonValue, field_validator

from m3po_dagster.method.alignment.batch_settings import BatchSettings
from m3po_dagster.method.alignment.budget import PriceSettings
from m3po_dagster.method.alignment.judge_image import ImageUrls
from m3po_dagster.method.endpoint import EndpointSettings

HOW_REQUESTS_TRAVEL = frozenset(
    {"api_key_env", "timeout", "max_retries", "max_parallel", "image_urls", "prices", "batch"}
)
"""Settings that say nothing of what is asked, so that they are no part of a judge's identity."""

# What the request itself says field by field.
_SECRET = re.compile(r"key$|header|secret|password|authorization", re.IGNORECASE)
_OWN_FIELDS = {
    "messages", "response_format", "model", "temperature", "max_completion_tokens", "max_tokens", "stream", "n",
}  # fmt: skip


class ServedJudgeSettings(EndpointSettings):
    """A vision-language model behind an OpenAI-compatible endpoint that judges answers."""

    name: str = Field(
        "judge",
        pattern=r"^[a-z][a-z0-9_]*$",
        description="what the ledger and messages call the judge",
    )
    revision: str = Field(
        "",
        description="what tells this model from another that is served under the same name, for example a commit; the "
        "ledger knows a model by name, revision and probe, not by its address",
    )
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
    def charged(self) -> PriceSettings | None:
        """What a request costs the way it is asked."""
        return self.prices.in_batches() if self.prices and self.batch else self.prices

    def fields_of(self, response_format: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of a request beside its messages; the reply comes in `response_format`."""
        given = {} if self.temperature is None else {"temperature": self.temperature}
        return {
            "model": self.model,
            **given,
            "max_completion_tokens": self.max_reply_tokens,
            "response_format": response_format,
            **self.request_fields,
        }
