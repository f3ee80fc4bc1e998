"""What an S3 service's errors mean: which pass by themselves, which say that nothing is there, and what to do."""

from typing import Any

REFUSED = frozenset({"PreconditionFailed"})
"""The condition of a write does not hold."""
MISSING = frozenset({"404", "NoSuchKey", "NotFound"})
_DENIED = {"403", "AccessDenied", "Forbidden", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"}
_ELSEWHERE = {"301", "PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}
# With 409 another conditional write of the object is under way, which may yet fail: nothing is decided.
_CONFLICT, _TOO_MANY, _NOT_IMPLEMENTED = 409, 429, 501


def code(error: BaseException) -> str:
    """The service's word for an error, "" where it said nothing."""
    return str(_answer(error).get("Error", {}).get("Code", ""))


def passing(error: BaseException) -> bool:
    """Whether an error passes by itself: no connection, no answer in time, or an answer that says so."""
    from botocore.exceptions import ConnectionError as NoConnection
    from botocore.exceptions import HTTPClientError, IncompleteReadError, ResponseStreamingError

    status, broken = _status(error), NoConnection | HTTPClientError | IncompleteReadError | ResponseStreamingError
    busy = status in (_CONFLICT, _TOO_MANY) or (status >= 500 and status != _NOT_IMPLEMENTED)
    return busy or isinstance(_cause(error), broken)


def advice(error: BaseException, bucket: str) -> str:
    """What to do about an error that a request to the bucket ended with."""
    from botocore.exceptions import NoCredentialsError, PartialCredentialsError

    said = code(error)
    if isinstance(_cause(error), NoCredentialsError | PartialCredentialsError):
        return "give AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile or a role"
    if said in _DENIED:
        return "check the credentials, and that they may list, read, write and delete there"
    if said == "RequestTimeTooSkewed":
        return "set this machine's clock"
    if said in _ELSEWHERE:
        return f"set AWS_DEFAULT_REGION to the region of the bucket {bucket}"
    if said == "NoSuchBucket":
        return no_bucket(bucket)
    if said in MISSING:
        return "it was removed: run again"
    if _status(error) == _NOT_IMPLEMENTED:
        return "the service lacks conditional writes (If-None-Match and If-Match), on which commits rest: use another"
    return "check the service and its endpoint (AWS_ENDPOINT_URL_S3), then run again: finished parts are kept"


def no_bucket(bucket: str) -> str:
    """What to do about a bucket that is not there."""
    return f"make the bucket {bucket}, or name another"


def _cause(error: BaseException) -> BaseException:
    """What happened: a failed upload wraps it."""
    from boto3.exceptions import S3UploadFailedError

    return error.__context__ if isinstance(error, S3UploadFailedError) and error.__context__ else error


def _answer(error: BaseException) -> dict[str, Any]:
    return getattr(_cause(error), "response", {})


def _status(error: BaseException) -> int:
    return _answer(error).get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
