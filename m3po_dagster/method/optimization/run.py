"""What a DPO and an SFT run share: the trainer's arguments, the watch over every step, counts, the result."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m3po_dagster.method.generation.model import LoadedModel
from m3po_dagster.method.generation.settings import ModelSettings
from m3po_dagster.method.optimization.backbone import give_backbone
from m3po_dagster.method.optimization.examples import PreferenceExample
from m3po_dagster.method.optimization.execution import PLAIN, Execution, processes
from m3po_dagster.method.optimization.lora import check_trainable, language_model_and_tower, lora_config, save_adapter
from m3po_dagster.method.optimization.pair_records import base_loss, check_whole
from m3po_dagster.method.optimization.settings import DpoSettings, LoraSettings, SftSettings
from m3po_dagster.method.optimization.watched import Progress, watched

if TYPE_CHECKING:
    import torch

# Columns of a batch that the trainers read and the model doesn't take.
BESIDE_THE_MODEL = frozenset({"completion_mask", "ref_chosen_logps", "ref_rejected_logps", "rows", "counted"})


@dataclass(frozen=True)
class TrainingResult:
    """What a training run leaves besides the adapter's files.

    `log`: a row a step: step, pairs_seen, pair_ids, loss, learning_rate, grad_norm, token_accuracy, and for DPO
    reward_accuracy, reward_margin, chosen_logp and rejected_logp (batch means; None for SFT). Until the first update
    every margin is 0 up to rounding, so that reward_accuracy is chance.
    `trajectory`: a row each time a pair was seen, from the step's own forward before its update: pair_id, step, and the
    pair's own loss (None for a loss that sorts a batch's answers), reward_margin, chosen_logp and rejected_logp.
    `margins`: a row an example: pair_id, reward_margin_before (0 by definition), reward_margin, loss_before, loss,
    chosen_logp_before, chosen_logp_after, rejected_logp_before, rejected_logp_after. The log-probs are sums in nats;
    `before` is the stored one. reward_margin is
    beta * ((chosen_after - chosen_before) - (rejected_after - rejected_before)), after training; what concerns the
    rejected answer is None for SFT. loss_before is None where the loss needs more than the stored log-probs.
    `counts`: language_model_forwards (calls), sequences (rows they held), images_encoded (images the vision
    tower got; one a row, however many tiles it is cut into).
    `facts`: what else the adapter's manifest says, by name.
    `seconds` covers checking, training and measuring, not loading.
    `used`: the facts of `DeviceUse` in the launched processes that trained, the peak of the fullest; empty where it
    was this process, whose own account they are.
    `resumed_from` is the step whose checkpoint was taken up, 0 for none. Rows, counts and seconds are those of the
    whole training, the steps before included; counts are of all processes together.
    `health`: what `health.health` measured of the trained model, outside of counts and seconds.
    """

    log: list[dict[str, Any]]
    margins: list[dict[str, Any]]
    counts: dict[str, int]
    seconds: float
    n_examples: int
    n_trainable: int
    trajectory: list[dict[str, Any]] = field(default_factory=list)
    resumed_from: int = 0
    health: Mapping[str, float] = field(default_factory=dict)
    facts: Mapping[str, float | int | None] = field(default_factory=dict)
    used: Mapping[str, object] = field(default_factory=dict)


def trainer_arguments(
    model: Any,
    settings: DpoSettings | SftSettings,
    seed: int,
    folder: str,
    execution: Execution = PLAIN,
) -> dict[str, Any]:
    """The arguments that TRL's DPOConfig and SFTConfig share; nothing is evaluated or reported."""
    share = settings.batch_size // processes()
    pass_size = execution.pass_size or share
    return {
        "output_dir": str(execution.checkpoints.folder) if execution.checkpoints else folder,
        "per_device_train_batch_size": pass_size,
        "gradient_accumulation_steps": share // pass_size,
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
        # Execution's checkpoints are, by time.
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def trainer_rows(examples: Sequence[PreferenceExample]) -> Any:
    """The trainer's dataset: indices of `examples`; the column `image` tells TRL to leave the work to the collator.

    The last row is StepBatches' stand-in: an example that does not count.
    """
    from datasets import Dataset

    rows = [*range(len(examples)), 0]
    return Dataset.from_dict(
        {
            "row": rows,
            "image": [str(examples[row].prompt.image_path) for row in rows],
            "counted": [True] * len(examples) + [False],
        }
    )


def marked(collator: Callable[[Sequence[dict]], "dict[str, torch.Tensor]"]) -> Any:
    """`collator`, its batches saying under `counted` (B,) which examples count; one that doesn't has no labels."""
    import torch

    def collate(rows: Sequence[dict]) -> "dict[str, torch.Tensor]":
        batch = dict(collator(rows))
        batch["counted"] = torch.tensor([row["counted"] for row in rows])
        if "labels" in batch:
            batch["labels"] = batch["labels"].masked_fill(~batch["counted"][:, None], -100)
        return batch

    return collate


def new_trainer(
    trainer_class: type,
    loaded: LoadedModel,
    config: Any,
    lora: LoraSettings,
    examples: Sequence[PreferenceExample],
    collator: Callable[[Sequence[dict]], "dict[str, torch.Tensor]"],
    progress: Progress | None,
    execution: Execution = PLAIN,
) -> Any:
    """TRL's trainer, watched and silent, with a new adapter on the model drawn from the seed in `config`.

    Raises ValueError as `check_trainable` does, and for a loss across pairs when a step's pairs are divided.
    """
    from transformers import PrinterCallback

    losses = config.loss_type if isinstance(config.loss_type, list) else ()
    check_whole(losses, config.gradient_accumulation_steps * processes())
    check_trainable(loaded)
    give_backbone(loaded.model)
    # The base model's own, since the stored log-probs are without it; the adapter comes after.
    without_dropout(loaded.model)
    trainer = watched(trainer_class, examples, progress, execution)(
        model=loaded.model,
        args=config,
        data_collator=marked(collator),
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


def margin_rows(
    trainer: Any,
    collator: Callable[[Sequence[dict]], "dict[str, torch.Tensor]"],
    examples: Sequence[PreferenceExample],
    settings: DpoSettings | SftSettings,
) -> list[dict[str, Any]]:
    """The rows of `TrainingResult.margins` under `trainer`'s model as trained, from one forward a batch.

    Processes share the work, and all have all the rows.
    """
    from accelerate.utils import gather_object

    size, state = trainer.args.per_device_train_batch_size, trainer.accelerator
    starts = list(range(0, len(examples), size))
    turns = -(-len(starts) // state.num_processes)
    found = []
    for turn in range(turns):
        number = turn * state.num_processes + state.process_index
        # All processes must take part in every forward; what is over is thrown away.
        start = starts[min(number, len(starts) - 1)]
        rows = range(start, min(start + size, len(examples)))
        records = trainer.records_of(collator([{"row": row} for row in rows]))
        if number < len(starts):
            found += [(row, record) for row, record in zip(rows, records, strict=True)]
    return [_margins(trainer, examples[row], record, settings) for row, record in sorted(gather_object(found))]


def _margins(
    trainer: Any, example: PreferenceExample, after: dict[str, Any], settings: DpoSettings | SftSettings
) -> dict[str, Any]:
    compared = settings.kind == "dpo"
    margin, before = None, -example.ref_chosen_logp / len(example.chosen_ids)
    if compared:
        gain = (after["chosen_logp"] - example.ref_chosen_logp) - (after["rejected_logp"] - example.ref_rejected_logp)
        margin, before = settings.beta * gain, base_loss(trainer, example)
    return {
        "pair_id": example.pair_id,
        "reward_margin_before": 0.0 if compared else None,
        "reward_margin": margin,
        "loss_before": before,
        "loss": after["loss"],
        "chosen_logp_before": example.ref_chosen_logp,
        "chosen_logp_after": after["chosen_logp"],
        "rejected_logp_before": example.ref_rejected_logp if compared else None,
        "rejected_logp_after": after["rejected_logp"],
    }


def write_adapter(trainer: Any, model: ModelSettings, out: Path) -> None:
    """Writes the trained adapter to the folder `out`, put together from all processes that hold a part of it."""
    weights = None
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if trainer.accelerator.is_main_process:
        save_adapter(trainer.accelerator.unwrap_model(trainer.model), model, out, weights)
    trainer.accelerator.wait_for_everyone()


@contextlib.contextmanager
def measured(model: Any, execution: Execution = PLAIN) -> "Iterator[dict[str, Any]]":
    """Gives counts, seconds and resumed_from of `TrainingResult` for the work inside, whole on leaving."""
    from accelerate.utils import gather_object

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
    started = time.perf_counter()

    def spent() -> dict[str, Any]:
        """By all processes, with what the steps before the checkpoint took that was taken up."""
        earlier = execution.checkpoints.carried if execution.checkpoints else {"seconds": 0.0, "counts": {}}
        of_all = gather_object([counts])
        return {
            "seconds": earlier["seconds"] + time.perf_counter() - started,
            "counts": {name: earlier["counts"].get(name, 0) + sum(one[name] for one in of_all) for name in counts},
        }

    if execution.checkpoints:
        execution.checkpoints.spent = spent
    try:
        yield measures
    finally:
        for hook in hooks:
            hook.remove()
    measures |= spent()
    measures["resumed_from"] = execution.checkpoints.carried["step"] if execution.checkpoints else 0


def n_trainable(model: Any) -> int:
    """Number of weights that training changes."""
    return sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
