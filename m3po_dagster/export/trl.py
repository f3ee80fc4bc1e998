"""TRL's conversational preference layout with images, as a Parquet data set of Hugging Face `datasets`."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from m3po_dagster.export.formats import PairFormat
from m3po_dagster.export.records import PairRecord

if TYPE_CHECKING:
    from datasets import Features

_NUMBERS = ("chosen_mas", "m3p_score", "mas_gap", "logp_gap", "ref_chosen_logp", "ref_rejected_logp")
_NAMES = ("pair_id", "prompt_id", "chosen_id", "rejected_id", "source", "source_id", "image_sha256")


class TrlPairs(PairFormat):
    """`prompt`, `chosen`, `rejected` as lists of messages, `images` as a list of one; the rest are further columns.

    TRL puts the images before the text of the first user turn, so no text holds a placeholder. `DPOTrainer` leaves
    columns alone that it doesn't know.
    """

    name: ClassVar = "trl"
    image_modes: ClassVar = ("embed", "reference")
    undoes_turns: ClassVar = True
    suffix: ClassVar = ".parquet"

    def features(self) -> "Features":
        """As PairFormat says: what `datasets.load_dataset` finds in the files."""
        from datasets import Features, Image, List, Value

        message = {"role": Value("string"), "content": Value("string")}
        return Features(
            {
                "images": List(Image()),
                **{side: List(message) for side in ("prompt", "chosen", "rejected")},
                **{name: Value("string") for name in _NAMES},
                **{name: Value("float64") for name in _NUMBERS},
                **{f"{side}_token_ids": List(Value("int32")) for side in ("chosen", "rejected")},
            }
        )

    def row(self, record: PairRecord, image: Mapping[str, Any] | str) -> dict[str, Any]:
        """As PairFormat says."""
        facts = record.facts
        return {
            "images": [{"bytes": None, "path": image} if isinstance(image, str) else image],
            "prompt": [{"role": message.role, "content": message.text} for message in record.messages],
            "chosen": [{"role": "assistant", "content": record.chosen}],
            "rejected": [{"role": "assistant", "content": record.rejected}],
            **{name: facts[name] for name in (*_NAMES, *_NUMBERS)},
            "chosen_token_ids": record.chosen_ids,
            "rejected_token_ids": record.rejected_ids,
        }

    def how_to(self, name: str) -> str:
        """As PairFormat says."""
        return """\
```python
from datasets import load_dataset
from trl import DPOConfig, DPOTrainer

pairs = load_dataset("THIS_FOLDER", split="train")
# No max_length: it would cut image tokens.
trainer = DPOTrainer(model, args=DPOConfig(max_length=None), train_dataset=pairs, processing_class=processor)
```

`ref_chosen_logp` and `ref_rejected_logp` are sums over `chosen_token_ids` and `rejected_token_ids`, the tokens that
were sampled. TRL tokenises the texts again, which need not give the same tokens, and computes its own reference."""
