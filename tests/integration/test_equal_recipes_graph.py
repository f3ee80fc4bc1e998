"""Recipes that come to the same training are trained once and asked once, through Dagster; lineage and gc follow."""

import json
import re
import subprocess
import sys
from collections import Counter
from copy import deepcopy

import dagster as dg
import pytest
import training_beside
from starlette.testclient import TestClient
from typer.testing import CliRunner

from m3po_dagster.cli.main import app
from m3po_dagster.current import complete, held_heads, read_heads
from m3po_dagster.export.made import Made
from m3po_dagster.export.model_card import model_card
from m3po_dagster.graph import upstream_of
from m3po_dagster.inspector.app import build_app
from m3po_dagster.inspector.watch import Watch
from m3po_dagster.lineage.diff import diff
from m3po_dagster.lineage.manifests import Manifests
from m3po_dagster.lineage.naming import Current, choose
from m3po_dagster.lineage.search import find_pair
from m3po_dagster.method.generation.sampler import TransformersEngine
from m3po_dagster.resources.study import StoreResource
from m3po_dagster.resources.trainer import TrainerResource
from m3po_dagster.runner import Selection

DPO = {"kind": "dpo", "learning_rate": 3e-4, "lora": {"r": 4, "alpha": 8}}
ABLATED = {"selection": {"rule": "m3p", "alpha": 0, "delta": 0.1}, "training": DPO, "seeds": [0]}
TWIN = {"selection": {"rule": "m3p", "alpha": 0.0, "delta": 0.3, "allow_bonus": True}, "training": DPO, "seeds": [0, 1]}
UP_TO_SCORES = Selection(assets=upstream_of("benchmark_scores"))


@pytest.fixture
def counted(monkeypatch):
    """Trainings by seed, and questions by whether the base model answers."""
    found: Counter = Counter()
    train, answer = TrainerResource.train, TransformersEngine.answer

    def trained(self, model, examples, settings, seed, *rest):
        found["trained", seed] += 1
        return train(self, model, examples, settings, seed, *rest)

    def answered(engine, prompts, *rest):
        found["asked of the base" if engine.loaded.slot.current is None else "asked"] += len(prompts)
        return answer(engine, prompts, *rest)

    monkeypatch.setattr(TrainerResource, "train", trained)
    monkeypatch.setattr(TransformersEngine, "answer", answered)
    return found


def with_recipes(small_study, **recipes) -> dict:
    changed = deepcopy(small_study)
    changed["recipes"] |= recipes
    return changed


def heads_of(project):
    with project.instance() as instance:
        return read_heads(instance)


def artifact(project, asset, partition):
    return project.store.find(asset, partition, heads_of(project)[asset, partition].fingerprint)


def run(project) -> None:
    assert [outcome.error for outcome in project.run(UP_TO_SCORES) if outcome.error] == []


def answers_of(project, recipe: str, seed: int) -> list[tuple]:
    rows = artifact(project, "benchmark_scores", recipe).table("answers").to_pylist()
    return [(row["benchmark"], row["question_id"], row["answer"]) for row in rows if row["seed"] == seed]


def test_the_same_training_runs_once_and_is_asked_once(copy_of_made, small_study, counted, tmp_path, monkeypatch):
    project = copy_of_made
    project.write(with_recipes(small_study, ablated=ABLATED, twin=TWIN))
    assert project.load().aliases() == {"twin": "ablated"}
    run(project)
    questions = len(answers_of(project, "base", 0))
    # Seed 0 is the first recipe's; the twin alone has a seed 1.
    assert counted == {("trained", 0): 1, ("trained", 1): 1, "asked": 2 * questions}
    assert {item.part[0] for item in project.unsettled()} == {"leaderboard"} and project.run(UP_TO_SCORES) == []
    ablated, twin = (artifact(project, "lora_adapter", name) for name in ("ablated", "twin"))
    assert ablated.fingerprint != twin.fingerprint
    places = {seed: item["partition"] for seed, item in twin.manifest.metadata["adapters"].items()}
    assert places == {"0": "ablated|0", "1": "ablated|1"}
    assert ablated.table().to_pylist() == [row for row in twin.table().to_pylist() if row["seed"] == 0]
    assert answers_of(project, "ablated", 0) == answers_of(project, "twin", 0)
    metrics = [
        {(row["benchmark"], row["rule"], row["metric"]): row["value"] for row in rows if row["seed"] == 0}
        for rows in (artifact(project, "benchmark_scores", name).table().to_pylist() for name in ("ablated", "twin"))
    ]
    assert metrics[0] == metrics[1] and metrics[0]

    with project.instance() as instance:
        shown = instance.fetch_materializations(dg.AssetKey("lora_adapter"), limit=2).records
    told = {one.asset_materialization.partition: one.asset_materialization.metadata for one in shown}
    assert told["twin"]["the same training as"].value == "ablated" and "the same training as" not in told["ablated"]

    lineage_knows_both(project, ablated, twin, tmp_path, monkeypatch)
    the_card_is_of_the_recipe_that_was_named(project)
    the_inspector_shows_both(project)


@pytest.mark.slow
def test_another_name_trains_nothing_and_gc_keeps_what_it_stands_on(copy_of_made, small_study, counted):
    project = copy_of_made
    project.write(with_recipes(small_study, ablated=ABLATED, twin=TWIN))
    run(project)
    twin = artifact(project, "lora_adapter", "twin")
    project.write(with_recipes(small_study, another={**TWIN, "description": "the same under another name"}))
    counted.clear()
    run(project)
    assert counted == {}
    assert artifact(project, "lora_adapter", "another").table().to_pylist() == twin.table().to_pylist()
    gc_keeps_what_any_of_them_needs(project)


def the_card_is_of_the_recipe_that_was_named(project) -> None:
    made = Made(Manifests(project.store), project.load(), StoreResource(root=project.root).identities())
    cards = {name: model_card(made, made.adapter(name, 0), merged=False) for name in ("ablated", "twin")}
    selections = {name: re.findall(r"^\| selection \| (.*) \|$", card, re.MULTILINE) for name, card in cards.items()}
    assert [len(found) for found in selections.values()] == [1, 1]
    assert "delta 0.1" in selections["ablated"][0] and "delta 0.3" in selections["twin"][0]
    shared = "The training is shared with recipe `ablated`"
    assert shared in cards["twin"] and "shared with" not in cards["ablated"]
    assert all("loss sigmoid" in card and "layout trl" in card for card in cards.values())


def lineage_knows_both(project, ablated, twin, tmp_path, monkeypatch) -> None:
    manifests = Manifests(project.store)
    heads = Current({part: head.fingerprint for part, head in heads_of(project).items()}, "the event log")
    for name, place in (("ablated|0", "ablated|0"), ("twin|0", "ablated|0"), ("twin|1", "ablated|1")):
        for current in (heads, None):
            assert choose(manifests, name, current).artifact.key.partition == place
    assert "comes to the same training" in choose(manifests, "twin|0", heads).reason
    compared = diff(manifests, ablated, twin)
    assert compared.same_adapters is False, "the twin has a seed more"
    assert set(compared.totals().values()) == {0, compared.first.pairs}
    assert compared.totals()["same"] == compared.first.pairs == compared.second.pairs > 0
    assert compared.second.shared_with == ("ablated",) and compared.first.shared_with == ()

    pair_id = artifact(project, "preference_pairs", "twin|s0").table()["pair_id"][0].as_py()
    by_recipe = {item.recipe: item for item in find_pair(manifests, pair_id).selected}
    seen = {
        name: {(item.seed, item.recipe): item.recipe_adapters for item in by_recipe[name].trainings}
        for name in ("ablated", "twin")
    }
    assert seen["ablated"] == {(0, "ablated"): (ablated.fingerprint,)}
    assert seen["twin"] == {(0, "ablated"): (twin.fingerprint,), (1, "ablated"): (twin.fingerprint,)}

    monkeypatch.setenv("DAGSTER_HOME", str(project.folder / "home"))
    printed = {}
    for arguments in (("adapter", "twin"), ("adapter", "twin|1"), ("pair", pair_id), ("diff", "ablated", "twin")):
        result = CliRunner().invoke(app, ["lineage", *arguments, "--store", project.root])
        assert result.exit_code == 0, result.output
        printed[arguments] = result.stdout
    assert "the same as   ablated: one training serves both" in printed["adapter", "twin"]
    assert "twin|1 comes to the same training" in printed["adapter", "twin|1"]
    assert "of ablated, which is the same" in printed["pair", pair_id]
    missing = CliRunner().invoke(app, ["lineage", "adapter", "twin|7", "--store", project.root])
    assert "of the recipe 'twin' there are twin|0, twin|1" in missing.stderr


def the_inspector_shows_both(project) -> None:
    with project.instance() as instance:
        watch = Watch(project.study_file, project.store, instance)
        client = TestClient(build_app(watch, 3001), base_url="http://127.0.0.1:3001")
        watch.settle()
        assert "the same training as ablated" in client.get("/").text
        pages = [client.get(f"/answers?recipe={name}&seed=0&benchmark=pope").text for name in ("ablated", "twin")]
        assert all("There are no benchmark answers" not in page and "has no adapter" not in page for page in pages)
        said = [re.findall(r"<h3>(?:ablated|twin)\b(.*?)</section>", page, re.DOTALL) for page in pages]
        assert said[0] == said[1] and len(said[0]) > 1
        assert "has no adapter of seed 1" not in client.get("/answers?recipe=twin&seed=1&benchmark=pope").text


def gc_keeps_what_any_of_them_needs(project) -> None:
    keep = {(*part, head.fingerprint) for part, head in heads_of(project).items()}
    project.store.gc(keep, dry_run=False, older_than=0)
    with project.instance() as instance:
        held = held_heads(instance, project.store)
    assert {("lora_adapter", "another"), ("benchmark_scores", "another")} <= set(held)
    whole = artifact(project, "lora_adapter", "another")
    assert complete(whole, project.store)
    # The adapter lies under the name of a recipe that is gone; without it the recipe's is made again.
    item = whole.manifest.metadata["adapters"]["0"]
    assert item["partition"] == "ablated|0"
    place = project.store.find(item["asset"], item["partition"], item["fingerprint"])
    kept = (place.folder / "manifest.json").read_bytes()
    (place.folder / "manifest.json").unlink()
    assert not complete(whole, project.store)
    (place.folder / "manifest.json").write_bytes(kept)
    assert complete(whole, project.store)


@pytest.mark.slow
def test_two_runs_at_once_train_one_adapter(copy_of_made, small_study):
    project = copy_of_made
    project.write(with_recipes(small_study, ablated=ABLATED, twin={**TWIN, "seeds": [0]}))
    told = project.folder / "told.txt"
    runs = [
        subprocess.Popen(
            [sys.executable, training_beside.__file__, project.study_file, project.root, name, told],
            env=project.environment(),
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in ("ablated", "twin")
    ]
    printed = [one.communicate(timeout=300)[0] for one in runs]
    assert [one.returncode for one in runs] == [0, 0]
    assert sorted(json.loads(text.splitlines()[-1]) for text in printed) == ["ablated", "twin"]
    lines = told.read_text().split()
    assert sorted(lines) == ["trains", "waits"], lines
