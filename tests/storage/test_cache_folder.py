"""Where copies of a bucket lie: one folder a bucket, where the user says."""

from pathlib import Path

from m3po_dagster.storage.cache_folder import cache_folder


def test_the_users_choice_comes_first_and_buckets_do_not_share(monkeypatch, tmp_path):
    monkeypatch.delenv("M3PO_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    by_default = cache_folder("s3://one/store")
    assert by_default.parent == tmp_path / "xdg" / "m3po"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder("s3://one/store").parent == tmp_path / "home" / ".cache" / "m3po"
    monkeypatch.setenv("M3PO_CACHE", "here")
    assert cache_folder("s3://one/store") == Path.cwd() / "here" / by_default.name
    assert cache_folder("s3://one/store") != cache_folder("s3://one/other")
