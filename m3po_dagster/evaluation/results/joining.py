"""The join of somebody's answers with what was asked: on ids, never on order, and exactly one answer a question."""

from collections.abc import Mapping
from pathlib import Path

from m3po_dagster.evaluation.question import SHOWN_IDS, BenchmarkError


def check_joined(answers: Path, answered: Mapping[str, str], labels: Path, asked: Mapping[str, str]) -> None:
    """Raises BenchmarkError that names the files, and the ids and lines of missing and of extra answers.

    `answered` and `asked` give for each id where it stands.
    """
    missing = {name: where for name, where in asked.items() if name not in answered}
    extra = {name: where for name, where in answered.items() if name not in asked}
    said = []
    if missing:
        said.append(f"{len(missing)} of {len(asked)} answers are missing: {_shown(missing)}")
    if extra:
        said.append(f"{len(extra)} answers belong to no question of {labels}: {_shown(extra)}")
    if said:
        raise BenchmarkError(f"{answers}: {'; '.join(said)}")


def _shown(places: Mapping[str, str]) -> str:
    first = [f"{name} ({where})" for name, where in list(places.items())[:SHOWN_IDS]]
    return ", ".join(first) + (", ..." if len(places) > SHOWN_IDS else "")
