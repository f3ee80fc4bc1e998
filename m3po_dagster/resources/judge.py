"""The judge as a deployment loads it. It stays warm in a process, over shards."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

import dagster as dg
from pydantic import Field

from m3po_dagster.study import JudgeSettings, Study

if TYPE_CHECKING:
    from m3po_dagster.method.alignment.account import Account
    from m3po_dagster.method.alignment.ledger import Ledger
    from m3po_dagster.method.alignment.mas import MasScorer


class JudgeResource(dg.ConfigurableResource):
    """Loads the study's scorers."""

    device: str = Field("auto", description="where the scorers run; auto: the GPU if there is one")

    def load(self, judge: JudgeSettings) -> "MasScorer":
        """The scorers ready to score. Raises FileNotFoundError for a missing model, ValueError for no calibration."""
        # By its text, as settings that hold a mapping have no hash; with the maps that its calibration file holds now.
        return _warm(judge.calibrated().model_dump_json(), self.device)

    def account(
        self, study: Study, store: str, run: str, probed: Iterable[Mapping], log: Callable[[str], None]
    ) -> "Account | None":
        """Who pays for what served scorers are asked, by the rows of their probe; None where none is served."""
        if not any(scorer.served for scorer in study.judge.scorers):
            return None
        return _account(study, store, run, probed, log)

    def benchmark_account(self, study: Study, store: str, run: str, log: Callable[[str], None]) -> "Account | None":
        """Who pays for what the judges of benchmarks are asked; None where none is served.

        A question whose reply could not be used is asked once more: the judge may have been mended since.
        """
        return replace(_account(study, store, run, (), log), again=True) if study.benchmark_judges else None


def _account(study: Study, store: str, run: str, probed: Iterable[Mapping], log: Callable[[str], None]) -> "Account":
    from m3po_dagster.method.alignment.account import Account
    from m3po_dagster.method.alignment.budget import Purse
    from m3po_dagster.method.alignment.probe import revisions

    ledger = ledger_of(store)
    purse = Purse(ledger, study.judge.budget, study.name, run)
    return Account(ledger, purse, study.name, run, revisions(probed), log=log)


@lru_cache(maxsize=8)
def ledger_of(store: str) -> "Ledger":
    """The ledger of the store at a location, which all its studies share; one a process, so that it is read once.

    Raises StoreError for a URL that names no bucket.
    """
    from m3po_dagster.bucket_ledger.opened import opened_ledger

    return opened_ledger(store)


def loaded_judge(judge: JudgeSettings, device: str) -> "MasScorer":
    """The scorers on a device; auto: the GPU if there is one. Raises as `JudgeResource.load`."""
    return judge.build(device_of(device))


def device_of(device: str) -> str:
    """The device; of auto the GPU if there is one."""
    if device != "auto":
        return device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


@lru_cache(maxsize=1)
def _warm(judge: str, device: str) -> "MasScorer":
    return loaded_judge(JudgeSettings.model_validate_json(judge), device)
