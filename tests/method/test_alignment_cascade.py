"""The cascade: the pairs are those of asking about every answer, whatever the grades; and what it saves is counted."""

from itertools import product

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from m3po_dagster.method.alignment.calibration import Identity
from m3po_dagster.method.alignment.cascade import NOT_NEEDED, AnswerFacts, Bounds, CascadeSettings, Prospects
from m3po_dagster.method.alignment.llm_judge import LlmJudgeSettings
from m3po_dagster.method.alignment.mas import MasScorer
from m3po_dagster.method.prompt import Message, Prompt
from m3po_dagster.method.selection import SelectionSettings, select_pairs
from tests.method.listed_scorer import Listed, prompt
from tests.served_judge import ServedJudge

LEVELS = (0.0, 0.25, 0.5, 0.75, 1.0)
TEXTS = ("Yes.", "yes. ", "No", "no", "A dog", "A  dog", "Two", "A cat", "Red", "Blue", "Left", "")


@st.composite
def answers(draw, most: int = 10) -> list[dict]:
    """Rows of one prompt: few levels, so that scores, confidences and lengths tie; cut, unscored and equal texts."""
    texts = draw(st.lists(st.sampled_from(TEXTS), min_size=1, max_size=most, unique=True))
    rows = []
    for k, text in enumerate(texts):
        n_tokens = draw(st.integers(1, 3))
        a_token = draw(st.sampled_from((-0.1, -0.2, -0.3, -0.4, -1.0, -1.5)))
        rows.append(
            {
                "k": k,
                "text": text,
                "n_tokens": n_tokens,
                "sum_logp": n_tokens * a_token,
                "finish_reason": draw(st.sampled_from(("stop", "stop", "stop", "length"))),
                **{name: draw(st.sampled_from((*LEVELS, *LEVELS, None))) for name in ("cheap", "judge", "second")},
            }
        )
    return rows


cascades = st.builds(
    CascadeSettings,
    alpha_max=st.sampled_from((0.0, 0.1, 0.5, 1.0, 10.0)),
    confidence=st.sampled_from((("mean",), ("sum",), ("mean", "sum"))),
    round_size=st.integers(1, 4),
)


@st.composite
def recipes(draw, cascade: CascadeSettings) -> SelectionSettings:
    """A recipe that the cascade promises exact pairs for."""
    min_chosen = draw(st.sampled_from((None, 0.0, 0.5, 0.9)))
    rule = draw(st.sampled_from(("m3p", "m3p", "m3p", "flipped", "best_only")))
    if rule == "best_only":
        return SelectionSettings(rule=rule, min_chosen_mas=min_chosen)
    return SelectionSettings(
        rule=rule,
        alpha=cascade.alpha_max * draw(st.sampled_from((0.0, 0.3, 1.0))),
        delta=draw(st.sampled_from((0.0, 0.1, 0.3, 2.0, 1e6))),
        confidence=draw(st.sampled_from(cascade.confidence)),
        allow_bonus=draw(st.booleans()),
        min_gap=draw(st.sampled_from((0.0, 0.1, 0.5))),
        min_chosen_mas=min_chosen,
    )


def selected(scored: list[dict], rows: list[dict], recipe: SelectionSettings) -> list[dict]:
    table = [
        {"prompt_id": mas["prompt_id"], "candidate_id": f"{mas['prompt_id']}:{row['k']}", "mas": mas["mas"], **facts}
        for mas, row in zip(scored, rows, strict=True)
        for facts in [{name: row[name] for name in ("k", "text", "finish_reason", "sum_logp", "n_tokens")}]
    ]
    schema = pa.schema([("mas", pa.float64()), ("prompt_id", pa.string()), ("candidate_id", pa.string())])
    names = ("k", "text", "finish_reason", "sum_logp", "n_tokens")
    kinds = (pa.int64(), pa.string(), pa.string(), pa.float64(), pa.int64())
    schema = pa.unify_schemas([schema, pa.schema(list(zip(names, kinds, strict=True)))])
    return select_pairs(pa.Table.from_pylist(table, schema=schema), recipe).pairs.to_pylist()


def judge_of(rows: list[dict], weights: dict[str, float], cascade: CascadeSettings | None) -> MasScorer:
    scorers = [Listed(name, {row["text"]: row[name] for row in rows}) for name in weights]
    dear = [name for name in weights if name != "cheap"]
    return MasScorer(scorers, weights, dict.fromkeys(weights, Identity()), cascade, dear)


WEIGHTS = (
    {"cheap": 1.0, "judge": 1.0},
    {"cheap": 3.0, "judge": 1.0},
    {"cheap": 1.0, "judge": 3.0},
    {"judge": 1.0},
    {"cheap": 0.0, "judge": 1.0},
    {"second": 0.3, "cheap": 1.0, "judge": 0.7},
    {"cheap": 2.0, "judge": 1.0, "second": 0.0},
)


@settings(max_examples=400, deadline=None)
@given(answers(), st.sampled_from(WEIGHTS), cascades, st.data())
def test_the_pairs_are_those_of_judging_every_answer(rows, weights, cascade, data):
    batch = [(prompt("p"), [row["text"] for row in rows])]
    everything = judge_of(rows, weights, None).score(batch)
    saved = judge_of(rows, weights, cascade).score(batch, facts=[AnswerFacts.of(rows)])
    for _ in range(4):
        recipe = data.draw(recipes(cascade))
        assert selected(saved, rows, recipe) == selected(everything, rows, recipe)
    for full, row in zip(everything, saved, strict=True):
        assert row["mas"] in (full["mas"], None)
        if row["mas"] is None and row["status"] != NOT_NEEDED:
            assert full["mas"] is None
        if row["status"] == NOT_NEEDED:
            assert row["mas"] is None
            assert "cheap" not in row or row["cheap"] == full["cheap"] or full["cheap"] is None


@settings(max_examples=60, deadline=None)
@given(st.lists(answers(), min_size=2, max_size=4), st.sampled_from(WEIGHTS), cascades)
def test_what_else_is_in_the_batch_has_no_part_in_it(prompts, weights, cascade):
    for p, rows in enumerate(prompts):
        for row in rows:
            row["text"] += f" {p}"
    judge = judge_of([row for rows in prompts for row in rows], weights, cascade)
    batch = [(prompt(f"p{p}"), [row["text"] for row in rows]) for p, rows in enumerate(prompts)]
    facts = [AnswerFacts.of(rows) for rows in prompts]
    together = judge.score(batch, facts=facts)
    alone = [row for some, fact in zip(batch, facts, strict=True) for row in judge.score([some], facts=[fact])]
    assert together == alone


def best_pair(rows: list[dict], mas: list[float | None], recipe: SelectionSettings) -> tuple[int | None, int | None]:
    """R_w and R_l by equations 1 to 3 and the order of ties, in plain Python: the oracle."""
    plain = ["".join(row["text"].lower().split()) for row in rows]
    mean = [row["sum_logp"] / row["n_tokens"] for row in rows]
    conf = mean if recipe.confidence == "mean" else [row["sum_logp"] for row in rows]
    scored = [j for j in range(len(rows)) if mas[j] is not None]
    winners = [j for j in scored if rows[j]["finish_reason"] != "length"]
    if not winners:
        return None, None
    w = max(winners, key=lambda j: (mas[j], mean[j], -rows[j]["n_tokens"], -j))

    def s(j: int) -> float:
        excess = conf[w] - conf[j] - recipe.delta
        return mas[w] - mas[j] - recipe.alpha * (excess if recipe.allow_bonus else max(0.0, excess))

    losers = [j for j in scored if mas[w] - mas[j] > recipe.min_gap and plain[j] != plain[w]]
    return w, max(losers, key=lambda j: (s(j), conf[j], -rows[j]["n_tokens"], -j), default=None)


@settings(max_examples=150, deadline=None)
@given(answers(most=4), st.data())
def test_nothing_is_ruled_out_that_some_grades_would_make_part_of_a_pair(rows, data):
    cascade = data.draw(cascades)
    known = data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows)))
    half = [row["cheap"] or 0.0 for row in rows]
    mas = [
        (cheap + row["judge"]) / 2 if row["judge"] is not None else None for cheap, row in zip(half, rows, strict=True)
    ]
    options = [
        [mas[j]] if known[j] else [half[j] / 2, half[j] / 2 + 0.25, half[j] / 2 + 0.5, None] for j in range(len(rows))
    ]
    ends = [(one[0], one[-2] if len(one) > 1 else one[0]) for one in options]
    low, high = np.array(ends, dtype=np.float64).T
    bounds = Bounds(low, high, np.array(known) & ~np.isnan(low))
    prospects = Prospects(AnswerFacts.of(rows), cascade)
    can_win, can_lose = prospects.can_win(bounds), prospects.can_lose(bounds)
    recipe = data.draw(recipes(cascade).filter(lambda one: one.rule != "best_only"))
    for grades in product(*options):
        w, loser = best_pair(rows, list(grades), recipe)
        assert w is None or can_win[w]
        assert loser is None or can_lose[loser]


def rows_of(*found: tuple[float, float, float], n_tokens: int = 10) -> list[dict]:
    """(cheap value, judge's grade, log-prob a token) -> rows."""
    return [
        {
            "k": k,
            "text": f"answer {k}",
            "n_tokens": n_tokens,
            "sum_logp": logp * n_tokens,
            "finish_reason": "stop",
            "cheap": cheap,
            "judge": grade,
        }
        for k, (cheap, grade, logp) in enumerate(found)
    ]


def asked(rows: list[dict], weights: dict[str, float], **cascade) -> list[int]:
    """The places of the answers that the judge was asked about."""
    judge = Listed("judge", {row["text"]: row["judge"] for row in rows})
    scorers = [Listed("cheap", {row["text"]: row["cheap"] for row in rows}), judge]
    mas = MasScorer(scorers, weights, dict.fromkeys(weights, Identity()), CascadeSettings(**cascade), ["judge"])
    mas.score([(prompt("p"), [row["text"] for row in rows])], facts=[AnswerFacts.of(rows)])
    assert set(judge.asked.values()) == {1}
    return sorted(int(text.split()[1]) for text in judge.asked)


def test_the_middle_is_not_asked_about_where_the_judge_weighs_little():
    rows = rows_of((0.9, 0.8, -0.5), (0.5, 1.0, -0.6), (0.55, 0.0, -0.7), (0.1, 0.2, -0.2))
    assert asked(rows, {"cheap": 3.0, "judge": 1.0}, round_size=1) == [0, 3]
    assert asked(rows, {"cheap": 1.0, "judge": 3.0}, round_size=1) == [0, 1, 2, 3]


def test_of_equally_good_answers_at_the_top_only_the_first_is_asked_about():
    """A judge of few levels ties the top: once one has the best grade, less confident ones can't be R_w."""
    rows = rows_of((1.0, 1.0, -0.1), *[(1.0, 1.0, -0.2 - 0.01 * k) for k in range(20)], (0.0, 0.0, -0.05))
    assert asked(rows, {"cheap": 1.0, "judge": 1.0}, round_size=1) == [0, 21]


def test_a_more_confident_answer_is_asked_about_when_its_penalty_may_be_smaller():
    low, likelier = (0.1, 0.0, -1.0), (0.5, 0.0, -0.2)
    rows = rows_of((0.9, 1.0, -0.1), low, likelier)
    weights = {"cheap": 9.0, "judge": 1.0}
    assert asked(rows, weights, alpha_max=1.0, confidence=("mean",), round_size=1) == [0, 1, 2]
    # 0.45 - 0.09 = 0.36 of MAS between them, 0.8 nats a token, 8 nats in all.
    assert asked(rows, weights, alpha_max=0.4, confidence=("mean",), round_size=1) == [0, 1]
    assert asked(rows, weights, alpha_max=0.4, round_size=1) == [0, 1, 2]


def test_a_judge_over_http_gets_fewer_requests_and_the_pairs_stay(tmp_path):
    Image.new("RGB", (24, 16), (255, 0, 0)).save(tmp_path / "red.png")
    picture = Prompt("p", tmp_path / "red.png", (Message("user", "Which colour is it?"),))
    rows = rows_of(*[(0.9 - 0.07 * k, None, -0.7 + 0.05 * k) for k in range(12)])
    for row in rows:
        row["text"] = f"{'red' if row['k'] % 5 < 3 else 'blue'}, take {row['k']}"
    cheap = Listed("cheap", {row["text"]: row["cheap"] for row in rows})
    cascade, recipe = CascadeSettings(round_size=2), SelectionSettings()
    with ServedJudge() as server:
        judge = LlmJudgeSettings(model=server.model, base_url=server.base_url, group_size=1).build()
        mas = MasScorer(
            *([cheap, judge], {"cheap": 2.0, "llm_judge": 1.0}, {"cheap": Identity(), "llm_judge": Identity()}),
            *(cascade, ["llm_judge"]),
        )
        batch = [(picture, [row["text"] for row in rows])]
        saved = mas.score(batch, facts=[AnswerFacts.of(rows)])
        asked = sum(row["status"] == "scored" for row in saved)
        assert server.requests == asked < len(rows)
        everything = mas.exhaustive().score(batch)
        assert server.requests == asked + len(rows)
    assert selected(saved, rows, recipe) == selected(everything, rows, recipe) != []


def bounds_of(*mas: float | tuple[float, float]) -> Bounds:
    ends = np.array([one if isinstance(one, tuple) else (one, one) for one in mas])
    return Bounds(ends[:, 0], ends[:, 1], np.array([not isinstance(one, tuple) for one in mas]))


def facts_of(*logps: float) -> AnswerFacts:
    """One-token answers, so that both scales are one."""
    texts = tuple(f"answer {j}" for j in range(len(logps)))
    return AnswerFacts(texts, np.array(logps), np.ones(len(logps)), np.zeros(len(logps), dtype=bool))


@pytest.mark.parametrize(("low", "out"), [(0.7, True), (0.5, False), (0.4, False)])
def test_a_lower_mas_wins_by_more_than_the_largest_penalty_and_not_by_as_much(low, out):
    """MAS 0.25 known, half a nat behind: with alpha_max 0.5 a MAS of more than 0.5 can't become R_l."""
    prospects = Prospects(facts_of(-0.25, -1.0, -0.5), CascadeSettings(alpha_max=0.5))
    assert prospects.can_lose(bounds_of(1.0, 0.25, (low, 0.9))).tolist() == [False, True, not out]


def test_rounding_at_the_largest_delta_is_allowed_for():
    """In exact arithmetic the first loser is ahead by 1e-8; S itself, at a delta of a million nats, can't hold that."""
    close = -1.0 + (0.5 - 1e-8) / 1000
    facts, mas = facts_of(-0.5, -1.0, close), [1.0, 0.25, 0.75]
    rows = [
        {"k": j, "text": facts.text[j], "finish_reason": "stop", "sum_logp": facts.sum_logp[j], "n_tokens": 1}
        for j in range(3)
    ]
    recipe = SelectionSettings(alpha=1000, delta=1e6, allow_bonus=True)
    assert selected([{"prompt_id": "p", "mas": one} for one in mas], rows, recipe)[0]["rejected_id"] == "p:2"
    assert Prospects(facts, CascadeSettings(alpha_max=1000)).can_lose(bounds_of(1.0, 0.25, (0.75, 0.9)))[2]


@pytest.mark.parametrize(("low", "out"), [(0.8, True), (0.799999, False)])
def test_an_answer_as_good_as_any_winner_is_no_loser(low, out):
    facts = facts_of(-0.1, -0.2)
    facts.truncated[1] = True
    prospects = Prospects(facts, CascadeSettings())
    assert prospects.can_lose(bounds_of((0.3, 0.8), (low, 1.0)))[1] == (not out)


def test_a_cut_answer_is_asked_about_as_a_loser_only_and_not_at_all_above_every_winner():
    rows = rows_of((1.0, 1.0, -0.1), (0.2, 0.5, -0.2), (0.1, 0.0, -0.1))
    rows[0]["finish_reason"] = "length"
    assert asked(rows, {"cheap": 3.0, "judge": 1.0}, round_size=1) == [1, 2]


def test_without_an_answer_that_could_win_nobody_is_asked():
    rows = rows_of((0.9, 1.0, -0.1), (0.1, 0.0, -0.2))
    for row in rows:
        row["finish_reason"] = "length"
    judge = judge_of(rows, {"cheap": 1.0, "judge": 1.0}, CascadeSettings())
    found = judge.score([(prompt("p"), [row["text"] for row in rows])], facts=[AnswerFacts.of(rows)])
    assert [row["status"] for row in found] == [NOT_NEEDED] * 2


def test_an_answer_that_could_not_be_judged_rules_nothing_out():
    rows = rows_of((0.9, 1.0, -0.5), (0.5, 0.0, -0.6), (0.1, None, -0.2), (0.9, None, -0.1))
    assert asked(rows, {"cheap": 3.0, "judge": 1.0}, round_size=1) == [0, 1, 2, 3]


def test_rows_of_answers_that_were_left_out():
    rows = rows_of((0.9, 1.0, -0.5), (0.5, 1.0, -0.6), (0.1, 0.0, -0.2))
    values = {name: {row["text"]: row[name] for row in rows} for name in ("cheap", "judge")}
    judge, extra = Listed("judge", values["judge"], ("judge_aspect",)), Listed("extra", values["judge"])
    names = ["cheap", "judge", "extra"]
    weights = {"cheap": 3.0, "judge": 1.0, "extra": 0.0}
    mas = MasScorer(
        [Listed("cheap", values["cheap"]), judge, extra],
        weights,
        dict.fromkeys(names, Identity()),
        CascadeSettings(round_size=1),
        ["judge", "extra"],
    )
    heard = []
    batch, facts = [(prompt("p"), [row["text"] for row in rows])], [AnswerFacts.of(rows)]
    found = mas.score(batch, lambda done, total: heard.append((done, total)), facts)
    assert found[1] == {
        "prompt_id": "p",
        "mas": None,
        "status": NOT_NEEDED,
        "words": "cheap: cheap says 0.5",
        "cheap": 0.5,
        "judge": None,
        "extra": None,
        "judge_aspect": None,
    }
    assert [row["mas"] for row in found] == [0.925, None, 0.075]
    assert [row["extra"] for row in found] == [1.0, None, 0.0]
    assert extra.calls == [[2]]
    assert heard == [(1, 3), (3, 3)]
    everything = mas.exhaustive().score(batch)
    assert [row["status"] for row in everything] == ["scored"] * 3


def test_a_second_judge_sees_only_what_the_first_left_in_the_race():
    rows = rows_of((0.9, 0.7, -0.1), (0.6, 0.0, -0.3), (0.1, 0.3, -0.1))
    values = {name: {row["text"]: row[name] for row in rows} for name in ("cheap", "judge")}
    first, second = Listed("first", values["judge"]), Listed("second", values["judge"])
    weights = {"cheap": 1.0, "first": 1.0, "second": 0.2}
    mas = MasScorer(
        [first, second, Listed("cheap", values["cheap"])],
        weights,
        dict.fromkeys(weights, Identity()),
        CascadeSettings(round_size=2),
        ["first", "second"],
    )
    found = mas.score([(prompt("p"), [row["text"] for row in rows])], facts=[AnswerFacts.of(rows)])
    assert (first.calls, second.calls) == ([[2], [1]], [[2]])
    assert set(second.asked) == {"answer 0", "answer 2"}
    assert (found[1]["status"], found[1]["first"], found[1]["second"]) == (NOT_NEEDED, 0.0, None)


def test_rounds_are_of_the_size_that_is_set():
    rows = rows_of(*[(0.5, 0.5, -0.1 * k) for k in range(10)])
    judge = judge_of(rows, {"cheap": 1.0, "judge": 1.0}, CascadeSettings(round_size=4))
    judge.score([(prompt("p"), [row["text"] for row in rows])], facts=[AnswerFacts.of(rows)])
    assert [calls[0] for calls in judge._scorers[1].calls] == [4, 4, 2]


def test_without_facts_or_with_those_of_other_answers_it_is_refused():
    rows = rows_of((0.9, 1.0, -0.5), (0.1, 0.0, -0.2))
    judge = judge_of(rows, {"cheap": 1.0, "judge": 1.0}, CascadeSettings())
    batch = [(prompt("p"), [row["text"] for row in rows])]
    for facts in (None, [], [AnswerFacts.of(rows[:1])], [AnswerFacts.of(rows[::-1])]):
        with pytest.raises(ValueError, match="facts of the answers"):
            judge.score(batch, facts=facts)


@pytest.mark.parametrize(("name", "value"), [("sum_logp", None), ("sum_logp", float("nan")), ("n_tokens", 0)])
def test_answers_without_a_log_prob_are_refused(name, value):
    rows = rows_of((0.9, 1.0, -0.5), (0.1, 0.0, -0.2))
    rows[1][name] = value
    judge = judge_of(rows, {"cheap": 1.0, "judge": 1.0}, CascadeSettings())
    batch, facts = [(prompt("p"), [row["text"] for row in rows])], [AnswerFacts.of(rows)]
    with pytest.raises(ValueError, match=r"remove judge\.cascade"):
        judge.score(batch, facts=facts)
    assert len(judge.exhaustive().score(batch, facts=facts)) == 2
