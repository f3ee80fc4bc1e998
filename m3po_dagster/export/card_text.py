"""What the cards of pairs and of models share: tables, settings, licences."""

from collections.abc import Iterable, Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any

from m3po_dagster.export.licences import NOT_STATED, LicenceSettings
from m3po_dagster.lineage.profile import flattened

if TYPE_CHECKING:
    from huggingface_hub import CardData

PAPER = "[M3PO, arXiv 2508.12458](https://arxiv.org/abs/2508.12458)"
_LONGEST = 200


def cell(value: object) -> str:
    """A value as a table's cell."""
    shown = f"{value:g}" if isinstance(value, float) else str(value)
    return " ".join(shown.split()).replace("|", "\\|")


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *([cell(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def settings_text(settings: Any) -> str:
    """Nested settings in one line; what is not given and hashes of files are left out, long texts are cut."""
    given = [
        f"{key.replace('settings.', '')} {_cut(cell(value))}"
        for key, value in flattened(settings)
        if value is not None and value != {} and ".files." not in f".{key}"
    ]
    return ", ".join(given) or "none"


def licence_rows(licences: LicenceSettings, sources: Sequence[str], scorers: Sequence[str]) -> list[tuple[str, str]]:
    """What stands under which licence, as the study states it."""
    return [
        *((f"source `{name}`", licences.sources.get(name, NOT_STATED)) for name in sources),
        ("base model", licences.model or NOT_STATED),
        *((f"judge `{name}`", licences.judge.get(name, NOT_STATED)) for name in scorers),
        ("what is published here", licences.release or NOT_STATED),
    ]


def made_by() -> str:
    """The version of this package."""
    return f"m3po-dagster {metadata.version('m3po-dagster')}"


def card(data: "CardData", parts: Iterable[str]) -> str:
    """A card of the Hugging Face hub: its data as YAML in front, then the parts."""
    return f"---\n{data.to_yaml().strip()}\n---\n\n" + "\n\n".join(parts) + "\n"


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."
