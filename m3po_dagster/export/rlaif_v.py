"""RLAIF-V's Parquet layout: an image's bytes, one question, a chosen and a rejected answer."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from m3po_dagster.export.formats import PairFormat, tag_in
from m3po_dagster.export.records import PairRecord

if TYPE_CHECKING:
    from datasets import Features

DATA_SET = "m3po"
"""`ds_name` of every row; with `idx`, the pair's id, it names the row."""

_TEXTS = ("question", "chosen", "rejected", "origin_dataset", "origin_split", "idx", "image_path")


class RlaifVPairs(PairFormat):
    """The columns of RLAIF-V's data set; `origin_split`, its JSON text about a row, has the pair's facts.

    RLAIF-V's trainer puts the image before the question and splits texts at `<image>`. It takes every Parquet file of a
    folder itself, not of folders below.
    """

    name: ClassVar = "rlaif-v"
    image_modes: ClassVar = ("embed",)
    undoes_turns: ClassVar = False
    folder: ClassVar = ""
    suffix: ClassVar = ".parquet"

    def why_not(self, record: PairRecord) -> str | None:
        """As PairFormat says."""
        if len(record.messages) > 1:
            return "its prompt has several turns, and RLAIF-V's layout has one question"
        return tag_in(record, ("<image>",))

    def features(self) -> "Features":
        """As PairFormat says: what `datasets.load_dataset` finds in the files."""
        from datasets import Features, Image, Value

        texts = {name: Value("string") for name in _TEXTS}
        return Features({"ds_name": Value("string"), "image": Image(), **texts})

    def row(self, record: PairRecord, image: Mapping[str, Any] | str) -> dict[str, Any]:
        """As PairFormat says."""
        return {
            "ds_name": DATA_SET,
            "image": image,
            "question": record.messages[-1].text,
            "chosen": record.chosen,
            "rejected": record.rejected,
            "origin_dataset": record.source,
            "origin_split": record.facts_json(),
            "idx": record.row["pair_id"],
            "image_path": record.image_name,
        }

    def how_to(self, name: str) -> str:
        """As PairFormat says."""
        return """\
Give this folder to RLAIF-V's training script as `data_dir`; it computes the log-probs of its reference model into a
folder `logps` below. Elsewhere:

```python
from datasets import load_dataset

pairs = load_dataset("THIS_FOLDER", split="train")
```

`origin_split` is a JSON text with scores, gaps, log-probs and ids of the pair. m3po-dagster reads the folder as a
source of `format: rlaif_v`."""
