"""Objects of a real S3 service read through the cache: what is asked of it, and what is read when things change."""

import hashlib
import io
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from botocore.response import StreamingBody

from m3po_dagster.s3_files.ahead import ahead
from m3po_dagster.s3_files.cache import ObjectCache, object_cache
from m3po_dagster.s3_files.path import as_path
from m3po_dagster.storage.errors import StoreError
from m3po_dagster.storage.file_facts import FileFacts
from tests.s3_files.uploads import BUCKET, requests

pytestmark = pytest.mark.slow


@pytest.fixture
def root(server, own_cache, request):
    """A prefix of the test's own, holding one object, and the test's own copies."""
    path = as_path(f"s3://{BUCKET}/{request.node.name.replace('[', '-').replace(']', '')}")
    put(server, path / "a.png", b"first")
    return path


def put(server, path, content: bytes) -> None:
    server.client().put_object(Bucket=path.bucket, Key=path.key, Body=content)


def another_process(own_cache) -> ObjectCache:
    """The cache as a process that comes later has it: the copies are there, and nothing is known of any object."""
    return ObjectCache(own_cache, 10**9)


def test_a_cold_read_is_one_request_and_more_reads_are_none(root):
    path = root / "a.png"
    with requests() as asked:
        assert path.read_bytes() == b"first"
        assert asked == {"GetObject": 1}
        assert path.is_file() and path.stat().st_size == 5 and path.version[0] == 5 and path.read_text() == "first"
        assert os.fspath(path).endswith(".png") and asked == {"GetObject": 1}


def test_another_process_asks_only_whether_the_object_is_still_the_same(root, own_cache, server):
    path = root / "a.png"
    first = os.fspath(path)
    later = another_process(own_cache)
    with requests(later) as asked:
        assert str(later.copy(path)) == first
        assert asked == {"HeadObject": 1}
    put(server, path, b"second")
    changed = another_process(own_cache)
    with requests(changed) as asked:
        assert changed.copy(path).read_bytes() == b"second"
        assert asked == {"HeadObject": 1, "GetObject": 1}
    # Who has the first one open reads it to its end.
    with open(first, "rb") as file:
        assert file.read() == b"first"


def test_a_change_is_seen_after_a_while(root, own_cache, server):
    cache = ObjectCache(own_cache, 10**9, fresh_seconds=0.5)
    path = root / "a.png"
    assert cache.copy(path).read_bytes() == b"first"
    put(server, path, b"second")
    assert cache.copy(path).read_bytes() == b"first"
    time.sleep(0.6)
    assert cache.copy(path).read_bytes() == b"second"
    server.client().delete_object(Bucket=path.bucket, Key=path.key)
    time.sleep(0.6)
    with pytest.raises(FileNotFoundError, match=r"s3://data/.*/a\.png"):
        cache.copy(path)


def test_what_is_missing_is_missing_until_it_is_there(root, server):
    path = root / "b.png"
    assert not path.is_file() and not path.exists()
    with pytest.raises(FileNotFoundError, match=r"s3://data/.*/b\.png"):
        path.read_bytes()
    put(server, path, b"now")
    assert path.is_file() and path.read_bytes() == b"now"


def test_in_a_missing_bucket_no_file_is_called_missing(server, own_cache):
    path = as_path("s3://nowhere-to-be-found/a.png")
    for ask in (path.is_file, path.exists, path.read_bytes, lambda: path.version):
        with pytest.raises(StoreError, match="make the bucket nowhere-to-be-found"):
            ask()


def test_many_readers_of_one_object_share_one_request(root):
    path = root / "a.png"
    with requests() as asked, ThreadPoolExecutor(16) as pool:
        assert set(pool.map(lambda _: path.read_bytes(), range(64))) == {b"first"}
        assert asked == {"GetObject": 1}


def test_a_large_object_comes_in_parts_and_whole(root, server):
    content = os.urandom(1 << 20) * 20
    put(server, root / "large.tar", content)
    with requests() as asked:
        assert (root / "large.tar").read_bytes() == content
    assert asked == {"GetObject": 1 + 3, "HeadObject": 2}


def test_a_large_object_that_is_replaced_while_it_is_read_is_read_as_one_version(root, server, tmp_path, monkeypatch):
    old, new = (bytes([letter]) * (17 << 20) for letter in b"on")
    put(server, root / "large.tar", old)
    client = object_cache().bucket(BUCKET).client
    download, left = client.download_file, iter([new])

    def replaced(*where):
        download(*where)
        if content := next(left, None):
            put(server, root / "large.tar", content)

    monkeypatch.setattr(client, "download_file", replaced)
    seen = object_cache().bucket(BUCKET).fetch((root / "large.tar").key, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == new and seen.etag == f'"{hashlib.md5(new).hexdigest()}"'


def test_a_folder_is_listed_as_one_on_this_machine_is(root, server):
    for name in ("sub/b.png", "sub/deep/c.png", ".m3po/unpacked/d.png", "sub/.hidden.png", "empty/"):
        server.client().put_object(Bucket=BUCKET, Key=f"{root.key}/{name}", Body=b"1")
    assert sorted(path.name for path in root.iterdir()) == [".m3po", "a.png", "empty", "sub"]
    assert [path.name for path in (root / "sub").glob("*.png")] == [".hidden.png", "b.png"]
    assert sorted(name for name, _ in root.files()) == ["a.png", "sub/b.png", "sub/deep/c.png"]
    assert root.is_dir() and not root.is_file() and not (root / "a").exists() and not (root / "a.png").is_dir()
    with pytest.raises(NotADirectoryError, match=r"s3://data/.*/none"):
        list((root / "none").iterdir())
    with pytest.raises(StoreError, match="make the bucket not-there"):
        list(as_path("s3://not-there").iterdir())


def test_a_surveyed_folder_is_asked_nothing_more(root, server):
    for number in range(30):
        put(server, root / "sub" / f"{number}.png", b"%d" % number)
    with requests() as asked:
        root.survey()
        root.survey()
        assert all((root / "sub" / f"{number}.png").is_file() for number in range(30))
        assert not (root / "sub" / "30.png").is_file() and not (root / "sub").is_file()
        assert (root / "sub").is_dir() and not (root / "su").is_dir() and not (root / "a.png").is_dir()
        assert asked == {"ListObjectsV2": 1}
        assert (root / "sub" / "7.png").read_bytes() == b"7"
        assert asked == {"ListObjectsV2": 1, "GetObject": 1}


def test_a_folder_of_too_many_is_not_surveyed_and_still_right(root, monkeypatch):
    monkeypatch.setattr("m3po_dagster.s3_files.cache._MOST_SURVEYED", 0)
    root.survey()
    with requests() as asked:
        assert (root / "a.png").is_file() and not (root / "b.png").is_file()
        assert asked == {"HeadObject": 2}


def test_an_object_is_written_once(root, server):
    path = root / "new" / "c.png"
    with requests() as asked:
        path.write_once(b"mine")
        path.write_once(b"else")
        # Whether the bucket is there is asked once, as nothing was found in it yet.
        assert path.read_bytes() == b"mine" and asked == {"HeadObject": 1, "HeadBucket": 1, "PutObject": 1}
    assert server.client().get_object(Bucket=BUCKET, Key=path.key)["Body"].read() == b"mine"
    late = root / "new" / "d.png"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: late.write_once(b"%d" % number), range(8)))
    assert server.client().get_object(Bucket=BUCKET, Key=late.key)["Body"].read() == late.read_bytes()


def test_bytes_that_were_spoilt_on_the_way_are_read_again(root, monkeypatch):
    spoil(monkeypatch, times=1)
    with requests() as asked:
        assert (root / "a.png").read_bytes() == b"first" and asked == {"GetObject": 2}


def test_a_service_whose_etags_are_no_hashes_is_read_twice_and_believed(root, monkeypatch):
    spoil(monkeypatch, etag='"' + "0" * 32 + '"')
    assert (root / "a.png").read_bytes() == b"first"


def test_bytes_that_are_other_ones_each_time_are_refused(root, monkeypatch):
    spoil(monkeypatch, times=9)
    with pytest.raises(StoreError, match=r"s3://data/.*/a\.png: 3 readings gave other bytes"):
        (root / "a.png").read_bytes()


def spoil(monkeypatch, times: int = 0, etag: str | None = None) -> None:
    """The next answers hold other bytes than were sent, or another ETag."""
    client = object_cache().bucket(BUCKET).client
    get, left = client.get_object, iter(range(times))

    def spoilt(**wanted):
        answer = get(**wanted)
        if etag:
            answer["ETag"] = etag
        elif (number := next(left, None)) is not None:
            body = b"fir%02d" % number
            answer["Body"].read()
            answer["Body"] = StreamingBody(io.BytesIO(body), len(body))
        return answer

    monkeypatch.setattr(client, "get_object", spoilt)


def test_a_hash_is_known_by_url_and_etag_without_any_copy(root, own_cache, server, tmp_path, monkeypatch):
    facts = FileFacts(tmp_path / "facts.sqlite")
    path = root / "a.png"
    assert facts.sha256(path) == hashlib.sha256(b"first").hexdigest() and facts.files_read == 1
    for copy in own_cache.rglob("*.png"):
        copy.unlink()
    with requests() as asked:
        assert facts.sha256(path) == hashlib.sha256(b"first").hexdigest()
        assert facts.files_read == 1 and asked == {}
    put(server, path, b"other")
    monkeypatch.setenv("M3PO_CACHE_GB", "1")  # as another process, which knows of no object
    with requests() as asked:
        assert facts.sha256(path) == hashlib.sha256(b"other").hexdigest()
        assert facts.files_read == 2 and asked == {"HeadObject": 1, "GetObject": 1}
    with pytest.raises(FileNotFoundError):
        facts.sha256(root / "none.png")


def test_a_hash_belongs_to_the_version_that_was_read_ahead(root, server, tmp_path, monkeypatch):
    """The object changes after it was fetched: the hash of the copy is not remembered as that of the new one."""
    facts, path = FileFacts(tmp_path / "facts.sqlite"), root / "a.png"
    monkeypatch.setattr(object_cache(), "_fresh_seconds", 0.0)
    with ahead([path]):
        (plan,) = object_cache().plans
        while path not in plan.fetched:
            time.sleep(0.01)
        put(server, path, b"other")
        assert facts.sha256(path) == hashlib.sha256(b"first").hexdigest() and path.read_bytes() == b"first"
    assert facts.sha256(path) == hashlib.sha256(b"other").hexdigest() and facts.files_read == 2


def test_a_hash_is_of_the_new_version_once_the_copy_is_gone(root, own_cache, server, tmp_path, monkeypatch):
    facts, path = FileFacts(tmp_path / "facts.sqlite"), root / "a.png"
    monkeypatch.setattr(object_cache(), "_fresh_seconds", 0.0)
    with ahead([path]):
        (plan,) = object_cache().plans
        while path not in plan.fetched:
            time.sleep(0.01)
        put(server, path, b"other")
        for copy in own_cache.rglob("*.png"):
            copy.unlink()
        with pytest.raises(StoreError, match=r"a\.png changed while it was read"):
            facts.sha256(path)
        assert facts.sha256(path) == hashlib.sha256(b"other").hexdigest()


def test_processes_with_hardly_any_room_read_what_is_there(root, server, own_cache, tmp_path):
    """Four processes read forty objects over and over, each removing the others' copies."""
    for number in range(40):
        put(server, root / f"{number}.bin", b"%02d" % number * 5000)
    code = (
        "import sys, random\n"
        "from m3po_dagster.s3_files import copies\n"
        "copies._IN_USE_SECONDS = 0\n"
        "from m3po_dagster.s3_files.path import as_path\n"
        "root, seed = as_path(sys.argv[1]), int(sys.argv[2])\n"
        "draw, read = random.Random(seed), 0\n"
        "while read < 100:\n"
        "    number = draw.randrange(40)\n"
        "    try:\n"
        "        content = (root / f'{number}.bin').read_bytes()\n"
        "    except FileNotFoundError as error:\n"
        "        # Removed between being given and being opened, as only a bound of no time at all allows.\n"
        "        assert 's3://' not in str(error), error\n"
        "        continue\n"
        "    assert content == b'%02d' % number * 5000, number\n"
        "    read += 1\n"
    )
    environment = {**os.environ, "M3PO_CACHE_GB": "0.0001"}
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(root), str(seed)], env=environment) for seed in range(4)
    ]
    assert [process.wait(timeout=120) for process in running] == [0] * 4
    held = sum(path.stat().st_size for path in own_cache.rglob("*.bin"))
    assert 0 < held <= 100_000 + 4 * 10_000
    assert not list(own_cache.rglob("*.partial"))
