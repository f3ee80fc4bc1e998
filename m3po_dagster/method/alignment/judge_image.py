"""The image of a prompt as a served judge is sent it: by its address, or as a data URL that is encoded once."""

import hashlib
import threading
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from pydantic import Field, field_validator

from m3po_dagster.method.image_url import data_url
from m3po_dagster.s3_files.path import DataPath
from m3po_dagster.settings import Settings


class ImageUrls(Settings):
    """Where the endpoint can fetch the images itself, which keeps requests small; others are sent."""

    folder: DataPath = Field(
        description="folder that holds the images here: a path of this machine, or s3://bucket/..."
    )
    address: str = Field(description="address under which the same folder is served to the judge")

    @field_validator("address")
    @classmethod
    def _web_address(cls, value: str) -> str:
        if not value.startswith(("http://", "https://")):
            raise ValueError("give an address that starts with http:// or https://")
        return value.rstrip("/")

    def of(self, image: Path) -> str | None:
        """The address of an image; None for one outside the folder, such as a probe's or a known pair's."""
        image, folder = image.resolve(), self.folder.resolve()
        if not image.is_relative_to(folder):
            return None
        return f"{self.address}/{quote(image.relative_to(folder).as_posix())}"


class JudgeImage:
    """One image file; safe to use from many threads."""

    def __init__(self, path: Path, urls: ImageUrls | None, detail: Literal["auto", "low", "high"]) -> None:
        """Raises OSError when there is no such file."""
        self.path = path
        self.sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        self._urls, self._detail = urls, detail
        self._lock, self._part = threading.Lock(), None

    @property
    def unsent(self) -> dict[str, Any]:
        """The value of an image_url part without the image."""
        return {"url": ""} | ({} if self._detail == "auto" else {"detail": self._detail})

    def part(self) -> dict[str, Any]:
        """The value of an image_url part. Raises OSError when the image can't be decoded."""
        with self._lock:
            if self._part is None:
                address = self._urls.of(self.path) if self._urls else None
                self._part = self.unsent | {"url": address or data_url(self.path)}
            return self._part

    def forget(self) -> None:
        """Frees the encoded image; it is encoded again when it is next wanted."""
        with self._lock:
            self._part = None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels as the file says them. Raises OSError when it is no image."""
        from PIL import Image

        from m3po_dagster.image_files import FORMATS

        try:
            with Image.open(self.path, formats=FORMATS) as image:
                return image.size
        except (SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise OSError(f"{self.path}: {error}") from error
