"""What a pair went through: its own loss, margin and log-probs each time it was seen, by TRL's arithmetic."""

import math

import pytest
from optimization_world import World

from m3po_dagster.method.optimization.dpo import fit_dpo
from m3po_dagster.method.optimization.examples import PreferenceExample
from m3po_dagster.method.optimization.settings import DpoSettings, SftSettings
from m3po_dagster.method.optimization.sft import fit_sft

N, BATCH, EPOCHS = 6, 4, 2
DPO = DpoSettings(
    batch_size=BATCH, epochs=EPOCHS, learning_rate=5e-3, warmup_ratio=0, reference_sample=1, nll_weight=0.3
)
SFT = SftSettings(batch_size=BATCH, epochs=1, learning_rate=5e-3, warmup_ratio=0)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("trajectory"), N)


@pytest.fixture(scope="module")
def dpo(world):
    return fit_dpo(world.load(), world.examples, DPO, 0)


@pytest.fixture(scope="module")
def sft(world):
    return fit_sft(world.load(), world.examples, SFT, 0)


def own_loss(example: PreferenceExample, chosen: float, rejected: float) -> float:
    """Equation 4 on one pair, and the mean negative log-likelihood of R_w's tokens."""
    margin = DPO.beta * ((chosen - example.ref_chosen_logp) - (rejected - example.ref_rejected_logp))
    return math.log1p(math.exp(-margin)) - DPO.nll_weight * chosen / len(example.chosen_ids)


def test_a_row_each_time_a_pair_is_seen(dpo):
    _, result = dpo
    assert [(row["step"], row["pair_id"]) for row in result.trajectory] == [
        (row["step"], pair_id) for row in result.log for pair_id in row["pair_ids"]
    ]
    assert len(result.trajectory) == N * EPOCHS


def test_a_pairs_loss_and_margin_follow_from_its_log_probs(dpo, world):
    _, result = dpo
    examples = {example.pair_id: example for example in world.examples}
    for row in result.trajectory:
        example = examples[row["pair_id"]]
        gain = (row["chosen_logp"] - example.ref_chosen_logp) - (row["rejected_logp"] - example.ref_rejected_logp)
        assert row["reward_margin"] == pytest.approx(DPO.beta * gain, abs=1e-5)
        assert row["loss"] == pytest.approx(own_loss(example, row["chosen_logp"], row["rejected_logp"]), abs=1e-5)


def test_the_steps_means_are_the_pairs(dpo):
    _, result = dpo
    for step in result.log:
        rows = [row for row in result.trajectory if row["step"] == step["step"]]
        for name in ("reward_margin", "chosen_logp", "rejected_logp"):
            assert step[name] == pytest.approx(sum(row[name] for row in rows) / len(rows))


def test_before_and_after(dpo, world):
    _, result = dpo
    for row, example in zip(result.margins, world.examples, strict=True):
        assert row["reward_margin_before"] == 0
        before = own_loss(example, example.ref_chosen_logp, example.ref_rejected_logp)
        assert row["loss_before"] == pytest.approx(before, abs=1e-6)
        after = own_loss(example, row["chosen_logp_after"], row["rejected_logp_after"])
        assert row["loss"] == pytest.approx(after, abs=1e-5)
        assert row["loss"] < row["loss_before"]


def test_the_first_step_shows_the_model_before_training(dpo, world):
    _, result = dpo
    examples = {example.pair_id: example for example in world.examples}
    first = [row for row in result.trajectory if row["step"] == 1]
    assert [row["chosen_logp"] for row in first] == pytest.approx(
        [examples[row["pair_id"]].ref_chosen_logp for row in first], abs=1e-4
    )
    assert [row["reward_margin"] for row in first] == pytest.approx([0] * BATCH, abs=1e-5)


def test_sft_has_losses_and_no_rejected_answer(sft, world):
    _, result = sft
    lengths = {example.pair_id: len(example.chosen_ids) for example in world.examples}
    for row in result.trajectory:
        assert row["loss"] == pytest.approx(-row["chosen_logp"] / lengths[row["pair_id"]], abs=1e-6)
    for row, example in zip(result.margins, world.examples, strict=True):
        assert row["loss_before"] == pytest.approx(-example.ref_chosen_logp / len(example.chosen_ids))
        assert row["loss"] == pytest.approx(-row["chosen_logp_after"] / len(example.chosen_ids), abs=1e-6)
    assert {row[name] for row in result.trajectory for name in ("reward_margin", "rejected_logp")} == {None}
    assert {row[name] for row in result.margins for name in ("reward_margin_before", "reward_margin")} == {None}


@pytest.mark.parametrize(
    "option", [{"loss_type": ["hinge"]}, {"loss_type": ["aot"]}, {"ld_alpha": 0.5}, {"use_weighting": True}]
)
def test_every_loss_of_trl(world, option):
    """A pair's own loss is what TRL logs for a batch of that pair; one that sorts a batch has none."""
    import torch
    from trl import DPOConfig, DPOTrainer

    from m3po_dagster.method.optimization.batches import Batches
    from m3po_dagster.method.optimization.pair_records import base_loss
    from m3po_dagster.method.optimization.run import new_trainer, trainer_arguments

    loaded = world.load()
    config = DPOConfig(
        **trainer_arguments(loaded.model, DPO.model_copy(update={"batch_size": N}), 0, "unused"),
        beta=0.7,
        disable_dropout=False,
        **option,
    )
    batches = Batches(loaded, world.examples)
    trainer = new_trainer(DPOTrainer, loaded, config, DPO.lora, world.examples, batches.preference, None)
    trainer.precompute_ref_logps = "ld_alpha" not in option
    for name, weight in trainer.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.2)
    together = trainer.records_of(batches.preference([{"row": row} for row in range(N)]))
    for row, record in enumerate(together):
        batch = batches.preference([{"row": row}])
        batch.pop("rows")
        with torch.no_grad():
            loss = DPOTrainer._compute_loss(trainer, trainer.model, batch, False).item()
        metrics = trainer._metrics["eval"]
        if "ld_alpha" not in option:
            assert record["chosen_logp"] == pytest.approx(metrics["logps/chosen"][-1], abs=1e-4)
        assert record["reward_margin"] == pytest.approx(metrics["rewards/margins"][-1], abs=1e-4)
        expected = None if option == {"loss_type": ["aot"]} else pytest.approx(loss, abs=1e-4)
        assert record["loss"] == expected
    moved = together[0]["chosen_logp"] - world.examples[0].ref_chosen_logp
    assert abs(moved) > 1e-3, "an adapter that changes nothing would hide a wrong reference"
    assert base_loss(trainer, world.examples[0]) == (1.0 if option == {"loss_type": ["hinge"]} else None)
