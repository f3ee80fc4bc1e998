"""The commands on the pages are for the study and the store that are shown, wherever they are pasted."""

import html
import json
import re
import shlex
from pathlib import Path

import dagster as dg
import pytest
from made_study import MadeStudy, some_prompts
from typer.testing import CliRunner

from m3po_dagster.cli.main import app
from m3po_dagster.inspector.commands import Commands
from m3po_dagster.study import DEFAULT_STUDY


@pytest.fixture(autouse=True)
def nothing_chosen(monkeypatch):
    """No study and no store but those by themselves."""
    monkeypatch.delenv("M3PO_STUDY", raising=False)
    monkeypatch.delenv("M3PO_STORE", raising=False)


def commands(text: str) -> list[str]:
    """Everything between backticks or in code elements that begins as a command does."""
    found = re.findall(r"`([^`]*)`|<code>([^<]*)</code>", text)
    return [html.unescape(first or second) for first, second in found if "m3po " in first + second]


def test_what_a_command_finds_by_itself_is_left_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    here = Commands(tmp_path / DEFAULT_STUDY, str(tmp_path / ".m3po" / "store"))
    assert (here.run(), here.run("m3po"), here.status()) == ("m3po run", "m3po run --recipe m3po", "m3po status")
    monkeypatch.setenv("M3PO_STUDY", str(DEFAULT_STUDY))
    assert here.run() == "m3po run"
    # A shell that has another study by itself would run that one.
    monkeypatch.setenv("M3PO_STUDY", "studies/other.yaml")
    assert here.run() == f"m3po run --study {DEFAULT_STUDY}"


def test_another_study_and_another_store_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    other = Commands(tmp_path / "studies" / "my study.yaml", str(tmp_path / ".m3po" / "store"))
    assert other.run("flipped") == "m3po run --recipe flipped --study 'studies/my study.yaml'"
    assert other.status() == "m3po status --study 'studies/my study.yaml'"
    # It may have been set for the inspector alone.
    monkeypatch.setenv("M3PO_STUDY", "studies/my study.yaml")
    assert other.status() == "m3po status --study 'studies/my study.yaml'"
    elsewhere = Commands(tmp_path / DEFAULT_STUDY, str(tmp_path.parent / "a store"))
    assert elsewhere.run() == f"M3PO_STORE='{tmp_path.parent}/a store' m3po run --study {DEFAULT_STUDY}"
    for chosen in (elsewhere.store, Path(elsewhere.store).as_uri()):
        monkeypatch.setenv("M3PO_STORE", chosen)
        assert elsewhere.run() == f"m3po run --study {DEFAULT_STUDY}"


def test_every_command_on_the_pages_is_about_the_study_shown(made_study, client, monkeypatch):
    made_study.add_shard("s0", some_prompts(3))
    recipes = made_study.settings["recipes"]
    edited = {**recipes["m3po"], "selection": {**recipes["m3po"]["selection"], "alpha": 5}}
    made_study.settings["recipes"] = {**recipes, "m3po": edited}
    made_study.write()
    made_study.report("base_model", "", "1" * 64, "another model")
    client.watch.settle()
    pages = ("/", "/prompts", "/tune?recipe=m3po&saved=plain", "/answers?recipe=sft")
    found = {command for page in pages for command in commands(client.get(page).text)}
    wanted = ["run", "run --recipe base", "run --recipe m3po", "run --recipe plain", "run --recipe sft", "status"]
    end = f"--study {made_study.path}"
    assert found == {f"M3PO_STORE={made_study.store.root} m3po {words} {end}" for words in wanted}


def test_a_pasted_command_does_it_for_the_study_shown(tmp_path, monkeypatch):
    """The real command takes the words: it would make this study's recipe, with what this store holds."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    with dg.DagsterInstance.from_config(str(home)) as instance:
        study = MadeStudy(tmp_path, instance)
        study.add_shard("s0", some_prompts(3))
    variable, m3po, *words = shlex.split(Commands(study.path, study.store.location).run("plain"))
    name, _, value = variable.partition("=")
    assert m3po == "m3po"
    result = CliRunner(env={name: value, "DAGSTER_HOME": str(home)}).invoke(app, [*words, "--plan", "--json"])
    plan = json.loads(result.stdout)
    assert plan["study"] == "made" and "preference_pairs[plain|s1]" in plan["to make"]
    assert not any("m3po" in part for part in plan["to make"])
