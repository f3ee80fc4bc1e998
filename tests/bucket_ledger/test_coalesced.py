"""Calls that come while work is under way share the next run of it, and none is answered by a run that began before."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from m3po_dagster.bucket_ledger.coalesced import Coalesced


def test_who_comes_while_it_runs_shares_the_next_run():
    runs, entered, leave = [], threading.Event(), threading.Event()

    def work() -> int:
        runs.append(len(runs))
        entered.set()
        leave.wait()
        return runs[-1]

    shared = Coalesced(work)
    with ThreadPoolExecutor(20) as pool:
        first = pool.submit(shared)
        entered.wait()
        others = [pool.submit(shared) for _ in range(19)]
        while pool._work_queue.qsize():
            time.sleep(0.01)
        time.sleep(0.2)
        leave.set()
        assert first.result() == 0 and {other.result() for other in others} == {1}
    assert runs == [0, 1]


def test_a_call_is_never_answered_by_a_run_that_began_before_it():
    lock, clock = threading.Lock(), [0]

    def tick() -> int:
        with lock:
            clock[0] += 1
            return clock[0]

    def work() -> int:
        began = tick()
        time.sleep(0.001)
        return began

    shared = Coalesced(work)

    def call(_: int) -> bool:
        called = tick()
        return shared() > called

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(call, range(300)))


def test_a_failure_is_everybodys_and_the_next_call_runs_again():
    entered, leave, runs = threading.Event(), threading.Event(), []

    def work() -> str:
        runs.append(0)
        entered.set()
        leave.wait()
        if len(runs) == 2:
            raise OSError("away")
        return "done"

    shared = Coalesced(work)
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(shared)
        entered.wait()
        others = [pool.submit(shared) for _ in range(7)]
        time.sleep(0.2)
        leave.set()
        assert first.result() == "done"
        for other in others:
            with pytest.raises(OSError, match="away"):
                other.result()
    assert shared() == "done" and len(runs) == 3
