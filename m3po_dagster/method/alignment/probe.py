"""A fixed set of questions to a served judge: when its answers change, the model behind the endpoint did.

A provider can change a model under the same name. Only its answers show it, so the judge is asked about a few images
with a right, a half right and a wrong answer each, and what it says becomes part of its data version. Only the grades
count, not its words, which vary from call to call. Grades waver a little as well, even at temperature 0: each case is
asked several times and the median of each sub-score is the answer.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, median_low
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from m3po_dagster.method.alignment.mas import MasSettings, one_line
from m3po_dagster.method.alignment.scorer import SCORED, Score, ScorerSettings, ServedScorer
from m3po_dagster.method.endpoint import EndpointError
from m3po_dagster.method.prompt import Message, Prompt

SIDE = 224
QUALITIES = ("right", "half", "wrong")
# Image -> question and an answer of each quality. Between them they move every aspect.
CASES: dict[str, tuple[str, tuple[str, str, str]]] = {
    "shapes": (
        "Describe the image.",
        (
            "A red circle is on the left and a blue square is on the right.",
            "A red circle is on the left and a green triangle is on the right.",
            "A yellow dog sleeps on a sofa.",
        ),
    ),
    "bars": (
        "How many black bars are in the image?",
        ("There are three black bars.", "There are several black bars.", "There are seven black bars."),
    ),
    "halves": (
        "Which colour is at the bottom of the image?",
        ("The bottom is yellow.", "The top is green.", "The bottom is blue."),
    ),
    "shading": (
        "Is the image brighter on the left or on the right? Answer with one word.",
        ("Right", "The image becomes gradually brighter from the left to the right.", "Left"),
    ),
}
N_CASES = len(CASES) * len(QUALITIES)


def probe(judge: MasSettings) -> list[dict]:
    """The median answers of every served scorer of a judge, a row a case, in the order of scorer and case.

    A row has scorer, case, value, sub_scores (as JSON) and status.

    Sends a request a group of answers, image and repeat to each served scorer, keeps no reply and loads no local
    scorer; without a served scorer there are no rows. A case is unscored when at least half of its repeats are. Raises
    EndpointError when an endpoint gives no judgement at all: an outage is not a new judge.
    """
    rows: list[dict] = []
    with TemporaryDirectory(prefix="m3po-probe-") as folder:
        for settings in sorted(judge.assessors, key=lambda scorer: scorer.name):
            if settings.served:
                rows += _answers(settings, _prompts(Path(folder)), judge.probe_repeats)
    return rows


def _answers(settings: ScorerSettings, prompts: dict[str, Prompt], repeats: int) -> list[dict]:
    scorer: ServedScorer = settings.build()
    scored = scorer.score([(prompt, CASES[name][1]) for name, prompt in prompts.items() for _ in range(repeats)])
    rows = []
    for place, name in enumerate(prompts):
        found = scored[place * repeats : (place + 1) * repeats]
        for number, quality in enumerate(QUALITIES):
            row = _median(scorer, [repeat[number] for repeat in found])
            rows.append({"scorer": settings.name, "case": f"{name}:{quality}", **row})
    if all(row["value"] is None for row in rows):
        said = next((f": {one_line(score.words)}" for found in scored for score in found if score.words), "")
        raise EndpointError(
            f"scorer '{settings.name}': {settings.endpoint} (model {settings.model!r}) judged none of the {N_CASES} "
            f"probe cases ({rows[0]['status']}{said}); see whether it is the right model, and takes images and JSON "
            "schemas"
        )
    return sorted(rows, key=lambda row: row["case"])


def _median(scorer: ServedScorer, answers: Sequence[Score]) -> dict:
    scored = [answer for answer in answers if answer.value is not None]
    if 2 * len(scored) <= len(answers):
        reasons = Counter(answer.reason for answer in answers if answer.value is None)
        return {"value": None, "sub_scores": None, "status": min(reasons, key=lambda one: (-reasons[one], one))}
    # A grade that was given, not one in between, also where the number of answers is even.
    medians = {name: median_low(answer.sub_scores[name] for answer in scored) for name in scorer.graded}
    return {"value": scorer.value(medians), "sub_scores": json.dumps(medians, sort_keys=True), "status": SCORED}


def changed(before: Iterable[Mapping[str, Any]], after: Iterable[Mapping[str, Any]], tolerance: float) -> str:
    """In words, how the judge that gave the rows `after` is another than the one of `before`; empty where it is not.

    It is another when a case could be scored once and not the other time, when a grade moved by more than one, or when
    the grades moved by more than `tolerance` on average: a judge that wavers by a step here and there is the same.
    """
    known = {(row["scorer"], row["case"]): row for row in before}
    moves: dict[str, list[float]] = {}
    for row in after:
        was = known.pop((row["scorer"], row["case"]), None)
        if was is None or was["status"] != row["status"]:
            what = "was not asked before" if was is None else f"was {was['status']}, is {row['status']}"
            return f"scorer '{row['scorer']}': case {row['case']} {what}"
        grades, old = (json.loads(one["sub_scores"] or "{}") for one in (row, was))
        moves.setdefault(row["scorer"], []).extend(abs(grades[name] - old[name]) for name in grades)
    if known:
        scorer, case = next(iter(known))
        return f"scorer '{scorer}': case {case} is asked no more"
    for scorer, moved in moves.items():
        if moved and (max(moved) > 1 or fmean(moved) > tolerance):
            others = sum(move > 0 for move in moved)
            return (
                f"scorer '{scorer}': {others} of {len(moved)} grades moved, by {fmean(moved):.2f} on average "
                f"(probe_tolerance is {tolerance:g}) and by {max(moved):g} at most"
            )
    return ""


def revisions(rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Scorer name -> hash of what the probe's rows say of it: equal exactly when no answer of it changed.

    What a study calls the scorer is no part of it.
    """
    found: dict[str, list] = {}
    for row in sorted(rows, key=lambda row: (row["scorer"], row["case"])):
        given = json.loads(row["sub_scores"] or "{}")
        grades = {name.removeprefix(f"{row['scorer']}_"): grade for name, grade in given.items()}
        found.setdefault(row["scorer"], []).append([row["case"], grades, row["status"]])
    return {name: hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16] for name, said in found.items()}


def _prompts(folder: Path) -> dict[str, Prompt]:
    from PIL import Image

    prompts = {}
    for name, (question, _) in CASES.items():
        path = folder / f"{name}.png"
        Image.fromarray(picture(name)).save(path)
        prompts[name] = Prompt(f"probe-{name}", path, (Message("user", question),))
    return prompts


def picture(name: str) -> np.ndarray:
    """The pixels of a case's image, (SIDE, SIDE, 3) uint8: plain arithmetic, the same on every machine and version."""
    down, across = np.mgrid[0:SIDE, 0:SIDE]
    pixels = np.full((SIDE, SIDE, 3), 255, np.uint8)
    match name:
        case "shapes":
            pixels[(down - SIDE // 2) ** 2 + (across - SIDE // 4) ** 2 < (SIDE // 6) ** 2] = (220, 20, 20)
            pixels[(abs(down - SIDE // 2) < SIDE // 7) & (abs(across - 3 * SIDE // 4) < SIDE // 7)] = (20, 40, 220)
        case "bars":
            pixels[(abs(down - SIDE // 2) < SIDE // 3) & (across % (SIDE // 3) // 16 == 2)] = (0, 0, 0)
        case "halves":
            pixels[:] = np.where((down < SIDE // 2)[..., None], (20, 160, 40), (245, 220, 20))
        case "shading":
            pixels[:] = (across * 255 // (SIDE - 1))[..., None]
        case _:
            raise KeyError(f"no probe image {name!r}; there are {sorted(CASES)}")
    return pixels
