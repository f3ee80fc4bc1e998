"""Each dagster.yaml is a real instance's: the one that `m3po` writes, and a cluster's over Postgres with TLS and S3.

That of the compose file is used by its services in tests/integration/test_compose_processes.py.
"""

import os
import subprocess
from pathlib import Path

import dagster as dg
import pytest
import sqlalchemy
import yaml
from dagster._core.run_coordinator import QueuedRunCoordinator
from dagster._core.scheduler.instigation import InstigatorType, TickStatus
from dagster._core.storage.local_compute_log_manager import LocalComputeLogManager
from dagster_aws.s3 import S3ComputeLogManager
from dagster_postgres import PostgresEventLogStorage

from m3po_dagster.home import ensure_home
from tests.integration.postgres import postgres
from tests.s3_server import s3_server

DOCKER = Path(__file__).parents[2] / "docker"


def test_the_local_one_queues_and_keeps_its_logs_beside_it(tmp_path, monkeypatch):
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    with dg.DagsterInstance.from_config(str(ensure_home())) as instance:
        assert isinstance(instance.run_coordinator, QueuedRunCoordinator)
        assert isinstance(instance.compute_log_manager, LocalComputeLogManager)
        assert not instance.telemetry_enabled and not instance.nux_enabled
        # A level would hold for the steps' own log too, and drop what they say of their progress.
        assert instance.managed_python_loggers == ["m3po_dagster"] and instance.python_log_level is None


def test_those_of_compose_and_cluster_differ_in_what_a_cluster_changes_alone():
    compose, cluster = (
        yaml.safe_load((DOCKER / f"dagster.{name}.yaml").read_text()) for name in ("compose", "cluster")
    )
    assert {key for key in cluster if compose[key] != cluster[key]} == {"storage", "concurrency", "run_monitoring"}
    assert set(compose) == set(cluster) and compose["python_logs"] == {"managed_python_loggers": ["m3po_dagster"]}


@pytest.fixture
def database() -> sqlalchemy.engine.URL:
    """A database whose server takes encrypted connections."""
    with postgres() as url:
        engine = sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            folder = Path(connection.exec_driver_sql("SHOW data_directory").scalar())
            made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost"]
            made += ["-keyout", str(folder / "server.key"), "-out", str(folder / "server.crt")]
            subprocess.run(made, check=True, capture_output=True)
            owner = folder.stat()
            for name in ("server.key", "server.crt"):
                os.chown(folder / name, owner.st_uid, owner.st_gid)
                (folder / name).chmod(0o600)
            connection.exec_driver_sql("ALTER SYSTEM SET ssl = on")
            connection.exec_driver_sql("SELECT pg_reload_conf()")
        engine.dispose()
        yield sqlalchemy.make_url(url)


@pytest.mark.slow
def test_a_clusters_is_kept_in_postgres_over_tls_and_its_logs_in_s3(database, tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    (home / "dagster.yaml").write_bytes((DOCKER / "dagster.cluster.yaml").read_bytes())
    given = {"HOST": database.host, "PORT": database.port, "USERNAME": database.username, "DB": database.database}
    for name, value in {**given, "PASSWORD": "unused"}.items():
        monkeypatch.setenv(f"DAGSTER_PG_{name}", str(value))
    with s3_server(tmp_path / "s3") as service:
        monkeypatch.setenv("M3PO_BUCKET", service.bucket("logs"))

        @dg.op
        def says():
            print("said by the step")

        @dg.job
        def talk():
            says()

        with dg.DagsterInstance.from_config(str(home)) as instance:
            assert isinstance(instance.event_log_storage, PostgresEventLogStorage)
            assert isinstance(instance.compute_log_manager, S3ComputeLogManager)
            assert isinstance(instance.run_coordinator, QueuedRunCoordinator)
            assert instance.get_concurrency_config().pool_config.default_pool_limit == 8
            assert instance.run_retries_max_retries == 2 and not instance.run_retries_retry_on_asset_or_op_failure
            kept = instance.get_tick_retention_settings(InstigatorType.SENSOR)
            assert (kept[TickStatus.SKIPPED], kept[TickStatus.FAILURE]) == (2, 90)
            run = talk.execute_in_process(instance=instance).run_id
            with instance.event_log_storage.index_connection() as connection:
                encrypted = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
                assert connection.execute(sqlalchemy.text(encrypted)).scalar() is True
            assert [record.dagster_run.run_id for record in instance.get_run_records()] == [run]
        found = service.client().list_objects_v2(Bucket="logs")["Contents"]
        (out,) = [each["Key"] for each in found if each["Key"].endswith(".out")]
        assert out.startswith(f"compute-logs/storage/{run}/")
        assert service.client().get_object(Bucket="logs", Key=out)["Body"].read() == b"said by the step\n"
