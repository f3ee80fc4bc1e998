"""What a study file can say, as Markdown generated from its schema; and which of its files are not on this machine."""

import json
import typing
from pathlib import Path

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from m3po_dagster.datasets.settings import PACKED
from m3po_dagster.identity import is_local, named_paths
from m3po_dagster.s3_files.path import as_path
from m3po_dagster.study import Study
from m3po_dagster.study_errors import section_types, union_members

PLAIN = {str: "text", int: "integer", float: "number", bool: "true or false", Path: "path"}

HEAD = """\
# The study file

Generated from the schema by `m3po study reference`; `m3po study schema` prints the same as JSON schema.
Relative paths start with `./` or `../` and are relative to the study file. `extends: other.yaml` starts from another
study and replaces what is given, mapping by mapping. Unknown keys are refused. Files and folders of the dataset, of
benchmarks and of known pairs may lie in a bucket: s3://bucket/...
"""


def missing_paths(study: Study) -> dict[str, str]:
    """Key -> path of everything the study names by path that is not there. Hub models are not looked for."""
    named = {}
    for name, source in study.dataset.sources.items():
        named[f"dataset.sources.{name}.path"] = source.path
        if source.format not in PACKED and not source.fetch_from:
            named[f"dataset.sources.{name}.image_root"] = source.image_root
        named |= {f"dataset.sources.{name}.folders.{prefix}": folder for prefix, folder in source.folders.items()}
    if is_local(study.model.path):
        named["model.path"] = study.model.path
    for scorer in study.judge.assessors:
        if scorer.local_model is not None and is_local(scorer.local_model):
            named[f"judge.scorers.{scorer.name}.model"] = scorer.local_model
        if (urls := getattr(scorer, "image_urls", None)) is not None:
            named[f"judge.scorers.{scorer.name}.image_urls.folder"] = urls.folder
        if scorer.weights_file is not None:
            named[f"judge.scorers.{scorer.name}.pretrained"] = scorer.weights_file
    if study.judge.calibrations is not None:
        named["judge.calibrations"] = study.judge.calibrations
    if study.judge.quality.known_pairs is not None:
        named["judge.quality.known_pairs"] = study.judge.quality.known_pairs
    between = study.generation.scorer
    for scorer in () if between is None else (between.members or (between,)):
        if scorer.local_model is not None and is_local(scorer.local_model):
            key = "generation.n.scorer" if scorer is between else f"generation.n.scorer.{scorer.name}"
            named[f"{key}.model"] = scorer.local_model
    for name, benchmark in study.benchmarks.items():
        for key, value in named_paths(benchmark.model_dump()):
            named[f"benchmarks.{name}.{key}"] = value
        model = getattr(getattr(benchmark, "judge", None), "local_model", None)
        if model is not None and is_local(model):
            named[f"benchmarks.{name}.judge.model"] = model
    return {key: str(path) for key, path in named.items() if not as_path(path).exists()}


def reference() -> str:
    """The whole reference."""
    sections: dict[type[BaseModel], str] = {}
    _visit(Study, sections)
    return HEAD + "\n" + "\n".join(sections.values())


def _visit(model: type[BaseModel], sections: dict[type[BaseModel], str]) -> None:
    if model in sections:
        return
    lines = [f"## {_title(model)}", "", _summary(model), ""]
    lines += ["| key | type | default | meaning |", "|---|---|---|---|"]
    sections[model] = ""
    below = []
    for name, field in model.model_fields.items():
        kind = _kind(field.annotation)
        limits = ", ".join(_limits(field.metadata))
        default = "required" if field.is_required() else _default(field)
        meaning = (field.description or "") + (f" ({limits})" if limits else "")
        cells = [f"`{name}`", kind, default, meaning]
        lines.append("| " + " | ".join(cell.replace("\n", " ").replace("|", "\\|") for cell in cells) + " |")
        below += _models(field.annotation)
    sections[model] = "\n".join(lines) + "\n"
    for member in below:
        _visit(member, sections)


def _summary(model: type[BaseModel]) -> str:
    """The first paragraph of a section's docstring."""
    # A class made by `Settings[A | B]` has none of its own.
    described = model.__pydantic_generic_metadata__["origin"] or model
    return (described.__doc__ or "").strip().split("\n\n")[0].replace("\n", " ")


def _title(model: type[BaseModel]) -> str:
    return f"`{model.__name__.split('[')[0].removesuffix('Settings').lower()}`"


def _models(kind) -> list[type[BaseModel]]:
    below = [argument for option in union_members(kind) for argument in typing.get_args(option)]
    return section_types(kind) + [model for argument in below for model in _models(argument)]


def _kind(kind) -> str:
    names = []
    for option in union_members(kind):
        origin, arguments = typing.get_origin(option), typing.get_args(option)
        if option is type(None):
            names.append("null")
        elif origin is typing.Literal:
            names.append(" or ".join(f"`{_written(value)}`" for value in arguments))
        elif origin is dict:
            names.append(f"mapping of name to {_kind(arguments[1])}")
        elif origin in (list, tuple):
            names.append(f"list of {_kind(arguments[0])}")
        elif isinstance(option, type) and issubclass(option, BaseModel):
            names.append(_title(option))
        else:
            names.append(PLAIN.get(option, str(option)))
    return " or ".join(names)


def _written(value: object) -> str:
    """As YAML has it."""
    return value if isinstance(value, str) else json.dumps(value)


def _limits(metadata: list) -> list[str]:
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<", "min_length": "length >=", "max_length": "length <="}
    return [
        f"{sign} {getattr(item, name)}"
        for item in metadata
        for name, sign in signs.items()
        if getattr(item, name, None) is not None
    ]


def _default(field) -> str:
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, BaseModel):
        return "see below"
    return f"`{json.dumps(value, default=list)}`"
