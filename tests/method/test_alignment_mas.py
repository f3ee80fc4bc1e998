"""MAS against an independent computation in DuckDB; what is unscored stays null; settings refuse what makes no MAS."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from m3po_dagster.method.alignment.calibration import Identity, Linear
from m3po_dagster.method.alignment.clip import ClipScorerSettings
from m3po_dagster.method.alignment.mas import WORDS_LENGTH, MasScorer, MasSettings
from m3po_dagster.method.alignment.scorer import Score
from m3po_dagster.method.prompt import Message, Prompt
from m3po_dagster.storage.tables import mas_schema
from m3po_dagster.world.judge import JUDGE_FOLDER, SceneJudgeSettings


@dataclass(frozen=True)
class Listed:
    """A scorer that reads its values off a list, answer text -> raw value or None."""

    name: str
    values: Mapping[str, float | None]
    sub_scores: tuple[str, ...] = ()
    words: Mapping[str, str] = field(default_factory=dict)

    def score(self, batch):
        return [[self._score(answer) for answer in answers] for _, answers in batch]

    def _score(self, answer: str) -> Score:
        value, words = self.values[answer], self.words.get(answer, "")
        if value is None:
            return Score.unscored("declined", words)
        return Score(value, sub_scores=dict.fromkeys(self.sub_scores, value * 10), words=words)


def prompt(name: str) -> Prompt:
    return Prompt(name, Path("unused.png"), (Message("user", "?"),))


raw = st.one_of(st.none(), st.floats(-2, 2))


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(raw, raw, raw), min_size=1, max_size=12),
    st.tuples(st.floats(0, 5), st.floats(0, 5), st.floats(0.1, 5)),
)
def test_mas_is_the_weighted_mean_that_duckdb_computes(rows, weights):
    answers = [str(i) for i in range(len(rows))]
    names = ["a", "b", "c"]
    columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    scorers = [Listed(name, dict(zip(answers, column, strict=True))) for name, column in columns.items()]
    mas = MasScorer(scorers, dict(zip(names, weights, strict=True)), dict.fromkeys(names, Linear(low=-1, high=1)))
    half = len(answers) // 2
    scored = mas.score([(prompt("p"), answers[:half]), (prompt("q"), answers[half:])])

    raw_table = pa.table({"i": range(len(rows)), **columns})  # noqa: F841
    # A null times a weight is null, and so is the sum; a scorer of weight 0 is left out before that.
    terms = [f"{w!r} * greatest(least(({n} + 1) / 2, 1), 0)" for n, w in zip(names, weights, strict=True) if w > 0]
    nulls = [f"{n} IS NULL" for n, w in zip(names, weights, strict=True) if w > 0]
    expected = duckdb.sql(
        f"SELECT CASE WHEN {' OR '.join(nulls)} THEN NULL ELSE ({' + '.join(terms)}) / {sum(weights)!r} END "
        "FROM raw_table ORDER BY i"
    ).fetchall()
    assert [row["prompt_id"] for row in scored] == ["p"] * half + ["q"] * (len(answers) - half)
    for row, (value,), values in zip(scored, expected, rows, strict=True):
        assert row["mas"] == (None if value is None else pytest.approx(value, abs=1e-6))
        assert (row["status"] == "scored") == (None not in values)
        assert row["mas"] is None or 0.0 <= row["mas"] <= 1.0


def test_float_noise_is_no_preference():
    scorer = MasScorer([Listed("a", {"x": 0.5, "y": 0.5 + 3e-8, "z": 0.50001})], {"a": 1.0}, {"a": Identity()})
    mas = {answer: row["mas"] for answer, row in zip("xyz", scorer.score([(prompt("p"), "xyz")]), strict=True)}
    assert mas["x"] == mas["y"] < mas["z"]


def test_an_unscored_scorer_makes_mas_null_and_is_named():
    a = Listed("a", {"x": 0.5, "y": None}, ("a_sub",))
    b = Listed("b", {"x": None, "y": None})
    mas = MasScorer([a, b], {"a": 1, "b": 1}, {"a": Identity(), "b": Identity()})
    x, y = mas.score([(prompt("p"), ["x", "y"])])
    assert x == {
        "prompt_id": "p",
        "mas": None,
        "status": "b: declined",
        "words": None,
        "a": 0.5,
        "b": None,
        "a_sub": 5.0,
    }
    assert y == {**dict.fromkeys(x), "prompt_id": "p", "status": "a: declined; b: declined"}


def test_a_scorer_of_weight_zero_is_stored_and_kept_out():
    reward = Listed("reward", {"x": 0.9, "y": None})
    judge = Listed("judge", {"x": 0.4, "y": 0.3})
    mas = MasScorer([judge, reward], {"judge": 2, "reward": 0}, {"judge": Identity(), "reward": Identity()})
    x, y = mas.score([(prompt("p"), ["x", "y"])])
    assert (x["mas"], x["reward"], x["status"]) == (0.4, 0.9, "scored")
    assert (y["mas"], y["reward"], y["status"]) == (0.3, None, "reward: declined")


def test_words_of_several_scorers_are_named_line_by_line_and_silence_is_null():
    a = Listed("a", {"x": 0.5, "y": 0.5, "z": None}, words={"x": "sees a dog", "z": "I can't\nhelp\twith that"})
    b = Listed("b", {"x": 0.5, "y": 0.5, "z": 0.5}, words={"x": "sees a cat"})
    both = MasScorer([a, b], {"a": 1, "b": 1}, {"a": Identity(), "b": Identity()})
    words = [row["words"] for row in both.score([(prompt("p"), "xyz")])]
    assert words == ["a: sees a dog\nb: sees a cat", None, "a: I can't help with that"]
    alone = MasScorer([a], {"a": 1}, {"a": Identity()})
    assert [row["words"] for row in alone.score([(prompt("p"), "xy")])] == ["sees a dog", None]


def test_words_are_cut_where_a_model_rambles():
    scorer = Listed("a", {"x": 0.5, "y": 0.5}, words={"x": "w" * WORDS_LENGTH, "y": "w" * (WORDS_LENGTH + 1)})
    x, y = MasScorer([scorer], {"a": 1}, {"a": Identity()}).score([(prompt("p"), "xy")])
    assert x["words"] == "w" * WORDS_LENGTH
    assert y["words"] == "w" * (WORDS_LENGTH - 1) + "\u2026"


def test_rows_are_a_mas_table_once_the_caller_adds_the_candidate():
    scorer = Listed("a", {"x": 0.5, "y": None}, ("a_sub",))
    mas = MasScorer([scorer], {"a": 1}, {"a": Identity()})
    rows = mas.score([(prompt("p"), ["x", "y"])])
    schema = mas_schema(mas.scorers, mas.sub_scores).schema
    table = pa.Table.from_pylist([{"candidate_id": f"p:{k}", **row} for k, row in enumerate(rows)], schema=schema)
    assert set(rows[0]) | {"candidate_id"} == set(schema.names)
    assert table.to_pylist()[1]["mas"] is None


def test_progress_hears_every_scorer():
    heard = []
    mas = MasScorer([Listed("a", {"x": 0.5})], {"a": 1}, {"a": Identity()})
    mas.score([(prompt("p"), ["x"])], progress=lambda done, total: heard.append((done, total)))
    assert heard == [(1, 1)]


@pytest.mark.parametrize(
    ("scorers", "weights", "message"),
    [
        ([Listed("a", {}), Listed("a", {})], {"a": 1}, "'a' would appear 2 times"),
        ([Listed("mas", {})], {"mas": 1}, "'mas' would appear 2 times"),
        ([Listed("words", {})], {"words": 1}, "'words' would appear 2 times"),
        ([Listed("a", {}), Listed("b", {}, ("a",))], {"a": 1, "b": 1}, "'a' would appear 2 times"),
        ([Listed("a", {})], {}, "needs a weight"),
        ([Listed("a", {})], {"a": 0}, "not all 0"),
        ([Listed("a", {}), Listed("b", {})], {"a": 1, "b": -1}, "not be negative"),
    ],
)
def test_what_makes_no_table_is_refused(scorers, weights, message):
    with pytest.raises(ValueError, match=message):
        MasScorer(scorers, weights, dict.fromkeys(["a", "b", "mas", "words"], Identity()))


def test_a_score_is_a_finite_number_or_a_reason():
    with pytest.raises(ValueError, match="finite"):
        Score(float("nan"))
    with pytest.raises(ValueError, match="a value"):
        Score(None)
    with pytest.raises(ValueError, match="a value"):
        Score(0.5, "declined")


Judge = MasSettings[SceneJudgeSettings | ClipScorerSettings]


def judge(folder: Path = JUDGE_FOLDER, **clip) -> Judge:
    reward = ClipScorerSettings(**{"model": str(folder), "tiles": 2, **clip})
    return Judge(scorers=[SceneJudgeSettings(model=str(folder)), reward])


def test_settings_are_read_by_kind_and_unknown_keys_are_refused():
    read = Judge.model_validate({"scorers": [{"kind": "clip", "model": "ViT-L-14", "pretrained": "openai"}]})
    assert isinstance(read.scorers[0], ClipScorerSettings)
    with pytest.raises(ValidationError):
        Judge.model_validate({"scorers": [{"kind": "clip", "model": "ViT-L-14", "temperature": 1}]})


@pytest.mark.parametrize(
    ("clip", "message"),
    [({"name": "scene_judge"}, "two scorers"), ({"weight": -1}, "greater than or equal"), ({"name": "Bad"}, "pattern")],
)
def test_settings_refuse_clashes_and_bad_values(clip, message):
    with pytest.raises(ValidationError, match=message):
        judge(**clip)


def test_settings_refuse_a_judge_without_weight():
    with pytest.raises(ValidationError, match="weight 0"):
        Judge(scorers=[SceneJudgeSettings(model=str(JUDGE_FOLDER), weight=0)])


def test_a_missing_calibration_says_what_to_do(tmp_path):
    with pytest.raises(ValueError, match="'clip' has no calibration"):
        ClipScorerSettings(model="ViT-L-14", pretrained="openai").resolved_calibration()
    with pytest.raises(ValueError, match="no entry 'other'"):
        ClipScorerSettings(name="other", model=str(JUDGE_FOLDER)).resolved_calibration()
    with pytest.raises(FileNotFoundError, match="does not exist"):
        ClipScorerSettings(model=f"local-dir:{tmp_path}/none").resolved_calibration()


def test_settings_name_the_columns_that_the_scorers_fill():
    """Known without a model; what a loaded scorer gives is checked where each is loaded."""
    from m3po_dagster.study import JudgeSettings

    settings = JudgeSettings.model_validate(
        {
            "scorers": [
                {"kind": "clip", "name": "first", "model": "ViT-B-32"},
                {"kind": "scene_judge", "name": "second", "model": "folder"},
                {"kind": "llm_judge", "name": "third", "model": "m", "base_url": "http://127.0.0.1:1/v1"},
            ]
        }
    )
    assert list(settings.sub_scores) == [
        *("first_mean", "first_low", "first_statements", "first_seen"),
        *("relevance", "accuracy", "adherence"),
        *("third_relevance", "third_accuracy", "third_adherence", "third_position"),
    ]
    assert all(settings.sub_scores.values())


@pytest.mark.parametrize("names", [("judge", "judge_two"), ("accuracy", "other"), ("mas", "other")])
def test_a_study_whose_columns_clash_is_refused_before_a_model_is_loaded(names):
    from m3po_dagster.study import JudgeSettings

    scorers = [{"kind": "scene_judge", "name": names[0], "model": "folder"}]
    scorers.append({"kind": "scene_judge" if names[0] == "judge" else "clip", "name": names[1], "model": "folder"})
    with pytest.raises(ValidationError, match="would appear 2 times in the MAS table"):
        JudgeSettings.model_validate({"scorers": scorers})
