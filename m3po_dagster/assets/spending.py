"""What a shard's judging asked of served judges and cost, as the asset's page shows it."""

from collections.abc import Collection, Mapping, Sequence

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc

from m3po_dagster.assets.display import rows_table
from m3po_dagster.method.alignment.cascade import NOT_NEEDED

COLUMNS = (
    "scorer", "wanted", "from the ledger", "requests", "repairs", "no answer",
    "prompt tokens", "cached", "reply tokens", "cost",
)  # fmt: skip


def spending(facts: Mapping) -> dict[str, object]:
    """Requests, ledger hits, tokens and cost of the run that made a MAS table; nothing without a served judge."""
    if "asked" not in facts:
        return {}
    rows = [_row(name, tally, facts["priced"]) for name, tally in facts["asked"].items()]
    study = facts["spent by the study"]
    wanted = sum(row["wanted"] for row in rows)
    found: dict[str, object] = {
        **({"left out by the cascade": dg.MetadataValue.json(facts["cascade"])} if "cascade" in facts else {}),
        "requests to judges": sum(row["requests"] for row in rows),
        "share from the ledger": round(sum(row["from the ledger"] for row in rows) / wanted, 4) if wanted else None,
        **_costs(rows, study),
        "asked of judges": rows_table(rows, COLUMNS),
    }
    if facts["expected"]:
        expected = [
            {"scorer": name, "for": what, **estimate}
            for name, parts in facts["expected"].items()
            for what, estimate in parts.items()
        ]
        found["expected before the first request"] = rows_table(expected, list(expected[0]))
    return found


def left_out(table: pa.Table) -> dict[str, int | float]:
    """How many candidates of a MAS table a cascade did not ask its served scorers about, and which share of all."""
    number = pc.sum(pc.equal(table["status"], NOT_NEEDED)).as_py() or 0
    return {"candidates": len(table), "not judged": number, "share saved": number / len(table) if len(table) else 0.0}


def _costs(rows: Sequence[Mapping], study: Mapping) -> dict[str, float]:
    """What the scorers with prices cost; nothing where none has any."""
    costs = [row["cost"] for row in rows if row["cost"] is not None]
    return {"cost": round(sum(costs), 6), "cost of the study so far": round(study["cost"], 6)} if costs else {}


def _row(scorer: str, tally: Mapping, priced: Collection[str]) -> dict[str, object]:
    return {
        "scorer": scorer,
        "wanted": tally["groups"],
        "from the ledger": tally["from_ledger"],
        "requests": tally["requests"],
        "repairs": tally["repairs"],
        "no answer": tally["unanswered"],
        "prompt tokens": tally["prompt_tokens"],
        "cached": tally["cached_tokens"],
        "reply tokens": tally["completion_tokens"],
        "cost": tally["cost"] if scorer in priced else None,
    }
