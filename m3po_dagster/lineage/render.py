"""Lineage for a terminal: lines of plain text, and the tree."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from m3po_dagster.lineage.diff import TOPICS, Diff, Difference
from m3po_dagster.lineage.naming import Chosen
from m3po_dagster.lineage.pair_diff import KINDS, counts_by_shard
from m3po_dagster.lineage.profile import Profile, Version, flattened
from m3po_dagster.lineage.search import Found, NoPair, Selected
from m3po_dagster.lineage.training import Training
from m3po_dagster.lineage.tree import Node

SHOWN = 20
_WIDTH = 14
_SHARDS = 12


def printable(value: object) -> str:
    """Text with every character that could command a terminal, and every line break, as a space."""
    return "".join(character if character.isprintable() else " " for character in str(value))


def chosen_lines(chosen: Chosen) -> Iterator[str]:
    """Which adapter it is, why, and which others have the name."""
    manifest = chosen.artifact.manifest
    made = f"content {manifest.data_version[:12]}, made {manifest.created:%Y-%m-%d %H:%M:%S} UTC"
    yield _line("adapter", f"{manifest.asset}[{manifest.partition}] {manifest.fingerprint[:12]}, {made}")
    yield _line("chosen", chosen.reason)
    if chosen.others:
        listed = [f"{other.fingerprint[:12]} of {other.manifest.created:%Y-%m-%d %H:%M:%S}" for other in chosen.others]
        yield _line("same name", f"{len(listed)} more in this store: {_some(listed, 6)}")


def profile_lines(profile: Profile) -> Iterator[str]:
    """Recipe, training, pairs by shard, and the versions of what lies outside, a line each."""
    for version in profile.versions.get("recipe_config", ()):
        settings = version.settings if isinstance(version.settings, dict) else {}
        yield _line("recipe", f"{profile.recipe}: {_settings(settings.get('selection'))}")
    seeds = ", ".join(str(seed) for seed in profile.seeds)
    yield _line("training", _settings(profile.training))
    yield _line("seeds", seeds or "none trained in the store")
    if profile.shared_with:
        yield _line("the same as", f"{', '.join(profile.shared_with)}: one training serves both")
    shards = [f"{row['shard']} {'gone' if row['pairs'] is None else row['pairs']}" for row in profile.trained_on]
    if shards:
        yield _line("pairs", f"{profile.pairs:,} in {_count(len(shards), 'shard')}: {_some(shards, _SHARDS)}")
    for asset, describe in (("judge_identity", _judge), ("base_model", _files), ("source_dataset", _dataset)):
        for version in profile.versions.get(asset, ()):
            contents = ", ".join(content[:12] for content in version.contents)
            yield _line(TOPICS[asset], f"{contents}: {describe(version)}")
    if len(profile.versions.get("judge_identity", ())) > 1:
        yield _line("", "A shard's pairs keep the judge they were made with where a later one gives the same scores.")
    yield _line("libraries", ", ".join(f"{name} {'/'.join(found)}" for name, found in profile.libraries.items()))


def found_lines(found: Found, current: Collection[str] = ()) -> Iterator[str]:
    """Where a pair, a prompt or an image went; `current` holds fingerprints of the adapters that are current."""
    trainings = {training.fingerprint for item in found.selected for training in item.trainings}
    counts = [_count(len(found.prompts), "prompt"), _count(len(found.selected), "selected pair")]
    yield _line(found.kind, f"{found.id}: {', '.join(counts)}, {_count(len(trainings), 'adapter')} trained on")
    for prompt in found.prompts:
        row = prompt.row
        yield ""
        yield _line(
            "prompt", f"{row['prompt_id']}, shard {prompt.shard}, {row['source']} {printable(row['source_id'])}"
        )
        yield _line(
            "image", f"{printable(row['image_uri'])} {row['image_sha256'][:12]}, {row['width']}x{row['height']}"
        )
        for message in row["messages"]:
            yield _line(message["role"], printable(message["text"]))
        for item in found.selected:
            if item.row["prompt_id"] == row["prompt_id"] and item.shard == prompt.shard:
                yield from _selected_lines(item, current)
        for item in found.without_pair:
            if item.item == row["prompt_id"]:
                yield _without_line(item)
    placed = {(prompt.row["prompt_id"], prompt.shard) for prompt in found.prompts}
    for item in found.selected:
        if (item.row["prompt_id"], item.shard) not in placed:
            yield _line("prompt", f"{item.row['prompt_id']}, shard {item.shard}, no longer in the store")
            yield from _selected_lines(item, current)
    known = {prompt.row["prompt_id"] for prompt in found.prompts}
    yield from (_without_line(item) for item in found.without_pair if item.item not in known)
    if found.unsearched:
        yield _line("not searched", f"{', '.join(found.unsearched)}: their pairs are no longer in the store")


def diff_lines(diff: Diff, pairs: bool) -> Iterator[str]:
    """What differs, a line a setting, then pairs by shard; with `pairs` the first that differ."""
    for item in diff.differences:
        yield from _difference_lines(item)
    if diff.same_adapters:
        yield _line("adapters", "the same: both come to one training")
    if not diff.differences:
        yield _line("settings", "no difference in settings, versions or code")
    yield _line("pairs", ", ".join(f"{count:,} {kind}" for kind, count in diff.totals().items()))
    widths = [max(len(kind), 7) for kind in KINDS]
    heads = "  ".join(f"{kind:>{width}}" for kind, width in zip(KINDS, widths, strict=True))
    yield f"  {'shard':<10}  {heads}"
    for row in counts_by_shard(diff.pairs):
        cells = "  ".join(f"{row[kind]:>{width}}" for kind, width in zip(KINDS, widths, strict=True))
        yield f"  {row['shard']:<10}  {cells}"
    if pairs:
        yield from _pair_lines(diff)


def tree(node: Node) -> Any:
    """The lineage as a `rich` tree: each artifact spelled out once, what has no inputs with its settings."""
    from rich.text import Text
    from rich.tree import Tree

    root = Tree(Text(_label(node)))
    shown: set[tuple[str, ...]] = set()
    pending = [(root, node)]
    while pending:
        branch, current = pending.pop()
        if current.identity in shown:
            branch.label.append(", as above")
            continue
        shown.add(current.identity)
        settings = () if current.inputs else flattened(current.settings)
        for key, value in settings:
            branch.add(Text(f"{key}: {value}"))
        pending.extend(reversed([(branch.add(Text(_label(child))), child) for child in current.inputs]))
    return root


def _selected_lines(item: Selected, current: Collection[str]) -> Iterator[str]:
    judge = f", judge {item.judge[:12]}" if item.judge else ""
    pairs = ", ".join(fingerprint[:12] for fingerprint in item.pairs)
    yield ""
    yield _line("recipe", f"{item.recipe}: {_settings(item.selection)}{judge}")
    yield _line("pair", f"{item.row['pair_id'][:16]} in preference_pairs {pairs} of {item.created}")
    for side in ("chosen", "rejected"):
        text, mas = getattr(item, f"{side}_text"), getattr(item, f"{side}_mas")
        if item.row[f"{side}_id"] is not None:
            figures = f"MAS {_number(mas)}, log P {_number(item.row[f'ref_{side}_logp'])}"
            shown = "(text no longer in the store)" if text is None else printable(text)
            yield _line(side, f"{item.row[f'{side}_id'].split(':')[-1]:>3}: {figures}: {shown}")
    figures = ("m3p_score", "mas_gap", "logp_gap")
    yield _line("selected by", ", ".join(f"{name} {_number(item.row[name])}" for name in figures))
    for training in item.trainings:
        yield from _training_lines(training, item.recipe, current)
    if not item.trainings:
        yield _line("trained", "no adapter in this store")


def _training_lines(training: Training, recipe: str, current: Collection[str]) -> Iterator[str]:
    own = {training.fingerprint, *training.recipe_adapters}
    belongs = "".join(f", lora_adapter {fingerprint[:12]}" for fingerprint in training.recipe_adapters)
    now = ", current" if own.intersection(current) else ""
    shared = f" of {training.recipe}, which is the same" if training.recipe != recipe else ""
    adapter = f"seed {training.seed}, adapter {training.fingerprint[:12]}{shared}, of {training.created}"
    yield _line("trained", f"{adapter}{belongs}{now}")
    steps = ", ".join(str(step) for step in training.steps[:6]) + (" ..." if len(training.steps) > 6 else "")
    yield _line(
        "  weight", f"{len(training.steps)} of {training.seen_in_all} ({training.share:.2%}), step {steps or '-'}"
    )
    margin = training.margin
    changes = [
        f"{side} log P {_number(margin[f'{side}_logp_before'])} -> {_number(margin[f'{side}_logp_after'])}"
        for side in ("chosen", "rejected")
        if margin[f"{side}_logp_after"] is not None
    ]
    yield _line("  margin", ", ".join([f"reward margin {_number(margin['reward_margin'])}", *changes]))


def _without_line(item: NoPair) -> str:
    detail = f" ({printable(item.detail)})" if item.detail else ""
    where = f"{item.asset}[{item.partition}] {item.fingerprint[:12]}"
    return _line("dropped", f"{printable(item.item)} by {where}: {item.reason}{detail}")


def _difference_lines(item: Difference) -> Iterator[str]:
    if isinstance(item.first, list) and isinstance(item.second, list):
        yield _line(item.topic, "more than one version:")
        for side in (item.first, item.second):
            for settings in side:
                yield f"{'':{_WIDTH}}{'-' if side is item.first else '+'} {_settings(settings)}"
        return
    yield _line(item.topic, f"{item.key}: {_value(item.first)} -> {_value(item.second)}")


def _pair_lines(diff: Diff) -> Iterator[str]:
    rows = [row for row in diff.pairs.to_pylist() if row["kind"] != "same"]
    yield "\t".join(["kind", "shard", "prompt_id", "before", "after"])
    for row in rows[:SHOWN]:
        sides = [_answers(row, side) for side in (1, 2)]
        yield "\t".join([row["kind"], row["shard_2"] or row["shard_1"], row["prompt_id"], *sides])
    if len(rows) > SHOWN:
        yield f"... {len(rows) - SHOWN} more; --json prints all {len(rows)}"


def _answers(row: Mapping[str, Any], side: int) -> str:
    if row[f"pair_id_{side}"] is None:
        return "-"
    numbers = [row[f"{name}_id_{side}"] for name in ("chosen", "rejected")]
    return " over ".join(number.split(":")[-1] for number in numbers if number is not None)


def _label(node: Node) -> str:
    name = f"{node.asset}[{node.partition}]" if node.partition else node.asset
    counts = [f"{rows:,} {'rows' if table == 'data' else table}" for table, rows in node.rows.items()]
    if node.files:
        counts.append(f"{len(node.files)} files")
    code = f"code {node.code_version}" if node.code_version else ""
    facts = [node.fingerprint[:12], f"content {node.data_version[:12]}", code, *counts, node.remark]
    return f"{name}  {', '.join(fact for fact in facts if fact)}"


def _judge(version: Version) -> str:
    """Everything about the judge but hashes of its files and what a scorer's name says already."""
    kept = {
        key: value
        for key, value in flattened(version.settings)
        if ".files." not in f".{key}." and not key.endswith(".name") and value is not False
    }
    return _settings({key.replace(".settings.", "."): value for key, value in kept.items()})


def _files(version: Version) -> str:
    settings = version.settings if isinstance(version.settings, dict) else {}
    weights = [f"{name} {value[:12]}" for name, value in settings.get("files", {}).items() if "model" in name]
    return ", ".join(filter(None, [_settings(settings.get("settings")), *weights]))


def _dataset(version: Version) -> str:
    settings = version.settings if isinstance(version.settings, dict) else {}
    return "; ".join(_source(name, source) for name, source in (settings.get("sources") or {}).items())


def _source(name: str, source: Mapping[str, Any]) -> str:
    hashes = list((source.get("files") or {}).values())
    content = f"sha256 {hashes[0]}" if len(hashes) == 1 else _count(len(hashes), "file")
    return f"{name} {(source.get('settings') or {}).get('path', '')}, {content}"


def _settings(settings: Any, without: Collection[str] = ()) -> str:
    """Nested settings in one line; what is null, empty or off is left out."""
    kept = [(key, value) for key, value in flattened(settings) if key not in without and value is not False]
    return ", ".join(f"{key} {_value(value)}" for key, value in kept if value not in (None, {}, [])) or "none"


def _value(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, tuple):
        return ", ".join(_value(item) for item in value) or "none"
    if isinstance(value, str):
        return printable(value[:12] if len(value) == 64 else value)
    return f"{value:g}" if isinstance(value, float) else printable(value)


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def _some(items: Sequence[str], shown: int) -> str:
    return ", ".join(items[:shown]) + (f" and {len(items) - shown} more" if len(items) > shown else "")


def _line(name: str, text: str) -> str:
    return f"{name:<{_WIDTH}}{text}"
