"""What training did to the model, measured while it is in memory: the figures that an adapter's checks stand on.

On a seeded sample of the examples the policy is compared with the base model, which is the same model with its adapter
switched off, beside the true image and beside a blank one.
"""

import math
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from m3po_dagster.method.generation.model import LoadedModel
from m3po_dagster.method.optimization.batches import Batches
from m3po_dagster.method.optimization.blank import blanked
from m3po_dagster.method.optimization.examples import PreferenceExample
from m3po_dagster.method.optimization.run import BESIDE_THE_MODEL

if TYPE_CHECKING:
    import torch

SAMPLE = 64
"""Examples compared: the standard error of a mean is then an eighth of the examples' own spread, and the forwards stay
below those of eight steps of eight pairs."""
LOGITS = 2**26
"""Values of logits held at once for each of the two models: 256 MB in float32, 2,000 tokens of a vocabulary of 32K."""
ROWS = 256
"""Tokens whose distributions are compared at once."""
FEWEST_STEPS = 10
"""Steps below which the loss has no trend: a fifth of them would be a single batch."""


def health(
    loaded: LoadedModel,
    trainer: Any,
    examples: Sequence[PreferenceExample],
    margins: Sequence[Mapping[str, Any]],
    seed: int,
    beta: float | None,
) -> dict[str, float]:
    """The figures of what `trainer` trained; `beta` is None where nothing was rejected.

    Those of `loss_trend`, `drift`, `mas_agreement` and `against_base`. What can't be measured is left out.
    """
    return {
        **loss_trend(trainer.step_rows),
        **drift(examples, margins),
        **mas_agreement(examples, margins),
        **against_base(loaded, trainer.model, examples, trainer.args.per_device_train_batch_size, seed, beta),
    }


def loss_trend(log: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """`loss_first` and `loss_last`: the mean loss over the examples of the first and of the last fifth of the steps.

    A fifth, since the first steps of a warm-up change nothing and one batch's loss is mostly its own pairs'. Nothing
    for fewer than FEWEST_STEPS steps.
    """
    if len(log) < FEWEST_STEPS:
        return {}
    fifth = len(log) // 5

    def mean(rows: Sequence[Mapping[str, Any]]) -> float:
        sizes = [len(row["pair_ids"]) for row in rows]
        return sum(row["loss"] * size for row, size in zip(rows, sizes, strict=True)) / sum(sizes)

    return {"loss_first": mean(log[:fifth]), "loss_last": mean(log[-fifth:])}


def drift(examples: Sequence[PreferenceExample], margins: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """`chosen_drift` and `rejected_drift`: how far training moved an answer's log-prob, nats a token, over all pairs.

    The mean of the answers' means. DPO widens the difference of the two and may lower both.
    """
    by_id = {example.pair_id: example for example in examples}
    found: dict[str, list[float]] = {"chosen": [], "rejected": []}
    for row in margins:
        for answer, moved in found.items():
            ids = getattr(by_id[row["pair_id"]], f"{answer}_ids")
            if row[f"{answer}_logp_after"] is not None:
                moved.append((row[f"{answer}_logp_after"] - row[f"{answer}_logp_before"]) / len(ids))
    return {f"{answer}_drift": fmean(moved) for answer, moved in found.items() if moved}


def mas_agreement(examples: Sequence[PreferenceExample], margins: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """`mas_agreement`: the share of pairs in which the answer with the higher MAS has the higher reward.

    Of all pairs that MAS tells apart, whichever was the chosen one: a rule that prefers worse answers can be learned
    just as well.
    """
    gaps = {example.pair_id: example.mas_gap for example in examples}
    agree = [
        row["reward_margin"] * gaps[row["pair_id"]] > 0
        for row in margins
        if row["reward_margin"] is not None and gaps[row["pair_id"]]
    ]
    return {"mas_agreement": fmean(agree)} if agree else {}


def against_base(
    loaded: LoadedModel,
    model: Any,
    examples: Sequence[PreferenceExample],
    batch_size: int,
    seed: int,
    beta: float | None,
    blank: bool = True,
) -> dict[str, float]:
    """The policy against its base on SAMPLE of the examples, drawn by `seed`; at most `batch_size` at once.

    `kl_to_base`: KL(policy || base) in nats, exact over the vocabulary, the mean over the tokens of the answers.
    `gain` and `gain_blank`: what training gave the answers, beside the true image and beside a blank of the same size,
    the base model seeing the same image each time. With `beta` it is the reward margin of equation 4, else the change
    of R_w's log-prob a token. `image_gain` is their difference, `image_gain_error` its standard error (two examples or
    more). `blank` says whether images are blanked at all.
    `sampled`, `forwards` (calls of the model) and `seconds` say what it took.
    """
    started = time.perf_counter()
    draws = random.Random(seed)  # noqa: S311 - a draw that comes again
    sample = [examples[i] for i in sorted(draws.sample(range(len(examples)), min(SAMPLE, len(examples))))]
    model.eval()
    vocabulary = loaded.model.config.get_text_config().vocab_size
    kls: list[float] = []
    gains: dict[str, list[float]] = {"true": [], "blank": []}
    forwards = 0
    with TemporaryDirectory() as folder:
        blanks = blanked(sample, Path(folder)) if blank else []
        for image, shown in (("true", sample), ("blank", blanks)):
            batches = Batches(loaded, shown)
            make = batches.supervised if beta is None else batches.preference
            for rows in _in_batches(shown, batch_size, vocabulary, both=beta is not None):
                batch = make([{"row": row} for row in rows])
                policy, base = answers_under(model, batch), answers_under(model, batch, base=True)
                forwards += 2
                if image == "true":
                    kls += token_kl(policy[0], base[0]).tolist()
                gains[image] += _gains(policy[1] - base[1], [shown[row] for row in rows], beta)
    figures = {"sampled": len(sample), "kl_to_base": fmean(kls), "gain": fmean(gains["true"])}
    if blank:
        falls = [true - without for true, without in zip(gains["true"], gains["blank"], strict=True)]
        figures |= {"gain_blank": fmean(gains["blank"]), "image_gain": fmean(falls)}
        if len(falls) > 1:
            figures["image_gain_error"] = stdev(falls) / math.sqrt(len(falls))
    return {**figures, "forwards": forwards, "seconds": time.perf_counter() - started}


def answers_under(
    model: Any, batch: "Mapping[str, torch.Tensor]", base: bool = False
) -> "tuple[torch.Tensor, torch.Tensor]":
    """The logits (tokens, vocabulary) that predict the answers' tokens, row by row, and each row's log-prob (rows,).

    In nats. `base` switches the adapter off. `batch` is one of `Batches`; no other position goes through the LM head.
    """
    import contextlib

    import torch

    answer = batch["labels"] != -100 if "labels" in batch else batch["completion_mask"].bool()
    beside = BESIDE_THE_MODEL | {"labels"}
    inputs = {name: tensor.to(model.device) for name, tensor in batch.items() if name not in beside}
    # A token is predicted at the position before it; an answer never stands first.
    predicting = answer.roll(-1, dims=1).to(model.device)
    with torch.no_grad(), model.disable_adapter() if base else contextlib.nullcontext():
        logits = model(**inputs, use_cache=False, logits_to_keep=predicting).logits
    targets = batch["input_ids"][answer].to(logits.device)
    logps = torch.cat(
        [
            part.float().log_softmax(dim=-1).gather(1, tokens[:, None])[:, 0]
            for part, tokens in zip(logits.split(ROWS), targets.split(ROWS), strict=True)
        ]
    )
    return logits, torch.stack([row.sum() for row in logps.split(answer.sum(dim=1).tolist())])


def token_kl(policy: "torch.Tensor", base: "torch.Tensor") -> "torch.Tensor":
    """KL(policy || base) of the next token's distribution (tokens,), nats, from logits (tokens, vocabulary) of each."""
    import torch

    return torch.cat(
        [
            torch.nn.functional.kl_div(
                theirs.float().log_softmax(dim=-1), ours.float().log_softmax(dim=-1), reduction="none", log_target=True
            ).sum(dim=-1)
            for ours, theirs in zip(policy.split(ROWS), base.split(ROWS), strict=True)
        ]
    )


def _gains(moved: "torch.Tensor", examples: Sequence[PreferenceExample], beta: float | None) -> list[float]:
    """`against_base`'s gain of each example from the change of its rows' log-probs, the chosen answers' first."""
    changes = moved.tolist()
    if beta is None:
        return [change / len(example.chosen_ids) for change, example in zip(changes, examples, strict=True)]
    chosen, rejected = changes[: len(examples)], changes[len(examples) :]
    return [beta * (won - lost) for won, lost in zip(chosen, rejected, strict=True)]


def _in_batches(
    examples: Sequence[PreferenceExample], batch_size: int, vocabulary: int, both: bool
) -> Iterator[list[int]]:
    """Indices of the examples, as many at once as `batch_size` and LOGITS allow, and one at least."""
    batch: list[int] = []
    tokens = 0
    for i, example in enumerate(examples):
        more = len(example.chosen_ids) + (len(example.rejected_ids) if both else 0)
        if batch and (len(batch) == batch_size or (tokens + more) * vocabulary > LOGITS):
            yield batch
            batch, tokens = [], 0
        batch.append(i)
        tokens += more
    if batch:
        yield batch
