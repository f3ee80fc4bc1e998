"""How long the trainings of a store took, and the answers of their adapters: what more of them will take."""

from dataclasses import dataclass
from statistics import median

from m3po_dagster.lineage.manifests import ADAPTER, seconds_of
from m3po_dagster.storage.store import ArtifactStore

ANSWERS = "benchmark_answers"


@dataclass(frozen=True)
class TrainingTimes:
    """Medians over `trainings` adapters of one kind: seconds to train one, and for its answers to all benchmarks."""

    trainings: int
    train_seconds: float
    answer_seconds: float

    @property
    def seconds(self) -> float:
        """Seconds of one more adapter."""
        return self.train_seconds + self.answer_seconds


def training_times(store: ArtifactStore, kind: str) -> TrainingTimes | None:
    """The times of the store's trainings of a kind (dpo, sft, ...); None where it has none."""
    trained = {
        artifact.fingerprint: seconds_of(artifact.manifest)
        for artifact in store.list(ADAPTER)
        if artifact.manifest.settings["training"]["kind"] == kind
    }
    if not trained:
        return None
    answered: dict[str, float] = {}
    for artifact in store.list(ANSWERS):
        ref = artifact.manifest.inputs.get(ADAPTER)
        if ref is not None and ref.fingerprint in trained:
            answered[ref.fingerprint] = answered.get(ref.fingerprint, 0.0) + artifact.manifest.seconds
    return TrainingTimes(len(trained), median(trained.values()), median(answered.values()) if answered else 0.0)
