"""A path that is wrong for a model is found out before it samples or scores anything, and the next one is taken."""

from dataclasses import replace

import pytest
from zoo import family
from zoo.images import write_prompts

from m3po_dagster.method.confidence import score_continuations
from m3po_dagster.method.generation import continuations, rows, self_check, shared_prefix
from m3po_dagster.method.generation.model import load_model
from m3po_dagster.method.generation.settings import ModelSettings, SamplingSettings
from tests.sampling import sample

SETTINGS = SamplingSettings(n=4, max_new_tokens=12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Weights that matter: with those of an untrained model, what is wrong would drown in half precision's rounding."""
    return family("llava", tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def right(folder):
    return load_model(ModelSettings(path=str(folder), device="cpu"))


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    return write_prompts(tmp_path_factory.mktemp("images"))[:3]


@pytest.fixture(params=["float32", "bfloat16"])
def loaded(request, folder):
    return load_model(ModelSettings(path=str(folder), device="cpu", dtype=request.param))


@pytest.fixture
def no_bias(monkeypatch):
    """Shared-prefix attention that sees padding, as in a model that passes the mask on in a form of its own."""
    attention = shared_prefix.shared_prefix_attention

    def without(module, query, key, value, attention_mask, shared_prefix=None, **kwargs):
        mask = attention_mask if shared_prefix is None else attention_mask * 0
        return attention(module, query, key, value, mask, shared_prefix=shared_prefix, **kwargs)

    monkeypatch.setattr(shared_prefix, "shared_prefix_attention", without)


def break_expanded(monkeypatch):
    step = rows.ExpandedRows.step
    # Each row reads the token of another.
    monkeypatch.setattr(rows.ExpandedRows, "step", lambda self, tokens: step(self, tokens.roll(1, dims=0)))


def break_packed(monkeypatch):
    packed = continuations.packed_logps

    def wrong(prefix, answers, counts=None):
        moved = replace(prefix, next_positions=prefix.next_positions + 7)
        return packed(moved, answers, counts)

    monkeypatch.setattr(self_check, "packed_logps", wrong)


def test_a_wrong_shared_prefix_falls_back_to_copies(loaded, no_bias, caplog):
    assert loaded.paths.sampling == "expanded-cache"
    (reason,) = loaded.paths.reasons
    assert reason.startswith("sampling by shared-prefix differs by ")
    assert reason in caplog.text


def test_with_copies_wrong_too_the_slow_path_is_right(loaded, right, prompts, no_bias, monkeypatch):
    break_expanded(monkeypatch)
    assert loaded.paths.sampling == "generate"
    assert [reason.split(" differs")[0] for reason in loaded.paths.reasons] == [
        "sampling by shared-prefix",
        "sampling by expanded-cache",
    ]
    found = sample(loaded, prompts, SETTINGS, range(3))
    if loaded.precision == "float32":
        monkeypatch.undo()
        expected = sample(right, prompts, SETTINGS, range(3))
        assert [[one.token_ids for one in some] for some in found] == [
            [one.token_ids for one in some] for some in expected
        ]


def test_a_wrong_packing_falls_back(loaded, right, prompts, monkeypatch):
    break_packed(monkeypatch)
    assert loaded.paths.scoring == "expanded-cache"
    assert loaded.paths.reasons[0].startswith("scoring by packed differs by ")
    if loaded.precision == "float32":
        answers = [(7, 8, 9), (10, 11)]
        for one, other in zip(
            score_continuations(loaded, prompts[0], answers),
            score_continuations(right, prompts[0], answers),
            strict=True,
        ):
            assert one.token_logps == pytest.approx(other.token_logps, abs=1e-4)


def test_a_path_that_fails_is_passed_over(loaded, monkeypatch):
    def fail(*args):
        raise TypeError("got an unexpected keyword argument 'shared_prefix'")

    monkeypatch.setattr(rows.SharedPrefixRows, "step", fail)
    assert loaded.paths.sampling == "expanded-cache"
    assert "not possible: TypeError: got an unexpected keyword argument" in loaded.paths.reasons[0]


def test_attention_that_can_not_be_exchanged_stays_as_it_is(loaded, monkeypatch):
    def refuse(*args):
        raise ValueError("the attention implementation can't be set")

    usual = shared_prefix.attention_of(loaded.model)
    monkeypatch.setattr(self_check, "attend", refuse)
    assert loaded.paths.sampling == "expanded-cache"
    assert "not possible: ValueError: the attention implementation can't be set" in loaded.paths.reasons[0]
    assert shared_prefix.attention_of(loaded.model) == usual


def test_attention_that_is_not_used_is_put_back(loaded, no_bias):
    usual = shared_prefix.attention_of(loaded.model)
    assert usual == "sdpa"
    assert loaded.paths.sampling == "expanded-cache"
    assert shared_prefix.attention_of(loaded.model) == usual


def test_what_can_not_be_checked_goes_the_slow_way(loaded, monkeypatch):
    def refuse(*args):
        raise ValueError("this processor takes documents only")

    monkeypatch.setattr(self_check, "process", refuse)
    assert (loaded.paths.sampling, loaded.paths.scoring) == ("generate", "full-forward")
    assert "can't be checked: ValueError: this processor takes documents only" in loaded.paths.reasons[0]


def test_memory_that_does_not_suffice_is_no_reason_to_go_slow(loaded, monkeypatch):
    def fail(*args):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")

    monkeypatch.setattr(self_check, "read", fail)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        assert loaded.paths
