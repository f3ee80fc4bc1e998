"""Where the images of a dataset's sources lie: paths below their folders, unpacked ones, fetched ones."""

from collections.abc import Iterator
from pathlib import Path

from m3po_dagster.datasets.settings import PACKED, AnySource, DatasetSettings
from m3po_dagster.image_files import ImageFolders, ImageOutsideRoot

FETCHED = "fetched"
"""Folder below the image root that images from URLs are kept in."""


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


def image_folders(source: AnySource) -> Iterator[Path]:
    """The folders whose files are the source's images; none for a format whose own files hold them."""
    if source.format not in PACKED:
        yield source.image_root
        yield from source.folders.values()
