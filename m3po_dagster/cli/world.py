"""`m3po world`: writes the embedded world's files, and rebuilds the weights that come with the package."""

from pathlib import Path
from typing import Annotated

import typer

from m3po_dagster.cli.options import JsonOption, explained, fail

app = typer.Typer(no_args_is_help=True, help="The embedded world: its files and its weights.")

DEFAULT_FOLDER = Path("data/easy_scenes")


@app.command("write")
def write(
    out: Annotated[Path, typer.Option(help="Folder to write.", show_default=True)] = DEFAULT_FOLDER,
    prompts: Annotated[int, typer.Option(min=10, help="Usable prompts, two an image.")] = 480,
    scenes: Annotated[int, typer.Option(min=10, help="Benchmark scenes for each of validation and test.")] = 400,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same bytes.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Write instructions and benchmarks; quick when the folder already holds them whole."""
    import json

    from m3po_dagster.world.write import write_world

    with explained(OSError):
        manifest = write_world(out, prompts, scenes, seed)
    if as_json:
        typer.echo(json.dumps(manifest))
        return
    typer.echo(f"{out}: {manifest['files']['number']} files, {manifest['files']['bytes'] / 1e6:.1f} MB")
    for part, counts in manifest["counts"].items():
        typer.echo(f"  {part:<13} " + ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items()))


@app.command("build")
def build(
    base: Annotated[bool, typer.Option("--base", help="Build the base model (about 12 minutes of one core).")] = False,
    second_base: Annotated[
        bool, typer.Option("--second-base", help="Build the second base model, of another seed (as long).")
    ] = False,
    judge: Annotated[bool, typer.Option("--judge", help="Build the judge.")] = False,
    assessor: Annotated[bool, typer.Option("--assessor", help="Build the second judge, which picks no pairs.")] = False,
    every: Annotated[bool, typer.Option("--all", help="Build them all.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for llava/, llava_2/, judge/ and assessor/; the package's own weights if not given."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Train the embedded base model or judges from their seeds, and print the figures of their model cards."""
    import json

    from m3po_dagster.world.build import SECOND_SEED, SEED, WEIGHTS, build_base_model

    if not (base or second_base or judge or assessor or every):
        fail("nothing to build: give --base, --second-base, --judge, --assessor or --all")
    figures: dict[str, dict] = {}
    for name, seed, wanted in (("llava", SEED, base), ("llava_2", SECOND_SEED, second_base)):
        if wanted or every:
            with _Bars() as bars:
                built = build_base_model((out or WEIGHTS) / name, seed, progress=bars.show)
            figures |= {f"{name}, {role}": values for role, values in built.items()}
    if judge or every:
        from m3po_dagster.world.judge import JUDGE_FOLDER
        from m3po_dagster.world.judge_model import build_judge

        with _Bars() as bars:
            figures["judge"] = build_judge(out / "judge" if out else JUDGE_FOLDER, progress=bars.show)
    if assessor or every:
        from m3po_dagster.world.assessor import ASSESSOR_FOLDER, build_assessor

        with _Bars() as bars:
            figures["assessor"] = build_assessor(out / "assessor" if out else ASSESSOR_FOLDER, progress=bars.show)
    if as_json:
        typer.echo(json.dumps(figures))
        return
    for part, values in figures.items():
        typer.echo(part)
        for name, value in values.items():
            typer.echo(f"  {name:<62} {value:8.2f}")


class _Bars:
    """A progress bar a stage, on standard error."""

    def __enter__(self) -> "_Bars":
        from tqdm import tqdm

        self._new_bar, self._bars = tqdm, {}
        return self

    def __exit__(self, *error: object) -> None:
        for bar in self._bars.values():
            bar.close()

    def show(self, stage: str, step: int, steps: int, loss: float) -> None:
        """What training calls after every step."""
        if stage not in self._bars:
            self._bars[stage] = self._new_bar(total=steps, desc=stage, unit="step")
        bar = self._bars[stage]
        bar.update(step - bar.n)
        bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
