"""From GPU resource definitions to the words of Ray and Kubernetes: read back by the libraries that act on them."""

import subprocess
import sys

import dagster as dg
import pytest

from m3po_dagster.deployment import VARIABLE, Deployment, GpuResource, Kind, KubernetesSettings, Placement, Steps
from m3po_dagster.graph import STAGES
from m3po_dagster.resources import gpu

A100 = GpuResource(accelerator="A100-80G", count=2, memory_gib=1.5, cpus=4, capacity="spot", env={"HF_HOME": "/models"})


def test_a_stage_has_a_kind_of_its_own_where_it_loads_a_model():
    assert {name for name, stage in STAGES.items() if stage.loads_model} == set(gpu.KIND_OF)
    assert sorted(gpu.KIND_OF.values()) == sorted(set(Kind.__args__) - {"light"})
    assert gpu.kind_of(STAGES["preference_pairs"]) == "light" and gpu.pool_of("light") is None


def test_in_process_needs_no_tags_and_is_not_retried():
    assert gpu.op_tags(Deployment(), "sampling") == {} and gpu.retry_policy(Deployment()) is None
    assert gpu.pool_of("sampling") == "model"


def test_ray_reads_the_tag():
    configs = pytest.importorskip("dagster_ray.configs")

    tags = gpu.op_tags(Deployment(executor="ray", steps=Steps(default=A100)), "sampling")

    @dg.op(tags=tags)
    def step() -> None: ...

    found = configs.RayExecutionConfig.from_tags(step.tags)
    assert (found.num_gpus, found.num_cpus, found.memory) == (2, 4, 1536 * 2**20)
    # Marks that one node holds for many steps.
    assert found.resources == {"accelerator_type:A100-80G": 0.001, "spot": 0.001}
    assert found.runtime_env == {"env_vars": {"HF_HOME": "/models"}}


def test_ray_takes_the_image_and_custom_resources():
    config = gpu.ray_config(GpuResource(count=0, image="registry/m3po:1", resources={"slot": 1}))
    assert config["resources"] == {"slot": 1} and config["runtime_env"]["image_uri"] == "registry/m3po:1"
    assert config["num_gpus"] == 0 and "memory" not in config


def test_any_accelerator_and_any_capacity_mark_nothing():
    assert gpu.ray_config(GpuResource())["resources"] == {}
    pod = gpu.kubernetes_config(GpuResource(count=0), KubernetesSettings())["pod_spec_config"]
    assert pod == {"node_selector": {}, "tolerations": []}


def kubernetes_job(given: GpuResource, settings: KubernetesSettings, image: str = "default:1") -> dict:
    """The pod that dagster-k8s makes of a step with the tag, as Kubernetes gets it."""
    dagster_k8s = pytest.importorskip("dagster_k8s.job")

    @dg.op(tags=gpu.op_tags(Deployment(executor="k8s", steps=Steps(default=given), kubernetes=settings), "sampling"))
    def step() -> None: ...

    user = dagster_k8s.get_user_defined_k8s_config(step.tags)
    config = dagster_k8s.DagsterK8sJobConfig(job_image=image, dagster_home="/dagster")
    job = dagster_k8s.construct_dagster_k8s_job(config, ["dagster"], "step", user_defined_k8s_config=user)
    return job.to_dict()["spec"]["template"]["spec"]


def test_kubernetes_gets_limits_image_env_nodes_and_tolerations():
    pod = kubernetes_job(A100.model_copy(update={"image": "m3po-gpu:1"}), KubernetesSettings())
    (container,) = pod["containers"]
    assert container["image"] == "m3po-gpu:1"
    assert container["resources"]["limits"] == {"nvidia.com/gpu": "2", "memory": "1536Mi"}
    assert container["resources"]["requests"] == {"cpu": "4", "memory": "1536Mi"}
    assert ("HF_HOME", "/models") in [(one["name"], one["value"]) for one in container["env"]]
    assert pod["node_selector"] == {"karpenter.sh/capacity-type": "spot"}
    assert [one["key"] for one in pod["tolerations"]] == ["nvidia.com/gpu"]
    affinity = pod["affinity"]["node_affinity"]["required_during_scheduling_ignored_during_execution"]
    (wanted,) = affinity["node_selector_terms"][0]["match_expressions"]
    assert (wanted["key"], wanted["operator"]) == ("nvidia.com/gpu.product", "In")
    assert wanted["values"] == list(gpu.PRODUCTS["A100-80G"])


def test_kubernetes_nodes_are_the_clouds_to_name():
    spot = Placement(
        node_selector={"cloud.google.com/gke-spot": "true"},
        tolerations=({"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true"},),
    )
    pod = kubernetes_job(A100, KubernetesSettings(spot=spot))
    assert pod["node_selector"] == {"cloud.google.com/gke-spot": "true"}
    assert [one["key"] for one in pod["tolerations"]] == ["nvidia.com/gpu", "cloud.google.com/gke-spot"]


def test_a_step_without_gpus_asks_for_none():
    pod = kubernetes_job(GpuResource(count=0), KubernetesSettings())
    assert not pod["containers"][0]["resources"]["limits"] and not pod["tolerations"] and pod["affinity"] is None
    assert pod["containers"][0]["image"] == "default:1"


def test_both_sizes_are_an_a100():
    assert set(gpu.PRODUCTS["A100"]) == {*gpu.PRODUCTS["A100-40G"], *gpu.PRODUCTS["A100-80G"]}


@pytest.mark.parametrize("executor", ["ray", "k8s"])
def test_the_code_location_loads_for_a_cluster_and_gives_every_step_its_tag(tmp_path, executor, monkeypatch):
    pytest.importorskip({"ray": "dagster_ray", "k8s": "dagster_k8s"}[executor])
    (tmp_path / "deployment.yaml").write_text(f"executor: {executor}\nsteps: {{training: {{count: 8}}}}\n")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "deployment.yaml"))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", LOADED], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [executor, "True", "[]"]


LOADED = """
import sys
from m3po_dagster.definitions import defs
from m3po_dagster.resources import gpu
from m3po_dagster.graph import STAGES
tag = {"ray": gpu.RAY_TAG, "k8s": gpu.KUBERNETES_TAG}
everything = defs.resolve_job_def("everything")
executor = everything.executor_def.name
nodes = {node.name: node.definition for node in everything.graph.nodes[0].definition.nodes}
ops = [defs.resolve_assets_def(name).op for name in STAGES] + list(nodes.values())
for job in ("score_shard", "reselect_recipe", "train_and_benchmark_recipe"):
    ops += [node.definition for node in defs.resolve_job_def(job).nodes]
assert "8" in nodes["train"].tags[tag[executor]] and "8" not in nodes["benchmark"].tags[tag[executor]]
print(executor, all(tag[executor] in op.tags and op.retry_policy.max_retries == 3 for op in ops))
print([name for name in ("torch", "transformers", "ray") if name in sys.modules])
"""


def test_a_missing_extra_is_said_with_what_to_install(tmp_path, monkeypatch):
    from m3po_dagster.deployment import DeploymentError

    monkeypatch.setitem(sys.modules, "dagster_ray", None)
    with pytest.raises(DeploymentError, match=r"pip install -c constraints\.txt -e '\.\[ray\]'"):
        gpu.executor_of(Deployment(executor="ray"), tmp_path / "study.yaml", "/store")


def test_steps_elsewhere_are_told_study_store_and_deployment_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "deployment.yaml"))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1234")
    monkeypatch.delenv("M3PO_INSPECTOR_URL", raising=False)
    assert gpu.passed_on(tmp_path / "study.yaml", "s3://m3po") == {
        "M3PO_STUDY": str(tmp_path / "study.yaml"),
        "M3PO_STORE": "s3://m3po",
        VARIABLE: str(tmp_path / "deployment.yaml"),
    }
