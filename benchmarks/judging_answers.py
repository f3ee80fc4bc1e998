"""What the judging benchmark has graded: the embedded study's own answers, and long ones about larger images."""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from adaptive import prompts_of
from judging_server import Graded
from PIL import Image, ImageFilter

from m3po_dagster.method.alignment.estimate import text_tokens
from m3po_dagster.method.alignment.judge_request import ASPECTS
from m3po_dagster.method.alignment.scorer import Batch
from m3po_dagster.method.generation.candidates import Candidate, distinct
from m3po_dagster.method.generation.model import load_model
from m3po_dagster.method.generation.sampler import TransformersEngine
from m3po_dagster.method.generation.samples import prompt_seed
from m3po_dagster.method.prompt import Message, Prompt
from m3po_dagster.study import Study
from m3po_dagster.world.write import write_world

WIDTH, HEIGHT = 640, 480
ANSWER_TOKENS = 100
GRAIN = 0.9
QUESTION = "Describe the image in detail, with the objects, their colours and where they are."

_THINGS = ("bus", "dog", "bicycle", "bench", "child", "woman", "kite", "boat", "lamp", "chair", "horse", "umbrella")
_COLOURS = ("red", "blue", "green", "yellow", "black", "white", "brown", "grey", "orange", "purple")
_PLACES = (
    "on the left side of the image",
    "in the background",
    "near the centre",
    "close to the camera",
    "beside the road",
    "in the upper right corner",
)
_FORMS = (
    "There is a {} {} {}.",
    "A {} {} can be seen {}, which gives the scene a lively atmosphere.",
    "Additionally, a {} {} is positioned {}.",
)


@dataclass(frozen=True)
class World:
    """The embedded study's prompts with their distinct answers of N samples, and its own judge's grades."""

    prompts: Sequence[Prompt]
    candidates: Sequence[Sequence[Candidate]]
    graded: Sequence[Graded]

    @property
    def batch(self) -> Batch:
        """The answers as a scorer takes them."""
        return [
            (prompt, [one.text for one in some]) for prompt, some in zip(self.prompts, self.candidates, strict=True)
        ]


def embedded(study: Study, folder: Path, prompts: int) -> World:
    """Samples as the study does; the grades 1 to 5 are the aspects that its scene judge gives, rounded."""
    write_world(folder, prompts, 10)
    instructions = folder / "instructions"
    paths = {"path": instructions / "llava_instruct.json", "image_root": instructions / "images"}
    source = study.dataset.sources["easy_scenes"].model_copy(update=paths)
    dataset = study.dataset.model_copy(update={"sources": {"easy_scenes": source}})
    study = study.model_copy(update={"dataset": dataset})
    asked = prompts_of(study)
    settings = study.generation
    seeds = [prompt_seed(settings.seed, prompt.prompt_id, settings.n) for prompt in asked]
    drawn = dict(TransformersEngine(load_model(study.model)).sample(asked, settings, seeds))
    candidates = [distinct(drawn[i]) for i in range(len(asked))]
    scene_judge = next(one for one in study.judge.scorers if one.name == "scene_judge").build()
    batch = [(prompt, [one.text for one in some]) for prompt, some in zip(asked, candidates, strict=True)]
    graded = [
        Graded(sha256(prompt.image_path), prompt.question, answer, grades_of(score.sub_scores))
        for (prompt, answers), scores in zip(batch, scene_judge.score(batch), strict=True)
        for answer, score in zip(answers, scores, strict=True)
    ]
    return World(asked, candidates, graded)


def grades_of(aspects: dict[str, float]) -> list[int]:
    """Aspects in [0, 1] as grades 1 to 5; an answer that the scene judge does not understand has none and gets 1."""
    return [1 + round(4 * aspects.get(aspect, 0.0)) for aspect in ASPECTS]


def sha256(path: Path) -> str:
    """Hash of a file's content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def photographs(folder: Path, count: int) -> list[Prompt]:
    """Prompts with an image of 640 x 480 each, JPEG, with as much grain as makes it as large as a photograph is."""
    folder.mkdir(parents=True)
    rng, found = np.random.default_rng(0), []
    grain = Image.fromarray(rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)).filter(
        ImageFilter.GaussianBlur(1)
    )
    for number in range(count):
        rough = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((WIDTH, HEIGHT))
        path = folder / f"{number}.jpg"
        Image.blend(rough, grain, GRAIN).save(path, quality=90)
        found.append(Prompt(f"photograph {number}", path, (Message("user", QUESTION),)))
    return found


def long_answers(prompts: Sequence[Prompt], counts: Sequence[int]) -> Batch:
    """So many different answers of about 100 tokens to each prompt, worded as LLaVA words a description."""
    rng = random.Random(0)
    return [(prompt, [_long_answer(rng) for _ in range(n)]) for prompt, n in zip(prompts, counts, strict=True)]


def _long_answer(rng: random.Random) -> str:
    sentences: list[str] = []
    while text_tokens(" ".join(sentences)) < ANSWER_TOKENS - 10:
        sentences.append(rng.choice(_FORMS).format(rng.choice(_COLOURS), rng.choice(_THINGS), rng.choice(_PLACES)))
    return " ".join(sentences)


def any_grades(batch: Batch) -> list[Graded]:
    """Grades that chance decides."""
    rng = random.Random(1)
    return [
        Graded(image, prompt.question, answer, [rng.randint(1, 5) for _ in ASPECTS])
        for prompt, answers in batch
        for image in [sha256(prompt.image_path)]
        for answer in answers
    ]
