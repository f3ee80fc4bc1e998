"""What a training's settings leave out when they are dumped: options at their default."""

from collections.abc import Mapping
from typing import Any

from m3po_dagster.method.optimization.rlhf_settings import RlhfSettings
from m3po_dagster.method.optimization.settings import DpoSettings, SftSettings

_KINDS = {"dpo": DpoSettings, "sft": SftSettings, "rlhf": RlhfSettings}


def left_out(training: Mapping[str, Any]) -> dict[str, Any]:
    """The options at their default that `training`, as a manifest has it, was dumped without; none of an unknown kind.

    They were in force all the same, so that whoever shows or compares settings names them.
    """
    kind = _KINDS.get(training.get("kind"))
    return {
        name: field.get_default()
        for name, field in (kind.model_fields if kind else {}).items()
        if field.exclude_if is not None and name not in training
    }
