"""Machines at one ledger in a bucket, added to, read, killed, merged and wiped in any order, against a plain list."""

import shutil
import tempfile
from pathlib import Path

import machines
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from ledger_samples import key, turn

from m3po_dagster.bucket_ledger import writer as bucket_writer
from m3po_dagster.method.alignment.turn import Spend
from tests.s3_store import BUCKET

pytestmark = pytest.mark.slow

MACHINES, KEYS = 2, 3
WHO, WHICH = st.integers(0, MACHINES - 1), st.integers(0, KEYS - 1)


class Interleaved(RuleBasedStateMachine):
    """Every machine has one process at a time."""

    begun = 0

    def __init__(self) -> None:
        super().__init__()
        Interleaved.begun += 1
        self._place = tempfile.TemporaryDirectory()
        self.url = f"s3://{BUCKET}/interleaved-{Interleaved.begun}/ledger"
        self.copies = [Path(self._place.name) / str(who) for who in range(MACHINES)]
        self.ledgers = [machines.machine(self.url, copy) for copy in self.copies]
        self.added = []

    def teardown(self) -> None:
        for ledger in self.ledgers:
            ledger.close()
        self._place.cleanup()

    def next_of(self, number: int, **changed):
        return turn(number, sum(one.key == key(number) for one in self.added), **changed)

    @rule(
        who=WHO,
        number=WHICH,
        reply=st.text(max_size=100),
        model=st.sampled_from(["org/vlm", "../up"]),
        cost=st.none() | st.floats(0, 1e6),
    )
    def add(self, who, number, reply, model, cost):
        made = self.next_of(number, reply=reply, model=model, cost=cost)
        self.ledgers[who].add(made)
        self.added.append(made)

    @rule(who=WHO, number=WHICH)
    def ask(self, who, number):
        with self.ledgers[who].asking(key(number)) as known:
            assert list(known) == [one for one in self.added if one.key == key(number)]

    @rule(who=WHO, number=WHICH, cut=st.floats(0, 1, exclude_max=True))
    def kill(self, who, number, cut):
        """After a line lay in its spill file and before the bucket had it, and in the midst of the next."""
        machines.die(self.ledgers[who])
        made = self.next_of(number)
        line = turn(number, 99).to_line()
        spill = self.copies[who] / ".spill" / "org-vlm" / f"20260101T000000Z-1-{len(self.added):04d}.jsonl"
        spill.parent.mkdir(parents=True, exist_ok=True)
        spill.write_bytes(made.to_line() + line[: int(cut * len(line))])
        self.added.append(made)
        self.ledgers[who] = machines.machine(self.url, self.copies[who])
        self.ledgers[who].spent()

    @rule(who=WHO)
    def end(self, who):
        self.ledgers[who].close()
        self.ledgers[who] = machines.machine(self.url, self.copies[who])

    @rule(who=WHO)
    def compact(self, who):
        self.ledgers[who].compact()

    @rule(who=WHO)
    def lose_the_copy(self, who):
        self.ledgers[who].close()
        shutil.rmtree(self.copies[who], ignore_errors=True)

    @invariant()
    def every_machine_counts_all(self):
        wanted = sum((one.spend for one in self.added), Spend())
        for ledger in self.ledgers:
            found = ledger.spent()
            assert found.requests == len(self.added) and found.cost == pytest.approx(wanted.cost)
            assert ledger.unreadable() == 0


def test_whatever_happens_to_machines_each_finds_every_reply_once(server, monkeypatch):
    monkeypatch.setattr(bucket_writer, "FAN", 2)
    monkeypatch.setattr(bucket_writer, "STREAM_BYTES", 3000)
    run_state_machine_as_test(Interleaved, settings=settings(max_examples=6, stateful_step_count=15, deadline=None))
