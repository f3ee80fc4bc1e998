"""Served judges with their ledger in a bucket: two machines that judge the same answers pay once between them."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from m3po_dagster.method.alignment.account import Account
from m3po_dagster.method.alignment.budget import BudgetSettings, BudgetSpent, Purse
from m3po_dagster.method.alignment.llm_judge import LlmJudgeSettings
from m3po_dagster.method.prompt import Message, Prompt
from tests.served_batches import ServedBatches
from tests.served_judge import Received, ServedJudge

pytestmark = pytest.mark.slow

PROMPTS, PARALLEL = 6, 4


@pytest.fixture
def batch(tmp_path) -> list[tuple[Prompt, list[str]]]:
    found = []
    for number in range(PROMPTS):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", (24, 16), (40 * number, 0, 0)).save(path)
        answers = [f"It is shade {number}, take {take}." for take in range(4)]
        found.append((Prompt(str(number), path, (Message("user", "Which shade?"),)), answers))
    return found


def judge(ledger, run: str, served, **changed):
    study_limit = changed.pop("budget", {})
    account = Account(ledger, Purse(ledger, BudgetSettings.model_validate(study_limit), "s", run), "s", run)
    asked = {"group_size": 2, "max_parallel": PARALLEL, "prices": {"input": 2.0, "output": 8.0}, **changed}
    return LlmJudgeSettings(model=served.model, base_url=served.base_url, **asked).build().at(account)


def test_two_machines_at_once_ask_each_question_once(machine, url, tmp_path, batch):
    with ServedJudge() as served:
        ledgers = [machine(url, tmp_path / copy) for copy in ("one", "other")]
        judges = [judge(ledger, f"r{place}", served) for place, ledger in enumerate(ledgers)]
        with ThreadPoolExecutor(2) as pool:
            first, second = pool.map(lambda one: one.score(batch), judges)
        assert first == second and {score.reason for row in first for score in row} == {"scored"}
        assert served.requests == 2 * PROMPTS == ledgers[0].spent().requests
        # Another machine, and one that lost its copy, ask nothing.
        assert judge(machine(url, tmp_path / "third"), "r3", served).score(batch) == first
        assert served.requests == 2 * PROMPTS


def test_a_budget_stops_two_machines_together(machine, url, tmp_path, batch):
    with ServedJudge() as served:
        ledgers = [machine(url, tmp_path / copy) for copy in ("one", "other")]
        halves = batch[: PROMPTS // 2], batch[PROMPTS // 2 :]

        def score(place: int, requests: int):
            budget = {"study": {"requests": requests}}
            return judge(ledgers[place], f"r{place}", served, budget=budget).score(halves[place])

        def stopped(place: int) -> bool:
            try:
                score(place, 5)
            except BudgetSpent as error:
                return "5 of 5 requests used" in str(error) and "judge.budget.study.requests" in str(error)
            return False

        with ThreadPoolExecutor(2) as pool:
            # Five of the twelve that both want: at least one of them is stopped, and neither passes it.
            assert any(pool.map(stopped, range(2)))
        assert served.requests == 5 == ledgers[0].spent().requests
        with ThreadPoolExecutor(2) as pool:
            both = list(pool.map(lambda place: score(place, 12), range(2)))
        assert {score.reason for rows in both for row in rows for score in row} == {"scored"}
        assert served.requests == 12


def test_batches_are_paid_once_and_their_replies_shared(machine, url, tmp_path, batch):
    behind = ServedJudge()

    def reply(body: dict) -> dict:
        return json.loads(behind.judge(Received({}, body)).body)

    with ServedBatches(reply, model=behind.model) as service:
        ledger = machine(url, tmp_path / "one")
        scores = judge(ledger, "r", service, batch={"poll_seconds": 0.01}).score(batch)
        assert {score.reason for row in scores for score in row} == {"scored"}
        assert len(service.paid) == 2 * PROMPTS == ledger.spent().requests
        other = judge(machine(url, tmp_path / "other"), "r", service, batch={"poll_seconds": 0.01})
        assert other.score(batch) == scores and set(service.paid.values()) == {1}
