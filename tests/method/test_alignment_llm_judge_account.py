"""A judge with an account: nothing is paid for twice, nothing is lost, and only what failed is asked again."""

import json
from collections import Counter

import duckdb
import pytest
from PIL import Image

from m3po_dagster.method.alignment.account import Account
from m3po_dagster.method.alignment.budget import BudgetSettings, BudgetSpent, Purse
from m3po_dagster.method.alignment.ledger import Ledger
from m3po_dagster.method.alignment.llm_judge import LlmJudgeSettings
from m3po_dagster.method.endpoint import EndpointError
from m3po_dagster.method.prompt import Message, Prompt
from tests.faulty_judge import FAULTS, TIMEOUT, FaultyJudge
from tests.served_judge import ServedJudge, completion

COLOURS = {"red": (255, 0, 0), "blue": (0, 0, 255), "green": (0, 128, 0), "black": (0, 0, 0)}
PRICES = {"input": 2.0, "output": 8.0}


@pytest.fixture
def served():
    with ServedJudge() as judge:
        yield judge


@pytest.fixture
def prompts(tmp_path) -> list[Prompt]:
    """160 questions about four pictures."""
    for name, colour in COLOURS.items():
        Image.new("RGB", (24, 16), colour).save(tmp_path / f"{name}.png")
    return [
        Prompt(f"p{i}", tmp_path / f"{list(COLOURS)[i % 4]}.png", (Message("user", f"Question {i}: which colour?"),))
        for i in range(160)
    ]


def answers(number: int) -> list[str]:
    """Distinct answers, right and wrong, short and long."""
    return [
        f"{'The picture' if i % 3 else 'If you ask me, I would say that it'} is {list(COLOURS)[i % 4]}, take {i}."
        for i in range(number)
    ]


def account(folder, study="s", run="r", revision="", budget=None, again=False) -> Account:
    ledger = Ledger(folder)
    purse = Purse(ledger, BudgetSettings(**(budget or {})), study, run)
    return Account(ledger, purse, study, run, {"llm_judge": revision}, again)


def judge_of(served, account: Account, **changed):
    settings = {"model": served.model, "base_url": served.base_url, "timeout": TIMEOUT, "prices": PRICES, **changed}
    return LlmJudgeSettings(**settings).build().at(account)


def test_a_reply_is_asked_for_once_whoever_wants_it(served, prompts, tmp_path):
    batch = [(prompt, answers(10)) for prompt in prompts[:3]]
    first = account(tmp_path / "ledger")
    scores = judge_of(served, first).score(batch)
    assert served.requests == 6 and first.tallies.by_scorer["llm_judge"].requests == 6
    for other in (first, account(tmp_path / "ledger", study="another", run="another")):
        assert judge_of(served, other).score(batch) == scores
        assert served.requests == 6
    tally = other.tallies.by_scorer["llm_judge"]
    assert (tally.groups, tally.from_ledger, tally.requests, tally.cost) == (6, 6, 0, 0.0)
    # How it is asked decides no reply; what is asked does.
    assert judge_of(served, other, max_parallel=1, timeout=5).score(batch) == scores and served.requests == 6
    judge_of(served, other, temperature=1.0).score(batch)
    assert served.requests == 12


def test_another_model_behind_the_name_is_asked_anew(served, prompts, tmp_path):
    batch = [(prompts[0], answers(4))]
    before = judge_of(served, account(tmp_path, revision="1")).score(batch)
    served.revision = 2
    assert judge_of(served, account(tmp_path, revision="1")).score(batch) == before and served.requests == 1
    assert judge_of(served, account(tmp_path, revision="2")).score(batch) != before and served.requests == 2
    assert judge_of(served, account(tmp_path, revision="1")).score(batch) == before and served.requests == 2


def test_the_ledger_keeps_raw_replies_tokens_and_cost_for_duckdb(served, prompts, tmp_path):
    scores = judge_of(served, account(tmp_path)).score([(prompts[0], answers(10))])
    rows = duckdb.sql(f"SELECT * FROM read_json('{tmp_path}/*/*.jsonl')").to_arrow_table().to_pylist()
    assert len(rows) == 2
    graded = [
        entry
        for row in rows
        for entry in json.loads(json.loads(row["reply"])["choices"][0]["message"]["content"])["grades"]
    ]
    assert Counter(entry["accuracy"] for entry in graded) == Counter(
        score.sub_scores["llm_judge_accuracy"] for score in scores[0]
    )
    for row in rows:
        assert row["cost"] == pytest.approx((row["prompt_tokens"] * 2 + row["completion_tokens"] * 8) / 1e6)
        assert (row["study"], row["run"], row["model"], row["prompt_id"]) == ("s", "r", served.model, "p0")


@pytest.mark.parametrize(
    ("spoiled", "requests"),
    [
        ([completion(None, refusal="no")], 2),
        ([completion("{ on and on", finish_reason="length")], 2),
        ([completion("no JSON")] * 2, 3),
    ],
)
def test_only_what_failed_is_asked_again_and_only_by_a_re_run(served, prompts, tmp_path, spoiled, requests):
    batch = [(prompts[0], answers(8)), (prompts[1], answers(8))]
    served.instead[answers(8)[0]] = list(spoiled)
    first = judge_of(served, account(tmp_path), max_parallel=1).score(batch)
    assert {score.value for score in first[0]} == {None} and served.requests == requests
    # After a crash, or in another study, a reply that was paid for is what it is.
    for other in (account(tmp_path), account(tmp_path, study="other")):
        assert judge_of(served, other).score(batch) == first and served.requests == requests
    second = judge_of(served, account(tmp_path, again=True)).score(batch)
    requests -= 2
    assert served.requests == requests + 3 and {score.reason for row in second for score in row} == {"scored"}
    assert second[1] == first[1]


def test_5000_candidates_under_20_percent_faults(prompts, tmp_path):
    batch = [(prompt, answers(32)) for prompt in prompts]
    with ServedJudge() as clean:
        expected = judge_of(clean, account(tmp_path / "clean"), timeout=30).score(batch)
    assert sum(map(len, expected)) == 5120 and clean.requests == 640
    with FaultyJudge(share=0.2) as served:
        found, runs = None, 0
        while found is None or any(score.value is None for row in found for score in row):
            runs += 1
            assert runs <= 8, "each run asks only for what failed; that share must shrink to nothing"
            whose = account(tmp_path / "ledger", run=f"r{runs}", again=runs > 1)
            found = judge_of(served, whose, max_parallel=16).score(batch)
            for ours, theirs in zip(found, expected, strict=True):
                assert all(one.value in (None, other.value) for one, other in zip(ours, theirs, strict=True))
        assert [[score.sub_scores for score in row] for row in found] == [
            [score.sub_scores for score in row] for row in expected
        ]
        assert found == expected
    assert set(served.met) == set(FAULTS) and min(served.met.values()) >= 5, served.met
    # What the server gave in a usable form it gave once: nothing was lost and nothing paid for twice.
    assert set(served.delivered.values()) == {1} and len(served.delivered) == 5120
    assert runs > 1


def test_a_budget_stops_before_the_request_that_would_pass_it(served, prompts, tmp_path):
    batch = [(prompt, answers(8)) for prompt in prompts[:20]]
    limited = account(tmp_path, budget={"study": {"requests": 5}})
    with pytest.raises(BudgetSpent, match=r"judge\.budget\.study\.requests"):
        judge_of(served, limited).score(batch)
    assert served.requests == 5 == limited.ledger.spent(study="s").requests
    with pytest.raises(BudgetSpent):
        judge_of(served, account(tmp_path, run="next", budget={"study": {"requests": 5}})).score(batch)
    assert served.requests == 5
    # With more to spend the five are not asked again.
    raised = account(tmp_path, run="later", budget={"study": {"requests": 20}, "run": {"requests": 15}})
    rows = judge_of(served, raised).score(batch)
    assert served.requests == 20 and all(score.value is not None for row in rows for score in row)


def test_a_cost_limit_holds_whatever_runs_at_once(served, prompts, tmp_path):
    batch = [(prompt, answers(8)) for prompt in prompts[:40]]
    limited = account(tmp_path, budget={"run": {"cost": 0.1}})
    with pytest.raises(BudgetSpent, match=r"judge\.budget\.run\.cost"):
        judge_of(served, limited, max_parallel=8).score(batch)
    spent = limited.ledger.spent(run="r").cost
    assert 0.03 < spent <= 0.1


def test_a_key_is_in_no_file_of_the_ledger(prompts, tmp_path, monkeypatch):
    class Echo(ServedJudge):
        def judge(self, received):
            return completion(json.dumps({"seen": f"you sent {dict(received.headers)}", "grades": []}))

    monkeypatch.setenv("JUDGE_KEY", "sk-s3cret")
    with Echo(key="sk-s3cret") as served:
        ((score,),) = judge_of(served, account(tmp_path), api_key_env="JUDGE_KEY").score([(prompts[0], ["Red."])])
    kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".png")
    assert b"Bearer ***" in kept and b"s3cret" not in kept and "s3cret" not in score.words


def test_an_outage_keeps_what_was_answered(served, prompts, tmp_path):
    batch = [(prompt, answers(8)) for prompt in prompts[:40]]
    judge_of(served, account(tmp_path)).score(batch[:10])
    served.up = False
    with pytest.raises(EndpointError):
        judge_of(served, account(tmp_path), max_retries=0).score(batch)
    served.up = True
    before = served.asked.copy()
    judge_of(served, account(tmp_path)).score(batch)
    assert (served.asked - before).total() == 30 * 8
