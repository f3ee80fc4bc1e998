"""Asset checks: what each lets through and what it stops."""

import math

import pyarrow as pa
import pytest

from m3po_dagster.assets import checks
from m3po_dagster.method.alignment.cascade import NOT_NEEDED
from m3po_dagster.method.generation.diversity import measure
from m3po_dagster.storage.tables import LOGPROBS, PAIRS


def table(schema, **columns):
    rows = len(next(iter(columns.values())))
    filler = {"string": "x", "int32": 1, "int64": 1, "double": -1.0}
    found = {}
    for field in schema.schema:
        given = columns.get(field.name)
        found[field.name] = pa.array(given if given is not None else [filler.get(str(field.type))] * rows, field.type)
    return pa.table(found, schema=schema.schema)


@pytest.mark.parametrize(
    ("answers", "passed"),
    [
        ([(["yes", "a dog"], [3, 1], [False, False])], True),
        ([(["yes"], [4], [False]), (["no"], [4], [False])], False),
        ([(["yes", "a dog", "cut"], [1, 1, 6], [False, False, True])], False),
        ([(["yes", "a dog"], [9, 1], [False, True])], True),
        ([(["a very long answer " * 20 + end for end in "ab"], [4, 4], [False, False])], False),
        ([], True),
    ],
    ids=["different", "one answer", "cut", "a few cut", "nearly one answer", "none"],
)
def test_diversity(answers, passed):
    check = checks.diversity(measure(answers))
    assert check.passed is passed and not check.blocking


@pytest.mark.parametrize(
    ("value", "passed"), [(-1.0, True), (0.0, True), (0.5, False), (math.nan, False), (-math.inf, False)]
)
def test_confidence_must_be_finite_and_not_above_zero(value, passed):
    check = checks.confidence_finite(table(LOGPROBS, candidate_id=["a", "b"], sum_logp=[-2.0, value]))
    assert check.passed is passed and check.blocking


def test_a_pair_against_itself_is_stopped():
    good = table(PAIRS, pair_id=["p"], chosen_id=["a"], rejected_id=["b"])
    bad = table(PAIRS, pair_id=["p"], chosen_id=["a"], rejected_id=["a"])
    lone = table(PAIRS, pair_id=["p"], chosen_id=["a"], rejected_id=[None], ref_rejected_logp=[None])
    assert checks.pairs_well_formed(good).passed and checks.pairs_well_formed(lone).passed
    assert not checks.pairs_well_formed(bad).passed and checks.pairs_well_formed(bad).blocking


def test_a_reference_that_is_not_a_number_is_stopped():
    assert not checks.pairs_well_formed(
        table(PAIRS, chosen_id=["a"], rejected_id=["b"], ref_chosen_logp=[math.nan])
    ).passed


def mas(values, prompts=None):
    status = ["scored" if value is not None else "j: refused" for value in values]
    columns = {"mas": pa.array(values, pa.float64()), "status": pa.array(status, pa.string())}
    return pa.table({"prompt_id": prompts or ["p"] * len(values), **columns})


@pytest.mark.parametrize(
    ("values", "share", "passed"), [([0.1, None], 0.5, True), ([0.1, None], 0.49, False), ([], 0.0, True)]
)
def test_unscored_candidates_up_to_a_share(values, share, passed):
    assert checks.scored(mas(values), share).passed is passed


def test_what_a_cascade_left_out_is_not_unscored():
    table = mas([0.1, None, None, None])
    table = table.set_column(2, "status", pa.array(["scored", NOT_NEEDED, NOT_NEEDED, "j: refused"]))
    assert table.column_names[2] == "status" and checks.scored(table, 0.25).passed
    assert not checks.scored(table, 0.24).passed


def test_spread_counts_prompts_that_mas_tells_apart():
    assert checks.spread(mas([0.1, 0.2, 0.5, 0.5], ["a", "a", "b", "b"])).figures["share"] == 0.5
    assert not checks.spread(mas([0.5, 0.5, None, None], ["a", "a", "b", "b"])).passed


def test_the_other_thresholds():
    assert checks.kept_share(1, 1).passed and not checks.kept_share(1, 2).passed and checks.kept_share(0, 0).passed
    assert checks.prompts_answered(95, 5, 0.05).passed and not checks.prompts_answered(94, 6, 0.05).passed
    assert checks.prompts_answered(0, 0, 0.0).passed and checks.prompts_answered(71, 29, 0.29).passed
    assert checks.pair_yield(1, 1).passed and not checks.pair_yield(1, 2).passed
    assert checks.trained_on_benchmarks(3, []).passed and not checks.trained_on_benchmarks(3, ["a is b"]).passed


def test_every_rule_is_declared_once_and_evaluated():
    names = [rule.name for rules in checks.RULES.values() for rule in rules]
    assert len(set(names)) == len(names)
