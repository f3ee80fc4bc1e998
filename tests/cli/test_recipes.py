"""`m3po recipes` and `m3po sweep`: what they write, what they say it costs, and how they refuse."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from m3po_dagster.cli.main import app
from m3po_dagster.storage.store import ArtifactStore
from m3po_dagster.storage.tables import ANSWERS
from m3po_dagster.study import load_study
from tests.lineage.lineage_world import Wanted, World
from tests.rewritten import rewrite

STUDY = """\
name: small  # the name
dataset: {sources: {toy: {format: llava_instruct, path: ./d.json, image_root: ./images}}}
model: {path: ./model}
judge: {scorers: [{kind: clip, name: clip, model: ./judge}]}
recipes:
  base: {}
  m3po:  # the paper
    selection: {rule: m3p, alpha: 0.5, delta: 0.1}
    training: &dpo {kind: dpo, learning_rate: 3.0e-4}
  ablation:
    selection: {rule: m3p, alpha: 0}
    training: *dpo
# the end
benchmarks:
  pope: {kind: pope, labels: {random: ./r.json}, image_root: ./images}
"""


@pytest.fixture
def path(tmp_path) -> Path:
    file = tmp_path / "study.yaml"
    file.write_text(STUDY)
    return file


def call(path: Path, *arguments: str, code: int = 0):
    options = ["--study", str(path)]
    if arguments[0] == "sweep" or arguments[1] == "add":
        options += ["--store", str(path.parent / "store")]
    result = CliRunner().invoke(app, [*arguments, *options])
    assert result.exit_code == code, result.output
    return result


def test_list_shows_settings_and_what_is_the_same(path):
    call(path, "recipes", "add", "twin", "--like", "ablation", "--delta", ".3", "--seeds", "0,1")
    rows = {row["recipe"]: row for row in json.loads(call(path, "recipes", "list", "--json").stdout)}
    assert rows["base"] == dict.fromkeys(("rule", "alpha", "delta", "training", "same as")) | {
        "recipe": "base",
        "seeds": [],
    }
    assert rows["m3po"] | {"seeds": None} == {
        "recipe": "m3po",
        "rule": "m3p",
        "alpha": 0.5,
        "delta": 0.1,
        "training": "dpo, learning_rate 0.0003",
        "seeds": None,
        "same as": None,
    }
    assert rows["twin"]["same as"] == "ablation" and rows["twin"]["seeds"] == [0, 1]
    text = call(path, "recipes", "list").stdout
    assert "4 recipes, 3 adapters to train for the 4 they ask for: equal ones are shared" in text
    assert [line.split("│")[-2].strip() for line in text.splitlines() if "twin" in line] == ["ablation"]


def test_add_writes_one_recipe_and_leaves_the_rest(path):
    added = call(path, "recipes", "add", "strong", "--alpha", ".75", "--set", "training.beta=0.2", "--seeds", "0,2")
    assert "strong" in added.stdout and "to train: 2 adapters by dpo" in added.stdout
    recipe = load_study(path).recipes["strong"]
    assert (recipe.selection.alpha, recipe.selection.delta, recipe.training.beta) == (0.75, 0.1, 0.2)
    assert recipe.training.learning_rate == 3e-4 and recipe.seeds == (0, 2)
    assert recipe.description == "m3po with alpha 0.75, beta 0.2"
    lines = path.read_text().splitlines()
    assert [line for line in STUDY.splitlines() if line not in lines] == []
    call(path, "recipes", "add", "slow", "--set", "training.learning_rate=1e-5", "--description", "mine")
    assert load_study(path).recipes["slow"].training.learning_rate == 1e-5
    assert load_study(path).recipes["slow"].description == "mine"


def test_add_says_what_it_left_out_and_what_it_equals(path):
    text = call(path, "recipes", "add", "v", "--set", "selection.rule=vanilla").stdout
    assert "selection.alpha of m3po is not taken over: rule vanilla has no use for it" in text
    text = call(path, "recipes", "add", "q", "--set", "training.preset=safe").stdout
    assert "training.learning_rate of m3po is not taken over: preset safe fills it" in text
    text = call(path, "recipes", "add", "again").stdout
    assert "= m3po (seeds 0)" in text and "nothing to train that the study does not train already" in text


def test_a_dry_run_shows_the_lines_and_leaves_the_file(path):
    text = call(path, "recipes", "add", "strong", "--alpha", "1", "--dry-run").stdout
    assert "+  strong:" in text and "would be added" in text and path.read_text() == STUDY
    text = call(path, "sweep", "--alpha", "0.25,1", "--dry-run").stdout
    assert "+  m3po_a0.25:" in text and "+  m3po_a1:" in text and path.read_text() == STUDY
    call(path, "recipes", "add", "strong", "--alpha", "1")
    before = path.read_text()
    assert "-  strong:" in call(path, "recipes", "remove", "strong", "--dry-run").stdout and path.read_text() == before


def test_sweep_adds_what_is_new_in_one_edit_and_names_what_is_not(path):
    facts = json.loads(call(path, "sweep", "--alpha", "0,.5,1", "--delta", "0,.1", "--seeds", "0,1,2", "--json").stdout)
    assert facts["added"] == ["m3po_a0.5_d0", "m3po_a1_d0", "m3po_a1_d0.1"] and facts["written"]
    assert facts["same"] == {"m3po_a0_d0": "ablation", "m3po_a0_d0.1": "ablation", "m3po_a0.5_d0.1": "m3po"}
    assert facts["cost"] == [{"kind": "dpo", "adapters": 9, "seconds": None, "trainings_in_store": 0}]
    assert facts["notes"] == [f"{name} lacks seeds 1, 2: add them to compare" for name in ("ablation", "m3po")]
    study = load_study(path)
    assert list(study.recipes)[3:] == facts["added"] and study.aliases() == {}
    text = call(path, "sweep", "--alpha", "0,.5,1", "--delta", "0,.1").stdout
    assert text.count("not added = ") == 6 and "nothing to train" in text
    assert "m3po_a1_d0               not added = m3po_a1_d0 (seeds 0, 1, 2)" in text


def test_the_cost_is_that_of_the_trainings_in_the_store(path, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    world = World(path.parent / "store")
    world.make(Wanted(seeds=(0, 1, 2)))
    for seed, seconds in enumerate((10.0, 20.0, 90.0)):
        (manifest,) = world.store.root.glob(f"adapter/m3po,{seed}/*/manifest.json")
        rewrite(manifest, seconds=seconds)
    words = "to train: 2 adapters by dpo, about {} s with their answers: 2 x {} s, the median of 3 in the store"
    assert words.format(40, 20) in call(path, "sweep", "--alpha", "0.25,1", "--dry-run").stdout
    # Two benchmarks of one adapter, one of another: 7 and 3 seconds, and the base model's own, which are nobody's.
    for number, (seed, seconds) in enumerate(((0, 3.0), (0, 4.0), (1, 3.0), (None, 90.0))):
        answers(world.store, seed, number, seconds)
    assert words.format(50, 25) in call(path, "sweep", "--alpha", "0.25,1").stdout
    sft = ("--like", "m3po", "--set", "training.kind=sft", "--set", "selection.rule=best_only")
    assert "by sft; the store has none of that kind" in call(path, "recipes", "add", "sft", *sft).stdout


def answers(store: ArtifactStore, seed: int | None, number: int, seconds: float) -> None:
    """Keeps an adapter's answers to a benchmark that took so long."""
    part, inputs = ("benchmark_answers", f"m3po|{seed}|{number}"), {}
    if seed is not None:
        (adapter,) = (one for one in store.list("adapter") if one.key.partition == f"m3po|{seed}")
        inputs = {"adapter": {**adapter.key._asdict(), "data_version": adapter.data_version}}
    with store.open(*part, f"{number:064}") as draft:
        kept = draft.commit({"data": (ANSWERS.schema.empty_table(), ANSWERS)}, code_version="1", inputs=inputs)
    rewrite(kept.folder / "manifest.json", seconds=seconds)


def test_remove_gives_the_file_back(path):
    call(path, "recipes", "add", "strong", "--alpha", "1")
    assert "stay in the store" in call(path, "recipes", "remove", "strong").stdout
    assert path.read_text() == STUDY


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("recipes", "add", "m3po"), "has a recipe 'm3po' already"),
        (("recipes", "add", "new", "--like", "nobody"), "no recipe 'nobody' to start from"),
        (("recipes", "add", "new", "--like", "base"), "'base' selects no pairs"),
        (("recipes", "add", "a|b"), "'a|b' can't be a name: letters A to Z, a to z, digits, _ . and - are allowed"),
        (("recipes", "add", "bad/name"), "'bad/name' can't be a name"),
        (("sweep", "--alpha", "1", "--prefix", "a b"), "'a b' can't be a name: letters"),
        (("recipes", "add", "new", "--alpha", "-1"), "recipes.new.selection.alpha"),
        (("recipes", "add", "new", "--set", "training.bta=1"), "Did you mean 'beta'"),
        (("recipes", "add", "new", "--set", "training.kind=ppo"), "recipes.new.training.kind: there is no 'ppo'"),
        (("recipes", "add", "new", "--set", "beta"), "write KEY=VALUE"),
        (("recipes", "add", "new", "--set", "beta=1"), "'beta' is no setting of a recipe"),
        (("recipes", "add", "new", "--set", "training.beta={"), "is no value as YAML has it"),
        (("recipes", "add", "new", "--seeds", "0;1"), "--seeds '0;1': write whole numbers"),
        (("recipes", "add", "new", "--seeds", "1,1"), "a seed stands twice"),
        (("recipes", "remove", "nobody"), "no recipe 'nobody' of its own"),
        (("recipes", "remove", "m3po"), "recipe 'm3po' is not removed: it defines &dpo, which ablation uses"),
        (("sweep",), "name the values of --alpha"),
        (("sweep", "--alpha", "a"), "write numbers with commas"),
        (("sweep", "--alpha", "-1"), "greater than or equal to 0"),
        (("sweep", "--alpha", "nan"), "recipe 'm3po_anan'"),
        (("sweep", "--alpha", "1", "--like", "base"), "'base' has no alpha and delta"),
        (("sweep", "--alpha", ",".join(str(n) for n in range(1, 100))), "102 are more than the 99"),
    ],
)
def test_what_can_not_be_done_is_one_sentence_and_the_file_stays(path, arguments, words):
    result = call(path, *arguments, code=2)
    assert words in result.stderr and "Traceback" not in result.stderr and result.stderr.startswith("error: ")
    assert path.read_text() == STUDY
