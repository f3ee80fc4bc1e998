"""Calibrates and measures the embedded judge, and writes its model card."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from m3po_dagster.method.alignment.calibration import CALIBRATION_FILE, Identity, fit, write_calibrations
from m3po_dagster.method.alignment.clip import ClipScorerSettings
from m3po_dagster.method.alignment.scorer import Scorer
from m3po_dagster.method.prompt import Message, Prompt
from m3po_dagster.world.judge import SceneJudge, SceneJudgeSettings
from m3po_dagster.world.language import YES_NO_KINDS, Kind, Question, claims, describe, true_answer
from m3po_dagster.world.lessons import Noise, draw_question, noisy_answer
from m3po_dagster.world.negatives import absent_thing
from m3po_dagster.world.scenes import THINGS, Cells, compose, things_in
from m3po_dagster.world.tiles import Role, load_tiles

SCENES = 200
# Every answer that is not a description is wrong under this noise.
ALWAYS_WRONG = Noise(companion_affirmed=1.0, slip=1.0)
# How often each kind of question is asked: as the embedded study's prompts ask.
KIND_RATES: dict[Kind, float] = {
    "describe": 0.5,
    "exists": 0.3,
    "count": 0.05,
    "what_at": 0.05,
    "is_shape": 0.05,
    "what_shape": 0.05,
}


@dataclass(frozen=True)
class Case:
    """A prompt about a new scene with its true answer, a wrong one, one that leaves something out, and noisy ones.

    `omitting` is None where nothing can be left out: a description of one object, an answer of one piece.
    """

    prompt: Prompt
    question: Question
    cells: Cells
    true: str
    wrong: str
    omitting: str | None
    noisy: tuple[str, ...]


def draw_cases(role: Role, n: int, seed: int, folder: Path) -> list[Case]:
    """`n` cases on unbiased scenes from the role's tiles; images are written to `folder` as PNG."""
    from PIL import Image

    rng = np.random.default_rng(seed)
    tiles = load_tiles(role)
    cases = []
    for i in range(n):
        scene = compose(tiles, rng, biased=False)
        path = folder / f"scene-{i}.png"
        Image.fromarray(scene.pixels).save(path)
        kind = str(rng.choice(list(KIND_RATES), p=list(KIND_RATES.values())))
        question = draw_question(kind, scene.cells, rng)
        true = true_answer(scene.cells, question)
        noisy = tuple(noisy_answer(scene.cells, question, rng) for _ in range(6))
        if kind == "describe":
            things = things_in(scene.cells)
            wrong = describe([*things, absent_thing(scene.cells, "adversarial", rng)])
            left = rng.integers(len(things))
            omitting = describe([t for j, t in enumerate(things) if j != left]) if len(things) > 1 else None
        else:
            wrong = noisy_answer(scene.cells, question, rng, ALWAYS_WRONG)
            omitting = f"{true.split(',')[0]}." if kind in YES_NO_KINDS else None
        prompt = Prompt(f"{role}-{i}", path, (Message("user", question.text),))
        cases.append(Case(prompt, question, scene.cells, true, wrong, omitting, noisy))
    return cases


def calibrate_judge(folder: Path) -> None:
    """Writes the folder's calibrations, fitted on scenes from the judge's own tiles.

    The entry `clip` fits the tiled CLIP score (2 x 2) on this model; the judge's own value needs no map.
    """
    with tempfile.TemporaryDirectory() as images:
        cases = draw_cases("judge", SCENES, 0, Path(images))
        clip = clip_settings(folder).build()
        values = [s.value for row in clip.score([(c.prompt, (c.true, *c.noisy)) for c in cases]) for s in row]
    write_calibrations(folder / CALIBRATION_FILE, {"clip": fit(values), "scene_judge": Identity()})


def clip_settings(folder: Path) -> ClipScorerSettings:
    """The general CLIP scorer on the judge's model, as a reward of its own: it sees cells, but no question."""
    return ClipScorerSettings(model=str(folder), tiles=2)


def measure_judge(folder: Path, with_clip: bool = True) -> dict[str, float]:
    """Figures of the judge in `folder`, shares in per cent: cells read right, answers ordered right, agreement.

    Orders and agreement are taken on SCENES new unbiased scenes from the validation tiles, `with_clip` of the tiled
    CLIP score too.
    """
    judge = SceneJudgeSettings(model=str(folder)).build()
    scorers: dict[str, Scorer] = {"scene judge": judge}
    if with_clip:
        scorers["clip, tiles 2"] = clip_settings(folder).build()
    figures = {}
    with tempfile.TemporaryDirectory() as images:
        for role in ("validation", "test"):
            read = draw_cases(role, SCENES, 2, Path(images))
            figures[f"cells read right, {role} tiles"] = 100 * _cells_right(judge, read)
        cases = draw_cases("validation", SCENES, 1, Path(images))
        for name, scorer in scorers.items():
            figures |= {f"{name}: {what}": value for what, value in _agreement(scorer, cases).items()}
    return figures


def _cells_right(judge: SceneJudge, cases: Sequence[Case]) -> float:
    readings = judge.read([case.prompt for case in cases])
    read = np.array([readings[case.prompt.image_path].cells.argmax(axis=1) for case in cases])
    true = np.array([[len(THINGS) if t is None else THINGS.index(t) for t in case.cells] for case in cases])
    return float((read == true).mean())


def _agreement(scorer: Scorer, cases: Sequence[Case]) -> dict[str, float]:
    scored = scorer.score([(c.prompt, (c.true, c.wrong, c.omitting or c.true, *c.noisy)) for c in cases])
    values = np.array([[score.value for score in row] for row in scored])
    true, wrong, omitting = values[:, 0], values[:, 1], values[:, 2]
    described = np.array([case.question.kind == "describe" for case in cases])
    omits = np.array([case.omitting is not None for case in cases])
    f1 = [_f1(case.cells, text) for case in np.array(cases, dtype=object)[described] for text in case.noisy]
    return {
        "true above wrong, descriptions": 100 * float((true > wrong)[described].mean()),
        "true above wrong, other questions": 100 * float((true > wrong)[~described].mean()),
        "true above omitting, descriptions": 100 * float((true > omitting)[omits & described].mean()),
        "true above bare yes or no": 100 * float((true > omitting)[omits & ~described].mean()),
        "AUC true against wrong, descriptions": 100 * _auc(true[described], wrong[described]),
        "AUC true against wrong, other questions": 100 * _auc(true[~described], wrong[~described]),
        "rank correlation with F1 of noisy descriptions": _spearman(values[described, 3:].ravel(), np.array(f1)),
    }


def _f1(cells: Cells, description: str) -> float:
    named, there = {claim.thing for claim in claims(description).present}, set(things_in(cells))
    return 2 * len(named & there) / (len(named) + len(there))


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def _auc(above: np.ndarray, below: np.ndarray) -> float:
    ranks = _ranks(np.concatenate([above, below]))[: len(above)]
    return float((ranks.sum() - len(above) * (len(above) + 1) / 2) / (len(above) * len(below)))


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(_ranks(a), _ranks(b))[0, 1])


def write_card(folder: Path, figures: dict[str, float], seed: int, parameters: int) -> None:
    """Writes the model card (README.md) with the measured figures."""
    (folder / "README.md").write_text(
        f"""# Judge of the embedded world

A CLIP of {parameters:,} parameters in open_clip's folder layout, weights in fp16. It matches a 32x32 cell of a scene
with captions of the world's 24 objects (8 colours x 3 shapes) and of nothing.

* **Made by** `python -m m3po_dagster.world.judge_model`, seed {seed}, from random weights, in minutes on one core.
* **Trained on** crops of easy-VQA training images 2000-2999 (MIT), mirrored and transposed at random. The base model,
  the prompts, validation and test use other images. The weights are those at the end of the schedule; nothing was
  picked on validation or test.
* **Used by** the scorer `scene_judge` (relevance, accuracy, adherence; their mean is the score) and, as a reward of its
  own, by the scorer `clip` with `tiles: 2` and its defaults, for which `calibration.json` holds the entry `clip`.
* **Limits.** It knows this world's images and sentences only. As `clip` it hardly tells No from Yes, and leaving out an
  object costs nothing.

{figures_section(figures)}""",
        encoding="utf-8",
    )


def figures_section(figures: dict[str, float]) -> str:
    """The card's section on what was measured, as `measure_judge` gives it."""
    rows = "\n".join(f"| {name} | {value:.2f} |" for name, value in figures.items())
    return f"""## Figures

Shares in per cent, the rank correlation between -1 and 1. Reading: {SCENES} scenes a row, 4 cells each. Ordering:
{SCENES} new unbiased scenes from the validation tiles, one question each. A wrong description adds the absent object
that co-occurs most in the base model's world; another wrong answer is what one would say of a misread scene; an
omitting description leaves out one object. The rank correlation is with the F1 of the objects named, over noisy
descriptions.

| figure | value |
|---|---|
{rows}
"""
