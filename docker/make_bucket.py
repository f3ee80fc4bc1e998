"""Makes the bucket that M3PO_STORE names where there is none. Compose starts it once the S3 service is up."""

import os
import sys
from urllib.parse import urlsplit

import boto3
from botocore.exceptions import ClientError

TAKEN = {"BucketAlreadyOwnedByYou", "BucketAlreadyExists"}


def main() -> None:
    """Raises SystemExit with a reason where the store is in no bucket; botocore's errors where the service refuses."""
    url = urlsplit(os.environ.get("M3PO_STORE", ""))
    if url.scheme != "s3" or not url.netloc:
        sys.exit("M3PO_STORE names no bucket: s3://bucket or s3://bucket/prefix")
    try:
        boto3.client("s3").create_bucket(Bucket=url.netloc)
    except ClientError as error:
        if error.response["Error"]["Code"] not in TAKEN:
            raise
    print(f"s3://{url.netloc} is there")


if __name__ == "__main__":
    main()
