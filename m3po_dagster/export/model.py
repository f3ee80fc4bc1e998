"""Writes an adapter in PEFT's layout, or the base model with the adapter merged in, each with a model card."""

import json
import shutil
from pathlib import Path

from m3po_dagster.export.folder import ExportError, new_folder
from m3po_dagster.export.made import ChosenAdapter, Made
from m3po_dagster.export.merge import write_merged
from m3po_dagster.export.model_card import model_card
from m3po_dagster.lineage.profile import profile

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
"""What PEFT loads."""


def export_adapter(made: Made, chosen: ChosenAdapter, out: Path) -> None:
    """Writes the adapter's files, its card and its lineage as JSON to the new folder `out`.

    Raises ExportError when `out` holds files, StoreError when the store lacks what the card tells.
    """
    card = model_card(made, chosen, merged=False)
    with new_folder(out) as folder:
        files = chosen.artifact.path("files")
        for name in ADAPTER_FILES:
            shutil.copyfile(files / name, folder / name)
        _write_words(made, chosen, card, folder)


def export_merged(made: Made, chosen: ChosenAdapter, out: Path) -> None:
    """Writes the merged model and its processor, as transformers load them, to `out`, with card and lineage.

    Raises ExportError as `export_adapter` does, when the model is quantised, and when the base model that the study
    names is not the one that the adapter was trained over; what `load_model` raises when it can't be loaded.
    """
    settings = made.study.model
    if settings.quantization != "none":
        raise ExportError(
            f"model.quantization is {settings.quantization}: what is merged into rounded weights is rounded too, and "
            "no longer what was trained. Export the adapter (--adapter), which goes over the quantised model as it is"
        )
    trained_over = made.manifests.inputs(chosen.artifact, "base_model")
    base = made.part("base_model")
    if base is None or base.data_version not in [ref.data_version for ref in trained_over]:
        raise ExportError(
            f"the base model of the study ({settings.path}) is not the one that {chosen.artifact.key} was trained "
            "over: name the study that it was trained by with --study"
        )
    card = model_card(made, chosen, merged=True)
    with new_folder(out) as folder:
        write_merged(settings, chosen.artifact.path("files"), folder)
        _write_words(made, chosen, card, folder)


def _write_words(made: Made, chosen: ChosenAdapter, card: str, folder: Path) -> None:
    lineage = profile(made.manifests, chosen.artifact).to_dict()
    (folder / "lineage.json").write_text(json.dumps(lineage, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(card, encoding="utf-8")
