"""Claims and reservations among machines: one at a time, and what a dead process held goes to another."""

import json
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import machines
import pytest
from ledger_samples import COST, key, turn
from machines import LEASE_SECONDS, die, killed_at

from m3po_dagster.method.alignment.budget import BudgetSettings, BudgetSpent, Purse
from m3po_dagster.method.alignment.turn import Spend
from m3po_dagster.storage.errors import StoreError
from m3po_dagster.storage.s3 import Bucket

pytestmark = pytest.mark.slow


@cache
def bucket(url: str) -> Bucket:
    """A look from outside; a new client each time takes its time."""
    return Bucket(url)


def hidden(url: str, folder: str) -> list[str]:
    return [found.key for found in bucket(url).list(f"{folder}/")]


def purse(ledger, limits: dict) -> Purse:
    return Purse(ledger, BudgetSettings.model_validate(limits), "scenes", "r1")


def test_a_question_that_another_machine_asks_is_waited_for(machine, url, tmp_path):
    one, other, got = machine(url, tmp_path / "one"), machine(url, tmp_path / "other"), []

    def want() -> None:
        with other.asking(key(1)) as known:
            got.append(known)

    with one.asking(key(1)) as known:
        assert known == ()
        waiting = threading.Thread(target=want)
        waiting.start()
        # Longer than a dead holder's claims last: a living one's stay.
        waiting.join(timeout=2 * LEASE_SECONDS)
        assert not got
        one.add(turn(1))
    waiting.join()
    assert got == [(turn(1),)] and hidden(url, ".claims") == []


def test_a_killed_process_holds_nothing_for_long_and_one_of_many_gets_it(machine, url, tmp_path):
    others = [machine(url, tmp_path / str(number)) for number in range(4)]
    asked, together = Counter(), threading.Lock()

    def ask(ledger) -> None:
        with ledger.asking(key(1)) as known:
            assert together.acquire(blocking=False)
            if not known:
                asked["asked"] += 1
                time.sleep(0.2)
                ledger.add(turn(1))
            together.release()

    with killed_at(url, tmp_path / "killed", 1), ThreadPoolExecutor(4) as pool:
        assert hidden(url, ".claims") == [f".claims/{key(1)}"]
        list(pool.map(ask, others))
    assert asked == {"asked": 1}


def test_a_process_that_was_away_for_long_comes_back_as_another(machine, url, tmp_path):
    """Suspended, it gave no sign of life: what it held may be another's, and it frees nothing of theirs."""
    away, other = machine(url, tmp_path / "away"), machine(url, tmp_path / "other")
    with away.asking(key(1)):
        first = away._holder.id()
        die(away)
        with other.asking(key(1)):
            theirs = bucket(url).get(f".claims/{key(1)}")[0]
            with away.asking(key(2)):
                assert away._holder.id() != first
            away._claims._give_back(f".claims/{key(1)}", '"an ETag of long ago"')
            assert bucket(url).get(f".claims/{key(1)}")[0] == theirs


def test_a_claim_that_could_not_be_given_back_is_no_bar_to_its_own_process(machine, url, tmp_path, monkeypatch):
    ledger, other = machine(url, tmp_path / "copy"), machine(url, tmp_path / "other")

    def away(self, name: str, etag: str) -> bool:
        raise StoreError(f"can't remove {name}")

    with monkeypatch.context() as patched:
        patched.setattr(Bucket, "remove_if_match", away)
        with ledger.asking(key(1)):
            ledger.add(turn(1))
    assert hidden(url, ".claims") == [f".claims/{key(1)}"]
    with ledger.asking(key(1)) as known:
        assert known == (turn(1),)
        # The one left behind was freed with the next; it was not the one held now.
        with ledger.asking(key(2)):
            pass
        assert hidden(url, ".claims") == [f".claims/{key(1)}"]
    assert hidden(url, ".claims") == []
    with other.asking(key(1)) as known:
        assert known == (turn(1),)


def test_a_thread_that_asks_for_what_it_holds_is_told_and_a_failure_frees(machine, url, tmp_path):
    ledger = machine(url, tmp_path / "copy")
    with ledger.asking(key(1)), ledger.asking(key(2)), pytest.raises(RuntimeError, match="already"):
        ledger.asking(key(1)).__enter__()
    with pytest.raises(ZeroDivisionError), ledger.asking(key(1)):
        _ = 1 / 0
    assert hidden(url, ".claims") == []


def test_a_process_that_ends_leaves_no_trace(machine, url, tmp_path):
    ledger = machine(url, tmp_path / "copy")
    with ledger.asking(key(1)), purse(ledger, {"study": {"requests": 5}}).reserve(Spend(1)):
        assert [len(hidden(url, folder)) for folder in (".claims", ".holders", ".reserved")] == [1, 1, 1]
    ledger.close()
    assert [len(hidden(url, folder)) for folder in (".claims", ".holders", ".reserved")] == [0, 0, 0]


def started(task: str, *values: object, said: Path) -> subprocess.Popen:
    with open(said, "wb") as file:
        return subprocess.Popen([sys.executable, machines.__file__, task, *map(str, values)], stdout=file)


def test_no_reply_is_lost_to_kills_and_no_question_is_asked_by_two(machine, url, tmp_path):
    """Two machines of two processes each answer the same questions; five times one is killed at a random moment."""
    questions, kills = 60, 0
    watches = tmp_path / "watches"
    watches.mkdir()
    seeds = iter(range(100))

    def start(copy: str):
        seed = next(seeds)
        said = tmp_path / f"said-{seed}"
        return started("answer", url, tmp_path / copy, watches, questions, seed, said=said), copy, said

    running, ended = [start(copy) for copy in ("one", "one", "other", "other")], []
    while running:
        for process, copy, said in [*running]:
            at_work = said.read_bytes().count(b"asked") >= 2 + kills  # more and more, so that the last come to an end
            if process.poll() is None and at_work and kills < 5:
                process.kill()
                process.wait()
                kills += 1
                running.append(start(copy))
            if process.poll() is not None:
                running.remove((process, copy, said))
                ended += [line.split() for line in said.read_text().splitlines()]
        time.sleep(0.02)
    words = Counter(word for word, _ in ended)
    assert kills == 5 and words["together"] == 0 and words["done"] == 4
    ledger = machine(url, tmp_path / "reader")
    turns = [ledger.turns(key(number)) for number in range(questions)]
    # None is lost, and asked again was only what a killed process had in flight on its four threads. Both replies are
    # kept where its own, in the spill file, was sent after another machine had asked.
    kept = {number for word, number in ended if word == "kept"}
    assert all(turns) and len(kept) >= questions - 4 * kills
    assert questions <= sum(map(len, turns)) == ledger.spent().requests <= words["asked"] <= questions + 4 * kills
    assert len({found[0].run for found in turns}) > 2 and ledger.unreadable() == 0


def test_machines_spend_all_and_no_more_though_one_was_killed(machine, url, tmp_path):
    limits = json.dumps({"study": {"requests": 12}})
    with killed_at(url, tmp_path / "killed", 0, limits):
        assert len(hidden(url, ".reserved")) == 1
        processes = [
            started("spend", url, tmp_path / str(n), limits, 3, 1000 * n, said=tmp_path / f"said-{n}") for n in range(2)
        ]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    assert all("stopped 3" in (tmp_path / f"said-{n}").read_text() for n in range(2))
    ledger = machine(url, tmp_path / "reader")
    assert ledger.spent().requests == 12 and hidden(url, ".reserved") == []


def test_what_another_machine_has_in_flight_counts(machine, url, tmp_path):
    one, other = machine(url, tmp_path / "one"), machine(url, tmp_path / "other")
    limits, got = {"study": {"cost": 1.0}}, []

    def next_one() -> None:
        with purse(other, limits).reserve(Spend(1, cost=0.9)):
            got.append(one.spent().cost)

    waiting = threading.Thread(target=next_one)
    with purse(one, limits).reserve(Spend(1, cost=0.9)):
        assert purse(other, limits).room([Spend(1, cost=0.05)] * 5) == 2
        waiting.start()
        waiting.join(timeout=3)
        assert not got
        one.add(turn(1, cost=0.01))
    waiting.join()
    assert got == [0.01]
    one.add(turn(2, cost=0.99))
    with pytest.raises(BudgetSpent, match=r"1.0000 of 1.0000 used, 0.0000 in flight"):
        purse(other, limits).reserve(Spend(1, cost=COST)).__enter__()
    assert hidden(url, ".reserved") == []
