"""Images by URL: from allowed hosts alone, once each, bounded; from a real server on loopback."""

from pathlib import Path

import pytest

from m3po_dagster.datasets import fetching
from m3po_dagster.datasets.fetching import Fetcher, NotFetched, fetched_path, is_url
from m3po_dagster.datasets.index import NotFetchedYet
from m3po_dagster.datasets.row import IMAGE_NOT_FETCHED, IMAGE_URL
from m3po_dagster.identity import Identities
from m3po_dagster.study import load_study
from tests.datasets.dataset_files import dataset, picture, record, rows_of
from tests.loopback import LoopbackServer, Reply

STUDY = Path(__file__).parents[2] / "studies" / "easy_scenes.yaml"


class Pictures(LoopbackServer):
    """Serves /a.png; other paths say what they do."""

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self.content, self.asked, self.down = content, [], True

    @property
    def host(self) -> str:
        return self.base_url.split("/")[2]

    def url(self, path: str) -> str:
        return f"http://{self.host}/{path}"

    def answer_other(self, method, path, headers) -> Reply:
        self.asked.append((path, headers.get("authorization")))
        if path == "/home":
            return Reply(302, headers={"Location": "/a.png"})
        if path == "/away":
            return Reply(302, headers={"Location": "http://localhost:1/a.png"})
        if path == "/round":
            return Reply(302, headers={"Location": "/round"})
        if path == "/gone":
            return Reply(404)
        if path == "/down" and self.down:
            return Reply(503, headers={"Retry-After": "3600"})
        if path == "/busy" and len(self.asked) < 2:
            return Reply(503)
        return Reply(body=self.content)


@pytest.fixture
def pictures(tmp_path):
    with Pictures(picture(tmp_path / "served.png", 5).read_bytes()) as server:
        yield server


def test_what_is_a_url():
    assert all(
        map(is_url, ["http://a/b.png", "HTTPS://a/b", "file:///etc/passwd", "s3://a/b", "data:image/png;base64,A"])
    )
    assert not any(map(is_url, ["a.png", "coco/a.png", "a:b.png", "../http:/a"]))


@pytest.mark.parametrize("path", ["a.png", "home", "busy"])
def test_an_allowed_image_is_fetched_once_and_kept(tmp_path, pictures, path):
    fetcher = Fetcher((pictures.host,), tmp_path / "images")
    relative = fetcher.fetch(pictures.url(path))
    assert relative == fetched_path(pictures.url(path))
    assert (tmp_path / "images" / relative).read_bytes() == pictures.content
    before = pictures.requests
    assert Fetcher((pictures.host,), tmp_path / "images").fetch(pictures.url(path)) == relative
    assert pictures.requests == before


@pytest.mark.parametrize(
    ("path", "why"),
    [("away", "not of an allowed host"), ("round", "redirects more than 5 times"), ("gone", "404")],
)
def test_what_can_not_be_fetched_says_why_and_leaves_nothing(tmp_path, pictures, path, why):
    with pytest.raises(NotFetched, match=why):
        Fetcher((pictures.host,), tmp_path / "images").fetch(pictures.url(path))
    assert not list((tmp_path / "images").rglob("*.*")) and not (tmp_path / "images" / "fetched").exists()


def test_a_large_answer_is_cut_off(tmp_path, pictures, monkeypatch):
    monkeypatch.setattr(fetching, "MAX_BYTES", 10)
    with pytest.raises(NotFetched, match="more than 10 bytes"):
        Fetcher((pictures.host,), tmp_path).fetch(pictures.url("a.png"))


def test_no_other_host_scheme_or_disguise_is_allowed(tmp_path, pictures):
    fetcher = Fetcher((pictures.host,), tmp_path)
    name = pictures.host
    for url in (
        f"ftp://{name}/a.png",
        f"file://{name}/etc/passwd",
        "http://127.0.0.1/a.png",
        f"http://{name}@evil.example/a.png",
        f"http://user:word@{name}/a.png",
        f"http://{name}.evil.example/a.png",
        "http://[",
    ):
        assert not fetcher.allows(url), url
    assert fetcher.allows(f"http://{name.upper()}/a.png")


def test_no_password_of_the_home_folder_is_sent(tmp_path, pictures, monkeypatch):
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    Fetcher((pictures.host,), tmp_path).fetch(pictures.url("a.png"))
    assert pictures.asked == [("/a.png", None)]


def test_a_dataset_fetches_what_it_may_and_drops_the_rest_with_a_reason(tmp_path, pictures):
    urls = [pictures.url("a.png"), pictures.url("gone"), "http://elsewhere.example/a.png", pictures.url("a.png")]
    settings = dataset(tmp_path, [record(n, url) for n, url in enumerate(urls)], fetch_from=[pictures.host])
    rows = rows_of(settings)
    assert [row.image.problem for row in rows] == [None, IMAGE_NOT_FETCHED, IMAGE_URL, None]
    assert rows[0].image_uri == rows[3].image_uri == fetched_path(urls[0]) and rows[0].image.width == 24
    assert "404" in rows[1].image.detail and "fetch_from" in rows[2].image.detail


def test_a_server_that_is_down_ends_the_step_and_costs_no_record(tmp_path, pictures, monkeypatch):
    monkeypatch.setattr("urllib3.util.Retry.DEFAULT_BACKOFF_MAX", 0)
    urls = [pictures.url("a.png"), pictures.url("down"), pictures.url("a.png")]
    settings = dataset(tmp_path, [record(n, url) for n, url in enumerate(urls)], fetch_from=[pictures.host])
    with pytest.raises(NotFetchedYet, match=r"1 images could not be fetched for now.*answers 503"):
        rows_of(settings)
    assert [path for path, _ in pictures.asked].count("/a.png") == 1, "an address that stands twice is asked once"
    pictures.down = False
    assert [row.image.problem for row in rows_of(settings)] == [None] * 3
    assert [path for path, _ in pictures.asked].count("/a.png") == 1


def test_a_server_that_drips_is_left(tmp_path, pictures, monkeypatch):
    monkeypatch.setattr(fetching, "_SECONDS_IN_ALL", -1)
    with pytest.raises(NotFetched, match="takes more than") as error:
        Fetcher((pictures.host,), tmp_path).fetch(pictures.url("a.png"))
    assert error.value.for_now


def test_what_was_fetched_does_not_make_the_dataset_another_one(tmp_path, pictures):
    settings = dataset(tmp_path, [record(1, pictures.url("a.png"))], fetch_from=[pictures.host])
    study = load_study(STUDY).model_copy(update={"dataset": settings})
    before = Identities(lambda path: "0").dataset(study)
    assert rows_of(settings)[0].image.problem is None
    assert Identities(lambda path: "0").dataset(study) == before
    picture(tmp_path / "images" / "own.png", 1)
    assert Identities(lambda path: "0").dataset(study) != before
