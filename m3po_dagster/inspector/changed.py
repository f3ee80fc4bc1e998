"""The prompts whose R_l another alpha or delta changes, with the texts of the old one and of the new one."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from m3po_dagster.inspector.candidate_texts import CandidateTexts
from m3po_dagster.inspector.catalogue import Catalogue, Place
from m3po_dagster.inspector.fronts import Fronts


@dataclass(frozen=True)
class Loser:
    """A candidate as R_l: its k and text, and how S weighs it against R_w."""

    k: int
    text: str
    gap: float  # MAS(R_w) - MAS
    logp_gap: float  # conf(R_w) - conf


@dataclass(frozen=True)
class Changed:
    """A prompt whose R_l changes; `chosen` is the k of its R_w, which stays."""

    prompt_id: str
    shard: str
    question: str
    image_sha256: str
    chosen: int
    before: Loser
    after: Loser


def changed_prompts(
    catalogue: Catalogue,
    texts: CandidateTexts,
    fronts: Sequence[Fronts],
    before: Sequence[np.ndarray],
    after: Sequence[np.ndarray],
    skip: int,
    count: int,
) -> list[Changed]:
    """`count` of the prompts whose pick changes, after the first `skip`, in the study's order.

    `fronts` are those of the scored shards, `before` and `after` the picks of each. Raises OSError for a file that is
    not there, ValueError for one that can't be read.
    """
    places, entries = [], []
    scored = [shard for shard in catalogue.shards if shard.scored]
    for shard, front, old, new in zip(scored, fronts, before, after, strict=True):
        differs = np.flatnonzero(old != new)
        differs = differs[np.argsort(front.prompt[differs], kind="stable")]
        wanted = differs[skip : skip + count - len(places)]
        skip = max(0, skip - len(differs))
        places += [Place(shard, int(front.prompt[entry])) for entry in wanted]
        entries += [(front, int(entry), int(old[entry]), int(new[entry])) for entry in wanted]
        if len(places) == count:
            break
    found = []
    for place, said, (front, entry, old, new) in zip(places, texts.of(places), entries, strict=True):
        shard, position = place.shard, place.position
        losers = [
            Loser(k, said[k], float(front.gap[at]), float(front.logp_gap[at]))
            for at, k in ((old, int(front.k[old])), (new, int(front.k[new])))
        ]
        found.append(
            Changed(
                prompt_id=shard.prompt_ids[position].as_py(),
                shard=shard.name,
                question=shard.questions[position].as_py(),
                image_sha256=shard.image_hashes[position].as_py(),
                chosen=int(front.winner[entry]),
                before=losers[0],
                after=losers[1],
            )
        )
    return found
