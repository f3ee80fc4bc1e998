"""Where the recipes of a study file stand in its text, as the YAML parser says: what an edit may touch."""

from pathlib import Path

import yaml

from m3po_dagster.study_errors import StudyError

RECIPES = "recipes"


class Entry:
    """A key of a block or flow mapping with its value: the mark where it starts, and where its value ends."""

    def __init__(self, start: yaml.Mark, end: yaml.Mark) -> None:
        self.start, self.end = start, end

    @property
    def lines(self) -> slice:
        """The lines of the file that it stands on."""
        # A block scalar ends where the next line begins, everything else inside its line.
        last = self.end.line - 1 if self.end.column == 0 and self.end.line > self.start.line else self.end.line
        return slice(self.start.line, last + 1)


class Mapping:
    """A mapping of the file: its style, the column of its keys, the end of its last value, and its entries by key."""

    def __init__(self, start: yaml.MappingStartEvent) -> None:
        self.flow: bool = bool(start.flow_style)
        self.column = start.start_mark.column
        self.end = start.end_mark
        self.entries: dict[str, Entry] = {}


class Layout:
    """The root mapping of a study file and that of its key `recipes`, None where it has no such key."""

    def __init__(self, root: Mapping, recipes: Mapping | None) -> None:
        self.root, self.recipes = root, recipes


def layout(text: str, path: Path) -> Layout:
    """Finds the mappings in a study file's text. Raises StudyError naming `path` where `recipes` is no mapping."""
    events = list(yaml.parse(text, Loader=yaml.SafeLoader))
    start = next(number for number, event in enumerate(events) if isinstance(event, yaml.MappingStartEvent))
    root, places = _mapping(events, start)
    at = places.get(RECIPES)
    if at is None:
        return Layout(root, None)
    if not isinstance(events[at], yaml.MappingStartEvent):
        raise StudyError(f"{path}: recipes is no plain mapping here: edit it by hand")
    return Layout(root, _mapping(events, at)[0])


def used_elsewhere(text: str, entries: dict[str, Entry], name: str) -> dict[str, list[str]]:
    """The anchors that the entry of this name defines, and which other entries, or "the rest of the file", use each."""

    def place(event: yaml.Event) -> str:
        at = event.start_mark.index
        inside = (one for one, entry in entries.items() if entry.start.index <= at < entry.end.index)
        return next(inside, "the rest of the file")

    defined: dict[str, str] = {}
    used: dict[str, list[str]] = {}
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        anchor, where = getattr(event, "anchor", None), place(event)
        if isinstance(event, yaml.AliasEvent):
            # An anchor may be defined again: an alias means the last one before it.
            if defined.get(anchor) == name != where and where not in used.setdefault(anchor, []):
                used[anchor].append(where)
        elif anchor:
            defined[anchor] = where
    return used


def _mapping(events: list[yaml.Event], start: int) -> tuple[Mapping, dict[str, int]]:
    """The mapping that begins at an event, and the number of the event that begins each of its values."""
    mapping, places = Mapping(events[start]), {}
    at = start + 1
    if not mapping.flow:
        # An anchor before the first key is where the mapping starts, and no key stands under it.
        mapping.column = events[at].start_mark.column
    while not isinstance(events[at], yaml.MappingEndEvent):
        key, value = at, _after(events, at)
        at = _after(events, value)
        mapping.end = _end(events, value, at) or events[key].end_mark
        name = getattr(events[key], "value", None)
        if name is not None:
            places[name] = value
            mapping.entries[name] = Entry(events[key].start_mark, mapping.end)
    return mapping, places


def _after(events: list[yaml.Event], start: int) -> int:
    """The number of the event after a whole key or value."""
    depth = 0
    for at in range(start, len(events)):
        depth += isinstance(events[at], yaml.CollectionStartEvent)
        depth -= isinstance(events[at], yaml.CollectionEndEvent)
        if depth == 0:
            return at + 1
    raise AssertionError("the parser closes what it opens")


def _end(events: list[yaml.Event], start: int, stop: int) -> yaml.Mark:
    """Where the value of some events ends in the text.

    The end of a block mapping or list is where the parser noticed it, lines later; that of its last value is exact.
    """
    exact = (yaml.AliasEvent, yaml.ScalarEvent)
    for event in reversed(events[start:stop]):
        if isinstance(event, exact) or (
            isinstance(event, yaml.CollectionEndEvent) and event.end_mark.index > event.start_mark.index
        ):
            return event.end_mark
    return events[start].end_mark
