"""Rated answers on scenes of the embedded world, in the layout that `m3po judge validate` reads. No person rated them.

    python -m m3po_dagster.world.ratings --out data/ratings [--shuffled]

A rating is what the labels of the scene say of the answer, from 1 to 5: how well it stands in for a person's depends on
the reader. `--shuffled` deals the same ratings to other answers: a judge must show no agreement with those.
"""

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from m3po_dagster.world.judge_card import Case, draw_cases
from m3po_dagster.world.language import claims
from m3po_dagster.world.scenes import things_in

LOWEST, HIGHEST = 1, 5
# A bare yes or no is right and leaves out what it should have said.
CURT = 3
RATER = "labels"


def rated_answers(case: Case) -> list[tuple[str, float]]:
    """The distinct answers of a case, each with its rating.

    A description: 1 + 4 F1 of the objects it names, against those that are there. Another answer: 5 when it is the true
    one, 3 when it is only its yes or no, else 1.
    """
    answers = dict.fromkeys([case.true, case.wrong, *([case.omitting] if case.omitting else []), *case.noisy])
    return [(answer, _rating(case, answer)) for answer in answers]


def _rating(case: Case, answer: str) -> float:
    if case.question.kind != "describe":
        return HIGHEST if answer == case.true else CURT if answer == case.omitting else LOWEST
    named, there = {claim.thing for claim in claims(answer).present}, set(things_in(case.cells))
    f1 = 2 * len(named & there) / (len(named) + len(there))
    return round(LOWEST + (HIGHEST - LOWEST) * f1, 2)


def write_ratings(folder: Path, scenes: int, seed: int = 0, shuffled: bool = False) -> int:
    """Writes ratings.csv and its images to a new folder; returns the number of ratings.

    The scenes are made of validation tiles, which neither the base model nor the judge has seen. Raises FileExistsError
    when the folder is there.
    """
    (folder / "images").mkdir(parents=True)
    rows = []
    for case in draw_cases("validation", scenes, seed, folder / "images"):
        image = case.prompt.image_path.relative_to(folder)
        rows += [(image.as_posix(), case.question.text, answer, rating) for answer, rating in rated_answers(case)]
    if shuffled:
        dealt = np.random.default_rng(seed).permutation([rating for *_, rating in rows])
        rows = [(*row[:-1], float(rating)) for row, rating in zip(rows, dealt, strict=True)]
    with (folder / "ratings.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "question", "answer", "rating", "rater"])
        writer.writerows((*row, RATER) for row in rows)
    return len(rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes ratings as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    parser.add_argument("--scenes", type=int, default=100, help="scenes, one question each (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same bytes (default: %(default)s)")
    parser.add_argument("--shuffled", action="store_true", help="deal the ratings to other answers")
    given = parser.parse_args(arguments)
    number = write_ratings(given.out, given.scenes, given.seed, given.shuffled)
    print(f"{given.out}/ratings.csv: {number} ratings of {given.scenes} scenes, by their labels")


if __name__ == "__main__":
    main()
