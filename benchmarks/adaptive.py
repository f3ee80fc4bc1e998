"""Adaptive N on the embedded world: what it saves, and how often it ends with the pair that N = max gives.

    python benchmarks/adaptive.py               # prints tables, writes benchmarks/adaptive.json

All rounds of every prompt are drawn once, with the study's own model and sampling. The rule is replayed over them for
each setting and each scorer between rounds: a prompt that goes through all rounds has the same samples whoever else
stopped, so a replay gives what sampling with that rule gives (checked on one setting, which is sampled for real). Pairs
are selected with the study's judge, which the rule never sees, and compared with those at N = max, beside fixed smaller
N. `scene_judge` as the scorer is the judge itself: the rule at its best, not what a user has. A round of 8 is narrower
than one of 32, so the same prompts in flight take more forwards; four times the prompts fill it again.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow as pa
from machine import machine

from m3po_dagster.datasets.images import DatasetImages
from m3po_dagster.datasets.index import DatasetIndex
from m3po_dagster.method.alignment.mas import MasScorer
from m3po_dagster.method.filtering import filter_rows
from m3po_dagster.method.generation.adaptive import Rounds
from m3po_dagster.method.generation.candidates import distinct
from m3po_dagster.method.generation.model import load_model
from m3po_dagster.method.generation.sampler import TransformersEngine
from m3po_dagster.method.generation.samples import Sample, prompt_seed
from m3po_dagster.method.generation.settings import RoundSettings, SamplingSettings
from m3po_dagster.method.prompt import Prompt
from m3po_dagster.method.selection import SelectionSettings, select_pairs
from m3po_dagster.study import JudgeSettings, Study, load_study
from m3po_dagster.world.write import write_world

STUDY = Path(__file__).parents[1] / "studies" / "easy_scenes.yaml"
MAX = 32
LAYOUTS = ((8, 8), (4, 4))  # samples of the first round and of every further one
FIXED = (8, 16, 24, 32)
TOLERANCES = (0.0, 0.02, 0.05, 0.1, 1.0)
PATIENCES = (1, 2)
AT_ONCE = 16
SAMPLED_FOR_REAL = ((8, 8), "clip", 1, 0.02)


def prompts_of(study: Study) -> list[Prompt]:
    """The study's prompts, filtered as its graph does."""
    images = DatasetImages(study.dataset)
    with DatasetIndex(study.dataset) as index:
        kept = filter_rows(index.rows(), study.filters, turns=study.dataset.turns).kept
    return [Prompt.from_row(row, images.locate(row["source"], row["image_uri"])) for row in kept]


class Memory:
    """A scorer's rows, each answer of a prompt scored once however often it is asked for."""

    def __init__(self, scorer: MasScorer) -> None:
        self.scorer, self.known = scorer, {}

    def score(self, batch: Sequence[tuple[Prompt, Sequence[str]]]) -> list[dict]:
        """As `MasScorer.score`."""
        new = [
            (prompt, texts)
            for prompt, some in batch
            if (texts := [text for text in some if (prompt.prompt_id, text) not in self.known])
        ]
        keys = [(prompt.prompt_id, text) for prompt, texts in new for text in texts]
        self.known |= dict(zip(keys, self.scorer.score(new) if new else [], strict=True))
        return [self.known[prompt.prompt_id, text] for prompt, texts in batch for text in texts]


def replay(prompts: list[Prompt], drawn: list[list[Sample]], settings: RoundSettings, scorer: Memory) -> list[int]:
    """Samples that each prompt gets under the rule."""
    rounds, sizes = Rounds(prompts, settings, scorer.score), SamplingSettings(n=settings).rounds
    numbers = [0] * len(prompts)
    for start in range(0, len(prompts), AT_ONCE):
        going, so_far = list(range(start, min(start + AT_ONCE, len(prompts)))), 0
        for number, size in enumerate(sizes, start=1):
            so_far += size
            for i in going:
                numbers[i] = so_far
            if number < len(sizes) and going:
                on = rounds([(i, drawn[i][:so_far]) for i in going])
                going = [i for i, goes_on in zip(going, on, strict=True) if goes_on]
    return numbers


def pairs(prompts: list[Prompt], drawn: list[list[Sample]], numbers: list[int], judge: Memory) -> dict[str, dict]:
    """The pair of each prompt by M3P with the study's judge, from its first samples."""
    rows = []
    for prompt, samples, number in zip(prompts, drawn, numbers, strict=True):
        candidates = distinct(samples[:number])
        scores = judge.score([(prompt, [one.text for one in candidates])])
        rows += [
            {**one.row(prompt.prompt_id, 0), "mas": score["mas"]} for one, score in zip(candidates, scores, strict=True)
        ]
    names = ("prompt_id", "candidate_id", "k", "text", "finish_reason", "mas", "sum_logp", "n_tokens")
    table = pa.Table.from_pylist([{name: row[name] for name in names} for row in rows])
    found = select_pairs(table, SelectionSettings(rule="m3p", alpha=0.5, delta=0.1)).pairs
    mas = {row["candidate_id"]: row["mas"] for row in rows}
    return {row["prompt_id"]: {**row, "mas": mas[row["chosen_id"]]} for row in found.to_pylist()}


def compared(drawn: list[list[Sample]], numbers: list[int], mine: dict[str, dict], best: dict[str, dict]) -> dict:
    """What was saved and what was lost against N = max."""
    ids = [*dict.fromkeys([*mine, *best])]
    tokens = [sum(len(one.token_ids) for one in samples[:n]) for samples, n in zip(drawn, numbers, strict=True)]
    at_max = sum(len(one.token_ids) for samples in drawn for one in samples)

    def agree(*names: str) -> float:
        neither = len(drawn) - len(ids)
        same = sum(
            key in mine and key in best and all(mine[key][name] == best[key][name] for name in names) for key in ids
        )
        return (same + neither) / len(drawn)

    both = [key for key in ids if key in mine and key in best]
    return {
        "samples a prompt": float(np.mean(numbers)),
        "samples saved": 1 - sum(numbers) / (MAX * len(drawn)),
        "tokens saved": 1 - sum(tokens) / at_max,
        "same pair": agree("chosen_id", "rejected_id"),
        "same chosen": agree("chosen_id"),
        "pairs": len(mine),
        "MAS of R_w": float(np.mean([row["mas"] for row in mine.values()])),
        "MAS of R_w lost": float(np.mean([best[key]["mas"] - mine[key]["mas"] for key in both])),
        "MAS gap": float(np.mean([row["mas_gap"] for row in mine.values()])),
        "MAS gap lost": float(np.mean([best[key]["mas_gap"] - mine[key]["mas_gap"] for key in both])),
    }


def show(title: str, row: dict) -> None:
    """One line of the table."""
    print(
        f"{title:<34}{row['samples a prompt']:6.1f}{row['samples saved']:8.1%}{row['tokens saved']:8.1%}"
        f"{row['same pair']:8.1%}{row['same chosen']:8.1%}{row['pairs']:7d}{row['MAS of R_w']:8.3f}"
        f"{row['MAS of R_w lost']:8.4f}{row['MAS gap']:8.3f}{row['MAS gap lost']:8.4f}"
    )


def main() -> None:
    """Draws, replays, compares, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=480, help="usable prompts of the world")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    study = load_study(STUDY)
    with tempfile.TemporaryDirectory() as folder:
        write_world(Path(folder) / "world", options.prompts, 10)
        instructions = Path(folder) / "world" / "instructions"
        paths = {"path": instructions / "llava_instruct.json", "image_root": instructions / "images"}
        source = study.dataset.sources["easy_scenes"].model_copy(update=paths)
        dataset = study.dataset.model_copy(update={"sources": {"easy_scenes": source}})
        study = study.model_copy(update={"dataset": dataset})
        results = measure(study, prompts_of(study))
    options.out.write_text(json.dumps({"machine": machine(), **results}, indent=2) + "\n")


class Experiment:
    """The study's model, prompts, judge, and its scorers each alone."""

    def __init__(self, study: Study, prompts: list[Prompt]) -> None:
        self.study, self.prompts, self.loaded = study, prompts, load_model(study.model)
        self.seeds = [prompt_seed(study.generation.seed, prompt.prompt_id, MAX) for prompt in prompts]
        self.judge = Memory(study.judge.build())
        self.alone = {
            scorer.name: JudgeSettings(scorers=(scorer.model_copy(update={"weight": 1.0}),))
            for scorer in study.judge.scorers
        }

    def sample(self, n: int | RoundSettings, wide: int, more: Rounds | None = None) -> tuple[dict, list[list[Sample]]]:
        """Counts and CPU seconds of sampling all prompts, `wide` at once, and their samples."""
        base = self.study.generation.model_dump()
        settings = SamplingSettings(**base | {"n": n, "prompts_per_batch": wide})
        engine, started = TransformersEngine(self.loaded), time.process_time()
        samples = dict(engine.sample(self.prompts, settings, self.seeds, more))
        seconds = round(time.process_time() - started, 2)
        return {"cpu_seconds": seconds, **asdict(engine.counts)}, [samples[i] for i in range(len(self.prompts))]

    def compared(self, drawn: list[list[Sample]], numbers: list[int]) -> dict:
        """These numbers of samples against all of them."""
        mine, best = (pairs(self.prompts, drawn, some, self.judge) for some in (numbers, [MAX] * len(drawn)))
        return compared(drawn, numbers, mine, best)

    def layout(self, first: int, step: int) -> tuple[list[dict], dict[str, dict]]:
        """Figures of fixed N and of every setting of the rule, over one drawing in rounds; counts of real samplings."""
        rows, scorers = [], {name: Memory(settings.build()) for name, settings in self.alone.items()}
        counted, drawn = self.sample(RoundSettings(first=first, step=step, max=MAX), AT_ONCE)
        work = {f"all rounds up to {MAX}, {AT_ONCE} at once": counted}
        print(f"\nrounds {first} + {step} up to {MAX}")
        for n in FIXED:
            rows.append({"fixed": n, **self.compared(drawn, [n] * len(drawn))})
            show(f"fixed N = {n}", rows[-1])
        for name, patience, tolerance in product(scorers, PATIENCES, TOLERANCES):
            rule = RoundSettings(first=first, step=step, max=MAX, patience=patience, tolerance=tolerance)
            numbers = replay(self.prompts, drawn, rule, scorers[name])
            title = f"{name}, patience {patience}, tolerance {tolerance:g}"
            rows.append({**rule.model_dump(exclude={"max", "alpha", "delta"}), "scorer": name})
            rows[-1] |= self.compared(drawn, numbers)
            show(title, rows[-1])
            if ((first, step), name, patience, tolerance) == SAMPLED_FOR_REAL:
                for wide in (AT_ONCE, AT_ONCE * MAX // first):
                    more = Rounds(self.prompts, rule, self.alone[name].build().score)
                    work[f"{title}, {wide} at once"], found = self.sample(rule, wide, more)
                    if [len(samples) for samples in found] != numbers:
                        raise SystemExit("sampling with the rule drew other numbers of samples than its replay")
        return rows, work


def measure(study: Study, prompts: list[Prompt]) -> dict:
    """All figures."""
    experiment = Experiment(study, prompts)
    head = ("N", "samples", "tokens", "pair", "chosen", "pairs", "MAS R_w", "lost", "gap", "lost")
    print(f"{len(prompts)} prompts; samples and tokens saved, same pair and chosen answer, lost: against N = {MAX}\n")
    print(f"{'':<34}{head[0]:>6}" + "".join(f"{name:>{7 if name == 'pairs' else 8}}" for name in head[1:]))
    work = {f"N = {MAX} in one round, {AT_ONCE} at once": experiment.sample(MAX, AT_ONCE)[0]}
    policies = {}
    for first, step in LAYOUTS:
        policies[f"{first} + {step}"], counted = experiment.layout(first, step)
        if (first, step) == SAMPLED_FOR_REAL[0]:
            work |= counted
    print("\nSampled for real, CPU seconds and counts:")
    for title, counted in work.items():
        print(
            f"  {title:<46} {counted['cpu_seconds']:7.1f} s, prefill {counted['prefill_tokens']} tokens, decode "
            f"{counted['decode_forwards']} forwards of {counted['decode_rows']} rows"
        )
    return {"prompts": len(prompts), "max": MAX, "policies": policies, "work": work}


if __name__ == "__main__":
    main()
