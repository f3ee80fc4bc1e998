"""`m3po plan`: one table of several sizes, and every assumption a user's to change."""

import json

import pytest
from typer.testing import CliRunner

from m3po_dagster.cli.main import app
from m3po_dagster.cost.assumptions import Assumptions
from m3po_dagster.cost.deployment import Deployment, Measured


def run(*arguments: str, code: int = 0):
    done = CliRunner().invoke(app, ["plan", *arguments], env={"M3PO_STUDY": None})
    assert done.exit_code == code, done.output
    return done


def planned(*arguments: str) -> dict:
    return json.loads(run(*arguments, "--json").stdout)


def test_sizes_are_the_ones_asked_for_and_candidates_n_times_them():
    found = planned("4k", "2.3K", "1.5M")
    assert [row["prompts"] for row in found["sizes"]] == [4_000, 2_300, 1_500_000]
    assert [row["candidates"] for row in found["sizes"]] == [[128_000] * 2, [73_600] * 2, [48_000_000] * 2]
    assert len(planned()["sizes"]) == 3


def test_every_assumption_can_be_set_and_moves_the_plan():
    plain, dear = planned("150K")["sizes"][0], planned("150K", "--assume", "gpu_hour=3")["sizes"][0]
    assert plain["gpu_money"] is None
    assert dear["gpu_money"][0] == pytest.approx(3 * dear["GPU-hours"]["total"][0], rel=0.01)
    sure = [text for name in ("distinct_share", "pair_share") for text in ("--assume", f"{name}=1")]
    low, high = planned("150K", *sure, "--assume", "compression=0.3..0.6")["sizes"][0]["storage_gb"]
    assert low < high
    low, high = planned("150K", *sure, "--assume", "compression=0.3")["sizes"][0]["storage_gb"]
    assert low == high
    assert planned("150K", "--assume", "memory_gb=0.1")["sizes"][0]["shards"] > plain["shards"]


def test_a_measured_rate_and_another_study():
    study = planned("150K", "--study", "studies/llava15_13b.yaml")
    assert study["of"] == "llava15_13b"
    assert study["sizes"][0]["GPU-hours"]["sampling"][0] > planned("150K")["sizes"][0]["GPU-hours"]["sampling"][0]
    slow, fast = (planned("150K", "--tokens-per-second", rate)["sizes"][0] for rate in ("1000", "4000"))
    assert slow["GPU-hours"]["sampling"][0] == pytest.approx(4 * fast["GPU-hours"]["sampling"][0], rel=0.01)


def test_the_table_names_every_measured_figure_and_what_a_size_runs_into():
    shown = run("4K", "10M").stdout
    for kind in (Deployment, Measured):
        assert all(name in shown for name in kind.model_fields)
    assert "10,000,000 prompts: the longest training" in shown
    assert "4,000 prompts: the longest" not in shown


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("many",), "'many' is no number of prompts"),
        (("0",), "is no number of prompts"),
        (("1.2345K",), "is no number of prompts"),
        (("--assume", "cards"), "write NAME=NUMBER"),
        (("--assume", "karten=8"), "there is no assumption 'karten'"),
        (("--assume", "cards=1..2"), "cards is one number"),
        (("--assume", "cards=0"), "cards: Input should be greater than or equal to 1"),
        (("--assume", "pair_share=0.9..0.5"), "a range goes from low to high"),
    ],
)
def test_what_is_wrong_is_named(arguments, said):
    assert said in run(*arguments, code=2).stderr


def test_no_figure_has_two_meanings():
    names = [name for kind in (Assumptions, Deployment, Measured) for name in kind.model_fields]
    assert len(names) == len(set(names))
