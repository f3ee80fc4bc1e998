"""`m3po doctor parity` on a study's own prompts."""

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from m3po_dagster.cli.main import app
from m3po_dagster.method.generation.model import load_model
from m3po_dagster.method.generation.settings import ModelSettings
from m3po_dagster.study import load_study
from m3po_dagster.study_prompts import first_prompts
from m3po_dagster.world.write import write_world
from tests.served_generator import ServedGenerator

ROOT = Path(__file__).parents[2]
LLAVA = ROOT / "m3po_dagster" / "world" / "weights" / "llava"


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world") / "easy_scenes"
    write_world(folder, prompts=24, scenes_per_split=10)
    return folder


@pytest.fixture(scope="module")
def study_file(world, tmp_path_factory) -> Path:
    """The demo's study over a small world."""
    settings = yaml.safe_load((ROOT / "studies" / "easy_scenes.yaml").read_text())
    settings["dataset"]["sources"]["easy_scenes"] |= {
        "path": str(world / "instructions" / "llava_instruct.json"),
        "image_root": str(world / "instructions" / "images"),
    }
    settings["model"]["path"] = str(LLAVA)
    path = tmp_path_factory.mktemp("study") / "study.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    loaded = load_model(ModelSettings(path=str(LLAVA), device="cpu"))
    with ServedGenerator(loaded, tmp_path_factory.mktemp("pictures")) as running:
        yield running


def run(study_file, *arguments):
    return CliRunner().invoke(app, ["doctor", "parity", "--study", str(study_file), "--prompts", "2", *arguments])


def test_prompts_are_the_studys_first_each_with_an_image_of_its_own(study_file):
    prompts = first_prompts(load_study(study_file), 5)
    assert len(prompts) == len({prompt.image_path for prompt in prompts}) == 5
    assert all(prompt.open_image().size == (64, 64) for prompt in prompts)
    assert len(first_prompts(load_study(study_file), 1000)) < 1000


def test_a_server_that_agrees(study_file, server):
    server.change_logp = lambda logp: logp
    result = run(study_file, "--base-url", server.base_url, "--model", server.model, "--samples", "2")
    assert result.exit_code == 0, result.output
    assert "vllm-undeclared/undeclared against transformers/float32" in result.output
    assert "log-probs look raw" in result.output and "greedy answers: 2 of 2 the same text" in result.output


def test_one_that_does_not_fails_and_json_says_why(study_file, server):
    server.change_logp = lambda logp: logp - 0.3
    result = run(study_file, "--base-url", server.base_url, "--model", server.model, "--samples", "2", "--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert found["differences"]["mean"] == pytest.approx(0.3, abs=1e-3) and found["tolerance"] == 0.05
    assert found["problems"] == ["log-probs differ by 0.3000 nat a token on average, 0.05 is allowed"]
    assert "differ by 0.3000" in result.stderr


def test_what_can_not_be_compared_is_one_sentence(study_file):
    result = run(study_file)
    assert result.exit_code == 2 and "generator is no server" in result.stderr
    result = run(study_file, "--base-url", "http://127.0.0.1:9/v1?key=secret", "--model", "m")
    assert result.exit_code == 2 and "secret" not in result.output + result.stderr
