"""A random-weight LLaVA of the real classes in a folder, and prompts with real images, for tests of every part."""

from pathlib import Path

from m3po_dagster.method.prompt import Message, Prompt
from m3po_dagster.world.small_llava import new_llava, new_processor

WORDS = (
    "a is are the there in of what how many this image shape color red green blue yellow black white gray teal brown "
    "circle square triangle on left right top bottom corner and no not yes I see two three one"
)
QUESTIONS = (
    "What color is the circle?",
    "Is there a red square in the image?",
    "What is in this image?",
    "How many are there?",
    "Is there a green triangle on the left of the blue circle and a red square on the right, yes or no?",
)


def tiny_llava(folder: Path, seed: int = 0) -> Path:
    """Saves a model and its processor, weights drawn from `seed`, in `folder`; returns `folder`."""
    words = dict.fromkeys(_words(" ".join([WORDS, *QUESTIONS])))
    processor = new_processor(words)
    new_llava(processor.tokenizer, seed=seed).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def tiny_prompts(folder: Path, n: int) -> list[Prompt]:
    """`n` prompts on `n` different images of uneven sizes (written to `folder` as PNG), question lengths varying."""
    import numpy as np
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    prompts = []
    for i in range(n):
        rng = np.random.default_rng(i)
        pixels = np.full((48 + 8 * (i % 5), 64, 3), rng.integers(0, 256, 3), dtype=np.uint8)
        top, left = rng.integers(0, 32, 2)
        pixels[top : top + 16, left : left + 24] = rng.integers(0, 256, 3)
        path = folder / f"image-{i}.png"
        Image.fromarray(pixels).save(path)
        question = QUESTIONS[i % len(QUESTIONS)]
        prompts.append(Prompt(prompt_id=f"prompt-{i}", image_path=path, messages=(Message("user", question),)))
    return prompts


def _words(text: str) -> list[str]:
    return "".join(c if c.isalnum() else " " for c in text).split()
