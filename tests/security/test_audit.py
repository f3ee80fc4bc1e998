"""The audit of what is installed: what is pinned, licensed and known bad, over real metadata of packages."""

import importlib.util
import json
import sys
import tomllib
from importlib.metadata import distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def audit():
    spec = importlib.util.spec_from_file_location("audit", ROOT / ".ci" / "audit.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Three packages as pip leaves their metadata."""
    for name, version, more in (
        ("Some_Package", "1.0+cpu", "License-Expression: MIT\n"),
        ("other", "2.0", "License: GPL-3.0\n"),
        ("third", "3.0", "Classifier: License :: OSI Approved :: BSD License\n"),
    ):
        folder = tmp_path / f"{name}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{more}\n")
    return list(distributions(path=[str(tmp_path)]))


def test_a_build_of_the_pinned_version_is_that_version(audit, installed):
    pinned = audit.pins("some-package==1.0  # why\nother==2.1\n# third==3.0\n")
    assert sorted(audit.unpinned(installed, pinned, {})) == [
        "other 2.0 is installed, constraints.txt pins 2.1: set the environment up anew",
        "third 3.0 is installed and constraints.txt pins no version: add third==3.0",
    ]


def test_a_licence_that_is_not_allowed_is_named(audit, installed, monkeypatch):
    (found,) = audit.unlicensed(installed, {})
    assert found.startswith("other 2.0 is under GPL-3.0: do without it, or add it to REVIEWED")
    monkeypatch.setitem(audit.REVIEWED, "other", "because")
    assert audit.unlicensed(installed, {}) == []


@pytest.mark.parametrize(
    ("licence", "may"),
    [
        ("MIT", True),
        ("Apache-2.0 AND Apache-2.0 WITH LLVM-exception AND BSD-2-Clause", True),
        ("GNU Library or Lesser General Public License (LGPL)", True),
        ("GPL-3.0 OR MIT", True),
        ("GPL-3.0 AND MIT", False),
        ("GNU General Public License v3 (GPLv3)", False),
        ("AGPL-3.0-only", False),
        ("Proprietary", False),
        ("", False),
    ],
)
def test_of_licences_one_chooses_and_keeps_all_parts(audit, licence, may):
    assert audit.allowed(licence) is may


CUDA_BUILD = {
    "torch": (
        "2.13.0",
        "sympy>=1.13.3",
        'cuda-toolkit[cublas,cufft]==13.0.3; platform_system == "Linux"',
        'cuda-bindings<14,>=13.0.3; platform_system == "Linux" and python_version < "3.15"',
        'nvidia-cudnn-cu13==9.20.0.48; platform_system == "Linux"',
        'triton==3.7.1; platform_system == "Linux" and python_version < "3.15"',
    ),
    "cuda-toolkit": (
        "13.0.3.0",
        "nvidia-cublas==13.1.1.3.*; sys_platform == 'linux' and extra == 'cublas'",
        "nvidia-nvjitlink<14,>=13.0.88; sys_platform == 'linux' and extra == 'cufft'",
        "nvidia-npp==13.0.1.2.*; sys_platform == 'linux' and extra == 'npp'",
    ),
    "cuda-bindings": ("13.5.0", "cuda-pathfinder>=1.4.2"),
    "cuda-pathfinder": ("1.9.1",),
    "nvidia-cudnn-cu13": ("9.20.0.48",),
    "nvidia-cublas": ("13.1.1.3",),
    "nvidia-nvjitlink": ("13.4.52",),
    "triton": ("3.7.1",),
}
"""{name: version and requirements} of torch's CUDA build as the standard index has it, shortened."""


def cuda_build(folder: Path, **others: str) -> list:
    """The packages of CUDA_BUILD as pip leaves their metadata, some in other versions or beside them."""
    packages = CUDA_BUILD | {
        name.replace("_", "-"): (version, *CUDA_BUILD.get(name.replace("_", "-"), ())[1:])
        for name, version in others.items()
    }
    for name, (version, *needs) in packages.items():
        made = folder / f"{name.replace('-', '_')}-{version}.dist-info"
        made.mkdir()
        licence = "License: BSD-3-Clause" if name == "torch" else "License: LicenseRef-NVIDIA-Proprietary"
        lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", licence]
        (made / "METADATA").write_text("\n".join([*lines, *(f"Requires-Dist: {need}" for need in needs)]) + "\n\n")
    return list(distributions(path=[str(folder)]))


@pytest.mark.skipif(sys.platform != "linux", reason="torch's requirements of CUDA's packages are Linux's")
def test_what_torch_s_cuda_build_brings_is_pinned_by_torch_and_reviewed(audit, tmp_path):
    installed = cuda_build(tmp_path)
    cuda = audit.cuda_of_torch(installed)
    assert sorted(cuda) == sorted(set(CUDA_BUILD) - {"torch"})
    assert audit.unpinned(installed, {"torch": "2.13.0"}, cuda) == []
    assert audit.unlicensed(installed, cuda) == []


@pytest.mark.skipif(sys.platform != "linux", reason="torch's requirements of CUDA's packages are Linux's")
def test_what_of_cuda_torch_did_not_ask_for_is_wrong(audit, tmp_path):
    installed = cuda_build(tmp_path, triton="3.6.0", nvidia_npp="13.0.1.2")
    cuda = audit.cuda_of_torch(installed)
    assert sorted(audit.unpinned(installed, {"torch": "2.13.0"}, cuda)) == [
        "nvidia-npp 13.0.1.2 is installed and constraints.txt pins no version: add nvidia-npp==13.0.1.2",
        "triton 3.6.0 is installed, torch needs triton==3.7.1: set the environment up anew",
    ]
    (found,) = audit.unlicensed(installed, cuda)
    assert found.startswith("nvidia-npp 13.0.1.2 is under LicenseRef-NVIDIA-Proprietary")


def test_every_package_that_an_extra_names_is_pinned(audit):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pinned = audit.pins((ROOT / "constraints.txt").read_text(encoding="utf-8"))
    wishes = [Requirement(wish) for some in project["optional-dependencies"].values() for wish in some]
    wishes += map(Requirement, project["dependencies"])
    named = {audit.normalised(wish.name): wish.specifier for wish in wishes}
    named.pop(audit.normalised(project["name"]))
    assert {name for name, wish in named.items() if not wish.contains(pinned.get(name, "0"))} == set()


def looked_up(name: str, *bad: str) -> dict:
    vulns = [{"id": one, "fix_versions": ["9.9"], "aliases": [], "description": "bad"} for one in bad]
    return {"name": name, "version": "1.0", "vulns": vulns}


def skipped(name: str) -> dict:
    return {"name": name, "skip_reason": f"Dependency not found and could not be audited: {name} (1.0)"}


@pytest.mark.parametrize(
    ("packages", "wrong", "told"),
    [
        ([looked_up("a"), looked_up("b")], [], "2 of 2 packages looked up"),
        (
            [looked_up("a", "GHSA-1", "GHSA-2")],
            ["a 1.0: GHSA-1, fixed in 9.9", "a 1.0: GHSA-2, fixed in 9.9"],
            "1 of 1",
        ),
        ([looked_up("a"), skipped("b")], [], "1 of 2 packages looked up; not b"),
        ([skipped("a"), skipped("b")], [], "NONE of 2 packages looked up"),
        ([], [], "NONE of 0 packages looked up"),
    ],
)
def test_what_was_not_looked_up_is_never_told_as_sound(audit, packages, wrong, told):
    found, said = audit.known_bad({"dependencies": packages, "fixes": []})
    assert found == wrong and told in said


@pytest.mark.parametrize("found", ["", json.dumps({"dependencies": [looked_up("a", "X")]})])
def test_it_ends_with_1_where_something_is_wrong(audit, installed, tmp_path, monkeypatch, capsys, found):
    (tmp_path / "advisories.json").write_text(found)
    monkeypatch.setattr(audit, "distributions", lambda: installed)
    assert audit.main(tmp_path / "advisories.json") == 1
    said = capsys.readouterr().out
    assert "3 installed packages" in said and said.count("WRONG: ") == (5 if found else 4)


def test_it_ends_with_0_where_nothing_is(audit, installed, tmp_path, monkeypatch, capsys):
    (tmp_path / "constraints.txt").write_text("Some_Package==1.0\nother==2.0\nthird==3.0\n")
    monkeypatch.setattr(audit, "distributions", lambda: installed)
    monkeypatch.setattr(audit, "CONSTRAINTS", tmp_path / "constraints.txt")
    monkeypatch.setitem(audit.REVIEWED, "other", "because")
    assert audit.main(None) == 0 and "WRONG" not in capsys.readouterr().out
