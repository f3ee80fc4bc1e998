"""What the proxy reward reads of an answer, which prompts it learns from, and how it says what it is worth."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optimization_world import World

from m3po_dagster.assets.checks import Check
from m3po_dagster.assets.training_checks import training_checks
from m3po_dagster.method.optimization.answer_features import AnswerFeatures
from m3po_dagster.method.optimization.examples import PreferenceExample
from m3po_dagster.method.optimization.proxy_reward import Split, fit_proxy_reward, forwards, split
from m3po_dagster.method.optimization.rlhf_settings import RlhfSettings
from m3po_dagster.method.prompt import Message, Prompt

N, ANSWERS = 16, 6


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("proxy"), N)


@pytest.fixture(scope="module")
def loaded(world):
    return world.load()


@pytest.fixture(scope="module")
def answers(world, loaded):
    """Answers of random words to every prompt, of 1 to 9 tokens."""
    rng = np.random.default_rng(0)
    words = [i for i in range(len(loaded.tokenizer)) if i not in loaded.tokenizer.all_special_ids]
    return [
        PreferenceExample(
            f"{example.pair_id}:{k}",
            example.prompt,
            tuple(rng.choice(words, rng.integers(1, 10)).tolist()),
            None,
            -1,
            None,
        )
        for example in world.examples
        for k in range(ANSWERS)
    ]


@pytest.fixture(scope="module")
def read(answers, loaded):
    """Every answer's features by its pair_id, read four at a time."""
    blocks = [answers[start : start + 4] for start in range(0, len(answers), 4)]
    features = AnswerFeatures(loaded)
    rows = [features([one.prompt for one in block], [one.chosen_ids for one in block]) for block in blocks]
    return dict(zip([one.pair_id for one in answers], np.concatenate(rows), strict=True))


def test_features_are_those_of_one_plain_forward_an_answer(answers, loaded, read):
    import torch

    hidden = loaded.model.config.text_config.hidden_size
    head = loaded.model.get_output_embeddings().weight.detach()
    for answer in answers[::17]:
        prompt, ids = answer.prompt, torch.tensor([answer.chosen_ids])
        text = loaded.processor.apply_chat_template(prompt.chat(), tokenize=False, add_generation_prompt=True)
        inputs = loaded.processor(
            images=[prompt.open_image()], text=[text], add_special_tokens=False, return_tensors="pt"
        )
        sequence = torch.cat([inputs["input_ids"], ids], dim=1)
        with torch.no_grad():
            output = loaded.model(input_ids=sequence, pixel_values=inputs["pixel_values"], output_hidden_states=True)
        start, states = inputs["input_ids"].shape[1], output.hidden_states[-1][0]
        mean, evidence, least = np.split(read[answer.pair_id], 3)
        assert mean == pytest.approx(states[start:].mean(dim=0).numpy(), abs=1e-5)
        products = (states[start - 1 : -1] * head[ids[0]]).numpy()
        assert evidence == pytest.approx(products.mean(axis=0), abs=1e-5)
        assert least == pytest.approx(products.min(axis=0), abs=1e-5)
        # Together they are the mean logit of the answer's tokens.
        logits = output.logits[0, start - 1 : -1].gather(1, ids.T)
        assert evidence.sum() == pytest.approx(logits.mean().item(), abs=1e-4)
        assert read[answer.pair_id].shape == (3 * hidden,)


@pytest.fixture(scope="module")
def learnable(answers, read):
    """A MAS in [0, 1] that is a linear function of the features, the one in which they differ most."""
    rows = np.array([read[one.pair_id] for one in answers])
    values = np.linalg.svd((rows - rows.mean(axis=0)) / rows.std(axis=0), full_matrices=False)[0][:, 0]
    mas = (values - values.min()) / np.ptp(values)
    return [replace(one, chosen_mas=float(value)) for one, value in zip(answers, mas, strict=True)]


def test_what_is_a_function_of_the_features_is_learned(loaded, learnable):
    parts, calls = split(learnable, RlhfSettings(), 0), []
    reward = fit_proxy_reward(AnswerFeatures(loaded), learnable, parts, 8, 0, lambda: calls.append(1))
    assert len(calls) == forwards(parts, 8) == -(-len(parts.fitted) // 8) + -(-len(parts.told) // 8)
    figures = reward.figures
    assert figures["r2"] > 0.8
    assert figures["rank_correlation"] > 0.7
    assert figures["prompts"] + figures["told_prompts"] == N
    assert figures["answers"] + figures["told_answers"] == N * ANSWERS
    told = [learnable[index] for index in parts.told]
    guesses = reward([one.prompt for one in told], [one.chosen_ids for one in told])
    mas = np.array([one.chosen_mas for one in told])
    assert 1 - np.square(guesses - mas).sum() / np.square(mas - mas.mean()).sum() == pytest.approx(figures["r2"])


def outcome(*seeds: dict) -> Check:
    """The check of what these seeds' adapters say of their reward."""
    told = {"finite": True, "reward accuracy": None, "health": {}}
    trained = {
        seed: told | {f"reward {name.replace('_', ' ')}": value for name, value in figures.items()}
        for seed, figures in enumerate(seeds)
    }
    return next(check for check in training_checks(trained) if check.name == "proxy_reward")


def test_a_reward_that_is_noise_is_warned_of(loaded, learnable):
    draws = np.random.default_rng(1).random(len(learnable))
    noise = [replace(one, chosen_mas=float(draw)) for one, draw in zip(learnable, draws, strict=True)]
    parts = split(noise, RlhfSettings(), 0)
    figures = fit_proxy_reward(AnswerFeatures(loaded), noise, parts, 8, 0).figures
    assert figures["rank_correlation_low"] < 0
    assert not outcome(figures).passed
    assert not outcome(figures).blocking
    learned = fit_proxy_reward(AnswerFeatures(loaded), learnable, parts, 8, 0).figures
    assert outcome(learned).passed
    assert outcome().passed and not outcome(learned, figures).passed
    assert not outcome({"rank_correlation": None, "rank_correlation_low": None}).passed


def test_answers_without_a_score_are_refused_by_name(loaded, learnable):
    parts = Split([0, 1, 2, 3], [4, 5])
    with pytest.raises(ValueError, match=r"pair pair-0:4: its answer's MAS is None.*rule every_answer"):
        fit_proxy_reward(
            AnswerFeatures(loaded),
            [*learnable[:4], replace(learnable[4], chosen_mas=None), *learnable[5:]],
            parts,
            8,
            0,
        )
    flat = [replace(one, chosen_mas=0.5) for one in learnable]
    with pytest.raises(ValueError, match=r"all 4 answers of the proxy reward have a MAS of 0\.5: there is nothing"):
        fit_proxy_reward(AnswerFeatures(loaded), flat, parts, 8, 0)


def answers_to(prompt_ids: list[int]) -> list[PreferenceExample]:
    """Two answers to each prompt, their examples apart from one another."""
    prompts = {i: Prompt(f"prompt {i}", Path("image.png"), (Message("user", "What?"),)) for i in prompt_ids}
    return [
        PreferenceExample(f"{i}:{k}", prompts[i], (1, 2), None, -1.0, None, chosen_mas=0.5)
        for k in range(2)
        for i in prompt_ids
    ]


@given(st.integers(0, 1000), st.floats(0.2, 0.8), st.integers(0, 30))
def test_prompts_go_whole_to_one_side_and_others_move_none(seed, share, more):
    settings = RlhfSettings(reward_share=share)
    few, many = answers_to(list(range(60))), answers_to(list(range(60 + more)))
    sides = []
    for examples in (few, many):
        parts = split(examples, settings, seed)
        assert sorted(parts.fitted + parts.told) == list(range(len(examples)))
        fitted, told = ({examples[index].prompt.prompt_id for index in side} for side in (parts.fitted, parts.told))
        assert not fitted & told
        sides.append(fitted)
    assert sides[0] == {prompt_id for prompt_id in sides[1] if int(prompt_id.split()[1]) < 60}


def test_the_share_and_the_most_answers_are_kept():
    examples = answers_to(list(range(2000)))
    parts = split(examples, RlhfSettings(reward_share=0.3), 0)
    assert len(parts.fitted) / len(examples) == pytest.approx(0.3, abs=0.04)
    capped = split(examples, RlhfSettings(reward_share=0.3, reward_answers=100), 0)
    assert len(capped.fitted) == 100
    assert len(capped.told) == 24, "a quarter as many, by whole prompts"
    assert set(capped.fitted) < set(parts.fitted)
    assert split(examples, RlhfSettings(), 1) != split(examples, RlhfSettings(), 2)


def test_too_few_prompts_are_refused():
    with pytest.raises(ValueError, match=r"reward_share 0\.5 of 2 prompts leaves \d and \d"):
        split(answers_to([0, 1]), RlhfSettings(), 0)
