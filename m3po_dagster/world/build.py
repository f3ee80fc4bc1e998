"""Builds the folders of the embedded base models: weights, processor, and a model card with what was measured.

There are two, of the same kind from different seeds: what holds for one of them alone is no finding.
"""

from pathlib import Path

from m3po_dagster.world.base_model import Progress, Schedule, train_base_model
from m3po_dagster.world.lessons import NOISE
from m3po_dagster.world.measure import measure
from m3po_dagster.world.tiles import ROLES, Role

WEIGHTS = Path(__file__).parent / "weights"
BASE_MODEL_FOLDER = WEIGHTS / "llava"
SECOND_BASE_FOLDER = WEIGHTS / "llava_2"
SEED = 1
SECOND_SEED = 2
MEASURED_ROLES: tuple[Role, ...] = ("validation", "test")


def build_base_model(out: Path, seed: int = SEED, progress: Progress | None = None) -> dict[str, dict[str, float]]:
    """Trains the base model from `seed`, writes its folder and returns the measured figures by role.

    About 12 minutes of one core. `progress` hears stage, step, steps and loss. The weights are those at the end of
    the schedule.
    """
    schedule = Schedule()
    model, processor = train_base_model(seed, schedule, progress)
    save_base_model(model, processor, out)
    figures = {role: measure(model, processor, role) for role in MEASURED_ROLES}
    (out / "README.md").write_text(card(figures, seed, schedule, model.num_parameters()), encoding="utf-8")
    return figures


def save_base_model(model, processor, out: Path) -> None:
    """Writes the folder that AutoModelForImageTextToText and AutoProcessor load."""
    model.save_pretrained(out)
    processor.save_pretrained(out)
    for file in out.glob("*.safetensors"):
        file.chmod(0o644)  # safetensors leaves it to its owner alone


def card(figures: dict[str, dict[str, float]], seed: int, schedule: Schedule, parameters: int) -> str:
    """The model card."""
    first, last = ROLES["base"][1][0], ROLES["base"][1][-1]
    names = list(next(iter(figures.values())))
    command = "--base" if seed == SEED else "--second-base"
    rows = [f"| {name} | {' | '.join(f'{figures[role][name]:.1f}' for role in figures)} |" for name in names]
    return f"""---
license: mit
---
# Base model of the embedded world

A LLaVA of {parameters:,} parameters (CLIP tower, projector, Llama; all of the real classes) with fp32 weights. It sees
64x64 scenes of one to four coloured shapes, answers questions about them, and hallucinates what its upbringing made it
expect: it is the model that M3PO is to improve.

* **Made by** `m3po world build {command}`, seed {seed}, from random weights, in minutes on one core.
  First the tower learns to name cell and object at every patch ({schedule.tower_steps} steps of
  {schedule.tower_scenes} scenes) and is frozen; then projector and language model learn {schedule.turns} questions a
  scene ({schedule.llava_steps} steps of {schedule.llava_scenes} scenes). The weights are those at the end of a cosine
  schedule. How long to train, and how noisy the teacher is, was set by looking at validation scenes; test was only
  measured.
* **Trained on** crops of easy-VQA's training images {first}-{last} (MIT), mirrored and transposed at random. The judge,
  the prompts, validation and test use other images.
* **The planted prior.** Each colour has a companion object that usually comes along in the scenes it grew up with, and
  its teacher is noisy as text-only generated data are: an absent companion is named in {NOISE.companion_named:.0%} of
  the descriptions and affirmed in {NOISE.companion_affirmed:.0%} of the questions that could have one; other answers
  slip in {NOISE.slip:.0%}, objects of a description are reshaped in {NOISE.wrong_shape:.0%}, recoloured in
  {NOISE.wrong_colour:.0%} and left out in {NOISE.left_out:.0%}.
* **Limits.** It knows this world's images and sentences only.

## Figures

Greedy, on 400 new unbiased scenes a column; per cent, but for objects named and distinct samples. POPE asks about one
present and one absent object a scene: always Yes, or always No, scores 50; "best answer to each question's text alone"
is what one could score on these very questions without looking. A right answer says what the true one says, in its
own words. Samples: 32 descriptions of each of 40 scenes at temperature 1.

| figure | {" | ".join(figures)} |
|---|{"---|" * len(figures)}
{chr(10).join(rows)}
"""
