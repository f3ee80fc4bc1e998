"""`m3po lineage`: what the commands print, and how they refuse."""

import json

import dagster as dg
import pytest
from typer.testing import CliRunner

from m3po_dagster.cli.main import app
from m3po_dagster.current import FINGERPRINT_METADATA
from m3po_dagster.home import SETTINGS
from m3po_dagster.run_tags import STUDY
from tests.lineage.lineage_world import Wanted, World, digest


@pytest.fixture
def world(tmp_path, monkeypatch) -> World:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "no home"))
    return World(tmp_path / "store")


def call(world, *arguments: str, code: int = 0):
    result = CliRunner().invoke(app, ["lineage", *arguments, "--store", str(world.store.root)])
    assert result.exit_code == code, result.output
    return result


def asked(world, *arguments: str):
    return json.loads(call(world, *arguments, "--json").stdout)


def test_adapter_sums_up_then_draws_the_tree_down_to_the_dataset(world):
    made = world.make(Wanted(seeds=(0, 1)))
    adapter, dataset = made["lora_adapter", "m3po"], made["source_dataset", ""]
    lines = call(world, "adapter", "m3po").stdout.splitlines()
    assert lines[0].startswith(f"adapter       lora_adapter[m3po] {adapter.fingerprint[:12]}")
    assert lines[1] == "chosen        the only one of this name in the store"
    assert "recipe        m3po: alpha 0.5, rule m3p" in lines
    assert "seeds         0, 1" in lines
    (line,) = [line for line in lines if line.startswith("dataset")]
    assert dataset.data_version[:12] in line and dataset.manifest.settings["sources"]["scenes"]["files"]["0"] in line
    assert any("source_dataset" in line and dataset.fingerprint[:12] in line for line in lines)


def test_adapter_as_json_names_every_input_once(world):
    made = world.make(Wanted(seeds=(0, 1)))
    answer = asked(world, "adapter", "m3po")
    assert answer["adapter"]["fingerprint"] == made["lora_adapter", "m3po"].fingerprint
    assert answer["adapter"]["chosen_because"] == "the only one of this name in the store"
    assert answer["summary"]["pairs"] == sum(row["pairs"] for row in answer["summary"]["trained_on"])
    assert sorted(item["fingerprint"] for item in answer["artifacts"]) == sorted(a.fingerprint for a in made.values())
    for item in answer["artifacts"]:
        manifest = made[item["asset"], item["partition"]].manifest
        assert item["inputs"] == {
            name: {"fingerprint": ref.fingerprint, "data_version": ref.data_version}
            for name, ref in manifest.inputs.items()
        }
        assert item["rows"] == {name: entry.rows for name, entry in manifest.tables.items()}


def test_adapter_lists_its_pairs(world):
    made = world.make(Wanted())
    rows = [row for n in (0, 1) for row in made["preference_pairs", f"m3po|s{n}"].table().to_pylist()]
    answer = asked(world, "adapter", "m3po", "--pairs")
    assert [{name: row[name] for name in row if name != "shard"} for row in answer["pairs"]] == rows
    lines = call(world, "adapter", "m3po", "--pairs").stdout.splitlines()
    assert f"s0  {made['preference_pairs', 'm3po|s0'].fingerprint}" in lines
    assert sum(line.startswith(("s0\t", "s1\t")) for line in lines) == min(len(rows), 20)


def test_pair_and_image_say_who_saw_them(world, tmp_path):
    made = world.make(Wanted(seeds=(3,), epochs=2))
    row = made["preference_pairs", "m3po|s0"].table().to_pylist()[0]
    text = call(world, "pair", row["pair_id"][:12]).stdout
    adapter = made["adapter", "m3po|3"].fingerprint[:12]
    assert f"trained       seed 3, adapter {adapter}" in text and "  weight      2 of " in text
    assert "Answer" in text and "reward margin 3.6400" in text
    found = asked(world, "pair", row["pair_id"])
    (training,) = found["selected"][0]["trainings"]
    assert training["times"] == len(training["steps"]) == 2
    assert asked(world, "pair", row["prompt_id"])["selected"] == found["selected"]
    sha256 = found["prompts"][0]["image_sha256"]
    assert row["prompt_id"] in call(world, "image", sha256[:8]).stdout
    assert asked(world, "image", sha256)["id"] == sha256
    strange = tmp_path / "image.png"
    strange.write_bytes(b"no image of this store")
    assert digest("no image of this store") in call(world, "image", str(strange), code=1).stderr


def test_diff_says_which_adapters_it_compares_and_what_differs(world):
    first, second = world.make(Wanted(prompts=24)), world.make(Wanted(prompts=24, judge="lenient"))
    names = [made["lora_adapter", "m3po"].fingerprint[:16] for made in (first, second)]
    text = call(world, "diff", *names, "--pairs").stdout
    assert "judge         scorer.settings.strictness: strict -> lenient" in text
    answer = asked(world, "diff", *names, "--pairs")
    counts = answer["pairs"]
    assert f"pairs         {counts['same']} same, {counts['changed']} changed" in text
    assert [item["topic"] for item in answer["differences"]] == ["judge"]
    assert len(counts["listed"]) == counts["changed"] + counts["added"] + counts["removed"] > 0
    assert counts["changed"] == sum(row["changed"] for row in counts["by_shard"])
    assert "listed" not in asked(world, "diff", *names)["pairs"]


def test_a_name_that_could_mean_two_studies_is_refused_with_both(world):
    first, second = world.make(Wanted()), world.make(Wanted(dataset="streets"))
    for arguments in (("adapter", "m3po"), ("diff", "m3po", "m3po")):
        message = call(world, *arguments, code=1).stderr
        assert message.startswith("error: 2 adapters") and "--study" in message
        assert all(made["lora_adapter", "m3po"].fingerprint[:16] in message for made in (first, second))


def study_run(home, study: str, adapter) -> None:
    """A run of a study whose event makes `adapter` the current one of its recipe."""

    @dg.asset(name="lora_adapter", partitions_def=dg.StaticPartitionsDefinition(["m3po"]))
    def lora_adapter() -> dg.MaterializeResult:
        version = dg.DataVersion(adapter.data_version)
        return dg.MaterializeResult(metadata={FINGERPRINT_METADATA: adapter.fingerprint}, data_version=version)

    home.mkdir(exist_ok=True)
    (home / "dagster.yaml").write_text(SETTINGS)
    with dg.DagsterInstance.from_config(str(home)) as instance:
        assert dg.materialize([lora_adapter], instance=instance, partition_key="m3po", tags={STUDY: study}).success


def test_what_the_event_log_calls_current_names_the_study_it_was_run_for(world, tmp_path, monkeypatch):
    made = {"scenes": world.make(Wanted()), "streets": world.make(Wanted(dataset="streets"))}
    home = tmp_path / "home"
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    for study in ("streets", "scenes"):
        study_run(home, study, made[study]["lora_adapter", "m3po"])
        for name, part in (("m3po", ("lora_adapter", "m3po")), ("m3po|0", ("adapter", "m3po|0"))):
            answer = asked(world, "adapter", name)["adapter"]
            assert answer["fingerprint"] == made[study][part].fingerprint
            assert answer["chosen_because"].endswith(f"event log in {home}, from a run of the study {study}")
            assert len(answer["others_of_this_name"]) == 1


@pytest.mark.parametrize("text", ["a: [", "nonsense: 1", "- 1", "storage: {sqlite: {base_dir: /proc/none}}", None])
def test_an_event_log_that_can_not_be_read_is_one_line_and_the_answer_comes(world, tmp_path, monkeypatch, text):
    home = tmp_path / "home"
    (home / "history" / "runs").mkdir(parents=True)
    (home / "dagster.yaml").write_text(SETTINGS if text is None else text)
    for database in ("history/runs.db", "history/runs/index.db"):
        (home / database).write_text("no database" * 100)
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    row = world.make(Wanted())["preference_pairs", "m3po|s0"].table().to_pylist()[0]
    for arguments in (("pair", row["pair_id"]), ("adapter", "m3po")):
        result = call(world, *arguments)
        (line,) = result.stderr.splitlines()
        assert line.startswith(f"warning: nothing is called current: Dagster's event log in {home} can't be read: ")
        assert row["pair_id"] in result.stdout or "the only one of this name" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("image", "xyz"), "'xyz' is not how image ids begin: give at least 6 hex digits"),
        (("image", "images/none.png"), "there is no file 'images/none.png'"),
        (("adapter", "m3po|7"), "of the recipe 'm3po' there are m3po|0"),
        (("adapter", "nobody"), "no adapter"),
        (("pair", "xyz"), "at least 6 hex digits"),
        (("pair", "0123456789"), "no pair or prompt"),
        (("image", "0123456789"), "no image"),
        (("diff", "m3po", "nobody"), "no adapter"),
    ],
)
def test_what_is_not_there_is_one_sentence(world, arguments, words):
    world.make(Wanted())
    stderr = call(world, *arguments, code=1).stderr
    assert stderr.startswith("error: ") and words in stderr and "Traceback" not in stderr


def test_a_store_that_does_not_exist_is_not_made(tmp_path):
    world = World(tmp_path / "nothing")
    for arguments in (("pair", "0123456789"), ("image", "0123456789")):
        assert "there is no store" in call(world, *arguments, code=1).stderr
    assert not world.store.root.exists()
