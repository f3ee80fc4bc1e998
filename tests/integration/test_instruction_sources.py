"""Instruction data of several formats through the graph: many turns, packed images, benchmarks' images."""

import io
import json
import shutil
import tarfile
from copy import deepcopy
from pathlib import Path

import pytest
from PIL import Image

from m3po_dagster.current import read_heads
from m3po_dagster.method.generation import sampler
from m3po_dagster.runner import Selection

UP_TO_CANDIDATES = (
    "source_dataset",
    "base_model",
    "sampling_scorer",
    "benchmark_data",
    "filtered_instructions",
    "candidates",
)


def copied(project, small_study) -> tuple[dict, Path]:
    """The study over a copy of its instructions that a test may add to."""
    changed, folder = deepcopy(small_study), project.folder / "instructions"
    source = changed["dataset"]["sources"]["scenes"]
    shutil.copytree(Path(source["path"]).parent, folder)
    source |= {"path": str(folder / "llava_instruct.json"), "image_root": str(folder / "images")}
    return changed, folder


def sources(project, small_study) -> dict:
    """One image a source: an array with many turns, lines written by hand, a tar shard."""
    changed, folder = copied(project, small_study)
    names = sorted(path.name for path in (folder / "images").glob("scene_*.png"))[:3]
    turns = [("gpt", "Hello."), ("human", "<image>\nDescribe the image."), ("gpt", "There is a red circle.")]
    turns += [("human", "How many objects are there?"), ("gpt", "There is one object.")]
    record = {"id": 1, "image": names[0], "conversations": [{"from": who, "value": text} for who, text in turns]}
    (folder / "turns.json").write_text(json.dumps([record]))
    line = {"image": names[1], "question": "Describe the image."}
    (folder / "lines.jsonl").write_text(
        json.dumps(line) + "\n{broken\n" + json.dumps({**line, "image": "no.png"}) + "\n"
    )
    noise = io.BytesIO()
    Image.effect_noise((64, 64), 80).convert("RGB").save(noise, "PNG")
    with tarfile.open(folder / "shard.tar", "w") as tar:
        for name, content in (
            ("a/1.png", (folder / "images" / names[2]).read_bytes()),
            ("a/1.json", json.dumps({"question": "Describe the image."}).encode()),
            # An image of POPE, by the name that COCO gave it.
            ("a/COCO_val2014_000000310196.png", noise.getvalue()),
            ("a/COCO_val2014_000000310196.json", json.dumps({"question": "Describe the image."}).encode()),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    images = {"image_root": str(folder / "images")}
    changed["dataset"] = {
        "shards": 1,
        "turns": "each",
        "sources": {
            "turns": {"format": "llava_instruct", "path": str(folder / "turns.json"), **images},
            "lines": {"format": "jsonl", "path": str(folder / "lines.jsonl"), **images},
            "tar": {"format": "webdataset", "path": str(folder / "shard.tar"), "image_root": str(folder / "unpacked")},
        },
    }
    return changed


def filtered(project) -> list:
    """The current filtered_instructions of every shard."""
    with project.instance() as instance:
        heads = read_heads(instance, ["filtered_instructions"])
    return [project.store.find(*part, head.fingerprint) for part, head in heads.items()]


def test_sources_of_several_formats_are_asked_turn_by_turn(fresh, small_study, monkeypatch):
    fresh.write(sources(fresh, small_study))
    asked = []
    inner = sampler.prefill
    monkeypatch.setattr(
        sampler, "prefill", lambda loaded, prompts, counts: asked.extend(prompts) or inner(loaded, prompts, counts)
    )
    assert [outcome.error for outcome in fresh.run(Selection(assets=UP_TO_CANDIDATES)) if outcome.error] == []
    (artifact,) = filtered(fresh)
    rows = artifact.table().to_pylist()
    assert [(row["source"], row["turn"], len(row["messages"])) for row in rows] == [
        ("lines", 0, 1),
        ("tar", 0, 1),
        ("turns", 0, 1),
        ("turns", 1, 3),
    ]
    assert rows[3]["messages"][1] == {"role": "assistant", "text": "There is a red circle."}
    reasons = [row["reason"] for row in artifact.table("dropped").to_pylist()]
    assert reasons == ["malformed record", "image missing", "benchmark image (COCO id)"]
    assert {prompt.prompt_id: len(prompt.messages) for prompt in asked} == {
        row["prompt_id"]: len(row["messages"]) for row in rows
    }
    with fresh.instance() as instance:
        head = read_heads(instance, ["candidates"])["candidates", "s0"]
    answered = fresh.store.find("candidates", "s0", head.fingerprint).table()
    assert set(answered["prompt_id"].to_pylist()) == {row["prompt_id"] for row in rows}
    again = fresh.run(Selection(assets=UP_TO_CANDIDATES))
    assert not [asset for outcome in again for asset in outcome.assets if asset not in outcome.reused], (
        "unpacking makes no other dataset"
    )


@pytest.mark.slow
def test_a_benchmark_s_image_is_dropped_and_with_the_filter_off_it_blocks(copy_of_made, small_study):
    project = copy_of_made
    changed, folder = copied(project, small_study)
    # A scene of the benchmark, and a name that COCO gave an image of POPE.
    test = Path(changed["benchmarks"]["chair"]["image_root"])
    records = json.loads((folder / "llava_instruct.json").read_text())
    sound = next(record for record in records if record["id"] == "easy_00000")
    shutil.copy(next(test.glob("*.png")), folder / "images" / "copied.png")
    (folder / "images" / "coco").mkdir()
    pixels = Image.open(folder / "images" / sound["image"]).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pixels.save(folder / "images" / "coco" / "COCO_val2014_000000310196.png")
    leaks = ["copied.png", "coco/COCO_val2014_000000310196.png"]
    (folder / "llava_instruct.json").write_text(
        json.dumps([*records, *({**sound, "id": uri, "image": uri} for uri in leaks)])
    )
    changed["filters"]["contamination"] = {"images": True, "distance": 0, "templates": False}
    project.write(changed)
    selection = Selection(assets=("source_dataset", "filtered_instructions"))
    assert [outcome.error for outcome in project.run(selection) if outcome.error] == []
    drops = [drop for found in filtered(project) for drop in found.manifest.metadata["drops"] if drop["count"]]
    counted = {drop["reason"] for drop in drops if drop["filter"] == "contamination"}
    assert {"benchmark image (COCO id)", "benchmark image (same file)"} <= counted
    kept = {uri for found in filtered(project) for uri in found.table()["image_uri"].to_pylist()}
    assert not kept & set(leaks)

    changed["filters"]["contamination"] = False
    project.write(changed)
    outcomes = project.run(Selection(assets=("filtered_instructions", "candidates")))
    said = " ".join(outcome.error for outcome in outcomes if outcome.error)
    assert "check uncontaminated failed: no kept prompt shows an image of a known benchmark" in said
    assert "is image 310196 of POPE" in said and "dagster._core" not in said
    blocked = [
        found for found in filtered(project) if not found.manifest.metadata["checks"]["uncontaminated"]["passed"]
    ]
    assert sum(found.manifest.metadata["checks"]["uncontaminated"]["figures"]["prompts"] for found in blocked) == 2
