"""`m3po data`: a dataset before a study spends anything on it."""

import json
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from pydantic import ValidationError

from m3po_dagster.cli.options import JsonOption, explained, fail

if TYPE_CHECKING:
    from m3po_dagster.cli.data_filters import Sifted
    from m3po_dagster.cost.estimate import Workload
    from m3po_dagster.datasets.inspection import Inspection
    from m3po_dagster.datasets.settings import AnySource, DatasetSettings
    from m3po_dagster.study import Study

app = typer.Typer(no_args_is_help=True)


@app.callback()
def data() -> None:
    """A dataset before a study spends anything on it."""


def _place(text: str) -> Path:
    """A path as a study will have it: absolute, or of a bucket."""
    from m3po_dagster.s3_files.path import as_path

    try:
        return as_path(text).absolute()
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


@app.command()
def inspect(
    file: Annotated[
        Path | None,
        typer.Argument(
            parser=_place,
            metavar="[FILE]",
            help="File or folder of a dataset, s3://... for one in a bucket; without it, every source of --study.",
        ),
    ] = None,
    image_root: Annotated[
        Path | None,
        typer.Option(parser=_place, metavar="DIR", help="Folder that image paths are relative to, or s3://..."),
    ] = None,
    folder: Annotated[
        list[str] | None,
        typer.Option(metavar="PREFIX=DIR", help="Folder of the image paths that begin so; may be repeated."),
    ] = None,
    only: Annotated[
        str | None, typer.Option("--format", help="Read the file as this format instead of finding it out.")
    ] = None,
    take: Annotated[int | None, typer.Option(min=1, help="Records to take: a seeded subset.")] = None,
    turns: Annotated[
        Literal["first", "last", "each"] | None,
        typer.Option(help="Which questions are asked.", show_default="the study's, or first"),
    ] = None,
    study: Annotated[
        Path | None,
        typer.Option(
            "--study", envvar="M3PO_STUDY", help="Whose cost to estimate.", show_default="the paper's setting"
        ),
    ] = None,
    sample: Annotated[int, typer.Option(min=0, max=100_000, help="Images to decode, picked by a seeded hash.")] = 256,
    card: Annotated[Literal["a100", "h100", "l40s"], typer.Option(help="GPU of the estimate.")] = "a100",
    tokens_per_second: Annotated[
        float | None,
        typer.Option(min=1e-6, help="Your own measured rate of sampling, generated tokens of all rows a second."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say what a dataset is, whether it is sound, and what a study over it would cost. Nothing is spent or written.

    Exit code 0 when prompts can be made of it; 1 when it can't be read or nothing in it can become a prompt.
    """
    from m3po_dagster.cli import data_report
    from m3po_dagster.cli.data_filters import sift
    from m3po_dagster.datasets.inspection_facts import facts_of
    from m3po_dagster.datasets.record import DatasetError
    from m3po_dagster.method.filtering import FilterSettings
    from m3po_dagster.method.known_images.known import known_benchmarks
    from m3po_dagster.s3_files.path import BucketError

    loaded = _study(study)
    with explained(DatasetError, BucketError, status=1):
        sources = _sources(file, image_root, folder or [], only, take, loaded)
        which = turns or (loaded.dataset.turns if loaded else "first")
        settings = loaded.dataset if loaded else None
        found = {name: _inspected(source, which, sample, settings) for name, source in sources.items()}
    filters = loaded.filters if loaded else FilterSettings()
    sifted = {name: sift(name, one, filters, which) for name, one in found.items()}
    lists = known_benchmarks()
    facts = {
        name: facts_of(found[name], source)
        | {
            "ids of benchmarks are from": {
                benchmark: lists[benchmark].source for benchmark in sorted(found[name].known)
            },
            "filters on the sample": sifted[name].facts(),
        }
        for name, source in sources.items()
    }
    may_be_elsewhere = file is not None and image_root is None and not folder
    work, why = _workload(found, sifted, which, may_be_elsewhere)
    cost = data_report.cost_facts(loaded, work, card, tokens_per_second) if work is not None else None
    snippet = data_report.snippet(sources, which) if file is not None else None
    if as_json:
        typer.echo(json.dumps({"sources": facts, "note": why, "cost": cost, "study": snippet}))
    else:
        data_report.show(facts, why, cost, snippet)
    if work is None:
        fail(why, status=1)


def _study(path: Path | None) -> "Study | None":
    from m3po_dagster.study import load_study
    from m3po_dagster.study_errors import StudyError

    with explained(StudyError):
        return load_study(path) if path else None


def _sources(
    file: Path | None,
    image_root: Path | None,
    folders: list[str],
    only: str | None,
    take: int | None,
    study: "Study | None",
) -> "Mapping[str, AnySource]":
    """The sources to inspect by name. Raises DatasetError as `detect`."""
    from m3po_dagster.datasets.detect import detect
    from m3po_dagster.datasets.readers import READERS

    if file is None:
        if study is None:
            fail("name a file or folder to inspect, or a study with --study")
        if image_root or folders or only or take:
            fail("--image-root, --folder, --format and --take are for a FILE; a study's sources have their own")
        return study.dataset.sources
    if only is not None and only not in READERS:
        fail(f"--format {only}: there is no such format; there are {', '.join(READERS)}")
    for given in folders:
        if "=" not in given:
            fail(f"--folder {given}: write it as PREFIX=DIR, for example sam/images=/data/sam")
    source = detect(file, image_root, only)
    changes: dict[str, object] = {} if take is None else {"take": take}
    if folders:
        if "folders" not in type(source).model_fields:
            fail(f"--folder: {READERS[source.format].name} hold their images; --image-root is where they are unpacked")
        pairs = dict(given.split("=", 1) for given in folders)
        changes["folders"] = {prefix: _place(target) for prefix, target in pairs.items()}
    try:
        source = type(source).model_validate({**source.model_dump(exclude_unset=True), **changes})
    except ValidationError as error:
        problems = ((*map(str, one["loc"]), one["msg"].removeprefix("Value error, ")) for one in error.errors())
        fail("; ".join(": ".join(problem) for problem in problems))
    return {_name(file): source}


def _name(file: Path) -> str:
    """A source's name made of the file's."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", file.stem).lstrip("_.-")[:80] or "dataset"


def _inspected(
    source: "AnySource", turns: Literal["first", "last", "each"], sample: int, dataset: "DatasetSettings | None"
) -> "Inspection":
    from m3po_dagster.datasets.inspection import inspect_records
    from m3po_dagster.datasets.settings import DatasetSettings
    from m3po_dagster.datasets.subset import records_of
    from m3po_dagster.method.filtering import questions
    from m3po_dagster.method.known_images.known import benchmarks_of, known_benchmarks
    from m3po_dagster.progress import progress

    limits = {
        name: getattr(dataset, name) if dataset else DatasetSettings.model_fields[name].default
        for name in ("max_megapixels", "max_record_megabytes")
    }
    with progress(lambda line: typer.echo(line, err=True), f"reading {source.path.name}", "record") as advance:
        return inspect_records(
            records_of(source, int(limits["max_record_megabytes"] * 1e6)),
            source,
            questions,
            turns=turns,
            sample=sample,
            max_megapixels=limits["max_megapixels"],
            known=partial(benchmarks_of, lists=known_benchmarks()),
            progress=advance,
        )


def _workload(
    found: "Mapping[str, Inspection]", sifted: "Mapping[str, Sifted]", turns: str, may_be_elsewhere: bool
) -> "tuple[Workload | None, str | None]":
    """What the sources bring together, and what is to be said of it; None where nothing can become a prompt."""
    from m3po_dagster.cost.estimate import Workload

    asked = sum(one.prompts[turns] for one in found.values())
    usable = sum(one.usable for one in found.values())
    note, counted = None, "all that can be asked, wherever the images lie"
    if asked == 0:
        return None, "nothing in it can become a prompt: no record has an image and a question that can be asked"
    if usable == 0:
        if not may_be_elsewhere:
            return None, f"nothing in it can become a prompt: none of the images of {asked:,} prompts is in place"
        usable = asked
        note = "no image is in place: say where they lie with --image-root; the estimate is for all prompts"
    else:
        usable = round(sum(one.usable * sifted[name].share for name, one in found.items()))
        counted = (
            "those with an image in place, less the share that the filters dropped of the sample; images that look "
            "like one outside the sample are still among them"
        )
        if usable == 0:
            return None, "nothing in it can become a prompt: the filters drop every prompt of the sample"
    questions = [one for one in found.values() if one.questions.number]
    answers = [one.answers for one in questions if one.answers.number]
    number = sum(one.questions.number for one in questions)
    return (
        Workload(
            prompts=usable,
            text_bytes=sum(one.prompt_bytes * one.questions.number for one in questions) / number,
            answer_bytes=sum(one.bytes for one in answers) / sum(one.number for one in answers) if answers else None,
            sizes=tuple(size for one in questions if one.images for size in one.images.sizes),
            counted=counted,
        ),
        note,
    )
