"""Merges an adapter into its base model, which then loads without PEFT."""

from pathlib import Path

from m3po_dagster.method.generation.model import load_pretrained, without_deprecation
from m3po_dagster.method.generation.settings import ModelSettings
from m3po_dagster.torchvision_repair import repair_torchvision


def write_merged(base: ModelSettings, adapter: Path, out: Path) -> None:
    """Writes `base` with the adapter of the folder `adapter` added to its weights, in `base`'s dtype.

    Its generation config and processor come with it as they are. Raises FileNotFoundError and ValueError as
    `load_model` does, and ValueError when a merged weight is no number.
    """
    repair_torchvision()
    from peft import PeftModel

    model, processor = load_pretrained(base)
    with without_deprecation():
        merged = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload(safe_merge=True)
        merged.save_pretrained(out)
    processor.save_pretrained(out)
