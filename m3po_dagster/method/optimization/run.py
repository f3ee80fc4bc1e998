"""What a DPO and an SFT run share: the trainer's arguments, the watch over every step, counts, the result."""

import contextlib
import math
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from m3po_dagster.method.generation.model import LoadedModel
from m3po_dagster.method.optimization.backbone import give_backbone
from m3po_dagster.method.optimization.examples import PreferenceExample
from m3po_dagster.method.optimization.lora import check_trainable, language_model_and_tower, lora_config
from m3po_dagster.method.optimization.settings import DpoSettings, LoraSettings, SftSettings

if TYPE_CHECKING:
    import torch

# Columns of a batch that the trainers read and the model doesn't take.
BESIDE_THE_MODEL = frozenset({"completion_mask", "ref_chosen_logps", "ref_rejected_logps", "rows"})

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class TrainingResult:
    """What a training run leaves besides the adapter's files.

    `log`: a row a step: step, pairs_seen, pair_ids, loss, learning_rate, grad_norm, token_accuracy, and for DPO
    reward_accuracy, reward_margin, chosen_logp and rejected_logp (batch means; None for SFT). Until the first update
    every margin is 0 up to rounding, so that reward_accuracy is chance.
    `margins`: a row an example: pair_id, reward_margin, chosen_logp_before, chosen_logp_after, rejected_logp_before,
    rejected_logp_after. The log-probs are sums in nats; `before` is the stored one. reward_margin is
    beta * ((chosen_after - chosen_before) - (rejected_after - rejected_before)), 0 before training by definition;
    what concerns the rejected answer is None for SFT.
    `counts`: language_model_forwards (calls), sequences (rows they held), images_encoded (images the vision
    tower got; one a row, however many tiles it is cut into).
    `seconds` covers checking, training and measuring, not loading. `peak_memory` is in bytes: allocated on the
    accelerator, or on a CPU the process's peak resident set.
    """

    log: list[dict[str, Any]]
    margins: list[dict[str, Any]]
    counts: dict[str, int]
    seconds: float
    n_examples: int
    n_trainable: int
    peak_memory: int


def trainer_arguments(model: Any, settings: DpoSettings | SftSettings, seed: int, folder: str) -> dict[str, Any]:
    """The arguments that TRL's DPOConfig and SFTConfig share; nothing is evaluated, reported or checkpointed."""
    return {
        "output_dir": folder,
        "per_device_train_batch_size": settings.batch_size,
        "num_train_epochs": settings.epochs,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": settings.schedule,
        # Below 1 it is a share of the steps.
        "warmup_steps": settings.warmup_ratio,
        "activation_checkpointing": settings.gradient_checkpointing,
        "seed": seed,
        "data_seed": seed,
        "use_cpu": model.device.type == "cpu",
        # No autocast: the base model computes in the dtype it was loaded in, as it did for the stored log-probs.
        "bf16": False,
        "fp16": False,
        # Cutting would cut image tokens.
        "max_length": None,
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def trainer_rows(examples: Sequence[PreferenceExample]) -> Any:
    """The trainer's dataset: indices of `examples`; the column `image` tells TRL to leave the work to the collator."""
    from datasets import Dataset

    return Dataset.from_dict(
        {"row": list(range(len(examples))), "image": [str(example.prompt.image_path) for example in examples]}
    )


def watched(trainer_class: type, examples: Sequence[PreferenceExample], progress: Progress | None) -> type:
    """`trainer_class`, keeping a row a step in `step_rows`, and stopping at the first loss or gradient not finite."""
    import torch

    class Watched(trainer_class):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.step_rows: list[dict[str, Any]] = []
            self.step_pairs: list[str] = []

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            self.step_pairs = [examples[row].pair_id for row in inputs.pop("rows").tolist()]
            loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            if not torch.isfinite(loss):
                self._stop("loss", loss.item(), self.state.global_step + 1)
            return loss

        def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
            super().log(logs, start_time)
            row = self.state.log_history[-1]
            if "loss" not in row:  # the closing summary
                return
            if not math.isfinite(row["grad_norm"]):
                self._stop("gradient norm", row["grad_norm"], row["step"])
            seen = self.step_rows[-1]["pairs_seen"] if self.step_rows else 0
            self.step_rows.append(
                {
                    "step": row["step"],
                    "pairs_seen": seen + len(self.step_pairs),
                    "pair_ids": self.step_pairs,
                    "loss": row["loss"],
                    "learning_rate": row["learning_rate"],
                    "grad_norm": row["grad_norm"],
                    "token_accuracy": row["mean_token_accuracy"],
                    "reward_accuracy": row.get("rewards/accuracies"),
                    "reward_margin": row.get("rewards/margins"),
                    "chosen_logp": row.get("logps/chosen"),
                    "rejected_logp": row.get("logps/rejected"),
                }
            )
            if progress is not None:
                progress(row["step"], self.state.max_steps)

        def _stop(self, what: str, value: float, step: int) -> None:
            raise FloatingPointError(
                f"step {step}: the {what} is {value} on the pairs {', '.join(self.step_pairs)}; "
                "lower the learning rate, or look at these pairs"
            )

        def _send_telemetry(self) -> None:
            """TRL reports every trainer's construction to its makers; this project tells nobody anything."""

    return Watched


def new_trainer(
    trainer_class: type,
    loaded: LoadedModel,
    config: Any,
    lora: LoraSettings,
    examples: Sequence[PreferenceExample],
    collator: Callable[[Sequence[dict]], "dict[str, torch.Tensor]"],
    progress: Progress | None,
) -> Any:
    """TRL's trainer, watched and silent, with a new adapter on the model drawn from the seed in `config`.

    Raises ValueError as `check_trainable` does.
    """
    from transformers import PrinterCallback

    check_trainable(loaded)
    give_backbone(loaded.model)
    # The base model's own, since the stored log-probs are without it; the adapter comes after.
    without_dropout(loaded.model)
    trainer = watched(trainer_class, examples, progress)(
        model=loaded.model,
        args=config,
        data_collator=collator,
        train_dataset=trainer_rows(examples),
        processing_class=loaded.processor,
        peft_config=lora_config(loaded.model, lora),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def without_dropout(model: Any) -> None:
    """Sets every dropout of `model` to 0.

    TRL's own sees dropout layers only. Attention takes its dropout as a number, kept beside its weights or in its
    config, and it is not 0 in every published model: a Q-Former's is 0.1.
    """
    import torch

    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for holder in (module, getattr(module, "config", None)):
            rates = [
                name
                for name, value in getattr(holder, "__dict__", {}).items()
                if "drop" in name and type(value) is float
            ]
            for name in rates:
                setattr(holder, name, 0.0)


def answer_logps(model: Any, batch: dict[str, Any]) -> "torch.Tensor":
    """The sum of each row's answer log-probs (B,) in nats under `model`, its adapter as it stands."""
    import torch
    from accelerate.utils import send_to_device

    inputs = {name: value for name, value in batch.items() if name not in BESIDE_THE_MODEL}
    inputs = send_to_device(inputs, model.device)
    if "labels" not in inputs:
        inputs["labels"] = inputs["input_ids"].masked_fill(batch["completion_mask"].to(model.device) == 0, -100)
    with torch.no_grad():
        # The forward that TRL's trainers themselves use.
        return model(**inputs, use_cache=False, fused_lm_head=True).log_probs.sum(dim=1)


def margin_rows(
    model: Any,
    collator: Callable[[Sequence[dict]], "dict[str, torch.Tensor]"],
    examples: Sequence[PreferenceExample],
    batch_size: int,
    beta: float | None,
) -> list[dict[str, Any]]:
    """The rows of `TrainingResult.margins` under `model` as trained; `beta` is None where nothing is rejected (SFT)."""
    margins = []
    for start in range(0, len(examples), batch_size):
        batch = examples[start : start + batch_size]
        logps = answer_logps(model.eval(), collator([{"row": start + i} for i in range(len(batch))])).tolist()
        for i, example in enumerate(batch):
            chosen, rejected, reward_margin = logps[i], None, None
            if beta is not None:
                rejected = logps[len(batch) + i]
                gain = (chosen - example.ref_chosen_logp) - (rejected - example.ref_rejected_logp)
                reward_margin = beta * gain
            margins.append(
                {
                    "pair_id": example.pair_id,
                    "reward_margin": reward_margin,
                    "chosen_logp_before": example.ref_chosen_logp,
                    "chosen_logp_after": chosen,
                    "rejected_logp_before": None if beta is None else example.ref_rejected_logp,
                    "rejected_logp_after": rejected,
                }
            )
    return margins


@contextlib.contextmanager
def measured(model: Any) -> "Iterator[dict[str, Any]]":
    """Gives counts, seconds and peak_memory of `TrainingResult` for the work inside, complete on leaving."""
    import torch

    counts = {"language_model_forwards": 0, "sequences": 0, "images_encoded": 0}
    measures: dict[str, Any] = {"counts": counts}
    tower_ran = False

    def language_model(module: Any, args: tuple, kwargs: dict) -> None:
        nonlocal tower_ran
        # Ids where the image stays outside the sequence (Llama 3.2 Vision), else embeddings.
        rows = next(len(kwargs[name]) for name in ("inputs_embeds", "input_ids") if kwargs.get(name) is not None)
        counts["language_model_forwards"] += 1
        counts["sequences"] += rows
        # What the tower gets is tiles or patches in many models; the rows that follow it have an image each.
        counts["images_encoded"] += rows if tower_ran else 0
        tower_ran = False

    def vision_tower(module: Any, args: tuple) -> None:
        nonlocal tower_ran
        tower_ran = True

    decoder, tower = language_model_and_tower(model)
    hooks = [
        decoder.register_forward_pre_hook(language_model, with_kwargs=True),
        tower.register_forward_pre_hook(vision_tower),
    ]
    on_gpu = model.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(model.device)
    started = time.perf_counter()
    try:
        yield measures
    finally:
        for hook in hooks:
            hook.remove()
    measures["seconds"] = time.perf_counter() - started
    if on_gpu:
        measures["peak_memory"] = torch.cuda.max_memory_allocated(model.device)
    else:
        # macOS counts bytes, others kibibytes.
        unit = 1 if sys.platform == "darwin" else 1024
        measures["peak_memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def n_trainable(model: Any) -> int:
    """Number of weights that training changes."""
    return sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
