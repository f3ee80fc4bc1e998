"""Rounds over one prefix: what is read once, what leaves, and that stopping others changes no prompt's samples."""

import pytest
from tiny_llava import tiny_llava, tiny_prompts

from m3po_dagster.method.generation.model import load_model
from m3po_dagster.method.generation.prefill import Counts
from m3po_dagster.method.generation.sampler import TransformersEngine
from m3po_dagster.method.generation.settings import ModelSettings, RoundSettings, SamplingSettings
from tests.sampling import in_order, sample

ROUNDS = SamplingSettings(
    n=RoundSettings(first=4, step=3, max=12), temperature=1.3, top_p=1, max_new_tokens=30, prompts_per_batch=3
)
SEEDS = [1000 * i for i in range(5)]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return load_model(ModelSettings(path=str(tiny_llava(tmp_path_factory.mktemp("llava"))), device="cpu"))


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    return tiny_prompts(tmp_path_factory.mktemp("images"), 5)


def tokens(samples) -> list:
    return [one.token_ids for one in samples]


def test_each_round_is_drawn_from_the_seed_plus_the_samples_before_it(loaded, prompts):
    found = sample(loaded, prompts, ROUNDS, SEEDS)
    for number, (size, before) in enumerate(((4, 0), (3, 4), (3, 7), (2, 10))):
        alone = ROUNDS.model_copy(update={"n": size})
        expected = sample(loaded, prompts, alone, [seed + before for seed in SEEDS])
        for ours, theirs in zip(found, expected, strict=True):
            assert tokens(ours[before : before + size]) == tokens(theirs), number


def test_a_prompt_is_read_once_for_all_rounds(loaded, prompts):
    rounds, one = Counts(), Counts()
    found = sample(loaded, prompts, ROUNDS, SEEDS, rounds)
    sample(loaded, prompts, ROUNDS.model_copy(update={"n": 12}), SEEDS, one)
    assert [len(samples) for samples in found] == [12] * 5
    for name in ("images_encoded", "prefill_forwards", "prefill_tokens"):
        assert getattr(rounds, name) == getattr(one, name) > 0, name


@pytest.mark.parametrize("stops", [{0: 1, 2: 2, 4: 1}, {1: 1}, {0: 1, 1: 1, 2: 1}, {3: 3, 4: 3}])
def test_a_prompt_has_the_same_samples_whoever_else_stopped(loaded, prompts, stops):
    """`stops`: prompt -> the round after which it stops; the longest prompt of a batch among them."""
    everything, counts, asked = sample(loaded, prompts, ROUNDS, SEEDS), Counts(), []

    def more(drawn):
        asked.append([(i, len(samples)) for i, samples in drawn])
        size_after = {4: 1, 7: 2, 10: 3}
        return [stops.get(i, 9) > size_after[len(samples)] for i, samples in drawn]

    found = in_order(TransformersEngine(loaded, counts).sample(prompts, ROUNDS, SEEDS, more))
    sizes = {1: 4, 2: 7, 3: 10, 9: 12}
    for i, (samples, all_of_them) in enumerate(zip(found, everything, strict=True)):
        assert len(samples) == sizes[stops.get(i, 9)]
        assert tokens(samples) == tokens(all_of_them[: len(samples)])
        assert [one.sum_logp for one in samples] == pytest.approx(
            [one.sum_logp for one in all_of_them[: len(samples)]], abs=1e-4
        )
    assert asked[0] == [(0, 4), (1, 4), (2, 4)]
    # Nobody is asked about the last round, nor about a prompt that has stopped.
    assert all(drawn < 12 for one in asked for _, drawn in one)
    assert sum(len(one) for one in asked) == sum(min(stops.get(i, 3), 3) for i in range(5))


def test_stopping_saves_forwards(loaded, prompts):
    whole, stopped = Counts(), Counts()
    sample(loaded, prompts, ROUNDS, SEEDS, whole)
    found = in_order(
        TransformersEngine(loaded, stopped).sample(prompts, ROUNDS, SEEDS, lambda drawn: [False] * len(drawn))
    )
    assert [len(samples) for samples in found] == [4] * 5
    assert stopped.prefill_tokens == whole.prefill_tokens
    assert stopped.decode_rows < 0.5 * whole.decode_rows
