"""`m3po doctor`: checks of what a study leans on, before much is spent on it, and of what it made."""

import json
from typing import Annotated, Any

import typer

from m3po_dagster.cli import doctor_installation, doctor_store
from m3po_dagster.cli.options import JsonOption, StudyOption, explained, fail
from m3po_dagster.study import DEFAULT_STUDY

app = typer.Typer(no_args_is_help=True)


@app.callback()
def doctor() -> None:
    """Checks of what a study leans on, and of what it made."""


app.command("store")(doctor_store.check)
app.command("installation")(doctor_installation.check)


@app.command()
def parity(
    study: StudyOption = DEFAULT_STUDY,
    base_url: Annotated[str | None, typer.Option(help="Ask this server in place of the study's.")] = None,
    model: Annotated[str | None, typer.Option(help="Name of the model at the server.")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Compare the model in this process, in this precision, in place of a server.")
    ] = None,
    prompts: Annotated[int, typer.Option(min=1, max=1000, help="Prompts of the dataset to ask.")] = 8,
    samples: Annotated[int, typer.Option(min=1, max=64, help="Samples a prompt.")] = 4,
    tolerance: Annotated[
        float, typer.Option(min=0, help="Mean difference allowed, nats a token. delta of the selection is 0.1.")
    ] = 0.05,
    as_json: JsonOption = False,
) -> None:
    """Compare an engine's log-probs, greedy answers and prompts with those of the study's model loaded here.

    Exits with 1 when they differ by more than --tolerance, look scaled, lack the end of sequence, or can't be compared.
    """
    from m3po_dagster.datasets.record import DatasetError
    from m3po_dagster.study import load_study
    from m3po_dagster.study_errors import StudyError

    with explained(StudyError):
        loaded = load_study(study)
    from m3po_dagster.method.endpoint import EndpointError
    from m3po_dagster.method.generation.parity import engine_to_check, verdict
    from m3po_dagster.method.generation.parity import parity as compare
    from m3po_dagster.study_prompts import first_prompts

    with explained(EndpointError, OSError, ValueError):
        other = engine_to_check(loaded.generator, loaded.model, base_url, model, dtype)
    with explained(DatasetError, EndpointError, OSError, ValueError, status=1):
        from m3po_dagster.method.generation.model import load_model

        settings = loaded.generation.model_copy(update={"n": samples})
        asked = first_prompts(loaded, prompts)
        found = compare(other, load_model(loaded.model), asked, settings, loaded.answers.max_new_tokens)
    problems = verdict(found, tolerance)
    typer.echo(json.dumps({**found, "tolerance": tolerance, "problems": problems}) if as_json else _text(found))
    if problems:
        fail("; ".join(problems), status=1)


def _text(found: dict[str, Any]) -> str:
    differences, raw, greedy = found["differences"], found["raw"], found["greedy"]
    elsewhere = raw["elsewhere"]
    lines = [
        f"{found['engine numerics']} against {found['local numerics']}",
        f"  {found['samples']} samples of {found['prompts']} prompts, {differences['tokens']} tokens",
    ]
    if differences["tokens"]:
        shown = {name: differences[name] for name in ("mean", "median", "p95", "max", "bias", "answer mean")}
        lines.append("  nats a token: " + ", ".join(f"{name} {value:.5f}" for name, value in shown.items()))
        for row in found["by position"]:
            last = row["from"] if row["from"] == row["to"] else (row["to"] if row["to"] is not None else "")
            lines.append(f"    token {row['from']:>3} to {last!s:>3}: mean {row['mean']:.5f}, max {row['max']:.5f}")
        worst = found["worst"]
        lines.append(
            f"  worst: prompt {worst['prompt']}, sample {worst['sample']}, token {worst['position']}: "
            f"{worst['engine']:.4f} there, {worst['here']:.4f} here"
        )
        lines.append(
            f"  log-probs look {raw['verdict']}: mean {raw['mean at temperature 1']:.5f} at temperature 1, "
            f"{raw['mean elsewhere']:.5f} at {elsewhere['temperature']:g}, top-p {elsewhere['top_p']:g}"
        )
    end, prompts = found["end of sequence"], found["prompt tokens"]
    lines.append(f"  end of sequence: in {end['reported']} of {end['ended']} answers that ended by themselves")
    lines.append(
        f"  greedy answers: {greedy['same text']} of {greedy['compared']} the same text, "
        f"{greedy['same ids']} of {greedy['with ids']} the same ids"
    )
    if prompts:
        lines.append(f"  prompts: {len(prompts['different'])} of {prompts['compared']} read as other ids")
    lines += [f"  no samples: {reason}" for reason in found["failed"].values()]
    return "\n".join(lines)
