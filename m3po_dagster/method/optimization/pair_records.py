"""What a forward of TRL's trainers says of each of its examples, without another forward.

The trainers compute one loss a batch. Here the model's outputs are kept as they pass, and TRL's own loss is computed
once more on the rows of each pair alone: the arithmetic of every loss stays TRL's.
"""

import contextlib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import fields
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from m3po_dagster.method.optimization.examples import PreferenceExample

ACROSS_PAIRS = frozenset({"aot", "aot_unpaired"})
"""Losses that sort a whole step's answers: no part of one belongs to a pair."""


def check_whole(losses: Collection[str], parts: int) -> None:
    """Raises ValueError for a loss across pairs whose step is computed in several parts."""
    if parts > 1 and ACROSS_PAIRS & set(losses):
        raise ValueError(
            f"a loss that sorts the answers of a whole step ({', '.join(sorted(ACROSS_PAIRS))}) can't be computed from "
            f"{parts} parts of it: train it with trainer kind local, without per_device_batch_size"
        )


def recording(trainer_class: type) -> type:
    """`trainer_class` (TRL's DPOTrainer, SFTTrainer or made from one) that has a record of each example of a loss.

    `take_records()` gives those since it was last called: `loss`, `reward_margin`, `chosen_logp`, `rejected_logp` (None
    where undefined: an SFT example has no rejected answer, a loss across pairs no part that is a pair's), and `right`
    of `tokens` tokens of R_w that were the likeliest. `loss` is what the batch's loss would be with this example alone.
    """
    from trl import DPOTrainer, SFTTrainer

    base = DPOTrainer if issubclass(trainer_class, DPOTrainer) else SFTTrainer
    mixin = _recording_dpo(base) if base is DPOTrainer else _recording_sft(base)
    # Between TRL's class and what was made from it, so that it sees what TRL's loss sees.
    return mixin if trainer_class is base else type("Recording", (trainer_class, mixin), {})


class _Records:
    """Keeps what the records are made from until they are asked for."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._passed: list[Callable[[], list[dict]]] = []
        super().__init__(*args, **kwargs)

    def take_records(self) -> list[dict]:
        """The records of the losses since the last call, in the order of their examples."""
        passed, self._passed = self._passed, []
        return [record for records in passed for record in records()]


def _recording_dpo(base: type) -> type:
    class RecordingDpo(_Records, base):
        def _compute_loss(self, model, inputs, return_outputs):
            kept, all_kept = [], []
            with alone(self), _watching(self.model, all_kept):
                loss = super()._compute_loss(_keeping(model, kept), inputs, return_outputs)
            # TRL's own reference forward, where it runs one, comes after the policy's.
            reference = None if self.precompute_ref_logps else all_kept[-1]
            self._passed.append(partial(dpo_records, self, inputs, kept[0], reference))
            return loss

    return RecordingDpo


def _recording_sft(base: type) -> type:
    class RecordingSft(_Records, base):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            kept = []
            with alone(self):
                loss = super().compute_loss(_keeping(model, kept), inputs, return_outputs, num_items_in_batch)
            self._passed.append(partial(sft_records, kept[0]))
            return loss

    return RecordingSft


@contextlib.contextmanager
def _watching(model: Any, kept: list) -> Iterator[None]:
    hook = model.register_forward_hook(lambda module, args, outputs: kept.append(outputs))
    try:
        yield
    finally:
        hook.remove()


def _keeping(model: Any, kept: list) -> Any:
    def forward(*args: Any, **kwargs: Any) -> Any:
        kept.append(model(*args, **kwargs))
        return kept[-1]

    return forward


class _Alone:
    """An accelerator that gathers nothing: what processes have to say of their examples is gathered a step at once."""

    def __init__(self, accelerator: Any) -> None:
        self._accelerator = accelerator

    def __getattr__(self, name: str) -> Any:
        return getattr(self._accelerator, name)

    @staticmethod
    def gather(tensor: "torch.Tensor") -> "torch.Tensor":
        return tensor

    gather_for_metrics = gather


@contextlib.contextmanager
def alone(trainer: Any) -> Iterator[None]:
    """Within, `trainer` computes its metrics over this process's rows; processes may have different numbers of them."""
    accelerator, trainer.accelerator = trainer.accelerator, _Alone(trainer.accelerator)
    try:
        yield
    finally:
        trainer.accelerator = accelerator


def dpo_records(trainer: Any, inputs: "Mapping[str, torch.Tensor]", outputs: Any, reference: Any) -> list[dict]:
    """A record a pair of a DPO batch (2B rows, the B chosen first) from the outputs of its forward.

    `reference` are those of TRL's own reference forward, where it runs one.
    """
    n = len(inputs["input_ids"]) // 2
    records = []
    for i in range(n):
        rows = [i, n + i]
        pair = {name: inputs[name][rows] for name in ("input_ids", "attention_mask", "completion_mask")}
        if reference is None:
            pair |= {name: inputs[name][i : i + 1] for name in ("ref_chosen_logps", "ref_rejected_logps")}
        else:
            # By TRL's own sums, which are not whole answers' under every setting.
            none = outputs.log_probs.new_zeros(1)
            of_reference = _trl_loss(
                trainer, {**pair, "ref_chosen_logps": none, "ref_rejected_logps": none}, _rows(reference, rows)
            )
            pair |= {f"ref_{answer}_logps": none + of_reference[f"{answer}_logp"] for answer in ("chosen", "rejected")}
        right, tokens = outputs.is_top1[i], pair["completion_mask"][0, 1:]
        records.append(
            {
                **_trl_loss(trainer, pair, _rows(outputs, rows)),
                # Of whole answers, whatever the loss makes of an answer's tail.
                "chosen_logp": outputs.log_probs[i].sum().item(),
                "rejected_logp": outputs.log_probs[n + i].sum().item(),
                "right": int((right & tokens.bool()).sum()),
                "tokens": int(tokens.sum()),
            }
        )
    return records


def base_loss(trainer: Any, example: "PreferenceExample") -> float | None:
    """The DPO loss of a pair before training, from its stored log-probs; None where the loss needs more than them."""
    import torch

    if trainer.use_weighting or trainer.ld_alpha is not None:
        return None
    sizes = (len(example.chosen_ids), len(example.rejected_ids))
    logps = (example.ref_chosen_logp, example.ref_rejected_logp)
    mask = torch.zeros(2, max(sizes) + 1, dtype=torch.long)
    log_probs = torch.zeros(2, max(sizes), dtype=torch.float64)
    for row, (size, logp) in enumerate(zip(sizes, logps, strict=True)):
        mask[row, 1 : size + 1] = 1
        # No loss asks which token has how much of it.
        log_probs[row, :size] = logp / size
    inputs = {"input_ids": mask, "attention_mask": mask, "completion_mask": mask}
    inputs |= {"ref_chosen_logps": log_probs[:1].sum(1), "ref_rejected_logps": log_probs[1:].sum(1)}
    nothing = torch.zeros_like(log_probs)
    outputs = SimpleNamespace(
        log_probs=log_probs, entropy=nothing, mean_logits=nothing, is_top1=torch.zeros_like(log_probs, dtype=torch.bool)
    )
    return _trl_loss(trainer, inputs, outputs)["loss"]


def sft_records(outputs: Any) -> list[dict]:
    """A record an example of an SFT batch from the outputs of its forward."""
    logps, tokens = outputs.log_probs.detach().sum(dim=1).tolist(), outputs.label_mask.sum(dim=1).tolist()
    return [
        {
            "loss": -logp / max(size, 1),
            "reward_margin": None,
            "chosen_logp": logp,
            "rejected_logp": None,
            "right": right,
            "tokens": size,
        }
        for logp, size, right in zip(logps, tokens, outputs.is_top1.sum(dim=1).tolist(), strict=True)
    ]


def _rows(outputs: Any, rows: list[int]) -> SimpleNamespace:
    named = {field.name: getattr(outputs, field.name) for field in fields(outputs)}
    return SimpleNamespace(
        **{name: tensor.detach()[rows] for name, tensor in named.items() if tensor is not None and tensor.dim() > 1}
    )


def _trl_loss(trainer: Any, inputs: "Mapping[str, torch.Tensor]", outputs: SimpleNamespace) -> dict[str, float | None]:
    """What TRL's DPO loss makes of one pair's rows."""
    import torch
    from trl import DPOTrainer

    # Restored: these rows are counted and logged with their batch.
    changed = {
        "_metrics": defaultdict(lambda: defaultdict(list)),
        "_total_train_tokens": trainer._total_train_tokens,
        "precompute_ref_logps": True,
        "aux_loss_enabled": False,
    }
    before = {name: getattr(trainer, name) for name in changed}
    vars(trainer).update(changed)
    try:
        with torch.no_grad(), alone(trainer):
            loss = DPOTrainer._compute_loss(trainer, lambda **_: outputs, inputs, False).item()
        (metrics,) = trainer._metrics.values()
    finally:
        vars(trainer).update(before)
    return {
        "loss": None if ACROSS_PAIRS & set(trainer.loss_types) else loss,
        "reward_margin": metrics["rewards/margins"][0],
        "chosen_logp": metrics["logps/chosen"][0],
        "rejected_logp": metrics["logps/rejected"][0],
    }
