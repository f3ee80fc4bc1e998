"""What the results of a study took: device-hours, peak memory and money by stage (the paper's Table 7).

Read from the manifests of everything that some scores stand on. What several recipes stand on is there once and counts
once; time and memory are those of making it, however often it was reused since.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pyarrow as pa

from m3po_dagster.device_use import DEVICE, DEVICES, PEAK_MEMORY
from m3po_dagster.lineage.manifests import ADAPTER, RECIPE_ADAPTERS, Manifests, key_of, seconds_of
from m3po_dagster.storage.artifact import Artifact
from m3po_dagster.storage.manifest import InputRef
from m3po_dagster.storage.names import ArtifactKey
from m3po_dagster.storage.tables import COSTS

DATA_STAGES = ("candidates", "logprob_table", "mas_table")
"""What pairs are selected from: made once, for whatever recipes there are."""

STAGES = (*DATA_STAGES, ADAPTER, "benchmark_answers", "benchmark_judgements")
"""The stages that load or ask a model. The others take seconds of one core."""

NOT_RECORDED = "not recorded"
PROCESSES = "processes"
"""What an adapter's manifest calls the number of processes that trained it, each on a device of its own."""

SECONDS_AN_HOUR = 3600


@dataclass(frozen=True)
class _Stood:
    """An object and the recipes whose scores stand on it; None in the place of one that the store no longer holds.

    `trained_for` is each RECIPE|SEED that has the training: it may lie in the store under the name of another recipe.
    """

    key: ArtifactKey
    artifact: Artifact | None
    recipes: tuple[str, ...]
    trained_for: tuple[str, ...]


def costs(manifests: Manifests, scores: Mapping[str, Artifact]) -> pa.Table:
    """A table COSTS of what the scores of each recipe stand on; `scores` are benchmark_scores by recipe."""
    groups: dict[tuple[str, str, str], list[_Stood]] = {}
    for one in _stood_on(manifests, scores):
        device = NOT_RECORDED
        if one.artifact is not None:
            device = str(one.artifact.manifest.metadata.get(DEVICE, NOT_RECORDED))
        groups.setdefault((one.key.asset, _part(one), device), []).append(one)
    order = {stage: place for place, stage in enumerate(STAGES)}
    rows = [
        _row(stage, part, device, some)
        for (stage, part, device), some in sorted(groups.items(), key=lambda item: order[item[0][0]])
    ]
    return pa.Table.from_pylist(rows, schema=COSTS.schema)


def _part(one: _Stood) -> str:
    """What objects of a stage are counted by: all shards together, a training alone, a recipe's answers together.

    Named as the scores name it, not as whoever made it did: a recipe of another name may have been first.
    """
    if one.key.asset in DATA_STAGES:
        return ""
    if one.key.asset == ADAPTER:
        return one.trained_for[0] if one.trained_for else one.key.partition
    return one.recipes[0]


def _row(stage: str, part: str, device: str, some: list[_Stood]) -> dict[str, object]:
    kept = [one.artifact.manifest for one in some if one.artifact is not None]
    peaks = [peak for manifest in kept if (peak := manifest.metadata.get(PEAK_MEMORY)) is not None]
    hours = [seconds_of(manifest) * _devices(manifest.metadata) / SECONDS_AN_HOUR for manifest in kept]
    spent = [cost for manifest in kept if (cost := _money(manifest.metadata)) is not None]
    recipe, _, seed = part.partition("|")
    return {
        "stage": stage,
        "part": part,
        "device": device,
        "recipe": recipe or None,
        "seed": int(seed) if seed else None,
        "recipes": len({recipe for one in some for recipe in one.recipes}),
        "trained_for": list(dict.fromkeys(whose for one in some for whose in one.trained_for)),
        "objects": len(some),
        "lost": len(some) - len(kept),
        "device_hours": sum(hours),
        "peak_memory": max(peaks, default=None),
        "money": sum(spent) if spent else None,
    }


def _devices(metadata: Mapping) -> int:
    """How many devices were at work: those that the step itself held, or a process each that it started."""
    return max(metadata.get(DEVICES, 1), metadata.get(PROCESSES, 1))


def _money(metadata: Mapping) -> float | None:
    """What the run that made an object paid to judges that have prices; None where none has."""
    if not metadata.get("priced"):
        return None
    return sum(tally["cost"] for name, tally in metadata["asked"].items() if name in metadata["priced"])


def _stood_on(manifests: Manifests, scores: Mapping[str, Artifact]) -> Iterator[_Stood]:
    """Every object of STAGES that some scores stand on, once, by stage and partition."""
    found: dict[ArtifactKey, dict[str, None]] = {}
    for recipe, artifact in scores.items():
        for key in _keys(manifests, artifact):
            found.setdefault(key, {})[recipe] = None
    had = _trained_for(manifests, scores)
    for key in sorted(found):
        yield _Stood(key, manifests.find(key), tuple(found[key]), tuple(had.get(key, ())))


def _trained_for(manifests: Manifests, scores: Mapping[str, Artifact]) -> dict[ArtifactKey, list[str]]:
    """The trainings behind the scores, and each RECIPE|SEED that has it, as the recipes' adapters name them."""
    found: dict[ArtifactKey, list[str]] = {}
    for artifact in scores.values():
        for ref in manifests.inputs(artifact, RECIPE_ADAPTERS):
            if (adapters := manifests.find(key_of(ref))) is None:
                continue
            for name, trained in adapters.manifest.inputs.items():
                if trained.asset == ADAPTER:
                    found.setdefault(key_of(trained), []).append(name.removeprefix(f"{ADAPTER}[").removesuffix("]"))
    return found


def _keys(manifests: Manifests, scores: Artifact) -> set[ArtifactKey]:
    """The objects of STAGES behind one recipe's scores."""
    seen: set[ArtifactKey] = set()
    pending = list(_followed(scores))
    while pending:
        key = key_of(pending.pop())
        if key in seen:
            continue
        seen.add(key)
        artifact = manifests.find(key)
        if artifact is not None:
            pending += _followed(artifact)
    return {key for key in seen if key.asset in STAGES}


def _followed(artifact: Artifact) -> Iterator[InputRef]:
    """The inputs that lead on. A recipe's adapters lead to its trainings alone: base has shards of pairs, and none."""
    wanted = None
    if artifact.key.asset == RECIPE_ADAPTERS:
        wanted = (ADAPTER,)
    elif artifact.key.asset == "benchmark_judgements":
        # The answers it compares with are the base model's, and count there.
        wanted = ()
    for ref in artifact.manifest.inputs.values():
        if wanted is None or ref.asset in wanted:
            yield ref
