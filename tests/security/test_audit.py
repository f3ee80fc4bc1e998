"""The audit of what is installed: what is pinned, licensed and known bad, over real metadata of packages."""

import importlib.util
import json
from importlib.metadata import distributions
from pathlib import Path

import pytest

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
    assert sorted(audit.unpinned(installed, pinned)) == [
        "other 2.0 is installed, constraints.txt pins 2.1: set the environment up anew",
        "third 3.0 is installed and constraints.txt pins no version: add third==3.0",
    ]


def test_a_licence_that_is_not_allowed_is_named(audit, installed, monkeypatch):
    (found,) = audit.unlicensed(installed)
    assert found.startswith("other 2.0 is under GPL-3.0: do without it, or add it to REVIEWED")
    monkeypatch.setitem(audit.REVIEWED, "other", "because")
    assert audit.unlicensed(installed) == []


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
