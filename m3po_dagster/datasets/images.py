"""Where the images of a dataset's sources lie: paths below their folders, unpacked ones, fetched ones."""

import uuid
from contextlib import suppress
from pathlib import Path

from m3po_dagster.datasets.settings import PACKED, AnySource, DatasetSettings
from m3po_dagster.image_files import ImageFolders, ImageOutsideRoot
from m3po_dagster.s3_files.path import S3Path

OWN = ".m3po"
"""Folder below an image root for what is written there: images unpacked from a dataset's files, images fetched.

Hidden, as what is hidden is no part of a dataset: writing there makes it no other one.
"""


class DatasetImages:
    """Finds the image file of a row of the dataset, never outside the folders that the study names."""

    def __init__(self, dataset: DatasetSettings) -> None:
        self._sources = {
            name: ImageFolders(source.image_root, source.folders) for name, source in dataset.sources.items()
        }

    def locate(self, source: str, uri: str) -> Path:
        """The file that a row's `source` and `image_uri` name, whether it exists or not.

        Raises ImageOutsideRoot for a path that leads out of the source's folders, and for a source that the study does
        not name.
        """
        if source not in self._sources:
            raise ImageOutsideRoot(
                f"source {source!r} is none of the study's ({', '.join(self._sources)}), so {uri!r} has no folder"
            )
        return self._sources[source].locate(uri)


def image_folders(source: AnySource) -> dict[str, Path]:
    """The folders that the source's images lie in, by the prefix of their paths; '' is the image root."""
    return {"": source.image_root, **source.folders}


def writes_images(source: AnySource) -> bool:
    """Whether reading the source writes images below its image root."""
    return source.format in PACKED or bool(source.fetch_from)


def generation(source: AnySource) -> str | None:
    """Names the images written below the image root, until they are removed; None where none are written.

    It is part of what the dataset is: images that are gone, or a root elsewhere, must be written again. Raises OSError
    when the root can't be written to.
    """
    if not writes_images(source):
        return None
    path, name = source.image_root / OWN / "generation", uuid.uuid4().hex
    if isinstance(path, S3Path):
        path.write_once(name.encode())
        return path.read_text()
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError), path.open("x") as file:
        file.write(name)
    return path.read_text()
