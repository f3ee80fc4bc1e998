"""What an estimate assumes: every figure that is neither counted nor set in a study, with where it comes from.

Most are ranges, from what good practice reaches to what a plain run does: an estimate before anything has run is right
within a factor of a few, and says so.
"""

from dataclasses import dataclass

from pydantic import Field

from m3po_dagster.settings import Settings


@dataclass(frozen=True)
class Range:
    """From `low` to `high`, both included. Sums and products by a positive number go end by end."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high:
            raise ValueError(f"a range goes from low to high, neither below 0: got {self.low} to {self.high}")

    def __add__(self, other: "Range") -> "Range":
        return Range(self.low + other.low, self.high + other.high)

    def __mul__(self, factor: "float | Range") -> "Range":
        other = factor if isinstance(factor, Range) else Range(factor, factor)
        return Range(self.low * other.low, self.high * other.high)

    def __truediv__(self, speed: "float | Range") -> "Range":
        """Work over speed: least at the highest speed."""
        other = speed if isinstance(speed, Range) else Range(speed, speed)
        return Range(self.low / other.high, self.high / other.low)


def exactly(value: float) -> Range:
    """A range of one value."""
    return Range(value, value)


@dataclass(frozen=True)
class Card:
    """A GPU by its data sheet: dense operations in 16 and in 32 bits, and bytes of memory traffic, each a second."""

    name: str
    flops_16: float
    flops_32: float
    bandwidth: float

    def flops(self, bits: int) -> float:
        """Operations a second on numbers of so many bits, 32 or fewer; fewer than 16 compute in 16."""
        return self.flops_32 if bits > 16 else self.flops_16


CARDS = {
    "a100": Card("A100 80 GB (SXM)", 312e12, 19.5e12, 2.039e12),
    "h100": Card("H100 80 GB (SXM)", 989e12, 67e12, 3.35e12),
    "l40s": Card("L40S", 362e12, 91.6e12, 0.864e12),
}
"""By the name that `--card` takes."""


class Assumptions(Settings):
    """The assumed figures; each field's description says what it is and why."""

    bytes_a_token: float = Field(4.0, gt=0, description="bytes of text a token: near enough for English and Chinese")
    template_tokens: float = Field(
        30.0, ge=0, description="tokens of the chat template around a prompt, where the model is not at hand"
    )
    image_tokens: float = Field(
        576.0, ge=0, description="image tokens of a prompt, where the model is not at hand: those of LLaVA-1.5"
    )
    parameters: float = Field(
        7e9, gt=0, description="parameters of a model that is not at hand and whose name tells no size"
    )
    kv_bytes_a_token: float = Field(
        524_288.0, gt=0, description="keys and values a token, where the model is not at hand: LLaVA-1.5-7B in 16 bits"
    )
    answer_share: float = Field(
        0.5, gt=0, le=1, description="an answer's length as a share of max_new_tokens, where the data has no answers"
    )
    longest_answer: Range = Field(
        Range(1.0, 2.0),
        description="steps of a batch as a multiple of the mean answer: it goes on for the longest of its answers",
    )
    distinct_share: Range = Field(
        Range(0.35, 1.0),
        description="share of N samples that differ, equal ones being judged once: 0.35 was measured for the short "
        "answers of the embedded study; long ones hardly repeat",
    )
    server_rows: int = Field(256, ge=1, description="sequences that a server decodes at once: vLLM's default")
    read_utilisation: Range = Field(
        Range(0.3, 0.5), description="share of the card's operations reached while prompts or answers are read"
    )
    decode_efficiency: Range = Field(
        Range(0.25, 0.7),
        description="share that a decoding step reaches of its limit, memory traffic or operations",
    )
    train_utilisation: Range = Field(
        Range(0.25, 0.45), description="share of the card's operations reached while training"
    )
    read_flops: float = Field(2.0, gt=0, description="operations a parameter and token to read")
    lora_flops: float = Field(
        4.0,
        gt=0,
        description="operations a parameter and token to train LoRA: forward, and gradients of activations alone",
    )
    checkpoint_flops: float = Field(
        2.0, ge=0, description="operations a parameter and token more with gradient checkpointing"
    )
    pair_share: Range = Field(Range(0.8, 1.0), description="share of the prompts that give a pair")
    tokens_a_sentence: float = Field(20.0, gt=0, description="tokens a sentence, for scorers that take sentences")
    judge_image: tuple[int, int] = Field(
        (640, 480), description="size in pixels of the image that a judge sees, where none was measured"
    )
    judge_group: int = Field(
        8, ge=1, description="answers in a request to a judge, where the study has no served judge"
    )
    compression: Range = Field(
        Range(0.25, 0.8),
        description="share of a table's bytes left after zstd, the tokens' log-probs apart, which stay what they are",
    )
