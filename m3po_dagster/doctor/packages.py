"""Python and the installed packages, against what this version asks for and what it was tested with."""

import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from m3po_dagster.doctor.findings import Finding, note, ok, problem

DISTRIBUTION = "m3po-dagster"
SET_UP = "Set the environment up anew (`make setup`)"
_SHOWN = 5


def constraints_file() -> Path | None:
    """The versions this was tested with: beside the package in a checkout, absent from an installed wheel."""
    path = Path(__file__).parents[2] / "constraints.txt"
    return path if path.is_file() else None


def check_packages(constraints: Path | None) -> Iterator[Finding]:
    """What is missing, too old or too new for this version; what differs from `constraints`, a pip constraints file."""
    yield _python()
    missing, unfit = [], []
    for requirement in _requirements():
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            missing.append(requirement.name)
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            unfit.append(f"{requirement.name} {version} (wanted {requirement.specifier})")
    if missing:
        yield problem("packages", f"not installed: {', '.join(missing)}", SET_UP)
    if unfit:
        yield problem("packages", f"of a version that does not fit: {', '.join(unfit)}", SET_UP)
    if constraints is None:
        yield note("versions", "no constraints.txt beside the package: exact versions are not compared")
        return
    other = [
        f"{name} {version} (tested with {pinned})"
        for name, pinned in _pins(constraints)
        if (version := _installed(name)) is not None and version != pinned
    ]
    if other:
        more = f" and {len(other) - _SHOWN} more" if len(other) > _SHOWN else ""
        yield note(
            "versions", f"{', '.join(other[:_SHOWN])}{more}", f"If something fails: {SET_UP[0].lower()}{SET_UP[1:]}"
        )
    else:
        yield ok("versions", f"every installed package is at the version of {constraints.name}")


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    wanted = metadata.metadata(DISTRIBUTION)["Requires-Python"]
    from packaging.specifiers import SpecifierSet

    if SpecifierSet(wanted).contains(version):
        return ok("python", version)
    return problem("python", f"{version}, wanted {wanted}", SET_UP)


def _requirements() -> list:
    """What the distribution asks for without extras."""
    from packaging.requirements import Requirement

    found = [Requirement(text) for text in metadata.requires(DISTRIBUTION) or ()]
    return [one for one in found if one.marker is None or one.marker.evaluate({"extra": ""})]


def _pins(constraints: Path) -> Iterator[tuple[str, str]]:
    for line in constraints.read_text(encoding="utf-8").splitlines():
        name, equal, version = line.partition("#")[0].partition("==")
        if equal:
            yield name.strip(), version.strip()


def _installed(name: str) -> str | None:
    """The version without its local part: a CPU build of torch is the same version."""
    try:
        return metadata.version(name).partition("+")[0]
    except metadata.PackageNotFoundError:
        return None
