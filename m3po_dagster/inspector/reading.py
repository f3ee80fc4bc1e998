"""Reads the current state of a study into a `Catalogue`; what was read before and did not change is kept."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

from m3po_dagster.graph import Head, Part
from m3po_dagster.inspector.catalogue import Catalogue, merged
from m3po_dagster.inspector.commands import Commands
from m3po_dagster.inspector.pairs import Pairs, read_pairs
from m3po_dagster.inspector.shards import Shard, matches, read_shard
from m3po_dagster.inspector.standing import Age, age, some
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


class Reader:
    """Turns heads into catalogues. Not for several threads at once."""

    def __init__(self, study_path: Path, store: ArtifactStore) -> None:
        self._study_path, self._store = study_path, store
        self._commands = Commands(study_path, store.location)
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
        found = self._found({part: head for part, head in heads.items() if part[0] in SHOWN_ASSETS})
        shards = {}
        for name in study.shards:
            report(f"reading shard {name}")
            if ("filtered_instructions", name) in found:
                shards[name] = self._shard(name, found)
        standing = age(study, heads, found, SHOWN_ASSETS, self._store.find, self._commands)
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
                    if recipe in standing.edited or ("preference_pairs", f"{recipe}|{name}") in standing.old:
                        stale.append(name)
                key = (name, *map(_content, (shard.prompts, shard.candidates, artifact)), recipe)
                if key not in self._pairs:
                    report(f"reading the pairs of {recipe} in shard {name}")
                    self._pairs[key] = read_pairs(shard, artifact)
                used.add(key)
                parts.append(self._pairs[key])
            recipes[recipe] = merged(parts, artifacts, stale, _why_stale(recipe, stale, standing))
        self._pairs = {key: self._pairs[key] for key in used}
        self._artifacts = {(*part, artifact.fingerprint): artifact for part, artifact in found.items()}
        self._number += 1
        return Catalogue(
            number=self._number,
            study=study,
            commands=self._commands,
            study_sha256=hashlib.sha256(content).hexdigest(),
            shards=tuple(shards.values()),
            recipes=recipes,
            scores={r: found["benchmark_scores", r] for r in study.recipes if ("benchmark_scores", r) in found},
            missing=tuple(_missing(study, found, shards, self._commands)),
            stale=standing.sentences,
        )

    def _found(self, heads: Mapping[Part, Head]) -> dict[Part, Artifact]:
        """What the heads name, as far as the store holds just that: not what was made anew and not yet reported."""
        keys = {part: (*part, head.fingerprint) for part, head in heads.items()}
        known = {part: self._artifacts[key] for part, key in keys.items() if key in self._artifacts}
        known = {part: found for part, found in known.items() if found.data_version == heads[part].data_version}
        held = self._store.held(keys[part] for part in known)
        known = {part: found for part, found in known.items() if keys[part] in held}
        new = {part: key for part, key in keys.items() if part not in known}
        read = dict(zip(new, self._store.find_all(new.values()), strict=True))
        found = {part: known.get(part) or read[part] for part in heads}
        return {
            part: artifact
            for part, artifact in found.items()
            if artifact is not None and artifact.data_version == heads[part].data_version
        }

    def _shard(self, name: str, found: Mapping[Part, Artifact]) -> Shard:
        prompts = found["filtered_instructions", name]
        candidates = found.get(("candidates", name))
        if not matches(candidates, prompts):
            candidates = None
        mas, logprobs = (found.get((asset, name)) for asset in ("mas_table", "logprob_table"))
        mas, logprobs = (item if matches(item, candidates) else None for item in (mas, logprobs))
        key = (name, *map(_content, (prompts, candidates, mas, logprobs)))
        if key not in self._shards:
            self._shards[key] = read_shard(name, prompts, candidates, mas, logprobs)
        self._shards = {old: shard for old, shard in self._shards.items() if old[0] != name or old == key}
        return self._shards[key]


def _content(artifact: Artifact | None) -> tuple[str, str] | None:
    """Changes with what an artifact holds; the fingerprint alone says only what it was made from."""
    return None if artifact is None else (artifact.fingerprint, artifact.data_version)


def _why_stale(recipe: str, stale: list[str], standing: Age) -> str:
    """What is wrong with a recipe's pairs that are not up to date."""
    if recipe in standing.edited:
        return f"the recipe was edited since: {standing.edited[recipe]}"
    return "; ".join(dict.fromkeys(standing.old["preference_pairs", f"{recipe}|{name}"] for name in stale))


def _missing(
    study: Study, found: Mapping[Part, Artifact], shards: Mapping[str, Shard], commands: Commands
) -> list[str]:
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
                f"run `{commands.run(recipe)}`."
            )
    lacking = [name for name in study.recipes if ("benchmark_scores", name) not in found]
    if lacking:
        sentences.append(f"There are no benchmark answers yet of {_some(lacking, len(study.recipes), 'recipes')}.")
    return sentences


def _some(names: list[str], of: int, what: str) -> str:
    return f"{len(names)} of {of} {what} ({some(names)})"
