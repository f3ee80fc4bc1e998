"""A store in a bucket when things break: writers that race, sleep or die, a service that dies and comes back."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pyarrow as pa
import pytest
from store_samples import NUMBERS, PARTS, ROWS, key, numbers, write_in_parts

from m3po_dagster.storage import bucket_folder, s3
from m3po_dagster.storage.content import table_hash
from m3po_dagster.storage.draft import Draft
from m3po_dagster.storage.errors import Busy, StoreError
from m3po_dagster.storage.s3 import Bucket
from m3po_dagster.storage.store import ArtifactStore

pytestmark = pytest.mark.slow
LEASE_SECONDS = 3


@pytest.fixture
def url(url, monkeypatch) -> str:
    """Leases that run out soon, and requests that are repeated often."""
    monkeypatch.setattr(bucket_folder, "LEASE_SECONDS", LEASE_SECONDS)
    monkeypatch.setattr(s3, "_LONGEST_PAUSE", 1)
    return url


def writer(url: str, log: Path, stop: str = "") -> subprocess.Popen:
    """`bucket_writer` at work."""
    log.touch()
    script = Path(__file__).with_name("bucket_writer.py")
    command = [sys.executable, str(script), url, str(log), str(LEASE_SECONDS), stop]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def told(process: subprocess.Popen) -> dict:
    """What a writer printed at its end."""
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    return json.loads(output)


def expected() -> pa.Table:
    return pa.concat_tables([numbers(index) for index in range(PARTS)])


@contextmanager
def opened(store: ArtifactStore) -> Iterator[Draft]:
    """A draft, once the lease of a writer that is gone has run out."""
    deadline = time.monotonic() + 30
    with ExitStack() as stack:
        while True:
            try:
                draft = stack.enter_context(store.open(*key()))
                break
            except Busy:
                assert time.monotonic() < deadline
                time.sleep(0.2)
        yield draft


def test_of_writers_that_race_one_works_and_the_others_find_what_it_made(url, tmp_path):
    logs = [tmp_path / f"log{number}" for number in range(3)]
    results = [told(process) for process in [writer(url, log) for log in logs]]
    made = [log.read_text().split() for log in logs]
    assert sorted(made) == [[], [], ["0", "1", "2", "3"]], "one of them made all, nothing was made twice"
    assert {result["hash"] for result in results} == {table_hash(expected())}
    (attempt,) = {result["attempt"] for result in results}
    keys = [found.key for found in Bucket(url).list()]
    assert len(keys) == 3 and sum(f"/{attempt}/" in name for name in keys) == 2


def test_a_killed_writers_parts_are_found_and_its_lease_is_taken_over(url, tmp_path):
    process = writer(url, tmp_path / "killed", "SIGKILL:2")
    assert process.wait(120) == -signal.SIGKILL
    store, made = ArtifactStore(url), []
    with pytest.raises(Busy, match=f"process {process.pid} "):
        store.open(*key()).__enter__()
    with opened(store) as draft:
        assert draft.parts(plan={"parts": PARTS}) == [0, 1]
    artifact = write_in_parts(store, made.append)
    assert made == [2, 3] and artifact.table().equals(expected())
    assert len(list(Bucket(url).list())) == 3


def test_a_writer_killed_right_before_its_manifest_loses_nothing_but_the_commit(url, tmp_path):
    assert writer(url, tmp_path / "killed", "SIGKILL:manifest").wait(120) == -signal.SIGKILL
    store, made = ArtifactStore(url), []
    assert store.find(*key()) is None
    with opened(store) as draft:
        assert draft.parts(plan={"parts": PARTS}) == [0, 1, 2, 3]
    assert write_in_parts(store, made.append).table().equals(expected()) and made == []


@pytest.mark.parametrize("place", ["2", "manifest"])
def test_a_writer_that_sleeps_past_its_lease_spoils_nothing(url, tmp_path, place):
    sleeper = writer(url, tmp_path / "sleeper", f"SIGSTOP:{place}")
    os.waitid(os.P_PID, sleeper.pid, os.WSTOPPED)
    store = ArtifactStore(url)
    with opened(store) as draft:
        # Cut in another way, with other content: nothing of the sleeper's fits.
        assert draft.parts(plan={"parts": "others"}) == []
        for index in range(PARTS):
            draft.write_part(index, numbers(index + 10), NUMBERS)
            if index == 1:
                sleeper.send_signal(signal.SIGCONT)
                woken = told(sleeper)
        (draft.folder() / "note.txt").write_text("other")
        artifact = draft.commit({"data": (draft.read_parts(), NUMBERS)}, code_version="1")
    found = store.find(*key())
    if place == "2":
        assert "run again" in woken["error"], "it heard that its lease was gone"
        assert found.table().equals(pa.concat_tables([numbers(index + 10) for index in range(PARTS)]))
        assert found.path("files/note.txt").read_text() == "other"
    else:
        # It woke up between its last look at its lease and its commit: its whole artifact counts, and no other.
        assert found.table().equals(expected()) and woken["attempt"] == found.manifest.attempt
        assert found.path("files/note.txt").read_text() == "whole"
    assert artifact.manifest == found.manifest
    left = [name for name in (entry.key for entry in Bucket(url).list()) if found.manifest.attempt not in name]
    assert left == [f"{found.key.folder}/manifest.json"], "what came to nothing was cleared away"


def test_what_a_sleeper_still_writes_never_comes_into_another_writers_parts(url, monkeypatch):
    store = ArtifactStore(url)
    sleeper = store.open(*key()).__enter__()
    sleeper.write_part(0, numbers(0), NUMBERS)
    store._disk.remove(f"{sleeper.key.folder}/lock")  # as if it had run out
    monkeypatch.setattr(sleeper._lock, "check", lambda: None)  # it was last looked at just before
    with store.open(*key()) as draft:
        assert draft.parts() == [0]
        sleeper.write_part(1, numbers(21), NUMBERS)
        draft.write_part(1, numbers(1), NUMBERS)
        sleeper.write_part(1, numbers(22), NUMBERS)
        assert draft.read_parts().equals(pa.concat_tables([numbers(0), numbers(1)]))
        mine = draft.commit({"data": (draft.read_parts(), NUMBERS)}, code_version="1")
    theirs = sleeper.commit({"data": (numbers(23), NUMBERS)}, code_version="1")
    assert theirs.manifest == mine.manifest, "of two commits the first counts"
    assert store.find(*key()).table().equals(pa.concat_tables([numbers(0), numbers(1)]))


def test_a_service_killed_in_the_middle_of_the_work_is_waited_for(server, url):
    store, restarts = ArtifactStore(url), []

    def made(index: int) -> None:
        if index == 2:
            server.kill()
            restarts.append(threading.Timer(LEASE_SECONDS + 2, server.start))
            restarts[-1].start()

    artifact = write_in_parts(store, made)
    for restart in restarts:
        restart.join()
    assert artifact.table().equals(expected()) and len(restarts) == 1
    assert store.find(*key()).manifest == artifact.manifest
    assert len(list(Bucket(url).list())) == 3


def test_a_service_killed_in_the_middle_of_a_large_upload_leaves_no_torn_object(server, url):
    store, rows = ArtifactStore(url), 800_000
    names = [os.urandom(16).hex() for _ in range(rows)]
    table = pa.table({"name": names, "value": [float(row) for row in range(rows)]}, schema=NUMBERS.schema)
    parts_sent = []

    def kill_once(request, **_: object) -> None:
        parts_sent.append(request.url)
        if len(parts_sent) == 2:
            server.kill()
            threading.Timer(2, server.start).start()

    store._disk._bucket.client.meta.events.register("before-send.s3.UploadPart", kill_once)
    with store.open(*key()) as draft:
        artifact = draft.commit({"data": (table, NUMBERS)}, code_version="1")
    assert artifact.manifest.tables["data"].bytes > 2 * 8 << 20 and len(parts_sent) > 2
    assert store.find(*key()).table().equals(table)
    assert len(list(Bucket(url).list())) == 2


def test_reading_waits_for_a_service_that_comes_back_and_never_calls_it_damage(server, url, monkeypatch):
    artifact = write_in_parts(ArtifactStore(url), lambda index: None)
    server.kill()
    started = threading.Timer(2, server.start)
    started.start()
    assert artifact.table().num_rows == PARTS * ROWS
    started.join()
    away = ArtifactStore(url)
    found = away.find(*key())
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")  # nobody there
    away._disk._bucket.patience, away._disk._bucket._pid = 0.5, 0
    for ask in (found.table, lambda: found.path("files"), lambda: away.find(*key()), away.open(*key()).__enter__):
        with pytest.raises(StoreError, match="AWS_ENDPOINT_URL_S3") as refused:
            ask()
        assert "damaged" not in str(refused.value)
