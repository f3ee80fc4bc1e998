"""The place over a loaded base model that trained adapters take in turn: the model itself is loaded once."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

_FILES = ("adapter_config.json", "adapter_model.safetensors")


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

        Raises FileNotFoundError for a folder without adapter, and what PEFT raises for a damaged one; whatever is
        raised, the model is the base model then.
        """
        if adapter is not None and adapter == self.current:
            return
        # First the old one goes: two adapters of rank 128 take gigabytes of a card.
        self._leave()
        if adapter is None:
            return
        if missing := [name for name in _FILES if not (adapter / name).is_file()]:
            raise FileNotFoundError(f"adapter folder {adapter} has no {missing[0]}: name a folder PEFT saved")
        try:
            self._put(adapter)
        except BaseException:
            self._leave()
            raise
        self.current = adapter

    def _put(self, adapter: Path) -> None:
        from peft import PeftConfig, get_peft_model

        from m3po_dagster.method.generation.model import without_deprecation

        name = hashlib.sha256(str(adapter).encode()).hexdigest()[:16]
        with without_deprecation():
            config = PeftConfig.from_pretrained(str(adapter))
            config.inference_mode = True
            # PEFT warns of a folder that lies elsewhere than the model did when it was trained.
            config.base_model_name_or_path = self._model.name_or_path
            # Held before weights are read: what fails after this can be taken out again.
            self._peft = get_peft_model(self._model, config, adapter_name=name)
            self._peft.load_adapter(str(adapter), adapter_name=name, is_trainable=False)
            self._peft.set_adapter(name)
        self._peft.eval()

    def _leave(self) -> None:
        """The base model alone, its modules as they were loaded."""
        if self._peft is not None:
            self._peft.unload()
            self._peft = None
        self.current = None
