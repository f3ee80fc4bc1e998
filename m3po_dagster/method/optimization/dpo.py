"""Direct Preference Optimization with LoRA on TRL, the stored log-probs as P_ref (paper, section 3.6, equation 4).

P_ref is the base model, whose log-probs of both answers are the confidence that selection used: no reference forward
runs, which halves the language model's forwards. A sample is compared with TRL's own reference first.
"""

import math
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from m3po_dagster.method.generation.memory import out_of_memory
from m3po_dagster.method.generation.model import LoadedModel, load_model, without_deprecation
from m3po_dagster.method.generation.self_check import FLOOR, STEPS, step
from m3po_dagster.method.generation.settings import ModelSettings
from m3po_dagster.method.optimization.batches import Batches
from m3po_dagster.method.optimization.examples import PreferenceExample, check_examples
from m3po_dagster.method.optimization.execution import PLAIN, Execution
from m3po_dagster.method.optimization.health import health
from m3po_dagster.method.optimization.image_features import remember_images
from m3po_dagster.method.optimization.losses import loss_arguments
from m3po_dagster.method.optimization.packed import INSTEAD, pack, refuse_unpackable
from m3po_dagster.method.optimization.pair_weights import weigh, weights_of
from m3po_dagster.method.optimization.run import (
    Progress,
    TrainingResult,
    margin_rows,
    measured,
    n_trainable,
    new_trainer,
    trainer_arguments,
    write_adapter,
)
from m3po_dagster.method.optimization.settings import DpoSettings


def train_dpo(
    model: ModelSettings,
    examples: Sequence[PreferenceExample],
    settings: DpoSettings,
    seed: int,
    out: Path,
    progress: Progress | None = None,
    execution: Execution = PLAIN,
) -> TrainingResult:
    """Trains an adapter on `examples` and writes it to the folder `out`; `progress(step, steps)` is called every step.

    The same model, examples, settings and seed give the same adapter, byte for byte, on the same machine: `seed` draws
    the adapter's initial weights, the order of the pairs and the adapter's dropout. Raises ValueError when the examples
    can't be trained on or when a stored log-prob differs from the trainer's own by more than the tolerance, and
    FloatingPointError at the first loss or gradient that is not finite; nothing is written then.
    """
    check_examples(examples, needs_rejected=True)
    trainer, result = fit_dpo(load_model(settings.model_of(model)), examples, settings, seed, progress, execution)
    write_adapter(trainer, model, out)
    return result


def fit_dpo(
    loaded: LoadedModel,
    examples: Sequence[PreferenceExample],
    settings: DpoSettings,
    seed: int,
    progress: Progress | None = None,
    execution: Execution = PLAIN,
) -> tuple[Any, TrainingResult]:
    """`train_dpo` on a model in memory, which gets the adapter; returns TRL's trainer, `trainer.model` trained, too."""
    batches = Batches(loaded, examples, weights_of(examples, settings), packed=settings.layout == "packed")
    with tempfile.TemporaryDirectory() as folder, without_deprecation(), measured(loaded.model, execution) as measures:
        trainer = new_dpo_trainer(loaded, batches, examples, settings, seed, folder, progress, execution)
        remember_images(trainer, batches, settings, measures["counts"])
        check_reference(trainer, batches, examples, settings, seed)
        trainer.train()
        margins = margin_rows(trainer, batches.preference, examples, settings)
    return trainer, TrainingResult(
        log=trainer.step_rows,
        trajectory=trainer.trajectory,
        margins=margins,
        n_examples=len(examples),
        n_trainable=n_trainable(trainer.model),
        health=health(loaded, trainer, examples, margins, seed, settings.beta),
        **measures,
    )


def new_dpo_trainer(
    loaded: LoadedModel,
    batches: Batches,
    examples: Sequence[PreferenceExample],
    settings: DpoSettings,
    seed: int,
    folder: str,
    progress: Progress | None = None,
    execution: Execution = PLAIN,
) -> Any:
    """TRL's DPOTrainer on the model with a new adapter, ready to train: it reads `batches` and the stored log-probs."""
    from trl import DPOConfig, DPOTrainer

    if settings.layout == "packed":
        refuse_unpackable(loaded.model)
    config = DPOConfig(
        **trainer_arguments(loaded.model, settings, seed, folder, execution),
        **loss_arguments(settings),
        # new_trainer has seen to the base model's; the adapter's stays.
        disable_dropout=False,
    )
    trainer = new_trainer(DPOTrainer, loaded, config, settings.lora, examples, batches.preference, progress, execution)
    # TRL refuses `precompute_ref_log_probs` for images, since it would run the reference over all of them first.
    # Here the collator brings the log-probs; all that is left is to tell the loss to read them. What LD-DPO compares
    # is no sum over the whole answer, so that TRL's own reference forward stays.
    trainer.precompute_ref_logps = settings.ld_alpha is None
    if settings.layout == "packed":
        if trainer.aux_loss_enabled:
            raise ValueError(f"layout packed: the load of experts is balanced over TRL's rows; {INSTEAD}")
        pack(loaded.model)
    if settings.pair_weight != "none":
        weigh(loaded.model, settings.wpo_weighting)
    return trainer


def check_reference(
    trainer: Any, batches: Batches, examples: Sequence[PreferenceExample], settings: DpoSettings, seed: int
) -> None:
    """Raises ValueError, naming the worst pair, when a sample's stored log-probs differ from the trainer's reference.

    The trainer's reference is the model with its adapter switched off, in TRL's layout. A difference beyond the
    tolerance means that the stored log-probs come from another model, other numerics or another form of the prompt.
    Where the run packs its pairs, the same sample must have the same log-probs packed.
    """
    draws = random.Random(seed)  # noqa: S311 - a draw that comes again
    sample = sorted(draws.sample(range(len(examples)), min(settings.reference_sample, len(examples))))
    own = base_logps(trainer, batches, sample, settings, packed=False)
    compared = []
    for row, found in zip(sample, own, strict=True):
        example = examples[row]
        stored = (example.ref_chosen_logp, example.ref_rejected_logp)
        for answer, mine, theirs in zip(("chosen", "rejected"), stored, found, strict=True):
            message = f"pair {example.pair_id}, {answer} answer: stored {mine:.4f}, the trainer's own {theirs:.4f}"
            compared.append((abs(mine - theirs), message))
    # NaN is the worst of all.
    difference, message = max(compared, key=lambda entry: (not math.isfinite(entry[0]), entry[0]))
    if not difference <= settings.reference_tolerance:
        raise ValueError(
            f"the stored reference log-probs are not this model's: {message} nats, {difference:.4f} apart with "
            f"{settings.reference_tolerance} allowed (reference_tolerance), the worst of {len(sample)} pairs compared; "
            "score the pairs again with this model and numerics, or allow more"
        )
    if settings.layout == "packed":
        check_packed(trainer, batches, [examples[row] for row in sample], sample, own, settings)


def check_packed(
    trainer: Any,
    batches: Batches,
    examples: Sequence[PreferenceExample],
    rows: Sequence[int],
    own: Sequence[tuple[float, float]],
    settings: DpoSettings,
) -> None:
    """Raises ValueError, naming the worst pair, when packing moves log-probs by more than rounding does.

    `own` are the log-probs of `rows`, whose `examples` these are, in TRL's layout.
    """
    name = type(batches.loaded.model).__name__
    try:
        packed = base_logps(trainer, batches, rows, settings, packed=True)
    except Exception as error:  # a model's code raises anything at a mask it doesn't know
        if out_of_memory(error):
            raise
        raise ValueError(f"layout packed: {name} can't read a pair as one row ({error}); {INSTEAD}") from error
    compared = []
    for example, alone, together in zip(examples, own, packed, strict=True):
        for ids, mine, theirs in zip((example.chosen_ids, example.rejected_ids), alone, together, strict=True):
            compared.append((abs(mine - theirs) / len(ids), example.pair_id))
    difference, pair_id = max(compared, key=lambda entry: (not math.isfinite(entry[0]), entry[0]))
    if not difference <= max(FLOOR, STEPS * step(batches.loaded)):
        raise ValueError(
            f"layout packed: {name} gives pair {pair_id} other log-probs than in TRL's layout, {difference:.2g} nats a "
            f"token apart; {INSTEAD}"
        )


def base_logps(
    trainer: Any, batches: Batches, rows: Sequence[int], settings: DpoSettings, packed: bool
) -> list[tuple[float, float]]:
    """The log-probs of both answers of each of these examples, the adapter switched off, as the trainer finds them."""
    from accelerate.utils import send_to_device

    # Of whole answers, whatever the loss makes of an answer's tail.
    trainer.ld_alpha = None
    found = []
    size = trainer.args.per_device_train_batch_size
    for start in range(0, len(rows), size):
        batch = batches.preference([{"row": row} for row in rows[start : start + size]], packed)
        del batch["rows"]
        batch = send_to_device(batch, trainer.model.device)
        chosen, rejected = trainer.compute_ref_log_probs(trainer.model, batch)
        found += zip(chosen.tolist(), rejected.tolist(), strict=True)
    trainer.ld_alpha = settings.ld_alpha
    return found
