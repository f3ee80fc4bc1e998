"""Prices and limits: no limit is passed, by threads or processes together, and no request that fits is refused."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ledger_samples
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ledger_samples import COST, turn
from pydantic import ValidationError

from m3po_dagster.method.alignment.budget import (
    BudgetSettings,
    BudgetSpent,
    LimitSettings,
    PriceSettings,
    Purse,
    check_priced,
)
from m3po_dagster.method.alignment.ledger import Ledger
from m3po_dagster.method.alignment.ledger_errors import LedgerError
from m3po_dagster.method.alignment.reservations import reservations_in
from m3po_dagster.method.alignment.turn import Spend

TWICE = Spend(1, cost=2 * COST)


def purse(ledger: Ledger, limits: dict, run: str = "r1", study: str = "scenes") -> Purse:
    return Purse(ledger, BudgetSettings.model_validate(limits), study, run)


@given(st.integers(0, 10**7), st.integers(0, 10**7), st.integers(0, 10**7), st.floats(0, 100), st.floats(0, 100))
def test_a_price_is_the_sum_of_its_tokens(prompt, cached, completion, each, cached_each):
    prices = PriceSettings(input=each, cached_input=cached_each, output=3.0)
    hits = min(prompt, cached)
    by_hand = sum([(prompt - hits) * each, hits * cached_each, completion * 3.0]) / 1e6
    assert prices.cost(prompt, cached, completion) == pytest.approx(by_hand)
    assert prices.in_batches().cost(prompt, cached, completion) == pytest.approx(by_hand / 2)


def test_prices_as_published():
    # A request of 1,000 prompt tokens, 600 of them cached, and 200 of a reply, at 2.50 / 1.25 / 10.00 a million.
    prices = PriceSettings(input=2.5, cached_input=1.25, output=10.0)
    assert prices.cost(1000, 600, 200) == pytest.approx(0.00375)
    assert PriceSettings(input=2.5, output=10.0).cost(1000, 600, 200) == pytest.approx(0.0045)
    assert PriceSettings(input=2.5, output=10.0, batch_discount=0.4).in_batches().cost(1000, 0, 0) == pytest.approx(
        0.0015
    )


def test_a_limit_that_limits_nothing_is_refused():
    with pytest.raises(ValidationError, match="cost"):
        LimitSettings()
    for wrong in ({"cost": 0}, {"cost": float("inf")}, {"requests": 0}):
        with pytest.raises(ValidationError):
            LimitSettings.model_validate(wrong)


def test_a_limit_on_cost_needs_every_price():
    prices = PriceSettings(input=1, output=1)
    costs, requests = BudgetSettings(run=LimitSettings(cost=1)), BudgetSettings(study=LimitSettings(requests=1))
    with pytest.raises(ValueError, match="scorer 'cheap' has no `prices`"):
        check_priced(costs, {"dear": prices, "cheap": None})
    check_priced(costs, {"dear": prices})
    check_priced(requests, {"dear": None})
    check_priced(BudgetSettings(), {"dear": None})


def test_it_stops_at_the_limit_and_says_what_to_raise(tmp_path):
    ledger = Ledger(tmp_path)
    mine = purse(ledger, {"study": {"requests": 3}})
    for number in range(3):
        with mine.reserve(Spend(1)):
            ledger.add(turn(number))
    with pytest.raises(
        BudgetSpent, match=r"study 'scenes' is spent: 3 of 3 requests used, 0 in flight, 1 wanted"
    ) as error:
        mine.reserve(Spend(1)).__enter__()
    assert "raise judge.budget.study.requests and run again: only the rest is asked and paid for" in str(error.value)
    assert len(ledger.turns(turn(2).key)) == 1
    with purse(ledger, {"study": {"requests": 4}}).reserve(Spend(1)):
        pass


def test_a_run_and_a_study_have_limits_of_their_own(tmp_path):
    ledger = Ledger(tmp_path)
    for number in range(4):
        ledger.add(turn(number, run="r1" if number < 3 else "r2"))
    ledger.add(turn(4, study="other"))
    limits = {"run": {"cost": 3 * COST}, "study": {"cost": 5 * COST}}
    with pytest.raises(
        BudgetSpent, match=r"run r1 of study 'scenes' is spent: 0.7500 of 0.7500 .*judge.budget.run.cost"
    ):
        purse(ledger, limits).reserve(Spend(1, cost=COST)).__enter__()
    with purse(ledger, limits, "r2").reserve(Spend(1, cost=COST)):
        ledger.add(turn(5, run="r2"))
    with pytest.raises(BudgetSpent, match=r"study 'scenes' is spent: 1.2500 of 1.2500 .*judge.budget.study.cost"):
        purse(ledger, limits, "r2").reserve(Spend(1, cost=COST)).__enter__()
    with purse(ledger, limits, study="other").reserve(TWICE):
        pass


def test_prices_that_add_up_to_the_limit_do_not_pass_it(tmp_path):
    ledger = Ledger(tmp_path)
    mine = purse(ledger, {"study": {"cost": 0.3}})
    for number in range(3):
        with mine.reserve(Spend(1, cost=0.1)):
            ledger.add(turn(number, cost=0.1))
    with pytest.raises(BudgetSpent):
        mine.reserve(Spend(1, cost=0.1)).__enter__()


def test_without_limits_nothing_is_written(tmp_path):
    with purse(Ledger(tmp_path / "ledger"), {}).reserve(Spend(10**9, cost=1e9)):
        assert not (tmp_path / "ledger").exists()


def test_what_failed_is_given_back(tmp_path):
    mine = purse(Ledger(tmp_path), {"study": {"requests": 1}})
    with pytest.raises(ZeroDivisionError), mine.reserve(Spend(1)):
        _ = 1 / 0
    with mine.reserve(Spend(1)):
        pass


def test_a_thread_does_not_wait_for_itself(tmp_path):
    mine = purse(Ledger(tmp_path), {"study": {"requests": 2}})
    with mine.reserve(Spend(1)), mine.reserve(Spend(1)), pytest.raises(BudgetSpent, match="2 in flight"):
        mine.reserve(Spend(1)).__enter__()


def test_a_request_waits_for_what_others_reserved_in_excess(tmp_path):
    """Reserved is the most a request can take; a limit is not spent because much is reserved."""
    ledger = Ledger(tmp_path)
    mine = purse(ledger, {"study": {"cost": 1.0}})
    entered, leave, got = threading.Event(), threading.Event(), []

    def slow() -> None:
        with mine.reserve(Spend(1, cost=0.9)):
            entered.set()
            leave.wait()
            ledger.add(turn(1, cost=0.01))

    def next_one() -> None:
        with mine.reserve(Spend(1, cost=0.9)):
            got.append(ledger.spent().cost)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(slow)
        entered.wait()
        second = pool.submit(next_one)
        time.sleep(0.05)
        assert not got
        leave.set()
        first.result()
        second.result()
    assert got == [0.01]


@pytest.mark.parametrize(("limits", "allowed"), [({"requests": 25}, 25), ({"cost": 25 * COST}, 24)])
def test_threads_spend_all_and_no_more(tmp_path, limits, allowed):
    # Each reserves two requests' money and takes one's: the last can't be sure of its share.
    ledger = Ledger(tmp_path)
    mine, numbers = purse(ledger, {"run": limits}), iter(range(500))
    expected = Spend(1) if "requests" in limits else TWICE

    def work(_: int) -> None:
        for number in numbers:
            try:
                with mine.reserve(expected):
                    time.sleep(0.001)
                    ledger.add(turn(number))
            except BudgetSpent:
                return

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert ledger.spent().requests == allowed


def spender(folder: Path, limit: dict, threads: int, expected: float, seconds: float, out: Path) -> subprocess.Popen:
    values = [json.dumps({"study": limit}), str(threads), str(expected), str(seconds)]
    with open(out, "wb") as file:
        return subprocess.Popen([sys.executable, ledger_samples.__file__, "spend", str(folder), *values], stdout=file)


def test_processes_spend_all_and_no_more_though_one_is_killed(tmp_path):
    folder, limit = tmp_path / "ledger", {"cost": 80 * COST}
    # One takes all that there is and is killed with it.
    greedy = spender(folder, limit, 1, 80 * COST, 60, tmp_path / "greedy")
    while b"reserved" not in (tmp_path / "greedy").read_bytes():
        time.sleep(0.01)
    others = [spender(folder, limit, 4, 2 * COST, 0.004, tmp_path / f"said-{n}") for n in range(3)]
    time.sleep(0.6)
    assert Ledger(folder).spent().requests == 0
    greedy.kill()
    assert greedy.wait() == -signal.SIGKILL
    assert [process.wait() for process in others] == [0, 0, 0]
    # Threads of every process stopped, at the last request that could be sure of its share.
    assert all("stopped 4" in (tmp_path / f"said-{n}").read_text() for n in range(3))
    spent = Ledger(folder).spent()
    assert spent.requests == 79 and spent.cost == 79 * COST
    with purse(Ledger(folder), {"study": limit}).reserve(Spend(1, cost=COST)):
        assert len(list((folder / ".reserved").glob("*.json"))) == 1


def test_no_process_looks_while_another_makes_up_its_mind(tmp_path):
    """Between looking and taking nobody else may take: two would both find the last share free."""
    folder, said = tmp_path / "ledger", tmp_path / "said"
    with reservations_in(folder / ".reserved").exclusive():
        process = spender(folder, {"requests": 1}, 1, COST, 0, said)
        while b"starts" not in said.read_bytes():
            time.sleep(0.01)
        time.sleep(0.2)
        assert b"reserved" not in said.read_bytes()
    assert process.wait() == 0
    assert b"reserved" in said.read_bytes() and Ledger(folder).spent().requests == 1


def test_what_a_killed_process_reserved_is_free_though_its_child_lives(tmp_path):
    mine = purse(Ledger(tmp_path), {"study": {"requests": 1}})
    read, write = os.pipe()
    child = os.fork()
    if not child:
        with mine.reserve(Spend(1)):
            grandchild = os.fork()
            if not grandchild:
                signal.alarm(30)
                os.write(write, f"{os.getpid()} ".encode())
                signal.pause()
            signal.pause()
    grandchild = int(os.read(read, 20))
    try:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        signal.alarm(20)
        with mine.reserve(Spend(1)):
            signal.alarm(0)
            os.kill(grandchild, 0)
    finally:
        os.kill(grandchild, signal.SIGKILL)


def test_a_folder_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "ledger").write_text("a file")
    with pytest.raises(LedgerError, match=r"reserve a share of the budget in .*ledger"):
        purse(Ledger(tmp_path / "ledger"), {"study": {"requests": 1}}).reserve(Spend(1)).__enter__()
