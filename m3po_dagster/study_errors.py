"""Explains what is wrong with a study file: the file, the key, what was found and what is allowed."""

import difflib
import re
import typing
from pathlib import Path

from pydantic import BaseModel, Tag, ValidationError
from pydantic.fields import FieldInfo

_QUERY = re.compile(r"/.*[?#]")
_SECRET = re.compile(r"key|token(?!s)|secret|password|authorization", re.IGNORECASE)
_TAGS = ("kind", "format")
"""Keys that say which of several sections one is."""
HIDDEN = "a value that is not shown, for it may hold a key"


class StudyError(ValueError):
    """A study file that can't be used; the message says where and why."""


def explain(error: ValidationError, root: type[BaseModel], path: Path) -> str:
    """One line a problem: `file: key: problem`."""
    items = error.errors()
    # A list whose items are wrong counts as empty too, which it is not.
    wrong = [item["loc"] for item in items]
    shown = [
        item
        for item in items
        if item["type"] != "too_short" or not any(loc[: len(item["loc"])] == item["loc"] != loc for loc in wrong)
    ]
    return "\n".join(f"{path}: {_problem(item, root)}" for item in shown)


def _problem(item: dict, root: type[BaseModel]) -> str:
    key, section, kind = _walk(item["loc"], root)
    if item["type"] in ("union_tag_not_found", "union_tag_invalid"):
        return _which(item, key, kind)
    if item["type"] == "extra_forbidden":
        allowed = sorted(section.model_fields) if section else []
        close = difflib.get_close_matches(str(item["loc"][-1]), allowed, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        return f"{key}: unknown key.{hint} Allowed here: {', '.join(allowed)}"
    field = section.model_fields.get(key.rpartition(".")[2]) if section else None
    meaning = f" ({field.description})" if field is not None and field.description else ""
    secret = any(_SECRET.search(str(part)) for part in item["loc"])
    found = "" if item["type"] == "missing" else f", found {HIDDEN if secret else _short(item['input'])}"
    message = _no_settings(field) if item["type"] == "model_type" else item["msg"].removeprefix("Value error, ")
    # A rule over the whole study names the keys at odds itself, and its value would be the study.
    return f"{key}: {message}{found}{meaning}" if key else message


def _which(item: dict, key: str, kind) -> str:
    """A section that doesn't say which of several it is, or is none of them."""
    name = item["ctx"]["discriminator"].strip("'")
    there = ", ".join(repr(tag) for option in section_types(kind) for tag in _tags(option))
    found = f"there is no {_short(item['ctx']['tag'])}" if "tag" in item["ctx"] else "is missing"
    return f"{key}.{name}: {found}; name one of {there}"


def _no_settings(field: FieldInfo | None) -> str:
    members = union_members(field.annotation) if field is not None else []
    switched = any(
        typing.get_origin(member) is typing.Literal and False in typing.get_args(member) for member in members
    )
    return "write its settings, key by key, or false" if switched else "write its settings, key by key"


def _short(value: object) -> str:
    text = repr(value)
    # An address may hold a password or a key, and so may the section it stands in.
    if "@" in text or _QUERY.search(text) or (not isinstance(value, str) and _SECRET.search(text)):
        return HIDDEN
    return text if len(text) <= 60 else text[:57] + "..."


def _walk(location: tuple, root: type[BaseModel]) -> tuple[str, type[BaseModel] | None, typing.Any]:
    """The key as a person writes it (without the union tags pydantic inserts), the section it is in, and its type."""
    shown, section, kind = [], None, root
    for part in location:
        options = section_types(kind)
        tagged = [option for option in options if part in _tags(option)]
        if tagged and len(options) > 1:
            kind = tagged[0]
            continue
        if (member := _member(kind, part)) is not None:
            kind = member
            continue
        shown.append(str(part))
        if options:
            section = next((option for option in options if part in option.model_fields), options[0])
            field = section.model_fields.get(part)
            kind = field.annotation if field else None
        else:
            arguments = [argument for option in union_members(kind) for argument in typing.get_args(option)]
            kind = (
                arguments[-1] if arguments and arguments[-1] is not Ellipsis else (arguments[0] if arguments else None)
            )
    return ".".join(shown), section, kind


def section_types(kind) -> list[type[BaseModel]]:
    """The settings classes among the members of a union."""
    return [option for option in union_members(kind) if isinstance(option, type) and issubclass(option, BaseModel)]


def union_members(kind) -> list:
    """The members of a union, looking through Annotated and Optional."""
    if typing.get_origin(kind) is typing.Annotated:
        return union_members(typing.get_args(kind)[0])
    if typing.get_origin(kind) is typing.Union or type(kind).__name__ == "UnionType":
        return [option for member in typing.get_args(kind) for option in union_members(member)]
    return [kind]


def _member(kind, tag: object):
    """The member of a union that its own tag names, as pydantic inserts it; None when there is none."""
    for member in typing.get_args(kind):
        if typing.get_origin(member) is typing.Annotated and Tag(str(tag)) in typing.get_args(member)[1:]:
            return typing.get_args(member)[0]
    return None


def _tags(option: type[BaseModel]) -> tuple:
    fields = [option.model_fields[name] for name in _TAGS if name in option.model_fields]
    return tuple(tag for field in fields for tag in typing.get_args(field.annotation))
