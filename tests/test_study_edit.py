"""Recipes added to a study file, or taken out: everything else in the file stays, byte by byte."""

import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from m3po_dagster import study_edit
from m3po_dagster.study import load_study
from m3po_dagster.study_edit import add_recipe, add_recipes, remove_recipe
from m3po_dagster.study_errors import StudyError

ROOT = Path(__file__).parents[1]
RECIPE = {
    "description": "m3po: a 'copy' # not a comment",
    "selection": {"rule": "m3p", "alpha": 0.75, "delta": 0.2},
    "training": {"kind": "dpo", "beta": 0.2},
    "seeds": [0, 3],
}
HEAD = """\
# A study with comments.
name: small   # the name

dataset: {sources: {toy: {format: llava_instruct, path: ./d.json, image_root: ./images}}}
model: {path: ./model}
judge:
    scorers:
    -   {kind: clip, name: clip, model: ./judge}
"""
TAIL = """\
benchmarks:
  pope: {kind: pope, labels: {random: ./r.json}, image_root: ./images}
"""
M3PO = "  m3po:\n    selection: {rule: m3p}\n    training: {kind: dpo}\n"
RECIPES = {
    "block": "recipes:\n  base: {}\n  m3po:  # the paper\n    selection: {rule: m3p}\n    training: {kind: dpo}\n",
    "wide": """\
recipes:
      base: {}
      m3po:
         selection:
              rule: m3p
         training:
              kind: dpo   # last

# about the benchmarks
""",
    "anchors": """\
recipes:
  base: {}
  one:
    selection: &s {rule: m3p}
    training: &dpo
      kind: dpo
  two:
    selection: *s
    training: *dpo
""",
    "alias on a line of its own": """\
recipes:
  base: {}
  one:
    selection: &s {rule: m3p}
    training: &d {kind: dpo}
  two:
    training: *d
    selection:
      *s
""",
    "merge key": """\
recipes:
  base: {}
  one: &one
    selection: {rule: m3p}
    training: {kind: dpo}
  two:
    <<: *one
    seeds: [1]
""",
    "flow": "recipes: {base: {}, m3po: {selection: {rule: m3p}, training: {kind: dpo}}}\n",
    "flow over lines": """\
recipes: {
  base: {},  # nothing
  m3po: {selection: {rule: m3p}, training: {kind: dpo}},
  }
""",
    "block scalar": f"recipes:\n  base: {{}}\n{M3PO}    description: |\n      several\n\n      lines # no comment\n",
    "list at the end": f"recipes:\n  base: {{}}\n{M3PO}    seeds:\n    - 0\n    - 1\n",
    "anchor on recipes": f"recipes: &all\n  base: {{}}\n{M3PO}",
    "quoted": '"recipes":\n  \'base\': {}\n  "m3po":\n    selection: {rule: \'m3p\'}\n    training: {kind: "dpo"}\n',
    "empty base": f"recipes:\n{M3PO}  base: {{\n  }}\n",
}


def added(path: Path, before: str, name: str = "new") -> None:
    """Checks the file after an addition: only lines with the new recipe are new, and the study has it."""
    old = load_study(path)
    study = add_recipe(path, name, RECIPE)
    assert study == load_study(path)
    assert list(study.recipes) == [*old.recipes, name]
    assert study.model_copy(update={"recipes": old.recipes}) == old
    assert study.recipes[name].selection.alpha == 0.75 and study.recipes[name].seeds == (0, 3)
    after = path.read_bytes().decode()
    # The old text is the new one without what was put in, in one piece.
    start = next((n for n, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), len(before))
    size = len(after) - len(before)
    assert any(after[:at] + after[at + size :] == before for at in range(max(0, start - size), start + 1))


@pytest.mark.parametrize("style", RECIPES)
@pytest.mark.parametrize("last", [False, True], ids=["before others", "last"])
def test_every_style_of_file_keeps_all_that_was_there(tmp_path, style, last):
    path = tmp_path / "study.yaml"
    text = HEAD + TAIL + RECIPES[style] if last else HEAD + RECIPES[style] + TAIL
    path.write_text(text)
    added(path, text)


@pytest.mark.parametrize("style", ["block", "flow", "anchors"])
def test_no_newline_at_the_end_gets_one_for_the_recipe_alone(tmp_path, style):
    path = tmp_path / "study.yaml"
    text = (HEAD + TAIL + RECIPES[style]).rstrip("\n")
    path.write_text(text)
    old = load_study(path)
    add_recipe(path, "new", RECIPE)
    assert path.read_text().startswith(text[:-3])
    assert list(load_study(path).recipes) == [*old.recipes, "new"]


def test_windows_line_ends_stay(tmp_path):
    path = tmp_path / "study.yaml"
    text = (HEAD + RECIPES["block"] + TAIL).replace("\n", "\r\n")
    path.write_bytes(text.encode())
    added(path, text)
    assert b"\n" not in path.read_bytes().replace(b"\r\n", b"")


def test_the_embedded_study_takes_several(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_bytes((ROOT / "studies" / "easy_scenes.yaml").read_bytes())
    for name in ("new", "newer", "0.5"):
        added(path, path.read_bytes().decode(), name)
    assert list(load_study(path).recipes)[-3:] == ["new", "newer", "0.5"]


def test_json_is_a_study_too(tmp_path):
    import json

    path = tmp_path / "study.yaml"
    text = json.dumps(yaml.safe_load(HEAD + RECIPES["block"] + TAIL), indent=2)
    path.write_text(text)
    added(path, text)


def test_a_study_that_extends_another_gets_recipes_of_its_own(tmp_path):
    parent, child = tmp_path / "parent.yaml", tmp_path / "child.yaml"
    parent.write_text(HEAD + RECIPES["block"] + TAIL)
    text = "extends: ./parent.yaml\nname: child  # mine\n# the end\n"
    child.write_text(text)
    added(child, text)
    assert parent.read_text() == HEAD + RECIPES["block"] + TAIL
    assert "recipes:\n  new:\n" in child.read_text() and child.read_text().endswith("# the end\n")
    before = child.read_text()
    added(child, before, "another")
    assert child.read_text().count("recipes:") == 1
    with pytest.raises(StudyError, match="has a recipe 'm3po' already"):
        add_recipe(child, "m3po", RECIPE)


@pytest.mark.parametrize(
    ("name", "recipe", "words"),
    [
        ("m3po", RECIPE, "has a recipe 'm3po' already: choose another name"),
        ("a b", RECIPE, "not added"),
        ("", RECIPE, "not added"),
        ("new\nbase", RECIPE, "not added"),
        (
            "new",
            {"selection": {"rule": "m3p", "alpha": -1}, "training": {"kind": "dpo"}},
            "recipes.new.selection.alpha",
        ),
        ("new", {"selection": {"rule": "m3p"}}, "both selection and training"),
        ("new", {"unknown": 1}, "unknown key"),
    ],
)
def test_what_would_not_be_valid_is_refused_and_the_file_left_alone(tmp_path, name, recipe, words):
    path = tmp_path / "study.yaml"
    text = HEAD + RECIPES["block"] + TAIL
    path.write_text(text)
    with pytest.raises(StudyError, match=words) as refused:
        add_recipe(path, name, recipe)
    assert str(path) in str(refused.value) and ".study.yaml." not in str(refused.value)
    assert path.read_text() == text and os.listdir(tmp_path) == ["study.yaml"]


def test_recipes_that_are_an_alias_are_not_edited(tmp_path):
    path = tmp_path / "study.yaml"
    kept = "x: &r\n  base: {}\nrecipes: *r\n"
    path.write_text(HEAD + TAIL + kept)
    with pytest.raises(StudyError):
        add_recipe(path, "new", RECIPE)
    assert path.read_text() == HEAD + TAIL + kept


def test_a_file_changed_since_or_meanwhile_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "study.yaml"
    path.write_text(HEAD + RECIPES["block"] + TAIL)
    with pytest.raises(StudyError, match="was changed since it was shown"):
        add_recipe(path, "new", RECIPE, unchanged_since="0" * 64)
    real = study_edit._with

    def edited_by_another(*args):
        text = real(*args)
        path.write_text(path.read_text() + "# mine\n")
        return text

    monkeypatch.setattr(study_edit, "_with", edited_by_another)
    with pytest.raises(StudyError, match="by another program just now"):
        add_recipe(path, "new", RECIPE)
    assert path.read_text() == HEAD + RECIPES["block"] + TAIL + "# mine\n"
    assert os.listdir(tmp_path) == ["study.yaml"]


def test_the_files_rights_and_a_link_to_it_stay(tmp_path):
    target, link = tmp_path / "kept" / "study.yaml", tmp_path / "study.yaml"
    target.parent.mkdir()
    target.write_text(HEAD + RECIPES["block"] + TAIL)
    target.chmod(0o640)
    link.symlink_to(target)
    add_recipe(link, "new", RECIPE)
    assert link.is_symlink() and stat.S_IMODE(target.stat().st_mode) == 0o640
    assert "new" in load_study(target).recipes


def test_a_kill_while_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "study.yaml"
    text = HEAD + RECIPES["block"] + TAIL
    path.write_text(text)
    code = (
        "import os, sys\n"
        "from m3po_dagster import study_edit\n"
        "study_edit.os.replace = lambda *a: os._exit(9)\n"
        f"study_edit.add_recipe({str(path)!r}, 'new', {RECIPE!r})\n"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 9
    assert path.read_text() == text


def test_two_at_once_are_both_added(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(HEAD + RECIPES["block"] + TAIL, encoding="utf-8")
    names = [f"r{number}" for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: add_recipe(path, name, RECIPE), names))
    assert set(load_study(path).recipes) == {"base", "m3po", *names}


SEVERAL = {f"m3po_a{alpha}": {**RECIPE, "selection": {"rule": "m3p", "alpha": alpha}} for alpha in (0.1, 0.25, 1)}


@pytest.mark.parametrize("style", RECIPES)
def test_several_are_added_as_one_after_the_other_would_be(tmp_path, style):
    text = HEAD + RECIPES[style] + TAIL
    together, apart = tmp_path / "together.yaml", tmp_path / "apart.yaml"
    together.write_text(text)
    apart.write_text(text)
    edit = add_recipes(together, SEVERAL)
    for name, settings in SEVERAL.items():
        add_recipe(apart, name, settings)
    assert together.read_text() == apart.read_text() == edit.after and edit.before == text
    assert edit.study == load_study(apart) and list(edit.study.recipes)[-3:] == list(SEVERAL)


def test_one_that_is_refused_keeps_all_of_them_out(tmp_path):
    path = tmp_path / "study.yaml"
    text = HEAD + RECIPES["block"] + TAIL
    path.write_text(text)
    with pytest.raises(StudyError, match=r"the 4 recipes are not added.*recipes\.bad\.selection\.alpha"):
        add_recipes(path, {**SEVERAL, "bad": {**RECIPE, "selection": {"rule": "m3p", "alpha": -1}}})
    many = {f"r{number}": RECIPE for number in range(98)}
    with pytest.raises(StudyError, match=r"the 98 recipes are not added.*more than 99 recipes"):
        add_recipes(path, many)
    assert path.read_text() == text and os.listdir(tmp_path) == ["study.yaml"]


def test_a_dry_run_shows_the_lines_and_writes_nothing(tmp_path):
    path = tmp_path / "study.yaml"
    text = HEAD + RECIPES["block"] + TAIL
    path.write_text(text)
    edit = add_recipes(path, {"new": RECIPE}, dry_run=True)
    assert path.read_text() == text and os.listdir(tmp_path) == ["study.yaml"]
    changed = [line for line in edit.difference().splitlines()[2:] if line[0] in "+-"]
    assert changed[0] == "+  new:" and all(line[0] == "+" for line in changed)
    assert add_recipes(path, {"new": RECIPE}).after == edit.after == path.read_text()


BLOCK = [style for style in RECIPES if not style.startswith("flow")]


@pytest.mark.parametrize("style", BLOCK)
@pytest.mark.parametrize("last", [False, True], ids=["before others", "last"])
def test_what_was_added_is_taken_out_again_to_the_byte(tmp_path, style, last):
    path = tmp_path / "study.yaml"
    text = HEAD + TAIL + RECIPES[style] if last else HEAD + RECIPES[style] + TAIL
    path.write_text(text)
    add_recipes(path, SEVERAL)
    for name in reversed(SEVERAL):
        assert name not in remove_recipe(path, name).study.recipes
    assert path.read_text() == text


def test_a_recipe_goes_with_what_stands_in_it_and_leaves_what_stands_around(tmp_path):
    path = tmp_path / "study.yaml"
    before, own, after = "  base: {}\n  # above\n", "  m3po:  # inside\n    # inside too\n", "  # below\n"
    body = "    selection: {rule: m3p}\n    training: {kind: dpo}\n    description: |\n      several\n\n      lines\n"
    path.write_text(HEAD + "recipes:\n" + before + own + body + after + TAIL)
    edit = remove_recipe(path, "m3po", dry_run=True)
    assert "-  m3po:  # inside\n" in edit.difference() and "m3po" in load_study(path).recipes
    remove_recipe(path, "m3po")
    assert path.read_text() == HEAD + "recipes:\n" + before + after + TAIL == edit.after


def test_an_extending_study_loses_its_key_recipes_with_the_last_of_them(tmp_path):
    parent, child = tmp_path / "parent.yaml", tmp_path / "child.yaml"
    parent.write_text(HEAD + RECIPES["block"] + TAIL)
    text = "extends: ./parent.yaml\nname: child  # mine\n# the end\n"
    child.write_text(text)
    add_recipe(child, "new", RECIPE)
    with pytest.raises(StudyError, match="no recipe 'm3po' of its own: the study that it extends has it"):
        remove_recipe(child, "m3po")
    remove_recipe(child, "new")
    assert child.read_text() == text
    child.write_text(text + "recipes:\n  m3po: {seeds: [1]}\n")
    with pytest.raises(StudyError, match="can't be removed alone: a study that this one extends has it too"):
        remove_recipe(child, "m3po")


@pytest.mark.parametrize(
    ("style", "name", "words"),
    [
        ("block", "base", "for without it the file is no study.*base"),
        ("block", "nobody", r"no recipe 'nobody' of its own: it has \['base', 'm3po'\]"),
        ("anchors", "one", r"'one' is not removed: it defines &s, which two uses; write out \*s there first"),
        ("merge key", "one", r"'one' is not removed: it defines &\w+, which two uses"),
        ("flow", "m3po", "stands among others on its line: remove it by hand"),
        ("flow over lines", "m3po", "remove it by hand"),
    ],
)
def test_what_others_need_is_not_taken_out(tmp_path, style, name, words):
    path = tmp_path / "study.yaml"
    text = HEAD + RECIPES[style] + TAIL
    path.write_text(text)
    with pytest.raises(StudyError, match=words):
        remove_recipe(path, name)
    assert path.read_text() == text and os.listdir(tmp_path) == ["study.yaml"]
