"""RLAIF-V's layout: its trainer's demands, Hugging Face's reader and the project's own."""

import hashlib
import json
from io import BytesIO

from export_world import ExportWorld, asked
from PIL import Image

from m3po_dagster.datasets import rlaif_v

COLUMNS = ["ds_name", "image", "question", "chosen", "rejected", "origin_dataset", "origin_split", "idx", "image_path"]


def test_rows_have_its_columns_and_a_dialogue_has_no_place(world, exported, load):
    import datasets

    out, tally = exported("rlaif-v")
    assert (tally.written, dict(tally.dropped)) == (
        3,
        {"its prompt has several turns, and RLAIF-V's layout has one question": 1},
    )
    # RLAIF-V takes the Parquet files of the folder itself, but for those with log-probs of its own.
    files = sorted(path.name for path in out.glob("*.parquet"))
    assert files == ["s0.parquet", "s2.parquet"] and not any("logp" in name for name in files)
    rows = load(str(out))
    assert rows.column_names == COLUMNS and [row["image"].size for row in rows] == [(8, 4), (4, 8), (4, 4)]
    # Its trainer reads the bytes, and origin_split as JSON.
    for row, pair in zip(rows.cast_column("image", datasets.Image(decode=False)), _stored(world), strict=True):
        assert Image.open(BytesIO(row["image"]["bytes"])).getexif().get(0x0112) is None
        facts = json.loads(row["origin_split"])
        assert {name: facts[name] for name in pair} == pair and row["idx"] == pair["pair_id"]
    assert rows[0]["question"] == "What is in this image?"
    assert (rows[2]["image_path"], rows[2]["origin_dataset"]) == ("pictures/nested/grey.webp", "pictures")


def test_the_project_reads_its_own_export(world, exported):
    out, _ = exported("rlaif-v")
    records = list(rlaif_v.read(sorted(out.glob("*.parquet")), 10**7))
    asked_and_chosen = [(pair.turns[-1][1], pair.chosen) for pair in _single(world)]
    assert [tuple(text for _, text in record.conversation) for record in records] == asked_and_chosen
    assert [record.source_id for record in records] == [f"m3po/{pair['pair_id']}" for pair in _stored(world)]
    first = (world.images / "wide.png").read_bytes()
    assert hashlib.sha256(records[0].image_bytes).hexdigest() == hashlib.sha256(first).hexdigest()


def test_the_image_tag_in_a_text_would_split_it(tmp_path, exported):
    pairs = {"s0": [asked("What is <image>?"), asked("What is <video>?")]}
    _, tally = exported("rlaif-v", of=ExportWorld(tmp_path / "tags", pairs))
    assert tally.written == 1 and tally.dropped.total() == 1


def _single(world):
    return [pair for some in world.pairs.values() for pair in some if len(pair.turns) == 1]


def _stored(world):
    rows = [row for shard in world.shards for row in shard.pairs.table().to_pylist()]
    flat = [pair for some in world.pairs.values() for pair in some]
    return [row for row, pair in zip(rows, flat, strict=True) if len(pair.turns) == 1]
