"""Writes the embedded world to a folder, in the layouts that real downloads have.

    <folder>/instructions/llava_instruct.json          LLaVA-Instruct's layout, a handful of defects included
    <folder>/instructions/images/*.png
    <folder>/benchmarks/{validation,test}/images/*.png
    <folder>/benchmarks/{validation,test}/pope/coco_pope_{random,popular,adversarial}.json
    <folder>/benchmarks/{validation,test}/mme/{existence,count,position,color}/*.{png,txt}
    <folder>/benchmarks/{validation,test}/chair.jsonl
    <folder>/benchmarks/{validation,test}/vizwiz.json
    <folder>/benchmarks/{validation,test}/preference.jsonl
    <folder>/benchmarks/{validation,test}/ift.jsonl
    <folder>/known_pairs.jsonl, known_pairs/*.png      answers whose order a judge must get right
    <folder>/manifest.json                             what it was made from; written last

The same parameters give the same bytes.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from m3po_dagster.world.ift_set import write_ift
from m3po_dagster.world.known_pairs import write_known_pairs
from m3po_dagster.world.language import Kind, Question, true_answer
from m3po_dagster.world.lessons import draw_question
from m3po_dagster.world.negatives import SAMPLINGS, absent_thing
from m3po_dagster.world.preference_set import FILE as PREFERENCE_FILE
from m3po_dagster.world.preference_set import preference_rows
from m3po_dagster.world.scenes import Scene, compose, things_in
from m3po_dagster.world.tiles import load_tiles
from m3po_dagster.world.vizwiz import write_vizwiz

Split = Literal["validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
DESCRIBE = Question("describe")
# MME's category -> the kind of question it asks here. Every fourth scene serves one category.
MME_CATEGORIES: dict[str, Kind] = {
    "existence": "exists",
    "count": "is_count",
    "position": "is_at",
    "color": "is_colour",
}
# The second prompt of five images in a row: 30 % of all prompts ask "Is there ...?", 10 % each what else they name.
SECOND_PROMPTS: tuple[tuple[Kind, ...], ...] = (
    ("exists",),
    ("count", "what_at"),
    ("exists",),
    ("is_shape", "what_shape"),
    ("exists",),
)
IMAGE_TOKEN_LAST_RATE = 0.25


@dataclass(frozen=True)
class Instruction:
    """One record of the instruction data: a scene's number, a question about it and the true answer."""

    scene: int
    question: Question
    reference: str


def write_world(
    folder: Path,
    prompts: int = 480,
    scenes_per_split: int = 400,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> dict:
    """Writes the world, unless the folder already holds it whole, and returns its manifest.

    Everything goes to a sibling folder first, which then takes the place: a half-written world never looks whole.
    Raises ValueError for fewer than 10 prompts or scenes and FileExistsError when the folder holds something else.
    """
    if prompts < 10 or scenes_per_split < 10:
        raise ValueError(f"prompts ({prompts}) and scenes_per_split ({scenes_per_split}) must be at least 10")
    folder = Path(folder).absolute()
    made_from = {
        "prompts": prompts,
        "scenes_per_split": scenes_per_split,
        "seed": seed,
        "code_version": code_version(),
    }
    if (manifest := whole_world(folder)) and manifest["made_from"] == made_from:
        return manifest
    if folder.exists() and any(folder.iterdir()) and not (folder / "manifest.json").is_file():
        raise FileExistsError(
            f"{folder} holds files that are not an embedded world; choose another folder or move them"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        root = np.random.SeedSequence(seed)
        seeds = root.spawn(2 + len(SPLITS))
        # Spawned after the others: what was written before this set was thought of keeps its bytes.
        vizwiz_seeds = dict(zip(SPLITS, root.spawn(len(SPLITS)), strict=True))
        counts = {"instructions": _write_instructions(partial / "instructions", prompts, seeds[0])}
        for split, split_seed in zip(SPLITS, seeds[1:-1], strict=True):
            if progress:
                progress(split)
            folder_of_split = partial / "benchmarks" / split
            counts[split] = _write_benchmarks(folder_of_split, split, scenes_per_split, split_seed, vizwiz_seeds[split])
        counts["known_pairs"] = write_known_pairs(partial, seeds[-1])
        manifest = {"made_from": made_from, "counts": counts, "files": _census(partial)}
        (partial / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
        _take_place(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return manifest


def whole_world(folder: Path) -> dict | None:
    """The manifest of a world that is still whole: as many files, of as many bytes, as when it was written."""
    path = Path(folder) / "manifest.json"
    try:
        manifest = json.loads(path.read_text())
        return manifest if manifest["files"] == _census(Path(folder)) else None
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError, KeyError, TypeError):
        return None


def draw_instructions(prompts: int, seed: np.random.SeedSequence) -> tuple[list[Scene], list[Instruction]]:
    """Unbiased scenes of the prompts' tiles, and per scene a request to describe it and one other question."""
    rng = np.random.default_rng(seed)
    tiles = load_tiles("prompts")
    scenes = [compose(tiles, rng, biased=False) for _ in range((prompts + 1) // 2)]
    instructions = []
    for number, scene in enumerate(scenes):
        kinds = SECOND_PROMPTS[number % len(SECOND_PROMPTS)]
        kind = kinds[number // len(SECOND_PROMPTS) % len(kinds)]
        for question in (DESCRIBE, draw_question(kind, scene.cells, rng)):
            instructions.append(Instruction(number, question, true_answer(scene.cells, question)))
    return scenes, instructions[:prompts]


def draw_scenes(split: Split, number: int, seed: np.random.SeedSequence) -> list[Scene]:
    """Unbiased scenes of the split's own tiles."""
    rng = np.random.default_rng(seed)
    tiles = load_tiles(split)
    return [compose(tiles, rng, biased=False) for _ in range(number)]


@lru_cache(maxsize=1)
def code_version() -> str:
    """Hash of the modules that decide what a written world holds."""
    digest = hashlib.sha256()
    modules = (
        "tiles", "scenes", "negatives", "language", "lessons", "judge_card", "known_pairs", "ift_set", "preference_set",
        "vizwiz", "write",
    )  # fmt: skip
    for module in modules:
        digest.update((Path(__file__).parent / f"{module}.py").read_bytes())
    return digest.hexdigest()[:16]


def _write_instructions(folder: Path, prompts: int, seed: np.random.SeedSequence) -> dict[str, int]:
    scene_seed, layout_seed = seed.spawn(2)
    scenes, instructions = draw_instructions(prompts, scene_seed)
    rng = np.random.default_rng(layout_seed)
    names = [f"scene_{number:04d}.png" for number in range(len(scenes))]
    _write_images(folder / "images", names, scenes)
    records = []
    for number, instruction in enumerate(instructions):
        token_last = rng.random() < IMAGE_TOKEN_LAST_RATE
        text = instruction.question.text
        record = _record(f"easy_{number:05d}", f"{text}\n<image>" if token_last else f"<image>\n{text}", instruction)
        records.append({"id": record["id"], "image": names[instruction.scene], **record})
    defects = _defects(folder / "images", records)
    for place, defect in zip(rng.choice(len(records), len(defects), replace=False), defects, strict=True):
        records.insert(int(place), defect)
    (folder / "llava_instruct.json").write_text(json.dumps(records, indent=1) + "\n")
    return {"scenes": len(scenes), "usable_prompts": len(instructions), "defective_records": len(defects)}


def _record(name: str, request: str, instruction: Instruction) -> dict:
    turns = [{"from": "human", "value": request}, {"from": "gpt", "value": instruction.reference}]
    return {"id": name, "conversations": turns}


def _defects(images: Path, records: list[dict]) -> list[dict]:
    """What real instruction data also hold: no image, said twice, image lost, image cut off, nothing asked."""
    sound = records[0]
    (images / "cut_off.png").write_bytes((images / sound["image"]).read_bytes()[:200])
    text_only = [
        {"from": "human", "value": "Name a shape without corners."},
        {"from": "gpt", "value": "A circle has no corners."},
    ]
    nothing_asked = [{"from": "human", "value": "<image>\n"}, sound["conversations"][1]]
    return [
        {"id": "easy_text_only", "conversations": text_only},
        dict(records[-1]),
        {**sound, "id": "easy_image_lost", "image": "lost.png"},
        {**sound, "id": "easy_image_cut_off", "image": "cut_off.png"},
        {**sound, "id": "easy_nothing_asked", "conversations": nothing_asked},
    ]


def _write_benchmarks(
    folder: Path, split: Split, number: int, seed: np.random.SeedSequence, vizwiz_seed: np.random.SeedSequence
) -> dict[str, int]:
    scene_seed, question_seed, ift_seed = seed.spawn(3)
    scenes = draw_scenes(split, number, scene_seed)
    rng = np.random.default_rng(question_seed)
    names = [f"{split}_{number:04d}.png" for number in range(len(scenes))]
    _write_images(folder / "images", names, scenes)
    pope = _write_pope(folder / "pope", scenes, names, rng)
    mme = _write_mme(folder / "mme", scenes, names, rng)
    rows = [
        {
            "question_id": number,
            "image": name,
            "text": DESCRIBE.text,
            "objects": [str(thing) for thing in things_in(scene.cells)],
        }
        for number, (scene, name) in enumerate(zip(scenes, names, strict=True), start=1)
    ]
    _write_lines(folder / "chair.jsonl", rows)
    open_instructions = preference_rows(scenes, names)
    _write_lines(folder / PREFERENCE_FILE, open_instructions)
    return {
        "scenes": len(scenes),
        "pope_questions_a_sampling": pope,
        "mme_questions": mme,
        "chair_images": len(rows),
        "vizwiz_questions": write_vizwiz(folder / "vizwiz.json", scenes, names, vizwiz_seed),
        "preference_questions": len(open_instructions),
        "ift_questions": write_ift(folder, scenes, names, ift_seed),
    }


def _write_pope(folder: Path, scenes: list[Scene], names: list[str], rng: np.random.Generator) -> int:
    """One present and one absent object a scene; the present one is the same in all three files, as in POPE."""
    present = [draw_question("exists", scene.cells, rng, truth=True).thing for scene in scenes]
    for sampling in SAMPLINGS:
        rows = []
        for scene, name, there in zip(scenes, names, present, strict=True):
            for thing, label in ((there, "yes"), (absent_thing(scene.cells, sampling, rng), "no")):
                text = Question("exists", thing=thing, in_image=True).text
                rows.append({"question_id": len(rows) + 1, "image": name, "text": text, "label": label})
        _write_lines(folder / f"coco_pope_{sampling}.json", rows)
    return 2 * len(scenes)


def _write_mme(folder: Path, scenes: list[Scene], names: list[str], rng: np.random.Generator) -> int:
    """Two questions an image, one Yes and one No, in the text file beside it."""
    questions = 0
    for number, (category, kind) in enumerate(MME_CATEGORIES.items()):
        chosen = range(number, len(scenes), len(MME_CATEGORIES))
        _write_images(folder / category, [names[i] for i in chosen], [scenes[i] for i in chosen])
        for i in chosen:
            lines = []
            for truth, label in ((True, "Yes"), (False, "No")):
                question = draw_question(kind, scenes[i].cells, rng, truth, short=True)
                question = Question(**{**vars(question), "in_image": kind == "exists"})
                lines.append(f"{question.text}\t{label}\n")
            (folder / category / names[i]).with_suffix(".txt").write_text("".join(lines))
            questions += len(lines)
    return questions


def _write_images(folder: Path, names: list[str], scenes: list[Scene]) -> None:
    from PIL import Image

    folder.mkdir(parents=True)
    for name, scene in zip(names, scenes, strict=True):
        Image.fromarray(scene.pixels).save(folder / name, format="PNG")


def _write_lines(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _census(folder: Path) -> dict[str, int]:
    sizes = [
        (Path(place) / name).stat().st_size
        for place, _, names in os.walk(folder)
        for name in names
        if name != "manifest.json"
    ]
    return {"number": len(sizes), "bytes": sum(sizes)}


def _take_place(partial: Path, folder: Path) -> None:
    """Renames the finished sibling to `folder`; what stood there goes aside first and is deleted last."""
    aside = partial.with_suffix(".old")
    if folder.exists():
        folder.rename(aside)
    partial.rename(folder)
    shutil.rmtree(aside, ignore_errors=True)
