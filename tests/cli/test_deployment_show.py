"""`m3po deployment show` as a person and a script see it."""

import json

import pytest
from typer.testing import CliRunner

from m3po_dagster.cli.deployment import app
from m3po_dagster.deployment import VARIABLE
from m3po_dagster.graph import STAGES


@pytest.fixture
def show(tmp_path, monkeypatch):
    """Runs the command over a deployment file of this text."""

    def run(text: str | None, *arguments: str):
        monkeypatch.delenv(VARIABLE, raising=False)
        if text is not None:
            (tmp_path / "deployment.yaml").write_text(text)
            monkeypatch.setenv(VARIABLE, str(tmp_path / "deployment.yaml"))
        return CliRunner().invoke(app, ["show", *arguments])

    return run


def test_without_a_file_every_step_is_in_process(show):
    said = show(None)
    assert said.exit_code == 0 and "executor in_process" in said.stdout and "dagster-" not in said.stdout
    assert "  in the process of its run, pool model" in said.stdout.splitlines()


def test_it_shows_what_each_kind_gets(show):
    said = show(
        "{executor: ray, steps: {default: {accelerator: A100, cpus: 8}, training: {count: 8, memory_gib: 512}}}"
    )
    lines = said.stdout.splitlines()
    training = lines[lines.index("training: lora_adapter") + 1]
    assert training == "  8 GPUs A100, 8 CPU, 512 GiB"
    assert "  1 GPU A100, 8 CPU" in lines and "  no GPU, 1 CPU" in lines
    assert any("accelerator_type:A100" in line for line in lines)


def test_json_has_every_asset_once_with_the_tag_of_its_executor(show):
    found = json.loads(show("{executor: k8s, groups: 9}", "--json").stdout)
    assert sorted(name for step in found["steps"].values() for name in step["assets"]) == sorted(STAGES)
    assert found["groups"] == 9 and all(
        list(step["tags"]) == ["dagster-k8s/config"] for step in found["steps"].values()
    )


@pytest.mark.parametrize(("executor", "pools"), [("in_process", {"model", None}), ("ray", {None}), ("k8s", {None})])
def test_the_pool_is_shown_where_it_bounds(show, executor, pools):
    found = json.loads(show(f"executor: {executor}", "--json").stdout)
    assert {step["pool"] for step in found["steps"].values()} == pools


def test_a_wrong_file_ends_it_with_a_sentence(show):
    said = show("executor: slurm")
    assert said.exit_code == 2 and "executor: Input should be" in said.stderr
