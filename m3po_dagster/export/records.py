"""Pairs as other trainers need them: the conversation, both answers and the image of each, read shard by shard."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from m3po_dagster.datasets.images import DatasetImages
from m3po_dagster.export.folder import ExportError
from m3po_dagster.export.images import ExportedImage, ImageProblem, read_image
from m3po_dagster.export.made import ShardPairs
from m3po_dagster.image_files import ImageOutsideRoot
from m3po_dagster.method.prompt import Message
from m3po_dagster.s3_files.ahead import ahead
from m3po_dagster.storage.artifact import Artifact

NO_REJECTED = "it has no rejected answer"


@dataclass(frozen=True)
class PairRecord:
    """One pair, whole.

    `messages` end with the user turn that both answers answer; the image belongs to the first user turn and is not in
    the text. `row` is the pair's row of preference_pairs; the token ids are those that were sampled, which the
    log-probs in `row` are of. `image_name` is what the dataset calls the image.
    """

    row: dict[str, Any]
    messages: tuple[Message, ...]
    chosen: str
    rejected: str
    chosen_ids: list[int]
    rejected_ids: list[int]
    source: str
    source_id: str
    image_name: str
    image: ExportedImage

    @property
    def texts(self) -> tuple[str, ...]:
        """Every text of the pair."""
        return (*(message.text for message in self.messages), self.chosen, self.rejected)

    @property
    def facts(self) -> dict[str, Any]:
        """What is known of the pair beside its texts and image: ids, scores, gaps, log-probs, where it comes from."""
        origin = {"source": self.source, "source_id": self.source_id, "image_sha256": self.image.sha256}
        return {**self.row, **origin}

    def facts_json(self) -> str:
        """`facts` as one JSON text: a column that has the same type in every row, whatever is unknown of a pair."""
        return json.dumps(self.facts, ensure_ascii=False, allow_nan=False)


@dataclass
class Tally:
    """What became of the pairs: written, dropped by reason with the ids of a few, images that were turned upright."""

    written: int = 0
    turned: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def drop(self, reason: str, pair_id: str, examples: int = 3) -> None:
        """Counts a pair that is left out."""
        self.dropped[reason] += 1
        if len(known := self.examples.setdefault(reason, [])) < examples:
            known.append(pair_id)

    @property
    def dropped_lines(self) -> list[str]:
        """A line a reason."""
        return [
            f"{count} dropped: {reason} ({', '.join(pair_id[:16] for pair_id in self.examples[reason])}"
            f"{', ...' if count > len(self.examples[reason]) else ''})"
            for reason, count in self.dropped.most_common()
        ]


def records_of(shard: ShardPairs, images: DatasetImages, tally: Tally) -> Iterator[PairRecord | None]:
    """The shard's pairs in their order; None for one that is dropped, which `tally` counts with its reason.

    Texts of the shard's pairs are held in memory, one image at a time. Raises ExportError when the study names no
    folder for a source, StoreError when a table is damaged.
    """
    rows = shard.pairs.table().to_pylist()
    answers = _rows(shard.candidates, ["text", "token_ids"], "candidate_id", _answers_of(rows))
    prompts = _rows(
        shard.instructions,
        ["messages", "source", "source_id", "image_uri", "image_name", "image_sha256"],
        "prompt_id",
        {row["prompt_id"] for row in rows},
    )
    with ahead(_image_files(prompts.values(), images)):
        yield from (_record(row, prompts, answers, images, tally) for row in rows)


def _image_files(prompts: Iterable[Mapping[str, Any]], images: DatasetImages) -> Iterator[Path]:
    """Where the images lie; what has no place is told of when its pair is written."""
    for prompt in prompts:
        with suppress(ImageOutsideRoot):
            yield images.locate(prompt["source"], prompt["image_uri"])


def _record(
    row: dict[str, Any],
    prompts: Mapping[str, dict[str, Any]],
    answers: Mapping[str, dict[str, Any]],
    images: DatasetImages,
    tally: Tally,
) -> PairRecord | None:
    if row["rejected_id"] is None:
        tally.drop(NO_REJECTED, row["pair_id"])
        return None
    prompt, chosen, rejected = prompts[row["prompt_id"]], answers[row["chosen_id"]], answers[row["rejected_id"]]
    try:
        path = images.locate(prompt["source"], prompt["image_uri"])
        image = read_image(path, prompt["image_sha256"])
    except ImageOutsideRoot as error:
        raise ExportError(
            f"the image of prompt {row['prompt_id']} can't be found: {error}; name the study that the pairs were "
            "made by with --study"
        ) from None
    except ImageProblem as problem:
        tally.drop(str(problem), row["pair_id"])
        return None
    return PairRecord(
        row=row,
        messages=tuple(Message(turn["role"], turn["text"]) for turn in prompt["messages"]),
        chosen=chosen["text"],
        rejected=rejected["text"],
        chosen_ids=chosen["token_ids"],
        rejected_ids=rejected["token_ids"],
        source=prompt["source"],
        source_id=prompt["source_id"],
        image_name=prompt["image_name"] or prompt["image_uri"],
        image=image,
    )


def _answers_of(rows: list[dict[str, Any]]) -> set[str]:
    return {row[name] for row in rows for name in ("chosen_id", "rejected_id")} - {None}


def _rows(artifact: Artifact, columns: list[str], key: str, wanted: set[str]) -> dict[str, dict[str, Any]]:
    """The rows of `wanted` by their key, some columns of them."""
    table = artifact.table(columns=[key, *columns])
    kept = table.filter(pc.is_in(table[key], value_set=pa.array(sorted(wanted), pa.string())))
    return {row.pop(key): row for row in kept.to_pylist()}
