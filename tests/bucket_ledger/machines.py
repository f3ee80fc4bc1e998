"""Several machines at one ledger in a bucket, as the tests need them; run as a script it is one of their processes."""

import atexit
import os
import random
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from ledger_samples import key, say, turn, watched
from s3_requests import counted

from m3po_dagster.bucket_ledger.ledger import BucketLedger
from m3po_dagster.method.alignment.budget import BudgetSettings, BudgetSpent, Purse
from m3po_dagster.method.alignment.turn import Spend

LEASE_SECONDS = 8.0
"""So short that a test sees a dead process's claims go to others; its sign of life is renewed every other second."""

UNHURRIED_SECONDS = 25.0
"""For processes that are to be taken for dead only when they are: on a busy machine a sign of life can be late."""


def machine(url: str, copy: Path, patience: float = 60.0) -> BucketLedger:
    """A process of a machine that keeps its copy in `copy`."""
    return BucketLedger(url, copy, patience, LEASE_SECONDS)


def requests_of(ledger: BucketLedger) -> AbstractContextManager[Counter]:
    """Counts what is asked of the service, by the operation, while the block runs."""
    return counted(ledger._bucket)


def die(ledger: BucketLedger) -> None:
    """Give no sign of life any more and hold no file, as a killed process; what it holds in the bucket stays."""
    atexit.unregister(ledger.close)
    lease = ledger._holder._lease
    if lease is not None:
        lease._ended.set()
        lease._thread.join()
    for writer in ledger._writers.values():
        writer._spill._close()


def answer(url: str, copy: Path, watches: Path, questions: int, seed: int) -> None:
    """Answer each question that has no reply yet, on several threads, and say what it does."""
    ledger = BucketLedger(url, copy, 60.0, UNHURRIED_SECONDS)
    order = list(range(questions))
    random.Random(seed).shuffle(order)

    def one(number: int) -> None:
        with ledger.asking(key(number)) as known, watched(watches / str(number), number):
            if not known:
                say("asked", number)
                time.sleep(0.05)
                ledger.add(turn(number, run=str(os.getpid())))
                say("kept", number)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(one, order))
    say("done", 0)


def spend(url: str, copy: Path, limit: str, threads: int, first: int) -> None:
    """Ask ever new questions on several threads until the budget stops it; says how often it stopped."""
    ledger = machine(url, copy)
    purse = Purse(ledger, BudgetSettings.model_validate_json(limit), "scenes", "r1")
    numbers = iter(range(first, first + 500))

    def work(_: int) -> int:
        for number in numbers:
            try:
                with purse.reserve(Spend(1)):
                    time.sleep(0.02)
                    ledger.add(turn(number))
            except BudgetSpent:
                return 1
        return 0

    with ThreadPoolExecutor(threads) as pool:
        say("stopped", sum(pool.map(work, range(threads))))


def hold(url: str, copy: Path, number: int, limit: str) -> None:
    """Hold a question and twelve requests of the budget until killed."""
    ledger = machine(url, copy)
    purse = Purse(ledger, BudgetSettings.model_validate_json(limit), "scenes", "r1")
    with ledger.asking(key(number)), purse.reserve(Spend(12)):
        say("holds", number)
        time.sleep(600)


@contextmanager
def killed_at(url: str, copy: Path, number: int, limit: str = '{"study": {"requests": 100}}'):
    """A process that holds a question, and is killed when the block begins."""
    command = [sys.executable, __file__, "hold", url, str(copy), str(number), limit]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout.readline() == b"holds %d\n" % number
        finally:
            process.kill()
        yield


if __name__ == "__main__":
    task, url, copy, *values = sys.argv[1:]
    if task == "hold":
        hold(url, Path(copy), int(values[0]), values[1])
    elif task == "answer":
        answer(url, Path(copy), Path(values[0]), int(values[1]), int(values[2]))
    else:
        spend(url, Path(copy), values[0], int(values[1]), int(values[2]))
