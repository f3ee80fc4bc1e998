"""A real S3 service on loopback for tests: SeaweedFS, which keeps conditional writes as Amazon does."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import boto3
import pytest

KEY, SECRET = "testkey", "testsecret"
_READY_SECONDS = 60


class S3Server:
    """A service over one folder, which can be killed and started again at the same address with its objects."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "data").mkdir(parents=True)
        account = {"accessKey": KEY, "secretKey": SECRET}
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        (folder / "s3.json").write_text(
            json.dumps({"identities": [{"name": "tests", "credentials": [account], "actions": actions}]})
        )
        self._ports = _free_ports(8)
        self.url = f"http://127.0.0.1:{self._ports[0]}"
        self._process: subprocess.Popen | None = None

    @property
    def environment(self) -> dict[str, str]:
        """What a user of Amazon's would have in the environment, and the endpoint."""
        return {
            "AWS_ENDPOINT_URL_S3": self.url,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def start(self) -> None:
        """Start the service; it answers when this returns."""
        s3, s3_grpc, master, volume, filer, *grpc = self._ports
        command = [str(Path(sys.executable).parent / "weed"), "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
        command += [f"-dir={self.folder / 'data'}", "-master.volumeSizeLimitMB=64", "-volume.max=64", "-filer"]
        command += [f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}"]
        command += [f"-{name}.port.grpc={port}" for name, port in zip(("master", "volume", "filer"), grpc, strict=True)]
        command += ["-s3", f"-s3.port={s3}", f"-s3.port.grpc={s3_grpc}", f"-s3.config={self.folder / 's3.json'}"]
        command += ["-s3.port.iceberg=0", "-s3.port.lance=0"]  # else both take fixed ports
        command += ["-master.telemetry=false"]
        with open(self.folder / "log", "ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder)
        deadline = time.monotonic() + _READY_SECONDS
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise RuntimeError(f"weed ended: {(self.folder / 'log').read_text()[-2000:]}")
            try:
                probe = self.client()
                probe.list_buckets()
                probe.put_object(Bucket=self.bucket("ready"), Key="ready", Body=b"ready")
                return
            except Exception:  # noqa: BLE001 - whatever it says while it starts
                time.sleep(0.2)
        raise RuntimeError(f"weed is not ready after {_READY_SECONDS} s: {(self.folder / 'log').read_text()[-2000:]}")

    def kill(self) -> None:
        """End the service as a lost machine would."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def client(self):
        """boto3's client, with few retries: tests look, they don't wait."""
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
            region_name="us-east-1",
            config=Config(retries={"total_max_attempts": 1}, connect_timeout=5, read_timeout=20),
        )

    def bucket(self, name: str) -> str:
        """A bucket that is there when this returns."""
        client = self.client()
        if name not in [found["Name"] for found in client.list_buckets()["Buckets"]]:
            client.create_bucket(Bucket=name)
        return name


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@contextmanager
def s3_server(folder: Path):
    """A running service over `folder`, with the environment that leads boto3 and pyarrow to it."""
    server = S3Server(folder)
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in server.environment.items():
            patch.setenv(name, value)
        try:
            yield server
        finally:
            server.kill()
            shutil.rmtree(folder, ignore_errors=True)
