"""The whole graph with the model behind a server: candidates over HTTP, the reference scored again, LoRA by name."""

from copy import deepcopy

import pytest

from m3po_dagster.current import read_heads
from m3po_dagster.graph import STAGES
from m3po_dagster.method.confidence import score_continuations
from m3po_dagster.method.generation.model import load_model
from m3po_dagster.method.generation.sampler import TransformersEngine
from m3po_dagster.runner import Selection
from tests.loopback import error
from tests.sampling import in_order
from tests.served_generator import ServedGenerator

KEY = "sk-never-to-be-written-down"
SHIFT = 0.05
"""Nats a token by which the server's log-probs lie under the local model's, as another engine's might."""


@pytest.fixture(scope="module")
def settings(small_study) -> dict:
    """The small study without its SFT recipe, sampled four at a time."""
    study = deepcopy(small_study)
    del study["recipes"]["sft"]
    study["dataset"]["shards"] = 2
    study["generation"] |= {"n": 4}
    return study


@pytest.fixture(scope="module")
def served(tmp_path_factory, settings):
    """The server, and the study that has been run on it."""
    from tests.integration.conftest import Project

    project = Project(tmp_path_factory.mktemp("served"))
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("GENERATOR_KEY", KEY)
        project.write(settings)
        model = project.load().model
        with ServedGenerator(load_model(model), tmp_path_factory.mktemp("pictures"), key=KEY) as server:
            server.change_logp = lambda logp: logp - SHIFT
            server.load = lambda folder: load_model(model, folder)
            server.faults.extend([error(429, "busy", retry_after="0.01"), error(503, "loading")])
            project.write({**settings, "generator": generator(server)})
            outcomes = project.run()
            assert [outcome.error for outcome in outcomes if outcome.error] == []
            yield server, project


def generator(server, **changed) -> dict:
    return {
        "kind": "server", "base_url": server.base_url, "model": server.model, "version": "0.33", "dtype": "float32",
        "api_key_env": "GENERATOR_KEY", "load_adapters": True, **changed,
    }  # fmt: skip


def current(project, asset) -> dict:
    with project.instance() as instance:
        heads = read_heads(instance, [asset])
    return {key: project.store.find(asset, key, head.fingerprint) for (_, key), head in heads.items()}


def test_the_numerics_of_the_server_stand_with_its_log_probs(served):
    _, project = served
    for artifact in current(project, "candidates").values():
        assert artifact.manifest.metadata["numerics"] == "vllm-0.33/float32"
        assert artifact.manifest.settings["engine"] == {
            "engine": "vllm", "version": "0.33", "dtype": "float32", "model": "served-llava",
        }  # fmt: skip
    for artifact in current(project, "logprob_table").values():
        assert set(artifact.table()["numerics"].to_pylist()) == {"vllm-0.33/float32"}


def test_dpo_takes_a_reference_of_its_own_numerics(served):
    """Selection keeps the server's log-probs; the margins start from the trainer's."""
    _, project = served
    selected, pairs = {}, 0
    for key, artifact in current(project, "preference_pairs").items():
        if key.startswith("m3po|"):
            assert artifact.manifest.metadata["numerics"] == "vllm-0.33/float32"
            selected |= {row["pair_id"]: row for row in artifact.table().to_pylist()}
    candidates = {
        row["candidate_id"]: row
        for artifact in current(project, "candidates").values()
        for row in artifact.table().to_pylist()
    }
    (adapter,) = project.store.list("adapter")
    facts, pairs = adapter.manifest.metadata, len(selected)
    assert (facts["reference"], facts["reference numerics"]) == ("rescored", "transformers/float32")
    assert facts["selection numerics"] == "vllm-0.33/float32" and facts["examples"] == pairs > 5
    assert facts["reference forwards"] == 2 * pairs, "a prefill and a forward over both answers, a pair"
    for row in adapter.table("margins").to_pylist():
        pair = selected[row["pair_id"]]
        for name, logp in (("chosen", "chosen_logp_before"), ("rejected", "rejected_logp_before")):
            tokens = candidates[pair[f"{name}_id"]]["n_tokens"]
            assert row[logp] == pytest.approx(pair[f"ref_{name}_logp"] + SHIFT * tokens, abs=1e-3)


def test_the_reference_is_what_the_base_model_itself_says(served):
    from m3po_dagster.assets.instructions import prompts_of

    _, project = served
    study, loaded = project.load(), load_model(project.load().model)
    prompts = {
        prompt.prompt_id: prompt
        for artifact in current(project, "filtered_instructions").values()
        for prompt in prompts_of(artifact.table(), study)
    }
    (adapter,) = project.store.list("adapter")
    before = {row["pair_id"]: row["chosen_logp_before"] for row in adapter.table("margins").to_pylist()}
    for key, artifact in current(project, "preference_pairs").items():
        rows = artifact.table().slice(0, 2).to_pylist() if key.startswith("m3po|") else []
        candidates = current(project, "candidates")[key.split("|")[1]].table().to_pylist()
        ids = {row["candidate_id"]: row["token_ids"] for row in candidates}
        for row in rows:
            (score,) = score_continuations(loaded, prompts[row["prompt_id"]], [ids[row["chosen_id"]]])
            assert before[row["pair_id"]] == pytest.approx(score.sum_logp, abs=1e-3)


def test_benchmarks_are_answered_by_the_adapter_of_that_name(served):
    from m3po_dagster.evaluation.registry import benchmark

    server, project = served
    study = project.load()
    (adapter,) = project.store.list("adapter")
    name = f"m3po-{adapter.fingerprint[:16]}"
    assert set(server.models) == {"served-llava", name}
    questions = benchmark(study.benchmarks["chair"]).load()
    prompts = [question.prompt() for question in questions]
    for recipe, folder in (("base", None), ("m3po", adapter.path("files"))):
        engine = TransformersEngine(load_model(study.model, folder))
        wanted = [one.text for one in in_order(engine.answer(prompts, study.answers.max_new_tokens, 16))]
        answers = current(project, "benchmark_scores")[recipe].table("answers").to_pylist()
        found = {row["question_id"]: row["answer"] for row in answers if row["benchmark"] == "chair"}
        assert [found[question.question_id] for question in questions] == wanted


def test_every_prompt_took_one_request_and_every_question_one(served):
    server, project = served
    prompts = sum(len(artifact.table()) for artifact in current(project, "filtered_instructions").values())
    questions = sum(len(artifact.table("answers")) for artifact in current(project, "benchmark_scores").values())
    sampled = [body for body in server.bodies if "n" in body]
    assert len(sampled) == prompts + 2, "and two for the busy and the loading server"
    assert {body["n"] for body in sampled} == {4}
    assert len(server.bodies) - len(sampled) == questions


def test_where_the_server_is_and_how_it_is_asked_makes_nothing_due(served, settings, monkeypatch):
    server, project = served
    elsewhere = {"base_url": "http://127.0.0.1:9/v1", "max_parallel": 2, "timeout": 1, "api_key_env": "OTHER"}
    project.write({**settings, "generator": generator(server, **elsewhere)})
    assert {item.state for item in project.standings()} == {"fresh"}
    project.write({**settings, "generator": generator(server, version="0.34")})
    stale = {item.part[0] for item in project.standings() if item.state == "stale"}
    assert {"candidates", "benchmark_scores"} <= stale
    project.write({**settings, "generator": generator(server)})


def test_the_key_is_in_no_file(served):
    _, project = served
    files = [path for path in project.folder.rglob("*") if path.is_file()]
    assert len(files) > 50
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []


def test_a_wrong_key_fails_the_step_with_one_sentence(served, settings, monkeypatch, tmp_path):
    from tests.integration.conftest import Project

    server, _ = served
    monkeypatch.setenv("GENERATOR_KEY", "sk-wrong")
    project = Project(tmp_path)
    project.write({**settings, "generator": generator(server)})
    up_to_candidates = ("source_dataset", "benchmark_data", *STAGES["candidates"].inputs, "candidates")
    outcomes = project.run(Selection(assets=up_to_candidates))
    errors = [outcome.error for outcome in outcomes if outcome.error]
    assert errors and all("HTTP 401: wrong key: Bearer ***" in one and "api_key_env" in one for one in errors)
    assert not any("sk-wrong" in one for one in errors)
