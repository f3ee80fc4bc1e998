"""What a cascade saves: answers that the served judge is asked about, as a share of all of them.

    python benchmarks/cascade.py      # prints a table, writes benchmarks/cascade.json

Two kinds of answers: simulated ones, 32 a prompt, whose cheap scorer and judge both see the answer's quality through
noise; and the candidates of the embedded study as `make demo` leaves them, whose cheap scorer is its clip column and
whose judge grades relevance, accuracy and adherence from 1 to 5 by the world's own rules, one answer a request. Every
figure is a count of requests, and every line is checked: 24 points of alpha and delta in each promised scale, with and
without bonus, select the very pairs of judging every answer.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow as pa
from machine import machine
from newest_artifacts import newest

from m3po_dagster.method.alignment.calibration import Identity
from m3po_dagster.method.alignment.cascade import AnswerFacts, CascadeSettings
from m3po_dagster.method.alignment.judge_reply import mean_grade
from m3po_dagster.method.alignment.mas import MasScorer
from m3po_dagster.method.alignment.scorer import Score
from m3po_dagster.method.prompt import Message, Prompt
from m3po_dagster.method.selection import SelectionSettings, select_pairs

ALPHAS, DELTAS = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0), (0.0, 0.1, 0.2, 0.3)
SHARES = (0.2, 1 / 3, 0.5, 0.75, 1.0)
BOTH, MEAN = ("mean", "sum"), ("mean",)
ROUNDS = (1, 4, 8, 16)
STORE = Path(__file__).parents[1] / ".m3po" / "store"
KEPT = ("prompt_id", "candidate_id", "k", "text", "finish_reason", "sum_logp", "n_tokens")


@dataclass
class Prompts:
    """Rows by prompt: what selection needs, and the values of the cheap scorer and of the judge."""

    rows: Mapping[str, Sequence[dict]]

    @property
    def answers(self) -> int:
        """Answers to all prompts."""
        return sum(map(len, self.rows.values()))


class Column:
    """A scorer whose values are known, and that counts what it is asked about."""

    sub_scores = ()

    def __init__(self, name: str, prompts: Prompts) -> None:
        self.name, self.asked = name, 0
        self._values = {key: {row["text"]: row[name] for row in rows} for key, rows in prompts.rows.items()}

    def score(self, batch):
        self.asked += sum(len(answers) for _, answers in batch)
        return [[Score(self._values[prompt.prompt_id][answer]) for answer in answers] for prompt, answers in batch]


def simulated(rng: np.random.Generator, prompts: int, grades: int, insight: float) -> Prompts:
    """32 answers a prompt; the judge gives the mean of `grades` whole grades, the cheap scorer sees `insight` of it."""
    found = {}
    for p in range(prompts):
        quality = rng.normal(size=32) + rng.normal() * 0.5
        seen = insight * quality + np.sqrt(1 - insight**2) * rng.normal(size=32)
        given = [
            np.clip(np.round(3.4 + 0.9 * (0.8 * quality + 0.6 * rng.normal(size=32))), 1, 5) for _ in range(grades)
        ]
        n_tokens = rng.integers(15, 80, 32)
        a_token = np.maximum(0.05, rng.normal(0.8, 0.25, 32) - 0.05 * quality)
        found[f"p{p}"] = [
            {
                "prompt_id": f"p{p}",
                "candidate_id": f"p{p}:{k}",
                "k": k,
                "text": f"answer {k}",
                "finish_reason": "length" if rng.random() < 0.02 else "stop",
                "sum_logp": float(-a_token[k] * n_tokens[k]),
                "n_tokens": int(n_tokens[k]),
                "cheap": float(1 / (1 + np.exp(-seen[k]))),
                "judge": mean_grade([float(grade[k]) for grade in given]),
            }
            for k in range(32)
        ]
    return Prompts(found)


def embedded(store: Path) -> Prompts:
    """The newest candidates of the embedded study with the judge's aspects as whole grades."""
    found: dict[str, list[dict]] = {}
    sampled, scored = newest(store, "candidates"), newest(store, "mas_table")
    for partition in sorted(scored):
        candidates, scores = sampled[partition].table(columns=[*KEPT]), scored[partition].table()
        if not scores["candidate_id"].equals(candidates["candidate_id"]):
            raise SystemExit(f"{store}: mas_table of {partition} is of older candidates: run the embedded study first")
        for row, score in zip(candidates.to_pylist(), scores.to_pylist(), strict=True):
            if score["mas"] is not None and score["clip"] is not None:
                aspects = [1 + round(4 * score[name]) for name in ("relevance", "accuracy", "adherence")]
                row |= {"cheap": score["clip"], "judge": mean_grade(aspects)}
                found.setdefault(row["prompt_id"], []).append(row)
    return Prompts(found)


def judged(prompts: Prompts, share: float, cascade: CascadeSettings | None) -> tuple[pa.Table, int]:
    """The table that selection takes, and the answers that the judge was asked about."""
    cheap, judge = Column("cheap", prompts), Column("judge", prompts)
    weights = {"cheap": 1 - share, "judge": share}
    scorer = MasScorer([cheap, judge], weights, dict.fromkeys(weights, Identity()), cascade, ["judge"])
    batch = [
        (Prompt(key, Path("unread.png"), (Message("user", "?"),)), [row["text"] for row in rows])
        for key, rows in prompts.rows.items()
    ]
    scores = scorer.score(batch, facts=[AnswerFacts.of(rows) for rows in prompts.rows.values()])
    given = [row for rows in prompts.rows.values() for row in rows]
    table = [{name: row[name] for name in KEPT} | {"mas": mas["mas"]} for row, mas in zip(given, scores, strict=True)]
    return pa.Table.from_pylist(table), judge.asked


def saving(prompts: Prompts, share: float, cascade: CascadeSettings) -> float:
    """The share of answers that were not asked about. Raises AssertionError where a pair is another one."""
    everything, all_asked = judged(prompts, share, None)
    some, asked = judged(prompts, share, cascade)
    for alpha, delta, scale, bonus in product(ALPHAS, DELTAS, cascade.confidence, (False, True)):
        recipe = SelectionSettings(alpha=alpha, delta=delta, confidence=scale, allow_bonus=bonus)
        assert select_pairs(some, recipe).pairs.equals(select_pairs(everything, recipe).pairs), recipe
    assert all_asked == prompts.answers
    return 1 - asked / all_asked


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, default=STORE, help="of a finished run of studies/easy_scenes.yaml")
    parser.add_argument("--prompts", type=int, default=200, help="simulated prompts (200)")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    kinds = {
        f"simulated, {grades} grade{'s' * (grades > 1)}, insight {insight}": simulated(
            np.random.default_rng(0), arguments.prompts, grades, insight
        )
        for grades, insight in ((1, 0.5), (1, 0.9), (3, 0.5), (3, 0.9))
    }
    if (arguments.store / "mas_table").is_dir():
        kinds["embedded study, 3 grades"] = embedded(arguments.store)
    else:
        print(f"no study was run in {arguments.store}: it is left out (`make demo` runs one)", file=sys.stderr)
    found = {}
    for name, prompts in kinds.items():
        found[name] = {"prompts": len(prompts.rows), "answers": prompts.answers, "saved": {}}
        print(f"{name}: {len(prompts.rows)} prompts, {prompts.answers:,} answers")
        plans = [(BOTH, 8), *[(MEAN, size) for size in ROUNDS]]
        for scales, size in plans:
            row = {
                f"{share:.2f}": round(saving(prompts, share, CascadeSettings(confidence=scales, round_size=size)), 4)
                for share in SHARES
            }
            found[name]["saved"][f"{' and '.join(scales)}, rounds of {size}"] = row
            shown = "   ".join(f"{share} {saved:6.1%}" for share, saved in row.items())
            print(f"  {' and '.join(scales):12} rounds of {size:2}   judge's share of MAS: {shown}", flush=True)
    result = {"machine": machine(), "alpha_max": 1.0, "answers saved by the judge's share of MAS": found}
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
