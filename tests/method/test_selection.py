"""Selection against the DuckDB oracle, the paper's formula on small cases, and every reason for no pair."""

import collections
import itertools
import math

import pyarrow as pa
import pytest
from pydantic import ValidationError
from selection_oracle import oracle_best, oracle_pairs
from selection_tables import candidates, random_table

from m3po_dagster.method.selection import DROPPED_SCHEMA, PAIRS_SCHEMA, SelectionSettings, pair_id, select_pairs
from m3po_dagster.method.selection_settings import FIELDS_OF_RULE
from m3po_dagster.storage.tables import PAIRS

SEEDS = range(3)


def as_tuples(table: pa.Table) -> list[tuple]:
    columns = [
        "prompt_id",
        "chosen_id",
        "rejected_id",
        "m3p_score",
        "mas_gap",
        "logp_gap",
        "ref_chosen_logp",
        "ref_rejected_logp",
    ]
    return sorted(tuple(row[name] for name in columns) for row in table.select(columns).to_pylist())


def choose(table: pa.Table, **settings) -> list[tuple[str, str, str | None]]:
    pairs = select_pairs(table, SelectionSettings(**settings)).pairs
    return [(row["prompt_id"], row["chosen_id"], row["rejected_id"]) for row in pairs.to_pylist()]


def test_worked_example():
    table = candidates([0.9, 0.7, 0.3], [-1.2, -1.1, -5.0])
    result = select_pairs(table, SelectionSettings(alpha=0.5, delta=0.1))
    (pair,) = result.pairs.to_pylist()
    assert (pair["chosen_id"], pair["rejected_id"]) == ("p:0", "p:1")
    assert pair["m3p_score"] == pytest.approx(0.2)
    assert pair["mas_gap"] == pytest.approx(0.2)
    assert pair["chosen_mas"] == 0.9
    assert pair["logp_gap"] == pytest.approx(-0.1)
    assert (pair["ref_chosen_logp"], pair["ref_rejected_logp"]) == (-1.2, -1.1)
    assert pair["pair_id"] == pair_id("p:0", "p:1")
    assert choose(table, alpha=0.0) == [("p", "p:0", "p:2")]
    assert result.stats["hard_negative_share"] == 1.0
    assert result.stats["active_penalty_share"] == 0.0


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"alpha": 0.0},
        {"alpha": 0.25, "delta": 0.3},
        {"alpha": 1.0, "delta": 0.0, "confidence": "sum"},
        {"alpha": 0.125, "delta": 0.5, "confidence": "sum", "min_gap": 0.25},
        {"allow_bonus": True, "alpha": 0.5, "delta": 0.25},
        {"allow_bonus": True, "confidence": "sum", "min_gap": 0.3},
        {"min_gap": 0.25, "min_chosen_mas": 0.75},
    ],
    ids=str,
)
def test_m3p_and_flipped_equal_the_oracle(seed, settings):
    table = random_table(seed)
    alpha, delta = settings.get("alpha", 0.5), settings.get("delta", 0.1)
    options = {"allow_bonus": "bonus", "min_chosen_mas": "min_chosen"}
    rest = {options.get(name, name): value for name, value in settings.items() if name not in ("alpha", "delta")}
    expected = oracle_pairs(table, alpha, delta, **rest)
    assert len(expected) >= 10
    assert as_tuples(select_pairs(table, SelectionSettings(**settings)).pairs) == sorted(expected)
    flipped = select_pairs(table, SelectionSettings(rule="flipped", **settings)).pairs
    turned = [(p, loser, winner, s, -gap, -logp, r, c) for p, winner, loser, s, gap, logp, c, r in expected]
    assert as_tuples(flipped) == sorted(turned)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("confidence", ["mean", "sum"])
def test_reward_max_min_equals_the_oracle(seed, confidence):
    table = random_table(seed)
    expected = oracle_pairs(table, 0.0, 0.0, score="style", confidence=confidence)
    settings = SelectionSettings(rule="reward_max_min", reward="style", confidence=confidence)
    mas = dict(zip(table["candidate_id"].to_pylist(), table["mas"].to_pylist(), strict=True))
    wanted = []
    for prompt, chosen, rejected, _, _, logp_gap, *sums in expected:
        gap = None if unknown(mas[chosen]) or unknown(mas[rejected]) else mas[chosen] - mas[rejected]
        wanted.append((prompt, chosen, rejected, None, gap, logp_gap, *sums))
    got = as_tuples(select_pairs(table, settings).pairs)
    assert [row[:3] for row in got] == [row[:3] for row in wanted]
    assert got == wanted


@pytest.mark.parametrize("seed", SEEDS)
def test_best_only_equals_the_oracle(seed):
    table = random_table(seed)
    pairs = select_pairs(table, SelectionSettings(rule="best_only")).pairs.to_pylist()
    assert sorted((row["prompt_id"], row["chosen_id"], row["ref_chosen_logp"]) for row in pairs) == oracle_best(table)
    assert all(row[name] is None for row in pairs for name in ("rejected_id", "mas_gap", "ref_rejected_logp"))
    assert len({row["pair_id"] for row in pairs}) == len(pairs)


@pytest.mark.parametrize("regular", [True, False])
def test_a_table_without_k_text_and_finish_reason_equals_the_oracle(regular):
    """The path of a plain regular table: blocks are views of the columns."""
    table = random_table(7, prompts=300, width=32, regular=regular, shuffle=False)
    k = pa.array([int(name.split(":")[1]) for name in table["candidate_id"].to_pylist()])
    table = table.set_column(table.column_names.index("k"), "k", k).sort_by(
        [("prompt_id", "ascending"), ("k", "ascending")]
    )
    text, finish = pa.nulls(len(table), pa.string()), pa.nulls(len(table), pa.string())
    blank = table.drop(["text", "finish_reason"]).append_column("text", text).append_column("finish_reason", finish)
    expected = oracle_pairs(blank, 0.5, 0.1)
    assert as_tuples(select_pairs(table.drop(["text", "finish_reason", "k"]), SelectionSettings()).pairs) == expected
    assert as_tuples(select_pairs(blank, SelectionSettings()).pairs) == expected


@pytest.mark.parametrize(
    ("mas", "sum_logp", "n_tokens", "winner", "loser"),
    [
        ([1, 1, 0], [-4, -2, -2], [1, 1, 1], 1, 2),
        # The mean decides between winners although the sum says otherwise.
        ([1, 1, 0], [-4, -3, -2], [4, 1, 1], 0, 2),
        ([1, 1, 0], [-4, -2, -2], [4, 2, 1], 1, 2),
        ([1, 1, 0], [-2, -2, -2], [2, 2, 2], 0, 2),
        ([1, 0, 0], [-4, -4, -2], [2, 2, 1], 0, 2),
        ([1, 0, 0, 0], [-8, -4, -2, -2], [4, 4, 2, 2], 0, 2),
    ],
)
def test_ties_go_to_confidence_then_fewer_tokens_then_lower_k(mas, sum_logp, n_tokens, winner, loser):
    table = candidates(mas, sum_logp, n_tokens)
    assert choose(table) == [("p", f"p:{winner}", f"p:{loser}")]


def test_ties_in_s_use_the_recipes_confidence():
    table = candidates([1, 0, 0], [-100, -10, -9], [1, 10, 3])
    assert choose(table, confidence="mean") == [("p", "p:0", "p:1")]
    assert choose(table, confidence="sum") == [("p", "p:0", "p:2")]


def test_k_decides_wherever_the_rows_stand():
    table = candidates([1, 1, 0, 0], [-1, -1, -1, -1], k=[3, 2, 1, 0])
    assert choose(table) == [("p", "p:1", "p:3")]


REASON_CASES = {
    "no_scored_candidate": (candidates([None, float("nan")], [-1, -1]), {}),
    "one_distinct_candidate": (candidates([1, None], [-1, -1]), {}),
    "every_scored_candidate_truncated": (candidates([1, 0], [-1, -1], finish_reason=["length", "length"]), {}),
    "chosen_below_min_mas": (candidates([0.4, 0.1], [-1, -1]), {"min_chosen_mas": 0.5}),
    "no_loser_above_min_gap": (candidates([1, 0.75], [-1, -1]), {"min_gap": 0.25}),
    "rejected_text_equals_chosen": (
        candidates(
            [1, 0, 1],
            [-1, -1, -1],
            text=["A cat.", " a  CAT. ", "Two cats."],
            finish_reason=["stop", "stop", "length"],
        ),
        {"min_gap": 0.5},
    ),
}


@pytest.mark.parametrize("rule", ["m3p", "flipped", "vanilla", "random"])
@pytest.mark.parametrize("reason", REASON_CASES)
def test_no_pair_has_a_reason(rule, reason):
    table, options = REASON_CASES[reason]
    result = select_pairs(table, SelectionSettings(rule=rule, **options))
    assert result.pairs.num_rows == 0
    assert result.dropped["reason"].to_pylist() == [reason]
    assert result.dropped["detail"].to_pylist()[0]
    assert result.stats["dropped_by_reason"] == {reason: 1}


def test_one_candidate_or_one_text_is_no_pair_but_enough_for_best_only():
    for table in (candidates([1], [-1]), candidates([1, 0], [-1, -1], text=["A cat", "a cat"])):
        dropped = select_pairs(table, SelectionSettings()).dropped
        assert dropped["reason"].to_pylist() == ["one_distinct_candidate"]
        assert choose(table, rule="best_only") == [("p", "p:0", None)]


def test_the_next_loser_is_taken_when_the_worst_repeats_the_chosen_text():
    table = candidates([1, 0, 0.5], [-1, -1, -1], text=["A cat.", "a cat.", "A dog."])
    assert choose(table) == [("p", "p:0", "p:2")]


def test_a_missing_text_is_equal_to_nothing():
    assert choose(candidates([1, 0], [-1, -1], text=[None, None])) == [("p", "p:0", "p:1")]
    assert choose(candidates([1, 0, 0.5], [-1, -1, -1], text=[None, None, "A dog."])) == [("p", "p:0", "p:1")]


def test_a_truncated_answer_is_never_chosen_but_may_be_rejected():
    table = candidates([1, 0.5, 0], [-1, -1, -1], finish_reason=["length", "stop", "length"])
    assert choose(table) == [("p", "p:1", "p:2")]
    result = select_pairs(table, SelectionSettings())
    assert result.stats["truncated"] == 2


def test_unscored_candidates_are_neither_zero_nor_chosen():
    infinite = float("inf")
    table = candidates([None, infinite, 1, 0.5, -infinite, 0.75], [-1, -1, -1, -1, -1, None])
    assert choose(table) == [("p", "p:2", "p:3")]
    stats = select_pairs(table, SelectionSettings()).stats
    assert (stats["unscored"], stats["without_confidence"], stats["candidates"]) == (3, 1, 6)


@pytest.mark.parametrize("rule", FIELDS_OF_RULE)
@pytest.mark.parametrize("seed", SEEDS)
def test_every_prompt_is_a_pair_or_a_drop_in_the_order_of_the_table(rule, seed):
    table = random_table(seed)
    extra = {"reward": "style"} if rule == "reward_max_min" else {}
    result = select_pairs(table, SelectionSettings(rule=rule, **extra))
    order = list(dict.fromkeys(table["prompt_id"].to_pylist()))
    paired, dropped = result.pairs["prompt_id"].to_pylist(), result.dropped["prompt_id"].to_pylist()
    assert sorted([*dict.fromkeys(paired), *dropped]) == sorted(order)
    assert len(paired) == len(set(paired)) or rule in ("margin_pairs", "every_answer")
    assert list(dict.fromkeys(paired)) == [name for name in order if name in set(paired)]
    assert dropped == [name for name in order if name in set(dropped)]
    assert result.stats["pairs"] == len(paired)
    assert result.stats["dropped"] == sum(result.stats["dropped_by_reason"].values()) == len(dropped)
    assert result.pairs.schema == PAIRS_SCHEMA and result.dropped.schema == DROPPED_SCHEMA
    result.pairs.validate(full=True)


def test_schema_is_the_stores():
    assert PAIRS.schema == PAIRS_SCHEMA


def unknown(value: float | None) -> bool:
    return value is None or math.isnan(value)


def eligible_pairs(rows: list[dict], min_gap: float) -> set[tuple[str, str]]:
    """Every preference of a prompt by its definition: better first, the better one whole, another text."""
    usable = [row for row in rows if not unknown(row["mas"]) and row["sum_logp"] is not None]

    def plain(row: dict) -> object:
        return row["candidate_id"] if row["text"] is None else " ".join(row["text"].lower().split())

    return {
        (a["candidate_id"], b["candidate_id"])
        for a, b in itertools.permutations(usable, 2)
        if a["mas"] - b["mas"] > min_gap and a["finish_reason"] != "length" and plain(a) != plain(b)
    }


@pytest.mark.parametrize("min_gap", [0.0, 0.25])
def test_vanilla_draws_among_all_preferences_and_random_turns_the_same_pair(min_gap):
    table = random_table(11, prompts=200)
    by_prompt = collections.defaultdict(list)
    for row in table.to_pylist():
        by_prompt[row["prompt_id"]].append(row)
    vanilla = {p: (c, r) for p, c, r in choose(table, rule="vanilla", min_gap=min_gap, seed=3)}
    turned = {p: (c, r) for p, c, r in choose(table, rule="random", min_gap=min_gap, seed=3)}
    for prompt, rows in by_prompt.items():
        allowed = eligible_pairs(rows, min_gap)
        assert (prompt in vanilla) == bool(allowed)
        assert prompt not in vanilla or vanilla[prompt] in allowed
    same = sum(turned[prompt] == pair for prompt, pair in vanilla.items())
    assert all(set(turned[prompt]) == set(pair) for prompt, pair in vanilla.items())
    assert turned.keys() == vanilla.keys()
    assert 0.35 < same / len(vanilla) < 0.65
    other = {p: (c, r) for p, c, r in choose(table, rule="vanilla", min_gap=min_gap, seed=4)}
    assert other.keys() == vanilla.keys() and other != vanilla


def test_vanilla_is_uniform_over_the_preferences():
    many = pa.concat_tables(candidates([1, 0.5, 0, 0], [-1] * 4, prompt=f"p{n}") for n in range(3000))
    counts = collections.Counter((c[-1], r[-1]) for _, c, r in choose(many, rule="vanilla"))
    assert set(counts) == {("0", "1"), ("0", "2"), ("0", "3"), ("1", "2"), ("1", "3")}
    # 600 expected each, standard deviation 22.
    assert all(abs(count - 600) < 110 for count in counts.values())


def test_statistics_are_those_of_the_pairs():
    table = random_table(5, prompts=150)
    result = select_pairs(table, SelectionSettings(delta=0.25))
    rows = {row["candidate_id"]: row for row in table.to_pylist()}
    pairs = result.pairs.to_pylist()

    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    tokens = [rows[pair["chosen_id"]]["n_tokens"] - rows[pair["rejected_id"]]["n_tokens"] for pair in pairs]
    stats = result.stats
    assert stats["mean_length_difference"] == pytest.approx(mean(tokens))
    assert stats["mean_mas_gap"] == pytest.approx(mean([pair["mas_gap"] for pair in pairs]))
    assert stats["mean_logp_gap"] == pytest.approx(mean([pair["logp_gap"] for pair in pairs]))
    assert stats["hard_negative_share"] == pytest.approx(mean([pair["logp_gap"] < 0 for pair in pairs]))
    assert stats["active_penalty_share"] == pytest.approx(mean([pair["logp_gap"] > 0.25 for pair in pairs]))
    flipped = select_pairs(table, SelectionSettings(rule="flipped", delta=0.25)).stats
    assert flipped["active_penalty_share"] == stats["active_penalty_share"]
    tops = collections.defaultdict(list)
    for row in rows.values():
        if not unknown(row["mas"]) and row["sum_logp"] is not None:
            tops[row["prompt_id"]] += [row["mas"]] if row["finish_reason"] != "length" else []
    tied = sum(bool(values) and values.count(max(values)) > 1 for values in tops.values())
    assert stats["top_tie_share"] == pytest.approx(tied / stats["prompts"])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"alpha": -1}, "greater than or equal to 0"),
        ({"delta": float("nan")}, "finite"),
        ({"rule": "best"}, "Input should be"),
        ({"rule": "vanilla", "alpha": 0.5}, "vanilla does not use alpha"),
        ({"rule": "best_only", "min_gap": 0.1}, "best_only does not use min_gap"),
        ({"seed": 1}, "m3p does not use seed"),
        ({"rule": "reward_max_min"}, "needs reward"),
        ({"margin": 1}, "Extra inputs"),
    ],
)
def test_settings_refuse_what_has_no_effect_or_no_sense(settings, words):
    with pytest.raises(ValidationError, match=words):
        SelectionSettings(**settings)


@pytest.mark.parametrize("rule", FIELDS_OF_RULE)
def test_a_dump_validates_again_and_holds_what_the_rule_uses(rule):
    settings = SelectionSettings(rule=rule, **({"reward": "style"} if rule == "reward_max_min" else {}))
    silent = {"score", "score_noise", "noise_seed", "candidates", "max_length_difference"}
    assert set(settings.model_dump()) == (FIELDS_OF_RULE[rule] | {"rule"}) - silent
    assert SelectionSettings.model_validate_json(settings.model_dump_json()) == settings
