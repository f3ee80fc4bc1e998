"""TRL's trainers, watched: a row a step, a row each time a pair is seen, and an end at the first number not finite."""

import math
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

from m3po_dagster.method.optimization.examples import PreferenceExample
from m3po_dagster.method.optimization.execution import Execution
from m3po_dagster.method.optimization.pair_records import recording
from m3po_dagster.method.optimization.step_batches import StepBatches

Progress = Callable[[int, int], None]

OF_A_PAIR = ("loss", "reward_margin", "chosen_logp", "rejected_logp")


def chosen_tokens(batch: dict[str, Any]) -> Any:
    """Where R_w's tokens stand in a batch, (B, length): of DPO's rows the first half, of SFT's all."""
    return batch["labels"] != -100 if "labels" in batch else batch["completion_mask"].chunk(2)[0]


def watched(
    trainer_class: type, examples: Sequence[PreferenceExample], progress: Progress | None, execution: Execution
) -> type:
    """`trainer_class` with its rows in `step_rows` and `trajectory` (see `TrainingResult`), on `execution`'s terms.

    A step holds the same examples, each counting alike, however processes and passes divide it. The trainer's dataset
    is `trainer_rows`; its collator's batches name their examples under `rows` and, where not all of them count, say
    which do under `counted`.
    """
    import torch
    from accelerate.data_loader import prepare_data_loader
    from accelerate.utils import gather_object, send_to_device

    class Watched(recording(trainer_class)):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.step_rows: list[dict[str, Any]] = []
            self.trajectory: list[dict[str, Any]] = []
            self._seen: list[dict[str, Any]] = []
            self._shares: list[float] = []
            self._token_shares: list[float] = []
            if execution.checkpoints:
                self.add_callback(execution.checkpoints.callback(self))

        def train(self, *args: Any, **kwargs: Any) -> Any:
            checkpoints = execution.checkpoints
            if checkpoints is None:
                return super().train(*args, **kwargs)
            try:
                return super().train(*args, resume_from_checkpoint=checkpoints.take_up(self), **kwargs)
            finally:
                checkpoints.release()

        def get_train_dataloader(self) -> torch.utils.data.DataLoader:
            batches = StepBatches(
                len(examples),
                self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size,
                self.args.per_device_train_batch_size,
                self.args.world_size,
                self.args.process_index,
                self.args.data_seed,
            )
            loader = torch.utils.data.DataLoader(
                self.train_dataset, batch_sampler=batches, collate_fn=self.data_collator
            )
            # The batches are this process's own already.
            return prepare_data_loader(
                loader, device=self.accelerator.device, num_processes=1, process_index=0, put_on_device=True
            )

        def get_batch_samples(self, epoch_iterator, num_batches, device):
            batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
            pieces = len(batches) * self.args.world_size
            self._shares = self._of_all([batch["counted"].sum() for batch in batches], pieces)
            tokens = [(chosen_tokens(batch)[:, 1:] * batch["counted"][:, None]).sum() for batch in batches]
            self._token_shares = self._of_all(tokens, pieces)
            return batches, items

        def _of_all(self, numbers: list[torch.Tensor], pieces: int) -> list[float]:
            """Each pass's number over the mean of all passes of all processes in this step."""
            mine = torch.stack(numbers)
            total = self.accelerator.reduce(mine.sum(), reduction="sum")
            return (mine * pieces / total).tolist()

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            rows, counted = inputs.pop("rows").tolist(), inputs.pop("counted", None)
            counted = [True] * len(rows) if counted is None else counted.tolist()
            loss = self._shared(super().compute_loss, model, inputs, return_outputs, num_items_in_batch)
            for row, counts, record in zip(rows, counted, self.take_records(), strict=True):
                if counts:
                    self._seen.append({"pair_id": examples[row].pair_id, **record})
            if not torch.isfinite(loss):
                self._stop("loss", loss.item(), self.state.global_step + 1)
            return loss

        def _shared(self, compute_loss, model, inputs, return_outputs, num_items_in_batch):
            """The loss, a mean over a pass, as its part of the mean over the step."""
            if num_items_in_batch is not None or not self._shares:
                # SFT's is divided by the tokens of the whole step; outside training there is no step.
                return compute_loss(model, inputs, return_outputs, num_items_in_batch)
            share, token_share = self._shares.pop(0), self._token_shares.pop(0)
            if "labels" in inputs:
                # SFT of a model that can't be told the tokens of the whole step is a mean over the pass's.
                return token_share * compute_loss(model, inputs, return_outputs, num_items_in_batch)
            weights = self.loss_weights
            if share:
                # TRL's sft term is a mean over tokens, every other one a mean over pairs.
                self.loss_weights = [
                    weight * token_share / share if name == "sft" else weight
                    for name, weight in zip(self.loss_types, weights, strict=True)
                ]
            try:
                return share * compute_loss(model, inputs, return_outputs, num_items_in_batch)
            finally:
                self.loss_weights = weights

        def records_of(self, batch: dict[str, torch.Tensor]) -> list[dict[str, Any]]:
            """The records of a collator's batch under the model as it stands (see `recording`); nothing is trained."""
            inputs = {name: value for name, value in batch.items() if name not in ("rows", "counted")}
            inputs = send_to_device(inputs, self.accelerator.device)
            self.model_wrapped.eval()
            with torch.no_grad(), self.compute_loss_context_manager():
                super().compute_loss(self.model_wrapped, inputs)
            return self.take_records()

        def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
            super().log(logs, start_time)
            row = logged_step(self.state.log_history, self._stop)
            if row is None:
                return
            seen, self._seen = gather_object(self._seen), []
            before = self.step_rows[-1]["pairs_seen"] if self.step_rows else 0
            margins = _known(seen, "reward_margin")
            self.step_rows.append(
                {
                    "step": row["step"],
                    "pairs_seen": before + len(seen),
                    "pair_ids": [record["pair_id"] for record in seen],
                    "loss": row["loss"],
                    "learning_rate": row["learning_rate"],
                    "grad_norm": row["grad_norm"],
                    "token_accuracy": sum(record["right"] for record in seen) / sum(r["tokens"] for r in seen),
                    "reward_accuracy": fmean(margin > 0 for margin in margins) if margins else None,
                    "reward_margin": fmean(margins) if margins else None,
                    "chosen_logp": fmean(_known(seen, "chosen_logp")) if margins else None,
                    "rejected_logp": fmean(_known(seen, "rejected_logp")) if margins else None,
                }
            )
            self.trajectory += [
                {"pair_id": record["pair_id"], "step": row["step"], **{name: record[name] for name in OF_A_PAIR}}
                for record in seen
            ]
            if progress is not None and self.accelerator.is_main_process:
                progress(row["step"], self.state.max_steps)

        def _stop(self, what: str, value: float, step: int) -> None:
            pairs = ", ".join(record["pair_id"] for record in self._seen)
            raise FloatingPointError(
                f"step {step}: the {what} is {value} on the pairs {pairs}; "
                "lower the learning rate, or look at these pairs"
            )

        def _load_from_checkpoint(self, *args: Any, **kwargs: Any) -> None:
            # peft would leave an adapter that TRL keeps in bfloat16 in float32.
            dtypes = {name: weight.dtype for name, weight in self.model.named_parameters() if weight.requires_grad}
            super()._load_from_checkpoint(*args, **kwargs)
            for name, weight in self.model.named_parameters():
                if name in dtypes:
                    weight.data = weight.data.to(dtypes[name])

        def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
            # What resuming reads, and nothing that would ask the hub about the base model.
            if self.args.should_save:
                self.accelerator.unwrap_model(self.model).save_pretrained(
                    output_dir, state_dict=state_dict, save_embedding_layers=False
                )

        def create_model_card(self, *args: Any, **kwargs: Any) -> None:
            """A checkpoint is nobody's model."""

        def _send_telemetry(self) -> None:
            """TRL reports every trainer's construction to its makers; this project tells nobody anything."""

    return Watched


def logged_step(history: Sequence[dict[str, Any]], stop: Callable[[str, float, int], None]) -> dict[str, Any] | None:
    """The step that was logged last; None for the closing summary. `stop` is called at a gradient not finite."""
    row = history[-1]
    if "loss" not in row:
        return None
    if not math.isfinite(row["grad_norm"]):
        stop("gradient norm", row["grad_norm"], row["step"])
    return row


def _known(records: Sequence[dict[str, Any]], name: str) -> list[float]:
    return [record[name] for record in records if record[name] is not None]
