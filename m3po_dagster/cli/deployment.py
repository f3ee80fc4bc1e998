"""`m3po deployment`: what each kind of step gets where it runs."""

import json
from typing import TYPE_CHECKING

import typer

from m3po_dagster.cli.options import JsonOption, explained

if TYPE_CHECKING:
    from m3po_dagster.deployment import GpuResource

app = typer.Typer(no_args_is_help=True)


@app.callback()
def deployment() -> None:
    """Where steps run, and what each kind of step is given there (the file that M3PO_DEPLOYMENT names)."""


@app.command()
def show(as_json: JsonOption = False) -> None:
    """Print what each kind of step is given, as Ray or Kubernetes will be told. Exits with 2 for a wrong file."""
    from m3po_dagster.deployment import DeploymentError, current_deployment, deployment_file
    from m3po_dagster.graph import STAGES
    from m3po_dagster.resources import gpu

    with explained(DeploymentError):
        found = current_deployment()
    kinds: dict[str, list[str]] = {}
    for stage in STAGES.values():
        kinds.setdefault(gpu.kind_of(stage), []).append(stage.asset)
    steps = {
        kind: {
            "assets": assets,
            "given": found.steps.of(kind).model_dump(mode="json"),
            # Elsewhere Ray or Kubernetes bounds the steps of a run.
            "pool": None if found.clustered else gpu.pool_of(kind),
            "tags": gpu.op_tags(found, kind),
        }
        for kind, assets in kinds.items()
    }
    said = {"file": str(deployment_file() or ""), "executor": found.executor, "groups": found.groups}
    if as_json:
        typer.echo(json.dumps({**said, "retries": found.retries, "steps": steps}))
        return
    typer.echo(f"{said['file'] or 'no deployment file (M3PO_DEPLOYMENT)'}: executor {found.executor}")
    if found.clustered:
        typer.echo(f"groups of shards {found.groups}, a lost step is started again up to {found.retries} times")
    for kind, step in steps.items():
        typer.echo(f"\n{kind}: {' '.join(step['assets'])}")
        pool = f", pool {step['pool']}" if step["pool"] else ""
        typer.echo(f"  {_given(found.steps.of(kind)) if found.clustered else 'in the process of its run'}{pool}")
        for name, value in step["tags"].items():
            typer.echo(f"  {name}: {json.dumps(value)}")


def _given(given: "GpuResource") -> str:
    """A GPU resource definition in words."""
    gpus = f"{given.count} GPU{'' if given.count == 1 else 's'}" if given.count else "no GPU"
    words = [gpus if given.accelerator == "any" else f"{gpus} {given.accelerator}", f"{given.cpus:g} CPU"]
    words += [f"{given.memory_gib:g} GiB"] if given.memory_gib is not None else []
    words += [given.capacity.replace("_", " ")] if given.capacity != "any" else []
    words += [f"{number:g} {name}" for name, number in given.resources.items()]
    words += [f"image {given.image}"] if given.image is not None else []
    return ", ".join(words)
