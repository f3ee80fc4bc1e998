"""LLaMA-Factory's sharegpt layout for ranking with images: JSON lines, and the entry of `dataset_info.json`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from m3po_dagster.export.formats import PairFormat, alternates, tag_in
from m3po_dagster.export.records import PairRecord

TAGS = ("<image>", "<video>", "<audio>")
"""What LLaMA-Factory replaces wherever it stands: a row with more of them than images is an error there."""

_SPEAKERS = {"system": "system", "user": "human", "assistant": "gpt"}


class LlamaFactoryPairs(PairFormat):
    """`conversations` up to the last human turn, `chosen` and `rejected` as one gpt turn each, `images`.

    The first human turn begins with `<image>`. Paths are relative to the folder of `dataset_info.json`, which is
    `media_dir` unless that is set.
    """

    name: ClassVar = "llama-factory"
    image_modes: ClassVar = ("copy", "reference")
    undoes_turns: ClassVar = False
    suffix: ClassVar = ".jsonl"

    def why_not(self, record: PairRecord) -> str | None:
        """As PairFormat says: LLaMA-Factory skips conversations whose speakers don't take turns."""
        if not alternates(record):
            return "its speakers don't take turns, and LLaMA-Factory skips such a conversation"
        return tag_in(record, TAGS)

    def row(self, record: PairRecord, image: Mapping[str, Any] | str) -> dict[str, Any]:
        """As PairFormat says."""
        turns = [{"from": _SPEAKERS[message.role], "value": message.text} for message in record.messages]
        first = next(turn for turn in turns if turn["from"] == "human")
        first["value"] = f"<image>{first['value']}"
        return {
            "conversations": turns,
            "chosen": {"from": "gpt", "value": record.chosen},
            "rejected": {"from": "gpt", "value": record.rejected},
            "images": [image],
            "pair_id": record.row["pair_id"],
            "facts": record.facts_json(),
        }

    def beside(self, folder: Path, name: str) -> None:
        """As PairFormat says."""
        columns = {"messages": "conversations", "chosen": "chosen", "rejected": "rejected", "images": "images"}
        entry = {"file_name": self.folder, "formatting": "sharegpt", "ranking": True, "columns": columns}
        (folder / "dataset_info.json").write_text(json.dumps({name: entry}, indent=2) + "\n", encoding="utf-8")

    def how_to(self, name: str) -> str:
        """As PairFormat says."""
        return f"""\
Name this folder and the data set in LLaMA-Factory's training file:

```yaml
stage: dpo
dataset_dir: THIS_FOLDER
dataset: {name}
```

Or copy the entry of `dataset_info.json` into your own, with `data` and `images` beside it. LLaMA-Factory leaves
`pair_id` and `facts` (scores, gaps, log-probs and ids as one JSON text) aside."""
