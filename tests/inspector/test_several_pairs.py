"""Rules that give a prompt several rows, and a noisier judge: every page shows the best and hides no count."""

import re

import dagster as dg
import pytest
from conftest import client_of
from made_study import Answer, Asked, MadeStudy

from m3po_dagster.method.selection import SelectionSettings, select_pairs

RULES = {
    "margin": {"rule": "margin_pairs", "max_pairs": 4, "min_gap": 0.25},
    "every": {"rule": "every_answer"},
    "noisy": {"rule": "m3p", "score_noise": 0.75, "noise_seed": 4, "candidates": 4},
}


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """Pages of two prompts with five answers, longer and shorter ones among the better, and of one with one answer."""
    with dg.DagsterInstance.ephemeral() as instance:
        study = MadeStudy(tmp_path_factory.mktemp("several"), instance)
        study.settings["recipes"] = {"base": {}} | {
            name: {"selection": rule, "training": {"kind": "rlhf" if rule["rule"] == "every_answer" else "dpo"}}
            for name, rule in RULES.items()
        }
        study.write()
        lengths = [6, 3, 8, 2, 5]
        prompts = [
            Asked(
                f"prompt{number}",
                "What is it?",
                [Answer(f"{number}{k}", 1 - 0.25 * k, -1.0 * size, size) for k, size in enumerate(lengths[:answers])],
            )
            for number, answers in enumerate((5, 5, 1))
        ]
        study.add_shard("s0", prompts, recipes=tuple(RULES))
        client = client_of(study)
        client.watch.settle()
        assert not client.watch.problem
        yield client


def pairs_in(client, recipe: str) -> list[dict]:
    (artifact,) = client.watch.catalogue().recipes[recipe].artifacts.values()
    return artifact.table().to_pylist()


@pytest.mark.parametrize("recipe", ["margin", "every"])
def test_the_first_of_a_prompts_pairs_is_marked_and_the_others_counted(several, recipe):
    pairs = [row for row in pairs_in(several, recipe) if row["prompt_id"] == "prompt0"]
    assert len(pairs) > 2
    found = several.watch.catalogue().recipes[recipe]
    assert found.more[0] == len(pairs) - 1 and f"prompt0:{found.chosen[0]}" == pairs[0]["chosen_id"]
    if recipe == "margin":
        assert found.mas_gap[0] == max(row["mas_gap"] for row in pairs) and found.rejected[0] >= 0
    else:
        assert found.chosen[0] == 0 and found.rejected[0] == -1
    page = several.get(f"/prompts/prompt0?recipe={recipe}").text
    assert f"has {len(pairs) - 1} more pairs of this prompt" in page
    assert len(re.findall(r'<span class="tag chosen">', page)) >= 1
    assert f"{len(pairs) - 1} more pairs" in several.get(f"/prompts?recipe={recipe}").text


def test_the_overview_counts_prompts_and_the_pairs_beside(several):
    page = several.get("/").text
    for recipe in RULES:
        pairs = pairs_in(several, recipe)
        prompts = len({row["prompt_id"] for row in pairs})
        assert f'<a href="/prompts?recipe={recipe}&amp;reason=pair">{prompts}</a>' in page
        assert (f"and {len(pairs) - prompts} more of the same prompts" in page) == (len(pairs) > prompts)
    assert "alpha 0.5, delta 0.1, score_noise 0.75, noise_seed 4, candidates 4" in page


@pytest.mark.parametrize("recipe", ["margin", "every"])
def test_there_are_no_sliders_and_the_page_says_why(several, recipe):
    page = several.get(f"/tune?recipe={recipe}")
    assert page.status_code == 200 and f"Recipe {recipe} has no sliders" in page.text


def test_a_noisy_judges_prompt_and_sliders_are_those_of_its_pairs(several):
    """S beside each candidate and the pair at the saved point are those of noisy scores of the first four samples."""
    from m3po_dagster.inspector.prompt import read_prompt
    from m3po_dagster.inspector.reselect import picks

    catalogue = several.watch.catalogue()
    (pair,) = [row for row in pairs_in(several, "noisy") if row["prompt_id"] == "prompt0"]
    view = read_prompt(catalogue, 0, "noisy")
    chosen, rejected = view.pair
    assert (f"prompt0:{chosen.k}", f"prompt0:{rejected.k}") == (pair["chosen_id"], pair["rejected_id"])
    assert rejected.m3p_score == pytest.approx(pair["m3p_score"]) and rejected.gap == pytest.approx(pair["mas_gap"])
    assert next(item for item in view.candidates if item.k == 4).gap is None
    settings = SelectionSettings(**RULES["noisy"])
    fronts = several.watch.fronts(catalogue, settings)
    (entries,) = picks(fronts, settings)
    losers = dict(zip(fronts[0].prompt.tolist(), fronts[0].k[entries].tolist(), strict=True))
    assert losers[0] == rejected.k


def test_the_noise_of_these_tests_changes_a_pair(several):
    """Or else the test above would prove nothing."""
    (shard,) = several.watch.catalogue().shards
    table = shard.candidates.table(columns=["candidate_id", "prompt_id", "k", "text", "finish_reason"])
    table = table.append_column("mas", shard.mas.table()["mas"])
    for name in ("sum_logp", "n_tokens"):
        table = table.append_column(name, shard.logprobs.table()[name])
    quiet = select_pairs(table, SelectionSettings(candidates=4)).pairs["pair_id"].to_pylist()
    assert quiet != [row["pair_id"] for row in pairs_in(several, "noisy")]
