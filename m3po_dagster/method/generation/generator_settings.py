"""What a study says about where the model runs that samples and answers: in this process, or behind a server."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from m3po_dagster.method.endpoint import EndpointSettings
from m3po_dagster.method.generation.adapter import Adapter
from m3po_dagster.method.generation.numerics import of_server
from m3po_dagster.settings import Settings

# Where one request's choices are numbered by the server: choice i is drawn from seed + i. SGLang copies the seed, and
# what another server does is not known: there a request is one sample.
NUMBERS_CHOICES = frozenset({"vllm"})


class TransformersSettings(Settings):
    """The model runs in this process, with transformers."""

    kind: Literal["transformers"] = Field("transformers", description="the base model of `model`, loaded here")

    def identity(self) -> str:
        """What of this decides the samples, beside the base model."""
        return "transformers"


class ServerSettings(EndpointSettings):
    """The model runs in a server that speaks the OpenAI chat API; `model.path` names the same model for training."""

    kind: Literal["server"] = Field("server", description="a server of the base model, started elsewhere")
    engine: Literal["vllm", "sglang", "openai"] = Field(
        "vllm", description="what the server is; openai: any other that speaks the plain API with logprobs"
    )
    version: str = Field(
        min_length=1, pattern=r"^[\w.+-]+$", description="the engine's version as you declare it, for example 0.33.0"
    )
    dtype: str = Field(
        "bfloat16",
        pattern=r"^\w+$",
        description="precision the server computes in, as you declare it",
    )
    timeout: float = Field(600.0, gt=0, le=3600, description="seconds to wait for one reply")
    max_parallel: int = Field(32, ge=1, le=1024, description="requests in flight at once")
    samples_per_request: int | None = Field(
        None,
        ge=1,
        description="most samples asked for in one request (its `n`), for a server that caps it; "
        "null: all N of vllm, 1 of the others, which don't give each choice a seed of its own",
    )
    adapter_name: str = Field(
        "m3po-{adapter}",
        min_length=1,
        description="name an adapter goes by at the server: {adapter} is the start of its fingerprint, {recipe} and "
        "{seed} name it too; SGLang takes model:adapter",
    )
    load_adapters: bool = Field(
        False,
        description="tell a running vLLM to load an adapter from its folder in the store, which the server must see "
        "under the same path; else the server must know the adapter already",
    )

    @model_validator(mode="after")
    def _consistent(self) -> "ServerSettings":
        try:
            self.adapter_name.format(adapter="a", recipe="r", seed=0)
        except (KeyError, IndexError, ValueError):
            raise ValueError("adapter_name takes {adapter}, {recipe} and {seed}, nothing else in braces") from None
        if self.load_adapters and self.engine != "vllm":
            raise ValueError("load_adapters is for vllm; name the adapters when you start another server")
        if self.load_adapters and "{adapter}" not in self.adapter_name:
            raise ValueError("load_adapters needs {adapter} in adapter_name: a name must not outlive its adapter")
        return self

    def identity(self) -> dict[str, str]:
        """What decides the samples, beside the base model; where the server is and how it is asked don't."""
        return {"engine": self.engine, "version": self.version, "dtype": self.dtype, "model": self.model}

    @property
    def numerics(self) -> str:
        """The numerics of its log-probs, as declared."""
        return of_server(self.engine, self.version, self.dtype)

    @property
    def choices_a_request(self) -> int | None:
        """Most choices to ask for in one request; None for as many as there are samples."""
        return self.samples_per_request or (None if self.engine in NUMBERS_CHOICES else 1)

    def adapter_model(self, adapter: Adapter) -> str:
        """The model name that an adapter has at the server."""
        return self.adapter_name.format(adapter=adapter.fingerprint[:16], recipe=adapter.recipe, seed=adapter.seed)


def _by_name(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


GeneratorSettings = Annotated[
    Annotated[TransformersSettings | ServerSettings, Field(discriminator="kind")], BeforeValidator(_by_name)
]
