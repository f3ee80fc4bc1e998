"""The rules with several rows a prompt, written a second time in plain Python, one candidate after the other."""

import hashlib
import itertools
import math
from collections import defaultdict

MASK = 2**64 - 1


def scored(rows: list[dict], score: str = "mas", candidates: int | None = None) -> dict[str, list[dict]]:
    """What can be ranked, by prompt and in the order of k, with its `value`, log-prob a token and plain text."""
    found = defaultdict(list)
    for row in sorted(rows, key=lambda row: row["k"]):
        known = all(row[name] is not None and math.isfinite(row[name]) for name in (score, "sum_logp", "n_tokens"))
        if known and (candidates is None or row["k"] < candidates):
            plain = row["candidate_id"] if row["text"] is None else " ".join(row["text"].lower().split())
            own = {"value": row[score], "mean_logp": row["sum_logp"] / row["n_tokens"], "plain": plain}
            found[row["prompt_id"]].append(row | own)
    return found


def every_answer(rows: list[dict], **options) -> list[tuple]:
    """(prompt, candidate, its score), each prompt's best first, prompts by name."""
    return [
        (prompt, row["candidate_id"], row["value"])
        for prompt, some in sorted(scored(rows, **options).items())
        for row in sorted(some, key=lambda row: (-row["value"], -row["mean_logp"], row["n_tokens"], row["k"]))
    ]


def split_mix(state: int) -> int:
    """One output of SplitMix64 (Steele, Lea, Flood 2014) at this state."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        state = (state ^ (state >> shift)) * factor & MASK
    return state ^ (state >> 31)


def drawn_pairs(some: list[dict], prompt: str, *, min_gap: float, min_chosen: float, max_pairs: int, seed: int) -> list:
    """(better, worse) of one prompt before lengths are balanced, the widest gap first."""
    state = int.from_bytes(hashlib.sha256(f"{seed}:{prompt}".encode()).digest()[:8], "big")
    kinds = defaultdict(list)
    for one, other in itertools.combinations(some, 2):
        better, worse = (one, other) if one["value"] > other["value"] else (other, one)
        wide = better["value"] - worse["value"] > min_gap and better["value"] >= min_chosen
        if wide and better["finish_reason"] != "length" and better["plain"] != worse["plain"]:
            state = (state + 0x9E3779B97F4A7C15) & MASK
            longer = better["n_tokens"] - worse["n_tokens"]
            kinds[(longer > 0) - (longer < 0)].append((split_mix(state), better, worse))
    turns = [(turn, key, a, b) for some in kinds.values() for turn, (key, a, b) in enumerate(sorted(some, key=first))]
    taken = sorted(turns, key=lambda item: item[:2])[:max_pairs]
    pairs = [(better, worse) for _, _, better, worse in taken]
    return sorted(pairs, key=lambda pair: (pair[1]["value"] - pair[0]["value"], pair[0]["k"], pair[1]["k"]))


def first(item: tuple) -> int:
    """Its key."""
    return item[0]


def margin_pairs(
    rows: list[dict],
    *,
    min_gap: float = 0.0,
    min_chosen: float = -math.inf,
    max_pairs: int = 2,
    seed: int = 0,
    score: str = "mas",
    candidates: int | None = None,
) -> list[tuple[str, str, str]]:
    """(prompt, chosen, rejected), prompts by name."""
    options = {"min_gap": min_gap, "min_chosen": min_chosen, "max_pairs": max_pairs, "seed": seed}
    drawn = [
        (prompt, better, worse)
        for prompt, some in sorted(scored(rows, score, candidates).items())
        for better, worse in drawn_pairs(some, prompt, **options)
    ]
    by_kind = defaultdict(list)
    for pair in drawn:
        longer = pair[1]["n_tokens"] - pair[2]["n_tokens"]
        by_kind[(longer > 0) - (longer < 0)].append(pair)

    def lot(pair: tuple) -> str:
        better, worse = pair[1]["candidate_id"], pair[2]["candidate_id"]
        pair_id = hashlib.sha256(f"{len(better)}:{better}{worse}".encode()).hexdigest()
        return hashlib.sha256(f"{seed}:{pair_id}".encode()).hexdigest()

    surplus = len(by_kind[1]) - len(by_kind[-1])
    kind = 1 if surplus > 0 else -1
    lost = sorted(by_kind[kind], key=lot)[len(by_kind[kind]) - abs(surplus) :]
    return [(p, a["candidate_id"], b["candidate_id"]) for p, a, b in drawn if (p, a, b) not in lost]
