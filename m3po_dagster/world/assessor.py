"""A second judge of the embedded world, which takes the place of people: it compares answers and picks no pairs.

It is the same kind of net as the judge, from another seed and on other tiles (those of the base model), so what the two
have in common is how they score a reading, not what they misread.
"""

from pathlib import Path

from m3po_dagster.method.alignment.calibration import CALIBRATION_FILE, Identity, write_calibrations
from m3po_dagster.world.judge_card import figures_section, measure_judge
from m3po_dagster.world.judge_model import Progress, new_tokenizer, save, train
from m3po_dagster.world.tiles import ROLES, Role, load_tiles

ASSESSOR_FOLDER = Path(__file__).parent / "weights" / "assessor"
SEED = 2
TILES: Role = "base"


def build_assessor(out: Path, seed: int = SEED, progress: Progress | None = None) -> dict[str, float]:
    """Trains the assessor and writes its folder: open_clip's local-dir layout, calibration, model card.

    Returns the measured figures (also in the card). The same seed gives the same weights on one machine and library
    version; `progress` hears ("judge", step, steps, loss).
    """
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = new_tokenizer()
    model = train(tokenizer, load_tiles(TILES), seed, progress)
    save(model, tokenizer, out)
    write_calibrations(out / CALIBRATION_FILE, {"scene_judge": Identity()})
    figures = measure_judge(out, with_clip=False)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    (out / "README.md").write_text(_card(figures, seed, parameters), encoding="utf-8")
    return figures


def _card(figures: dict[str, float], seed: int, parameters: int) -> str:
    first, last = ROLES[TILES][1][0], ROLES[TILES][1][-1]
    return f"""# Assessor of the embedded world

A CLIP of {parameters:,} parameters in open_clip's folder layout, weights in fp16: the judge's twin, made to say what
the judge's pairs have led to. It matches a 32x32 cell of a scene with captions of the world's 24 objects (8 colours x 3
shapes) and of nothing.

* **Made by** `m3po world build --assessor`, seed {seed}, from random weights, in minutes on one core.
* **Trained on** crops of easy-VQA training images {first}-{last} (MIT), mirrored and transposed at random: those of the
  base model. The judge, the prompts, validation and test use other images. The weights are those at the end of the
  schedule; nothing was picked on validation or test.
* **Used by** the benchmark `preference` of the embedded world, as a `scene_judge`. It picks no pairs.
* **Limits.** It knows this world's images and sentences only. It reads images by itself, but scores what it reads by
  the same rules as the judge: what those rules don't see, neither sees.

{figures_section(figures)}"""
