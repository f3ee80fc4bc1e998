"""Errors of an S3 service that none on loopback gives: answered in its place, before the request is sent."""

import io
from collections.abc import Iterator
from contextlib import contextmanager

from botocore.awsrequest import AWSResponse

from m3po_dagster.storage.s3 import Bucket

_BODY = '<?xml version="1.0" encoding="UTF-8"?><Error><Code>{}</Code><Message>as told by the test</Message></Error>'
# As Amazon says which region a bucket is in, so that boto3 looks for it there.
_HEADERS = {"content-type": "application/xml", "x-amz-bucket-region": "eu-central-1"}


class _Raw(io.BytesIO):
    def stream(self) -> Iterator[bytes]:
        """The body in one piece, as botocore asks urllib3 for it."""
        yield self.read()


@contextmanager
def answering(bucket: Bucket, status: int, code: str, times: int = 1000) -> Iterator[list[str]]:
    """The first requests of the block get this error, the others what the service says; the operations refused."""
    events, refused = bucket.client.meta.events, []

    def answer(request, event_name: str, **_: object) -> AWSResponse | None:
        if len(refused) == times:
            return None
        refused.append(event_name.rpartition(".")[2])
        return AWSResponse(request.url, status, _HEADERS, _Raw(_BODY.format(code).encode()))

    events.register("before-send.s3", answer)
    try:
        yield refused
    finally:
        events.unregister("before-send.s3", answer)
