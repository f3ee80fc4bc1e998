"""Judges of known rules: each is caught by the check of its fault, and by others only where they must see it too."""

import json

import numpy as np
import pyarrow as pa
import pytest

from m3po_dagster.assets import checks
from m3po_dagster.assets.judge_checks import judge_checks, probe_order
from m3po_dagster.method.alignment.cascade import NOT_NEEDED
from m3po_dagster.method.alignment.probe import CASES, QUALITIES
from m3po_dagster.method.alignment.quality import Controls, QualitySettings, controls
from m3po_dagster.storage.tables import PROBE
from tests.rule_judge import RuleSettings, answer, judge_of, known_pairs_file, shard


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("greys")


@pytest.fixture(scope="module")
def some(folder):
    return shard(folder, prompts=40, answers=12)


def checked(some, folder, *scorers, known=True, prompts=8, change=lambda table: table) -> dict[str, checks.Check]:
    """Every check of the table that the judge makes of the shard, by name."""
    judge = judge_of(*scorers)
    built = judge.build()
    table = some.table(built)
    settings = QualitySettings(prompts=prompts, known_pairs=known_pairs_file(folder) if known else None)
    asked = controls(built, some.items, table, judge.scorers, settings, 0)
    table = change(table)
    found = (checks.scored(table, 0.05), checks.spread(table), *judge_checks(table, some.candidates, asked, judge))
    return {check.name: check for check in found}


def failed(found: dict[str, checks.Check]) -> set[str]:
    return {name for name, check in found.items() if not check.passed}


@pytest.mark.parametrize(
    ("rule", "caught"),
    [
        ({}, set()),
        ({"group_size": 1}, set()),
        ({"noise": 0.05}, set()),
        # A place that gains half the scale turns orders over; what the two ends gain stays when the order is reversed.
        ({"early": 0.5}, {"position_bias", "swap_consistency"}),
        ({"early": -0.5}, {"position_bias", "swap_consistency"}),
        ({"ends": 0.5}, {"position_bias"}),
        ({"long": 0.5}, {"length_bias"}),
        ({"blind": True}, {"shuffled_image"}),
        # What is upside down prefers the wrong image too.
        ({"inverted": True}, {"known_pairs", "not_inverted", "shuffled_image"}),
        ({"constant": True}, {"spread", "top_ties", "known_pairs", "shuffled_image"}),
        ({"noise": 0.3}, {"swap_consistency"}),
    ],
    ids=lambda value: ",".join(map(str, value)) if isinstance(value, dict) else "",
)
def test_each_judge_is_caught_by_the_check_of_its_fault(some, folder, rule, caught):
    found = checked(some, folder, RuleSettings(**rule))
    assert failed(found) == caught
    assert [check.name for check in found.values()] == [rule.name for rule in checks.RULES["mas_table"]]
    assert all(np.isfinite(figure) for check in found.values() for figure in check.figures.values())


def test_only_a_judge_upside_down_blocks(some, folder):
    found = checked(some, folder, RuleSettings(inverted=True))
    assert {name for name, check in found.items() if check.blocking} == {"scored", "not_inverted"}
    # A handful of images could be upside down by chance.
    few = judge_of(RuleSettings(inverted=True))
    settings, table = QualitySettings(known_pairs=known_pairs_file(folder, pairs=5)), some.table(few.build())
    asked = controls(few.build(), [], table.slice(0, 0), few.scorers, settings, 0)
    of_five = {check.name: check for check in judge_checks(table, some.candidates, asked, few)}
    assert not of_five["known_pairs"].passed and of_five["not_inverted"].passed


def test_a_fair_judge_of_many_shards_is_hardly_ever_warned_of(folder):
    alarms = 0
    for seed in range(30):
        alarms += bool(failed(checked(shard(folder, 24, 9, seed=100 + seed), folder, RuleSettings(seed=seed))))
    assert alarms <= 1


def test_a_blind_scorer_beside_one_that_sees_is_found(some, folder):
    sees, blind = RuleSettings(name="sees"), RuleSettings(name="blind", blind=True)
    assert failed(checked(some, folder, sees, blind)) == {"shuffled_image"}
    kept_out = checked(some, folder, sees, blind.model_copy(update={"weight": 0.0}))
    assert not failed(kept_out) and kept_out["shuffled_image"].figures["blind_fall"] == 0
    text_only = checked(some, folder, sees, blind.model_copy(update={"text_only": True}))
    assert not failed(text_only) and "blind_fall" not in text_only["shuffled_image"].figures


def test_what_could_not_be_scored_again_is_counted_and_left_out(some, folder):
    fair = judge_of(RuleSettings())
    table = some.table(fair.build())
    sampled = controls(fair.build(), some.items, table, fair.scorers, QualitySettings(), 0).shuffled
    texts = {row["candidate_id"]: row["text"] for _, rows in some.items for row in rows}
    lost = tuple(texts[key] for key in list(sampled)[:5])
    found = checked(some, folder, RuleSettings(unreadable=lost))
    assert not failed(found)
    assert found["shuffled_image"].figures["rule_unscored"] == found["swap_consistency"].figures["rule_unscored"] == 5


def test_known_pairs_that_can_not_be_scored_are_no_pass(some, folder):
    pairs = [json.loads(line) for line in known_pairs_file(folder).read_text().splitlines()]
    some_lost = checked(some, folder, RuleSettings(unreadable=(pairs[0]["worse"], pairs[3]["better"])))["known_pairs"]
    assert some_lost.passed and (some_lost.figures["unscored"], some_lost.figures["pairs"]) == (2, 18)
    all_lost = checked(some, folder, RuleSettings(unreadable=tuple(pair["better"] for pair in pairs)))
    assert failed(all_lost) == {"known_pairs"}


def test_without_controls_and_pairs_nothing_is_claimed(some, folder):
    found = checked(some, folder, RuleSettings(blind=True, inverted=True), known=False, prompts=0)
    assert not failed(found)
    for name in ("swap_consistency", "shuffled_image"):
        assert "not asked" in found[name].description and not found[name].figures
    assert "known_pairs" in found["known_pairs"].description and not found["known_pairs"].figures


def test_a_small_or_an_empty_shard_says_so(folder):
    small = checked(shard(folder, prompts=4), folder, RuleSettings(blind=True, early=0.5, long=0.5))
    assert not failed(small)
    for name in ("shuffled_image", "swap_consistency", "position_bias", "length_bias"):
        assert "few" in small[name].description
    judge = judge_of(RuleSettings())
    whole = shard(folder, prompts=1)
    nothing = judge_checks(whole.table(judge.build()).slice(0, 0), whole.candidates, Controls(), judge)
    assert all(check.passed and not check.figures for check in nothing)


def test_a_place_that_is_always_the_first_is_none(some, folder):
    def alone(table):
        return table.set_column(table.column_names.index("rule_position"), "rule_position", [[1.0] * len(table)])

    found = checked(some, folder, RuleSettings(early=0.5), change=alone)["position_bias"]
    assert found.passed and "no scorer is shown several" in found.description


def test_places_of_a_cascade_are_no_chance(some, folder):
    def leave_out(table):
        status = [NOT_NEEDED, *table["status"].to_pylist()[1:]]
        return table.set_column(table.column_names.index("status"), "status", [status])

    found = checked(some, folder, RuleSettings(early=0.5), change=leave_out)
    assert failed(found) == {"swap_consistency"} and "cascade" in found["position_bias"].description


def test_lengths_are_joined_by_candidate_not_by_order(some, folder):
    judge = judge_of(RuleSettings(long=0.5))
    table, turned = some.table(judge.build()), some.candidates.take(list(range(some.candidates.num_rows))[::-1])
    ours, other = (
        {c.name: c for c in judge_checks(table, given, Controls(), judge)}["length_bias"]
        for given in (some.candidates, turned)
    )
    assert ours == other and not ours.passed


@pytest.mark.parametrize(("tied", "passed"), [(6, True), (7, False)])
def test_ties_warn_only_when_they_take_half_of_the_answers(tied, passed):
    mas = [1.0] * tied + [0.1 * k for k in range(12 - tied)]
    table = pa.table(
        {
            "candidate_id": [str(k) for k in range(24)],
            "prompt_id": ["a"] * 12 + ["b"] * 12,
            "status": ["scored"] * 24,
            "mas": mas * 2,
            "rule": mas * 2,
        }
    )
    lengths = pa.table({"candidate_id": table["candidate_id"], "n_tokens": [1] * 24})
    (ties, *_) = judge_checks(table, lengths, Controls(), judge_of(RuleSettings(group_size=1)))
    assert ties.passed is passed and ties.figures == {"top_share": pytest.approx(tied / 12), "tied_share": 1.0}


@pytest.mark.parametrize(("values", "passed"), [((0.5, 0.51), True), ((0.5, 0.505), False)])
def test_a_hair_between_candidates_is_no_spread(values, passed):
    table = pa.table({"prompt_id": ["p", "p"], "mas": list(values)})
    found = checks.spread(table)
    assert found.passed is passed
    assert found.figures["mean_sd"] == pytest.approx(np.std(values))


def probe(**changed: float | None) -> pa.Table:
    """What a good judge answers to the probe, but for some cases (image_quality)."""
    rows = []
    for image in CASES:
        for quality, value in zip(QUALITIES, (1.0, 0.5, 0.0), strict=True):
            value = changed.get(f"{image}_{quality}", value)
            rows.append({"scorer": "judge", "case": f"{image}:{quality}", "value": value, "sub_scores": "{}"})
            rows[-1]["status"] = "refused" if value is None else "scored"
    return pa.Table.from_pylist(rows, schema=PROBE.schema)


def test_the_probe_shows_whether_right_is_above_wrong():
    good = probe_order(probe())
    assert good.passed and good.figures == {"judge_above_wrong": 4, "judge_above_half": 4}
    assert probe_order(probe(bars_wrong=1.0)).figures["judge_above_wrong"] == 3
    assert probe_order(probe(bars_wrong=1.0)).passed and probe_order(probe(bars_right=None)).passed
    assert not probe_order(probe(bars_wrong=1.0, halves_right=None)).passed
    assert probe_order(probe(bars_half=1.0, halves_half=1.0, shapes_half=1.0)).passed
    assert probe_order(PROBE.schema.empty_table()).passed


def test_answers_say_how_good_they_are():
    assert answer(40, 0.7, 2) == "grey 40: 0.7000 word word"
