"""What simulated RLHF does to a model and leaves behind: TRL's RLOO and GRPO trainers, run on a tiny LLaVA."""

import math
from dataclasses import replace

import numpy as np
import pytest
from optimization_world import World
from pydantic import ValidationError

from m3po_dagster.method.generation.model import load_model
from m3po_dagster.method.optimization import rlhf
from m3po_dagster.method.optimization.answer_features import AnswerFeatures
from m3po_dagster.method.optimization.examples import PreferenceExample
from m3po_dagster.method.optimization.rlhf import check_processor, fit_rlhf, optimise, policy_rows, train_rlhf
from m3po_dagster.method.optimization.rlhf_settings import RlhfSettings
from m3po_dagster.method.prompt import Message

N, BATCH, ANSWERS, AT_ONCE, LENGTH = 10, 4, 4, 8, 6
STEPS = 3  # two of four prompts, and a last one of two others and two that come again
SETTINGS = RlhfSettings(
    batch_size=BATCH, answers=ANSWERS, answers_at_once=AT_ONCE, max_new_tokens=LENGTH, learning_rate=5e-3
)
SEED = 3


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("rlhf"), N)


@pytest.fixture(scope="module")
def examples(world):
    """Both answers of every pair, each alone with a MAS: what rule every_answer leaves."""
    answers = []
    for i, pair in enumerate(world.examples):
        both = (pair.chosen_ids, pair.ref_chosen_logp), (pair.rejected_ids, pair.ref_rejected_logp)
        for k, (ids, logp) in enumerate(both):
            mas = 1 / len(ids) + i / 100
            answers.append(PreferenceExample(f"{pair.pair_id}:{k}", pair.prompt, ids, None, logp, None, chosen_mas=mas))
    return answers


@pytest.fixture(scope="module", params=["rloo", "grpo"])
def run(request, world, examples, tmp_path_factory):
    """The algorithm, the adapter's folder, the run's result, and what `progress` was told."""
    out, told = tmp_path_factory.mktemp(request.param), []
    settings = SETTINGS.model_copy(update={"algorithm": request.param})
    result = train_rlhf(world.settings, examples, settings, SEED, out, lambda done, of: told.append((done, of)))
    return request.param, out, result, told


def test_every_forward_and_every_token_is_counted(run):
    algorithm, _, result, told = run
    reading = [result.facts["reward answers"], result.facts["reward told answers"]]
    fit = sum(math.ceil(number / AT_ONCE) for number in reading)
    parts = BATCH * ANSWERS // AT_ONCE
    # Sampling: the prompt, then a token at a time. Reward, reference and gradient; rloo's log-prob before the step.
    a_step = LENGTH + parts * (4 if algorithm == "rloo" else 3)
    assert result.counts["language_model_forwards"] == fit + STEPS * a_step
    sampled = STEPS * BATCH * ANSWERS
    assert result.counts["sampled_tokens"] == round(sum(row["answer_tokens"] for row in result.log) * BATCH * ANSWERS)
    assert sampled < result.counts["sampled_tokens"] <= sampled * LENGTH
    assert told == [(done, fit + STEPS) for done in range(1, fit + STEPS + 1)]


def test_a_row_a_step(run):
    _, _, result, _ = run
    assert [row["step"] for row in result.log] == [1, 2, 3]
    assert [row["pairs_seen"] for row in result.log] == [16, 32, 48]
    assert all(math.isfinite(row[name]) for row in result.log for name in ("loss", "reward", "kl", "grad_norm"))
    # The warm-up starts at 0, so that the second step's answers are the base model's too.
    assert [row["kl"] for row in result.log[:2]] == pytest.approx([0, 0], abs=1e-6)
    assert result.log[2]["kl"] > 1e-4
    assert (result.margins, result.n_examples, result.facts["policy prompts"]) == ([], 2 * N, N)
    assert result.facts["reward prompts"] + result.facts["reward told prompts"] == N


def test_the_adapter_is_the_language_models(run, world):
    _, out, result, _ = run
    from safetensors.numpy import load_file

    weights = load_file(out / "adapter_model.safetensors")
    assert sum(weight.size for weight in weights.values()) == result.n_trainable
    assert all(".language_model.layers." in name for name in weights)
    assert all(weight.any() for name, weight in weights.items() if "lora_B" in name), "a weight that learned nothing"
    world.load(adapter=out)


@pytest.mark.slow
def test_the_seed_decides_everything(run, world, examples, tmp_path):
    algorithm, out, result, _ = run
    settings = SETTINGS.model_copy(update={"algorithm": algorithm})
    again = train_rlhf(world.settings, examples, settings, SEED, tmp_path / "again")
    assert again.log == result.log
    name = "adapter_model.safetensors"
    assert (tmp_path / "again" / name).read_bytes() == (out / name).read_bytes()


@pytest.mark.slow
def test_gradient_checkpointing_and_smaller_forwards_change_nothing(run, world, examples):
    algorithm, _, result, _ = run
    changed = {"algorithm": algorithm, "gradient_checkpointing": True, "answers_at_once": AT_ONCE // 2}
    _, other = fit_rlhf(world.load(), examples, SETTINGS.model_copy(update=changed), SEED)
    assert other.counts["sampled_tokens"] == result.counts["sampled_tokens"]
    for name in ("reward", "kl", "answer_tokens"):
        assert [row[name] for row in other.log] == pytest.approx([row[name] for row in result.log], abs=1e-4)


def even(asked, answers) -> list[float]:
    """The share of the answer's tokens that have even ids: a reward without a model, about a half by chance."""
    return [sum(token % 2 == 0 for token in answer) / len(answer) for answer in answers]


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
def test_a_reward_that_is_easy_is_found_and_a_price_on_kl_holds_the_policy_back(world, algorithm):
    settings = {"epochs": 5, "learning_rate": 2e-2, "answers": 8, "algorithm": algorithm}
    prompts = [example.prompt for example in world.examples]
    rows = {
        beta: optimise(
            world.load(), prompts, even, SETTINGS.model_copy(update={**settings, "beta": beta}), SEED
        ).step_rows
        for beta in (0.001, 10.0)
    }

    def late(beta: float, name: str) -> float:
        return np.mean([row[name] for row in rows[beta][-6:]])

    # The warm-up's first step is at a learning rate of 0.
    assert late(0.001, "reward") > np.mean([row["reward"] for row in rows[0.001][:2]]) + 0.1
    assert late(10.0, "reward") < late(0.001, "reward") - 0.03
    assert late(10.0, "kl") < late(0.001, "kl") / 2


def test_the_reward_is_read_off_the_base_model_whatever_the_policy_has_become(world):
    """It is of the answers' ids as sampled, each with the prompt it was sampled to."""
    loaded, seen = world.load(), []
    features = AnswerFeatures(loaded)
    prompts = [example.prompt for example in world.examples]

    def reward(asked, answers):
        seen.append((list(asked), [tuple(answer) for answer in answers], features(asked, answers)))
        return [float(len(answer)) for answer in answers]

    trainer = optimise(loaded, prompts, reward, SETTINGS, SEED)
    assert [len(answers) for _, answers, _ in seen] == [AT_ONCE] * (STEPS * BATCH * ANSWERS // AT_ONCE)
    base = AnswerFeatures(world.load())
    for asked, answers, read in (seen[0], seen[-1]):
        assert [len(set(asked)), asked.count(asked[0])] == [AT_ONCE // ANSWERS, ANSWERS]
        assert read == pytest.approx(base(asked, answers), abs=1e-5)
    asked, answers, read = seen[-1]
    assert np.abs(read - features(asked, answers)).max() > 1e-3, "the policy is still the base model"
    sampled = [answer for _, answers, _ in seen for answer in answers]
    assert not any(set(loaded.suppressed) & set(answer) for answer in sampled)
    assert trainer.sampled_tokens == sum(map(len, sampled))


def test_a_number_that_is_not_finite_stops_the_run(world):
    loaded = world.load()
    prompts = [example.prompt for example in world.examples[:BATCH]]
    with pytest.raises(FloatingPointError, match=r"step 1: the reward of an answer to prompt prompt-\d is nan"):
        optimise(loaded, prompts, lambda asked, answers: [math.nan] * len(answers), SETTINGS, SEED)


def test_every_prompt_is_answered_and_what_is_lacking_comes_again(world):
    prompts = [example.prompt for example in world.examples]
    rows = policy_rows(prompts, 4, SEED).with_format(None)["row"]
    assert sorted(set(rows)) == list(range(N))
    assert len(rows) == 12
    assert len(policy_rows(prompts[:1], 3, SEED)) == 3
    assert len(policy_rows(prompts[:4], 4, SEED)) == 4


def test_a_prompt_that_trl_reads_otherwise_stops_the_run(world, examples, monkeypatch):
    """The reward was fitted to the candidates' prompts, token for token."""
    own = rlhf.encode

    def otherwise(loaded, prompts):
        return own(loaded, [replace(prompt, messages=(Message("user", "Is it red?"),)) for prompt in prompts])

    monkeypatch.setattr(rlhf, "encode", otherwise)
    with pytest.raises(ValueError, match=r"prompt prompt-\d: TRL reads it as \d+ other tokens than the \d+ that cand"):
        optimise(world.load(), [examples[0].prompt], lambda asked, answers: [0.0] * len(answers), SETTINGS, SEED)


def test_what_cannot_be_trained_on_is_refused(world, examples):
    loaded = world.load()
    with pytest.raises(ValueError, match="no examples to train on"):
        fit_rlhf(loaded, [], SETTINGS, SEED)
    four_bits = load_model(world.settings.model_copy(update={"quantization": "4bit"}))
    with pytest.raises(ValueError, match="4-bit weights can't be trained on a CPU"):
        fit_rlhf(four_bits, examples, SETTINGS, SEED)
    placeholder = loaded.image_token_id
    with pytest.raises(ValueError, match="pair pair-0:0: an answer holds the image placeholder"):
        fit_rlhf(loaded, [replace(examples[0], chosen_ids=(placeholder, 2)), *examples[1:]], SETTINGS, SEED)
    loaded.processor.chat_template = None
    with pytest.raises(
        ValueError, match="LlavaForConditionalGeneration has no chat template, which TRL's RLOO and GRPO"
    ):
        check_processor(loaded)
    with pytest.raises(ValidationError, match=r"batch_size x answers = 64 answers, which is no multiple of .*48"):
        RlhfSettings(answers_at_once=48)
    with pytest.raises(ValidationError, match=r"lora.dropout 0\.1 would make the policy .* another at every forward"):
        RlhfSettings(lora={"dropout": 0.1})


def test_a_run_says_nothing_and_tells_nobody(world, capfd, monkeypatch, recwarn):
    from trl.trainer import base_trainer

    told = []
    monkeypatch.setattr(base_trainer, "send_telemetry", lambda *args, **kwargs: told.append(args))
    monkeypatch.delenv("CI", raising=False)
    loaded = world.load()
    capfd.readouterr()
    recwarn.clear()
    prompts = [example.prompt for example in world.examples[:BATCH]]
    trainer = optimise(loaded, prompts, lambda asked, answers: [0.5] * len(answers), SETTINGS, SEED)
    assert capfd.readouterr() == ("", "")
    assert [str(warning.message) for warning in recwarn] == []
    assert told == []
    assert trainer.step_rows[0]["reward"] == 0.5
