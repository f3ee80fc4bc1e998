"""ms-swift's standard layout for DPO with images: JSON lines of messages, a rejected response and image paths."""

from collections.abc import Mapping
from typing import Any, ClassVar

from m3po_dagster.export.formats import PairFormat, tag_in
from m3po_dagster.export.records import PairRecord

TAGS = ("<image>", "<video>", "<audio>")
"""What ms-swift replaces wherever it stands."""


class MsSwiftPairs(PairFormat):
    """`messages` with the chosen answer last, `rejected_response`, `images`. The first user turn begins with `<image>`.

    Paths of copied images are relative to the export's folder, which ms-swift is told in ROOT_IMAGE_DIR.
    """

    name: ClassVar = "ms-swift"
    image_modes: ClassVar = ("copy", "reference")
    undoes_turns: ClassVar = False
    suffix: ClassVar = ".jsonl"

    def why_not(self, record: PairRecord) -> str | None:
        """As PairFormat says."""
        return tag_in(record, TAGS)

    def row(self, record: PairRecord, image: Mapping[str, Any] | str) -> dict[str, Any]:
        """As PairFormat says."""
        messages = [{"role": message.role, "content": message.text} for message in record.messages]
        first = next(message for message in messages if message["role"] == "user")
        first["content"] = f"<image>{first['content']}"
        return {
            "messages": [*messages, {"role": "assistant", "content": record.chosen}],
            "rejected_response": record.rejected,
            "images": [image],
            "pair_id": record.row["pair_id"],
            "facts": record.facts_json(),
        }

    def how_to(self, name: str) -> str:
        """As PairFormat says."""
        return """\
```sh
ROOT_IMAGE_DIR=THIS_FOLDER swift rlhf --rlhf_type dpo --dataset THIS_FOLDER/data/*.jsonl ...
```

ms-swift looks for images below ROOT_IMAGE_DIR, and without it below the working directory. It leaves `pair_id` and
`facts` (scores, gaps, log-probs and ids as one JSON text) aside."""
