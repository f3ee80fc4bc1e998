from pathlib import Path

import pytest


@pytest.fixture
def bytes_read(monkeypatch) -> list[int]:
    """How many bytes each read asked of the files that the test opens got."""
    sizes: list[int] = []
    opened = Path.open

    class Counted:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def __getattr__(self, name):
            return getattr(self.file, name)

        def read(self, size):
            return self._counted(self.file.read(size))

        def readline(self, size):
            return self._counted(self.file.readline(size))

        def _counted(self, data):
            sizes.append(len(data))
            return data

    monkeypatch.setattr(Path, "open", lambda path, *args, **more: Counted(opened(path, *args, **more)))
    return sizes
