"""What the controls ask, of whom, and how much: planned as it is asked, on prompts that chance chose."""

import shutil
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from m3po_dagster.method.alignment.cascade import NOT_NEEDED, CascadeSettings
from m3po_dagster.method.alignment.quality import QualitySettings, controls, plan
from tests.rule_judge import RuleSettings, judge_of, known_pairs_file, shard

FAIR = judge_of(RuleSettings())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("greys")


def planned(items, judge=FAIR, prompts=8, seed=0, **more):
    return plan(items, judge.scorers, QualitySettings(prompts=prompts), seed, **more)


def test_every_sampled_prompt_has_an_image_of_its_own_and_gets_another(folder):
    items = shard(folder, prompts=30, prompts_an_image=3).items
    asks = planned(items)
    own = {prompt.prompt_id: prompt.image_path for prompt, _ in items}
    assert len(asks.shuffled) == len({own[one.prompt.prompt_id] for one in asks.shuffled}) == 8
    assert all(one.prompt.image_path != own[one.prompt.prompt_id] for one in asks.shuffled)
    assert {one.prompt.image_path for one in asks.shuffled} == {own[one.prompt.prompt_id] for one in asks.shuffled}
    # Nothing but the image is another.
    assert [replace(one.prompt, image_path=own[one.prompt.prompt_id]) for one in asks.shuffled] == [
        one.prompt for one in asks.swapped
    ]


def test_an_image_under_two_names_is_one_image(folder, tmp_path):
    items = shard(folder, prompts=2).items
    shutil.copy(items[0][0].image_path, tmp_path / "twin.png")
    twins = [items[0], (replace(items[1][0], image_path=tmp_path / "twin.png"), items[1][1])]
    assert planned(twins).shuffled == ()
    lost = [(replace(items[1][0], image_path=tmp_path / "lost.png"), items[1][1])]
    assert planned([*items, *lost]) == planned(items)


@given(st.integers(0, 2**31), st.permutations(range(12)))
def test_the_sample_is_chance_and_the_order_of_the_prompts_does_not_matter(folder, seed, order):
    items = shard(folder, prompts=12).items
    assert planned([items[i] for i in order], prompts=6, seed=seed) == planned(items, prompts=6, seed=seed)


def test_another_seed_asks_about_others(folder):
    items = shard(folder, prompts=40).items
    samples = {tuple(one.prompt.prompt_id for one in planned(items, seed=seed).swapped) for seed in range(10)}
    assert len(samples) == 10


def test_only_judges_that_see_several_answers_at_once_are_asked_in_another_order(folder):
    items = shard(folder, prompts=10).items
    assert planned(items, judge_of(RuleSettings(group_size=1))).swapped == ()
    both = judge_of(RuleSettings(group_size=1), RuleSettings(name="other"))
    assert len(planned(items, both).swapped) == 8 and len(planned(items, both, prompts=0).swapped) == 0


@pytest.mark.parametrize(("answers", "size"), [(12, 8), (16, 8), (5, 8), (7, 3), (9, 1)])
def test_what_is_asked_is_what_was_foretold(folder, answers, size):
    judge = judge_of(RuleSettings(group_size=size))
    some = shard(folder, prompts=12, answers=answers)
    settings = QualitySettings(known_pairs=known_pairs_file(folder, 10))
    built = judge.build()
    table = some.table(built)
    (scorer,) = built._scorers
    before = sum(scorer.requests.values())
    controls(built, some.items, table, judge.scorers, settings, 0)
    asks = plan(some.items, judge.scorers, settings, 0)
    foretold = [sum(-(-len(texts) // size) for _, texts in batch) for batch in (asks.reversed_batch, asks.batch)]
    assert foretold == [scorer.requests["reversed"], scorer.requests["as shown"] - before]
    groups = -(-answers // size)
    assert foretold == [8 * groups if size > 1 else 0, 8 * groups + (10 if size > 1 else 20)]


def test_the_swapped_judge_sees_the_same_groups_backwards(folder):
    some, judge = shard(folder, prompts=10, answers=13), judge_of(RuleSettings(group_size=5))
    built = judge.build()
    table = some.table(built)
    found = controls(built, some.items, table, judge.scorers, QualitySettings(), 0)
    place = dict(zip(table["candidate_id"].to_pylist(), table["rule_position"].to_pylist(), strict=True))
    sums = {key: place[key] + row["rule_position"] for key, row in found.swapped.items()}
    # Groups of 13 answers at most 5 at once: 5, 4 and 4.
    assert len(sums) == 8 * 13 and sorted(set(sums.values())) == [5.0, 6.0]


def test_answers_that_a_cascade_left_out_are_not_asked_about(folder):
    some = shard(folder, prompts=10)
    built = FAIR.build()
    table = some.table(built)
    left = {f"p{number}:{k}" for number in range(10) for k in range(4)} | {f"p3:{k}" for k in range(12)}
    status = [NOT_NEEDED if key in left else "scored" for key in table["candidate_id"].to_pylist()]
    table = table.set_column(table.column_names.index("status"), "status", [status])
    found = controls(built, some.items, table, FAIR.scorers, QualitySettings(prompts=10), 0)
    kept = set(table["candidate_id"].to_pylist()) - left
    assert set(found.swapped) == set(found.shuffled) == kept and len(kept) == 9 * 8


def test_a_judge_with_a_cascade_is_asked_about_all_that_the_controls_choose(folder):
    cheap, dear = RuleSettings(name="cheap", at=None), RuleSettings(name="dear", weight=4)
    judge = judge_of(cheap, dear).model_copy(update={"cascade": CascadeSettings()})
    some = shard(folder, prompts=8)
    found = controls(judge.build(), some.items, some.table(FAIR.build()), judge.scorers, QualitySettings(), 0)
    for rows in (found.swapped, found.shuffled):
        assert len(rows) == 8 * 12 and all(row["dear"] is not None for row in rows.values())


def test_a_known_pairs_answers_are_asked_about_once_a_prompt(folder):
    path = known_pairs_file(folder, 6)
    path.write_text(path.read_text() + path.read_text())
    asks = plan([], FAIR.scorers, QualitySettings(known_pairs=path), 0)
    assert len(asks.known) == 12 and [len(texts) for _, texts in asks.batch] == [2] * 6
    built = FAIR.build()
    empty = shard(folder, prompts=1).table(built).slice(0, 0)
    found = controls(built, [], empty, FAIR.scorers, QualitySettings(known_pairs=path), 0)
    assert len(found.known) == 12 and all(better["mas"] > worse["mas"] for _, better, worse in found.known)
    assert found.swapped == found.shuffled == {}


def test_too_few_prompts_are_refused():
    assert QualitySettings().prompts == 8 and QualitySettings(prompts=0).prompts == 0
    with pytest.raises(ValidationError, match="0 or more"):
        QualitySettings(prompts=5)
