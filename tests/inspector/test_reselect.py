"""The sliders choose, pair by pair, what `select_pairs` chooses."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_study import MAS
from selection_tables import random_table

from m3po_dagster.inspector import fronts as fronts_module
from m3po_dagster.inspector.fronts import Fronts, build_fronts, file_name, front_key
from m3po_dagster.inspector.reselect import figures, picks
from m3po_dagster.inspector.shards import read_shard
from m3po_dagster.method.selection import SelectionSettings, select_pairs
from m3po_dagster.storage.tables import CANDIDATES, DROPPED, FILTERED_INSTRUCTIONS, LOGPROBS

POINTS = st.tuples(
    st.one_of(st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.floats(0, 5)),
    st.one_of(st.sampled_from([0.0, 0.1, 0.5]), st.floats(0, 3)),
)
OPTIONS = [
    {},
    {"confidence": "sum"},
    {"allow_bonus": True, "min_gap": 0.25},
    {"min_chosen_mas": 0.75},
    {"allow_bonus": True, "confidence": "sum", "min_chosen_mas": 0.5},
    {"score": "judge", "candidates": 7},
    {"score_noise": 0.4, "noise_seed": 3},
    {"max_length_difference": 1},
]


def score_table(seed: int) -> pa.Table:
    """A table full of ties and equal texts, with what the store's tables do not allow made harmless."""
    table = random_table(seed, prompts=50, width=9, shuffle=False)
    unique = pa.array([f"text of row {n}" for n in range(table.num_rows)])
    mas = pa.array(
        [None if value is None or value != value else value for value in table["mas"].to_pylist()], pa.float64()
    )
    table = table.set_column(table.column_names.index("mas"), "mas", mas)
    table = table.append_column("judge", table["style"])
    for name, filler in (("text", unique), ("finish_reason", "stop"), ("sum_logp", -3.0)):
        table = table.set_column(table.column_names.index(name), name, pc.coalesce(table[name], filler))
    return table.take(pc.sort_indices(table, [("prompt_id", "ascending"), ("candidate_id", "ascending")]))


def stored(made_study, table: pa.Table):
    """The table as a shard of the store."""
    ids = pc.unique(table["prompt_id"]).to_pylist()
    prompt = {"image_uri": "red.png", "image_sha256": "0", "width": 1, "height": 1, "reference": None}
    prompt |= {
        "messages": [{"role": "user", "text": "?"}],
        "source": "made",
        "source_id": "1",
        "turn": 0,
        "image_name": None,
    }
    prompts = pa.Table.from_pylist([{"prompt_id": name, **prompt} for name in ids], schema=FILTERED_INSTRUCTIONS.schema)
    size = table.num_rows
    common = {name: table[name] for name in ("candidate_id", "prompt_id", "n_tokens", "sum_logp")}
    common |= {"eos_logp": pa.nulls(size, pa.float64()), "token_logps": pa.nulls(size, pa.list_(pa.float32()))}
    answers = {**common, "k": table["k"], "text": table["text"], "finish_reason": table["finish_reason"]}
    answers |= {"token_ids": [[1]] * size, "multiplicity": [1] * size, "seed": [0] * size}
    judged = {name: pa.nulls(size, pa.float64()) for name in MAS.schema.names} | {"status": ["scored"] * size}
    judged |= {
        "mas": table["mas"],
        "judge": table["judge"],
        **{name: table[name] for name in ("candidate_id", "prompt_id")},
    }

    def cast(columns, schema):
        return pa.table(
            {
                name: pa.chunked_array(pa.table({name: columns[name]})[name]).cast(schema.schema.field(name).type)
                for name in schema.schema.names
            }
        ).cast(schema.schema)

    inside = {**common, "numerics": ["made"] * size}
    judged["words"] = pa.nulls(size, pa.string())
    empty = (DROPPED.schema.empty_table(), DROPPED)
    filtered = made_study.commit(
        "filtered_instructions", "s0", {"data": (prompts, FILTERED_INSTRUCTIONS), "dropped": empty}
    )
    candidates = made_study.commit(
        "candidates", "s0", {"data": (cast(answers, CANDIDATES), CANDIDATES), "dropped": empty}, [filtered]
    )
    mas = made_study.commit("mas_table", "s0", {"data": (cast(judged, MAS), MAS)}, [candidates])
    logprobs = made_study.commit("logprob_table", "s0", {"data": (cast(inside, LOGPROBS), LOGPROBS)}, [candidates])
    return read_shard("s0", filtered, candidates, mas, logprobs)


def chosen(shard, front: Fronts, entries: np.ndarray) -> dict[str, tuple[int, int]]:
    """Prompt -> k of R_w and of R_l."""
    return {
        shard.prompt_ids[int(prompt)].as_py(): (int(winner), int(front.k[entry]))
        for prompt, winner, entry in zip(front.prompt, front.winner, entries, strict=True)
    }


def expected(table: pa.Table, point: SelectionSettings) -> tuple[dict[str, tuple[int, int]], dict]:
    result = select_pairs(table, point)

    def k(candidate_id: str) -> int:
        return int(candidate_id.rpartition(":")[2])

    pairs = {row["prompt_id"]: (k(row["chosen_id"]), k(row["rejected_id"])) for row in result.pairs.to_pylist()}
    return pairs, result.stats


@pytest.fixture(scope="module", params=range(2))
def case(request, tmp_path_factory):
    """A table, the shard of the store that holds it, and its fronts for every option, built in small steps."""
    import dagster as dg
    from made_study import MadeStudy

    table = score_table(request.param)
    with dg.DagsterInstance.ephemeral() as instance, pytest.MonkeyPatch.context() as patch:
        shard = stored(MadeStudy(tmp_path_factory.mktemp("case"), instance), table)
        # Prompts go on from one step to the next.
        patch.setattr(fronts_module, "ROWS_A_STEP", 7)
        each = build_fronts(shard, [SelectionSettings(**options) for options in OPTIONS])
    return table, shard, each


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(point=POINTS, option=st.integers(0, len(OPTIONS) - 1))
def test_every_pair_is_the_one_that_select_pairs_chooses(case, point, option):
    table, shard, each = case
    moved = SelectionSettings(**OPTIONS[option], alpha=point[0], delta=point[1])
    pairs, stats = expected(table, moved)
    assert len(pairs) > 10
    (entries,) = picks([each[option]], moved)
    assert chosen(shard, each[option], entries) == pairs
    before = picks([each[option]], moved.model_copy(update={"alpha": 0.0}))
    here = figures([each[option]], before, [entries], moved)
    at_zero, _ = expected(table, moved.model_copy(update={"alpha": 0.0}))
    assert here.pairs == len(pairs)
    assert here.changed == sum(pairs[name] != at_zero[name] for name in pairs)
    for name in (
        "active_penalty_share",
        "hard_negative_share",
        "longer_rejected_share",
        "mean_mas_gap",
        "mean_logp_gap",
        "mean_length_difference",
    ):
        assert getattr(here, name) == pytest.approx(stats[name]), name


def test_the_fronts_leave_out_what_can_never_be_picked(case):
    table, _, each = case
    assert 2 < len(each[0].begins) < 10
    assert len(each[0].gap) < 0.6 * table.num_rows


def test_several_settings_in_one_pass_are_those_of_a_pass_each(case):
    _, shard, each = case
    for options, together in zip(OPTIONS, each, strict=True):
        (alone,) = build_fronts(shard, [SelectionSettings(**options)])
        for name in vars(alone):
            assert np.array_equal(getattr(alone, name), getattr(together, name)), name


def test_saved_fronts_come_back_equal(case, tmp_path):
    _, shard, each = case
    path = tmp_path / "cache" / file_name(shard, SelectionSettings())
    each[0].save(path)
    back = Fronts.load(path)
    for name in vars(back):
        assert np.array_equal(getattr(back, name), getattr(each[0], name)), name
    assert [item.name for item in path.parent.iterdir()] == [path.name]


def test_settings_share_fronts_when_only_alpha_and_delta_differ():
    base = SelectionSettings(alpha=0.1, delta=0.2)
    assert front_key(base) == front_key(SelectionSettings(alpha=3, delta=0))
    others = [SelectionSettings(**options) for options in OPTIONS[1:]]
    assert len({front_key(item) for item in [base, *others]}) == len(OPTIONS)


def test_no_pairs_have_no_figures():
    empty = fronts_module._by_place([])
    (entries,) = picks([empty], SelectionSettings())
    assert len(entries) == 0
    assert figures([empty], [entries], [entries], SelectionSettings()).mean_mas_gap is None
