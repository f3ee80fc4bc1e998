"""Asking scorers about some of a batch's answers: all at once, or in the rounds of a cascade."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from m3po_dagster.method.alignment.cascade import Bounds, CascadeSettings, Prospects
from m3po_dagster.method.alignment.scorer import Batch, Score, Scorer

TOGETHER = 16
"""Prompts whose answers a scorer gets at once that asks for no more: enough to fill the batches of a local one."""

Known = list[list[dict[str, Score]]]
"""For every answer of every prompt what each scorer that was asked about it said."""


def everything(batch: Batch) -> list[range]:
    """The places of all answers."""
    return [range(len(answers)) for _, answers in batch]


def ask(scorer: Scorer, batch: Batch, wanted: Sequence[Iterable[int]], known: Known) -> None:
    """Puts into `known` what the scorer says of the wanted answers, given by their places in each prompt."""
    asked = [(p, list(places)) for p, places in enumerate(wanted)]
    asked = [(p, places) for p, places in asked if places]
    if not asked:
        return
    # As many prompts as the scorer wants: one that is loaded here would hold the images of all in memory.
    together = getattr(scorer, "together", TOGETHER)
    for start in range(0, len(asked), together):
        some = asked[start : start + together]
        found = scorer.score([(batch[p][0], [batch[p][1][j] for j in places]) for p, places in some])
        for (p, places), scores in zip(some, found, strict=True):
            for j, score in zip(places, scores, strict=True):
                known[p][j][scorer.name] = score


def ask_in_rounds(
    scorers: Sequence[Scorer],
    batch: Batch,
    known: Known,
    prospects: Sequence[Prospects],
    bounds: Callable[[Sequence[Mapping[str, Score]]], Bounds],
    settings: CascadeSettings,
) -> None:
    """Asks `scorers` until every answer of every prompt has its MAS, can have none, or can become no part of a pair.

    `bounds` are those of a prompt's MAS from what is known of its answers. Within a round an answer goes from scorer to
    scorer only as long as it is in the race. Each prompt goes its own way: what else is in the batch has no part in it.
    """
    while True:
        groups = [one.next(bounds(some), settings.round_size) for one, some in zip(prospects, known, strict=True)]
        if not any(groups):
            return
        for scorer in scorers:
            ask(
                scorer, batch, [_still(*prompt, bounds) for prompt in zip(groups, prospects, known, strict=True)], known
            )


def _still(
    group: list[int],
    prospects: Prospects,
    known: Sequence[Mapping[str, Score]],
    bounds: Callable[[Sequence[Mapping[str, Score]]], Bounds],
) -> list[int]:
    """Which of a group are in the race after what the round has brought so far."""
    if not group:
        return []
    now = bounds(known)
    in_race = np.flatnonzero(prospects.can_win(now) | prospects.can_lose(now))
    return [j for j in group if j in in_race]
