"""Reads the current state of a study into a `Catalogue`; what was read before and did not change is kept."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

from m3po_dagster.graph import Head, Part
from m3po_dagster.inspector.catalogue import Catalogue, merged
from m3po_dagster.inspector.pairs import Pairs, read_pairs
from m3po_dagster.inspector.shards import Shard, matches, read_shard
from m3po_dagster.storage.artifact import Artifact
from m3po_dagster.storage.store import ArtifactStore
from m3po_dagster.study import Study, load_study

SHOWN_ASSETS = (
    "filtered_instructions",
    "candidates",
    "mas_table",
    "logprob_table",
    "recipe_config",
    "preference_pairs",
    "benchmark_scores",
)
_NAMED = 5


class Reader:
    """Turns heads into catalogues. Not for several threads at once."""

    def __init__(self, study_path: Path, store: ArtifactStore) -> None:
        self._study_path, self._store = study_path, store
        self._artifacts: dict[tuple[str, str, str], Artifact] = {}
        self._shards: dict[tuple, Shard] = {}
        self._pairs: dict[tuple, Pairs] = {}
        self._number = 0

    def read(self, heads: Mapping[Part, Head], report: Callable[[str], None]) -> Catalogue:
        """The catalogue of these heads; `report` is told what is being read.

        Raises StudyError, StoreError, OSError, pa.ArrowException, or ValueError for tables that don't fit together.
        """
        content = self._study_path.read_bytes()
        study = load_study(self._study_path)
        found = {part: self._artifact(part, head) for part, head in heads.items() if part[0] in SHOWN_ASSETS}
        found = {part: artifact for part, artifact in found.items() if artifact is not None}
        shards = {}
        for name in study.shards:
            report(f"reading shard {name}")
            if ("filtered_instructions", name) in found:
                shards[name] = self._shard(name, found)
        recipes, used = {}, set()
        for recipe, settings in study.recipes.items():
            if settings.selection is None:
                continue
            parts, artifacts, stale = [], {}, []
            for name, shard in shards.items():
                artifact = found.get(("preference_pairs", f"{recipe}|{name}"))
                if not matches(artifact, shard.candidates):
                    artifact = None
                else:
                    artifacts[name] = artifact
                    if not _up_to_date(artifact, found):
                        stale.append(name)
                key = (
                    shard.prompts.fingerprint,
                    shard.candidates and shard.candidates.fingerprint,
                    artifact and artifact.key,
                )
                if key not in self._pairs:
                    report(f"reading the pairs of {recipe} in shard {name}")
                    self._pairs[key] = read_pairs(shard, artifact)
                used.add(key)
                parts.append(self._pairs[key])
            recipes[recipe] = merged(parts, artifacts, stale)
        self._pairs = {key: self._pairs[key] for key in used}
        self._artifacts = {artifact.key: artifact for artifact in found.values()}
        self._number += 1
        return Catalogue(
            number=self._number,
            study=study,
            study_sha256=hashlib.sha256(content).hexdigest(),
            shards=tuple(shards.values()),
            recipes=recipes,
            scores={r: found["benchmark_scores", r] for r in study.recipes if ("benchmark_scores", r) in found},
            missing=tuple(_missing(study, found, shards)),
        )

    def _artifact(self, part: Part, head: Head) -> Artifact | None:
        key = (*part, head.fingerprint)
        return self._artifacts.get(key) or self._store.find(*key)

    def _shard(self, name: str, found: Mapping[Part, Artifact]) -> Shard:
        prompts = found["filtered_instructions", name]
        candidates = found.get(("candidates", name))
        if not matches(candidates, prompts):
            candidates = None
        mas, logprobs = (found.get((asset, name)) for asset in ("mas_table", "logprob_table"))
        mas, logprobs = (item if matches(item, candidates) else None for item in (mas, logprobs))
        key = (name, *(item and item.fingerprint for item in (prompts, candidates, mas, logprobs)))
        if key not in self._shards:
            self._shards[key] = read_shard(name, prompts, candidates, mas, logprobs)
        self._shards = {old: shard for old, shard in self._shards.items() if old[0] != name or old == key}
        return self._shards[key]


def _up_to_date(artifact: Artifact, found: Mapping[Part, Artifact]) -> bool:
    """Whether every input is the one that is current."""
    for item in artifact.manifest.inputs.values():
        current = found.get((item.asset, item.partition))
        if current is not None and current.data_version != item.data_version:
            return False
    return True


def _missing(study: Study, found: Mapping[Part, Artifact], shards: Mapping[str, Shard]) -> list[str]:
    """What a person would look for in vain, a sentence an asset."""
    sentences = []
    readers = {
        "filtered_instructions": "their prompts can't be shown",
        "candidates": "their prompts have no answers",
        "mas_table": "their answers have no MAS",
        "logprob_table": "their answers have no log-probs",
    }
    kept = {
        "filtered_instructions": list(shards),
        "candidates": [name for name, shard in shards.items() if shard.candidates],
        "mas_table": [name for name, shard in shards.items() if shard.mas],
        "logprob_table": [name for name, shard in shards.items() if shard.logprobs],
    }
    for asset, consequence in readers.items():
        lacking = [name for name in study.shards if name not in kept[asset]]
        if lacking:
            older = [name for name in lacking if (asset, name) in found]
            why = "was not made yet" if not older else "was not made yet, or was made from something older,"
            sentences.append(f"{asset} {why} for {_some(lacking, len(study.shards), 'shards')}: {consequence}.")
    for recipe, settings in study.recipes.items():
        if settings.selection is None:
            continue
        lacking = [name for name in study.shards if ("preference_pairs", f"{recipe}|{name}") not in found]
        if lacking:
            sentences.append(
                f"Recipe {recipe} has no pairs yet in {_some(lacking, len(study.shards), 'shards')}: "
                f"run `m3po run --recipe {recipe}`."
            )
    lacking = [name for name in study.recipes if ("benchmark_scores", name) not in found]
    if lacking:
        sentences.append(f"There are no benchmark answers yet of {_some(lacking, len(study.recipes), 'recipes')}.")
    return sentences


def _some(names: list[str], of: int, what: str) -> str:
    shown = ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
    return f"{len(names)} of {of} {what} ({shown})"
