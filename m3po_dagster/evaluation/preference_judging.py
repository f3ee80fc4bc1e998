"""Asking a judge for judged preference: a grade for each answer, and each pair compared in both orders.

Rows of JUDGEMENTS. The score of a comparison is about the answer that is judged, whichever place it was shown in: 1 it
is better, 0 the one it is compared with is, 0.5 neither. Nobody is asked about an empty answer, which has the lowest
grade, nor about two answers that are the same.
"""

from collections.abc import Callable, Mapping, Sequence

from m3po_dagster.evaluation.judged import judgement, unscored, unscored_of
from m3po_dagster.evaluation.preference_request import ANSWER, PAIR, GradeInquiry, PairInquiry
from m3po_dagster.evaluation.question import Question
from m3po_dagster.method.judging import (
    HIGHEST,
    LOWEST,
    TOGETHER,
    UNREADABLE_IMAGE,
    Account,
    Calibration,
    Inquiry,
    JudgeImage,
    Score,
    Scorer,
    ServedJudgeSettings,
    ask_all,
    calibrated,
    revision_of,
)

GRADE, SHOWN_FIRST, SHOWN_SECOND = "grade", "shown first", "shown second"
"""Components of a judgement: the answer by itself, and against the other one from either place."""
SAME = "same answer"
"""In place of both comparisons: there was nothing to compare."""
EMPTY = "empty answer"

Advance = Callable[[int, int], None]
Against = Mapping[str, str] | None


def ask_served(
    settings: ServedJudgeSettings,
    account: Account,
    questions: Sequence[Question],
    answers: Mapping[str, str],
    against: Against,
    advance: Advance,
) -> list[dict]:
    """The judgements of a served judge: a request a grade, and one an order of each pair. Raises as `ask_all`."""
    revision, rows, wanted = revision_of(settings, account), [], []
    for question in questions:
        answer = answers[question.question_id]
        known, components = _without_asking(question, answer, against)
        rows += known
        try:
            image = JudgeImage(question.image_path, settings.image_urls, settings.detail)
        except OSError:
            rows += [unscored(question.question_id, component, UNREADABLE_IMAGE) for component in components]
            continue
        about = (image, settings, revision)
        for component in components:
            if component == GRADE:
                inquiry: Inquiry = GradeInquiry(question, answer, *about)
            else:
                pair = (answer, against[question.question_id])
                inquiry = PairInquiry(question, *(pair if component == SHOWN_FIRST else pair[::-1]), *about)
            wanted.append((question.question_id, component, inquiry))
    ask_all(settings, account, [inquiry for _, _, inquiry in wanted], advance)
    return rows + [_row(*one) for one in wanted]


def score_here(
    scorer: Scorer,
    calibration: Calibration,
    margin: float,
    questions: Sequence[Question],
    answers: Mapping[str, str],
    against: Against,
    advance: Advance,
) -> list[dict]:
    """The judgements of a scorer that is loaded here, made of its calibrated values: it knows no order.

    A value in [0, 1] is a grade from 1 to 5; of two values that differ by more than `margin` the higher wins.
    """
    rows: list[dict] = []
    for start in range(0, len(questions), TOGETHER):
        some = questions[start : start + TOGETHER]
        texts = [_distinct(question, answers, against) for question in some]
        scored = scorer.score([(one.prompt(), given) for one, given in zip(some, texts, strict=True)])
        for question, given, found in zip(some, texts, scored, strict=True):
            scores = dict(zip(given, found, strict=True))
            rows += _scored_here(question, answers, against, scores, calibration, margin)
        advance(start + len(some), len(questions))
    return rows


def _without_asking(question: Question, answer: str, against: Against) -> tuple[list[dict], list[str]]:
    """What needs no judge, and the components that do."""
    rows, components = [], []
    if answer.strip():
        components.append(GRADE)
    else:
        rows.append(judgement(question.question_id, GRADE, float(LOWEST), words=EMPTY))
    if against is not None:
        if answer.strip() == against[question.question_id].strip():
            rows.append(judgement(question.question_id, SAME, 0.5))
        else:
            components += [SHOWN_FIRST, SHOWN_SECOND]
    return rows, components


def _row(question_id: str, component: str, inquiry: Inquiry) -> dict:
    if isinstance(inquiry, GradeInquiry):
        key, score = ANSWER, inquiry.grade
    else:
        key, score = PAIR, inquiry.first_wins
        if component == SHOWN_SECOND and score is not None:
            score = 1 - score
    if score is None:
        return unscored_of(inquiry, key, question_id, component)
    return judgement(question_id, component, score, words=inquiry.grades[key].evidence)


def _distinct(question: Question, answers: Mapping[str, str], against: Against) -> list[str]:
    both = [answers[question.question_id]] + ([] if against is None else [against[question.question_id]])
    return [text for text in dict.fromkeys(both) if text.strip()]


def _scored_here(
    question: Question,
    answers: Mapping[str, str],
    against: Against,
    scores: Mapping[str, Score],
    calibration: Calibration,
    margin: float,
) -> list[dict]:
    answer, key = answers[question.question_id], question.question_id
    rows, components = _without_asking(question, answer, against)
    ours = _value(answer, scores, calibration)
    if GRADE in components:
        score = scores[answer]
        if ours is None:
            rows.append(unscored(key, GRADE, score.reason, words=score.words))
        else:
            rows.append(judgement(key, GRADE, LOWEST + (HIGHEST - LOWEST) * ours, words=score.words))
    if SHOWN_FIRST in components:
        other = against[key]
        theirs = _value(other, scores, calibration)
        for component in (SHOWN_FIRST, SHOWN_SECOND):
            if ours is None or theirs is None:
                failed = scores[answer if ours is None else other]
                rows.append(unscored(key, component, failed.reason, words=failed.words))
            else:
                better = 0.5 if abs(ours - theirs) <= margin else float(ours > theirs)
                rows.append(judgement(key, component, better, words=f"{ours:.3f} against {theirs:.3f}"))
    return rows


def _value(answer: str, scores: Mapping[str, Score], calibration: Calibration) -> float | None:
    """The calibrated value; 0, the lowest there is, for an empty answer."""
    return calibrated(scores[answer], calibration) if answer.strip() else 0.0
