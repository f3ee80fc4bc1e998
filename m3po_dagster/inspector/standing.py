"""What is shown but not up to date: by the graph's own fingerprints, and by the study file as it is now."""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

from m3po_dagster.graph import Head, Part, standings
from m3po_dagster.identity import recipe_identity
from m3po_dagster.inspector.commands import Commands
from m3po_dagster.lineage.profile import flattened
from m3po_dagster.storage.artifact import Artifact
from m3po_dagster.study import Study

_NAMED = 5
_STATES = {
    "stale": "its inputs, settings or code changed since",
    "pending": "something that it stands on is not up to date",
    "blocked": "it failed a check that forbids to build on it",
}


@dataclass(frozen=True)
class Age:
    """`old` are the shown parts that `m3po status` would not call fresh, by what is wrong; `sentences` say so.

    Nothing outside the graph is looked at, except the recipes, which stand in the study file: `edited` says for each
    recipe that was edited since its pairs were made what was changed.
    """

    old: Mapping[Part, str]
    edited: Mapping[str, str]
    sentences: tuple[str, ...]


def age(
    study: Study,
    heads: Mapping[Part, Head],
    found: Mapping[Part, Artifact],
    shown: Collection[str],
    find: Callable[[str, str, str], Artifact | None],
    commands: Commands,
) -> Age:
    """How the parts of the assets `shown` stand. `found` are those that the store holds, `find` looks for others."""
    held = {part: head for part, head in heads.items() if part[0] not in shown or part in found}
    old = {
        item.part: _STATES[item.state]
        for item in standings(study, None, held)
        if item.state in _STATES and item.part[0] in shown
    }
    edited = {recipe: changes for recipe in study.recipes if (changes := _edits(study, recipe, found, find))}
    return Age(old, edited, tuple(_sentences(old, edited, commands)))


def _sentences(old: Mapping[Part, str], edited: Mapping[str, str], commands: Commands) -> Iterator[str]:
    for recipe, changes in edited.items():
        yield f"Recipe {recipe} was edited since its results were made ({changes}): run `{commands.run(recipe)}`."
    groups: dict[tuple[str, str], list[str]] = {}
    for (asset, key), why in old.items():
        groups.setdefault((asset, why), []).append(key)
    for (asset, why), keys in groups.items():
        more = f"`{commands.status()}` says more, `{commands.run()}` makes it again"
        yield f"{asset} is not up to date for {some(keys)}: {why}. {more}."


def _edits(
    study: Study,
    recipe: str,
    found: Mapping[Part, Artifact],
    find: Callable[[str, str, str], Artifact | None],
) -> str:
    """What differs between the recipe in the study file and the one that its pairs, or its config, were made with."""
    configs = {}
    for part, artifact in found.items():
        if part[0] == "preference_pairs" and part[1].partition("|")[0] == recipe:
            for item in artifact.manifest.inputs.values():
                if item.asset == "recipe_config":
                    configs[item.fingerprint] = find(item.asset, item.partition, item.fingerprint)
    if not configs:
        configs[""] = found.get(("recipe_config", recipe))
    now = dict(flattened(recipe_identity(study.recipes[recipe])))
    changes: dict[str, None] = {}
    for config in configs.values():
        if config is not None:
            was = dict(flattened(config.manifest.settings))
            for name in sorted({*was, *now}):
                if was.get(name) != now.get(name):
                    changes[f"{name} was {was.get(name, 'not there')}, now {now.get(name, 'not there')}"] = None
    return some(list(changes), "; ") if changes else ""


def some(names: list[str], separator: str = ", ") -> str:
    """The first few of the names."""
    return separator.join(names[:_NAMED]) + (f"{separator}..." if len(names) > _NAMED else "")
