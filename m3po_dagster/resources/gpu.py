"""What a step is given where it runs: the one place that turns a GPU resource definition into Dagster's words.

Op tags for Ray (`dagster-ray/config`) and for Kubernetes (`dagster-k8s/config`), the concurrency pool that bounds how
many steps load a model at once, how often a lost one is started again, and the executor that reads all this.
"""

import os
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import dagster as dg

from m3po_dagster.deployment import (
    VARIABLE,
    Deployment,
    DeploymentError,
    GpuResource,
    Kind,
    KubernetesSettings,
    deployment_file,
)
from m3po_dagster.graph import Stage
from m3po_dagster.inspector.links import BASE_VARIABLE

MODEL_POOL = "model"
"""The concurrency pool of the steps that load a model: how many run at once is Dagster's own setting."""
KIND_OF: dict[str, Kind] = {
    "candidates": "sampling",
    "mas_table": "scoring",
    "logprob_table": "log_probs",
    "lora_adapter": "training",
    "benchmark_scores": "benchmarks",
}
RAY_TAG, KUBERNETES_TAG = "dagster-ray/config", "dagster-k8s/config"
SECONDS_BEFORE_RETRY = 10
GIB = 2**30
A_LITTLE = 0.001
"""Of a resource that marks a node and is not used up."""

# As NVIDIA's GPU feature discovery labels nodes (nvidia.com/gpu.product).
PRODUCTS: dict[str, tuple[str, ...]] = {
    "A100-40G": ("NVIDIA-A100-SXM4-40GB", "NVIDIA-A100-PCIE-40GB"),
    "A100-80G": ("NVIDIA-A100-SXM4-80GB", "NVIDIA-A100-80GB-PCIe"),
    "H100": ("NVIDIA-H100-80GB-HBM3", "NVIDIA-H100-PCIe", "NVIDIA-H100-NVL"),
}
PRODUCTS["A100"] = PRODUCTS["A100-40G"] + PRODUCTS["A100-80G"]


def kind_of(stage: Stage) -> Kind:
    """The kind of step that makes an asset."""
    return KIND_OF.get(stage.asset, "light")


def pool_of(kind: Kind) -> str | None:
    """The concurrency pool of a kind of step; None for one that loads no model."""
    return None if kind == "light" else MODEL_POOL


def op_tags(deployment: Deployment, kind: Kind) -> dict[str, Any]:
    """The op tags that the deployment's executor reads; none in process."""
    given = deployment.steps.of(kind)
    match deployment.executor:
        case "ray":
            return {RAY_TAG: ray_config(given)}
        case "k8s":
            return {KUBERNETES_TAG: kubernetes_config(given, deployment.kubernetes)}
    return {}


def retry_policy(deployment: Deployment) -> dg.RetryPolicy | None:
    """How often a step is started again whose node was lost; what a user can mend is never tried again."""
    if not deployment.clustered or not deployment.retries:
        return None
    return dg.RetryPolicy(max_retries=deployment.retries, delay=SECONDS_BEFORE_RETRY)


def ray_config(given: GpuResource) -> dict[str, Any]:
    """What a Ray job asks for. Memory in bytes; a kind of GPU and of capacity are resources that nodes advertise.

    Ray gives nodes `accelerator_type:A100` and `:H100` itself; the two sizes of an A100 and spot or on_demand are given
    by whoever starts the node (docs/cluster.md).
    """
    marks = [f"accelerator_type:{given.accelerator}"] if given.accelerator != "any" else []
    marks += [given.capacity] if given.capacity != "any" else []
    config: dict[str, Any] = {
        "num_cpus": given.cpus,
        "num_gpus": given.count,
        "resources": {**dict.fromkeys(marks, A_LITTLE), **given.resources},
        "runtime_env": {"env_vars": dict(given.env)},
    }
    if given.memory_gib is not None:
        config["memory"] = int(given.memory_gib * GIB)
    if given.image is not None:
        config["runtime_env"]["image_uri"] = given.image
    return config


def kubernetes_config(given: GpuResource, settings: KubernetesSettings) -> dict[str, Any]:
    """What a Kubernetes job's container asks for and on which nodes its pod may run."""
    requests: dict[str, str] = {"cpu": f"{given.cpus:g}"}
    limits: dict[str, str] = {}
    if given.memory_gib is not None:
        requests["memory"] = limits["memory"] = f"{int(given.memory_gib * 1024)}Mi"
    if given.count:
        limits["nvidia.com/gpu"] = str(given.count)
    container: dict[str, Any] = {
        "resources": {"requests": requests, "limits": limits},
        "env": [{"name": name, "value": value} for name, value in given.env.items()],
    }
    if given.image is not None:
        container["image"] = given.image
    places = [settings.gpu] if given.count else []
    places += [getattr(settings, given.capacity)] if given.capacity != "any" else []
    pod: dict[str, Any] = {
        "node_selector": {name: value for place in places for name, value in place.node_selector.items()},
        "tolerations": [dict(toleration) for place in places for toleration in place.tolerations],
    }
    if given.accelerator != "any":
        wanted = {"key": "nvidia.com/gpu.product", "operator": "In", "values": list(PRODUCTS[given.accelerator])}
        terms = {"node_selector_terms": [{"match_expressions": [wanted]}]}
        pod["affinity"] = {"node_affinity": {"required_during_scheduling_ignored_during_execution": terms}}
    return {"container_config": container, "pod_spec_config": pod}


def executor_of(deployment: Deployment, study_file: Path, store: str) -> dg.ExecutorDefinition:
    """The executor of every run over a study and a store.

    Raises DeploymentError, saying what to install, for an extra that is not there.
    """
    told = [f"{name}={value}" for name, value in passed_on(study_file, store).items()]
    match deployment.executor:
        case "ray":
            dagster_ray = _extra("dagster_ray", "ray")
            ray: dict[str, Any] = {"env_vars": told}
            if deployment.ray.address is not None:
                ray["address"] = deployment.ray.address
            return dagster_ray.ray_executor.configured({"ray": ray, "retries": {"enabled": {}}}, name="ray")
        case "k8s":
            dagster_k8s = _extra("dagster_k8s", "k8s")
            config: dict[str, Any] = {
                "env_vars": told,
                "env_secrets": list(deployment.kubernetes.env_secrets),
                "retries": {"enabled": {}},
            }
            if deployment.kubernetes.namespace is not None:
                config["job_namespace"] = deployment.kubernetes.namespace
            return dagster_k8s.k8s_job_executor.configured(config, name="k8s")
    # One process a run: a model loaded by one step is warm for the next.
    return dg.in_process_executor


def passed_on(study_file: Path, store: str) -> Mapping[str, str]:
    """What a step must know that runs elsewhere: which study, which store, which deployment. No secrets."""
    passed = {"M3PO_STUDY": str(study_file), "M3PO_STORE": store}
    if (path := deployment_file()) is not None:
        passed[VARIABLE] = str(path)
    if url := os.environ.get(BASE_VARIABLE):
        passed[BASE_VARIABLE] = url
    return passed


def _extra(module: str, extra: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        needed = f"pip install -c constraints.txt -e '.[{extra}]'"
        raise DeploymentError(f"executor: {extra} needs packages that are not here ({error}): {needed}") from error
