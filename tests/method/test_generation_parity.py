"""The parity check finds what is planted: another engine's error, scaled log-probs, a missing end, another model."""

import math

import pytest
from tiny_llava import tiny_llava, tiny_prompts

from m3po_dagster.method.generation.generator_settings import ServerSettings, TransformersSettings
from m3po_dagster.method.generation.model import load_model
from m3po_dagster.method.generation.parity import engine_to_check, parity, verdict
from m3po_dagster.method.generation.sampler import TransformersEngine
from m3po_dagster.method.generation.settings import ModelSettings, SamplingSettings
from tests.loopback import error
from tests.served_generator import ServedGenerator

SETTINGS = SamplingSettings(n=3, temperature=0.7, top_p=0.9, max_new_tokens=12)
PROMPTS = 4


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return ModelSettings(path=str(tiny_llava(tmp_path_factory.mktemp("llava"))), device="cpu")


@pytest.fixture(scope="module")
def loaded(model):
    return load_model(model)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    return tiny_prompts(tmp_path_factory.mktemp("images"), PROMPTS)


@pytest.fixture
def server(loaded, tmp_path):
    with ServedGenerator(loaded, tmp_path) as running:
        yield running


@pytest.fixture
def check(server, model, loaded, prompts):
    def measured(settings=SETTINGS):
        given = ServerSettings(base_url=server.base_url, model=server.model, version="0", dtype="float32")
        engine = engine_to_check(given, model, None, None, None)
        return parity(engine, loaded, prompts, settings, 10)

    return measured


def test_the_same_model_behind_a_server_agrees(server, check):
    found = check()
    assert verdict(found, 1e-4) == []
    assert found["differences"]["max"] < 1e-4 and found["samples"] == 3 * PROMPTS
    assert found["differences"]["tokens"] == sum(row["tokens"] for row in found["by position"])
    assert (found["raw"]["verdict"], found["raw"]["elsewhere"]) == ("raw", {"temperature": 0.7, "top_p": 0.9})
    assert found["end of sequence"]["reported"] == found["end of sequence"]["ended"] > 0
    assert (found["greedy"]["same text"], found["greedy"]["same ids"]) == (PROMPTS, PROMPTS)
    assert found["prompt tokens"] == {"compared": PROMPTS, "different": []}
    # Two samplings, the greedy answers and the prompts, a request each.
    assert server.requests == 4 * PROMPTS


def test_a_difference_is_measured_as_it_is(server, check):
    server.change_logp = lambda logp: logp - 0.2
    found = check()
    for name in ("mean", "median", "p95", "max", "answer mean"):
        assert found["differences"][name] == pytest.approx(0.2, abs=1e-4)
    assert found["differences"]["bias"] == pytest.approx(-0.2, abs=1e-4)
    assert [row["mean"] for row in found["by position"]] == pytest.approx([0.2] * len(found["by position"]), abs=1e-4)
    assert found["raw"]["verdict"] == "raw"
    (problem,) = verdict(found, 0.05)
    assert "differ by 0.2000 nat a token on average, 0.05 is allowed" in problem
    assert verdict(found, 0.25) == []


@pytest.mark.parametrize("settings", [SETTINGS, SETTINGS.model_copy(update={"temperature": 1.0, "top_p": 1.0})])
def test_scaled_log_probs_are_recognised_at_any_setting(server, check, settings):
    server.scaled = True
    found = check(settings)
    assert found["raw"]["verdict"] == "scaled"
    assert found["raw"]["mean at temperature 1"] < 1e-4 < found["raw"]["mean elsewhere"]
    assert any("--logprobs-mode raw_logprobs" in problem for problem in verdict(found, math.inf))


def test_an_end_that_is_left_out_is_told(server, check):
    server.eos = False
    found = check()
    assert found["end of sequence"]["reported"] == 0 < found["end of sequence"]["ended"]
    assert any("end of sequence is missing" in problem for problem in verdict(found, math.inf))


def test_another_model_differs(server, check, tmp_path):
    other = load_model(ModelSettings(path=str(tiny_llava(tmp_path / "other", seed=5)), device="cpu"))
    server.models[server.model] = other
    found = check()
    assert found["differences"]["mean"] > 0.1 and found["greedy"]["same text"] < PROMPTS
    assert verdict(found, 0.05)


def test_a_prompt_read_in_another_way_is_told(server, check, monkeypatch):
    read = server._choices

    def longer(asked):
        choices, prompt_ids = read(asked)
        return choices, [*prompt_ids, 7]

    monkeypatch.setattr(server, "_choices", longer)
    found = check()
    assert len(found["prompt tokens"]["different"]) == PROMPTS
    assert f"{PROMPTS} prompts are read as other token ids" in verdict(found, 0.05)[0]


def test_prompts_without_samples_are_named(server, check):
    server.faults.append(error(400, "no image, please"))
    found = check()
    assert len(found["failed"]) == 1 and found["samples"] == 3 * (PROMPTS - 1)
    assert "1 prompts gave nothing" in verdict(found, 0.05)[0] and "no image, please" in verdict(found, 0.05)[0]


def test_two_precisions_of_one_model_differ_by_rounding(model, loaded, prompts):
    engine = engine_to_check(TransformersSettings(), model, None, None, "bfloat16")
    assert isinstance(engine, TransformersEngine)
    found = parity(engine, loaded, prompts, SETTINGS, 10)
    assert (found["engine numerics"], found["local numerics"]) == ("transformers/bfloat16", "transformers/float32")
    assert 0 < found["differences"]["mean"] < 0.05 and found["prompt tokens"] is None
    assert verdict(found, 0.05) == [] and verdict(found, 0.0)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "generator is no server"),
        ({"base_url": "http://127.0.0.1:1/v1"}, "generator is no server"),
        ({"base_url": "http://127.0.0.1:1/v1", "dtype": "float16"}, "not both"),
        ({"dtype": "float8"}, "dtype: Input should be"),
    ],
)
def test_nothing_to_compare_is_said(model, given, words):
    with pytest.raises(ValueError, match=words):
        engine_to_check(TransformersSettings(), model, *(given.get(name) for name in ("base_url", "name", "dtype")))
