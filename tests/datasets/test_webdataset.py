import io
import json
import tarfile
import tracemalloc

import pytest
import webdataset

from m3po_dagster.datasets import item, tar_members
from m3po_dagster.datasets.record import DatasetError, Malformed, Record
from m3po_dagster.datasets.webdataset import read

LIMIT = 10_000
ASKED = json.dumps({"question": "What is it?"}).encode()


def tar(path, *members):
    """Writes (name, data) as files; a TarInfo alone as it is."""
    with tarfile.open(path, "w") as file:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                file.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                file.addfile(info, io.BytesIO(member[1]))
    return path


def special(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def test_a_sample_asks_in_json_or_in_text(tmp_path):
    messages = {"messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Hm?"}]}]}
    path = tar(
        tmp_path / "a.tar",
        ("a/0001.jpg", b"one"),
        ("a/0001.json", json.dumps({"question": "What?", "answer": "That.", "id": 5}).encode()),
        ("a/0002.JPEG", b"two"),
        ("a/0002.txt", b"\xef\xbb\xbfIs it red?\r\n"),
        ("b/0002.messages.json", b"ignored"),
        ("b/0002.png", b"three"),
        ("b/0002.json", json.dumps(messages).encode()),
        ("c.json", ASKED),
        ("d.webp", b"five"),
        ("d.json", b'{"width": 640, "id": "own"}'),
        ("d.txt", b"Beside the facts?"),
    )
    records = list(read([path], LIMIT))
    assert [(record.source_id, record.image, record.image_bytes, record.conversation) for record in records] == [
        ("5", "a/0001.jpg", b"one", (("human", "What?"), ("gpt", "That."))),
        ("a/0002", "a/0002.JPEG", b"two", (("human", "Is it red?"),)),
        ("b/0002", "b/0002.png", b"three", (("human", "Hm?"),)),
        ("c", None, None, (("human", "What is it?"),)),
        ("own", "d.webp", b"five", (("human", "Beside the facts?"),)),
    ]
    assert [record.record for record in records] == list(range(5))


def test_samples_are_those_of_the_library(tmp_path):
    members = [
        ("README", b"no suffix"),
        ("0001.jpg", b"one"),
        ("0001.json", ASKED),
        ("__meta__/0001.json", ASKED),
        ("__text__.json", ASKED),
        ("._0001.jpg", b"left by a Mac"),
        (".hidden.json", ASKED),
        ("deep/er/0002.tar.jpg", b"no image by its suffix"),
        ("deep/er/0002.jpg", b"two"),
        ("deep/er/0002.json", ASKED),
        ("0003.json", ASKED),
        ("0003.PNG", b"three"),
        ("0001.jpg", b"another sample: another stood between"),
        ("0001.json", ASKED),
    ]
    path = tar(tmp_path / "a.tar", *members)
    library = [
        (sample["__key__"], next((sample[suffix] for suffix in ("jpg", "png") if suffix in sample), None))
        for sample in webdataset.WebDataset(str(path), shardshuffle=False)
    ]
    ours = [(record.source_id, record.image_bytes) for record in read([path], LIMIT)]
    assert ours == library
    assert [key for key, _ in ours] == ["0001", "__text__", "deep/er/0002", "0003", "0001"]


def test_two_tars_are_one_count_and_no_sample_goes_over_a_file_s_end(tmp_path):
    one = tar(tmp_path / "1.tar", ("a.json", ASKED), ("b.json", ASKED))
    two = tar(tmp_path / "2.tar", ("b.jpg", b"b"), ("c.json", ASKED))
    items = list(read([one, two], LIMIT))
    assert [(item.record, item.source_id, type(item)) for item in items] == [
        (0, "a", Record),
        (1, "b", Record),
        (2, "b", Malformed),
        (3, "c", Record),
    ]
    assert items[2].detail == "2.tar, 'b': question is missing, and so are conversations and messages"


@pytest.mark.parametrize("link", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
@pytest.mark.parametrize("suffix", ["jpg", "json", "txt"])
def test_a_member_that_is_no_file_is_never_followed(tmp_path, link, suffix):
    secret = tmp_path / "secret"
    secret.write_bytes(ASKED)
    members = [("a.jpg", b"a"), ("a.json", ASKED), (f"b.{suffix}", b""), ("b.jpg", b"b"), ("b.json", ASKED)]
    bad = special(f"b.{suffix}", link, str(secret))
    items = list(read([tar(tmp_path / "a.tar", *members[:2], bad, *members[3:])], LIMIT))
    assert [type(item) for item in items] == [Record, Malformed]
    assert items[1].detail == f"a.tar, 'b': its {suffix} is a link, a device or a sparse file, which is never followed"


@pytest.mark.parametrize("name", ["/etc/passwd", "../../up", "a/../../b", "C:\\windows\\x", "..."])
def test_a_name_is_only_a_name(tmp_path, name):
    path = tar(tmp_path / "a.tar", (f"{name}.jpg", b"x"), (f"{name}.json", ASKED))
    before = sorted(tmp_path.rglob("*"))
    records = list(read([path], LIMIT))
    assert [record.image for record in records] == ([] if name == "..." else [f"{name}.jpg"])
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("members", "detail"),
    [
        ([("a.jpg", b"a")], "question is missing"),
        ([("a.jpg", b"a"), ("a.png", b"a")], "a second image, png, under one name"),
        ([("a.json", ASKED), ("a.json", ASKED)], "a second json, json, under one name"),
        ([("a.json", b'{"question": "What?", "images": ["a.jpg"]}')], "its json names images, and none is in the tar"),
        ([("a.txt", b"\xff")], "its text is not UTF-8 at byte 0"),
        ([("a.json", b"{")], "its json is no JSON at character 1"),
        ([("a.json", b"[" * 500 + b"]" * 500)], "nested more than 100 deep"),
        ([("a.json", b"[]")], "a record is an object, this is an array"),
        ([("a.json", b"[]"), ("a.txt", b"What?")], "a record is an object, this is an array"),
        ([("a.json", b'"' + b"x" * 10_000 + b'"')], "its json has 10,002 bytes, at most 10,000 are read"),
        ([("a.txt", b"x" * 10_001)], "its txt has 10,001 bytes, at most 10,000 are read"),
        ([("a.txt", b"What\0?")], "question holds a NUL"),
        ([("a.json", ASKED), (f"{'x' * 600}.json", ASKED)], "its name has 600 characters, expected 1 to 512"),
        ([("a\udcff.jpg", b"a"), ("a\udcff.json", ASKED)], "its name holds half a surrogate pair"),
    ],
)
def test_a_sample_that_is_no_record_is_named_and_the_next_is_read(tmp_path, members, detail):
    path = tar(tmp_path / "a.tar", *members, ("good.json", ASKED))
    *_, bad, good = read([path], LIMIT)
    assert isinstance(bad, Malformed)
    assert detail in bad.detail
    assert bad.detail.startswith("a.tar, '")
    assert (good.source_id, good.record) == ("good", bad.record + 1)
    bad.source_id.encode()


def test_a_huge_image_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(item, "MAX_IMAGE_BYTES", 5)
    monkeypatch.setattr("m3po_dagster.datasets.webdataset.MAX_IMAGE_BYTES", 5)
    path = tar(tmp_path / "a.tar", ("a.jpg", b"123456"), ("a.json", ASKED), ("b.jpg", b"12345"), ("b.json", ASKED))
    bad, good = read([path], LIMIT)
    assert bad.detail == "a.tar, 'a': its jpg has 6 bytes, at most 5 are read"
    assert good.image_bytes == b"12345"


class TestBrokenFiles:
    """A tar file that is broken or cut short is named with the byte; the samples before it are given."""

    MEMBERS = (("a.jpg", b"a" * 700), ("a.json", ASKED), ("b.jpg", b"b" * 700), ("b.json", ASKED))
    # Headers of 512 bytes, contents padded to them: b.jpg's header lies at 2560, its content at 3072.

    def read(self, path):
        given = []
        with pytest.raises(DatasetError) as error:
            for record in read([path], LIMIT):
                given.append(record.source_id)
        return given, str(error.value)

    @pytest.mark.parametrize(
        ("size", "given", "said"),
        [
            (100, [], "byte 0: broken or cut short, or no tar file"),
            (800, [], "byte 800: cut short within 'a.jpg', 288 of 700 bytes are there"),
            (2800, [], "cut short, the end mark is missing"),
            (3200, ["a"], "cut short within 'b.jpg', 128 of 700 bytes are there"),
            (4200, ["a"], "cut short"),
            (5120, ["a"], "byte 5120: cut short, the end mark is missing"),
        ],
    )
    def test_cut_short(self, tmp_path, size, given, said):
        path = tar(tmp_path / "a.tar", *self.MEMBERS)
        path.write_bytes(path.read_bytes()[:size])
        ids, message = self.read(path)
        assert ids == given
        assert str(path) in message
        assert said in message

    def test_a_broken_header_is_no_end(self, tmp_path):
        path = tar(tmp_path / "a.tar", *self.MEMBERS)
        content = bytearray(path.read_bytes())
        content[2560 + 150] ^= 0xFF  # in the checksum of b.jpg
        path.write_bytes(content)
        assert self.read(path) == ([], f"{path}, byte 2560: a header is broken")

    def test_what_follows_the_end_mark_is_not_left_out_in_silence(self, tmp_path):
        path = tar(tmp_path / "a.tar", ("a.json", ASKED))
        path.write_bytes(path.read_bytes() + tar(tmp_path / "b.tar", ("b.json", ASKED)).read_bytes())
        ids, message = self.read(path)
        assert ids == []
        assert "more follows the end mark at byte 1024" in message

    @pytest.mark.parametrize("content", [b"", b"\x1f\x8b" + b"x" * 2000, b"[" + b" " * 2000])
    def test_another_kind_of_file(self, tmp_path, content):
        (tmp_path / "a.tar").write_bytes(content)
        assert self.read(tmp_path / "a.tar")[1].startswith(f"{tmp_path / 'a.tar'}, byte 0: broken or cut short")

    @pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
    def test_a_header_without_end_is_not_read(self, tmp_path, kind, bytes_read):
        info = tarfile.TarInfo("x")
        info.type, info.size = kind, 3_000_000
        header = info.tobuf(tarfile.GNU_FORMAT)
        (tmp_path / "a.tar").write_bytes(header + b"1" * 3_000_000)
        assert "a header of 3,000,320 bytes, at most 65,536 are read" in self.read(tmp_path / "a.tar")[1]
        assert sum(bytes_read) < tar_members.MAX_HEADER_BYTES

    def test_a_negative_size_is_no_loop(self, tmp_path):
        info = tarfile.TarInfo("a.jpg")
        header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
        header[124:136] = b"\xff" * 10 + b"\xfe\x00"  # minus 512
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        (tmp_path / "a.tar").write_bytes(tar(tmp_path / "b.tar", ("b.json", ASKED)).read_bytes()[:1024] + header * 3)
        assert "byte 1024: broken or cut short" in self.read(tmp_path / "a.tar")[1]


def test_a_sparse_member_of_a_terabyte_is_not_read(tmp_path):
    info = tarfile.TarInfo("a.jpg")
    info.pax_headers = {"GNU.sparse.size": str(1 << 40), "GNU.sparse.numblocks": "1", "GNU.sparse.map": "0,0"}
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as file:
        file.addfile(info)
    (bad,) = read([tmp_path / "a.tar"], LIMIT)
    assert bad.detail == "a.tar, 'a': its jpg is a link, a device or a sparse file, which is never followed"


def test_memory_holds_no_more_for_more_samples(tmp_path):
    path = tar(tmp_path / "a.tar", *((f"{number}.json", ASKED) for number in range(3000)))
    tracemalloc.start()
    try:
        count = sum(isinstance(record, Record) for record in read([path], LIMIT))
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 3000
    assert most < 2_000_000  # a member is kept as some 1,700 bytes
