"""What the tests of the Batch API ask, and a caller that can be stopped before any step, then start again.

python batch_world.py TASK BASE_URL PLACE       stops forked callers, prints what came of each as JSON
"""

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from unittest.mock import patch

from m3po_dagster.method.alignment import batch_asking
from m3po_dagster.method.alignment.batch_api import Asker, BatchFailure, BatchQueue, BatchSettings
from m3po_dagster.method.alignment.batch_record import HeldRecord
from m3po_dagster.method.endpoint import Endpoint, EndpointSettings

MODEL = "loopback-batch"
ASKER = Asker(study="study", run="run", scorer="judge")
# The requests whose keys end in 1 are long, so that one file ends by its bytes and another by its number of requests.
SETTINGS = {"poll_seconds": 0.002, "max_requests": 4, "max_bytes": 900}
N_KEYS = 6


def queue_of(base_url: str, folder: Path, progress: Callable[[int, int], None] | None = None, **changed) -> BatchQueue:
    """A queue on an endpoint; settings of the endpoint and of the batches by name."""
    endpoint = {"base_url": base_url, "model": MODEL, "max_retries": 3, "timeout": 10.0}
    endpoint |= {name: changed.pop(name) for name in list(changed) if name in EndpointSettings.model_fields}
    settings = BatchSettings(**({"poll_seconds": 0.002} | changed))
    return BatchQueue(Endpoint(EndpointSettings(**endpoint), "scorer 'judge'"), folder, settings, progress)


def body_of(key: str, length: int = 0) -> dict:
    """The request of a key."""
    return {"model": MODEL, "messages": [{"role": "user", "content": f"say {key}" + "." * length}]}


def reply_to(key: str, length: int = 0) -> str:
    """What the service answers to it."""
    return f"reply to say {key}" + "." * length


def text_of(outcome: bytes | BatchFailure) -> str:
    """The words of a reply, or why there is none."""
    if isinstance(outcome, BatchFailure):
        return outcome.reason
    return json.loads(outcome)["choices"][0]["message"]["content"]


class Caller:
    """Asks as a judge does: what it has a reply for, in its ledger, it asks for no more."""

    def __init__(self, base_url: str, place: Path, keys: list[str], **settings) -> None:
        self.base_url, self.place, self.keys, self.settings = base_url, place, keys, SETTINGS | settings

    @property
    def ledger(self) -> dict[str, str]:
        """Key -> reply, as far as it got."""
        path = self.place / "ledger"
        lines = path.read_text().splitlines() if path.exists() else []
        found = [json.loads(line) for line in lines]
        assert len({key for key, _ in found}) == len(found), found
        return dict(found)

    def keep(self, key: str, reply: str) -> None:
        """Puts a reply into the ledger."""
        with open(self.place / "ledger", "a") as ledger:
            ledger.write(json.dumps([key, reply]) + "\n")

    def run(self) -> None:
        """Asks for what is not in the ledger."""
        known = self.ledger
        bodies = {key: body_of(key, 400 if key.endswith("1") else 0) for key in self.keys if key not in known}
        for key, outcome in queue_of(self.base_url, self.place / "batches", **self.settings).ask(bodies, ASKER):
            self.keep(key, text_of(outcome))


STEPS: list[tuple[object, str]] = [
    (HeldRecord, "save"),
    (HeldRecord, "write_keys"),
    (HeldRecord, "remove"),
    (os, "replace"),
    (batch_asking, "write_requests"),
    *((Endpoint, name) for name in ("upload_once", "post_once", "get", "delete", "read_file")),
    (Caller, "keep"),
]


class Stopped(BaseException):
    """A caller that is stopped from inside."""


@contextmanager
def stopping_before(
    number: int, stop: Callable[[str], None], steps: list[tuple[object, str]] = STEPS
) -> Iterator[None]:
    """Calls `stop` with the name of the step before the step of this number, from 0."""
    numbers = count()

    def stoppable(owner: object, name: str) -> Callable:
        real = getattr(owner, name)

        def step(*args, **named):
            if next(numbers) == number:
                stop(name)
            return real(*args, **named)

        return step

    with ExitStack() as stack:
        for owner, name in steps:
            stack.enter_context(patch.object(owner, name, stoppable(owner, name)))
        yield


def in_child(work: Callable[[], object]) -> int:
    """Runs `work` in a forked process: its exit code, -signal where it was killed."""
    child = start_child(work)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def start_child(work: Callable[[], object]) -> int:
    """Starts `work` in a forked process: its process id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        work()
        code = 0
    finally:
        os._exit(code)


def killed_before(number: int, caller: Caller, steps: list[tuple[object, str]] = STEPS) -> tuple[int, str]:
    """Runs a caller that dies before a step: its exit code, and the step."""
    note = caller.place / "note"
    note.unlink(missing_ok=True)

    def die(name: str) -> None:
        note.write_text(name)
        os.kill(os.getpid(), signal.SIGKILL)

    def work() -> None:
        with stopping_before(number, die, steps):
            caller.run()

    return in_child(work), note.read_text() if note.exists() else ""


def kill_everywhere(base_url: str, place: Path, n_keys: int = N_KEYS, first: Callable = lambda caller: None) -> list:
    """A caller killed before each step in turn, then started again."""
    found = []
    for number in count():
        folder = place / str(number)
        folder.mkdir()
        caller = Caller(base_url, folder, [f"kill{number}-{index}" for index in range(n_keys)])
        first(caller)
        code, step = killed_before(number, caller)
        codes = [code, in_child(caller.run)]
        found.append({"keys": caller.keys, "codes": codes, "step": step, "ledger": caller.ledger})
        if code == 0:
            return found


def kill_again(base_url: str, place: Path) -> list[dict]:
    """As `kill_everywhere`, of a caller that was killed once already: before it knew of the file that it uploaded."""
    uploaded = [(HeldRecord, "save")]
    return kill_everywhere(base_url, place, 2, lambda caller: killed_before(1, caller, uploaded))


def race(base_url: str, place: Path) -> list[dict]:
    """Pairs of callers at once, half of their keys shared, of which one is killed at some step in every other pair."""
    found = []
    for number in range(8):
        callers = []
        for side in range(2):
            folder = place / f"{number}-{side}"
            folder.mkdir(parents=True)
            (place / f"{number}-batches").mkdir(exist_ok=True)
            (folder / "batches").symlink_to(place / f"{number}-batches")
            shared = range(side * N_KEYS // 2, side * N_KEYS // 2 + N_KEYS)
            callers.append(Caller(base_url, folder, [f"race{number}-{index}" for index in shared]))
        one, other = callers
        other_id = start_child(other.run)
        code = killed_before(2 * number - 1, one)[0] if number % 2 else in_child(one.run)
        other_code = os.waitstatus_to_exitcode(os.waitpid(other_id, 0)[1])
        last = in_child(one.run)
        found.append({"codes": [code, other_code, last], "ledgers": [one.ledger, other.ledger]})
    return found


if __name__ == "__main__":
    # The client's modules are loaded once, before the forks.
    queue_of(sys.argv[2], Path(sys.argv[3]))
    task = {"kill": kill_everywhere, "kill again": kill_again, "race": race}[sys.argv[1]]
    print(json.dumps(task(sys.argv[2], Path(sys.argv[3]))))
