"""A ledger in a bucket, against a real S3 service: what one machine was answered every machine finds, once."""

import os
import resource
import shutil
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import pytest
from ledger_samples import COST, key, turn
from machines import LEASE_SECONDS, die, killed_at, requests_of

from m3po_dagster.bucket_ledger import writer as bucket_writer
from m3po_dagster.method.alignment.ledger import Ledger
from m3po_dagster.method.alignment.ledger_errors import LedgerError
from m3po_dagster.method.alignment.turn import Spend
from m3po_dagster.storage.s3 import Bucket

pytestmark = pytest.mark.slow


@cache
def bucket(url: str) -> Bucket:
    """A look from outside; a new client each time takes its time."""
    return Bucket(url)


def objects(url: str, hidden: bool = False) -> list[str]:
    return [found.key for found in bucket(url).list() if found.key.startswith(".") == hidden]


def content(url: str) -> bytes:
    return b"".join(bucket(url).get(name)[0] for name in objects(url))


def test_a_reply_is_in_the_bucket_when_add_returns_and_every_machine_finds_it(machine, url, tmp_path):
    one, other = machine(url, tmp_path / "one"), machine(url, tmp_path / "other")
    assert other.turns(key(1)) == () and other.spent() == Spend()
    one.add(turn(1))
    assert content(url) == turn(1).to_line()
    one.add(turn(1, 1, purpose="repair"))
    with other.asking(key(1)) as known:
        assert known == (turn(1), turn(1, 1, purpose="repair"))
    assert one.spent() == other.spent() == Spend(2, 200, 80, 20, 2 * COST)
    assert other.measured("org/vlm").requests == 2 and other.unreadable() == 0


def test_the_copy_is_a_ledger_in_a_folder(machine, url, tmp_path):
    one, other = machine(url, tmp_path / "one"), machine(url, tmp_path / "other")
    for number in range(40):
        one.add(turn(number))
    one.close()
    assert other.spent().requests == 40
    plain = Ledger(tmp_path / "other")
    assert plain.totals() == one.totals() and all(plain.turns(key(number)) for number in range(40))


def test_replies_of_many_threads_share_a_request(machine, url, tmp_path, monkeypatch):
    ledger = machine(url, tmp_path / "copy")
    ledger.add(turn(0))  # so that connections and files are made
    numbers, entered, leave = range(1, 101), threading.Event(), threading.Event()
    real = Bucket.put_if_absent

    def slow(self, name: str, body: bytes) -> str | None:
        if not entered.is_set():
            entered.set()
            leave.wait()
        return real(self, name, body)

    monkeypatch.setattr(Bucket, "put_if_absent", slow)
    with requests_of(ledger) as asked, ThreadPoolExecutor(100) as pool:
        first = pool.submit(ledger.add, turn(1))
        entered.wait()
        others = [pool.submit(ledger.add, turn(number)) for number in numbers[1:]]
        while len(ledger._writers["org-vlm"]._open[0].waiting) < 100:
            time.sleep(0.01)
        leave.set()
        for done in (first, *others):
            done.result()
    # One that was under way, and one for the 99 that came meanwhile.
    assert asked == {"PutObject": 2}
    assert machine(url, tmp_path / "other").spent().requests == 101


def test_what_a_question_asks_of_the_service(machine, url, tmp_path):
    """A claim, a look at what is new, the reply, the claim given back; merging adds a sixteenth."""
    ledger, other = machine(url, tmp_path / "copy"), machine(url, tmp_path / "other")
    with ledger.asking(key(-1)):
        ledger.add(turn(-1))
    with requests_of(ledger) as asked:
        for number in range(15):
            with ledger.asking(key(number)) as known:
                assert known == ()
                ledger.add(turn(number))
    assert asked == {"PutObject": 15 + 15 + 1, "ListObjectsV2": 15, "DeleteObject": 15, "DeleteObjects": 1}
    with requests_of(ledger) as asked, ledger.asking(key(3)) as known:
        assert known == (turn(3),)
    assert asked == {"PutObject": 1, "ListObjectsV2": 1, "DeleteObject": 1}
    # Sixteen replies lie in one object: a machine that comes later lists once and reads once, and then only looks.
    with requests_of(other) as asked:
        assert other.spent().requests == 16
        assert len(other.turns(key(5))) == 1 and other.measured("org/vlm").requests == 16
        assert other.spent().requests == 16
    assert asked == {"ListObjectsV2": 2, "GetObject": 1}
    ledger.add(turn(99))
    with requests_of(other) as asked:
        assert other.spent().requests == 17
    assert asked == {"ListObjectsV2": 1, "GetObject": 1}


def test_a_process_that_starts_anew_fetches_nothing_twice(machine, url, tmp_path):
    ledger = machine(url, tmp_path / "copy")
    for number in range(5):
        ledger.add(turn(number))
    again = machine(url, tmp_path / "copy")
    with requests_of(again) as asked:
        assert again.spent().requests == 5
    assert asked == {"ListObjectsV2": 1}


def test_small_objects_are_merged_and_a_stream_ends_as_one(machine, url, tmp_path, monkeypatch):
    monkeypatch.setattr(bucket_writer, "FAN", 3)
    ledger = machine(url, tmp_path / "copy")
    most = 0
    for number in range(30):
        ledger.add(turn(number))
        most = max(most, len(objects(url)))
    # 30 is 1010 in base 3: so many pieces are left, and never were there more than two of each of four sizes.
    assert len(objects(url)) == 2 and most <= 8
    assert machine(url, tmp_path / "other").spent().requests == 30
    ledger.close()
    assert len(objects(url)) == 1 and len(content(url).splitlines()) == 30
    # Closed, it goes on.
    ledger.add(turn(30))
    assert machine(url, tmp_path / "third").spent().requests == 31


def test_a_large_stream_ends_and_the_next_begins(machine, url, tmp_path, monkeypatch):
    monkeypatch.setattr(bucket_writer, "STREAM_BYTES", 4 * len(turn(10).to_line()))
    ledger = machine(url, tmp_path / "copy")
    for number in range(10, 22):
        ledger.add(turn(number))
    assert len(objects(url)) == 3 and not list((tmp_path / "copy" / ".spill").glob("*/*"))
    assert machine(url, tmp_path / "other").spent().requests == 12 == ledger.spent().requests


def test_a_reader_meets_every_reply_while_its_object_is_merged_away(machine, url, tmp_path, monkeypatch):
    monkeypatch.setattr(bucket_writer, "FAN", 2)
    ledger, other = machine(url, tmp_path / "copy"), machine(url, tmp_path / "other")
    done = threading.Event()

    def write() -> None:
        for number in range(80):
            ledger.add(turn(number))
        done.set()

    seen = [0]
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        while not done.is_set():
            seen.append(other.spent().requests)
        writing.result()
    assert seen == sorted(seen) and len(set(seen)) > 2
    assert other.spent().requests == 80 and other.unreadable() == 0


def test_a_write_waits_for_a_service_that_dies_and_comes_back(machine, url, server, tmp_path):
    ledger = machine(url, tmp_path / "copy")
    ledger.add(turn(0))
    server.kill()
    coming_back = threading.Timer(2, server.start)
    coming_back.start()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: ledger.add(turn(number)), range(1, 9)))
    coming_back.join()
    assert sorted(content(url).splitlines(keepends=True)) == sorted(turn(number).to_line() for number in range(9))


def test_a_reply_that_the_service_does_not_take_is_named_and_sent_by_the_next_process(machine, url, server, tmp_path):
    ledger = machine(url, tmp_path / "copy", patience=1)
    ledger.add(turn(0))
    server.kill()

    def refused(number: int) -> str:
        with pytest.raises(LedgerError) as error:
            ledger.add(turn(number))
        return str(error.value)

    with ThreadPoolExecutor(8) as pool:
        said = list(pool.map(refused, range(1, 9)))
    (spill,) = (tmp_path / "copy" / ".spill" / "org-vlm").iterdir()
    assert all(str(spill) in words and "the next run here sends it" in words for words in said)
    server.start()
    assert machine(url, tmp_path / "other").spent().requests == 1
    die(ledger)
    again = machine(url, tmp_path / "copy")
    assert again.spent().requests == 9 and not spill.exists()
    assert machine(url, tmp_path / "other").spent().requests == 9
    assert all(len(again.turns(key(number))) == 1 for number in range(9))


def test_a_process_goes_on_after_a_failure_and_sends_what_was_left(machine, url, server, tmp_path):
    ledger = machine(url, tmp_path / "copy", patience=1)
    ledger.add(turn(0))
    server.kill()
    with pytest.raises(LedgerError):
        ledger.add(turn(1))
    server.start()
    ledger.add(turn(2))
    assert content(url) == b"".join(turn(number).to_line() for number in range(3))
    assert machine(url, tmp_path / "other").spent().requests == 3


@pytest.mark.parametrize("known", [0, 1, 2])
def test_what_a_killed_process_left_is_sent_up_to_the_torn_line_and_not_twice(machine, url, tmp_path, known):
    """`known` of its lines are in the bucket: it was killed before, or after, it heard of that."""
    lines = [turn(number).to_line() for number in range(3)]
    spill = tmp_path / "copy" / ".spill" / "org-vlm" / "20260101T000000Z-1-abcd.jsonl"
    spill.parent.mkdir(parents=True)
    spill.write_bytes(b"".join(lines) + turn(3).to_line()[:-5])
    if known:
        size = sum(map(len, lines[:known]))
        bucket(url).put(f"org-vlm/{spill.stem}.{0:010d}-{size:010d}.jsonl", b"".join(lines[:known]))
    ledger = machine(url, tmp_path / "copy")
    assert ledger.spent().requests == 3 and not spill.exists() and ledger.unreadable() == 0
    assert content(url) == b"".join(lines)


def test_of_a_process_that_is_alive_nothing_is_sent_twice(machine, url, tmp_path):
    ledger = machine(url, tmp_path / "copy")
    ledger.add(turn(1))
    assert machine(url, tmp_path / "copy").spent().requests == 1
    assert len(objects(url)) == 1 and len(list((tmp_path / "copy" / ".spill").glob("*/*"))) == 1


def test_on_a_full_disk_the_reply_is_in_the_bucket_and_the_error_says_what_to_free(machine, url, tmp_path):
    ledger = machine(url, tmp_path / "copy")
    ledger.add(turn(1))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(LedgerError, match=r"copy/org-vlm.*free some space"):
            ledger.add(turn(2, reply="x" * 10_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    ledger.add(turn(3))
    assert {one.prompt_id for number in (1, 2, 3) for one in ledger.turns(key(number))} == {"p1", "p2", "p3"}
    assert ledger.spent().requests == 3 == machine(url, tmp_path / "other").spent().requests
    assert ledger.unreadable() == 0


def test_a_copy_removed_under_a_process_is_fetched_again(machine, url, tmp_path):
    ledger, other = machine(url, tmp_path / "copy"), machine(url, tmp_path / "other")
    for number in range(3):
        ledger.add(turn(number))
        other.add(turn(number + 10))
    assert ledger.spent().requests == 6
    shutil.rmtree(tmp_path / "copy")
    with ledger.asking(key(11)) as known:
        assert known == (turn(11),)
    ledger.add(turn(3))
    assert [len(ledger.turns(key(number))) for number in (0, 1, 2, 3, 10, 11, 12)] == [1] * 7
    assert machine(url, tmp_path / "third").spent().requests == 7


def test_a_ledger_of_a_folder_copied_into_the_bucket_is_read_as_it_is(machine, url, tmp_path):
    plain = Ledger(tmp_path / "plain")
    for number in range(5):
        plain.add(turn(number))
    plain.add(turn(9, model="other"))
    for path in (tmp_path / "plain").rglob("*.jsonl"):
        bucket(url).upload(path, str(path.relative_to(tmp_path / "plain")))
    ledger = machine(url, tmp_path / "copy")
    assert ledger.totals() == plain.totals() and ledger.turns(key(3)) == (turn(3),)


def test_an_object_that_is_not_what_was_written_is_named(machine, url, tmp_path):
    machine(url, tmp_path / "one").add(turn(1))
    (name,) = objects(url)
    bucket(url).put(name, turn(1).to_line()[:-7])
    with pytest.raises(LedgerError, match=f"{name} has .* bytes where its name says .*: it is not what was written"):
        machine(url, tmp_path / "other").spent()


def test_an_object_that_is_missing_is_named(machine, url, tmp_path):
    ledger = machine(url, tmp_path / "one")
    for number in range(3):
        ledger.add(turn(number))
    bucket(url).remove(objects(url)[1])
    size = len(turn(0).to_line())
    with pytest.raises(LedgerError, match=rf"that holds byte {size} of org-vlm/.* is missing: bring it back"):
        machine(url, tmp_path / "other").spent()


def test_compacting_changes_objects_and_nothing_else(machine, url, tmp_path):
    one, other = machine(url, tmp_path / "one"), machine(url, tmp_path / "other")
    for number in range(4):
        one.add(turn(number))
        other.add(turn(number + 10))
    with killed_at(url, tmp_path / "killed", 99), one.asking(key(1)):
        time.sleep(LEASE_SECONDS + 2)
        before = other.totals()
        done = other.compact()
        # The living one's claim and sign of life stay.
        assert [name.split("/")[0] for name in objects(url, hidden=True)] == [".claims", ".holders"]
    assert (done.objects_before, done.objects_after, done.traces_removed) == (8, 2, 3)
    assert len(objects(url)) == 2
    assert machine(url, tmp_path / "third").totals() == before == one.totals() == other.totals()
    one.add(turn(4))
    for ledger in (one, other, machine(url, tmp_path / "fourth")):
        assert ledger.spent().requests == 9 and ledger.unreadable() == 0


def test_a_forked_child_writes_a_stream_of_its_own(machine, url, tmp_path):
    ledger = machine(url, tmp_path / "copy")
    with ledger.asking(key(1)):
        ledger.add(turn(1))
        child = os.fork()
        if not child:
            signal.alarm(60)
            with ledger.asking(key(2)) as known:
                ledger.add(turn(2))
            os._exit(len(known) + 10 * len(ledger.turns(key(1))))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 10
    assert ledger.spent().requests == 2 and len(objects(url)) == 2
    assert len(ledger.turns(key(2))) == 1
    with machine(url, tmp_path / "other").asking(key(2)) as known:
        assert len(known) == 1


def test_threads_of_two_machines_ask_each_question_once(machine, url, tmp_path):
    ledgers = [machine(url, tmp_path / "one"), machine(url, tmp_path / "other")]
    asked: Counter[int] = Counter()

    def ask(call: int) -> None:
        number = call % 10
        with ledgers[call // 10 % 2].asking(key(number)) as known:
            if not known:
                asked[number] += 1
                time.sleep(0.01)
                ledgers[call // 10 % 2].add(turn(number))

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(ask, range(60)))
    assert asked == Counter(range(10))


def test_a_store_somewhere_else_has_its_copy_elsewhere(url, tmp_path, monkeypatch):
    from m3po_dagster.resources.judge import ledger_of

    monkeypatch.setenv("M3PO_CACHE", str(tmp_path / "cache"))
    store = url.removesuffix("/ledger")
    mine = ledger_of(store)
    assert mine is ledger_of(store) and mine.location == url
    assert mine.folder.is_relative_to(tmp_path / "cache") and ledger_of(f"{store}2").folder != mine.folder
    assert ledger_of(str(tmp_path)).folder == tmp_path / "ledger" == Path(ledger_of(str(tmp_path)).location)
    mine.add(turn(1))
    assert len(objects(url)) == 1
    mine.close()
