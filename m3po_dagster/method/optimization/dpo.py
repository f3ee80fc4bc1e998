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

from m3po_dagster.method.generation.model import LoadedModel, load_model, without_deprecation
from m3po_dagster.method.generation.settings import ModelSettings
from m3po_dagster.method.optimization.batches import Batches
from m3po_dagster.method.optimization.examples import PreferenceExample, check_examples
from m3po_dagster.method.optimization.health import health
from m3po_dagster.method.optimization.lora import save_adapter
from m3po_dagster.method.optimization.run import (
    Progress,
    TrainingResult,
    margin_rows,
    measured,
    n_trainable,
    new_trainer,
    trainer_arguments,
)
from m3po_dagster.method.optimization.settings import DpoSettings


def train_dpo(
    model: ModelSettings,
    examples: Sequence[PreferenceExample],
    settings: DpoSettings,
    seed: int,
    out: Path,
    progress: Progress | None = None,
) -> TrainingResult:
    """Trains an adapter on `examples` and writes it to the folder `out`; `progress(step, steps)` is called every step.

    The same model, examples, settings and seed give the same adapter, byte for byte, on the same machine: `seed` draws
    the adapter's initial weights, the order of the pairs and the adapter's dropout. Raises ValueError when the examples
    can't be trained on or when a stored log-prob differs from the trainer's own by more than the tolerance, and
    FloatingPointError at the first loss or gradient that is not finite; nothing is written then.
    """
    check_examples(examples, needs_rejected=True)
    trainer, result = fit_dpo(load_model(model), examples, settings, seed, progress)
    save_adapter(trainer.model, model, out)
    return result


def fit_dpo(
    loaded: LoadedModel,
    examples: Sequence[PreferenceExample],
    settings: DpoSettings,
    seed: int,
    progress: Progress | None = None,
) -> tuple[Any, TrainingResult]:
    """`train_dpo` on a model in memory, which gets the adapter; returns TRL's trainer, `trainer.model` trained, too."""
    from trl import DPOConfig, DPOTrainer

    model = loaded.model
    batches = Batches(loaded, examples)
    with tempfile.TemporaryDirectory() as folder, without_deprecation(), measured(model) as measures:
        config = DPOConfig(
            **trainer_arguments(model, settings, seed, folder),
            beta=settings.beta,
            # TRL's "sft" term is the mean negative log-likelihood of the chosen answers' tokens.
            loss_type=["sigmoid", "sft"] if settings.nll_weight else ["sigmoid"],
            loss_weights=[1.0, settings.nll_weight] if settings.nll_weight else [1.0],
            # new_trainer has seen to the base model's; the adapter's stays.
            disable_dropout=False,
        )
        trainer = new_trainer(DPOTrainer, loaded, config, settings.lora, examples, batches.preference, progress)
        # TRL refuses `precompute_ref_log_probs` for images, since it would run the reference over all of them first.
        # Here the collator brings the log-probs; all that is left is to tell the loss to read them.
        trainer.precompute_ref_logps = True
        check_reference(trainer, batches, examples, settings, seed)
        trainer.train()
        margins = margin_rows(trainer.model, batches.preference, examples, settings.batch_size, settings.beta)
    return trainer, TrainingResult(
        log=trainer.step_rows,
        margins=margins,
        n_examples=len(examples),
        n_trainable=n_trainable(trainer.model),
        health=health(loaded, trainer, examples, margins, seed, settings.beta),
        **measures,
    )


def check_reference(
    trainer: Any, batches: Batches, examples: Sequence[PreferenceExample], settings: DpoSettings, seed: int
) -> None:
    """Raises ValueError, naming the worst pair, when a sample's stored log-probs differ from the trainer's reference.

    The trainer's reference is the model with its adapter switched off. A difference beyond the tolerance means that
    the stored log-probs come from another model, other numerics or another form of the prompt.
    """
    sample = sorted(random.Random(seed).sample(range(len(examples)), min(settings.reference_sample, len(examples))))
    compared = []
    for start in range(0, len(sample), settings.batch_size):
        rows = sample[start : start + settings.batch_size]
        batch = batches.preference([{"row": row} for row in rows])
        batch = {name: tensor.to(trainer.model.device) for name, tensor in batch.items()}
        del batch["rows"]
        chosen, rejected = trainer.compute_ref_log_probs(trainer.model, batch)
        for row, *own in zip(rows, chosen.tolist(), rejected.tolist(), strict=True):
            example = examples[row]
            stored = (example.ref_chosen_logp, example.ref_rejected_logp)
            for answer, mine, theirs in zip(("chosen", "rejected"), stored, own, strict=True):
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
