"""The graph with a served judge: kills, faults, failures and budgets lose nothing, and a key is written nowhere."""

import json
import subprocess
import sys
from collections import Counter
from copy import deepcopy

import judging_under_kill
import pytest
from judging_under_kill import PART

from m3po_dagster.current import read_heads
from m3po_dagster.method.alignment.judge_reply import Grades, read_reply
from m3po_dagster.runner import Selection
from tests.faulty_judge import FaultyJudge
from tests.served_judge import ServedJudge

KEY = "sk-never-to-be-written-down"
UP_TO_IDENTITY = (
    "source_dataset",
    "base_model",
    "sampling_scorer",
    "judge_probe",
    "judge_identity",
    "benchmark_data",
    "filtered_instructions",
    "candidates",
)
UNDISTURBED, KILLED = "0" * 64, "1" * 64
PARALLEL = 4


def judged_by(settings: dict, server: ServedJudge, **judge) -> dict:
    """The study with this server as its judge."""
    scorer = {
        "kind": "llm_judge", "base_url": server.base_url, "model": server.model, "max_parallel": PARALLEL,
        "group_size": 3, "timeout": 30, "prices": {"input": 2.0, "output": 8.0}, **judge.pop("scorer", {}),
    }  # fmt: skip
    changed = deepcopy(settings)
    changed["judge"] = {"scorers": [scorer], "probe_repeats": 1, **judge}
    changed["dataset"]["shards"] = 1
    return changed


def errors(outcomes) -> list[str]:
    return [outcome.error for outcome in outcomes if outcome.error]


def mas(project):
    with project.instance() as instance:
        head = read_heads(instance, ["mas_table"])["mas_table", "s0"]
    return project.store.find("mas_table", "s0", head.fingerprint)


def test_killed_at_random_moments_it_asks_nothing_twice(fresh, small_study):
    with FaultyJudge(share=0.0, pace=0.02) as server:
        fresh.write(judged_by(small_study, server))
        assert errors(fresh.run(Selection(assets=UP_TO_IDENTITY))) == []

        def judge(folder: str, fingerprint: str, kills: str) -> tuple[list[int], int]:
            before = server.requests - server.probes
            home = fresh.folder / "home"
            arguments = [fresh.study_file, fresh.root, home, folder, fingerprint, kills, "7"]
            script = [sys.executable, judging_under_kill.__file__, *map(str, arguments)]
            done = subprocess.run(script, capture_output=True, text=True, timeout=300, env=fresh.environment())
            assert done.returncode == 0, done.stderr[-2000:]
            return json.loads(done.stdout.splitlines()[-1]), server.requests - server.probes - before

        _, undisturbed = judge("ledger-undisturbed", UNDISTURBED, "never")
        codes, requests = judge("ledger-killed", KILLED, "random")
    tables = [fresh.store.find(*PART, key).table() for key in (UNDISTURBED, KILLED)]
    assert tables[0].equals(tables[1]) and tables[0]["mas"].null_count == 0
    kills = len(codes) - 1
    assert kills >= 3 and codes[-1] == 0
    kept = fresh.ledger("ledger-killed")
    assert len(kept) == undisturbed and set(Counter(row["key"] for row in kept).values()) == {1}
    # A kill costs at most the requests in flight, whose replies nobody was there to take.
    assert requests - undisturbed <= kills * PARALLEL


def test_too_many_unscored_end_the_step_and_only_they_are_asked_again(fresh, small_study):
    with FaultyJudge(share=0.0) as server:
        # Held-back replies are soon given up.
        fresh.write(judged_by(small_study, server, max_unscored=0.0, scorer={"timeout": 1.0}))
        assert errors(fresh.run(Selection(assets=UP_TO_IDENTITY))) == []
        server.share = 0.6
        (error,) = errors(fresh.run(Selection(assets=("mas_table",))))
        assert "candidates are unscored so far, more than judge.max_unscored = 0 allows" in error
        assert "llm_judge: " in error and "asks the failed ones again" in error
        server.share = 0.0
        first = fresh.ledger()
        assert errors(fresh.run(Selection(assets=("mas_table",)))) == []
    assert mas(fresh).table()["mas"].null_count == 0
    second = [row for row in fresh.ledger() if row["run"] not in {row["run"] for row in first}]
    assert {row["key"] for row in second} & {row["key"] for row in first} and sum(server.met.values()) > 5
    # Each request of the second run brought a grade that the first had not: none was paid for twice.
    grades = [
        (row["key"], answer)
        for row in fresh.ledger()
        for answer in read_reply(row["reply"], dict.fromkeys("ABC", Grades)).grades
    ]
    assert max(Counter(grades).values()) == 1
    assert all(read_reply(row["reply"], dict.fromkeys("ABC", Grades)).grades for row in second)


def test_a_budget_stops_the_step_and_what_was_answered_is_kept(fresh, small_study):
    with ServedJudge() as server:
        fresh.write(judged_by(small_study, server, budget={"study": {"requests": 10}}))
        (error,) = errors(fresh.run(Selection(assets=(*UP_TO_IDENTITY, "mas_table"))))
        assert "judge.budget.study.requests" in error and "10 of 10 requests" in error
        assert len(fresh.ledger()) == 10
        fresh.write(judged_by(small_study, server, budget={"study": {"requests": 10_000}}))
        assert errors(fresh.run(Selection(assets=("mas_table",)))) == []
    turns = fresh.ledger()
    assert len(turns) > 10 and {row["turn"] for row in turns} == {0}
    assert len({row["key"] for row in turns}) == len(turns) and mas(fresh).table()["mas"].null_count == 0


def stricter(grades: tuple) -> tuple:
    """The same grades, the last of the three a step lower."""
    relevance, accuracy, adherence, words = grades
    return relevance, accuracy, adherence - 1, words


def test_a_model_swapped_under_its_name_is_asked_nothing_as_the_old_one(fresh, small_study):
    with ServedJudge() as server:
        fresh.write(judged_by(small_study, server))
        assert errors(fresh.run(Selection(assets=UP_TO_IDENTITY))) == []
        server.revision = 2
        (error,) = errors(fresh.run(Selection(assets=("mas_table",))))
        assert "the judge is not the one that was probed" in error and "m3po run --ask-judge" in error
        assert server.requests == server.probes and not (fresh.folder / "store" / "ledger").exists()
        chosen = Selection(assets=("judge_probe", "judge_identity", "mas_table"))
        outcomes = fresh.run(chosen, ask_judge=True)
        assert errors(outcomes) == [] and outcomes[0].assets == ("judge_probe", "judge_identity")
        assert mas(fresh).table()["mas"].null_count == 0
        # A step of one grade of 36 is no other model: what was found before stands, and nothing is due.
        real = server.grades
        server.grades = lambda *asked: stricter(real(*asked)) if asked[2] == "Left" else real(*asked)
        (only,) = fresh.run(chosen, ask_judge=True)
        assert only.reused == only.assets == ("judge_probe", "judge_identity") and fresh.run(chosen) == []


@pytest.fixture(scope="module")
def judged(tmp_path_factory, small_study):
    """A project whose whole graph was run with a judge that wants a key."""
    from tests.integration.conftest import Project

    project = Project(tmp_path_factory.mktemp("judged"))
    with pytest.MonkeyPatch.context() as patched, ServedJudge(key=KEY) as server:
        patched.setenv("JUDGE_KEY", KEY)
        project.write(judged_by(small_study, server, scorer={"api_key_env": "JUDGE_KEY"}))
        assert errors(project.run()) == []
        yield project, server


def test_the_key_is_in_no_file_of_store_or_dagster(judged):
    project, _ = judged
    files = [path for path in project.folder.rglob("*") if path.is_file()]
    assert len(files) > 100 and not [path for path in files if KEY.encode() in path.read_bytes()]


def test_the_metadata_say_what_was_asked_and_what_it_cost(judged):
    project, _ = judged
    artifact = mas(project)
    asked = artifact.manifest.metadata["asked"]["llm_judge"]
    kept = project.ledger()
    assert asked["requests"] == len(kept) > 10 and asked["from_ledger"] == 0 and asked["groups"] == asked["requests"]
    assert asked["cost"] == pytest.approx(sum(row["cost"] for row in kept))
    assert asked["prompt_tokens"] == sum(row["prompt_tokens"] for row in kept)


def test_another_study_over_the_same_store_pays_for_nothing(judged, small_study, monkeypatch):
    project, server = judged
    monkeypatch.setenv("JUDGE_KEY", KEY)
    other = judged_by(small_study, server, scorer={"api_key_env": "JUDGE_KEY"})
    # Other settings that matter to the table, so that the store does not know it; the questions are the same.
    other |= {"name": "other"}
    other["judge"]["max_unscored"] = 0.5
    project.write(other)
    before = len(project.ledger())
    assert errors(project.run(Selection(assets=(*UP_TO_IDENTITY, "mas_table")))) == []
    assert len(project.ledger()) == before
    asked = mas(project).manifest.metadata["asked"]["llm_judge"]
    assert (asked["requests"], asked["cost"]) == (0, 0.0) and asked["from_ledger"] == asked["groups"] == before
