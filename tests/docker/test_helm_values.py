"""helm-values.yaml: what the chart would make of it, as far as Dagster and Kubernetes themselves can tell."""

import re
from importlib.metadata import version
from pathlib import Path

import dagster as dg
import pytest
import yaml
from dagster._config import validate_config
from dagster._core.instance.config import dagster_instance_config_schema
from dagster._core.run_coordinator import QueuedRunCoordinator
from dagster_aws.s3 import S3ComputeLogManager
from dagster_k8s import K8sRunLauncher
from dagster_k8s.container_context import K8sContainerContext
from dagster_k8s.job import UserDefinedDagsterK8sConfig

from m3po_dagster.deployment import Deployment, GpuResource, Steps
from m3po_dagster.resources import gpu
from tests.docker import dockerfile

ROOT = Path(__file__).parents[2]
FILE = ROOT / "docker" / "helm-values.yaml"
# The chart's own names (its values.schema.json); it refuses unknown ones in the sections that are closed.
TOP = {"global", "serviceAccount", "dagsterWebserver", "dagsterDaemon", "dagster-user-deployments", "runLauncher"}
TOP |= {"computeLogManager", "generatePostgresqlPasswordSecret", "postgresql", "retention", "telemetry"}
TOP |= {"additionalInstanceConfig"}
POD = {"image", "env", "envConfigMaps", "envSecrets", "podSecurityContext", "securityContext", "resources"}
POD |= {"nodeSelector", "tolerations", "annotations", "labels", "volumes", "volumeMounts"}
WEBSERVER = POD | {"replicaCount", "service", "nameOverride", "pathPrefix", "enableReadOnly", "logLevel"}
DAEMON = POD | {
    "enabled",
    "heartbeatTolerance",
    "runCoordinator",
    "runMonitoring",
    "runRetries",
    "sensors",
    "schedules",
}
CODE = POD | {"name", "port", "codeServerArgs", "includeConfigInLaunchedRuns", "livenessProbe", "readinessProbe"}
LAUNCHER = {
    "imagePullPolicy",
    "loadInclusterConfig",
    "envConfigMaps",
    "envSecrets",
    "envVars",
    "volumeMounts",
    "volumes",
}
LAUNCHER |= {"failPodOnRunFailure", "resources", "securityContext", "runK8sConfig"}


@pytest.fixture(scope="module")
def values() -> dict:
    return yaml.safe_load(FILE.read_text())


@pytest.fixture(scope="module")
def pods(values) -> dict[str, dict]:
    (code,) = values["dagster-user-deployments"]["deployments"]
    return {"webserver": values["dagsterWebserver"], "daemon": values["dagsterDaemon"], "code": code}


def snake(settings: object) -> object:
    """As the chart writes a section into dagster.yaml: names in the other style."""
    if isinstance(settings, dict):
        return {re.sub("(?<=[a-z0-9])([A-Z])", r"_\1", key).lower(): snake(value) for key, value in settings.items()}
    return settings


def test_only_names_that_the_chart_knows(values, pods):
    assert set(values) <= TOP
    for name, known in (("webserver", WEBSERVER), ("daemon", DAEMON), ("code", CODE)):
        assert set(pods[name]) <= known, name
    assert set(values["runLauncher"]["config"]["k8sRunLauncher"]) <= LAUNCHER


def test_the_chart_of_the_pinned_dagster_is_named(values):
    assert set(re.findall(r"1\.\d+\.\d+", FILE.read_text())) == {version("dagster")}


def test_dagster_takes_the_settings_that_the_chart_would_write(values):
    daemon = values["dagsterDaemon"]
    written = {
        "run_monitoring": snake(daemon["runMonitoring"]),
        "sensors": snake(daemon["sensors"]),
        "schedules": snake(daemon["schedules"]),
        "telemetry": values["telemetry"],
        "retention": snake({key: value for key, value in values["retention"].items() if key != "enabled"}),
        **values["additionalInstanceConfig"],
    }
    assert not daemon["runRetries"]["enabled"], "it stands in additionalInstanceConfig, and can't twice"
    assert not daemon["runCoordinator"]["enabled"], "with a limit of its own Dagster refuses `concurrency`"
    found = validate_config(dagster_instance_config_schema(), written)
    assert found.success, found.errors
    with dg.DagsterInstance.local_temp(overrides=written) as instance:
        assert isinstance(instance.run_coordinator, QueuedRunCoordinator)
        assert instance.get_concurrency_config().run_queue_config.max_concurrent_runs == 16
        assert instance.get_concurrency_config().pool_config.default_pool_limit == 8
        assert instance.run_retries_enabled and instance.run_retries_max_retries == 2
        assert instance.run_retries_retry_on_asset_or_op_failure is False


def test_the_log_managers_own_settings_are_meant(values):
    config = snake(values["computeLogManager"]["config"]["s3ComputeLogManager"])
    found = validate_config(S3ComputeLogManager.config_type(), config)
    assert found.success, found.errors


def test_kubernetes_takes_what_the_pods_are_given(values, pods):
    config = snake(values["runLauncher"]["config"]["k8sRunLauncher"]["runK8sConfig"])
    UserDefinedDagsterK8sConfig.from_dict(config)
    for told in pods.values():
        container = {"securityContext": told["securityContext"], "resources": told["resources"]}
        pod = {"securityContext": told["podSecurityContext"], "volumes": told.get("volumes", [])}
        container["volumeMounts"] = told.get("volumeMounts", [])
        UserDefinedDagsterK8sConfig.from_dict({"container_config": container, "pod_spec_config": pod})
    with pytest.raises(Exception, match=r"(?i)unexpected|received"):
        UserDefinedDagsterK8sConfig.from_dict({"container_config": {"resource": {}}})
    assert K8sRunLauncher.__name__ == values["runLauncher"]["type"]


@pytest.mark.parametrize(("memory_gib", "memory"), [(None, None), (64, "65536Mi")])
@pytest.mark.parametrize("kind", ["sampling", "light"])
def test_a_steps_memory_is_bounded_by_the_deployment_file_alone(values, pods, kind, memory_gib, memory):
    """The layers that dagster-k8s puts on each other: run launcher, code location (as the chart passes it), step."""
    launcher = snake(values["runLauncher"]["config"]["k8sRunLauncher"]["runK8sConfig"])
    assert pods["code"]["includeConfigInLaunchedRuns"]["enabled"]
    location = {"k8s": {"resources": pods["code"]["resources"]}}
    given = GpuResource(memory_gib=memory_gib, count=0, cpus=8)
    tag = gpu.op_tags(Deployment(executor="k8s", steps=Steps(**{kind: given})), kind)["dagster-k8s/config"]
    step = (
        K8sContainerContext(run_k8s_config=UserDefinedDagsterK8sConfig.from_dict(launcher))
        .merge(K8sContainerContext.create_from_config(location))
        .merge(K8sContainerContext(run_k8s_config=UserDefinedDagsterK8sConfig.from_dict(tag)))
    )
    resources = step.run_k8s_config.container_config["resources"]
    assert resources["limits"].get("memory") == memory
    assert resources["requests"] == {"cpu": "8", "memory": memory or "2Gi"}


def test_every_pod_runs_as_the_images_user_without_rights(pods):
    user = int(dockerfile.stages(ROOT / "docker" / "Dockerfile")["dagster"].user.split(":")[0])
    for name, told in pods.items():
        assert told["podSecurityContext"]["runAsNonRoot"] and told["podSecurityContext"]["runAsUser"] == user, name
        assert told["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}, name
        assert told["image"] == pods["code"]["image"] and told["image"]["tag"] != "latest", name
    assert pods["webserver"]["service"]["type"] == "ClusterIP" and pods["webserver"]["service"]["port"] > 1024


def test_no_secret_stands_in_it_and_none_is_made_by_the_chart(values, pods):
    assert "postgresqlPassword" not in values["postgresql"]
    assert values["generatePostgresqlPasswordSecret"] is False and values["global"]["postgresqlSecretName"]
    for told in pods.values():
        assert not any(re.search("PASSWORD|SECRET|KEY|TOKEN", name) for name in told["env"])


def test_all_pods_agree_on_where_results_are(pods):
    for name in ("M3PO_BUCKET", "M3PO_STORE", "AWS_DEFAULT_REGION"):
        assert len({told["env"][name] for told in pods.values()}) == 1
    assert pods["code"]["env"]["M3PO_STORE"].startswith(f"s3://{pods['code']['env']['M3PO_BUCKET']}/")
