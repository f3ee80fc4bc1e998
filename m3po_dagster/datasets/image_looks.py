"""Looks at many images, several at once, and at none twice: what was found is remembered."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from os import cpu_count
from pathlib import Path
from typing import Protocol

from m3po_dagster.datasets.image_facts import KIND, PixelRoom, from_json, look_at, to_json
from m3po_dagster.datasets.row import IMAGE_MISSING, ImageFacts
from m3po_dagster.s3_files.ahead import ahead

MAX_THREADS = 8
PIXELS_AT_ONCE = 64_000_000
"""Decoded by all threads together: three bytes each, and as much again while they are turned and converted."""


class Memory(Protocol):
    """Remembers what was found out about files; `FileFacts` of the storage is one."""

    def look(self, path: Path) -> object:
        """How a file looks from outside. Raises OSError where there is none."""

    def known(self, look: object, kind: str) -> str | None:
        """What is remembered of a file that still looks so."""

    def keep(self, look: object, kind: str, value: str) -> None:
        """Remembers it."""


class ImageLooks:
    """Gives images' facts. Decoding runs in threads of its own (`threads`), the memory in the caller's."""

    def __init__(self, memory: Memory | None, max_megapixels: float) -> None:
        self._memory, self._limit = memory, max_megapixels
        self._kind = f"{KIND} {max_megapixels:g}"
        self._room = PixelRoom(PIXELS_AT_ONCE)
        self.threads = ThreadPoolExecutor(min(cpu_count() or 1, MAX_THREADS), thread_name_prefix="images")

    def __enter__(self) -> "ImageLooks":
        return self

    def __exit__(self, *_: object) -> None:
        self.threads.shutdown(cancel_futures=True)

    def at(self, paths: Iterable[Path]) -> dict[Path, ImageFacts]:
        """Facts of the image at each path, each path looked at once."""
        paths = list(dict.fromkeys(paths))
        found: dict[Path, ImageFacts] = {}
        looks = {}
        for path in paths if self._memory else ():
            try:
                looks[path] = self._memory.look(path)
            except OSError as error:
                found[path] = ImageFacts(problem=IMAGE_MISSING, detail=f"can't be read: {error.strerror}")
                continue
            if (known := self._memory.known(looks[path], self._kind)) is not None:
                found[path] = from_json(known)
        new = [path for path in paths if path not in found]
        with ahead(new):
            seen = self.threads.map(lambda path: look_at(path, self._limit, self._room), new)
            for path, facts in zip(new, seen, strict=True):
                if path in looks:
                    self._memory.keep(looks[path], self._kind, to_json(facts))
                found[path] = facts
        return found
