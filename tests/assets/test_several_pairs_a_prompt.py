"""preference_pairs of rules that give a prompt several rows, from tables in a real store: none is lost."""

import dagster as dg
import pytest

from m3po_dagster.assets.checks import PAIR_YIELD
from m3po_dagster.assets.pairs import describe_pairs, select_shard
from m3po_dagster.identity import Identities
from m3po_dagster.materialise import Work
from m3po_dagster.method.selection import SelectionSettings, select_pairs
from m3po_dagster.storage.check import check
from m3po_dagster.storage.tables import PAIRS
from m3po_dagster.study import load_study
from tests.inspector.made_study import Answer, Asked, MadeStudy

RULES = {"margin": {"rule": "margin_pairs", "max_pairs": 4}, "every": {"rule": "every_answer"}}
LENGTHS = [6, 3, 8, 2, 5]


@pytest.mark.parametrize("recipe", RULES)
def test_every_pair_reaches_the_table_and_the_yield_counts_prompts(tmp_path, recipe):
    with dg.DagsterInstance.ephemeral() as instance:
        study = MadeStudy(tmp_path, instance)
        study.settings["recipes"] = {"base": {}} | {
            name: {"selection": rule, "training": {"kind": "rlhf" if name == "every" else "dpo"}}
            for name, rule in RULES.items()
        }
        study.write()
        prompts = [
            Asked(f"prompt{n}", "What?", [Answer(f"{n}{k}", 1 - k / 4, -1.0, LENGTHS[k]) for k in range(size)])
            for n, size in enumerate((5, 5, 1, 1, 1))
        ]
        candidates = study.add_candidates("s0", prompts, study.add_prompts("s0", prompts))
        inputs = {
            ("candidates", "s0"): candidates,
            ("mas_table", "s0"): study.add_mas("s0", prompts, candidates),
            ("logprob_table", "s0"): study.add_logprobs("s0", candidates),
        }
        identities = Identities(lambda path: "0" * 64)
        part = ("preference_pairs", f"{recipe}|s0")
        work = Work(part, load_study(study.path), study.store, identities, study.heads, inputs, print)
        built = select_shard(work)
        pairs, _ = built.tables["data"]
        check(pairs, PAIRS)
        table = candidates.table().append_column("mas", inputs["mas_table", "s0"].table()["mas"])
        assert pairs == select_pairs(table, SelectionSettings(**RULES[recipe])).pairs.cast(PAIRS.schema)
        paired = len(set(pairs["prompt_id"].to_pylist()))
        assert len(pairs) > paired == (2 if recipe == "margin" else 5)
        (found,) = [item for item in built.checks if item.name == PAIR_YIELD.name]
        assert found.passed == (recipe == "every")
        artifact = study.commit(*part, dict(built.tables), list(inputs.values()))
        artifact.manifest.metadata.update(built.facts)
        shown = describe_pairs(artifact, work)
        assert (shown["pairs"], shown["prompts with a pair"]) == (len(pairs), paired)
