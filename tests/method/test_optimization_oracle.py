"""TRL itself, run its own way on texts and images, is the oracle of what our DPO and SFT runs compute."""

from dataclasses import dataclass

import pytest
from optimization_world import World, conversations

from m3po_dagster.method.optimization.dpo import fit_dpo
from m3po_dagster.method.optimization.lora import lora_config
from m3po_dagster.method.optimization.run import TrainingResult, measured, trainer_arguments
from m3po_dagster.method.optimization.settings import DpoSettings, SftSettings
from m3po_dagster.method.optimization.sft import fit_sft

N, BATCH = 10, 4  # two whole steps and a last one of two pairs
SEED = 3


@dataclass
class Run:
    """A finished run: what TRL logged a step, the trained model's LoRA weights, counts."""

    trainer: object
    counts: dict[str, int]
    result: TrainingResult | None = None

    @property
    def steps(self) -> list[dict]:
        return [row for row in self.trainer.state.log_history if "loss" in row]

    def lora(self) -> dict:
        return {name: weight for name, weight in self.trainer.model.state_dict().items() if "lora_" in name}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("oracle"), N)


DPO = DpoSettings(batch_size=BATCH, learning_rate=2e-3, warmup_ratio=0, reference_sample=BATCH)
SFT = SftSettings(batch_size=BATCH, learning_rate=2e-3, warmup_ratio=0)


@pytest.fixture(scope="module")
def our_dpo(world):
    trainer, result = fit_dpo(world.load(), world.examples, DPO, SEED)
    return Run(trainer, result.counts, result)


@pytest.fixture(scope="module")
def trls_dpo(world, tmp_path_factory):
    """DPOTrainer on messages and images: its own collator, tokenisation and reference forward."""
    from trl import DPOConfig, DPOTrainer

    loaded = world.load()
    config = DPOConfig(**trainer_arguments(loaded.model, DPO, SEED, str(tmp_path_factory.mktemp("trl"))), beta=DPO.beta)
    with measured(loaded.model) as measures:
        return Run(trained(DPOTrainer, loaded, config, DPO, conversations(world)), measures["counts"])


@pytest.fixture(scope="module")
def our_sft(world):
    trainer, result = fit_sft(world.load(), world.examples, SFT, SEED)
    return Run(trainer, result.counts, result)


@pytest.fixture(scope="module")
def trls_sft(world, tmp_path_factory):
    """SFTTrainer on messages and images: its own collator and tokenisation, the loss on the completion."""
    from trl import SFTConfig, SFTTrainer

    rows = [
        {"image": row["image"], "prompt": row["prompt"], "completion": row["chosen"]} for row in conversations(world)
    ]
    loaded = world.load()
    config = SFTConfig(**trainer_arguments(loaded.model, SFT, SEED, str(tmp_path_factory.mktemp("trl"))))
    with measured(loaded.model) as measures:
        return Run(trained(SFTTrainer, loaded, config, SFT, rows), measures["counts"])


def trained(trainer_class, loaded, config, settings, rows):
    from datasets import Dataset

    trainer = trainer_class(
        model=loaded.model,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=loaded.processor,
        peft_config=lora_config(loaded.model, settings.lora),
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize("method", ["dpo", "sft"])
def test_every_step_is_trls_own(method, request):
    ours, theirs = request.getfixturevalue(f"our_{method}"), request.getfixturevalue(f"trls_{method}")
    assert len(ours.steps) == len(theirs.steps) == 3
    names = ["loss", "grad_norm", "learning_rate", "mean_token_accuracy"]
    if method == "dpo":
        names += ["rewards/margins", "logps/chosen", "logps/rejected"]
        # Before the first update every margin is 0 up to rounding, and its sign is chance.
        accuracies = [[step["rewards/accuracies"] for step in run.steps[1:]] for run in (ours, theirs)]
        assert accuracies[0] == accuracies[1]
    for our_step, their_step in zip(ours.steps, theirs.steps, strict=True):
        assert [our_step[name] for name in names] == pytest.approx([their_step[name] for name in names], abs=2e-5)


@pytest.mark.parametrize("method", ["dpo", "sft"])
def test_the_adapter_is_trls_own(method, request):
    import torch

    ours = request.getfixturevalue(f"our_{method}").lora()
    theirs = request.getfixturevalue(f"trls_{method}").lora()
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-4, rtol=0)


def test_stored_log_probs_are_trls_reference(world, trls_dpo):
    trainer = trls_dpo.trainer
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(N)])
    chosen, rejected = trainer.compute_ref_log_probs(trainer.model, batch)
    assert chosen.tolist() == pytest.approx([example.ref_chosen_logp for example in world.examples], abs=1e-4)
    assert rejected.tolist() == pytest.approx([example.ref_rejected_logp for example in world.examples], abs=1e-4)


def test_the_reference_forwards_are_saved(our_dpo, trls_dpo):
    steps, check, measuring = 3, 1, 3
    assert trls_dpo.counts["language_model_forwards"] == 2 * steps
    assert our_dpo.counts["language_model_forwards"] - check - measuring == steps
    assert trls_dpo.counts["sequences"] == trls_dpo.counts["images_encoded"] == 2 * 2 * N
    assert our_dpo.counts == {
        "language_model_forwards": steps + check + measuring,
        "sequences": 2 * (N + BATCH + N),
        # Each once, and those of a batch once more as pixels, to be compared.
        "images_encoded": N + BATCH,
    }


def test_the_log_says_what_trl_logged(our_dpo, our_sft):
    for run in (our_dpo, our_sft):
        assert [row["loss"] for row in run.result.log] == [step["loss"] for step in run.steps]
        assert [row["learning_rate"] for row in run.result.log] == [step["learning_rate"] for step in run.steps]
    assert [row["reward_margin"] for row in our_dpo.result.log] == [step["rewards/margins"] for step in our_dpo.steps]
    assert {row["reward_margin"] for row in our_sft.result.log} == {None}


def test_margins_are_those_of_equation_4(our_dpo, world):
    for row, example in zip(our_dpo.result.margins, world.examples, strict=True):
        gain_chosen = row["chosen_logp_after"] - example.ref_chosen_logp
        gain_rejected = row["rejected_logp_after"] - example.ref_rejected_logp
        assert row["pair_id"] == example.pair_id
        assert row["reward_margin"] == pytest.approx(DPO.beta * (gain_chosen - gain_rejected))
