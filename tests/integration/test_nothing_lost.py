"""Nothing sampled is lost: random SIGKILLs, prompts that fail, a shard in which too many do and its mending."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path

import pytest
import sampling_under_kill
from dagster._core.definitions.data_version import StaleStatus
from sampling_under_kill import KILLED, PART, UNDISTURBED

from m3po_dagster.current import read_heads
from m3po_dagster.runner import Selection
from m3po_dagster.study_errors import StudyError
from m3po_dagster.world.judge import JUDGE_FOLDER

UP_TO_PROMPTS = ("source_dataset", "base_model", "sampling_scorer", "benchmark_data", "filtered_instructions")
ROUNDS = {
    "first": 4,
    "step": 2,
    "max": 8,
    "scorer": {"kind": "clip", "model": str(JUDGE_FOLDER)},
}


@pytest.mark.parametrize(
    "n", [pytest.param(8, id="fixed N"), pytest.param(ROUNDS, id="adaptive N", marks=pytest.mark.slow)]
)
def test_killed_at_random_moments(fresh, small_study, n):
    settings = deepcopy(small_study)
    settings["generation"] |= {"n": n, "prompts_per_batch": 2}
    settings["dataset"]["shards"] = 1
    fresh.write(settings)
    assert [outcome.error for outcome in fresh.run(Selection(assets=UP_TO_PROMPTS)) if outcome.error] == []
    script = [sys.executable, sampling_under_kill.__file__, fresh.study_file, fresh.root, fresh.folder / "home", "7"]
    done = subprocess.run(script, capture_output=True, text=True, timeout=400, env=fresh.environment())
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    undisturbed, killed = (fresh.store.find(*PART, key).table().to_pylist() for key in (UNDISTURBED, KILLED))
    # Prompts of a resumed batch stand beside others, which may round a log-prob differently.
    for ours, theirs in zip(killed, undisturbed, strict=True):
        numbers = ("sum_logp", "eos_logp", "token_logps")
        assert {k: v for k, v in ours.items() if k not in numbers} == {
            k: v for k, v in theirs.items() if k not in numbers
        }
        assert ours["sum_logp"] == pytest.approx(theirs["sum_logp"], abs=1e-4)
    kills = len(found["codes"]) - 1
    assert kills >= 3
    prompts = found["undisturbed"]
    assert set(found["killed"]) == set(prompts) and len(set(prompts)) == len(prompts)
    # A kill costs the batch being sampled and one that was finished a moment before; nothing else is begun again.
    repeated = Counter(found["killed"]).total() - len(prompts)
    assert repeated <= kills * 2 * 2, found


@contextmanager
def begun(monkeypatch):
    """The ids of the prompts that the language model or the processor was given."""
    from m3po_dagster.method.generation import sampler

    ids, inner = [], sampler.prefill

    def noted(loaded, prompts, counts):
        ids.extend(prompt.prompt_id for prompt in prompts)
        return inner(loaded, prompts, counts)

    with monkeypatch.context() as patch:
        patch.setattr(sampler, "prefill", noted)
        yield ids


@pytest.fixture
def own_images(fresh, small_study):
    """The study over images of its own, with all prompts there."""
    settings = deepcopy(small_study)
    root = fresh.folder / "images"
    source = settings["dataset"]["sources"]["scenes"]
    shutil.copytree(source["image_root"], root, copy_function=shutil.copy2)
    source["image_root"] = str(root)
    fresh.write(settings)
    assert [outcome.error for outcome in fresh.run(Selection(assets=UP_TO_PROMPTS)) if outcome.error] == []
    return settings, root


def spoil(path: Path) -> bytes:
    """Makes an image undecodable in a way that no listing of files shows; returns what it was."""
    was, times = path.read_bytes(), path.stat()
    path.write_bytes(bytes(len(was)))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    return was


def mend(path: Path, was: bytes) -> None:
    """Makes it whole again, likewise."""
    times = path.stat()
    path.write_bytes(was)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def prompts_of_shards(project) -> dict[str, list[dict]]:
    with project.instance() as instance:
        heads = read_heads(instance, ["filtered_instructions"])
    return {part[1]: project.store.find(*part, head.fingerprint).table().to_pylist() for part, head in heads.items()}


def candidates(project, shard: str):
    with project.instance() as instance:
        head = read_heads(instance, ["candidates"])["candidates", shard]
    return project.store.find("candidates", shard, head.fingerprint)


def test_a_prompt_that_fails_is_recorded_and_the_rest_goes_on(fresh, own_images):
    settings, root = own_images
    settings["generation"]["max_failed"] = 0.5
    fresh.write(settings)
    prompts = prompts_of_shards(fresh)["s0"]
    image = prompts[0]["image_uri"]
    failing = [row["prompt_id"] for row in prompts if row["image_uri"] == image]
    spoil(root / image)
    outcomes = fresh.run(Selection(assets=("candidates",), shards=("s0",)))
    assert [outcome.error for outcome in outcomes if outcome.error] == []
    artifact = candidates(fresh, "s0")
    dropped = artifact.table("dropped").to_pylist()
    assert [row["item_id"] for row in dropped] == failing
    assert all("can't be decoded" in row["detail"] and str(root) not in row["detail"] for row in dropped)
    answered = list(dict.fromkeys(artifact.table()["prompt_id"].to_pylist()))
    assert answered == [row["prompt_id"] for row in prompts if row["prompt_id"] not in failing]
    assert artifact.manifest.metadata["checks"]["prompts_answered"]["figures"]["failed"] == len(failing)
    counted = artifact.manifest.metadata["this run"]
    assert counted["prompts"] == len(prompts)
    assert counted["prefill_tokens"] > counted["images_encoded"] > 0


def test_too_many_failures_stop_the_shard_and_are_asked_again_once_mended(fresh, made, own_images, monkeypatch):
    _, root = own_images
    prompts = prompts_of_shards(fresh)["s0"]
    image = prompts[-1]["image_uri"]
    failing = {row["prompt_id"] for row in prompts if row["image_uri"] == image}
    was, only = spoil(root / image), Selection(assets=("candidates",), shards=("s0",))
    with begun(monkeypatch) as first:
        (outcome,) = fresh.run(only)
    assert "prompts could not be sampled so far, more than generation.max_failed = 0.05 allows" in outcome.error
    assert "x the image can't be decoded" in outcome.error and "run it again" in outcome.error
    assert "Traceback" not in outcome.error and str(root) not in outcome.error
    with fresh.instance() as instance:
        assert ("candidates", "s0") not in read_heads(instance)

    # Nothing was mended: the same end, and what was sampled before is not sampled again.
    with begun(monkeypatch) as second:
        (outcome,) = fresh.run(only)
    assert "max_failed" in outcome.error
    assert failing <= set(second) and len(second) <= 4 < len(first)

    mend(root / image, was)
    with begun(monkeypatch) as third:
        (outcome,) = fresh.run(only)
    assert not outcome.error
    assert failing <= set(third) and len(third) <= 4
    assert candidates(fresh, "s0").table("dropped").num_rows == 0
    ours, theirs = (candidates(one, "s0").table() for one in (fresh, made))
    for name in ("candidate_id", "text", "token_ids", "multiplicity", "seed"):
        assert ours[name].equals(theirs[name]), name


def test_more_failures_allowed_go_on_without_asking_again(fresh, own_images, monkeypatch):
    settings, root = own_images
    prompts = prompts_of_shards(fresh)["s0"]
    last = prompts[-1]["image_uri"]
    failing = {row["prompt_id"] for row in prompts if row["image_uri"] == last}
    spoil(root / last)
    (outcome,) = fresh.run(Selection(assets=("candidates",), shards=("s0",)))
    assert "max_failed" in outcome.error
    settings["generation"]["max_failed"] = 0.5
    fresh.write(settings)
    with begun(monkeypatch) as asked:
        (outcome,) = fresh.run(Selection(assets=("candidates",), shards=("s0",)))
    assert not outcome.error
    assert len(asked) <= 4  # what stood behind the failure in its batch
    assert {row["item_id"] for row in candidates(fresh, "s0").table("dropped").to_pylist()} == failing
    assert candidates(fresh, "s0").manifest.metadata["this run"]["prompts"] == len(asked)


@pytest.mark.slow
def test_an_adaptive_study_through_the_whole_graph(fresh, small_study):
    settings = deepcopy(small_study)
    settings["generation"]["n"] = ROUNDS
    settings["recipes"].pop("sft")
    settings["benchmarks"].pop("pope")
    fresh.write(settings)
    assert [outcome.error for outcome in fresh.run() if outcome.error] == []
    assert {item.state for item in fresh.standings()} == {"fresh"}
    assert set(fresh.dagster_staleness().values()) == {StaleStatus.FRESH}
    drawn = Counter()
    for shard, prompts in prompts_of_shards(fresh).items():
        artifact = candidates(fresh, shard)
        by_prompt = artifact.table().group_by("prompt_id").aggregate([("multiplicity", "sum")])
        samples = dict(zip(by_prompt["prompt_id"].to_pylist(), by_prompt["multiplicity_sum"].to_pylist(), strict=True))
        assert set(samples) == {row["prompt_id"] for row in prompts}
        facts = artifact.manifest.metadata["adaptive"]
        assert facts["samples"] == sum(samples.values()) and facts["samples at max"] == 8 * len(prompts)
        assert facts["prompts by samples"] == {str(n): c for n, c in sorted(Counter(samples.values()).items())}
        assert sum(facts["prompts by reason to stop"].values()) == len(prompts)
        assert facts["prompts by reason to stop"].get("max reached", 0) <= Counter(samples.values())[8]
        drawn += Counter(samples.values())
        # A prompt is read once, whatever the number of its rounds.
        counted = artifact.manifest.metadata["this run"]
        assert counted["prefill_forwards"] == -(-len(prompts) // 4)
        seeds = set(artifact.table()["seed"].to_pylist())
        assert all(seed % 8 == 0 for seed in seeds) and len(seeds) == len(prompts)
    # Some prompts stopped early and some went on; nobody got fewer than 6: a first round alone settles nothing.
    assert set(drawn) == {6, 8}, drawn

    # Another judge of the pairs leaves the candidates alone; another scorer between the rounds draws new ones.
    settings["judge"]["scorers"][1]["weight"] = 1.0
    fresh.write(settings)
    stale = {item.part[0] for item in fresh.standings() if item.state != "fresh"}
    assert "mas_table" in stale and not stale & {"candidates", "sampling_scorer"}
    settings["generation"]["n"] = {**ROUNDS, "scorer": {**ROUNDS["scorer"], "tiles": 2}}
    fresh.write(settings)
    found = {item.part: item.state for item in fresh.standings()}
    assert found["sampling_scorer", ""] == "stale" and found["candidates", "s0"] == "pending"


def test_a_scorer_between_rounds_is_loaded_here_and_never_a_served_judge(fresh, small_study):
    settings = deepcopy(small_study)
    served = {"kind": "llm_judge", "model": "m", "base_url": "http://127.0.0.1:1/v1"}
    settings["generation"]["n"] = {**ROUNDS, "scorer": served}
    fresh.write(settings)
    with pytest.raises(StudyError, match=r"generation\.n\.scorer: a served judge can't score between rounds"):
        fresh.load()
    settings["generation"]["n"] = {**ROUNDS, "frist": 3}
    fresh.write(settings)
    with pytest.raises(StudyError, match=r"generation\.n\.frist: unknown key\. Did you mean 'first'"):
        fresh.load()
