"""The graph with a cascade, and with an ensemble: fewer requests, the very same pairs; members in the table."""

from copy import deepcopy

import pytest

from m3po_dagster.current import read_heads
from m3po_dagster.method.alignment.cascade import NOT_NEEDED
from m3po_dagster.runner import Selection
from tests.served_judge import ServedJudge

UP_TO_PAIRS = (
    *("source_dataset", "base_model", "sampling_scorer", "judge_probe", "judge_identity", "recipe_config"),
    *("benchmark_data", "filtered_instructions", "candidates", "mas_table", "logprob_table", "preference_pairs"),
)


def table(project, asset: str, partition: str):
    with project.instance() as instance:
        head = read_heads(instance, [asset])[asset, partition]
    return project.store.find(asset, partition, head.fingerprint)


def run(project, settings: dict, **judge) -> None:
    changed = deepcopy(settings)
    changed["judge"] = {"probe_repeats": 1, "quality": {"prompts": 0}, **judge}
    changed["dataset"]["shards"] = 1
    project.write(changed)
    outcomes = project.run(Selection(assets=UP_TO_PAIRS))
    assert [outcome.error for outcome in outcomes if outcome.error] == []


def pointwise(server: ServedJudge, **given) -> dict:
    known = {"model": server.model, "revision": given.get("name", "")}
    return {"kind": "llm_judge", "base_url": server.base_url, "group_size": 1, **known, **given}


def test_a_cascade_asks_less_and_selects_the_same_pairs(fresh, small_study):
    clip = small_study["judge"]["scorers"][1] | {"weight": 4}
    with ServedJudge() as server:
        cascade = {"confidence": ["mean"], "round_size": 1}
        run(fresh, small_study, scorers=[clip, pointwise(server)], cascade=cascade)
        some, pairs = table(fresh, "mas_table", "s0"), table(fresh, "preference_pairs", "m3po|s0").table()
        run(fresh, small_study, scorers=[clip, pointwise(server)])
        everything = table(fresh, "mas_table", "s0")
        assert table(fresh, "preference_pairs", "m3po|s0").table().equals(pairs)
    assert len(pairs) > 3
    left_out = [row for row in some.table().to_pylist() if row["status"] == NOT_NEEDED]
    assert left_out and all(row["mas"] is None and row["clip"] is not None for row in left_out)
    asked = [one.manifest.metadata["asked"]["llm_judge"] for one in (some, everything)]
    assert asked[0]["groups"] == len(some.table()) - len(left_out) < asked[1]["groups"] == len(everything.table())
    # What the cascade had asked came from the ledger.
    assert asked[1]["requests"] == len(left_out)
    assert some.manifest.metadata["unscored by reason"] == {}


def test_members_of_an_ensemble_are_columns_asked_and_paid_by_their_own_names(fresh, small_study):
    scene = small_study["judge"]["scorers"][0]
    with ServedJudge() as lenient, ServedJudge(revision=3) as strict, ServedJudge() as stronger:
        ensemble = {
            "kind": "ensemble",
            "judges": [scene, pointwise(lenient, name="lenient"), pointwise(strict, name="strict")],
            "referee": {"judge": pointwise(stronger, name="stronger"), "disagreement": 0.45},
        }
        run(fresh, small_study, scorers=[ensemble])
        artifact = table(fresh, "mas_table", "s0")
    rows, asked = artifact.table().to_pylist(), artifact.manifest.metadata["asked"]
    disputed = [row for row in rows if row["ensemble_disagreement"] > 0.45]
    assert 0 < len(disputed) < len(rows)
    assert {name: tally["groups"] for name, tally in asked.items()} == {
        **dict.fromkeys(("lenient", "strict"), len(rows)),
        "stronger": len(disputed),
    }
    for row in rows:
        judges = [row[name] for name in ("scene_judge", "lenient", "strict")]
        mean = sum(judges) / 3
        assert row["mas"] == pytest.approx(row["stronger"] if row in disputed else mean, abs=1e-5)
        assert row["ensemble_referee"] == (row in disputed)
    probed = table(fresh, "judge_probe", "").table()["scorer"].unique().to_pylist()
    assert set(probed) == {"lenient", "strict", "stronger"}
