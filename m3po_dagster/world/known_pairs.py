"""Known pairs of the embedded world: about new scenes, a true answer against a wrong one and one that omits something.

    <folder>/known_pairs.jsonl                image, question, better, worse
    <folder>/known_pairs/*.png

The scenes come from the validation tiles, which neither the judge nor the base model was trained on.
"""

import json
from pathlib import Path

import numpy as np

from m3po_dagster.world.judge_card import draw_cases

NAME = "known_pairs"
SCENES = 40


def write_known_pairs(folder: Path, seed: np.random.SeedSequence) -> dict[str, int]:
    """Writes the file and its images, and returns how many there are of each."""
    images = folder / NAME
    images.mkdir(parents=True)
    rows = [
        {"image": f"{NAME}/{case.prompt.image_path.name}", "question": case.question.text, "better": case.true}
        | {"worse": worse}
        for case in draw_cases("validation", SCENES, int(seed.generate_state(1)[0]), images)
        for worse in (case.wrong, case.omitting)
        if worse is not None
    ]
    (folder / f"{NAME}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"scenes": SCENES, "pairs": len(rows)}
