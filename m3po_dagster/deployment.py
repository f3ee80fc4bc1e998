"""The deployment file: where steps run and what each kind of step is given there. M3PO_DEPLOYMENT names it.

It decides no result: nothing in it enters a fingerprint. Without the variable every step runs in the process of its
run.
"""

import os
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field, StringConstraints, ValidationError, field_validator, model_validator

from m3po_dagster.settings import Settings
from m3po_dagster.study_errors import explain

VARIABLE = "M3PO_DEPLOYMENT"

Executor = Literal["in_process", "ray", "k8s"]
Kind = Literal["sampling", "scoring", "log_probs", "training", "benchmarks", "light"]
"""Kinds of steps: one for each asset that loads a model, and `light` for all that load none."""
Accelerator = Literal["any", "A100", "A100-40G", "A100-80G", "H100"]

_SECRET = re.compile(r"(^|_)(KEY|TOKEN|SECRET|PASSWORD|CREDENTIALS?)($|_)", re.IGNORECASE)
_NAMES_A_FILE = re.compile(r"_(FILE|PATH)$", re.IGNORECASE)
_JOB_SERVER = re.compile(r"https?://([^\s/:@]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}/?")
_OWN = "M3PO_"
EnvironmentName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


class DeploymentError(ValueError):
    """A deployment file that can't be used; the message says where and why."""


class GpuResource(Settings):
    """What one step is given: GPUs of a kind, memory, processors, and the environment it runs in."""

    accelerator: Accelerator = Field("any", description="kind of GPU; any: whichever is free")
    count: int = Field(1, ge=0, description="GPUs; 0 for a step that a served model or judge does the work for")
    memory_gib: float | None = Field(None, gt=0, description="main memory in GiB; null: not reserved")
    cpus: float = Field(1, gt=0, description="processors")
    capacity: Literal["any", "spot", "on_demand"] = Field(
        "any", description="whether the machine may be taken away (spot), must not be (on_demand), or either"
    )
    resources: Mapping[str, float] = Field(
        {}, description="custom resources of Ray nodes that the step takes, by name; refused with executor: k8s"
    )
    env: Mapping[EnvironmentName, str] = Field(
        {}, description="environment variables of the step; shown in Ray's and Dagster's pages, so no keys"
    )
    image: str | None = Field(None, description="container image of the step; null: what runs on the node already")

    @field_validator("env")
    @classmethod
    def _no_secrets(cls, env: Mapping[str, str]) -> Mapping[str, str]:
        for name in env:
            if _SECRET.search(name) and not _NAMES_A_FILE.search(name):
                raise ValueError(
                    f"{name} looks like a secret, and what stands here is shown in web pages: set it in the "
                    "environment of the nodes, or in a Kubernetes secret (kubernetes.env_secrets)"
                )
            if name.startswith(_OWN):
                raise ValueError(
                    f"{name} is set by the deployment itself: every step gets the one of the code location"
                )
        return env

    @model_validator(mode="after")
    def _accelerator_of_gpus(self) -> "GpuResource":
        if self.count == 0 and self.accelerator != "any":
            raise ValueError(f"accelerator {self.accelerator} with count 0: a step without GPUs needs none of a kind")
        return self


class Steps(Settings):
    """What steps are given. A kind of step takes what it does not say itself from `default`."""

    default: GpuResource = Field(GpuResource(), description="what every step that loads a model is given")
    sampling: GpuResource = Field(GpuResource(), description="candidates: what differs from default")
    scoring: GpuResource = Field(GpuResource(), description="mas_table: what differs from default")
    log_probs: GpuResource = Field(GpuResource(), description="logprob_table: what differs from default")
    training: GpuResource = Field(GpuResource(), description="lora_adapter: what differs from default")
    benchmarks: GpuResource = Field(GpuResource(), description="benchmark_scores: what differs from default")
    light: GpuResource = Field(
        GpuResource(count=0),
        description="steps that load no model: what differs from one processor and no GPU; env and image are default's",
    )

    def of(self, kind: Kind) -> GpuResource:
        """What a kind of step is given."""
        own = getattr(self, kind)
        base = self.default
        if kind == "light":
            base = GpuResource(count=0, env=base.env, image=base.image)
        merged = base.model_copy(update={name: getattr(own, name) for name in own.model_fields_set})
        return merged if merged.count else merged.model_copy(update={"accelerator": "any"})


class RaySettings(Settings):
    """The Ray cluster that steps run on as jobs."""

    address: str | None = Field(
        None, description="URL of the cluster's job server, http://HEAD:8265; null: RAY_ADDRESS, else this machine's"
    )

    @field_validator("address")
    @classmethod
    def _url_with_port(cls, address: str | None) -> str | None:
        # Ray takes anything else for the address of a cluster to join, and waits for that a minute.
        if address is not None and not _JOB_SERVER.fullmatch(address):
            raise ValueError("write the URL of the job server with its port, http://HOST:PORT or https://HOST:PORT")
        return address


class Placement(Settings):
    """Which Kubernetes nodes a step may run on."""

    node_selector: Mapping[str, str] = Field({}, description="labels that a node must have")
    tolerations: tuple[Mapping[str, str | int], ...] = Field((), description="taints of nodes that are accepted")


class KubernetesSettings(Settings):
    """Steps as Kubernetes jobs."""

    namespace: str | None = Field(None, description="namespace of the jobs; null: the run's own")
    env_secrets: tuple[str, ...] = Field((), description="Kubernetes secrets whose entries steps get as variables")
    gpu: Placement = Field(
        Placement(tolerations=({"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},)),
        description="nodes for steps with GPUs",
    )
    spot: Placement = Field(
        Placement(node_selector={"karpenter.sh/capacity-type": "spot"}), description="nodes for capacity: spot"
    )
    on_demand: Placement = Field(
        Placement(node_selector={"karpenter.sh/capacity-type": "on-demand"}),
        description="nodes for capacity: on_demand",
    )


class Deployment(Settings):
    """Where a study's steps run."""

    executor: Executor = Field(
        "in_process", description="in_process: in the process of their run; ray: as Ray jobs; k8s: as Kubernetes jobs"
    )
    steps: Steps = Field(Steps(), description="what each kind of step is given; not read by in_process")
    groups: int = Field(
        4,
        ge=1,
        description="groups the shards are cut into by the job `everything` and by `m3po run`; a group is one job on "
        "one node for each kind of step and loads the model once; not read by in_process",
    )
    retries: int = Field(
        3, ge=0, description="how often a step is started again when its node is lost; not read by in_process"
    )
    ray: RaySettings = Field(RaySettings(), description="the Ray cluster, for executor: ray")
    kubernetes: KubernetesSettings = Field(KubernetesSettings(), description="for executor: k8s")

    @model_validator(mode="after")
    def _resources_of_ray(self) -> "Deployment":
        if self.executor == "k8s":
            for kind in Steps.model_fields:
                if named := list(getattr(self.steps, kind).resources):
                    raise ValueError(
                        f"steps.{kind}.resources: {named[0]} is a resource of Ray's nodes, and executor: k8s has none: "
                        "take it out, and choose nodes by kubernetes.gpu, kubernetes.spot or kubernetes.on_demand"
                    )
        return self

    @property
    def clustered(self) -> bool:
        """Whether steps leave the process of their run."""
        return self.executor != "in_process"


def deployment_file() -> Path | None:
    """The deployment file chosen by M3PO_DEPLOYMENT, absolute; None without."""
    named = os.environ.get(VARIABLE)
    return Path(named).absolute() if named else None


def current_deployment() -> Deployment:
    """The deployment that M3PO_DEPLOYMENT names, or everything in process. Raises DeploymentError."""
    path = deployment_file()
    if path is None:
        return Deployment()
    try:
        return _read(path, path.stat().st_mtime_ns)
    except OSError as error:
        raise DeploymentError(f"{path}: can't be read ({error.strerror}); {VARIABLE} names it") from None


@lru_cache(maxsize=8)
def _read(path: Path, changed: int) -> Deployment:
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DeploymentError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(raw, dict):
        raise DeploymentError(f"{path}: write a mapping, `executor: ray` for one")
    try:
        return Deployment.model_validate(raw)
    except ValidationError as error:
        raise DeploymentError(explain(error, Deployment, path)) from None
