"""Where a pair, a prompt or an image went: the recipes that selected it and the adapters that were trained on it.

Every version in the store is searched, current or not. Only columns of ids are read until something is found; texts are
read of the shards that hold it alone.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from m3po_dagster.datasets.shards import columns_of
from m3po_dagster.lineage.answers import values
from m3po_dagster.lineage.manifests import ADAPTER, PAIRS, RECIPE_ADAPTERS, Manifests, key_of, recipe_of, shard_of
from m3po_dagster.lineage.training import Training, margins, seen
from m3po_dagster.storage.artifact import Artifact
from m3po_dagster.storage.errors import StoreError
from m3po_dagster.storage.names import ArtifactKey

SHORTEST = 6
_HEX = re.compile(r"[0-9a-f]+")
_LISTED = 8


@dataclass(frozen=True)
class Prompt:
    """A prompt as filtered_instructions has it: its row, and the shard that holds it."""

    shard: str
    row: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"shard": self.shard, **self.row}


@dataclass(frozen=True)
class Selected:
    """A pair as one recipe selected it, in one version of that recipe's pairs.

    `pairs` are the fingerprints of that version (several when it was made again with the same content),
    `selection` the recipe's settings, `judge` the content of judge_identity, `row` the pair's row. Texts and MAS are
    those of the candidates it was selected from, None when the store no longer holds them.
    """

    recipe: str
    shard: str
    pairs: tuple[str, ...]
    created: str
    selection: Mapping[str, Any]
    judge: str | None
    row: Mapping[str, Any]
    chosen_text: str | None
    rejected_text: str | None
    chosen_mas: float | None
    rejected_mas: float | None
    trainings: tuple[Training, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        own = {**vars(self), "pairs": list(self.pairs)}
        return {**own, "trainings": [training.to_dict() for training in self.trainings]}


@dataclass(frozen=True)
class NoPair:
    """A prompt that gave a recipe no pair, or a record of the dataset that gave no prompt, and why."""

    item: str
    asset: str
    partition: str
    fingerprint: str
    reason: str
    detail: str | None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dict(vars(self))


@dataclass(frozen=True)
class Found:
    """What was asked for (`kind`: pair, prompt or image; `id` in full) and where it went.

    `unsearched` names trained adapters whose pairs are no longer in the store as they were trained on.
    """

    kind: str
    id: str
    prompts: tuple[Prompt, ...]
    selected: tuple[Selected, ...]
    without_pair: tuple[NoPair, ...]
    unsearched: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        lists = ("prompts", "selected", "without_pair")
        own = {name: [item.to_dict() for item in getattr(self, name)] for name in lists}
        return {"kind": self.kind, "id": self.id, **own, "unsearched": list(self.unsearched)}


def find_pair(manifests: Manifests, digits: str) -> Found:
    """Where a pair went, or all pairs of a prompt: `digits` is how a pair_id or a prompt_id begins.

    Raises StoreError for fewer than 6 hex digits, when nothing begins so, or when several ids do (it lists them).
    """
    digits = _checked(digits, "pair or prompt")
    prompts = _prompts(manifests, "prompt_id", digits) if len(digits) <= 32 else {}
    pair_ids: dict[str, str] = {}
    for artifact in manifests.all(PAIRS):
        table = artifact.table(columns=["pair_id", "prompt_id"])
        hits = table.filter(pc.starts_with(table["pair_id"], digits))
        pair_ids.update(zip(hits["pair_id"].to_pylist(), hits["prompt_id"].to_pylist(), strict=True))
    prompt_ids = {prompt.row["prompt_id"] for prompt in prompts.values()}
    found = _only_one(manifests, digits, "pair or prompt", [*pair_ids, *prompt_ids])
    if found in pair_ids:
        prompts = _prompts(manifests, "prompt_id", pair_ids[found])
        return _followed(manifests, "pair", found, prompts, lambda table: pc.equal(table["pair_id"], found))
    return _followed(manifests, "prompt", found, prompts, lambda table: pc.equal(table["prompt_id"], found))


def find_image(manifests: Manifests, digits: str) -> Found:
    """Where an image went; `digits` is how the sha256 of its file begins. Raises StoreError as `find_pair` does."""
    digits = _checked(digits, "image")
    records: dict[str, list[dict[str, Any]]] = {}
    for artifact in manifests.all("source_dataset"):
        files = [artifact.path(name) for name in artifact.manifest.files]
        table = columns_of(files, ["source", "record", "image_sha256"])
        records[artifact.data_version] = table.filter(pc.starts_with(table["image_sha256"], digits)).to_pylist()
    prompts = _prompts(manifests, "image_sha256", digits)
    known = [prompt.row["image_sha256"] for prompt in prompts.values()]
    known += [row["image_sha256"] for rows in records.values() for row in rows]
    found = _only_one(manifests, digits, "image", known)
    prompt_ids = pa.array(sorted({prompt.row["prompt_id"] for prompt in prompts.values()}), pa.string())
    items = {content: {f"{row['source']}#{row['record']}" for row in rows} for content, rows in records.items()}
    dropped = _dropped_records(manifests, items)
    answer = _followed(
        manifests, "image", found, prompts, lambda table: pc.is_in(table["prompt_id"], value_set=prompt_ids)
    )
    return Found(**{**vars(answer), "without_pair": (*dropped, *answer.without_pair)})


def _checked(digits: str, what: str) -> str:
    lower = digits.lower()
    if len(lower) < SHORTEST or not _HEX.fullmatch(lower):
        raise StoreError(f"{digits!r} is not how {what} ids begin: give at least {SHORTEST} hex digits")
    return lower


def _only_one(manifests: Manifests, digits: str, what: str, ids: Iterable[str]) -> str:
    known = sorted(set(ids))
    if not known:
        raise StoreError(f"no {what} in {manifests.store.location} has an id that begins with {digits!r}")
    if len(known) > 1:
        more = f" and {len(known) - _LISTED} more" if len(known) > _LISTED else ""
        listed = ", ".join(known[:_LISTED])
        raise StoreError(f"{digits!r} fits {len(known)} {what} ids: {listed}{more}; give more digits")
    return known[0]


_Where = tuple[ArtifactKey, str]


def _prompts(manifests: Manifests, column: str, digits: str) -> dict[_Where, Prompt]:
    """The prompts whose `column` begins with `digits`, by artifact of filtered_instructions and prompt_id."""
    found = {}
    for artifact in manifests.all("filtered_instructions"):
        mask = pc.starts_with(artifact.table(columns=[column])[column], digits)
        if pc.any(mask).as_py():
            for row in artifact.table().filter(mask).to_pylist():
                found[artifact.key, row["prompt_id"]] = Prompt(shard_of(artifact.key.partition), row)
    return found


def _followed(
    manifests: Manifests,
    kind: str,
    found: str,
    prompts: Mapping[_Where, Prompt],
    mask: Callable[[pa.Table], pa.ChunkedArray],
) -> Found:
    """What recipes and adapters made of the pairs that `mask` marks in tables with pair_id and prompt_id."""
    holders = {key for key, _ in prompts}
    prompt_ids = {prompt_id for _, prompt_id in prompts}
    versions: dict[tuple[str, ...], list[Artifact]] = {}
    without_pair = []
    for artifact in manifests.all(PAIRS):
        candidates = _input(manifests, artifact, "candidates")
        instructions = _input(manifests, candidates, "filtered_instructions")
        if instructions and instructions.key not in holders:
            continue
        without_pair += _dropped(artifact, prompt_ids)
        if pc.any(mask(artifact.table(columns=["pair_id", "prompt_id"]))).as_py():
            content = candidates.data_version if candidates else ""
            versions.setdefault((artifact.key.partition, artifact.data_version, content), []).append(artifact)
    selected = [item for version in versions.values() for item in _selected(manifests, version, mask)]
    trainings = _trainings(manifests, selected)
    distinct = {(prompt.shard, prompt.row["prompt_id"], prompt.row["source_id"]): prompt for prompt in prompts.values()}
    return Found(
        kind=kind,
        id=found,
        prompts=tuple(distinct.values()),
        selected=tuple(
            Selected(**{**vars(item), "trainings": tuple(trainings.get((item.pairs, item.row["pair_id"]), ()))})
            for item in selected
        ),
        without_pair=tuple(without_pair),
        unsearched=tuple(
            str(adapter.key)
            for adapter in manifests.all(ADAPTER)
            if not all(manifests.used(ref) for ref in manifests.inputs(adapter, PAIRS))
        ),
    )


def _selected(
    manifests: Manifests, version: list[Artifact], mask: Callable[[pa.Table], pa.ChunkedArray]
) -> list[Selected]:
    first = version[0]
    table = first.table()
    rows = table.filter(mask(table)).to_pylist()
    wanted = {row[name] for row in rows for name in ("chosen_id", "rejected_id")} - {None}
    candidates = _input(manifests, first, "candidates")
    mas = _input(manifests, first, "mas_table")
    texts = values(candidates, "text", wanted)
    scores = values(mas, "mas", wanted)
    recipe, judge = _input(manifests, first, "recipe_config"), _input(manifests, mas, "judge_identity")
    settings = recipe.manifest.settings if recipe else None
    return [
        Selected(
            recipe=recipe_of(first.key.partition),
            shard=shard_of(first.key.partition),
            pairs=tuple(artifact.fingerprint for artifact in version),
            created=first.manifest.created.isoformat(timespec="seconds"),
            selection=(settings or {}).get("selection") or {},
            judge=judge.data_version if judge else None,
            row=row,
            chosen_text=texts.get(row["chosen_id"]),
            rejected_text=texts.get(row["rejected_id"]),
            chosen_mas=scores.get(row["chosen_id"]),
            rejected_mas=scores.get(row["rejected_id"]),
        )
        for row in rows
    ]


def _trainings(manifests: Manifests, selected: Iterable[Selected]) -> dict[tuple[tuple[str, ...], str], list[Training]]:
    """The trainings on each selected pair, by fingerprints of the pairs and pair_id; each adapter is read once."""
    belongs: dict[ArtifactKey, dict[str, set[str]]] = {}
    for recipe_adapters in manifests.all(RECIPE_ADAPTERS):
        pairs = _pairs_of(manifests, recipe_adapters)
        for ref in manifests.inputs(recipe_adapters, ADAPTER):
            belongs.setdefault(key_of(ref), {})[recipe_adapters.fingerprint] = pairs
    by_version: dict[tuple[str, ...], set[str]] = {}
    for item in selected:
        by_version.setdefault(item.pairs, set()).add(item.row["pair_id"])
    found: dict[tuple[tuple[str, ...], str], list[Training]] = {}
    for adapter in manifests.all(ADAPTER):
        # An adapter that several recipes share names the pairs of one; each recipe's adapters name its own.
        by_recipe = belongs.get(adapter.key, {})
        trained_on = _pairs_of(manifests, adapter).union(*by_recipe.values())
        mine = {pairs: ids for pairs, ids in by_version.items() if trained_on.intersection(pairs)}
        if not mine or "training_log" not in adapter.manifest.tables:
            continue
        wanted = set().union(*mine.values())
        (steps, in_all), after = seen(adapter, wanted), margins(adapter, wanted)
        for pairs, ids in mine.items():
            for pair_id in sorted(ids & set(after)):
                training = Training(
                    recipe=recipe_of(adapter.key.partition),
                    seed=(adapter.manifest.settings or {}).get("seed"),
                    fingerprint=adapter.fingerprint,
                    created=adapter.manifest.created.isoformat(timespec="seconds"),
                    steps=steps.get(pair_id, ()),
                    seen_in_all=in_all,
                    margin=after[pair_id],
                    recipe_adapters=tuple(head for head, used in by_recipe.items() if used.intersection(pairs)),
                )
                found.setdefault((pairs, pair_id), []).append(training)
    return found


def _pairs_of(manifests: Manifests, adapters: Artifact) -> set[str]:
    """Fingerprints of the pairs that adapters name, of those the store holds as they were used."""
    return {ref.fingerprint for ref in manifests.inputs(adapters, PAIRS) if manifests.used(ref)}


def _dropped(artifact: Artifact, items: Iterable[str]) -> list[NoPair]:
    """Those of `items` that the artifact dropped: records of filtered_instructions, prompts of preference_pairs."""
    table = artifact.table("dropped")
    rows = table.filter(pc.is_in(table["item_id"], value_set=pa.array(sorted(items), pa.string()))).to_pylist()
    return [NoPair(row["item_id"], *artifact.key, row["reason"], row["detail"]) for row in rows]


def _dropped_records(manifests: Manifests, records: Mapping[str, set[str]]) -> list[NoPair]:
    """Why records gave no prompt, or their turns; `records` holds source#record by content of the source_dataset."""
    found = []
    for artifact in manifests.all("filtered_instructions"):
        contents = [ref.data_version for ref in manifests.inputs(artifact, "source_dataset")]
        mine = {item for content in contents for item in records.get(content, ())}
        if mine:
            items = artifact.table("dropped", ["item_id"])["item_id"].to_pylist()
            found += _dropped(artifact, [item for item in items if _record_of(item) in mine])
    return found


def _record_of(item: str) -> str:
    """The record of a dropped item, source#record, which may be one of its turns alone: source#record.turn."""
    source, _, number = item.partition("#")
    return f"{source}#{number.partition('.')[0]}"


def _input(manifests: Manifests, artifact: Artifact | None, asset: str) -> Artifact | None:
    """The only input of an asset, with the content that was used."""
    refs = manifests.inputs(artifact, asset) if artifact else []
    return manifests.used(refs[0]) if refs else None
