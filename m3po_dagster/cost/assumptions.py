"""What an estimate assumes: every figure that is neither counted nor set in a study, with where it comes from.

Most are ranges, from what good practice reaches to what a plain run does: an estimate before anything has run is right
within a factor of a few, and says so.
"""

from dataclasses import dataclass, field, fields


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
    """A GPU: dense bfloat16 operations and bytes of memory traffic, both a second, as its data sheet gives them."""

    name: str
    flops: float
    bandwidth: float


CARDS = {
    "a100": Card("A100 80 GB (SXM)", 312e12, 2.039e12),
    "h100": Card("H100 80 GB (SXM)", 989e12, 3.35e12),
    "l40s": Card("L40S", 362e12, 0.864e12),
}


def _told(default: object, meaning: str):
    return field(default=default, metadata={"meaning": meaning})


@dataclass(frozen=True)
class Assumptions:
    """The assumed figures; `meaning` in a field's metadata says what each is and why."""

    bytes_a_token: float = _told(4.0, "bytes of text a token, near enough for English and for Chinese")
    template_tokens: float = _told(30.0, "tokens of the chat template around a prompt where the model is not at hand")
    image_tokens: float = _told(576.0, "image tokens of a prompt where the model is not at hand: LLaVA-1.5's")
    parameters: float = _told(7e9, "parameters of a model that is not at hand and whose name tells no size")
    kv_bytes_a_token: float = _told(
        524_288.0, "keys and values a token where the model is not at hand: LLaVA-1.5-7B's in 16 bits"
    )
    answer_share: float = _told(0.5, "length of an answer as a share of max_new_tokens, where the data has no answers")
    longest_answer: Range = _told(
        Range(1.0, 2.0), "steps a batch takes, as a multiple of the mean answer: it goes on for its longest"
    )
    distinct_share: Range = _told(
        Range(0.35, 1.0),
        "share of N samples that differ: 0.35 was measured for the short answers of the embedded study, long ones hardly "
        "repeat; equal ones are judged once",
    )
    server_rows: int = _told(256, "sequences a server decodes at once, the default of vLLM")
    read_utilisation: Range = _told(
        Range(0.3, 0.5), "share of the card's operations reached while prompts are read or answers are scored"
    )
    decode_efficiency: Range = _told(
        Range(0.25, 0.7),
        "share of its limit (memory traffic or operations, whichever is slower) that a decoding step reaches",
    )
    train_utilisation: Range = _told(Range(0.25, 0.45), "share of the card's operations reached while training")
    read_flops: float = _told(2.0, "operations a parameter and token to read")
    lora_flops: float = _told(
        4.0, "operations a parameter and token to train LoRA: forward and the activations' gradients, no weights'"
    )
    checkpoint_flops: float = _told(2.0, "operations a parameter and token more with gradient checkpointing")
    pair_share: Range = _told(Range(0.8, 1.0), "share of the prompts that give a pair")
    tokens_a_sentence: float = _told(20.0, "tokens a sentence, for scorers that take sentences")
    judge_image: tuple[int, int] = _told((640, 480), "size of an image that a judge sees, where none was measured")
    judge_group: int = _told(8, "answers a request of a judge, where the study has no served judge")
    compression: Range = _told(Range(0.25, 0.8), "share of the tables' bytes that is left after zstd; 0.26 was measured")

    def meanings(self) -> dict[str, str]:
        """Name of each assumption -> what it is."""
        return {one.name: one.metadata["meaning"] for one in fields(self)}
