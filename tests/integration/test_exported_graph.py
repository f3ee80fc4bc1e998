"""`m3po export` over a study that was really run: pairs, an adapter with its card, a merged model, a second round."""

import json
import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from typer.testing import CliRunner

from m3po_dagster.cli.main import app
from m3po_dagster.evaluation.board import Column, difference_text, mark
from m3po_dagster.export.folder import ExportError
from m3po_dagster.export.made import Made
from m3po_dagster.export.model import export_merged
from m3po_dagster.export.model_card import model_card
from m3po_dagster.export.pairs import FORMATS, export_pairs
from m3po_dagster.lineage.manifests import Manifests
from m3po_dagster.resources.study import StoreResource
from m3po_dagster.storage.errors import StoreError
from m3po_dagster.study import Study

WEIGHTS = Path(__file__).parents[2] / "m3po_dagster" / "world" / "weights"


def m3po(project, *arguments):
    """`m3po` in this process, over the project's study and store."""
    env = {name: project.environment()[name] for name in ("DAGSTER_HOME", "M3PO_STORE", "M3PO_STUDY")}
    return CliRunner().invoke(app, list(map(str, arguments)), env=env)


def of_study(project, study: Study) -> Made:
    """What the project's store holds of a study."""
    return Made(Manifests(project.store), study, StoreResource(root=project.root).identities())


@pytest.fixture(scope="module")
def made_of(made) -> Made:
    """What the run project's store holds of its study."""
    return of_study(made, made.load())


@pytest.fixture(scope="module")
def adapter(made, tmp_path_factory) -> Path:
    """The exported adapter of m3po."""
    out = tmp_path_factory.mktemp("export") / "adapter"
    done = m3po(made, "export", "m3po", "--adapter", "--out", out)
    assert done.exit_code == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def merged(made, tmp_path_factory) -> Path:
    """The base model with m3po's adapter merged in."""
    out = tmp_path_factory.mktemp("export") / "merged"
    done = m3po(made, "export", "m3po", "--merge", "--out", out)
    assert done.exit_code == 0, done.stderr
    return out


def test_a_recipes_pairs_are_all_there_by_name_shard_and_fingerprint(made, made_of, tmp_path):
    import datasets

    whole, shard, one = (tmp_path / name for name in ("whole", "shard", "one"))
    done = m3po(made, "export", "m3po", "--format", "trl", "--out", whole)
    assert done.exit_code == 0, done.stderr
    shards = made_of.pairs("m3po")
    wanted = [row for item in shards for row in item.pairs.table()["pair_id"].to_pylist()]
    rows = datasets.load_dataset(str(whole), split="train", cache_dir=str(tmp_path / "cache"))
    assert rows["pair_id"] == wanted and len(wanted) > 10
    assert f"{len(wanted)} pairs of 2 shards for trl" in done.stdout and "0 dropped" in done.stdout
    first = shards[0].pairs.table()["pair_id"].to_pylist()
    for name, out in (("m3po|s0", shard), (shards[0].pairs.fingerprint[:10], one)):
        done = m3po(made, "export", name, "--format", "rlaif-v", "--out", out)
        assert done.exit_code == 0, done.stderr
        rows = datasets.load_dataset(str(out), split="train", cache_dir=str(tmp_path / "cache"))
        assert rows["idx"] == first


def test_what_the_study_does_not_ask_for_now_is_not_exported(copy_of_made, small_study, tmp_path):
    changed = json.loads(json.dumps(small_study))
    changed["recipes"]["m3po"]["selection"]["alpha"] = 0.75
    copy_of_made.write(changed)
    for options in (["--format", "trl"], ["--adapter"]):
        done = m3po(copy_of_made, "export", "m3po", *options, "--out", tmp_path / "out")
        assert done.exit_code == 1 and "as the study asks: bring it up to date" in done.stderr
    assert not (tmp_path / "out").exists()
    done = m3po(copy_of_made, "export", "sft", "--adapter", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.stderr


def test_recipes_without_pairs_or_rejected_answers_say_so(made_of, tmp_path):
    with pytest.raises(ExportError, match="'base' selects no pairs"):
        made_of.pairs("base")
    with pytest.raises(ExportError, match="there is no shard 's7'; there are s0, s1"):
        made_of.pairs("m3po|s7")
    with pytest.raises(ExportError, match="'sft' selects single answers, no pairs"):
        export_pairs(
            made_of.pairs("sft"), made_of.study, FORMATS["trl"], "embed", tmp_path / "out", lambda done, total: None
        )


def test_an_adapter_is_chosen_by_recipe_seed_or_fingerprint(made_of):
    chosen = made_of.adapter("m3po")
    assert (chosen.seed, chosen.recipe, chosen.artifact.key.partition) == (0, "m3po", "m3po|0")
    same = made_of.adapter(chosen.artifact.fingerprint[:12])
    assert (same.artifact.key, same.recipe, same.head.key) == (chosen.artifact.key, None, chosen.head.key)
    for name, seed, why in (("m3po", 3, "no seed 3; it has 0"), ("base", None, "trains no adapter")):
        with pytest.raises(ExportError, match=why):
            made_of.adapter(name, seed)
    with pytest.raises(StoreError, match="no artifact"):
        made_of.adapter("m3p0")


def test_the_adapters_card_tells_data_judge_recipe_metrics_and_lineage(made_of, adapter):
    card, chosen = ModelCard.load(adapter / "README.md"), made_of.adapter("m3po")
    assert (card.data.base_model, card.data.library_name, card.data.base_model_relation) == ("llava", "peft", "adapter")
    scores = {
        (row["benchmark"], row["metric"]): row for row in made_of.part("benchmark_scores", "m3po").table().to_pylist()
    }
    assert len(card.data.eval_results) > 5
    for result in card.data.eval_results:
        assert result.metric_value == round(scores[result.dataset_type, result.metric_type]["value"], 4)
    text = card.text
    board = {
        (row["recipe"], row["benchmark"], row["metric"]): row
        for row in made_of.part("leaderboard").table().to_pylist()
        if row.get("against", "base") == "base"
    }
    row = board["m3po", "pope", "accuracy"]
    shown = f"{difference_text(row, Column('pope', 'accuracy', 'POPE accuracy ↑', 1, 1))} {mark(row)}".rstrip()
    (line,) = (line for line in text.splitlines() if line.startswith("| POPE accuracy"))
    assert f"| {board['base', 'pope', 'accuracy']['mean']:.1f} |" in line
    assert f"| {shown} | images |" in line
    pairs = made_of.trained_on(chosen.artifact)
    for artifact in (chosen.artifact, *(part for item in pairs for part in (item.pairs, item.judge, item.dataset))):
        assert f"| `{artifact.fingerprint}` | `{artifact.data_version}` |" in text
    assert f"| examples | {sum(item.pairs.manifest.tables['data'].rows for item in pairs)} |" in text
    assert "kind dpo" in text and "loss sigmoid" in text and "layout trl" in text
    assert (
        "DPO teaches the preference" in text
        and "| pairs selected |" in text
        and "scene_judge.weight 1" in text
        and "allow_bonus False, alpha 0.5" in text
    )
    lineage = json.loads((adapter / "lineage.json").read_text(encoding="utf-8"))
    assert lineage["fingerprint"] == chosen.artifact.fingerprint and len(lineage["trained_on"]) == 2


def test_the_card_of_sft_speaks_of_answers(made_of):
    text = model_card(made_of, made_of.adapter("sft"), merged=False)
    assert "SFT teaches those that its recipe chooses" in text and "prefers" not in text.split("## Loading")[0]
    assert "| answers selected |" in text and "pairs" not in text.split("## Data")[1].split("## Training")[0]
    assert "| reference" not in text


def test_a_card_says_when_nothing_measured_the_adapter(copy_of_made, small_study, tmp_path):
    copy_of_made.write({**small_study, "answers": {"max_new_tokens": 7}})
    done = m3po(copy_of_made, "export", "m3po", "--adapter", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.stderr
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.eval_results is None and "Not measured" in card.text


def test_the_cards_own_lines_load_an_adapter_that_is_the_stores(made_of, adapter):
    from safetensors.torch import load_file

    found = _loaded(adapter, {'"llava"': f'"{WEIGHTS / "llava"}"'})
    stored = load_file(made_of.adapter("m3po").artifact.path("files") / "adapter_model.safetensors")
    lora = {name: weight for name, weight in found["model"].named_parameters() if "lora_" in name}
    assert len(lora) == len(stored) > 0
    assert load_file(adapter / "adapter_model.safetensors").keys() == stored.keys()


def test_the_merged_model_answers_as_base_and_adapter_do(made, made_of, adapter, merged):
    import torch

    from m3po_dagster.method.generation.encoding import encode
    from m3po_dagster.method.generation.model import load_model
    from m3po_dagster.method.prompt import Prompt

    settings = made.load().model
    over, alone = load_model(settings, adapter), load_model(settings.model_copy(update={"path": str(merged)}))
    base = load_model(settings)
    rows = made_of.part("filtered_instructions", "s0").table().to_pylist()[:4]
    root = made.load().dataset.sources["scenes"].image_root
    prompts = [Prompt.from_row(row, root / row["image_uri"]) for row in rows]
    inputs = encode(alone, prompts).inputs
    with torch.no_grad():
        logits = [loaded.model(**inputs).logits for loaded in (over, alone, base)]
        answers = [loaded.model.generate(**inputs, do_sample=False, max_new_tokens=40) for loaded in (over, alone)]
    assert torch.allclose(logits[0], logits[1], atol=1e-4)
    assert not torch.allclose(logits[2], logits[1], atol=1e-3)
    assert torch.equal(*answers)
    assert alone.dtype == base.dtype and alone.eos == base.eos and alone.suppressed == base.suppressed


def test_the_merged_folder_is_a_published_model_with_its_card(merged):
    found = _loaded(merged, {})
    assert type(found["model"]).__name__ == "LlavaForConditionalGeneration"
    assert not any("lora" in name for name, _ in found["model"].named_parameters())
    card = ModelCard.load(merged / "README.md")
    assert (card.data.library_name, card.data.base_model_relation) == ("transformers", "finetune")
    own = json.loads((WEIGHTS / "llava" / "generation_config.json").read_text())
    kept = json.loads((merged / "generation_config.json").read_text())
    assert {name: kept[name] for name in own if name != "transformers_version"} == {
        name: value for name, value in own.items() if name != "transformers_version"
    }


@pytest.mark.parametrize(
    ("model", "why"),
    [
        ({"quantization": "4bit"}, r"quantization is 4bit.*--adapter"),
        ({"dtype": "bfloat16"}, "is not the one that adapter"),
    ],
)
def test_what_can_not_be_merged_is_refused(made, made_of, tmp_path, model, why):
    study = made_of.study
    other = of_study(made, study.model_copy(update={"model": study.model.model_copy(update=model)}))
    chosen = other.adapter(made_of.adapter("m3po").artifact.fingerprint)
    with pytest.raises(ExportError, match=why):
        export_merged(other, chosen, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_second_round_starts_from_the_merged_model(fresh, small_study, merged):
    second = json.loads(json.dumps(small_study))
    second["model"]["path"] = str(merged)
    second["recipes"] = {name: second["recipes"][name] for name in ("base", "m3po")}
    fresh.write(second)
    assert [outcome.error for outcome in fresh.run() if outcome.error] == []
    assert fresh.unsettled() == []
    (adapter,) = fresh.store.list("adapter")
    assert adapter.manifest.metadata["finite"] and adapter.manifest.metadata["examples"] > 0


def _loaded(folder: Path, names: dict[str, str]) -> dict:
    """What the Python of a card's "Loading" gives, run as it stands."""
    from m3po_dagster.torchvision_repair import repair_torchvision

    repair_torchvision()
    text = (folder / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    for name, value in {"THIS_FOLDER": str(folder), **names}.items():
        code = code.replace(name, value)
    found: dict = {}
    exec(code, found)
    return found
