"""What the embedded judge says for its score: short sentences about what it sees and which statements that decided.

They are read off the same table of probabilities as the aspects, so they explain the number and never add to it.
"""

from m3po_dagster.world.language import NUMBERS, YES_NO_KINDS, Claim, Claims, Question
from m3po_dagster.world.scene_reading import SceneReading, Statement, fits, implied_verdict, statements
from m3po_dagster.world.scenes import POSITIONS, THINGS


def evidence(reading: SceneReading, question: Question, claims: Claims) -> str:
    """What the judge sees, what it holds against the answer, what it confirms. Numbers are its probabilities."""
    said = [(_text(statement), reading.belief(statement)) for statement in dict.fromkeys(statements(claims))]
    doubted = [f"'{text}' ({belief:.2f})" for text, belief in sorted(said, key=lambda one: one[1]) if belief < 0.5]
    agreed = [f"'{text}' ({belief:.2f})" for text, belief in said if belief >= 0.5]
    parts = [f"sees {_seen(reading)}", *_verdict(reading, question, claims)]
    parts += [f"disputed: {', '.join(doubted)}"] if doubted else []
    parts += _form(reading, question, claims)
    # Last, for it is what may be cut off.
    parts += [f"confirmed: {', '.join(agreed)}"] if agreed else []
    return "; ".join(parts)


def _seen(reading: SceneReading) -> str:
    likeliest = reading.cells.argmax(axis=1)
    seen = [
        f"{THINGS[thing]} {position} {reading.cells[place, thing]:.2f}"
        for place, (position, thing) in enumerate(zip(POSITIONS, likeliest, strict=True))
        if thing < len(THINGS)
    ]
    return ", ".join(seen) or f"nothing {reading.empty('image'):.2f}"


def _verdict(reading: SceneReading, question: Question, claims: Claims) -> list[str]:
    if question.kind not in YES_NO_KINDS:
        return []
    verdict = implied_verdict(question, claims) if claims.verdict is None else claims.verdict
    if verdict is None:
        return ["neither yes nor no"]
    right = reading.yes(question) if verdict else 1.0 - reading.yes(question)
    return [f"{'yes' if verdict else 'no'} is {'right' if right >= 0.5 else 'wrong'} ({right:.2f})"]


def _form(reading: SceneReading, question: Question, claims: Claims) -> list[str]:
    """What adherence looks at: what was asked and not said, and what was said and not asked."""
    items, parts = statements(claims), []
    if question.kind == "describe":
        named = {claim.thing for claim in claims.present}
        missing = [str(thing) for thing in THINGS if thing not in named and reading.present(thing) >= 0.5]
        parts += [f"not named: {', '.join(missing)}"] if missing else []
    elif question.kind not in YES_NO_KINDS and not any(fits(question, item) for item in items):
        parts.append("the question is not answered")
    if claims.verdict is not None and question.kind not in YES_NO_KINDS:
        parts.append("yes or no was not asked")
    if question.short and claims.verdict is None:
        parts.append("a bare yes or no was asked for")
    beside = dict.fromkeys(_text(item) for item in items if question.short or not fits(question, item))
    parts += [f"not asked: {', '.join(beside)}"] if beside else []
    repeated = [item for item in dict.fromkeys(items) if items.count(item) > 1]
    parts += [f"said {items.count(item)} times: {_text(item)}" for item in repeated]
    return parts + ([f"not understood: {', '.join(claims.unparsed)}"] if claims.unparsed else [])


def _text(statement: Statement) -> str:
    match statement:
        case Claim(thing=thing, position=position):
            return f"{thing} {position}" if position else str(thing)
        case ("absent", what):
            return f"no {what}"
        case ("empty", place):
            return "empty image" if place == "image" else f"nothing {place}"
        case ("count", number):
            return f"{NUMBERS[number]} object{'' if number == 1 else 's'}"
    raise ValueError(f"not a statement: {statement}")
