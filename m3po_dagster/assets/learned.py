"""What a recipe's adapters learned, as metadata of lora_adapter: of pairs, of single answers, or of a reward."""

from collections.abc import Mapping, Sequence

import dagster as dg

from m3po_dagster.assets.display import rows_table
from m3po_dagster.assets.pictures import histograms
from m3po_dagster.assets.training_checks import REWARD_RANKS
from m3po_dagster.lineage.manifests import Manifests
from m3po_dagster.lineage.profile import TRAINED_ON_COLUMNS, abridged
from m3po_dagster.lineage.unlearned import by_gain, not_learned, outcomes
from m3po_dagster.materialise import Work
from m3po_dagster.storage.artifact import Artifact
from m3po_dagster.storage.errors import StoreError

WORST_PAIRS = 10
WORST_COLUMNS = ("prompt", "R_w", "R_l", "margin", "loss before", "loss", "steps", "pair_id")
WORST_ANSWERS_COLUMNS = tuple(name for name in WORST_COLUMNS if name not in ("R_l", "margin"))

REWARD_COLUMNS = (
    "seed",
    REWARD_RANKS,
    f"{REWARD_RANKS} low",
    f"{REWARD_RANKS} high",
    "reward r2",
    "reward prompts",
    "reward answers",
    "reward told prompts",
    "reward told answers",
)
"""Of a proxy reward: how well it ranks answers it was not fitted to, and of how many prompts and answers either is."""


_SINGLE = ("rlhf", "sft")
"""Kinds of training that read single answers: what is stored as pairs has, or is used for, one answer a row."""


def from_shards(trained_on: Sequence[Mapping[str, object]], kind: str) -> dict[str, object]:
    """What the adapters were trained on, a row a shard of `trained_on_rows`; called answers where none is compared."""
    if kind not in _SINGLE:
        return {
            "trained on pairs": rows_table(abridged(trained_on), TRAINED_ON_COLUMNS),
            "trained on pairs in full": dg.MetadataValue.json(trained_on),
        }
    named = [{_answers(name): value for name, value in row.items()} for row in abridged(trained_on)]
    return {
        "trained on answers": rows_table(named, [_answers(name) for name in TRAINED_ON_COLUMNS]),
        "trained on answers in full": dg.MetadataValue.json(trained_on),
    }


def _answers(column: str) -> str:
    return column.replace("no pair", "no answer").replace("pairs", "answers")


def learned(work: Work, trained: Mapping[str, Artifact], examples: int) -> dict[str, object]:
    """What the adapters of each seed learned of their `examples`, by the kind of their training."""
    first = next(iter(trained.values()))
    kind = first.manifest.settings["training"]["kind"]
    if kind == "rlhf":
        facts = [{"seed": int(seed)} | adapter.manifest.metadata for seed, adapter in trained.items()]
        return {
            "scored answers": examples,
            "prompts": first.manifest.metadata["policy prompts"],
            "proxy reward": rows_table(facts, REWARD_COLUMNS),
        }
    failed = {str(seed): len(not_learned(adapter)) for seed, adapter in trained.items()}
    if kind == "sft":
        return {
            "answers": examples,
            "answers not learned": failed,
            "worst answers": rows_table(worst_pairs(work, first), WORST_ANSWERS_COLUMNS),
        }
    margins = first.table("margins")["reward_margin"].drop_null().to_numpy()
    return {
        "pairs": examples,
        "reference log-probs": first.manifest.metadata.get("reference", "stored"),
        "reward margins": histograms({"reward margin a pair after training": margins}),
        "pairs not learned": failed,
        "worst pairs": rows_table(worst_pairs(work, first), WORST_COLUMNS),
    }


def worst_pairs(work: Work, adapter: Artifact) -> list[dict[str, object]]:
    """The pairs of the smallest reward margins (SFT: gains in log P), learned or not, as rows of WORST_COLUMNS."""
    lowest = [row for _, row in by_gain(adapter)[:WORST_PAIRS]]
    try:
        found = outcomes(Manifests(work.store), adapter, lowest)
    except StoreError as error:
        # An adapter of before is reused whatever became of the pairs that it was trained on.
        work.log(f"no table of the worst pairs: {error}")
        return []
    return [
        {
            "prompt": outcome.question,
            "R_w": outcome.chosen_text,
            "R_l": outcome.rejected_text,
            "margin": outcome.margin["reward_margin"],
            "loss before": outcome.margin.get("loss_before"),
            "loss": outcome.margin.get("loss"),
            "steps": ", ".join(str(seen["step"]) for seen in outcome.trajectory),
            "pair_id": outcome.pair_id,
        }
        for outcome in found
    ]
