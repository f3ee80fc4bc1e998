"""The lock around the making of a home's databases."""

import builtins
import errno

import pytest

from m3po_dagster.cli import event_log


def refusing(code: int):
    """`open` on a file system that refuses the lock."""

    def refuse(path, *rest, **named):
        if str(path).endswith(event_log.LOCK):
            raise OSError(code, "refused", str(path))
        return real(path, *rest, **named)

    real = builtins.open
    return refuse


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_a_home_that_may_not_be_written_is_read_without_a_lock(tmp_path, monkeypatch, code):
    monkeypatch.setattr(builtins, "open", refusing(code))
    with event_log._alone(tmp_path):
        pass
    assert not (tmp_path / event_log.LOCK).exists()


def test_another_trouble_with_the_lock_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(builtins, "open", refusing(errno.ENOSPC))
    with pytest.raises(OSError, match="refused"), event_log._alone(tmp_path):
        pass
