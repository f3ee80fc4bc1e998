"""The deployment file: absent, right, wrong; what a kind of step takes from the default."""

import pytest

from m3po_dagster.deployment import (
    VARIABLE,
    Deployment,
    DeploymentError,
    GpuResource,
    Placement,
    RaySettings,
    Steps,
    current_deployment,
)


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Writes the deployment file that the environment names."""

    def write(text: str) -> None:
        (tmp_path / "deployment.yaml").write_text(text)
        monkeypatch.setenv(VARIABLE, str(tmp_path / "deployment.yaml"))

    return write


def test_without_a_file_everything_runs_in_process(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert current_deployment() == Deployment() and not current_deployment().clustered


def test_a_kind_of_step_says_only_what_differs_from_the_default(written):
    written(
        "executor: ray\n"
        "steps:\n"
        "  default: {accelerator: A100-80G, memory_gib: 64, cpus: 8, capacity: spot, env: {HF_HOME: /models}}\n"
        "  training: {count: 8, capacity: on_demand}\n"
        "  scoring: {count: 0}\n"
        "  light: {memory_gib: 4}\n"
    )
    steps = current_deployment().steps
    shared = {"memory_gib": 64, "cpus": 8, "env": {"HF_HOME": "/models"}}
    assert steps.of("sampling") == GpuResource(accelerator="A100-80G", capacity="spot", **shared)
    assert steps.of("training") == GpuResource(accelerator="A100-80G", count=8, capacity="on_demand", **shared)
    assert steps.of("scoring") == GpuResource(count=0, capacity="spot", **shared)
    assert steps.of("light") == GpuResource(count=0, memory_gib=4, env={"HF_HOME": "/models"})


def test_an_edited_file_counts_at_once(written, tmp_path):
    written("executor: ray\n")
    assert current_deployment().executor == "ray"
    written("executor: k8s\ngroups: 7\n")
    assert (current_deployment().executor, current_deployment().groups) == ("k8s", 7)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("executor: slurm", "executor: Input should be 'in_process', 'ray' or 'k8s', found 'slurm'"),
        ("excutor: ray", "excutor: unknown key. Did you mean 'executor'?"),
        ("steps: {default: {gpus: 2}}", "steps.default.gpus: unknown key"),
        ("steps: {training: {accelerator: V100}}", "steps.training.accelerator"),
        ("steps: {scoring: {accelerator: A100, count: 0}}", "a step without GPUs needs none of a kind"),
        ("steps: {default: {env: {OPENAI_API_KEY: sk-1234}}}", "OPENAI_API_KEY looks like a secret"),
        ("steps: {default: {env: {M3PO_STORE: /elsewhere}}}", "M3PO_STORE is set by the deployment itself"),
        ("steps: {default: {env: {'A=B': c}}}", "steps.default.env"),
        ("steps: {default: {env: {AWS_SESSION_TOKEN: sk-1234}}}", "AWS_SESSION_TOKEN looks like a secret"),
        ("steps: {default: {env: {api_key_2: sk-1234}}}", "api_key_2 looks like a secret"),
        ("ray: {address: '127.0.0.1:8265'}", "ray.address: write the URL of the job server"),
        ("ray: {address: 'ray://10.0.0.5:10001'}", "http://HOST:PORT"),
        ("ray: {address: 'http://10.0.0.5'}", "http://HOST:PORT"),
        ("ray: {address: auto}", "http://HOST:PORT"),
        ("{executor: k8s, steps: {scoring: {resources: {slot: 1}}}}", "steps.scoring.resources: slot is a resource of"),
        ("groups: 0", "groups: Input should be greater than or equal to 1"),
        ("- executor", "write a mapping"),
        ("executor: [", "not valid YAML"),
    ],
)
def test_a_wrong_file_is_refused_with_file_key_and_reason(written, tmp_path, text, said):
    written(text)
    with pytest.raises(DeploymentError) as refused:
        current_deployment()
    assert str(tmp_path / "deployment.yaml") in str(refused.value) and said in str(refused.value)
    assert "sk-1234" not in str(refused.value)


@pytest.mark.parametrize(
    "name",
    ["TOKENIZERS_PARALLELISM", "AWS_WEB_IDENTITY_TOKEN_FILE", "VLLM_MAX_NUM_BATCHED_TOKENS", "HF_TOKEN_PATH"],
)
def test_variables_that_hold_no_secret_pass(name):
    assert GpuResource(env={name: "1"}).env == {name: "1"}


@pytest.mark.parametrize("address", ["http://10.0.0.5:8265", "https://ray.example.org:443/", "http://[::1]:8265"])
def test_a_job_servers_url_passes(address):
    assert RaySettings(address=address).address == address


def test_resources_of_nodes_are_for_ray():
    steps = Steps(scoring=GpuResource(resources={"slot": 1}))
    assert Deployment(executor="ray", steps=steps).steps.of("scoring").resources == {"slot": 1}


def test_a_file_that_is_not_there_is_said_with_the_variable(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "none.yaml"))
    with pytest.raises(DeploymentError, match=f"none.yaml: can't be read .*{VARIABLE}"):
        current_deployment()


@pytest.mark.parametrize("section", [Deployment, Steps, GpuResource, RaySettings, Placement])
def test_every_field_is_described(section):
    assert all(field.description for field in section.model_fields.values())
