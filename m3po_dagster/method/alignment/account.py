"""Who asks a served judge and pays for it: where its replies are kept, for which study and run, up to which budget."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from m3po_dagster.method.alignment.budget import Purse
    from m3po_dagster.method.alignment.ledger import Ledger


@dataclass(frozen=True)
class Account:
    """Handed to a served scorer by `at`; without one a scorer asks anew and keeps nothing, as a probe must.

    `revisions` holds, by scorer name, what the probe last found of the model behind the endpoint: it is part of every
    ledger key, so that a model swapped under its name is asked again.
    """

    ledger: "Ledger"
    purse: "Purse"
    study: str
    run: str
    revisions: Mapping[str, str] = field(default_factory=dict)
