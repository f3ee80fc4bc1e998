"""The ledger: what was added is found by every reader, whatever is killed; a key is one thread's at a time."""

import gc
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import duckdb
import ledger_samples
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from ledger_samples import COST, key, turn

from m3po_dagster.method.alignment import ledger_index
from m3po_dagster.method.alignment.ledger import Ledger
from m3po_dagster.method.alignment.ledger_errors import LedgerError
from m3po_dagster.method.alignment.ledger_index import LedgerIndex
from m3po_dagster.method.alignment.turn import Spend, Turn, short
from m3po_dagster.storage.store import ArtifactStore

KEYS, LEDGERS, FILES = 3, 3, 4


class Interleaved(RuleBasedStateMachine):
    """Several ledgers at one folder, added to, read and killed in any order, against a plain list."""

    def __init__(self) -> None:
        super().__init__()
        self._place = tempfile.TemporaryDirectory()
        self.folder = Path(self._place.name) / "ledger"
        self.ledgers = [Ledger(self.folder) for _ in range(LEDGERS)]
        self.added: list[Turn] = []
        self.torn = 0

    def teardown(self) -> None:
        self._place.cleanup()

    @rule(
        who=st.integers(0, LEDGERS - 1),
        number=st.integers(0, KEYS - 1),
        reply=st.text(max_size=300),
        model=st.sampled_from(["org/vlm", "vlm:7b", "../up"]),
        cost=st.none() | st.floats(0, 1e6),
    )
    def add(self, who, number, reply, model, cost):
        place = sum(one.key == key(number) for one in self.added)
        made = turn(number, place, reply=reply, model=model, cost=cost)
        self.ledgers[who].add(made)
        self.added.append(made)

    @rule(who=st.integers(0, LEDGERS - 1), number=st.integers(0, KEYS - 1))
    def read(self, who, number):
        assert list(self.ledgers[who].turns(key(number))) == [one for one in self.added if one.key == key(number)]

    @rule(
        who=st.integers(0, LEDGERS - 1),
        number=st.integers(0, KEYS - 1),
        reply=st.text(max_size=50),
        cut=st.floats(0, 1, exclude_max=True),
    )
    def kill(self, who, number, reply, cut):
        """As a process killed while it writes a line: a part of the line ends its file, and nobody adds to that."""
        before = set(self.folder.rglob("*.jsonl"))
        self.add(who, number, reply, "org/vlm", None)
        line = self.added[-1].to_line()
        part = line[: int(cut * len(line))]
        if new := set(self.folder.rglob("*.jsonl")) - before:
            with open(new.pop(), "ab") as file:
                file.write(part)
            self.torn += bool(part)
        self.ledgers[who] = Ledger(self.folder)

    @rule(who=st.integers(0, LEDGERS - 1))
    def start_anew(self, who):
        self.ledgers[who] = Ledger(self.folder)

    @invariant()
    def every_reader_counts_all(self):
        wanted = sum((one.spend for one in self.added), Spend())
        for ledger in self.ledgers:
            found = ledger.spent()
            assert found.requests == len(self.added) and found.cost == pytest.approx(wanted.cost)
            assert ledger.unreadable() == self.torn


TestInterleaved = Interleaved.TestCase
TestInterleaved.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)


def test_a_line_cut_at_any_byte_costs_nothing_else(tmp_path):
    line = turn(1, reply='{"a": "\u00e9\\n"}').to_line()
    (tmp_path / "m").mkdir()
    for cut in range(len(line)):
        (tmp_path / "m" / f"{cut:04d}.jsonl").write_bytes(turn(2, cut).to_line() + line[:cut])
    ledger = Ledger(tmp_path)
    assert ledger.turns(key(1)) == ()
    assert [one.turn for one in ledger.turns(key(2))] == list(range(len(line)))
    assert ledger.unreadable() == len(line) - 1


def test_a_damaged_line_is_passed_over_and_counted(tmp_path):
    ledger = Ledger(tmp_path)
    for number in range(3):
        ledger.add(turn(number))
    (file,) = tmp_path.rglob("*.jsonl")
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(lines[0] + lines[1].replace(b"grades", b"gra\x00es") + lines[2])
    found = Ledger(tmp_path)
    assert [len(found.turns(key(number))) for number in range(3)] == [1, 0, 1]
    assert found.unreadable() == 1


def test_no_process_is_lost_to_a_kill_and_none_meets_another(tmp_path):
    """Four real processes answer the same questions and are killed at random moments, again and again."""
    folder, questions, chance = tmp_path / "ledger", 800, random.Random(5)
    said: list[list[str]] = []
    kills = 0

    def start(seed: int) -> tuple[subprocess.Popen, Path]:
        out = tmp_path / f"said-{seed}"
        command = [sys.executable, ledger_samples.__file__, "answer", str(folder), str(questions), str(seed)]
        return subprocess.Popen(command, stdout=open(out, "wb")), out

    seeds = iter(range(1000))
    running = [start(next(seeds)) for _ in range(4)]
    while running:
        # Only at work is there something to lose: the first words are waited for.
        process, out = chance.choice(running)
        while not out.stat().st_size and process.poll() is None:
            time.sleep(0.005)
        time.sleep(chance.random() * 0.03)
        if kills < 12 and process.poll() is None:
            process.kill()
            kills += process.wait() == -signal.SIGKILL
            running.append(start(next(seeds)))
        if process.poll() is not None:
            running.remove((process, out))
            said.append([line.split() for line in out.read_text().splitlines()])
    words = Counter(word for lines in said for word, _ in lines)
    assert words["together"] == 0 and kills >= 5 and words["done"] >= 4
    ledger = Ledger(folder)
    found = Counter({number: len(ledger.turns(key(number))) for number in range(questions)})
    # None is lost, and none answered twice.
    assert set(found.values()) == {1}
    # Asked again was only what a killed process had in flight.
    assert questions <= words["asked"] <= questions + kills
    assert len({turns[0].run for turns in (ledger.turns(key(number)) for number in range(questions))}) > 2


def test_threads_ask_each_question_once(tmp_path):
    ledgers = [Ledger(tmp_path), Ledger(tmp_path)]
    asked: Counter[int] = Counter()

    def ask(call: int) -> None:
        number = call % 10
        with ledgers[call % 3 % 2].asking(key(number)) as known:
            if not known:
                asked[number] += 1
                time.sleep(0.002)
                ledgers[call % 2].add(turn(number))

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(ask, range(300)))
    assert asked == Counter(range(10))


def test_two_processes_whose_threads_wait_for_each_other_get_on(tmp_path):
    """The kernel takes this for a deadlock and refuses: no thread here waits for what itself holds."""
    ledger, got = Ledger(tmp_path), []

    def want() -> None:
        with ledger.asking(key(2)):
            got.append(2)

    command = [sys.executable, ledger_samples.__file__, "cross", str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        with ledger.asking(key(1)):
            assert process.stdout.readline() == b"holds 2\n"
            other = threading.Thread(target=want)
            other.start()
            time.sleep(0.1)
            assert not got
            process.stdin.write(b"\n")
            process.stdin.flush()
            other.join()
            assert got == [2] and process.poll() is None
        assert process.stdout.readline() == b"got 1\n"
    assert process.returncode == 0


def test_a_thread_that_asks_for_what_it_holds_is_told(tmp_path):
    ledger = Ledger(tmp_path)
    with ledger.asking(key(1)), ledger.asking(key(2)), pytest.raises(RuntimeError, match="already"):
        ledger.asking(key(1)).__enter__()
    with ledger.asking(key(1)) as known:
        assert known == ()


def test_a_question_whose_asker_failed_is_free(tmp_path):
    ledger = Ledger(tmp_path)
    with pytest.raises(ZeroDivisionError), ledger.asking(key(1)):
        _ = 1 / 0
    with Ledger(tmp_path).asking(key(1)) as known:
        assert known == ()


def test_a_forked_child_holds_nothing_and_writes_a_file_of_its_own(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.add(turn(1))
    with ledger.asking(key(1)), ledger._lock:
        child = os.fork()
        if not child:
            # The parent's lock, held at the fork, would be waited for here for ever.
            signal.alarm(20)
            ledger.add(turn(2))
            os._exit(len(ledger.turns(key(1))))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    assert len(ledger.turns(key(2))) == 1 and len(list(tmp_path.rglob("*.jsonl"))) == 2


def test_a_child_does_not_have_its_parents_question(tmp_path):
    ledger = Ledger(tmp_path)
    read, write = os.pipe()
    with ledger.asking(key(1)):
        child = os.fork()
        if not child:
            signal.alarm(20)
            with ledger.asking(key(1)) as known:
                os.write(write, b"!")
                os._exit(len(known))
        time.sleep(0.1)
        os.set_blocking(read, False)
        with pytest.raises(BlockingIOError):
            os.read(read, 1)
        ledger.add(turn(1))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    assert os.read(read, 1) == b"!"


@pytest.mark.parametrize(("mirrored", "opens"), [(True, 0), (False, FILES)])
def test_streams_that_lie_quiet_are_only_looked_at(tmp_path, monkeypatch, mirrored, opens):
    """A copy's writer is elsewhere, so its lock tells nothing: nothing is opened to ask for it."""
    for number in range(FILES):
        file = tmp_path / "org-vlm" / f"{number}.jsonl"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(turn(number).to_line())
    index, opened = LedgerIndex(tmp_path, mirrored), []
    index.refresh()
    for file in tmp_path.rglob("*.jsonl"):
        os.utime(file, (1, 1))

    def counted(path: Path, mode: str):
        opened.append(path)
        return open(path, mode)

    monkeypatch.setattr(ledger_index, "open", counted, raising=False)
    for _ in range(5):
        index.refresh()
    assert len(opened) == opens, "files of this machine are asked once whether their writer is gone"
    with (tmp_path / "org-vlm" / "0.jsonl").open("ab") as grown:
        grown.write(turn(FILES).to_line())
    index.refresh()
    assert len(list(index.lines(short(key(FILES))))) == mirrored


def test_a_full_disk_says_so_and_leaves_whole_lines(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.add(turn(1))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(LedgerError, match=r"org-vlm.*free some space"):
            ledger.add(turn(2, reply="x" * 10_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    (file,) = tmp_path.rglob("*.jsonl")
    assert file.read_bytes() == turn(1).to_line()
    ledger.add(turn(3))
    assert [len(Ledger(tmp_path).turns(key(number))) for number in (1, 2, 3)] == [1, 0, 1]
    assert ledger.unreadable() == 0


def test_a_folder_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "ledger").write_text("a file")
    ledger = Ledger(tmp_path / "ledger")
    with pytest.raises(LedgerError, match=r"ledger.*another store"):
        ledger.add(turn(1))
    with pytest.raises(LedgerError, match=r"hold a key in .*ledger"), ledger.asking(key(1)):
        pass


def test_a_folder_removed_under_a_process_is_begun_anew(tmp_path):
    ledger, other = Ledger(tmp_path / "ledger"), Ledger(tmp_path / "ledger")
    with ledger.asking(key(1)):
        ledger.add(turn(1))
    assert len(other.turns(key(1))) == 1
    for path in sorted((tmp_path / "ledger").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    with ledger.asking(key(1)) as known:
        assert known == ()
        ledger.add(turn(1))
    with ledger.asking(key(2)):
        assert (tmp_path / "ledger" / ".claims").exists()
    assert len(Ledger(tmp_path / "ledger").turns(key(1))) == 1


def age(folder: Path) -> None:
    for file in folder.rglob("*.jsonl"):
        os.utime(file, (1, 1))


def test_a_quiet_writers_file_is_still_read_and_a_gone_ones_is_not_looked_at(tmp_path, monkeypatch):
    alive = Ledger(tmp_path)
    alive.add(turn(0))
    for number in range(1, 50):
        Ledger(tmp_path).add(turn(number))
    gc.collect()
    age(tmp_path)
    reader = Ledger(tmp_path)
    assert reader.spent().requests == 50
    looked: list[str] = []
    real = os.stat
    monkeypatch.setattr(os, "stat", lambda path, **how: looked.append(str(path)) or real(path, **how))
    assert reader.spent().requests == 50
    assert sum(path.endswith(".jsonl") for path in looked) == 1
    alive.add(turn(0, 1))
    age(tmp_path)
    assert [one.turn for one in reader.turns(key(0))] == [0, 1]
    assert reader.spent().requests == 51


def test_a_file_made_within_the_clocks_grain_of_a_look_is_seen(tmp_path):
    Ledger(tmp_path).add(turn(1))
    reader = Ledger(tmp_path)
    assert reader.spent().requests == 1
    stamp = os.stat(tmp_path / "org-vlm").st_mtime_ns
    Ledger(tmp_path).add(turn(2))
    os.utime(tmp_path / "org-vlm", ns=(stamp, stamp))
    assert reader.spent().requests == 2


def test_totals_by_study_run_and_model(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.add(turn(1, at="2026-01-02T00:00:00+00:00"))
    ledger.add(turn(1, 1, purpose="repair", at="2026-01-01T00:00:00+00:00"))
    ledger.add(turn(2, run="r2", prompt_tokens=None, cached_tokens=None, completion_tokens=None, cost=None))
    ledger.add(turn(3, study="other", model="else"))
    one = Spend(1, 100, 40, 10, COST)
    assert ledger.spent() == one + one + one + Spend(1)
    assert ledger.spent(study="scenes") == one + one + Spend(1) and ledger.spent(run="r1", study="other") == one
    assert ledger.spent(run="r3") == Spend()
    assert ledger.measured("org/vlm") == one + one and ledger.measured("unknown") == Spend()
    found = ledger.totals()["scenes", "r1", "org/vlm"]
    assert (found.requests, found.repairs, found.first[:10], found.last[:10]) == (2, 1, "2026-01-01", "2026-01-02")


def test_duckdb_reads_it_past_a_torn_line(tmp_path):
    ledger = Ledger(tmp_path)
    awkward = 'line\nbreak "quote" \u2028 \x00 \U0001f600'
    for number, reply in enumerate(["", awkward, "x" * 100_000]):
        ledger.add(turn(number, reply=reply))
    (file,) = tmp_path.rglob("*.jsonl")
    torn = file.with_name("torn.jsonl")
    torn.write_bytes(turn(3).to_line() + turn(4).to_line()[:100])
    rows = duckdb.sql(
        f"SELECT prompt_id, length(reply), cost FROM read_json('{tmp_path}/*/*.jsonl', format='newline_delimited', "
        "ignore_errors=true) WHERE key IS NOT NULL ORDER BY 1"
    ).fetchall()
    lengths = [0, len(awkward), 100_000, len(turn(3).reply)]
    assert rows == [(f"p{number}", length, COST) for number, length in enumerate(lengths)]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"key": "ABC"}, "sha256"),
        ({"turn": -1}, "not negative"),
        ({"cost": float("nan")}, "not negative"),
        ({"prompt_tokens": -1}, "not negative"),
        ({"reply": "\ud800"}, "reply of a turn is no Unicode"),
    ],
)
def test_what_could_not_be_given_back_is_refused(changed, said):
    with pytest.raises(ValueError, match=said):
        turn(1, **changed)


def test_the_store_takes_the_ledger_for_no_artifact(tmp_path):
    Ledger(tmp_path / "ledger").add(turn(1))
    store = ArtifactStore(tmp_path)
    assert list(store.list()) == [] and list(store.drafts()) == []
    assert store.gc(set(), dry_run=False, older_than=0) == []
    assert len(Ledger(tmp_path / "ledger").turns(key(1))) == 1
