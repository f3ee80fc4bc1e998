"""Adds recipes to a study file, or takes one out, and leaves every other byte of it as it is.

    add_recipe(Path("studies/easy_scenes.yaml"), "m3po_alpha1", {"selection": {...}, "training": {...}})

The YAML parser says where the recipes end; new ones are written there. So comments, order, quotes, anchors and
aliases stay, and a study that extends another gets a `recipes` of its own when it has none. The result counts only if
`load_study` reads it as the old study with the recipes more or less.
"""

import difflib
import hashlib
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from m3po_dagster.study import Recipe, Study, load_study
from m3po_dagster.study_errors import StudyError
from m3po_dagster.study_layout import RECIPES, layout, used_elsewhere
from m3po_dagster.study_layout import Mapping as MappingInFile

_STEP = 2


_ONE_AT_A_TIME = threading.Lock()


class _Dumper(yaml.SafeDumper):
    """Writes settings that several recipes share out in full: an anchor of ours would bind them to each other."""

    def ignore_aliases(self, data: object) -> bool:
        return True


@dataclass(frozen=True)
class Edit:
    """A study file before and after an edit, and the study as it is then."""

    path: Path
    before: str
    after: str
    study: Study

    def difference(self) -> str:
        """The lines that the edit changes, as a unified diff."""
        sides = (self.before.splitlines(keepends=True), self.after.splitlines(keepends=True))
        return "".join(difflib.unified_diff(*sides, str(self.path), str(self.path)))


def add_recipe(path: str | Path, name: str, recipe_settings: Mapping[str, Any], unchanged_since: str = "") -> Study:
    """Adds recipe `name` with these settings to the study file and gives the study as it is then.

    `unchanged_since` is the sha256 of the file's bytes as its user saw it. Raises as `add_recipes`, and StudyError when
    the file changed since.
    """
    return add_recipes(path, {name: recipe_settings}, unchanged_since).study


def add_recipes(
    path: str | Path, recipes: Mapping[str, Mapping[str, Any]], unchanged_since: str = "", dry_run: bool = False
) -> Edit:
    """Adds recipes by name in one edit; with `dry_run` nothing is written.

    The file is replaced in one step. Raises StudyError, and leaves the file alone, when a name is taken or the result
    would not be valid; OSError when the file can't be read or its folder not written.
    """

    def edited(text: str, before: Study, path: Path) -> str:
        taken = [name for name in recipes if name in before.recipes]
        if taken:
            raise StudyError(f"{path} has a recipe {taken[0]!r} already: choose another name")
        return _with(text, {name: dict(settings) for name, settings in recipes.items()}, path)

    def expected(before: Study, after: Study) -> bool:
        own = {name: after.recipes.get(name) for name in recipes}
        given = {name: Recipe.model_validate(dict(settings)) for name, settings in recipes.items()}
        return own == given and after == before.model_copy(update={"recipes": {**before.recipes, **own}})

    what = "the recipe is" if len(recipes) == 1 else f"the {len(recipes)} recipes are"
    refusals = (f"{what} not added", "the recipes can't be added without changing others; add them by hand")
    return _edited(Path(path), edited, expected, refusals, unchanged_since, dry_run)


def remove_recipe(path: str | Path, name: str, dry_run: bool = False) -> Edit:
    """Takes a recipe out of the study file, with the comments inside it; comments above it stay.

    Nothing is touched but the file: what was made of the recipe stays in the store. Raises StudyError, and leaves the
    file alone, when the file itself has no such recipe, when another one uses what this one defines (an anchor), or
    when a study that the file extends has it too.
    """

    def edited(text: str, before: Study, path: Path) -> str:
        recipes = layout(text, path).recipes
        if name not in before.recipes or recipes is None or name not in recipes.entries:
            where = "the study that it extends has it" if name in before.recipes else f"it has {list(before.recipes)}"
            raise StudyError(f"{path} has no recipe {name!r} of its own: {where}")
        for anchor, users in used_elsewhere(text, recipes.entries, name).items():
            raise StudyError(
                f"recipe {name!r} is not removed: it defines &{anchor}, which {', '.join(users)} "
                f"{'uses' if len(users) == 1 else 'use'}; write out *{anchor} there first"
            )
        return _without(text, name, path)

    def expected(before: Study, after: Study) -> bool:
        left = {other: recipe for other, recipe in before.recipes.items() if other != name}
        return after == before.model_copy(update={"recipes": left})

    refusals = (
        f"recipe {name!r} is not removed, for without it the file is no study",
        f"recipe {name!r} can't be removed alone: a study that this one extends has it too, or another recipe uses it",
    )
    return _edited(Path(path), edited, expected, refusals, "", dry_run)


def _edited(
    path: Path,
    edited: Callable[[str, Study, Path], str],
    expected: Callable[[Study, Study], bool],
    refusals: tuple[str, str],
    unchanged_since: str,
    dry_run: bool,
) -> Edit:
    """Edits the file if the result is a study and the expected one; `refusals` say so of either."""
    with _ONE_AT_A_TIME:
        target = path.resolve()
        before = load_study(path)
        content = target.read_bytes()
        if unchanged_since and hashlib.sha256(content).hexdigest() != unchanged_since:
            raise StudyError(f"{path} was changed since it was shown: open Tune again, then save")
        text = content.decode("utf-8")
        new = edited(text, before, path)
        handle, unfinished = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".yaml", dir=target.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(new.encode("utf-8"))
                file.flush()
                os.fsync(file.fileno())
            try:
                after = load_study(unfinished)
            except StudyError as error:
                raise StudyError(f"{refusals[0]}: {str(error).replace(unfinished, str(path))}") from None
            if not expected(before, after):
                raise StudyError(f"{path}: {refusals[1]}")
            if target.read_bytes() != content:
                raise StudyError(f"{path} was changed by another program just now: look at it again, then save")
            if not dry_run:
                shutil.copymode(target, unfinished)
                os.replace(unfinished, target)
        finally:
            Path(unfinished).unlink(missing_ok=True)
    return Edit(path, text, new, after)


def _with(text: str, recipes: Mapping[str, Mapping[str, Any]], path: Path) -> str:
    """The file's text with the recipes in it."""
    found = layout(text, path)
    if found.recipes is None:
        return _put(text, found.root, {RECIPES: dict(recipes)})
    return _put(text, found.recipes, recipes)


def _put(text: str, mapping: MappingInFile, entries: Mapping[str, Any]) -> str:
    """The text with more keys in the mapping."""
    newline = _newline(text)
    lines = text.splitlines(keepends=True)
    line, column = mapping.end.line, mapping.end.column
    if mapping.flow:
        # JSON is YAML in braces.
        flow = json.dumps(entries, ensure_ascii=False)[1:-1]
        lines[line] = lines[line][:column] + (", " if mapping.entries else "") + flow + lines[line][column:]
        return "".join(lines)
    block = yaml.dump(dict(entries), Dumper=_Dumper, sort_keys=False, allow_unicode=True, indent=_STEP, width=10**6)
    added = "".join(" " * mapping.column + item + newline for item in block.splitlines())
    # A block scalar ends where the next line begins, everything else inside its line.
    at = line if column == 0 and line > 0 else line + 1
    head = "".join(lines[:at])
    if head and not head.endswith(("\n", "\r")):
        head += newline
    return head + added + "".join(lines[at:])


def _without(text: str, name: str, path: Path) -> str:
    """The text without a recipe of a block mapping; with the last one its key `recipes` goes."""
    found = layout(text, path)
    mapping, entry = found.recipes, found.recipes.entries[name]
    if len(mapping.entries) == 1:
        mapping, entry = found.root, found.root.entries[RECIPES]
    lines = text.splitlines(keepends=True)
    if mapping.flow or lines[entry.start.line][: entry.start.column].strip():
        raise StudyError(f"{path}: recipe {name!r} stands among others on its line: remove it by hand")
    del lines[entry.lines]
    return "".join(lines)


def _newline(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"
