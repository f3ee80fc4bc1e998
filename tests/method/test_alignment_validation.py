"""A judge against ratings, from scoring to the sentences; with judges of known rules and the embedded world's own."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from m3po_dagster.method.alignment.agreement import Statistic
from m3po_dagster.method.alignment.agreement_plot import bins_of, plot_agreement
from m3po_dagster.method.alignment.calibration import Identity
from m3po_dagster.method.alignment.mas import MasScorer
from m3po_dagster.method.alignment.ratings import RatedAnswer, read_ratings
from m3po_dagster.method.alignment.scorer import Score
from m3po_dagster.method.alignment.validation import Validation, score_rated, shown, validate, verdict
from m3po_dagster.method.prompt import Message, Prompt
from m3po_dagster.study import JudgeSettings
from m3po_dagster.world.judge import JUDGE_FOLDER
from m3po_dagster.world.ratings import main, write_ratings


@dataclass
class Said:
    """A scorer that reads its value off the answer, "0.7 ..."; "?" it can't judge."""

    name: str = "said"
    sub_scores: tuple[str, ...] = ()
    prompts: list[list[str]] = field(default_factory=list)

    def score(self, batch):
        self.prompts.append([prompt.prompt_id for prompt, _ in batch])
        return [[self._score(answer) for answer in answers] for _, answers in batch]

    def _score(self, answer: str) -> Score:
        return Score.unscored("can't tell") if answer[0] == "?" else Score(float(answer.split()[0]))


def rated(image: int, answer: str, *ratings: float) -> RatedAnswer:
    prompt = Prompt(f"p{image}", Path(f"{image}.png"), (Message("user", "?"),))
    return RatedAnswer(prompt, f"image {image}", answer, ratings)


def judged(answers: list[RatedAnswer], scorer=None) -> Validation:
    mas = MasScorer([scorer or Said()], {"said": 1}, {"said": Identity()})
    return validate(answers, score_rated(mas, answers), mas.scorers, resamples=200)


def answers_that(follow: float, images: int = 30, raters: int = 1, seed: int = 0) -> list[RatedAnswer]:
    """Four answers an image whose ratings follow what the judge says (1), or its opposite (-1), or nothing (0)."""
    rng = np.random.default_rng(seed)
    found = []
    for image in range(images):
        for said in rng.uniform(0, 1, 4).round(3):
            truth = follow * said + (1 - abs(follow)) * rng.uniform()
            found.append(rated(image, f"{said} {len(found)}", *(truth + 0.1 * rng.standard_normal(raters))))
    return found


def test_rows_come_back_in_the_order_of_the_ratings_a_prompts_answers_together():
    scorer = Said()
    answers = [rated(image, f"0.{number + 1}{image} x", 1.0) for number in range(3) for image in range(20)]
    rows = score_rated(MasScorer([scorer], {"said": 1}, {"said": Identity()}), answers, lambda done, total: None)
    assert [row["mas"] for row in rows] == [float(one.answer.split()[0]) for one in answers]
    assert [len(batch) for batch in scorer.prompts] == [16, 4]


def test_unscored_answers_are_counted_by_reason_and_left_out():
    answers = [*answers_that(1, images=5), rated(0, "? a", 3.0), rated(1, "? b", 1.0)]
    found = judged(answers)
    assert (found.mas.answers, found.mas.unscored) == (20, 2)
    assert found.unscored == {"said: can't tell": 2}


@pytest.mark.parametrize(
    ("follow", "order", "pairs"),
    [
        (0.9, "MAS rises with the ratings", "better than chance"),
        (-0.9, "MAS falls where the ratings rise", "worse than chance"),
        (0.0, "These ratings don't show that MAS rises", "no better than chance, as far as this shows"),
    ],
)
def test_the_verdict_is_what_the_intervals_say(follow, order, pairs):
    found = judged(answers_that(follow))
    said = verdict(found)
    assert said[0].startswith(order) and shown(found.mas.spearman) in said[0]
    assert said[1].endswith(f"{pairs}.") and f"of {found.mas.pairs.pairs} pairs" in said[1]
    assert len(said) == 2


def test_the_verdict_says_what_is_too_little_to_tell():
    few = verdict(judged(answers_that(1, images=3)))
    assert few[-1].startswith("12 answers on 3 images are few")
    one_image = verdict(judged(answers_that(1, images=1)))
    assert "too few images for an interval" in one_image[0] and "too few images for an interval" in one_image[1]
    alone = verdict(judged([rated(image, f"0.{image + 1} x", float(image)) for image in range(9)]))
    assert alone[1].startswith("No prompt has two answers that the raters put in an order")
    same = verdict(judged([rated(image, "0.5 x", float(image)) for image in range(9)]))
    assert same[0].startswith("Nothing can be said")


def test_several_raters_are_compared_with_each_other():
    answers = answers_that(1, raters=3)
    found = judged(answers)
    assert (found.raters.answers, found.raters.ratings) == (120, 360)
    assert found.raters.alpha.low > 0.7
    assert shown(found.raters.one_against_others) in verdict(found)[2]
    assert judged(answers_that(1)).raters is None


def test_how_a_statistic_is_shown():
    assert shown(Statistic(0.456, 0.401, 0.5)) == "0.46 (0.40 to 0.50)"
    assert (shown(Statistic(0.456)), shown(Statistic(None))) == ("0.46", "not defined")


@pytest.fixture(scope="module")
def world_judge() -> MasScorer:
    scorers = [
        {"kind": "scene_judge", "model": str(JUDGE_FOLDER)},
        {"kind": "clip", "model": str(JUDGE_FOLDER), "tiles": 2, "weight": 0},
    ]
    return JudgeSettings.model_validate({"scorers": scorers}).build()


def test_the_worlds_judge_agrees_with_the_labels_of_its_scenes_and_not_with_shuffled_ones(world_judge, tmp_path):
    """No person rated these: the ratings are the scenes' labels."""
    found = {}
    for name, shuffled in (("labels", False), ("shuffled", True)):
        assert write_ratings(tmp_path / name, 40, seed=1, shuffled=shuffled) > 100
        answers = read_ratings(tmp_path / name / "ratings.csv")
        columns = [*world_judge.scorers, *world_judge.sub_scores]
        found[name] = validate(answers, score_rated(world_judge, answers), columns, resamples=300)
    labels, shuffled = found["labels"], found["shuffled"]
    assert labels.mas.spearman.low > 0.7 and labels.mas.pairs.accuracy.low > 0.8
    assert labels.columns["clip"].spearman.high < labels.mas.spearman.low
    for one in (shuffled.mas.pearson, shuffled.mas.spearman, shuffled.mas.kendall):
        assert one.low < 0 < one.high
    assert shuffled.mas.pairs.accuracy.low < 0.5 < shuffled.mas.pairs.accuracy.high


def test_rated_scenes_are_the_same_for_the_same_seed_and_true_answers_are_rated_highest(tmp_path, capsys):
    for name in ("one", "two"):
        main(["--out", str(tmp_path / name), "--scenes", "12", "--seed", "3"])
    assert "12 scenes, by their labels" in capsys.readouterr().out
    assert (tmp_path / "one/ratings.csv").read_bytes() == (tmp_path / "two/ratings.csv").read_bytes()
    answers = read_ratings(tmp_path / "one" / "ratings.csv")
    assert len({one.image_sha256 for one in answers}) == 12
    best = {one.prompt.prompt_id for one in answers if one.rating == 5}
    assert best == {one.prompt.prompt_id for one in answers}
    assert {one.rating for one in answers if one.prompt.question != "Describe the image."} <= {1.0, 3.0, 5.0}
    with pytest.raises(FileExistsError):
        write_ratings(tmp_path / "one", 3)


def test_bins_part_no_equal_ratings_and_lose_none():
    rng = np.random.default_rng(0)
    for ratings in (
        np.array([1.0, 2, 2, 3, 3, 3]),
        rng.normal(size=200),
        np.array([*[1.0] * 90, *rng.normal(size=20)]),
    ):
        bins = bins_of(ratings)
        assert np.sum(bins, axis=0).tolist() == [1] * len(ratings)
        means = [ratings[some].mean() for some in bins]
        assert means == sorted(means) and len(set(means)) == len(means)
        for rating in np.unique(ratings):
            assert sum((ratings[some] == rating).any() for some in bins) == 1


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_a_picture_is_drawn_unscored_answers_left_out(tmp_path, suffix):
    path = tmp_path / f"plot{suffix}"
    plot_agreement([0.1, None, 0.9, 0.5], [1.0, 2.0, 5.0, 3.0], "a $title", path)
    assert path.stat().st_size > 1000
    if suffix == ".png":
        with Image.open(path) as image:
            assert len(image.convert("RGB").getcolors(1 << 20)) > 10


def test_a_picture_of_another_kind_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"must end in \.png, \.svg, \.pdf"):
        plot_agreement([0.1], [1.0], "", tmp_path / "plot.gif")


def test_a_rating_is_the_mean():
    assert rated(0, "0.5 x", 1.0, 2.0, 6.0).rating == 3.0
