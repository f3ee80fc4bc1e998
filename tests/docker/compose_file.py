"""compose.yaml as compose sees it: variables filled in, files laid over each other. No engine is asked."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
VARIABLE = re.compile(r"\$\{(\w+):([-?])([^}]*)\}")
"""The two forms of interpolation that the files use: ${NAME:-default}, and ${NAME:?what it is} that must be given."""


@dataclass(frozen=True)
class Replaced:
    """What a later file puts in the place of an earlier one's: `!override {...}`; nothing for `!reset`."""

    value: object = None


class _Loader(yaml.SafeLoader):
    """YAML with compose's own two tags."""


_Loader.add_constructor("!override", lambda loader, node: Replaced(loader.construct_mapping(node, deep=True)))
_Loader.add_constructor("!reset", lambda loader, node: Replaced())


def load(variables: dict[str, str] | None = None, *files: str) -> dict:
    """The merged file; `variables` are what a user's environment or .env gives."""
    merged: dict = {}
    for name in files or ("compose.yaml",):
        text = VARIABLE.sub(lambda found: _filled_in(found, variables or {}), (DOCKER / name).read_text())
        merged = laid_over(merged, yaml.load(text, _Loader))
    return merged


def _filled_in(found: re.Match, variables: dict[str, str]) -> str:
    if given := variables.get(found[1]):
        return given
    if found[2] == "?":
        raise KeyError(f"{found[1]} must be given: {found[3]}")
    return found[3]


def laid_over(below: dict, above: dict) -> dict:
    """A mapping laid over another, key by key, as compose does with several files."""
    both = dict(below)
    for key, value in above.items():
        old = both.get(key)
        if isinstance(value, Replaced):
            both[key] = value.value
            if value.value is None:
                del both[key]
        else:
            both[key] = laid_over(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return both


def variables() -> set[str]:
    """The names of all variables that the compose files ask for."""
    return {name for path in DOCKER.glob("compose*.yaml") for name, _, _ in VARIABLE.findall(path.read_text())}


def mounts(service: dict) -> list[tuple[str, str, bool]]:
    """(source, target, read only) of a service's volumes in the short form; a source is a path or a volume's name."""
    found = []
    for text in service.get("volumes", ()):
        source, target, *mode = text.split(":")
        found.append((source, target, mode == ["ro"]))
    return found


def is_path(source: str) -> bool:
    """Whether a mount's source is a path and not a named volume."""
    return source.startswith(("/", "."))


def path_of(source: str) -> Path:
    """A path as compose takes it: relative to the file."""
    return Path(os.path.normpath(DOCKER / source))
