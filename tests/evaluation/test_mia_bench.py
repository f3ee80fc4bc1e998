"""MIA-Bench over a real connection: what is asked, what a reply gives, what is paid for, and what is never guessed."""

import json
import math
from contextlib import ExitStack

import pytest

from m3po_dagster.evaluation.mia_bench import EMPTY
from m3po_dagster.evaluation.question import BenchmarkError
from m3po_dagster.method.alignment.account import Account
from m3po_dagster.method.alignment.budget import BudgetSettings, BudgetSpent, Purse
from m3po_dagster.method.alignment.ledger import Ledger
from m3po_dagster.method.endpoint import EndpointError
from tests.component_judge import Asked, ComponentJudge, judged
from tests.evaluation.mia_bench_files import IDS, build
from tests.faulty_judge import FAULTS
from tests.loopback import Reply, error
from tests.served_batches import ServedBatches
from tests.served_judge import completion

# The images are red, blue, green, red. Followed: 4 + 3 + 1.5 of 10; 5 + 0 of 8; 0 of 10; 2 + 2 + 2 + 2 + 2 of 10.
ANSWERS = dict(zip(IDS, ("red it is", "blue", "a red box", "red"), strict=True))
PRICES = {"input": 2.0, "output": 8.0, "batch_discount": 0.5}


@pytest.fixture
def served():
    with ComponentJudge() as judge:
        yield judge


def account(folder, again=False, study="s", **budget) -> Account:
    ledger = Ledger(folder)
    return Account(ledger, Purse(ledger, BudgetSettings(**budget), study, "r"), study, "r", again=again)


def bench(folder, served, **changed):
    settings = {"model": served.model, "base_url": served.base_url, "prices": PRICES, "max_retries": 1, **changed}
    return build(folder, settings)


def judge(folder, served, answers=ANSWERS, whose=None, **changed):
    """The benchmark with its judgements, its questions and the account."""
    found, whose = bench(folder, served, **changed), whose or account(folder / "ledger")
    questions = found.load()
    return found.judged(found.judge_answers(questions, answers, whose)), questions, whose


def values(found, questions, answers=ANSWERS) -> dict[str, float]:
    return {metric.metric: metric.value for metric in found.score(questions, answers, resamples=20)}


def test_a_worked_example(served, tmp_path):
    found, questions, _ = judge(tmp_path, served)
    assert values(found, questions) == {
        "score": pytest.approx(100 * (8.5 / 10 + 5 / 8 + 0 + 1) / 4),
        "coverage": 100.0,
        "advanced/score": pytest.approx(100.0),
        "basic/score": pytest.approx(85.0),
        "complex/score": pytest.approx(100 * (5 / 8) / 2),
        "component/describe": pytest.approx(100 * 3 / 4),
        "component/length_limit": pytest.approx(100 * 1 / 2),
        "component/linguistics": 100.0,
        "component/mention": pytest.approx(100 * (1 + 0.5 + 1) / 3),
    }
    assert found.reading(questions[1], "blue") == "5 of 8 (name the colour: 5/5; 3 words: 0/3)"


def test_one_request_an_answer_with_the_image_and_a_strict_schema(served, tmp_path):
    _, questions, whose = judge(tmp_path, served)
    assert served.requests == len(questions) == 4 and set(served.asked.values()) == {1}
    by_response = {asked.response: asked for asked in served.received}
    asked = by_response["blue"]
    assert asked.colour == "blue"
    assert asked.texts[0] == {
        "instruction": "name the colour, 3 words",
        "components": [
            {"id": "1", "component": "name the colour", "weight": 5},
            {"id": "2", "component": "3 words", "weight": 3},
        ],
    }
    schema = asked.body["response_format"]["json_schema"]
    entries = schema["schema"]["properties"]["grades"]["items"]["anyOf"]
    assert schema["strict"] and all(not one["additionalProperties"] for one in (schema["schema"], *entries))
    assert [list(one["properties"]) for one in entries] == [["id", "evidence", "score"]] * 2
    assert [one["properties"]["score"]["maximum"] for one in entries] == [5, 3]
    tally = whose.tallies.by_scorer["judge"]
    assert (tally.groups, tally.requests, tally.from_ledger) == (4, 4, 0) and tally.cost > 0


def test_nobody_is_asked_twice(served, tmp_path):
    found, _, _ = judge(tmp_path, served)
    for study in ("s", "another"):
        again, _, whose = judge(tmp_path, served, whose=account(tmp_path / "ledger", study=study))
        assert again._judgements.equals(found._judgements) and served.requests == 4
        assert whose.tallies.by_scorer["judge"].from_ledger == 4
    # A changed answer is asked about by itself; another judge anew.
    judge(tmp_path, served, {**ANSWERS, IDS[0]: "green"})
    assert served.requests == 5
    judge(tmp_path, served, revision="2")
    assert served.requests == 9


def test_judgements_say_what_was_seen(served, tmp_path):
    found, _, _ = judge(tmp_path, served)
    rows = {(row["question_id"], row["component"]): row for row in found._judgements.to_pylist()}
    assert len(rows) == 3 + 2 + 1 + 5
    assert rows["complex/2", "1"] == {
        "question_id": "complex/2",
        "component": "1",
        "score": 5.0,
        "weight": 5.0,
        "status": "scored",
        "words": "on name the colour",
    }


def scored(**entry) -> Reply:
    """A reply whose only entry is this one."""
    return completion(json.dumps({"seen": "", "grades": [{"id": "1", "evidence": "", **entry}]}))


UNUSABLE = {
    "above the weight": (scored(score=11), "grade out of range"),
    "below 0": (scored(score=-1), "grade out of range"),
    "not a number": (scored(score=float("nan")), "reply can't be read"),
    "text": (scored(score="7"), "reply can't be read"),
    "a truth": (scored(score=True), "reply can't be read"),
    "no score": (scored(), "reply can't be read"),
    "a fraction": (scored(score="7.5/10"), "reply can't be read"),
    "prose": (completion("score of component 1: 7/10, total score: 7/10."), "reply can't be read"),
    "empty": (completion(""), "empty reply"),
    "no entry": (completion('{"seen": "", "grades": []}'), "no grade in the reply"),
}


@pytest.mark.parametrize(("reply", "reason"), UNUSABLE.values(), ids=UNUSABLE)
def test_an_unusable_reply_is_mended_once(served, tmp_path, reply, reason):
    served.instead.append(reply)
    found, questions, whose = judge(tmp_path, served, max_parallel=1)
    assert served.requests == 5 and values(found, questions)["coverage"] == 100.0
    tally = whose.tallies.by_scorer["judge"]
    assert tally.requests == 5 and tally.repairs == (reason != "empty reply")


@pytest.mark.parametrize(("reply", "reason"), UNUSABLE.values(), ids=UNUSABLE)
def test_a_reply_that_stays_unusable_is_unscored_with_its_reason_and_never_0(served, tmp_path, reply, reason):
    order = (IDS[2], *(key for key in IDS if key != IDS[2]))
    found = bench(tmp_path, served, max_parallel=1)
    questions = sorted(found.load(), key=lambda question: order.index(question.question_id))
    served.instead.extend([reply, reply])
    found = found.judged(found.judge_answers(questions, ANSWERS, account(tmp_path / "ledger")))
    assert served.requests == 5
    by_id = {row["question_id"]: row for row in found._judgements.to_pylist()}
    assert by_id[IDS[2]]["score"] is None and by_id[IDS[2]]["status"] == reason
    got = values(found, questions)
    # The third answer would have got 0: it is left out of the mean, and counted.
    assert got["score"] == pytest.approx(100 * (8.5 / 10 + 5 / 8 + 1) / 3) and got["coverage"] == 75.0
    assert found.reading(questions[0], "x") == f"unscored (name the colour: {reason})"
    # A re-run after a failure asks for it alone.
    again = found.judge_answers(questions, ANSWERS, account(tmp_path / "ledger", again=True))
    assert served.requests == 6 and again.column("score").null_count == 0


@pytest.mark.parametrize("fault", sorted(set(FAULTS) - {"timeout", "number out of range", "string for a number"}))
def test_a_fault_on_the_way_costs_no_answer_its_score(served, tmp_path, fault):
    expected, questions, _ = judge(tmp_path, served)
    served.requests = 0
    good = judged(next(asked for asked in served.received if asked.response == "red it is"))
    served.instead.append(FAULTS[fault][0](good))
    found, _, _ = judge(tmp_path, served, whose=account(tmp_path / "other"), max_parallel=1)
    lost = fault in ("refusal", "cut off")  # asking the same again would help nobody
    assert values(found, questions)["coverage"] == (75.0 if lost else 100.0)
    if not lost:
        assert found._judgements.equals(expected._judgements)
    assert served.requests == (4 if lost or fault == "prose around JSON" else 5)


def test_components_that_were_scored_stay_while_others_are_mended(served, tmp_path):
    half = {
        "seen": "",
        "grades": [{"id": "1", "evidence": "first", "score": 1}, {"id": "2", "evidence": "", "score": 9}],
    }
    served.instead.append(completion(json.dumps(half)))
    found, _, _ = judge(tmp_path, served, max_parallel=1)
    repair = served.received[1]
    assert repair.is_repair and "2: grade out of range; 3: no grade" in repair.body["messages"][-1]["content"]
    rows = [row for row in found._judgements.to_pylist() if row["question_id"] == IDS[0]]
    assert [row["score"] for row in rows] == [1.0, 3.0, 1.5] and rows[0]["words"] == "first"


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_an_answer_is_unscored_as_a_whole_where_one_component_is(served, tmp_path):
    half = completion(json.dumps({"seen": "", "grades": [{"id": "1", "evidence": "", "score": 4}]}))
    served.instead.extend([half, half])
    found, questions, _ = judge(tmp_path, served, max_parallel=1)
    got = values(found, questions)
    assert got["coverage"] == 75.0 and got["score"] == pytest.approx(100 * (5 / 8 + 0 + 1) / 3)
    # Of basic instructions none is judged, which is no number.
    assert math.isnan(got["basic/score"])
    # Its scored component counts in no mean either.
    assert got["component/describe"] == pytest.approx(100 * 2 / 3)
    assert found.reading(questions[0], "x").startswith("unscored (describe it: 4/4; name the colour: no grade")


def test_an_empty_answer_follows_nothing_and_is_not_sent(served, tmp_path):
    answers = {**ANSWERS, IDS[3]: " \n"}
    found, questions, _ = judge(tmp_path, served, answers)
    assert served.requests == 3
    rows = [row for row in found._judgements.to_pylist() if row["question_id"] == IDS[3]]
    assert {(row["score"], row["status"], row["words"]) for row in rows} == {(0.0, "scored", EMPTY)}
    assert values(found, questions, answers)["advanced/score"] == 0.0


def test_an_image_that_is_gone_or_broken_is_unscored(served, tmp_path):
    found = bench(tmp_path, served)
    questions = found.load()
    (tmp_path / "images" / "spiral-staircase.png").unlink()
    (tmp_path / "images" / "3211872688_157085df0d_m.png").write_bytes(b"no image")
    found = found.judged(found.judge_answers(questions, ANSWERS, account(tmp_path / "ledger")))
    assert served.requests == 2
    lost = {row["question_id"]: row["status"] for row in found._judgements.to_pylist() if row["score"] is None}
    assert lost == dict.fromkeys(IDS[1:3], "image can't be read")


def test_a_budget_stops_it_and_a_re_run_pays_for_the_rest(served, tmp_path):
    with pytest.raises(BudgetSpent, match=r"judge\.budget\.run\.requests"):
        judge(tmp_path, served, whose=account(tmp_path / "ledger", run={"requests": 3}), max_parallel=1)
    assert served.requests == 3
    found, questions, _ = judge(tmp_path, served)
    assert served.requests == 4 and values(found, questions)["coverage"] == 100.0


def test_an_outage_is_an_error_and_no_score(served, tmp_path):
    served.instead.extend([error(401, "wrong key")] * 4)
    with pytest.raises(EndpointError, match=r"judge 'judge'.*wrong key"):
        judge(tmp_path, served, max_parallel=1)


def test_where_nothing_could_be_judged_there_is_no_score(served, tmp_path):
    served.instead.extend([completion(None, refusal="I won't.")] * 4)
    found, questions, _ = judge(tmp_path, served)
    with pytest.raises(BenchmarkError, match=r"none of 4 answers could be judged; the first: refused, I won't\."):
        values(found, questions)


def test_through_the_batch_api_it_is_the_same_judgement_at_half_the_price(served, tmp_path):
    expected, _, directly = judge(tmp_path, served)
    with ExitStack() as stack:
        service = ServedBatches(lambda body: json.loads(judged(Asked(body)).body), model=served.model)
        stack.enter_context(service)
        found, _, batched = judge(tmp_path, service, whose=account(tmp_path / "other"), batch={"poll_seconds": 0.01})
        assert len(service.batches) == 1 and set(service.paid.values()) == {1} and len(service.paid) == 4
    assert found._judgements.equals(expected._judgements)
    costs = [whose.tallies.by_scorer["judge"].cost for whose in (directly, batched)]
    assert costs[1] == pytest.approx(costs[0] / 2) and costs[0] > 0


def test_progress_is_told(served, tmp_path):
    found, told = bench(tmp_path, served, max_parallel=2), []
    found.judge_answers(found.load(), ANSWERS, account(tmp_path / "ledger"), advance=lambda *at: told.append(at))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)] and served.most_at_once <= 2


def test_the_judge_decides_its_identity_and_the_way_to_it_does_not(served, tmp_path):
    base = bench(tmp_path, served).judge_identity()
    assert base == bench(tmp_path, served, timeout=5, max_parallel=3, prices=None).judge_identity()
    others = [bench(tmp_path, served, **changed).judge_identity() for changed in ({"model": "m"}, {"temperature": 1.0})]
    assert base not in others and others[0] != others[1]
    assert "key" not in json.dumps(base)


def test_what_was_not_judged_has_no_score(served, tmp_path):
    found = bench(tmp_path, served)
    questions = found.load()
    with pytest.raises(BenchmarkError, match="mia_bench: its answers were not judged yet"):
        found.score(questions, ANSWERS)
    judgements = found.judge_answers(questions, ANSWERS, account(tmp_path / "ledger"))
    with pytest.raises(BenchmarkError, match="1 answers were not judged, the first: basic/1"):
        found.judged(judgements.slice(3)).score(questions, ANSWERS)
    with pytest.raises(BenchmarkError, match=r"basic/1: judged are the components 2, 3, it has 3"):
        found.judged(judgements.slice(1)).score(questions, ANSWERS)
    with pytest.raises(ValueError, match="through an account"):
        found.judge_answers(questions, ANSWERS, None)


def test_the_notes_name_the_judge(served, tmp_path):
    found = bench(tmp_path, served, revision="abc")
    assert found.notes(found.load()) == [
        "MIA-Bench is judged by component-judge (abc); published figures are by GPT-4o and another prompt"
    ]
