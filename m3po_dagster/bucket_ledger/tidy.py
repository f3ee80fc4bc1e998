"""Clears up a ledger in a bucket after processes that were killed; nothing that is read changes."""

from dataclasses import dataclass

from m3po_dagster.bucket_ledger import claims, holder, reservations
from m3po_dagster.bucket_ledger.holder import Holder
from m3po_dagster.bucket_ledger.mirror import Mirror
from m3po_dagster.bucket_ledger.pieces import Piece, listed, whole_until
from m3po_dagster.storage.s3 import Bucket


@dataclass(frozen=True)
class Tidied:
    """Objects of replies before and after, and how many traces of ended processes were removed."""

    objects_before: int
    objects_after: int
    traces_removed: int


def tidied(bucket: Bucket, mirror: Mirror, alive: Holder) -> Tidied:
    """Merge the pieces of every stream into one object, and remove what ended processes hold. Raises StoreError.

    Safe while others write: pieces never change, and one that is removed lies in another, whole.
    """
    streams = listed(bucket)
    before = sum(map(len, streams.values()))
    for stream, pieces in streams.items():
        end = whole_until(pieces)
        body = mirror.read(stream, 0, end) if len(pieces) > 1 else None
        if body:
            whole = Piece.of(stream, 0, end)
            bucket.put_if_absent(whole.key, body)
            bucket.remove_all([piece.key for piece in pieces if piece.end <= end and piece.key != whole.key])
    after = sum(map(len, listed(bucket).values()))
    return Tidied(before, after, _remove_traces(bucket, alive))


def _remove_traces(bucket: Bucket, alive: Holder) -> int:
    living: dict[str, bool] = {}

    def gone(name: str) -> bool:
        if name not in living:
            living[name] = alive.is_alive(name)
        return not living[name]

    removed = 0
    for item in bucket.list(f"{claims.FOLDER}/"):
        found = bucket.get(item.key)
        if found and gone(claims.holder_of(found[0])):
            removed += bucket.remove_if_match(item.key, found[1].etag)
    for folder in (reservations.FOLDER, holder.FOLDER):
        names = [item.key for item in bucket.list(f"{folder}/")]
        dead = [name for name in names if gone(name.removeprefix(f"{folder}/"))]
        bucket.remove_all(dead)
        removed += len(dead)
    return removed
