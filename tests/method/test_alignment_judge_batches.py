"""A judge through the Batch API: the scores of one asked directly, each request paid for once, at the batch's price."""

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
from PIL import Image

from m3po_dagster.method.alignment.account import Account
from m3po_dagster.method.alignment.budget import BudgetSettings, BudgetSpent, Purse
from m3po_dagster.method.alignment.ledger import Ledger
from m3po_dagster.method.alignment.llm_judge import LlmJudgeSettings
from m3po_dagster.method.prompt import Message, Prompt
from tests.served_batches import ServedBatches
from tests.served_judge import Received, ServedJudge, completion

COLOURS = {"red": (255, 0, 0), "blue": (0, 0, 255)}
ANSWERS = [f"It is {colour}, take {number}." for colour in COLOURS for number in range(5)]
PRICES = {"input": 2.0, "output": 8.0, "batch_discount": 0.25}


class BatchJudge(ServedBatches):
    """A batch service with the loopback judge behind it; `instead` are replies that go out first."""

    def __init__(self) -> None:
        self.instead: list[str] = []
        self._judge = ServedJudge()
        super().__init__(self._reply, model=self._judge.model)

    def _reply(self, body: dict) -> dict:
        if self.instead:
            return json.loads(completion(self.instead.pop(0)).body)
        return json.loads(self._judge.judge(Received({}, body)).body)


@pytest.fixture
def service():
    with BatchJudge() as served:
        yield served


@pytest.fixture
def batch(tmp_path) -> list[tuple[Prompt, list[str]]]:
    for name, colour in COLOURS.items():
        Image.new("RGB", (24, 16), colour).save(tmp_path / f"{name}.png")
    question = (Message("user", "Which colour?"),)
    return [(Prompt(name, tmp_path / f"{name}.png", question), ANSWERS) for name in COLOURS]


def account(folder, **budget) -> Account:
    ledger = Ledger(folder)
    return Account(ledger, Purse(ledger, BudgetSettings(**budget), "s", "r"), "s", "r")


def judge_of(served, whose: Account, **changed):
    asked = {"batch": {"poll_seconds": 0.01}, "group_size": 4, "prices": PRICES} | changed
    return LlmJudgeSettings(model=served.model, base_url=served.base_url, **asked).build().at(whose)


def test_it_scores_as_the_judge_that_is_asked_directly_for_less(service, batch, tmp_path):
    with ServedJudge(model=service.model) as direct:
        asked_directly = account(tmp_path / "direct")
        expected = judge_of(direct, asked_directly, batch=None).score(batch)
    told = account(tmp_path / "batches")
    judge = judge_of(service, told)
    assert judge.together > 10**6
    assert judge.score(batch) == expected and len(service.batches) == 1
    assert set(service.paid.values()) == {1} and len(service.paid) == 6
    tallies = [whose.tallies.by_scorer["llm_judge"] for whose in (asked_directly, told)]
    assert tallies[1].requests == tallies[0].requests == 6
    assert tallies[1].cost == pytest.approx(0.75 * tallies[0].cost) and tallies[0].cost > 0
    # Asked directly or in a batch, it is the same question.
    assert judge_of(service, account(tmp_path / "direct")).score(batch) == expected and len(service.paid) == 6


def test_the_estimate_is_at_the_price_of_a_batch(service, batch, tmp_path):
    directly = judge_of(service, account(tmp_path / "a"), batch=None).estimate(batch)
    batched = judge_of(service, account(tmp_path / "a")).estimate(batch)
    assert batched.spend.requests == directly.spend.requests == 6
    assert batched.spend.cost == pytest.approx(0.75 * directly.spend.cost) and not service.paid


def test_what_a_reply_spoils_is_asked_once_more_in_a_second_batch(service, batch, tmp_path):
    service.instead = ["no JSON"]
    scores = judge_of(service, account(tmp_path / "l")).score(batch)
    assert {score.reason for row in scores for score in row} == {"scored"}
    assert len(service.batches) == 2 and len(service.paid) == 7
    service.instead = ["no JSON", "again none"]
    other = [(prompt, [f"{answer} Really." for answer in answers]) for prompt, answers in batch[:1]]
    (row,) = judge_of(service, account(tmp_path / "l"), group_size=16).score(other)
    assert {score.reason for score in row} == {"reply can't be read"}


def test_lines_without_a_reply_are_unscored_and_asked_again_by_the_next_run(service, batch, tmp_path):
    first = account(tmp_path / "l")
    service.answer_line = lambda body: pytest.fail("no line is run")
    service.invalid = lambda line: None
    service.missing = _All()
    scores = judge_of(service, first).score(batch)
    assert {score.reason for row in scores for score in row} == {"no answer in a batch (no line in the batch's files)"}
    service.answer_line, service.missing = service._reply, set()
    again = judge_of(service, account(tmp_path / "l")).score(batch)
    assert {score.reason for row in again for score in row} == {"scored"} and set(service.paid.values()) == {1}


class _All(set):
    """Holds everything."""

    def __contains__(self, item: object) -> bool:
        return True


def test_a_budget_is_spent_lot_by_lot_and_never_passed(service, batch, tmp_path):
    with pytest.raises(BudgetSpent, match=r"judge\.budget\.run\.requests"):
        judge_of(service, account(tmp_path / "l", run={"requests": 5})).score(batch)
    assert len(service.paid) == 5 == Ledger(tmp_path / "l").spent().requests
    assert judge_of(service, account(tmp_path / "l", run={"requests": 6})).score(batch)
    assert len(service.paid) == 6


def test_work_that_fits_the_budget_is_done_though_it_might_have_taken_more(service, batch, tmp_path):
    estimate = judge_of(service, account(tmp_path / "a")).estimate(batch).spend.cost
    limited = account(tmp_path / "l", run={"cost": 2 * estimate})
    scores = judge_of(service, limited, max_reply_tokens=300).score(batch)
    assert {score.reason for row in scores for score in row} == {"scored"} and len(service.batches) > 1
    assert 0 < limited.ledger.spent().cost <= 2 * estimate and set(service.paid.values()) == {1}


def test_replies_that_a_batch_has_are_collected_whatever_the_budget_says(service, batch, tmp_path):
    """They are paid for: to leave them there would only lose them."""

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("m3po_dagster.method.alignment.judge_batches.keep_reply", killed)
        judge_of(service, account(tmp_path / "l", run={"requests": 6})).score(batch)
    assert len(service.paid) == 6 and Ledger(tmp_path / "l").spent().requests == 0
    none_left = account(tmp_path / "l", run={"requests": 1})
    scores = judge_of(service, none_left).score(batch)
    assert {score.reason for row in scores for score in row} == {"scored"} and set(service.paid.values()) == {1}
    assert none_left.ledger.spent().requests == 6


def test_one_image_in_two_files_is_one_question(service, batch, tmp_path):
    (prompt, answers), *_ = batch
    (tmp_path / "copy.png").write_bytes(prompt.image_path.read_bytes())
    twin = Prompt("twin", tmp_path / "copy.png", prompt.messages)
    first, second = judge_of(service, account(tmp_path / "l"), group_size=1).score([(prompt, answers), (twin, answers)])
    assert first == second and {score.reason for score in first} == {"scored"}
    assert len(service.paid) == 10 == Ledger(tmp_path / "l").spent().requests


def test_a_reply_is_kept_though_somebody_asks_the_same_right_now(service, batch, tmp_path):
    """Who asks directly holds the question and waits for the budget that the batch holds: that must not be for ever."""
    judge = judge_of(service, account(tmp_path / "l", run={"requests": 6}))
    held = [group.key for prompt, answers in batch for group in judge.groups(prompt, answers)]
    with ExitStack() as stack, ThreadPoolExecutor(1) as other:
        for key in held:
            stack.enter_context(Ledger(tmp_path / "l").asking(key))
        scores = other.submit(judge.score, batch).result(timeout=30)
    assert {score.reason for row in scores for score in row} == {"scored"}


def test_an_image_that_can_not_be_read_is_in_no_batch(service, batch, tmp_path):
    (prompt, answers), *_ = batch
    (tmp_path / "broken.png").write_bytes(prompt.image_path.read_bytes()[:40])
    broken = [Prompt(name, tmp_path / name, prompt.messages) for name in ("broken.png", "missing.png")]
    rows = judge_of(service, account(tmp_path / "l")).score([(one, answers) for one in broken] + batch[:1])
    assert [{score.reason for score in row} for row in rows] == [{"image can't be read"}] * 2 + [{"scored"}]
    assert len(service.paid) == 3


def test_a_probe_is_asked_directly(service, batch):
    """Without an account nothing is kept that a batch could be found again by."""
    settings = LlmJudgeSettings(model=service.model, base_url=service.base_url, batch={"poll_seconds": 0.01})
    with ServedJudge(model=service.model) as direct:
        asked = settings.model_copy(update={"base_url": direct.base_url}).build().score(batch)
        assert direct.requests == 4 and {score.reason for row in asked for score in row} == {"scored"}
    assert not service.files
