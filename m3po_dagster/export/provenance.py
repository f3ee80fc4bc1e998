"""What pairs were made from, as tables of a card: settings, counts, fingerprints."""

from collections import Counter
from collections.abc import Iterator, Sequence

from m3po_dagster.export.card_text import settings_text, table
from m3po_dagster.export.made import ShardPairs
from m3po_dagster.storage.artifact import Artifact

GONE = "no longer in the store"


def settings_table(shards: Sequence[ShardPairs]) -> str:
    """How the pairs were made: the settings of every step, of each version where there are several."""
    rows = [("dataset", text) for artifact in _distinct(shards, "dataset") for text in _sources(artifact)]
    for title, attribute, key in (
        ("filters", "instructions", None),
        ("base model", "model", None),
        ("sampling", "candidates", None),
        ("judge", "judge", None),
        ("selection", "recipe", "selection"),
    ):
        for artifact in _distinct(shards, attribute):
            settings = artifact.manifest.settings if artifact else None
            shown = settings[key] if settings and key else settings
            rows.append((title, GONE if artifact is None else settings_text(shown)))
    return table(("step", "settings"), dict.fromkeys(rows))


def counts_table(shards: Sequence[ShardPairs], what: str = "pair") -> str:
    """From prompts to pairs: what was kept at every step, and what was dropped by which reason.

    `what` is what a row of the pairs is called: an `answer` for trainings that compare none.
    """
    filtered, without_pair = Counter(), Counter()
    for shard in shards:
        for drop in shard.instructions.manifest.metadata.get("drops", ()):
            filtered[f"{drop['filter']}: {drop['reason']}"] += drop["count"]
        without_pair.update(shard.pairs.manifest.metadata.get("dropped by reason", {}))
    rows = [
        ("prompts kept by the filters", _rows(shards, "instructions")),
        ("records or turns dropped by the filters", _rows(shards, "instructions", "dropped")),
        *((f"- {reason}", count) for reason, count in filtered.most_common() if count),
        ("distinct candidates", _rows(shards, "candidates")),
        (f"{what}s selected", _rows(shards, "pairs")),
        (f"prompts without {'an' if what[0] in 'aeiou' else 'a'} {what}", _rows(shards, "pairs", "dropped")),
        *((f"- {reason}", count) for reason, count in without_pair.most_common()),
    ]
    return table(("what", "number"), [(name, f"{number:,}") for name, number in rows])


def lineage_table(shards: Sequence[ShardPairs], *ends: Artifact) -> str:
    """Fingerprint and content of the `ends` made from the pairs, of the pairs, and of all they were made from."""
    rows = [_row(artifact.key.asset, artifact) for artifact in ends]
    for asset, attribute in (
        ("preference_pairs", "pairs"),
        ("recipe_config", "recipe"),
        ("mas_table", "mas"),
        ("judge_identity", "judge"),
        ("candidates", "candidates"),
        ("base_model", "model"),
        ("filtered_instructions", "instructions"),
        ("source_dataset", "dataset"),
    ):
        rows += [_row(asset, artifact) for artifact in _distinct(shards, attribute)]
    return table(("artifact", "fingerprint", "content"), rows)


def _sources(dataset: Artifact | None) -> Iterator[str]:
    """A line a source: its settings, and the hashes of its files."""
    if dataset is None:
        yield GONE
        return
    for name, source in dataset.manifest.settings["sources"].items():
        files = ", ".join(source["files"].values())
        yield f"{name}: {settings_text(source['settings'])}; sha256 of its files {files}"


def _distinct(shards: Sequence[ShardPairs], attribute: str) -> Iterator[Artifact | None]:
    """Each artifact once: shards share some, and have several where they were made at different times."""
    found = [getattr(shard, attribute) for shard in shards]
    yield from {artifact.key if artifact else None: artifact for artifact in found}.values()


def _rows(shards: Sequence[ShardPairs], attribute: str, name: str = "data") -> int:
    tables = [getattr(shard, attribute).manifest.tables for shard in shards]
    return sum(found[name].rows for found in tables if name in found)


def _row(asset: str, artifact: Artifact | None) -> tuple[str, str, str]:
    if artifact is None:
        return asset, GONE, ""
    partition = f"[{artifact.key.partition}]" if artifact.key.partition else ""
    return f"{asset}{partition}", f"`{artifact.fingerprint}`", f"`{artifact.data_version}`"
