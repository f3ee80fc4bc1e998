"""Where an artifact lives inside a store: names that are safe as folders, and back again."""

import re
import string
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from m3po_dagster.storage.errors import StoreError

UNPARTITIONED = "_"
_PLAIN = frozenset(string.ascii_letters + string.digits + "._-")
_ASSET = re.compile(r"[A-Za-z0-9_]{1,128}")
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_FILE_LIMIT = 255


def encode_partition(partition: str) -> str:
    """Partition key -> folder name.

    The bar between the dimensions of a key becomes a comma, everything unusual is percent-encoded, "" (no
    partitions) is `_`. Raises StoreError for keys that could leave the folder or can't be a file name.
    """
    if partition == "":
        return UNPARTITIONED
    if partition in (".", "..") or any(c in "/\\" or ord(c) < 32 or ord(c) == 127 for c in partition):
        raise StoreError(
            f"partition {partition!r} can't be a folder: no slashes, no control characters, not '.' or '..'"
        )
    if partition == UNPARTITIONED:
        return "%5F"
    try:
        name = "".join(_encode_character(c) for c in partition)
    except UnicodeEncodeError as error:
        raise StoreError(f"partition {partition!r} is not valid Unicode text") from error
    if name.startswith("."):
        name = "%2E" + name[1:]
    if len(name) > _FILE_LIMIT:
        raise StoreError(f"partition {partition!r} is too long for a folder name: {len(name)} > {_FILE_LIMIT} bytes")
    return name


def _encode_character(character: str) -> str:
    if character in _PLAIN:
        return character
    if character == "|":
        return ","
    return "".join(f"%{byte:02X}" for byte in character.encode("utf-8"))


def decode_partition(name: str) -> str:
    """Folder name -> partition key. Raises StoreError when no partition has this folder name."""
    if name == UNPARTITIONED:
        return ""
    try:
        partition = unquote_to_bytes(name.replace(",", "|")).decode("utf-8")
    except UnicodeDecodeError as error:
        raise StoreError(f"{name!r} is not the folder of a partition") from error
    if encode_partition(partition) != name:
        raise StoreError(f"{name!r} is not the folder of a partition")
    return partition


def check_name(kind: str, name: str) -> str:
    """`name` if it is letters, digits and underscores only; StoreError otherwise. `kind` says what it names."""
    if not _ASSET.fullmatch(name):
        raise StoreError(f"{kind} {name!r} is not a name: letters, digits and underscores only, at most 128")
    return name


class ArtifactKey(NamedTuple):
    """What identifies an artifact; equal to the plain tuple. The partition is "" for an asset without partitions."""

    asset: str
    partition: str
    fingerprint: str

    @property
    def folder(self) -> str:
        """Path inside the store. Raises StoreError when a name is unsafe."""
        check_name("asset", self.asset)
        if not _FINGERPRINT.fullmatch(self.fingerprint):
            raise StoreError(f"fingerprint {self.fingerprint!r} of {self.asset} is not 64 lower-case hex digits")
        return f"{self.asset}/{encode_partition(self.partition)}/{self.fingerprint}"

    def __str__(self) -> str:
        partition = f"[{self.partition}]" if self.partition else ""
        return f"{self.asset}{partition} {self.fingerprint[:12]}"


def parse_folder(asset: str, partition: str, fingerprint: str) -> ArtifactKey | None:
    """The key of a folder found in a store, or None when it is none of the store's."""
    if not _FINGERPRINT.fullmatch(fingerprint):
        return None
    try:
        return ArtifactKey(check_name("asset", asset), decode_partition(partition), fingerprint)
    except StoreError:
        return None
