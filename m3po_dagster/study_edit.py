"""Adds a recipe to a study file and leaves every other byte of it as it is.

    add_recipe(Path("studies/easy_scenes.yaml"), "m3po_alpha1", {"selection": {...}, "training": {...}})

The YAML parser says where the recipes end; the new one is written there. So comments, order, quotes, anchors and
aliases stay, and a study that extends another gets a `recipes` of its own when it has none. The result counts only if
`load_study` reads it as the old study with the one recipe more.
"""

import hashlib
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from m3po_dagster.study import Recipe, Study, load_study
from m3po_dagster.study_errors import StudyError

_STEP = 2


_ONE_AT_A_TIME = threading.Lock()


def add_recipe(path: str | Path, name: str, recipe_settings: Mapping[str, Any], unchanged_since: str = "") -> Study:
    """Adds recipe `name` with these settings to the study file and gives the study as it is then.

    `unchanged_since` is the sha256 of the file's bytes as its user saw it. The file is replaced in one step. Raises
    StudyError, and leaves the file alone, when the name is taken, the file changed since, or the result would not be
    valid; OSError when the file can't be read or its folder not written.
    """
    with _ONE_AT_A_TIME:
        return _added(Path(path), name, recipe_settings, unchanged_since)


def _added(path: Path, name: str, recipe_settings: Mapping[str, Any], unchanged_since: str) -> Study:
    target = path.resolve()
    before = load_study(path)
    content = target.read_bytes()
    if unchanged_since and hashlib.sha256(content).hexdigest() != unchanged_since:
        raise StudyError(f"{path} was changed since it was shown: open Tune again, then save")
    if name in before.recipes:
        raise StudyError(f"{path} has a recipe {name!r} already: choose another name")
    text = _inserted(content.decode("utf-8"), name, recipe_settings, path)
    handle, unfinished = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".yaml", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(text.encode("utf-8"))
            file.flush()
            os.fsync(file.fileno())
        try:
            after = load_study(unfinished)
        except StudyError as error:
            raise StudyError(f"the recipe is not added: {str(error).replace(unfinished, str(path))}") from None
        expected = before.model_copy(update={"recipes": {**before.recipes, name: after.recipes.get(name)}})
        if after != expected or after.recipes[name] != Recipe.model_validate(dict(recipe_settings)):
            raise StudyError(f"{path}: the recipe can't be added without changing others; add it by hand")
        if target.read_bytes() != content:
            raise StudyError(f"{path} was changed by another program just now: open Tune again, then save")
        shutil.copymode(target, unfinished)
        os.replace(unfinished, target)
    finally:
        Path(unfinished).unlink(missing_ok=True)
    return after


def _inserted(text: str, name: str, settings: Mapping[str, Any], path: Path) -> str:
    """The file's text with the recipe in it."""
    root, recipes = _mappings(text, path)
    if recipes is None:
        return _put(text, root, "recipes", {name: dict(settings)})
    return _put(text, recipes, name, dict(settings))


class _Mapping:
    """Where a mapping of the file stands: its style, the column of its keys, and the end of its last value."""

    def __init__(self, start: yaml.MappingStartEvent) -> None:
        self.flow: bool = bool(start.flow_style)
        self.empty = True
        self.column = start.start_mark.column
        self.end = start.end_mark


def _mappings(text: str, path: Path) -> tuple[_Mapping, _Mapping | None]:
    """The root mapping and that of its key `recipes`, if it has one. Raises StudyError."""
    open_ones: list[_Mapping | None] = []
    root = recipes = None
    is_key, last_key = True, ""
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            open_ones.pop()
        if isinstance(event, yaml.AliasEvent | yaml.ScalarEvent) or _closes_flow(event):
            for mapping in open_ones:
                if mapping is not None:
                    mapping.end, mapping.empty = event.end_mark, False
        if isinstance(event, yaml.MappingStartEvent):
            mapping = _Mapping(event)
            if not open_ones:
                root = mapping
            elif len(open_ones) == 1 and last_key == "recipes" and not is_key:
                recipes = mapping
            open_ones.append(mapping)
        elif isinstance(event, yaml.SequenceStartEvent):
            open_ones.append(None)
        if len(open_ones) == 1 and isinstance(
            event, yaml.ScalarEvent | yaml.AliasEvent | yaml.MappingEndEvent | yaml.SequenceEndEvent
        ):
            # At the root keys and values take turns; a nested value ends where its mapping or list does.
            if is_key:
                last_key = getattr(event, "value", "")
            elif last_key == "recipes" and recipes is None:
                raise StudyError(f"{path}: recipes is no plain mapping here: add the recipe by hand")
            is_key = not is_key
    return root, recipes


def _closes_flow(event: yaml.Event) -> bool:
    """Whether the event is the end of a mapping or list in braces or brackets, whose place in the file is exact."""
    if not isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
        return False
    return event.end_mark.index > event.start_mark.index


def _put(text: str, mapping: _Mapping, key: str, value: Mapping[str, Any]) -> str:
    """The text with one more key in the mapping."""
    newline = "\r\n" if "\r\n" in text else "\n"
    lines = text.splitlines(keepends=True)
    line, column = mapping.end.line, mapping.end.column
    if mapping.flow:
        # JSON is YAML in braces.
        flow = f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}"
        lines[line] = lines[line][:column] + ("" if mapping.empty else ", ") + flow + lines[line][column:]
        return "".join(lines)
    block = yaml.safe_dump({key: value}, sort_keys=False, allow_unicode=True, indent=_STEP, width=10**6)
    added = "".join(" " * mapping.column + item + newline for item in block.splitlines())
    # A block scalar ends where the next line begins, everything else inside its line.
    at = line if column == 0 and line > 0 else line + 1
    head = "".join(lines[:at])
    if head and not head.endswith(("\n", "\r")):
        head += newline
    return head + added + "".join(lines[at:])
