"""A served judge: candidates/s, CPU a request, tokens; what listwise requests, the ledger and the cascade save.

    python benchmarks/judging.py                # prints tables, writes benchmarks/judging.json

A real HTTP judge on loopback, in a process of its own, answers after a fixed time by a list of grades. CPU is that of
the client process alone, all its threads. Speed is measured with images of 640 x 480 and answers of about 100 tokens,
tokens with as many such answers a prompt as the embedded study has distinct ones, and the cascade with that study's own
prompts, answers and log-probs: its scene judge gives the grades, its CLIP is the cheap scorer. Ledgers go to a
temporary folder; that of 600,000 replies takes about 2 GB there.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterable, Sequence
from itertools import chain, product
from pathlib import Path
from statistics import mean, median

import pyarrow as pa
from judging_answers import HEIGHT, WIDTH, World, any_grades, embedded, long_answers, photographs
from judging_ledger import last_turn, measured_apart, write_replies
from judging_server import MODEL, Served, served, write_grades
from machine import machine

from m3po_dagster.method.alignment.account import Account
from m3po_dagster.method.alignment.budget import BudgetSettings, LimitSettings, Purse
from m3po_dagster.method.alignment.cascade import AnswerFacts, CascadeSettings
from m3po_dagster.method.alignment.ledger import Ledger
from m3po_dagster.method.alignment.llm_judge import LlmJudge, LlmJudgeSettings
from m3po_dagster.method.alignment.scorer import Batch, Score
from m3po_dagster.method.alignment.turn import Turn
from m3po_dagster.method.prompt import Prompt
from m3po_dagster.method.selection import SelectionSettings, select_pairs
from m3po_dagster.study import JudgeSettings, Study, load_study
from m3po_dagster.world.write import DESCRIBE

STUDY = Path(__file__).parents[1] / "studies" / "easy_scenes.yaml"
N = 32
POINTWISE, LISTWISE = 1, 8
WAYS = {POINTWISE: "pointwise", LISTWISE: "listwise"}
PARALLEL = (8, 32)
SERVICE_MS = 50.0
SPEED_PROMPTS = 16
SCENE = (64, 64)
PAPER_PROMPTS = 150_000
LEDGER, BUDGET = "ledger", "ledger and budget"
AGAIN = {"the same again": "first", "the same for another study": "second"}
NO_LIMIT = BudgetSettings()
# Never reached: what is measured is the asking.
LIMITS = BudgetSettings(run=LimitSettings(requests=10**9), study=LimitSettings(requests=10**9))
WEIGHTS = ((0.3, 0.7), (0.5, 0.5), (0.7, 0.3))
STUDYS_OWN = CascadeSettings(alpha_max=0.5, confidence=("mean",))
CASCADES = {
    "listwise, the default promise": (LISTWISE, CascadeSettings()),
    "listwise, alpha to 0.5, mean": (LISTWISE, STUDYS_OWN),
    "groups and rounds of 4, the same": (4, STUDYS_OWN.model_copy(update={"round_size": 4})),
    "pointwise, the same, rounds of 1": (POINTWISE, STUDYS_OWN.model_copy(update={"round_size": 1})),
}


def judge(server: Served, group_size: int, parallel: int = 8) -> LlmJudge:
    """The judge as a study names it."""
    return LlmJudgeSettings(base_url=server.base_url, model=MODEL, group_size=group_size, max_parallel=parallel).build()


def account(folder: Path, budget: BudgetSettings = NO_LIMIT, study: str = "first") -> Account:
    """A ledger as a process that starts finds it, and who pays."""
    ledger = Ledger(folder)
    return Account(ledger, Purse(ledger, budget, study, "run"), study, "run")


def timed(one: LlmJudge, batch: Batch, server: Served) -> tuple[dict, list[list[Score]]]:
    """Figures of judging a batch, and its scores."""
    server.counts()
    cpu, wall = time.process_time(), time.monotonic()
    scores = one.score(batch)
    cpu, wall = time.process_time() - cpu, time.monotonic() - wall
    counts, candidates = server.counts(), sum(len(answers) for _, answers in batch)
    assert all(score.value is not None for some in scores for score in some)
    return {
        **counts,
        "candidates_a_second": candidates / wall,
        "cpu_ms_a_candidate": 1000 * cpu / candidates,
        "cpu_ms_a_request": 1000 * cpu / counts["requests"] if counts["requests"] else None,
    }, scores


def medians(repeats: Sequence[dict]) -> dict:
    """The median of each figure; what was counted is the same each time."""
    return {
        name: median(one[name] for one in repeats) if isinstance(value, float) else value
        for name, value in repeats[0].items()
    }


def speed(folder: Path, photos: Sequence[Prompt], repeats: int) -> tuple[dict, Turn]:
    """Pointwise and listwise, 8 and 32 at once, without and with a ledger, and what the ledger gives back; a reply.

    The order of the settings turns from repeat to repeat, so that what else the machine does meets all of them.
    """
    batch = long_answers(photos[:SPEED_PROMPTS], [N] * SPEED_PROMPTS)
    measured: dict[str, list[dict]] = {}
    with served(_grades(folder / "speed.json", batch), SERVICE_MS) as server:
        judge(server, LISTWISE).score(batch[:1])  # imports
        for repeat in range(repeats):
            of_all = [
                (f"{WAYS[size]}, {name}", one, size)
                for size in WAYS
                for name, one in {
                    **{f"{parallel} at once": judge(server, size, parallel) for parallel in PARALLEL},
                    LEDGER: judge(server, size).at(account(folder / f"{LEDGER} {size} {repeat}")),
                    BUDGET: judge(server, size).at(account(folder / f"{BUDGET} {size} {repeat}", LIMITS)),
                }.items()
            ]
            turn = repeat * len(of_all) // repeats
            scores = {POINTWISE: [], LISTWISE: []}
            for name, one, size in of_all[turn:] + of_all[:turn]:
                found, given = timed(one, batch, server)
                measured.setdefault(name, []).append(found)
                scores[size].append(given)
            for size, (name, study) in product(WAYS, AGAIN.items()):
                who = account(folder / f"{LEDGER} {size} {repeat}", study=study)
                found, given = timed(judge(server, size).at(who), batch, server)
                assert not found["requests"], "a reply in the ledger was asked for again"
                measured.setdefault(f"{WAYS[size]}, {name}", []).append(found)
                scores[size].append(given)
            assert all(given == some[0] for some in scores.values() for given in some), "scores differ"
    image_kb = mean(prompt.image_path.stat().st_size for prompt in photos) / 1e3
    facts = {"service_ms": SERVICE_MS, "image_kb": image_kb, "repeats": repeats}
    figures = {name: medians(some) for name, some in measured.items()}
    return {**facts, "figures": figures}, last_turn(folder / f"{LEDGER} {LISTWISE} 0")


def _grades(path: Path, *batches: Batch) -> Path:
    graded = [one for batch in batches for one in any_grades(batch)]
    return write_grades(path, graded, {one.image_sha256: (WIDTH, HEIGHT) for one in graded})


def tokens(folder: Path, photos: Sequence[Prompt], world: World) -> dict:
    """Tokens of judging long answers: all N samples, and as many a prompt as the embedded study has distinct ones."""
    counts = {
        "all samples": [N] * SPEED_PROMPTS,
        "distinct": [len(some) for some in world.candidates],
        "distinct descriptions": [len(some) for prompt, some in world.batch if prompt.question == DESCRIBE.text],
    }
    batches = {name: long_answers(photos[: len(some)], some) for name, some in counts.items()}
    found = {}
    with served(_grades(folder / "tokens.json", *batches.values()), 0.0) as server:
        for (name, batch), size in product(batches.items(), WAYS):
            asked = judge(server, size).estimate(batch).spend
            sent, _ = timed(judge(server, size), batch, server)
            # What arrives is what the estimate says before the first request.
            assert (asked.requests, asked.prompt_tokens) == (sent["requests"], sent["prompt_tokens"])
            found[f"{name}, {WAYS[size]}"] = {
                "prompts": len(batch),
                "answers_a_prompt": sent["answers"] / len(batch),
                "requests": sent["requests"],
                "prompt_tokens": sent["prompt_tokens"],
                "reply_tokens": sent["reply_tokens"],
                "tokens_a_request": sent["prompt_tokens"] / sent["requests"],
                "rubric_a_request": sent["rubric_tokens"] / sent["requests"],
                "prefix_a_request": sent["prefix_tokens"] / sent["requests"],
                "schema_a_request": sent["schema_tokens"] / sent["requests"],
                "repeated_share": sent["repeated_tokens"] / sent["prompt_tokens"],
                "paper_prompt_tokens": sent["prompt_tokens"] / len(batch) * PAPER_PROMPTS,
                "paper_reply_tokens": sent["reply_tokens"] / len(batch) * PAPER_PROMPTS,
            }
    return found


def cascade(folder: Path, study: Study, world: World) -> dict:
    """What the judge is asked with and without a cascade; the pairs of every promised recipe must be the same."""
    grades = write_grades(folder / "world.json", world.graded, {one.image_sha256: SCENE for one in world.graded})
    clip = next(one for one in study.judge.scorers if one.kind == "clip")
    rows = [
        [one.row(prompt.prompt_id, 0) for one in some]
        for prompt, some in zip(world.prompts, world.candidates, strict=True)
    ]
    facts = [AnswerFacts.of(some) for some in rows]
    with served(grades, 0.0) as server:

        def asked(size: int, weights: tuple[float, float], settings: CascadeSettings | None) -> tuple[dict, pa.Table]:
            one = judge(server, size).settings.model_copy(update={"weight": weights[1]})
            cheap = clip.model_copy(update={"weight": weights[0]})
            mas = JudgeSettings(scorers=(cheap, one), cascade=settings).build()
            server.counts()
            scores = mas.score(world.batch, facts=facts)
            return server.counts(), _table(chain.from_iterable(rows), scores)

        everything = {size: timed(judge(server, size), world.batch, server)[0] for size in WAYS}
        found = []
        for weights in WEIGHTS:
            _, by_all = asked(LISTWISE, weights, None)
            for name, (size, settings) in CASCADES.items():
                counts, table = asked(size, weights, settings)
                recipes = _promised(settings)
                for recipe in recipes:
                    assert select_pairs(table, recipe).pairs.equals(select_pairs(by_all, recipe).pairs), (name, recipe)
                counted = {key: counts[key] for key in ("answers", "requests", "prompt_tokens")}
                # What judging all takes the same way; smaller groups must beat the larger ones.
                whole = everything[POINTWISE if size == POINTWISE else LISTWISE]
                shares = {f"{key}_share": n / whole[key] for key, n in counted.items()}
                setting = {"clip_weight": weights[0], "judge_weight": weights[1], "cascade": name}
                found.append({**setting, **counted, **shares, "recipes_with_the_same_pairs": len(recipes)})
    all_of = {WAYS[size]: {key: one[key] for key in counted} for size, one in everything.items()}
    return {"prompts": len(world.prompts), "judging all": all_of, "cascades": found}


def _promised(settings: CascadeSettings) -> list[SelectionSettings]:
    """Recipes that a cascade promises the pairs of."""
    grid = product((0.0, 0.5, 1.0), (0.0, 0.1, 0.3), settings.confidence)
    recipes = [
        SelectionSettings(rule="m3p", alpha=share * settings.alpha_max, delta=delta, confidence=scale)
        for share, delta, scale in grid
    ]
    return [*recipes, SelectionSettings(rule="best_only")]


def _table(rows: Iterable[dict], scores: Sequence[dict]) -> pa.Table:
    names = ("prompt_id", "candidate_id", "k", "text", "finish_reason", "sum_logp", "n_tokens")
    return pa.Table.from_pylist(
        [{name: row[name] for name in names} | {"mas": score["mas"]} for row, score in zip(rows, scores, strict=True)]
    )


def show(report: dict) -> None:
    """The tables a person reads."""
    part = report["speed"]
    print(json.dumps(report["machine"]))
    print(f"\nreplies after {part['service_ms']:g} ms, images of {part['image_kb']:.0f} kB")
    print(f"{'':<42}{'requests':>9}{'cand./s':>10}{'CPU ms a candidate':>20}{'a request':>11}")
    for name, one in part["figures"].items():
        a_request = "" if one["cpu_ms_a_request"] is None else f"{one['cpu_ms_a_request']:.2f}"
        print(
            f"{name:<42}{one['requests']:>9,}{one['candidates_a_second']:>10,.0f}{one['cpu_ms_a_candidate']:>20.3f}"
            f"{a_request:>11}"
        )
    print(f"\n{'prompt tokens':<34}{'answers':>8}{'a request':>10}{'prefix':>8}{'repeated':>9}{'150K prompts':>14}")
    for name, one in report["tokens"].items():
        print(
            f"{name:<34}{one['answers_a_prompt']:>8.1f}{one['tokens_a_request']:>10,.0f}{one['prefix_a_request']:>8,.0f}"
            f"{one['repeated_share']:>9.1%}{one['paper_prompt_tokens'] / 1e9:>12.2f} G"
        )
    part = report["ledger"]
    print(
        f"\na ledger of {part['replies']:,} replies, {part['file_mb']:,.0f} MB: read in {part['cpu_s']:.1f} s CPU, "
        f"{part['memory_mb']:.0f} MB; then a look {part['known_key_us']:.0f} us for a known key, "
        f"{part['unknown_key_us']:.0f} us for another, {part['add_us']:.0f} us to add"
    )
    part = report["cascade"]
    print(f"\n{part['prompts']} prompts; judging all: {json.dumps(part['judging all'])}")
    print(f"{'clip/judge, cascade':<44}{'judged':>8}{'':>8}{'requests':>9}{'':>8}{'tokens':>8}")
    for one in part["cascades"]:
        print(
            f"{one['clip_weight']:g}/{one['judge_weight']:g} {one['cascade']:<36}{one['answers']:>8,}"
            f"{one['answers_share']:>8.1%}{one['requests']:>9,}{one['requests_share']:>8.1%}"
            f"{one['prompt_tokens_share']:>8.1%}"
        )


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=480, help="usable prompts of the world")
    parser.add_argument("--replies", type=int, default=600_000, help="of the large ledger")
    parser.add_argument("--repeats", type=int, default=5, help="of each measure of speed")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    study = load_study(STUDY)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photos = photographs(folder / "photographs", options.prompts)
        figures, reply = speed(folder, photos, options.repeats)
        write_replies(folder / "large", reply, options.replies)
        ledger = measured_apart(folder / "large", reply)
        world = embedded(study, folder / "world", options.prompts)
        report = {
            "machine": machine(),
            "speed": figures,
            "tokens": tokens(folder, photos, world),
            "ledger": ledger,
            "cascade": cascade(folder, study, world),
        }
    show(report)
    options.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
