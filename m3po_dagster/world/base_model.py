"""Trains the embedded base model: a small LLaVA that sees, and hallucinates what its world made it expect.

First the CLIP tower learns to tell what is in each cell and is frozen; then projector and language model learn the
noisy lessons. All questions of a scene share one image prefix under a block mask, as if each had been asked alone.
Everything is drawn from one seed; on one thread the same seed gives the same weights.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from m3po_dagster.world.language import WORDS
from m3po_dagster.world.lessons import draw_turns
from m3po_dagster.world.scenes import POSITIONS, THINGS, Cells, draw_cells, render
from m3po_dagster.world.small_llava import PATCH_SIZE, new_llava, new_processor
from m3po_dagster.world.tiles import CELL_SIZE, TileSet, load_tiles

if TYPE_CHECKING:
    import torch

Progress = Callable[[str, int, int, float], None]
# A yes or no decides an answer; the words after it only spell it out.
VERDICT_WEIGHT = 4.0
IGNORED = -100
# Share of empty cells among those the tower learns to see with.
EMPTY_RATE = 0.3
# Spread of the patches' own position codes at the start; a cell's code has spread 1.
POSITION_STD = 0.3


@dataclass(frozen=True)
class Schedule:
    """How long and how fast both stages train; the learning rates follow a cosine to its end."""

    tower_steps: int = 1500
    tower_scenes: int = 32
    tower_rate: float = 3e-3
    llava_steps: int = 2200
    llava_scenes: int = 16
    llava_rate: float = 2e-3
    turns: int = 6
    warmup: int = 100


@dataclass(frozen=True)
class Lesson:
    """Scenes with all their turns in one row each, (scenes, tokens).

    `segments` is 0 in the shared prefix, then the turn's number, -1 in padding; `labels` are the answers' tokens
    where they stand, IGNORED elsewhere; `position_ids` start again after the prefix at every turn.
    """

    pixel_values: "torch.Tensor"
    input_ids: "torch.Tensor"
    segments: "torch.Tensor"
    position_ids: "torch.Tensor"
    labels: "torch.Tensor"


def train_base_model(seed: int, schedule: Schedule = Schedule(), progress: Progress | None = None):
    """(model, processor) trained from `seed` on the base role's tiles; `progress` hears stage, step, steps and loss."""
    processor = new_processor(WORDS)
    model = new_llava(processor.tokenizer, seed)
    tiles = load_tiles("base")
    tower_seed, lesson_seed = np.random.SeedSequence(seed).spawn(2)
    with one_thread():
        train_tower(model, processor, tiles, np.random.default_rng(tower_seed), schedule, progress)
        train_language(model, processor, tiles, np.random.default_rng(lesson_seed), schedule, progress)
    return model.eval(), processor


def train_tower(model, processor, tiles: TileSet, rng: np.random.Generator, schedule: Schedule, progress=None) -> None:
    """Teaches the CLIP tower to name, at every patch, the patch's cell and the object in it; freezes it.

    Cells are filled independently here: what the eye learns carries no prior about what goes with what. Without the
    cell as a target the patches forget where they are, and no answer learns to say where an object is.
    """
    import torch
    from torch.nn import functional

    tower = model.model.vision_tower
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.integers(2**31)))
        _group_patches_by_cell(tower)
        object_head = torch.nn.Linear(tower.config.hidden_size, len(THINGS) + 1)
        cell_head = torch.nn.Linear(tower.config.hidden_size, len(POSITIONS))
    cells_of_patches = patch_cells().repeat(schedule.tower_scenes)

    def loss_of_step():
        scenes = [_independent_cells(rng) for _ in range(schedule.tower_scenes)]
        pixels = to_pixel_values(processor, [render(cells, tiles, rng, augment=True) for cells in scenes])
        patches = tower(pixel_values=pixels).last_hidden_state[:, 1:].flatten(0, 1)
        loss_of_objects = functional.cross_entropy(object_head(patches), patch_classes(scenes).flatten())
        return loss_of_objects + functional.cross_entropy(cell_head(patches), cells_of_patches)

    parameters = [*tower.parameters(), *object_head.parameters(), *cell_head.parameters()]
    for step, loss in _optimise(parameters, schedule.tower_rate, schedule.tower_steps, schedule.warmup, loss_of_step):
        if progress:
            progress("tower", step, schedule.tower_steps, loss)
    tower.requires_grad_(False)


def train_language(model, processor, tiles: TileSet, rng: np.random.Generator, schedule: Schedule, progress=None):
    """Teaches projector and language model the noisy lessons about biased scenes, on top of the frozen tower."""
    verdicts = processor.tokenizer.convert_tokens_to_ids(["▁Yes", "▁No"])

    def loss_of_step():
        scenes = [draw_cells(rng, biased=True) for _ in range(schedule.llava_scenes)]
        images = [render(cells, tiles, rng, augment=True) for cells in scenes]
        turns = [
            [(question.text, answer) for question, answer in draw_turns(cells, rng, schedule.turns)] for cells in scenes
        ]
        return lesson_loss(model, new_lesson(processor, images, turns), verdicts)

    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for step, loss in _optimise(parameters, schedule.llava_rate, schedule.llava_steps, schedule.warmup, loss_of_step):
        if progress:
            progress("language", step, schedule.llava_steps, loss)


def new_lesson(processor, images: Sequence[np.ndarray], turns: Sequence[Sequence[tuple[str, str]]]) -> Lesson:
    """Packs (question, answer) turns about each (64, 64, 3) image behind one prefix, worded as by the chat template."""
    import torch

    tokenizer = processor.tokenizer
    prefix = tokenizer(f"{tokenizer.bos_token} USER:").input_ids
    image_token = tokenizer.convert_tokens_to_ids(processor.image_token)
    prefix = [*prefix, *[image_token] * (images[0].shape[0] // PATCH_SIZE * (images[0].shape[1] // PATCH_SIZE))]
    flat = [turn for row in turns for turn in row]
    questions = iter(tokenizer([f" {question} ASSISTANT:" for question, _ in flat]).input_ids)
    answers = iter(tokenizer([f" {answer}{tokenizer.eos_token}" for _, answer in flat]).input_ids)
    rows = []
    for row in turns:
        ids, segments, positions, labels = [*prefix], [0] * len(prefix), [*range(len(prefix))], [IGNORED] * len(prefix)
        for number in range(1, len(row) + 1):
            question, answer = next(questions), next(answers)
            length = len(question) + len(answer)
            ids += question + answer
            segments += [number] * length
            positions += range(len(prefix), len(prefix) + length)
            labels += [IGNORED] * len(question) + answer
        rows.append((ids, segments, positions, labels))
    longest = max(len(ids) for ids, *_ in rows)
    padding = (tokenizer.pad_token_id, -1, 0, IGNORED)
    columns = [
        torch.tensor([column + [pad] * (longest - len(column)) for column in group])
        for group, pad in zip(zip(*rows, strict=True), padding, strict=True)
    ]
    return Lesson(to_pixel_values(processor, images), *columns)


def lesson_loss(model, lesson: Lesson, verdicts: Sequence[int]) -> "torch.Tensor":
    """Mean cross-entropy of the answers' tokens; those among `verdicts` (Yes, No) weigh VERDICT_WEIGHT."""
    import torch
    from torch.nn import functional

    logits, targets = answer_logits(model, lesson)
    is_verdict = torch.isin(targets, torch.tensor(verdicts))
    weights = torch.where(is_verdict, VERDICT_WEIGHT, 1.0)
    return (functional.cross_entropy(logits, targets, reduction="none") * weights).sum() / weights.sum()


def answer_logits(model, lesson: Lesson) -> tuple["torch.Tensor", "torch.Tensor"]:
    """Logits (answer tokens, vocabulary) and ids (answer tokens,) of every answer's tokens, row by row.

    A token sees the prefix and the earlier tokens of its own turn: the numbers are those of one turn a row.
    """
    import torch

    embeddings = model.get_input_embeddings()(lesson.input_ids)
    with torch.no_grad():
        tower = model.model.vision_tower(pixel_values=lesson.pixel_values)
    features = model.model.multi_modal_projector(tower.last_hidden_state[:, 1:])
    is_image = lesson.input_ids == model.config.image_token_id
    embeddings = embeddings.masked_scatter(is_image[:, :, None], features)
    segments = lesson.segments
    tokens = torch.arange(segments.shape[1])
    visible = (segments[:, None, :] == 0) | (segments[:, None, :] == segments[:, :, None])
    visible &= tokens[None, None, :] <= tokens[None, :, None]
    mask = torch.zeros(visible.shape).masked_fill(~visible, -torch.inf)[:, None]
    hidden = model.model.language_model(
        inputs_embeds=embeddings, attention_mask=mask, position_ids=lesson.position_ids, use_cache=False
    ).last_hidden_state
    answered = lesson.labels != IGNORED
    before = torch.zeros_like(answered)
    before[:, :-1] = answered[:, 1:]
    return model.lm_head(hidden[before]), lesson.labels[answered]


def to_pixel_values(processor, images: Sequence[np.ndarray]) -> "torch.Tensor":
    """(images, 3, 64, 64) float32: what the processor makes of uint8 images that need no resizing, much faster."""
    import torch

    settings = processor.image_processor
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() * settings.rescale_factor
    mean, deviation = (torch.tensor(values)[:, None, None] for values in (settings.image_mean, settings.image_std))
    return (pixels - mean) / deviation


def patch_cells() -> "torch.Tensor":
    """(64,): which of the four cells each image token belongs to."""
    import torch

    side = CELL_SIZE // PATCH_SIZE
    grid = torch.arange(len(POSITIONS)).view(2, 2)
    return grid.repeat_interleave(side, dim=0).repeat_interleave(side, dim=1).flatten()


def patch_classes(scenes: Sequence[Cells]) -> "torch.Tensor":
    """(scenes, 64): at every patch the index in THINGS of its cell's object, len(THINGS) for an empty cell."""
    import torch

    classes = torch.tensor([[len(THINGS) if t is None else THINGS.index(t) for t in cells] for cells in scenes])
    return classes[:, patch_cells()]


@contextmanager
def one_thread() -> Iterator[None]:
    """One torch thread: sums are then taken in one order, so that the same seed gives the same bits."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _group_patches_by_cell(tower) -> None:
    """Starts the tower with attention inside each cell: patches of a cell share a code, and like attends to like.

    From CLIP's own start, whose position codes are faint, the patches take far longer to find their cell-mates.
    """
    import torch

    codes = tower.embeddings.position_embedding.weight
    cell_of_patch = patch_cells()
    with torch.no_grad():
        torch.nn.init.normal_(codes, std=POSITION_STD)
        codes[1:] += torch.randn(int(cell_of_patch.max()) + 1, codes.shape[1])[cell_of_patch]
        for layer in tower.encoder.layers:
            layer.self_attn.k_proj.weight.copy_(layer.self_attn.q_proj.weight)


def _optimise(parameters: list, rate: float, steps: int, warmup: int, loss_of_step: Callable[[], "torch.Tensor"]):
    """Yields (step, loss) while AdamW follows a linear warm-up and a cosine to zero."""
    import torch

    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
    warmup = min(warmup, steps // 10)
    for step in range(steps):
        share = (
            (step + 1) / warmup if step < warmup else 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))
        )
        for group in optimizer.param_groups:
            group["lr"] = rate * share
        loss = loss_of_step()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        yield step + 1, loss.item()


def _independent_cells(rng: np.random.Generator) -> Cells:
    kinds = rng.integers(len(THINGS), size=4)
    empty = rng.random(4) < EMPTY_RATE
    return tuple(None if hole else THINGS[kind] for kind, hole in zip(kinds, empty, strict=True))
