"""`m3po world`: what it writes, what it says, and how it refuses."""

import json

from typer.testing import CliRunner

from m3po_dagster.cli.world import app

RUNNER = CliRunner()


def test_write_says_what_lies_in_the_folder_and_is_idempotent(tmp_path):
    folder = tmp_path / "easy"
    arguments = ["write", "--out", str(folder), "--prompts", "12", "--scenes", "10", "--json"]
    first, second = RUNNER.invoke(app, arguments), RUNNER.invoke(app, arguments)
    assert first.exit_code == second.exit_code == 0 and first.stdout == second.stdout
    manifest = json.loads(first.stdout)
    assert manifest == json.loads((folder / "manifest.json").read_text())
    assert manifest["counts"]["instructions"]["usable_prompts"] == 12
    said = RUNNER.invoke(app, arguments[:-1]).stdout
    assert "12 usable prompts" in said and "5 defective records" in said


def test_write_refuses_a_folder_of_something_else(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    refused = RUNNER.invoke(app, ["write", "--out", str(tmp_path)])
    assert refused.exit_code == 2 and "not an embedded world" in refused.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_write_refuses_a_file_for_a_folder(tmp_path):
    (tmp_path / "easy").write_text("")
    refused = RUNNER.invoke(app, ["write", "--out", str(tmp_path / "easy")])
    assert refused.exit_code == 2 and "easy" in refused.stderr


def test_build_wants_to_know_what():
    refused = RUNNER.invoke(app, ["build"])
    assert refused.exit_code == 2 and "--base, --second-base, --judge, --assessor or --all" in refused.stderr
