"""LLaMA-Factory's layout, loaded and aligned by that tool's documented rules."""

import json

import pytest
from export_world import ExportWorld, Pair, asked
from PIL import Image
from tool_rules import llama_factory_example, llama_factory_files


@pytest.mark.parametrize("mode", ["copy", "reference"])
def test_every_row_is_taken_with_its_image_upright(world, exported, load, mode, tmp_path):
    pairs = world if mode == "copy" else ExportWorld(tmp_path / "upright", {"s0": world.pairs["s0"]})
    out, tally = exported("llama-factory", mode, of=pairs)
    kind, files, entry = llama_factory_files(out, "made_m3po")
    rows = [llama_factory_example(row, entry, out) for row in load(kind, data_files=files)]
    assert len(rows) == tally.written == sum(len(some) for some in pairs.pairs.values())
    assert rows[1] == {
        "system": "Be brief.",
        "prompt": ["<image>Is there a circle?", "Yes.", "What color?"],
        "answers": ["red", "blue"],
        "images": rows[0]["images"],
    }
    sizes = []
    for row in rows:
        with Image.open(row["images"][0]) as image:
            sizes.append((image.size, image.getexif().get(0x0112)))
    assert sizes == [((8, 4), None), ((8, 4), None), ((4, 8), None), ((4, 4), None)][: len(rows)]


def test_load_dataset_of_the_folder_finds_the_rows_alone_with_all_that_is_known(world, exported, load):
    out, _ = exported("llama-factory")
    rows = load(str(out))
    stored = [row for shard in world.shards for row in shard.pairs.table().to_pylist()]
    for row, pair in zip(rows, stored, strict=True):
        facts = json.loads(row["facts"])
        assert {name: facts[name] for name in pair} == pair and row["pair_id"] == pair["pair_id"]
        assert (facts["source"], len(facts["image_sha256"])) == ("pictures", 64)
    assert rows[2]["conversations"][0]["value"] == f"<image>{world.pairs['s2'][0].turns[0][1]}"


def test_an_image_of_several_pairs_is_copied_once(world, exported):
    out, _ = exported("llama-factory")
    copies = [path for path in (out / "images").rglob("*") if path.is_file()]
    assert len(copies) == 3 and {path.suffix for path in copies} == {".png", ".webp"}
    (wide,) = (path for path in copies if path.read_bytes() == (world.images / "wide.png").read_bytes())
    assert wide.parent.name == wide.stem[:2]


@pytest.mark.parametrize("layout", ["llama-factory", "ms-swift"])
def test_pairs_that_the_tool_would_misread_are_dropped_with_the_reason(tmp_path, exported, layout):
    pairs = [
        asked("What is <image> in HTML?"),
        asked("Well?", chosen="a <video> tag"),
        Pair([("user", "One?"), ("user", "Two?")]),
        asked("What is in this image?"),
    ]
    out, tally = exported(layout, of=ExportWorld(tmp_path / "odd", {"s0": pairs}))
    reasons = {
        "its text holds <image>, which the tool would take for a placeholder": 1,
        "its text holds <video>, which the tool would take for a placeholder": 1,
    }
    if layout == "llama-factory":
        reasons["its speakers don't take turns, and LLaMA-Factory skips such a conversation"] = 1
    assert (tally.written, dict(tally.dropped)) == (4 - len(reasons), reasons)
    card = (out / "README.md").read_text(encoding="utf-8")
    for reason in reasons:
        assert f"1 dropped: {reason} ({tally.examples[reason][0][:16]})" in card
    assert len((out / "data" / "s0.jsonl").read_text(encoding="utf-8").splitlines()) == tally.written


def test_a_turned_image_that_is_only_referenced_is_dropped(world, exported):
    _, tally = exported("llama-factory", "reference")
    reason = "its image file is turned by EXIF, which the tool doesn't undo: include images instead"
    assert (tally.written, dict(tally.dropped)) == (3, {reason: 1})
