"""The served engine and a real model behind real HTTP: the local engine's samples, whatever goes wrong on the way."""

import json
import threading
import traceback
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import OpenAI
from tiny_llava import tiny_llava, tiny_prompts

from m3po_dagster.method.confidence import score_continuations
from m3po_dagster.method.endpoint import EndpointError
from m3po_dagster.method.generation.adapter import Adapter
from m3po_dagster.method.generation.generator_settings import ServerSettings
from m3po_dagster.method.generation.model import load_model
from m3po_dagster.method.generation.sampler import TransformersEngine
from m3po_dagster.method.generation.samples import Failure, prompt_seed
from m3po_dagster.method.generation.served import OUTAGE, TRIES, ServedEngine
from m3po_dagster.method.generation.settings import ModelSettings, RoundSettings, SamplingSettings
from m3po_dagster.method.generation.vocabulary import load_vocabulary
from m3po_dagster.method.prompt import Message
from tests.loopback import Reply, error
from tests.sampling import in_order
from tests.served_generator import ServedGenerator

N = 4
SETTINGS = SamplingSettings(n=N, temperature=0.9, top_p=0.95, max_new_tokens=12)
NOW = {"retry-after-ms": "1"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return ModelSettings(path=str(tiny_llava(tmp_path_factory.mktemp("llava"))), device="cpu")


@pytest.fixture(scope="module")
def loaded(model):
    return load_model(model)


@pytest.fixture(scope="module")
def vocabulary(model):
    return load_vocabulary(model)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    found = tiny_prompts(tmp_path_factory.mktemp("images"), 5)
    earlier = (Message("user", "What is in this image?"), Message("assistant", "a red circle."))
    found[1] = replace(found[1], messages=(*earlier, *found[1].messages))
    return found


@pytest.fixture
def server(loaded, tmp_path):
    with ServedGenerator(loaded, tmp_path) as running:
        yield running


@pytest.fixture
def engine_of(server, vocabulary):
    def make(adapter=None, **changed) -> ServedEngine:
        settings = {"base_url": server.base_url, "model": server.model, "version": "0", "dtype": "float32", **changed}
        return ServedEngine(ServerSettings(**settings), vocabulary, adapter)

    return make


def seeds_of(prompts):
    return [prompt_seed(0, prompt.prompt_id, N) for prompt in prompts]


@pytest.fixture(scope="module")
def expected(loaded, prompts):
    """Sample k of a prompt as the local engine draws it from the prompt's seed + k."""
    one, engine = SETTINGS.model_copy(update={"n": 1}), TransformersEngine(loaded)
    rows = [in_order(engine.sample(prompts, one, [seed + k for seed in seeds_of(prompts)])) for k in range(N)]
    return [[row[i][0] for row in rows] for i in range(len(prompts))]


def sampled(engine, prompts):
    return in_order(engine.sample(prompts, SETTINGS, seeds_of(prompts)))


def assert_same(found, expected):
    for mine, theirs in zip(found, expected, strict=True):
        assert not isinstance(mine, Failure), mine
        for a, b in zip(mine, theirs, strict=True):
            assert (a.text, a.token_ids, a.finish_reason, a.has_eos) == (b.text, b.token_ids, b.finish_reason, True)
            assert a.token_logps == pytest.approx(b.token_logps, abs=1e-5)
            assert a.eos_logp == (None if a.finish_reason == "length" else a.token_logps[-1])


@pytest.mark.parametrize("ids", ["ids", "numbers", "pieces"])
def test_samples_are_those_of_the_local_engine_however_ids_are_given(engine_of, server, prompts, expected, ids):
    server.ids = ids
    engine = engine_of()
    assert_same(sampled(engine, prompts), expected)
    assert {one.finish_reason for row in expected for one in row} == {"stop", "length"}
    assert server.requests == engine.counts.requests == len(prompts)
    assert engine.counts.images_encoded == len(prompts)
    assert engine.numerics == "vllm-0/float32"


def test_a_request_says_all_that_shapes_the_distribution(engine_of, server, vocabulary, prompts):
    sampled(engine_of(), prompts[1:2])
    (body,) = server.bodies
    turns = body.pop("messages")
    assert [turn["role"] for turn in turns] == ["user", "assistant", "user"]
    picture, text = turns[0]["content"]
    assert picture["image_url"]["url"].startswith("data:image/png;base64,")
    assert (text, turns[1]["content"], turns[2]["content"]) == (
        {"type": "text", "text": "What is in this image?"},
        "a red circle.",
        prompts[1].question,
    )
    assert body == {
        "model": "served-llava", "n": N, "seed": seeds_of(prompts)[1], "temperature": 0.9, "top_p": 0.95,
        "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "max_completion_tokens": 12, "logprobs": True,
        "return_token_ids": True, "return_tokens_as_token_ids": True, "add_special_tokens": False,
        "logit_bias": {str(token): -100 for token in vocabulary.suppressed},
    }  # fmt: skip


def test_sglang_is_asked_for_one_sample_at_a_time_with_a_seed_each(engine_of, server, prompts, expected):
    """It gives every choice of a request the same seed."""

    def as_sglang(choices):
        return [{**choice, "completion_token_ids": ids} for choice in choices for ids in [choice.pop("token_ids")]]

    server.faults.extend([as_sglang] * N * len(prompts))
    engine = engine_of(engine="sglang", version="0.5.23")
    server.ids = "pieces"
    assert_same(sampled(engine, prompts), expected)
    assert server.requests == N * len(prompts) and {body["n"] for body in server.bodies} == {1}
    assert server.bodies[0]["return_completion_token_ids"] is True and "return_token_ids" not in server.bodies[0]


def dropped_choice(choices):
    return choices[:1] + choices[2:]


def with_choice(**changed):
    return lambda choices: [{**choices[0], **changed}, *choices[1:]]


FAULTS = {
    "429 with Retry-After": (error(429, "busy", retry_after="0.01"), 1),
    "500": (Reply(500, b"{}", NOW), 1),
    "503": (Reply(503, b"overloaded", NOW), 1),
    "dropped mid-body": (Reply(cut=100), 1),
    "never answers in time": (Reply(delay=6.0), 1),
    "no JSON": (Reply(body=b"<html>"), 1),
    "no choices": (lambda choices: [], 1),
    "fewer choices": (dropped_choice, 1),
    "a null choice": (lambda choices: [None, *choices[1:]], 1),
    "a choice without text or finish": (with_choice(message={"content": None}, finish_reason=None), 1),
    "no log-probs": (with_choice(logprobs=None), 1),
    "a placeholder for a log-prob": (
        lambda choices: with_choice(
            logprobs={"content": [{**one, "logprob": -9999.0} for one in choices[0]["logprobs"]["content"]]}
        )(choices),
        1,
    ),
    "ids of other tokens": (with_choice(token_ids=[7]), 1),
    "aborted": (with_choice(finish_reason="abort"), 1),
    "choices in another order": (lambda choices: choices[::-1], 0),
    "more choices than asked for": (lambda choices: [*choices, choices[0]], 0),
}


@pytest.mark.parametrize(("fault", "more"), FAULTS.values(), ids=FAULTS)
def test_nothing_is_lost_or_changed_by_trouble_on_the_way(engine_of, server, prompts, expected, fault, more):
    server.faults.append(fault)
    slow = isinstance(fault, Reply) and fault.delay
    engine = engine_of(max_retries=1, timeout=4.0 if slow else 60.0, max_parallel=1)
    assert_same(sampled(engine, prompts), expected)
    assert server.requests == engine.counts.requests == len(prompts) + more
    again = {body["n"] for body in server.bodies if body["n"] < N}
    assert again <= {1}, "only the choice that failed is asked for again"


def test_a_retry_waits_as_long_as_the_server_says_or_longer_each_time(engine_of, server, prompts, monkeypatch):
    waits, real = [], OpenAI._calculate_retry_timeout

    def noted(self, *args, **kwargs):
        waits.append(real(self, *args, **kwargs))
        return 0.0

    monkeypatch.setattr(OpenAI, "_calculate_retry_timeout", noted)
    server.faults.extend([error(429, "busy", retry_after="7"), *[error(503, "loading")] * 3])
    (found,) = sampled(engine_of(), prompts[:1])
    assert len(found) == N and server.requests == 5
    assert waits[0] == 7
    # Half a second, doubled each time, less up to a quarter by chance: whoever failed together does not come together.
    assert [0.75 * wait <= mine <= wait for mine, wait in zip(waits[1:], (1, 2, 4), strict=True)] == [True] * 3


def test_all_troubles_at_once_with_many_requests_in_flight(engine_of, server, prompts, expected):
    server.faults.extend(fault for name, (fault, _) in FAULTS.items() if "never" not in name)
    engine = engine_of(max_retries=5, samples_per_request=2)
    assert_same(sampled(engine, prompts), expected)
    assert server.requests == engine.counts.requests


@pytest.mark.parametrize("most", [1, 3])
def test_a_server_that_caps_or_ignores_n_is_asked_for_what_it_gives(engine_of, server, prompts, expected, most):
    server.most_choices = most
    engine = engine_of(max_parallel=1)
    assert_same(sampled(engine, prompts), expected)
    assert set(server.asked.values()) == {1} and len(server.asked) == N * len(prompts)
    # Two replies show the cap; from then on no request asks for more.
    assert [body["n"] for body in server.bodies].count(N) <= 2
    assert server.requests == {1: N, 3: 2}[most] * len(prompts)


@pytest.mark.parametrize("parallel", [1, 8])
def test_rounds_go_on_until_a_prompt_is_settled_and_change_no_sample(engine_of, server, prompts, expected, parallel):
    settled, told = {0: 2, 1: 3}, []

    def more(finished):
        told.extend((index, len(samples)) for index, samples in finished)
        return [settled.get(index, N) > len(samples) for index, samples in finished]

    settings = SETTINGS.model_copy(update={"n": RoundSettings(first=2, step=1, max=N)})
    engine = engine_of(max_parallel=parallel)
    server.faults.append(dropped_choice)
    found = in_order(engine.sample(prompts, settings, seeds_of(prompts), more))
    assert_same(found, [row[: settled.get(index, N)] for index, row in enumerate(expected)])
    # Once a round and prompt, but not after the last one.
    assert sorted(told) == [(0, 2), (1, 2), (1, 3), *((index, n) for index in (2, 3, 4) for n in (2, 3))]
    assert sum(server.asked.values()) == 2 + 3 + 3 * N + 1, "the choice that was dropped, and nothing else, twice"
    assert_same(in_order(engine.sample(prompts, settings, seeds_of(prompts))), expected)


@given(samples=st.sets(st.integers(0, 40)), most=st.none() | st.integers(1, 9))
def test_a_request_asks_for_neighbours_all_once_and_no_more_than_is_given(vocabulary, samples, most):
    """Choice i of a request is drawn from its seed + i, so only neighbours go together."""
    settings = ServerSettings(base_url="http://a/v1", model="m", version="0", samples_per_request=most)
    chunks = ServedEngine(settings, vocabulary)._chunks(None, sorted(samples))
    asked = [first + i for _, first, count in chunks for i in range(count)]
    assert asked == sorted(samples)
    assert all(count <= (most or 41) for _, _, count in chunks)
    runs = sum(k - 1 not in samples for k in samples)
    assert most is not None or len(chunks) == runs


def test_a_choice_that_always_fails_fails_its_prompt_with_the_reason(engine_of, server, prompts, expected):
    bad = with_choice(finish_reason="abort")
    server.faults.extend([bad] * TRIES)
    found = sampled(engine_of(max_parallel=1), prompts)
    assert isinstance(found[0], Failure)
    assert found[0].reason.startswith(f"prompt prompt-0: sample 0, tried {TRIES} times: a choice ended by 'abort'")
    assert_same(found[1:], expected[1:])


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (Reply(422, b'{"detail": "Unexpected fields: top_k"}'), '{"detail": "Unexpected fields: top_k"}'),
        (Reply(400, b"no images here", {"Content-Type": "text/plain"}), "no images here"),
    ],
)
def test_an_error_in_any_layout_is_passed_on(engine_of, server, prompts, reply, said):
    server.faults.append(reply)
    (found,) = sampled(engine_of(), prompts[:1])
    assert found.reason.endswith(f"the server refuses it: HTTP {reply.status}: {said}")


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_refused_prompt_is_its_own_fault_however_many_there_are(engine_of, server, prompts, expected, status):
    server.faults.extend([error(status, "image too large")] * 4)
    found = sampled(engine_of(max_parallel=1), prompts)
    assert [one.reason for one in found[:4]] == [
        f"prompt {prompt.prompt_id}: the server refuses it: HTTP {status}: image too large" for prompt in prompts[:4]
    ]
    assert_same(found[4:], expected[4:])
    assert server.requests == len(prompts)


def test_a_failing_request_fails_its_prompt_and_a_row_of_them_stops_the_work(engine_of, server, prompts, expected):
    server.faults.extend([Reply(500, b'{"error": {"message": "CUDA error"}}', NOW)] * 2)
    found = sampled(engine_of(max_parallel=1, max_retries=1), prompts)
    assert found[0].reason == "prompt prompt-0: the server answers HTTP 500: CUDA error"
    assert_same(found[1:], expected[1:])
    server.requests = 0
    server.faults.extend([Reply(500, b'{"error": {"message": "CUDA error"}}', NOW)] * 100)
    given = []
    with pytest.raises(EndpointError, match=rf"nothing usable for {OUTAGE} prompts in a row.*CUDA error.*base_url"):
        given.extend(engine_of(max_parallel=1, max_retries=1).sample(prompts, SETTINGS, seeds_of(prompts)))
    assert server.requests == 2 * OUTAGE and not given, "an outage is no prompt's fault"


def test_a_server_without_log_probs_is_refused_in_so_many_words(engine_of, server, prompts):
    server.logprobs = False
    with pytest.raises(EndpointError, match=r"no log-probs \(logprobs\): see how the server must be started"):
        sampled(engine_of(), prompts)


def test_a_server_of_another_model_is_refused(engine_of, server, prompts):
    server.faults.extend(
        [lambda choices: [{**one, "token_ids": [10**6] * len(one["token_ids"])} for one in choices]] * 100
    )
    with pytest.raises(EndpointError, match=r"beyond the vocabulary of model\.path: is that the model it serves"):
        sampled(engine_of(), prompts)


def test_pieces_that_do_not_say_their_id_are_not_guessed(engine_of, server, prompts):
    def stripped(choices):
        for choice in choices:
            for token in choice["logprobs"]["content"]:
                token["token"], token["bytes"] = token["token"].strip(), None
        return choices

    server.ids = "pieces"
    server.faults.extend([stripped] * 100)
    with pytest.raises(EndpointError, match=r"token ids of a choice are not known|spell"):
        sampled(engine_of(), prompts)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"model": "other"}, r"'other'.*404.*The model `other` does not exist.*Correct base_url, model"),
        ({"api_key_env": "GENERATOR_KEY"}, r"401.*wrong key: Bearer \*\*\*.*api_key_env"),
    ],
)
def test_a_wrong_model_or_key_stops_at_once(engine_of, server, prompts, monkeypatch, changed, words):
    monkeypatch.setenv("GENERATOR_KEY", "sk-stolen")
    server.key = "sk-right" if "api_key_env" in changed else None
    with pytest.raises(EndpointError, match=words) as caught:
        sampled(engine_of(max_parallel=1, **changed), prompts)
    assert server.requests == 1
    assert "sk-stolen" not in "".join(traceback.format_exception(caught.value))


def test_a_wrong_path_and_a_redirect_stop_at_once(engine_of, server, prompts):
    with pytest.raises(EndpointError, match=r"404.*no such path: /nowhere/chat/completions"):
        sampled(engine_of(max_parallel=1, base_url=server.base_url.replace("/v1", "/nowhere")), prompts)
    server.faults.append(Reply(307, b"", {"Location": "https://elsewhere.example/v1"}))
    with pytest.raises(EndpointError, match=r"307, a redirect to https://elsewhere.example/v1, which is not followed"):
        sampled(engine_of(max_parallel=1), prompts)
    assert server.requests == 2


def test_requests_in_flight_are_bounded_and_run_side_by_side(engine_of, server, prompts, expected):
    meeting = threading.Barrier(2)
    server.before = lambda: meeting.wait(timeout=20)
    # Nobody is answered before two have come: fewer at once would never end.
    assert_same(sampled(engine_of(max_parallel=2, samples_per_request=2), prompts), expected)
    assert server.most_at_once == 2 and server.requests == 2 * len(prompts)


def test_prompts_that_cannot_be_sent_cost_no_request(engine_of, server, prompts, tmp_path):
    (tmp_path / "broken.png").write_bytes(prompts[0].image_path.read_bytes()[:60])
    broken = replace(prompts[0], image_path=tmp_path / "broken.png")
    placeholder = replace(prompts[1], messages=(Message("user", "What is <image> here?"),))
    found = sampled(engine_of(), [broken, placeholder])
    assert "prompt prompt-0" in found[0].reason and "broken.png): the image can't be decoded" in found[0].reason
    assert "image placeholders (<image>) of its own" in found[1].reason
    assert server.requests == 0


def test_an_end_that_is_not_reported_is_left_out_and_scored_without(engine_of, server, loaded, prompts, expected):
    server.eos = False
    found = sampled(engine_of(), prompts)
    empty = [any(len(sample.token_ids) == 1 and sample.finish_reason == "stop" for sample in row) for row in expected]
    assert {True, False} == set(empty)
    for prompt, mine, theirs, lost in zip(prompts, found, expected, empty, strict=True):
        if lost:
            assert "a choice is empty, and its end of sequence is not reported" in mine.reason
            continue
        for sample, whole in zip(mine, theirs, strict=True):
            stopped = whole.finish_reason == "stop"
            assert sample.token_ids == (whole.token_ids[:-1] if stopped else whole.token_ids)
            assert sample.eos_logp is None and sample.has_eos is not stopped
        scores = score_continuations(loaded, prompt, [sample.token_ids for sample in mine])
        for sample, score in zip(mine, scores, strict=True):
            assert (score.eos_logp, score.sum_logp) == (None, pytest.approx(sample.sum_logp, abs=1e-3))


@pytest.mark.parametrize("ids", ["ids", "none"])
def test_greedy_answers_are_those_of_the_local_engine(engine_of, server, loaded, prompts, ids):
    """Where a server gives neither ids nor log-probs its text is the answer."""
    server.ids, server.logprobs = ids, False
    wanted = in_order(TransformersEngine(loaded).answer(prompts, 10, 5))
    engine = engine_of(engine="vllm" if ids == "ids" else "openai")
    found = in_order(engine.answer(prompts, 10, at_once=3))
    assert [one.text for one in found] == [one.text for one in wanted]
    if ids == "ids":
        assert [one.token_ids for one in found] == [one.token_ids for one in wanted]
        assert [one.n_tokens for one in found] == [one.n_tokens for one in wanted]
    assert server.requests == len(prompts) and server.most_at_once <= 3
    assert all(body["temperature"] == 0 and "logprobs" not in body for body in server.bodies)


def test_prompts_on_one_image_are_encoded_once(engine_of, prompts):
    same = [replace(prompt, image_path=prompts[0].image_path) for prompt in prompts]
    engine = engine_of()
    in_order(engine.answer(same, 4, 8))
    assert engine.counts.images_encoded == 1


def test_an_adapter_is_asked_for_by_its_name_and_loaded_on_demand(engine_of, server, loaded, prompts, tmp_path):
    other = load_model(ModelSettings(path=str(tiny_llava(tmp_path / "other", seed=9)), device="cpu"))
    wanted = [one.text for one in in_order(TransformersEngine(other).answer(prompts, 8, 8))]
    adapter = Adapter(tmp_path / "other", "m3po", 2, "0123456789abcdef" * 4)
    with pytest.raises(EndpointError, match=r"404.*The model `m3po-2` does not exist"):
        in_order(engine_of(adapter, adapter_name="{recipe}-{seed}").answer(prompts, 8, 8))
    server.models["m3po-2"] = other
    found = in_order(engine_of(adapter, adapter_name="{recipe}-{seed}").answer(prompts, 8, 8))
    assert [one.text for one in found] == wanted
    assert wanted != [one.text for one in in_order(engine_of().answer(prompts, 8, 8))]
    server.load = lambda folder: other
    for _ in range(2):  # the second finds it loaded
        found = in_order(engine_of(adapter, load_adapters=True).answer(prompts, 8, 8))
        assert [one.text for one in found] == wanted
    assert "m3po-0123456789abcdef" in server.models
    missing = replace(adapter, folder=tmp_path / "nowhere")
    with pytest.raises(EndpointError, match=r"no adapter found at"):
        engine_of(missing, load_adapters=True)


def test_the_settings_that_decide_samples_are_the_identity_and_hold_no_key(monkeypatch):
    monkeypatch.setenv("GENERATOR_KEY", "sk-s3cret")
    given = {"base_url": "http://a:1/v1", "model": "m", "version": "1", "api_key_env": "GENERATOR_KEY"}
    same, settings = (
        {"max_parallel": 3, "timeout": 5, "max_retries": 1, "samples_per_request": 2},
        ServerSettings(**given),
    )
    assert ServerSettings(**{**given, **same, "base_url": "http://b:2/v1"}).identity() == settings.identity()
    for changed in ({"model": "n"}, {"version": "2"}, {"dtype": "float16"}, {"engine": "sglang"}):
        assert ServerSettings(**{**given, **changed}).identity() != settings.identity()
    assert "s3cret" not in json.dumps(settings.model_dump(mode="json")) + repr(settings)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"adapter_name": "{path}"}, r"\{adapter\}, \{recipe\} and \{seed\}"),
        ({"adapter_name": "m3po", "load_adapters": True}, r"needs \{adapter\}"),
        ({"engine": "sglang", "load_adapters": True}, "is for vllm"),
    ],
)
def test_adapter_names_that_can_not_work_are_refused(changed, words):
    with pytest.raises(ValueError, match=words):
        ServerSettings(base_url="http://a/v1", model="m", version="1", **changed)
