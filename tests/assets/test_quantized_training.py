"""QLoRA: the base model in 8 bits while training only, its reference scored again in those, the adapter for all."""

from types import SimpleNamespace

import pytest
from tiny_llava import tiny_llava, tiny_prompts

from m3po_dagster.assets import adapters
from m3po_dagster.materialise import Work
from m3po_dagster.method.confidence import score_continuations
from m3po_dagster.method.generation.model import load_model
from m3po_dagster.method.generation.settings import ModelSettings
from m3po_dagster.method.optimization.examples import PreferenceExample
from m3po_dagster.method.optimization.settings import DpoSettings, SftSettings
from m3po_dagster.method.optimization.trainer_settings import LocalTrainerSettings
from m3po_dagster.resources.trainer import TrainerResource
from m3po_dagster.storage.store import ArtifactStore
from m3po_dagster.storage.tables import PAIRS

ANSWERS = ((7, 8, 9, 2), (10, 11, 2))
TRAINING = DpoSettings(
    batch_size=2, learning_rate=5e-3, warmup_ratio=0, quantization="8bit", reference_tolerance=0.5, layout="packed"
)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A study on a model in float16, and pairs with that model's own log-probs."""
    folder = tmp_path_factory.mktemp("qlora")
    model = ModelSettings(path=str(tiny_llava(folder / "model")), dtype="float16", device="cpu")
    loaded, examples = load_model(model), []
    for prompt in tiny_prompts(folder / "images", 2):
        logps = [one.sum_logp for one in score_continuations(loaded, prompt, ANSWERS)]
        examples.append(PreferenceExample(prompt.prompt_id, prompt, *ANSWERS, *logps))
    return SimpleNamespace(model=model, examples=examples)


def study_of(world):
    return SimpleNamespace(model=world.model, trainer=LocalTrainerSettings())


def reference(world, training, folder, monkeypatch):
    monkeypatch.setattr(adapters, "examples_of", lambda work: world.examples)
    store = ArtifactStore(folder / training.quantization)
    part = ("preference_pairs", "m3po|s0")
    with store.open(*part, "0" * 64) as draft:
        pairs = draft.commit(
            {"data": (PAIRS.schema.empty_table(), PAIRS)},
            code_version="1",
            metadata={adapters.NUMERICS: "transformers/float16"},
        )
    study = SimpleNamespace(model=world.model, recipes={"m3po": SimpleNamespace(training=training)})
    work = Work(("lora_adapter", "m3po"), study, store, None, {}, {part: pairs}, lambda message: None)
    return adapters.examples_with_reference(work, TrainerResource())


def test_the_reference_is_scored_again_in_the_bits_of_training(world, tmp_path, monkeypatch):
    examples, facts = reference(world, TRAINING, tmp_path, monkeypatch)
    eight = load_model(world.model.model_copy(update={"quantization": "8bit"}))
    assert (facts["reference"], facts["reference numerics"]) == ("rescored", "transformers/float16+8bit")
    for before, after in zip(world.examples, examples, strict=True):
        own = [one.sum_logp for one in score_continuations(eight, before.prompt, ANSWERS)]
        assert [after.ref_chosen_logp, after.ref_rejected_logp] == pytest.approx(own)
        assert after.ref_chosen_logp != before.ref_chosen_logp
    kept, facts = reference(world, TRAINING.model_copy(update={"quantization": "none"}), tmp_path, monkeypatch)
    assert (facts["reference"], kept) == ("stored", world.examples)
    with pytest.raises(ValueError, match="4-bit weights can't be trained on a CPU"):
        reference(world, TRAINING.model_copy(update={"quantization": "4bit"}), tmp_path, monkeypatch)


def test_the_adapter_serves_the_model_in_full(world, tmp_path, monkeypatch):
    import torch

    examples, _ = reference(world, TRAINING, tmp_path / "store", monkeypatch)
    told = []
    result = TrainerResource().train(
        study_of(world), examples, TRAINING, 0, tmp_path / "out", tmp_path / "scratch", lambda *step: told.append(step)
    )
    assert told == [(1, 1)]
    tuned = load_model(world.model, tmp_path / "out")
    linears = {type(module) for module in tuned.model.get_decoder().modules() if "Linear" in type(module).__name__}
    assert torch.nn.Linear in linears and not any("8bit" in kind.__name__ for kind in linears)
    for row, example in zip(result.margins, examples, strict=True):
        chosen, rejected = (one.sum_logp for one in score_continuations(tuned, example.prompt, ANSWERS))
        assert chosen == pytest.approx(row["chosen_logp_after"], abs=0.1)
        assert abs(chosen - row["chosen_logp_before"]) > 0.3
        assert rejected < row["rejected_logp_before"] - 0.3


def test_sft_trains_in_the_bits_it_asks_for(world, tmp_path, monkeypatch):
    from m3po_dagster.method.optimization import sft

    loaded = []
    monkeypatch.setattr(sft, "load_model", lambda model: loaded.append(load_model(model)) or loaded[0])
    settings = SftSettings(batch_size=2, quantization="8bit")
    TrainerResource().train(
        study_of(world), world.examples, settings, 0, tmp_path / "out", tmp_path / "scratch", lambda *step: None
    )
    assert [one.precision for one in loaded] == ["float16+8bit"]
