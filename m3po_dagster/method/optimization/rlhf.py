"""Simulated RLHF with LoRA on TRL: the paper's baseline "a proxy reward guides policy optimisation" (section 4.1).

TRL's RLOO or GRPO trainer samples answers to every prompt from the policy as it stands and raises the likelihood of
those with more reward than their siblings. The reward is `proxy_reward`'s, read off the base model that lies under the
adapter: no second model is held.
"""

import math
import random
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from m3po_dagster.method.generation.encoding import encode
from m3po_dagster.method.generation.model import LoadedModel, load_model, without_deprecation
from m3po_dagster.method.generation.settings import ModelSettings
from m3po_dagster.method.optimization.answer_features import AnswerFeatures
from m3po_dagster.method.optimization.backbone import give_backbone
from m3po_dagster.method.optimization.batches import Batches
from m3po_dagster.method.optimization.examples import PreferenceExample, check_examples
from m3po_dagster.method.optimization.health import against_base
from m3po_dagster.method.optimization.lora import check_trainable, lora_config, save_adapter
from m3po_dagster.method.optimization.proxy_reward import fit_proxy_reward, forwards, split
from m3po_dagster.method.optimization.rlhf_settings import RlhfSettings
from m3po_dagster.method.optimization.run import (
    Progress,
    TrainingResult,
    measured,
    n_trainable,
    trainer_arguments,
    without_dropout,
)
from m3po_dagster.method.optimization.watched import logged_step
from m3po_dagster.method.prompt import Prompt

Reward = Callable[[Sequence[Prompt], Sequence[Sequence[int]]], Sequence[float]]
"""(prompts, their answers as sampled token ids) -> a reward each; called with the adapter switched off."""


def train_rlhf(
    model: ModelSettings,
    examples: Sequence[PreferenceExample],
    settings: RlhfSettings,
    seed: int,
    out: Path,
    progress: Progress | None = None,
) -> TrainingResult:
    """Fits the proxy reward, optimises the policy and writes its adapter to the folder `out`.

    `examples`: a scored answer each (chosen_ids, chosen_mas), as many as there are to a prompt; their prompts are what
    the policy is trained on. `seed` draws what `train_dpo`'s does, the prompts of the reward and the sampled answers.
    `progress` counts the forwards of the reward's fit and the policy's steps together. Raises ValueError when the
    examples, or the model's processor, can't be used so, FloatingPointError at the first loss or gradient that is not
    finite; nothing is written then.
    """
    trainer, result = fit_rlhf(load_model(settings.model_of(model)), examples, settings, seed, progress)
    save_adapter(trainer.model, model, out)
    return result


def fit_rlhf(
    loaded: LoadedModel,
    examples: Sequence[PreferenceExample],
    settings: RlhfSettings,
    seed: int,
    progress: Progress | None = None,
) -> tuple[Any, TrainingResult]:
    """`train_rlhf` on a model in memory, which gets the adapter; returns TRL's trainer too, `trainer.model` trained."""
    check_examples(examples, needs_rejected=False)
    Batches(loaded, examples)  # refuses answers that hold the image placeholder
    check_trainable(loaded)
    check_processor(loaded)
    prompts = list({example.prompt.prompt_id: example.prompt for example in examples}.values())
    parts = split(examples, settings, seed)
    reading = forwards(parts, settings.answers_at_once)
    total = reading + math.ceil(len(prompts) / settings.batch_size) * settings.epochs
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    give_backbone(loaded.model)
    without_dropout(loaded.model)
    with measured(loaded.model) as measures:
        features = AnswerFeatures(loaded)
        reward = fit_proxy_reward(features, examples, parts, settings.answers_at_once, seed, advance)
        trainer = optimise(loaded, prompts, reward, settings, seed, advance)
    measures["counts"]["sampled_tokens"] = trainer.sampled_tokens
    return trainer, TrainingResult(
        log=trainer.step_rows,
        margins=[],
        n_examples=len(examples),
        n_trainable=n_trainable(trainer.model),
        facts={f"reward {name.replace('_', ' ')}": figure for name, figure in reward.figures.items()}
        | {"policy prompts": len(prompts)},
        health=against_base(loaded, trainer.model, examples, settings.answers_at_once, seed, beta=None, blank=False),
        **measures,
    )


def check_processor(loaded: LoadedModel) -> None:
    """Raises ValueError for a model that TRL's trainers can't give prompts to."""
    if not loaded.processor.chat_template or loaded.image_token_id is None:
        missing = "image token in its config" if loaded.processor.chat_template else "chat template"
        raise ValueError(
            f"{type(loaded.model).__name__} has no {missing}, which TRL's RLOO and GRPO trainers need: train it by dpo "
            "or sft"
        )


def optimise(
    loaded: LoadedModel,
    prompts: Sequence[Prompt],
    reward: Reward,
    settings: RlhfSettings,
    seed: int,
    advance: Callable[[], None] = lambda: None,
) -> Any:
    """TRL's trainer after its run on `prompts` against any reward; `advance` is called every step.

    `trainer.model` is the policy, `trainer.step_rows` the rows of `TrainingResult.log`, `trainer.sampled_tokens` the
    number of tokens sampled. Every prompt is answered once an epoch; where the last step lacks some, others come again.
    """
    from transformers import PrinterCallback

    def proxy_reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return trainer.rewards_of(completion_ids)

    with tempfile.TemporaryDirectory() as folder, without_deprecation():
        config = trainer_config(loaded, settings, seed, folder)
        trainer = policy_trainer(settings.algorithm, loaded, prompts, reward, settings.answers_at_once, advance)(
            model=loaded.model,
            args=config,
            reward_funcs=proxy_reward,
            train_dataset=policy_rows(prompts, settings.batch_size, seed),
            processing_class=loaded.processor,
            peft_config=lora_config(loaded.model, settings.lora),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return trainer


def trainer_config(loaded: LoadedModel, settings: RlhfSettings, seed: int, folder: str) -> Any:
    """TRL's RLOOConfig or GRPOConfig: a step samples batch_size x answers answers at once, then takes them in parts."""
    from trl import GRPOConfig, RLOOConfig

    arguments = trainer_arguments(loaded.model, settings, seed, folder)
    # Prompts are never cut here.
    del arguments["max_length"]
    arguments |= {
        "per_device_train_batch_size": settings.answers_at_once,
        "gradient_accumulation_steps": settings.batch_size * settings.answers // settings.answers_at_once,
        "num_generations": settings.answers,
        "max_completion_length": settings.max_new_tokens,
        "temperature": settings.temperature,
        "beta": settings.beta,
        # Beside the image token, which TRL suppresses itself, all that an answer must not hold.
        "generation_kwargs": {"suppress_tokens": list(loaded.suppressed)},
    }
    return (RLOOConfig if settings.algorithm == "rloo" else GRPOConfig)(**arguments)


def policy_rows(prompts: Sequence[Prompt], batch_size: int, seed: int) -> Any:
    """The trainer's dataset: conversations with their images, opened when they are asked for.

    TRL leaves out what does not fill a step: some prompts, drawn by `seed`, stand twice so that none is.
    """
    from datasets import Dataset

    draws, lacking = random.Random(seed), -len(prompts) % batch_size  # noqa: S311 - a draw that comes again
    rows = list(range(len(prompts)))
    while lacking > 0:
        again = draws.sample(range(len(prompts)), min(lacking, len(prompts)))
        rows += again
        lacking -= len(again)

    def conversations(batch: dict[str, list[int]]) -> dict[str, list[Any]]:
        picked = [prompts[row] for row in batch["row"]]
        return {
            "row": batch["row"],
            "prompt": [prompt.chat() for prompt in picked],
            "image": [prompt.open_image() for prompt in picked],
        }

    return Dataset.from_dict({"row": rows}).with_transform(conversations)


def policy_trainer(
    algorithm: str,
    loaded: LoadedModel,
    prompts: Sequence[Prompt],
    reward: Reward,
    at_once: int,
    advance: Callable[[], None],
) -> type:
    """TRL's trainer class: it keeps a row a step, is silent, and stops at the first number that is not finite."""
    import torch
    from trl import GRPOTrainer, RLOOTrainer

    class Policy(RLOOTrainer if algorithm == "rloo" else GRPOTrainer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.step_rows: list[dict[str, Any]] = []
            self.sampled_tokens = self.sampled_answers = 0
            self.asked: list[Prompt] = []
            self.compared = False

        def _generate_and_score_completions(self, inputs):
            self.asked = [prompts[row["row"]] for row in inputs]
            return super()._generate_and_score_completions(inputs)

        def _tokenize_prompts(self, conversations):
            found = super()._tokenize_prompts(conversations)
            if not self.compared:
                self._compare(found[0])
                self.compared = True
            return found

        def _compare(self, prompt_ids: list[list[int]]) -> None:
            """The policy must be asked as the candidates were, or the reward is for other prompts than it is given."""
            answerable = encode(loaded, self.asked)
            for error in answerable.errors.values():
                raise error
            own = answerable.inputs["attention_mask"].bool()
            for prompt, ids, row, kept in zip(self.asked, prompt_ids, answerable.inputs["input_ids"], own, strict=True):
                if list(ids) != row[kept].tolist():
                    raise ValueError(
                        f"prompt {prompt.prompt_id}: TRL reads it as {len(ids)} other tokens than the "
                        f"{int(kept.sum())} that candidates were sampled from: train {type(loaded.model).__name__} by "
                        "dpo or sft"
                    )

        def rewards_of(self, answers: list[list[int]]) -> list[float]:
            self.sampled_tokens += sum(map(len, answers))
            self.sampled_answers += len(answers)
            rewards: list[float] = []
            with self.accelerator.unwrap_model(self.model).disable_adapter():
                for start in range(0, len(answers), at_once):
                    some = slice(start, start + at_once)
                    rewards += [float(value) for value in reward(self.asked[some], answers[some])]
            for prompt, value in zip(self.asked, rewards, strict=True):
                if not math.isfinite(value):
                    raise FloatingPointError(
                        f"step {self.state.global_step + 1}: the reward of an answer to prompt {prompt.prompt_id} is "
                        f"{value}: the base model's hidden states overflow in {loaded.precision}: change model.dtype"
                    )
            return rewards

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            if not torch.isfinite(loss):
                self._stop("loss", loss.item(), self.state.global_step + 1)
            return loss

        def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
            super().log(logs, start_time)
            row = logged_step(self.state.log_history, self._stop)
            if row is None:
                return
            self.step_rows.append(
                {
                    "step": row["step"],
                    "pairs_seen": self.sampled_answers,
                    "pair_ids": [],
                    "loss": row["loss"],
                    "learning_rate": row["learning_rate"],
                    "grad_norm": row["grad_norm"],
                    "reward": row["reward"],
                    "kl": row.get("kl"),
                    "answer_tokens": row["completions/mean_length"],
                }
            )
            advance()

        def _stop(self, what: str, value: float, step: int) -> None:
            raise FloatingPointError(f"step {step}: the {what} is {value}; lower the learning rate, or raise beta")

        def _send_telemetry(self) -> None:
            """TRL reports every trainer's construction to its makers; this project tells nobody anything."""

    return Policy
