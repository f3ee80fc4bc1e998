"""The place over a loaded base model that trained adapters take in turn: the model itself is loaded once."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


class AdapterSlot:
    """Puts PEFT adapters over a model by name, one at a time; without one the model computes exactly what it did.

    An adapter stays beside the weights: merged and taken out again, it would leave its rounding in them.
    """

    def __init__(self, model: "PreTrainedModel") -> None:
        self._model = model
        self._peft: PeftModel | None = None
        self.current: Path | None = None

    def use(self, adapter: Path | None) -> None:
        """Answers come from this adapter from now on, or from the base model alone.

        Raises FileNotFoundError for a folder without adapter; the model is the base model then.
        """
        if adapter == self.current:
            return
        if adapter is None:
            self._leave()
            return
        if not (adapter / "adapter_config.json").is_file():
            self._leave()
            raise FileNotFoundError(f"adapter folder {adapter} has no adapter_config.json: name a folder PEFT saved")
        old = self.current
        self.current = None
        self._put(adapter)
        # One at a time: an adapter of rank 128 takes gigabytes of a card. The new one first, for PEFT keeps no place
        # without any.
        for name in list(self._peft.peft_config):
            if name != _name(adapter):
                self._peft.delete_adapter(name)
        if old is None:
            self._peft.base_model.enable_adapter_layers()
        self.current = adapter

    def _put(self, adapter: Path) -> None:
        from peft import PeftModel

        from m3po_dagster.method.generation.model import without_deprecation

        with without_deprecation():
            if self._peft is None:
                self._peft = PeftModel.from_pretrained(self._model, str(adapter), adapter_name=_name(adapter))
            elif _name(adapter) not in self._peft.peft_config:
                self._peft.load_adapter(str(adapter), adapter_name=_name(adapter), is_trainable=False)
            self._peft.set_adapter(_name(adapter))
        self._peft.eval()

    def _leave(self) -> None:
        if self._peft is not None:
            self._peft.base_model.disable_adapter_layers()
        self.current = None


def _name(adapter: Path) -> str:
    """PEFT makes names of modules of it, in which a dot or a slash would mean something."""
    return hashlib.sha256(str(adapter).encode()).hexdigest()[:16]
