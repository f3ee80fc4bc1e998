"""A public OpenAI-compatible server, `transformers serve`, with the embedded world's LLaVA: what it gives, we take.

It answers greedily with images; it knows neither `n` nor log-probs, so that it can't sample candidates, and is told so.
"""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from m3po_dagster.method.endpoint import EndpointError
from m3po_dagster.method.generation.generator_settings import ServerSettings
from m3po_dagster.method.generation.model import load_model
from m3po_dagster.method.generation.sampler import TransformersEngine
from m3po_dagster.method.generation.samples import prompt_seed
from m3po_dagster.method.generation.served import OUTAGE, TRIES, ServedEngine
from m3po_dagster.method.generation.settings import ModelSettings, SamplingSettings
from m3po_dagster.method.generation.vocabulary import load_vocabulary
from m3po_dagster.study import load_study
from m3po_dagster.study_prompts import first_prompts
from tests.sampling import in_order

pytestmark = pytest.mark.slow
LLAVA = Path(__file__).parents[2] / "m3po_dagster" / "world" / "weights" / "llava"
MODEL = ModelSettings(path=str(LLAVA), device="cpu")
START_WITHIN = 180


@pytest.fixture(scope="module")
def base_url(tmp_path_factory):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log"
    arguments = [
        "serve",
        str(LLAVA),
        "--device",
        "cpu",
        "--dtype",
        "float32",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    command = [sys.executable, str(Path(__file__).with_name("public_server.py")), *arguments]
    with (
        log.open("w") as out,
        subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, "HF_HUB_OFFLINE": "1"}
        ) as process,
    ):
        try:
            until = time.monotonic() + START_WITHIN
            while not healthy(port):
                assert process.poll() is None and time.monotonic() < until, log.read_text()[-2000:]
                time.sleep(0.5)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.kill()


def healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as reply:
            return reply.status == 200
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


@pytest.fixture(scope="module")
def prompts(world, tmp_path_factory):
    text = (Path(__file__).parents[2] / "studies" / "easy_scenes.yaml").read_text()
    path = tmp_path_factory.mktemp("study") / "study.yaml"
    path.write_text(text.replace("../data/easy_scenes", str(world)).replace("../m3po_dagster", str(LLAVA.parents[2])))
    return first_prompts(load_study(path), 6)


@pytest.fixture
def engine_of(base_url):
    vocabulary = load_vocabulary(MODEL)

    def make(**changed) -> ServedEngine:
        given = {"base_url": base_url, "model": str(LLAVA), "version": "5.23", "dtype": "float32", "max_retries": 0}
        return ServedEngine(ServerSettings(**{**given, "engine": "openai", **changed}), vocabulary)

    return make


def test_its_greedy_answers_are_the_local_models(engine_of, prompts):
    engine = engine_of()
    found = in_order(engine.answer(prompts, 40, at_once=4))
    wanted = in_order(TransformersEngine(load_model(MODEL)).answer(prompts, 40, 8))
    assert [one.text for one in found] == [one.text for one in wanted]
    assert [one.n_tokens for one in found] == [one.n_tokens for one in wanted]
    assert len({one.text for one in found}) > 1 and engine.counts.requests == len(prompts)


def test_it_gives_no_log_probs_and_is_refused_as_a_sampler(engine_of, prompts):
    engine, settings = engine_of(max_parallel=1), SamplingSettings(n=2, max_new_tokens=8)
    seeds = [prompt_seed(0, prompt.prompt_id, 2) for prompt in prompts]
    with pytest.raises(EndpointError, match=r"nothing usable for 3 prompts in a row.*no log-probs \(logprobs\)"):
        in_order(engine.sample(prompts, settings, seeds))
    assert OUTAGE * TRIES <= engine.counts.requests <= OUTAGE * (TRIES + 1) * settings.n


def test_declared_as_vllm_it_refuses_the_request_and_says_why(engine_of, prompts):
    found = in_order(engine_of(engine="vllm").answer(prompts[:1], 8, at_once=1))
    assert "the server refuses it: HTTP 422: " in found[0].reason and "Unexpected fields" in found[0].reason
