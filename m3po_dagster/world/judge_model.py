"""Makes the embedded judge: a small open_clip CLIP trained on cell crops of the judge's own tiles.

`python -m m3po_dagster.world.judge_model` rebuilds the committed weights, calibrations and model card in minutes on one
core. The model learns to match a crop with captions of its object in every form an answer may use, and a plain
background with captions of nothing. It never sees a tile of the base model, the prompts, validation or test.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from m3po_dagster.torchvision_repair import repair_torchvision
from m3po_dagster.world.judge import JUDGE_FOLDER
from m3po_dagster.world.judge_card import calibrate_judge, measure_judge, write_card
from m3po_dagster.world.language import WORDS
from m3po_dagster.world.scenes import POSITIONS, THINGS, Thing
from m3po_dagster.world.tiles import CELL_SIZE, TileSet, blank, crop, load_tiles

if TYPE_CHECKING:
    import torch

# Hears the stage, the step, the number of steps and the loss.
Progress = Callable[[str, int, int, float], None]

SEED = 1
STEPS = 1200
BATCH = 128
RATE = 2e-3
NOTHING_RATE = 0.1
CONTEXT_LENGTH = 24
MODEL = {
    "embed_dim": 64,
    "vision_cfg": {
        "image_size": CELL_SIZE,
        "patch_size": 8,
        "width": 64,
        "layers": 3,
        "head_width": 32,
        "mlp_ratio": 2.0,
    },
    "text_cfg": {
        "context_length": CONTEXT_LENGTH,
        "hf_tokenizer_name": "this-folder",
        "width": 64,
        "heads": 2,
        "layers": 2,
        "mlp_ratio": 2.0,
        "pool_type": "eos",
    },
}
PREPROCESS = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear", "resize_mode": "squash"}


def build_judge(out: Path, seed: int = SEED, progress: Progress | None = None) -> dict[str, float]:
    """Trains the judge and writes its folder: open_clip's local-dir layout, calibrations, model card.

    Returns the measured figures (also in the card). The same seed gives the same weights on one machine and library
    version; `progress` hears ("judge", step, steps, loss).
    """
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = new_tokenizer()
    model = train(tokenizer, load_tiles("judge"), seed, progress)
    save(model, tokenizer, out)
    calibrate_judge(out)
    figures = measure_judge(out)
    write_card(out, figures, seed, sum(parameter.numel() for parameter in model.parameters()))
    return figures


def captions_of(thing: Thing | None, rng: np.random.Generator) -> str:
    """A caption of an object (None: of an empty cell) in one of the forms that answers use."""
    position = POSITIONS[rng.integers(len(POSITIONS))]
    if thing is None:
        return (
            "There is nothing.",
            f"There is nothing at the {position}.",
            "There is nothing in the image.",
        )[rng.integers(3)]
    form = (
        f"There is a {thing}.",
        f"There is a {thing} at the {position}.",
        f"The {thing} is at the {position}.",
        f"The {thing.colour} object is a {thing.shape}.",
        f"The {thing.shape} is {thing.colour}.",
        f"Is there a {thing}? Yes.",
        f"A {thing}.",
    )[rng.integers(7)]
    return f"Yes, {form[0].lower()}{form[1:]}" if rng.random() < 0.25 else form


def new_tokenizer():
    """A lower-casing word-level tokenizer over the world's words that ends every text with its end token."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = dict.fromkeys(["<pad>", "</s>", "<unk>", ".", ",", "?", *(word.lower() for word in WORDS)])
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", tokenizer.token_to_id("</s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        padding_side="right",
        model_max_length=CONTEXT_LENGTH,
    )


def train(tokenizer, tiles: TileSet, seed: int, progress: Progress | None = None, steps: int = STEPS):
    """An open_clip CLIP after `steps` of matching crops with a caption of each of the 24 objects and of nothing.

    The weights are those at the end of the cosine schedule; nothing is picked on validation.
    """
    import torch
    from torch.nn import functional as F

    model_rng, data_rng = np.random.SeedSequence(seed).generate_state(2)
    rng = np.random.default_rng(data_rng)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums are then taken in one order
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(model_rng))
            model = _new_model(tokenizer)
        optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.1)
        for step in range(1, steps + 1):
            pixels, kinds = draw_crops(tiles, BATCH, rng)
            texts = [captions_of(thing, rng) for thing in (*THINGS, None)]
            ids = tokenizer(texts, padding="max_length", max_length=CONTEXT_LENGTH, return_tensors="pt").input_ids
            images, captions = model.encode_image(pixels, normalize=True), model.encode_text(ids, normalize=True)
            loss = F.cross_entropy(model.logit_scale.exp() * images @ captions.T, kinds)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if progress:
                progress("judge", step, steps, loss.item())
    finally:
        torch.set_num_threads(threads)
    return model.eval()


def draw_crops(tiles: TileSet, n: int, rng: np.random.Generator) -> tuple["torch.Tensor", "torch.Tensor"]:
    """(n, 3, 32, 32) pixels as open_clip's preprocessing gives them, and (n,) indices in THINGS, 24 for nothing."""
    import torch

    cells, kinds = [], []
    for tile in (tiles.tiles[i] for i in rng.integers(len(tiles), size=n)):
        empty = rng.random() < NOTHING_RATE
        cells.append(blank(tile) if empty else crop(tile, rng, augment=True))
        kinds.append(len(THINGS) if empty else THINGS.index(Thing(tile.colour, tile.shape)))
    pixels = torch.from_numpy(np.stack(cells)).permute(0, 3, 1, 2).float().div(127.5).sub(1.0)
    return pixels, torch.tensor(kinds)


def save(model, tokenizer, out: Path) -> None:
    """Writes the folder that `open_clip.create_model_and_transforms("local-dir:...")` reads; weights in fp16."""
    from safetensors.torch import save_file

    config = {"model_cfg": _model_cfg(tokenizer), "preprocess_cfg": PREPROCESS}
    (out / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    weights = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    file = out / "open_clip_model.safetensors"
    save_file(weights, file)
    file.chmod(0o644)  # safetensors leaves it to its owner alone
    tokenizer.save_pretrained(out)


def _model_cfg(tokenizer) -> dict:
    ids = {"vocab_size": len(tokenizer), "pad_id": tokenizer.pad_token_id, "eos_id": tokenizer.eos_token_id}
    return {**MODEL, "text_cfg": {**MODEL["text_cfg"], **ids}}


def _new_model(tokenizer):
    repair_torchvision()
    import open_clip

    return open_clip.CLIP(**_model_cfg(tokenizer))


def main() -> None:
    """Rebuilds the committed judge in place and prints its figures."""
    from tqdm import tqdm

    with tqdm(total=STEPS, desc="judge") as bar:
        figures = build_judge(JUDGE_FOLDER, progress=lambda stage, step, steps, loss: bar.update())
    for name, value in figures.items():
        print(f"{name:<55} {value:8.2f}")


if __name__ == "__main__":
    main()
