"""How the code location loads: quietly, quickly, without the libraries that only steps need."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "trl", "peft", "open_clip", "torchvision", "matplotlib", "pandas")


def in_new_process(code: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )


def test_definitions_load_with_warnings_as_errors_and_without_torch():
    done = in_new_process(
        "import sys, m3po_dagster.definitions as d\n"
        "d.defs.resolve_all_job_defs()\n"
        "d.defs.resolve_asset_graph()\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


PURE = ("method", "evaluation", "datasets", "storage")
# What rooms share by its name: the prompt, what a served judge is asked, which language a text is in.
DOORS = tuple(
    f"m3po_dagster.method.{name}" for name in ("prompt", "judging", "filtering.language", "filtering.languages")
)
MODULES = sorted(
    str(path.relative_to(ROOT).with_suffix("")).replace("/", ".")
    for room in PURE
    for path in (ROOT / "m3po_dagster" / room).rglob("*.py")
    if path.name != "__init__.py"
)


def test_pure_modules_import_neither_dagster_nor_torch():
    done = in_new_process(
        "import importlib, sys\n"
        f"for name in {MODULES!r}: importlib.import_module(name)\n"
        f"print([name for name in ('dagster', *{HEAVY!r}) if name in sys.modules])"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("room", PURE)
def test_pure_rooms_do_not_reach_into_each_other(room):
    done = in_new_process(
        "import ast, pathlib\n"
        f"room, rooms, doors = {room!r}, {PURE!r}, {DOORS!r}\n"
        "for path in sorted(pathlib.Path('m3po_dagster', room).rglob('*.py')):\n"
        "    for node in ast.walk(ast.parse(path.read_text())):\n"
        "        if isinstance(node, ast.ImportFrom) and (node.module or '').startswith('m3po_dagster.'):\n"
        "            other = node.module.split('.')[1]\n"
        "            if other in rooms and other != room and node.module not in doors:\n"
        "                print(path, node.module)"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""


def test_every_asset_has_a_group_a_description_with_its_section_and_kinds():
    from m3po_dagster.definitions import defs

    for spec in defs.resolve_all_asset_specs():
        assert spec.group_name != "default" and spec.description and spec.kinds, spec.key
    described = " ".join(spec.description for spec in defs.resolve_all_asset_specs())
    for section in ("3.2", "3.3", "3.4", "3.5", "3.6", "4.1"):
        assert f"section {section}" in described or f"sections {section}" in described
