"""Every loss of TRL by name: TRL's own trainer, with a reference forward of its own, is the oracle of each."""

import inspect
import re
from copy import copy
from dataclasses import replace
from typing import get_args

import pytest
from optimization_world import World, conversations, step, trained_a_little
from pydantic import ValidationError

from m3po_dagster.method.optimization.batches import Batches
from m3po_dagster.method.optimization.dpo import fit_dpo, new_dpo_trainer
from m3po_dagster.method.optimization.lora import lora_config
from m3po_dagster.method.optimization.losses import UNWEIGHED, LossName
from m3po_dagster.method.optimization.pair_weights import weights_of
from m3po_dagster.method.optimization.run import trainer_arguments
from m3po_dagster.method.optimization.settings import DpoSettings

N = 5  # answers of 2 to 8 tokens, chosen and rejected of uneven lengths
GAPS = (0.5, 0.1, 0.3, 0.9, 0.2)
SMOOTHED = {"exo_pair": 0.1, "robust": 0.2, "aot": 0.1, "aot_unpaired": 0.1}
IN_SHORT = ("sigmoid", "ipo", "robust", "apo_zero")
OPTIONS = [
    *(
        pytest.param(
            {"loss": name, "label_smoothing": SMOOTHED.get(name, 0)}, marks=[] if name in IN_SHORT else pytest.mark.slow
        )
        for name in get_args(LossName)
    ),
    {"loss": {"ipo": 0.7, "apo_zero": 0.3}, "nll_weight": 0.5},
    {"loss": "discopop", "discopop_tau": 0.5},
    *({"f_divergence": name} for name in ("forward_kl", "js_divergence", "alpha_divergence")),
    {"f_divergence": "alpha_divergence", "f_divergence_alpha": 0.2},
    {"ld_alpha": 0.3},
    {"wpo_weighting": True},
]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    world = World(tmp_path_factory.mktemp("losses"), N)
    world.examples = [replace(one, mas_gap=gap) for one, gap in zip(world.examples, GAPS, strict=True)]
    return world


def ours(world, settings: DpoSettings, folder, rows=range(N)):
    loaded = world.load()
    batches = Batches(loaded, world.examples, weights_of(world.examples, settings))
    trainer = new_dpo_trainer(loaded, batches, world.examples, settings, 0, str(folder))
    return step(trained_a_little(trainer), batches.preference([{"row": row} for row in rows]))


def trls(world, settings: DpoSettings, folder, **options):
    """TRL's trainer on the images and texts, its settings named as TRL names them."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    loaded = world.load()
    arguments = trainer_arguments(loaded.model, settings, 0, str(folder))
    trainer = DPOTrainer(
        model=loaded.model,
        args=DPOConfig(**arguments, beta=settings.beta, **options),
        train_dataset=Dataset.from_list(conversations(world)),
        processing_class=loaded.processor,
        peft_config=lora_config(loaded.model, settings.lora),
    )
    return step(trained_a_little(trainer), trainer.data_collator([trainer.train_dataset[i] for i in range(N)]))


TRLS_NAMES = {
    "f_divergence": "f_divergence_type",
    "f_divergence_alpha": "f_alpha_divergence_coef",
    "wpo_weighting": "use_weighting",
}


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(map(str, options.values())))
def test_a_loss_is_trls_own(world, tmp_path, options):
    import torch

    settings = DpoSettings(beta=0.3, **options)
    theirs = {
        TRLS_NAMES.get(name, name): value for name, value in options.items() if name not in ("loss", "nll_weight")
    }
    theirs |= {"loss_type": list(settings.losses), "loss_weights": list(settings.losses.values())}
    loss, gradients = ours(world, settings, tmp_path)
    expected, expected_gradients = trls(world, settings, tmp_path, **theirs)
    assert loss == pytest.approx(expected, rel=1e-5, abs=1e-6)
    largest = max(gradient.abs().max() for gradient in expected_gradients)
    assert largest > 1e-5
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-3, atol=float(1e-4 * largest))


def test_the_losses_are_those_that_trl_knows(world):
    """A new one in TRL is one that a study can't name yet."""
    from trl import DPOTrainer

    known = re.findall(r'loss_type == "(\w+)"', inspect.getsource(DPOTrainer._compute_loss))
    assert sorted(set(known)) == sorted(get_args(LossName))


@pytest.mark.parametrize("wpo", [False, True])
def test_a_pairs_weight_is_its_gap_over_the_mean_gap(world, tmp_path, wpo):
    """A batch of one pair at a time gives each pair's own loss, by which the weighted mean is put together."""
    plain = DpoSettings(beta=0.3, wpo_weighting=wpo)
    losses = [ours(world, plain, tmp_path, [row])[0] for row in range(N)]
    expected = sum(gap * loss for gap, loss in zip(GAPS, losses, strict=True)) / sum(GAPS)
    weighted = plain.model_copy(update={"pair_weight": "mas_gap"})
    assert ours(world, weighted, tmp_path)[0] == pytest.approx(expected, rel=1e-5)
    assert abs(expected - sum(losses) / N) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", get_args(LossName))
def test_equal_gaps_change_nothing_and_what_cannot_be_weighed_is_refused(world, tmp_path, name):
    import torch

    equal = copy(world)
    equal.examples = [replace(one, mas_gap=0.25) for one in world.examples]
    plain = DpoSettings(beta=0.3, loss=name, label_smoothing=SMOOTHED.get(name, 0))
    weighted = plain.model_copy(update={"pair_weight": "mas_gap"})
    if name in UNWEIGHED:
        with pytest.raises(ValidationError, match="pair_weight: TRL can't weigh the pairs of"):
            DpoSettings.model_validate(weighted.model_dump())
        # Else TRL has learned to, and the refusal can go.
        with pytest.raises((NotImplementedError, RuntimeError)):
            ours(equal, weighted, tmp_path)
        return
    loss, gradients = ours(equal, weighted, tmp_path)
    expected, expected_gradients = ours(equal, plain, tmp_path)
    assert loss == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(gradients, expected_gradients)


@pytest.mark.parametrize("gap", [None, 0.0, -0.2, float("nan")])
def test_a_pair_without_a_gap_is_named(world, gap):
    examples = [*world.examples[:3], replace(world.examples[3], mas_gap=gap)]
    with pytest.raises(ValueError, match=r"pair pair-3: its MAS gap is .*pair_weight mas_gap needs one above 0"):
        fit_dpo(world.load(), examples, DpoSettings(pair_weight="mas_gap"), 0)


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"label_smoothing": 0.1}, "label_smoothing: only aot, aot_unpaired, exo_pair, robust have it, .* is sigmoid"),
        ({"loss": "exo_pair"}, "exo_pair needs a label_smoothing above 0"),
        ({"loss": "robust", "label_smoothing": 0.5}, "less than 0.5"),
        ({"loss": "apo_zero", "f_divergence": "forward_kl"}, "f_divergence: another than reverse_kl"),
        ({"loss": {"sigmoid": 1, "bco_pair": 1}, "f_divergence": "forward_kl"}, "f_divergence: another"),
        ({"loss": "sft", "f_divergence": "forward_kl"}, "f_divergence: another"),
        ({"f_divergence": "forward_kl", "f_divergence_alpha": 0.3}, "it is alpha_divergence's alone"),
        ({"discopop_tau": 0.1}, "only discopop has it"),
        ({"loss": "sft", "ld_alpha": 0.5}, "ld_alpha: it weighs answers that are compared"),
        ({"loss": "aot", "wpo_weighting": True}, "wpo_weighting: TRL can't weigh the pairs of aot, aot_unpaired"),
        ({"loss": {"sigmoid": 1, "aot": 2}, "pair_weight": "mas_gap"}, "pair_weight: TRL can't weigh"),
        ({"nll_weight": 0.5, "pair_weight": "mas_gap"}, "pair_weight: TRL can't weigh"),
        ({"loss": {"sigmoid": 1, "sft": 0.5}, "nll_weight": 0.5}, "give its weight in one of them"),
        ({"loss": "sft", "nll_weight": 0.5}, "which is the `loss` already"),
        ({"loss": "nice"}, "Input should be 'sigmoid'"),
        ({"loss": {"nice": 1}}, "Input should be 'sigmoid'"),
        ({"loss": {"sigmoid": 0}}, "greater than 0"),
        ({"loss": {}}, "at least 1 item"),
        ({"preset": "bold"}, "'paper' or 'safe'"),
    ],
)
def test_what_the_loss_ignores_is_refused(values, match):
    with pytest.raises(ValidationError, match=match):
        DpoSettings(**values)


def test_a_preset_fills_what_is_not_given():
    assert DpoSettings(preset="paper") == DpoSettings().model_copy(update={"preset": "paper"})
    safe = DpoSettings(preset="safe", batch_size=4)
    assert (safe.learning_rate, safe.batch_size, safe.warmup_ratio, safe.epochs) == (5e-6, 4, 0.05, 1)


def test_a_recipe_is_its_values_whatever_they_are_written_as():
    """What was trained before the options came, and what a preset spells out, is found again."""
    before = {
        "kind": "dpo",
        "beta": 0.1,
        "learning_rate": 5e-5,
        "nll_weight": 0,
        "reference_sample": 8,
        "reference_tolerance": 1e-2,
        "batch_size": 8,
        "epochs": 1,
        "warmup_ratio": 0.05,
        "schedule": "linear",
        "gradient_checkpointing": False,
        "lora": {"r": 16, "alpha": 32, "dropout": 0},
    }
    for settings in (DpoSettings(), DpoSettings(preset="paper"), DpoSettings(loss={"sigmoid": 1})):
        assert settings.model_dump(mode="json") == before
    assert DpoSettings(preset="safe").model_dump() == DpoSettings(learning_rate=5e-6).model_dump()
    changed = DpoSettings(loss={"sigmoid": 1, "bco_pair": 0.5}, pair_weight="mas_gap", ld_alpha=0.5)
    assert DpoSettings.model_validate_json(changed.model_dump_json()) == changed


@pytest.mark.parametrize(
    ("mix", "by_weight"),
    [
        ({"sigmoid": 1, "sft": 0.2}, {"nll_weight": 0.2}),
        ({"sft": 0.2, "sigmoid": 1.0}, {"nll_weight": 0.2}),
        ({"hinge": 1, "sft": 1}, {"loss": "hinge", "nll_weight": 1}),
        (
            {"sigmoid": 0.8, "sft": 0.2, "bco_pair": 0.3},
            {"loss": {"sigmoid": 0.8, "bco_pair": 0.3}, "nll_weight": 0.2},
        ),
    ],
    ids=str,
)
def test_a_likelihood_term_is_the_same_recipe_in_the_mix_and_by_its_weight(mix, by_weight):
    one, other = DpoSettings(loss=mix), DpoSettings(**by_weight)
    assert one == other and one.model_dump_json() == other.model_dump_json()
    assert one.losses == mix and one.model_dump(exclude_unset=True)["nll_weight"] == mix["sft"]
    assert other.nll_weight == by_weight["nll_weight"] and other.model_dump()["nll_weight"] == by_weight["nll_weight"]


def test_the_likelihood_alone_stays_the_loss():
    assert DpoSettings(loss={"sft": 0.5}).losses == {"sft": 0.5}
    assert DpoSettings(loss={"sft": 1}).loss == "sft"


@pytest.mark.parametrize("weight", [0, -1, float("inf"), "much"])
def test_a_weight_that_can_not_be_is_told_where_it_stands(weight):
    with pytest.raises(ValidationError) as refused:
        DpoSettings(loss={"sigmoid": 1, "sft": weight})
    assert [error["loc"][0] for error in refused.value.errors()] == ["loss"]
