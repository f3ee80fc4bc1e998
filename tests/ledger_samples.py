"""Turns for the ledger's and the budget's tests; run as a script it is one of several processes at one ledger."""

import fcntl
import hashlib
import json
import os
import random
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from m3po_dagster.method.alignment.budget import BudgetSettings, BudgetSpent, Purse
from m3po_dagster.method.alignment.ledger import Ledger
from m3po_dagster.method.alignment.turn import Spend, Turn

COST = 0.25


def key(number: int) -> str:
    """The key of the question with this number."""
    return hashlib.sha256(str(number).encode()).hexdigest()


def turn(number: int, place: int = 0, **changed) -> Turn:
    """Reply `place` to the question with this number."""
    values = {
        "key": key(number),
        "turn": place,
        "purpose": "first",
        "scorer": "llm_judge",
        "model": "org/vlm",
        "prompt_id": f"p{number}",
        "image_sha256": key(-number),
        "study": "scenes",
        "run": "r1",
        "at": "2026-01-01T00:00:00.000+00:00",
        "prompt_tokens": 100,
        "cached_tokens": 40,
        "completion_tokens": 10,
        "cost": COST,
        "reply": json.dumps({"choices": [{"message": {"content": f"grades of {number}"}}]}),
    }
    return Turn(**{**values, **changed})


def say(*words: object) -> None:
    """Print a line in one write: several threads and processes share the output."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


@contextmanager
def watched(file: Path, number: int) -> Iterator[None]:
    """Say so where another process is at the same question too: by a lock of another kind than the ledger's."""
    with open(file, "ab") as watch:
        try:
            fcntl.flock(watch, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("together", number)
            print(os.getpid(), "meets another at", key(number), file=sys.stderr)
        yield


def answer(folder: Path, questions: int, seed: int) -> None:
    """Answer each question that has no reply yet, in an order of its own, and say what it does."""
    ledger = Ledger(folder)
    order = list(range(questions))
    random.Random(seed).shuffle(order)
    for number in order:
        with ledger.asking(key(number)) as known, watched(folder.parent / f"watch-{number}", number):
            if not known:
                say("asked", number)
                time.sleep(0.004)
                ledger.add(turn(number, run=str(os.getpid()), reply="x" * random.Random(number).randrange(20_000)))
                say("kept", number)
    say("done", 0)


def cross(folder: Path) -> None:
    """Hold question 2 until told by standard input, and want question 1 meanwhile."""
    ledger = Ledger(folder)

    def want() -> None:
        with ledger.asking(key(1)):
            say("got", 1)

    other = threading.Thread(target=want)
    with ledger.asking(key(2)):
        other.start()
        say("holds", 2)
        sys.stdin.readline()
    other.join()


def spend(folder: Path, budget: str, threads: int, expected: float, seconds: float) -> None:
    """Ask ever new questions on several threads until the budget stops it; says how often it asked."""
    ledger = Ledger(folder)
    purse = Purse(ledger, BudgetSettings.model_validate_json(budget), "scenes", "r1")
    say("starts", 0)
    # Far more than any budget here allows: a limit that does not hold is found, not waited for.
    asked = iter(range(os.getpid() * 1000, os.getpid() * 1000 + 500))

    def work(_: int) -> int:
        for number in asked:
            try:
                with purse.reserve(Spend(1, cost=expected)):
                    say("reserved", number)
                    time.sleep(seconds)
                    ledger.add(turn(number))
            except BudgetSpent:
                return 1
        return 0

    with ThreadPoolExecutor(threads) as pool:
        say("stopped", sum(pool.map(work, range(threads))))


if __name__ == "__main__":
    task, place, *values = sys.argv[1:]
    if task == "answer":
        answer(Path(place), int(values[0]), int(values[1]))
    elif task == "cross":
        cross(Path(place))
    else:
        spend(Path(place), values[0], int(values[1]), float(values[2]), float(values[3]))
