"""A store with pairs of three shards, written without a model: turns, scripts, image files as data sets have them."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
from PIL import Image

from m3po_dagster.export.made import ShardPairs
from m3po_dagster.storage.artifact import Artifact
from m3po_dagster.storage.fingerprint import fingerprint
from m3po_dagster.storage.store import ArtifactStore
from m3po_dagster.storage.tables import CANDIDATES, DROPPED, FILTERED_INSTRUCTIONS, IDENTITY, PAIRS, TableSchema
from m3po_dagster.study import Study

TURNED = 6
"""EXIF: the picture was taken with the camera turned to the right."""

JUDGE = {"kind": "clip", "name": "clip", "model": "ViT-B-32", "pretrained": "openai"}


@dataclass
class Pair:
    """One pair; `turns` end with the question."""

    turns: list[tuple[str, str]]
    chosen: str = "a red circle"
    rejected: str | None = "a blue square"
    image: str = "wide.png"
    mas_gap: float | None = 0.25
    ids: tuple[list[int], list[int]] = field(default_factory=lambda: ([4, 5, 2], [6, 7, 8, 2]))


def asked(question: str, **fields) -> Pair:
    return Pair([("user", question)], **fields)


MIXED = {
    "s0": [
        asked("What is in this image?"),
        Pair(
            [("system", "Be brief."), ("user", "Is there a circle?"), ("assistant", "Yes."), ("user", "What color?")],
            chosen="red",
            rejected="blue",
        ),
    ],
    "s1": [],
    "s2": [
        asked(
            'Was ist das? \u2028 \u4ec0\u4e48 \U0001f7e5 "quoted"\n',
            chosen="ein Kreis \u00e9",
            image="turned.jpg",
            mas_gap=None,
        ),
        asked("How many are there?", image="nested/grey.webp"),
    ],
}
"""A system turn and a dialogue, a shard without pairs, other scripts and a line separator, an image that EXIF turns."""


class ExportWorld:
    """Images in a folder, a store, and a study that names the folder."""

    def __init__(self, folder: Path, pairs: dict[str, list[Pair]] = MIXED) -> None:
        self.images = folder / "images"
        _write_images(self.images)
        self.store = ArtifactStore(folder / "store")
        self.pairs = pairs
        source = {"format": "llava_instruct", "path": str(folder / "none.json"), "image_root": str(self.images)}
        self.study = Study.model_validate(
            {
                "name": "made",
                "dataset": {"shards": len(pairs), "sources": {"pictures": source}},
                "model": {"path": "someone/llava", "revision": "abc"},
                "judge": {"scorers": [JUDGE]},
                "recipes": {
                    "base": {},
                    "m3po": {
                        "description": "as in the paper",
                        "selection": {"rule": "m3p"},
                        "training": {"kind": "dpo"},
                    },
                },
                "benchmarks": {"mme": {"kind": "mme", "root": str(folder / "mme")}},
                "licences": {"sources": {"pictures": "CC-BY-4.0"}, "release": "mit"},
            }
        )
        self.shards = [self._shard(shard, some) for shard, some in pairs.items()]

    def _shard(self, shard: str, pairs: list[Pair]) -> ShardPairs:
        dataset = self._put(
            "source_dataset", "", {}, {"sources": {"pictures": {"settings": {}, "files": {"0": "f" * 64}}}}
        )
        prompts, candidates, rows = [], [], []
        for number, pair in enumerate(pairs):
            prompt_id = hashlib.sha256(f"{shard} {number}".encode()).hexdigest()[:32]
            prompts.append(self._prompt(prompt_id, pair))
            candidates += _candidates(prompt_id, pair)
            rows.append(_row(prompt_id, pair))
        dropped = [{"item_id": "no pair here", "reason": "one_distinct_candidate", "detail": None}]
        filtered = [{"filter": "required", "reason": "image missing", "count": 2, "examples": []}]
        instructions = self._put(
            "filtered_instructions",
            shard,
            {"data": (prompts, FILTERED_INSTRUCTIONS)},
            {"turns": "last"},
            [dataset],
            {"drops": filtered},
        )
        model = self._put("base_model", "", {}, {"settings": {"dtype": "float32"}, "files": {"hub": "someone/llava"}})
        made = self._put("candidates", shard, {"data": (candidates, CANDIDATES)}, {"n": 8}, [instructions, model])
        judge = self._put("judge_identity", "", {}, {"clip": {"settings": {"weight": 1}}})
        mas = self._put("mas_table", shard, {}, {}, [made, judge])
        recipe = self._put("recipe_config", "m3po", {}, {"selection": {"rule": "m3p", "alpha": 0.5}})
        tables = {"data": (rows, PAIRS), "dropped": (dropped, DROPPED)}
        facts = {"dropped by reason": {"one_distinct_candidate": 1}}
        found = self._put("preference_pairs", f"m3po|{shard}", tables, {}, [made, mas, recipe], facts)
        return ShardPairs(found, made, instructions, mas, judge, recipe, model, dataset)

    def _prompt(self, prompt_id: str, pair: Pair) -> dict:
        file = self.images / pair.image
        return {
            "prompt_id": prompt_id,
            "image_name": f"pictures/{pair.image}",
            "image_uri": pair.image,
            "image_sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
            "width": 8,
            "height": 4,
            "messages": [{"role": role, "text": text} for role, text in pair.turns],
            "reference": None,
            "source": "pictures",
            "source_id": f"record of {prompt_id[:6]}",
            "turn": 0,
        }

    def _put(
        self,
        asset: str,
        partition: str,
        tables: dict[str, tuple[list[dict], TableSchema]],
        settings: dict,
        inputs: list[Artifact] = [],  # noqa: B006  (never changed)
        metadata: dict | None = None,
    ) -> Artifact:
        refs = {
            f"{item.key.asset}[{item.key.partition}]": {**item.key._asdict(), "data_version": item.data_version}
            for item in inputs
        }
        versions = {name: ref["data_version"] for name, ref in refs.items()}
        key = fingerprint(asset, partition, "1", settings, versions)
        named = tables or {"data": ([{"fact": asset, "value": partition}], IDENTITY)}
        written = {
            name: (pa.Table.from_pylist(rows, schema=schema.schema), schema) for name, (rows, schema) in named.items()
        }
        with self.store.open(asset, partition, key) as draft:
            return draft.committed or draft.commit(
                written, code_version="1", settings=settings, inputs=refs, metadata=metadata or {}
            )


def _candidates(prompt_id: str, pair: Pair) -> list[dict]:
    return [
        {
            "candidate_id": f"{prompt_id}:{k}",
            "prompt_id": prompt_id,
            "k": k,
            "text": text,
            "token_ids": ids,
            "n_tokens": len(ids),
            "finish_reason": "stop",
            "multiplicity": 1,
            "seed": 0,
        }
        for k, (text, ids) in enumerate(zip((pair.chosen, pair.rejected), pair.ids, strict=True))
        if text is not None
    ]


def _row(prompt_id: str, pair: Pair) -> dict:
    none = pair.rejected is None
    return {
        "pair_id": hashlib.sha256(f"{prompt_id} pair".encode()).hexdigest(),
        "prompt_id": prompt_id,
        "chosen_id": f"{prompt_id}:0",
        "rejected_id": None if none else f"{prompt_id}:1",
        "chosen_mas": 0.75,
        "m3p_score": pair.mas_gap,
        "mas_gap": pair.mas_gap,
        "logp_gap": 0.125,
        "ref_chosen_logp": -1.5,
        "ref_rejected_logp": None if none else -2.5,
    }


def _write_images(folder: Path) -> None:
    (folder / "nested").mkdir(parents=True, exist_ok=True)
    wide = Image.new("RGB", (8, 4), "red")
    wide.paste("blue", (0, 0, 4, 4))
    wide.save(folder / "wide.png")
    (folder / "broken.png").write_bytes(b"no image")
    exif = Image.Exif()
    exif[0x0112] = TURNED
    wide.save(folder / "turned.jpg", exif=exif, quality=100, subsampling=0)
    Image.new("L", (4, 4), 90).save(folder / "nested" / "grey.webp", lossless=True)


def nothing(done: int, total: int) -> None:
    """Progress nobody watches."""
