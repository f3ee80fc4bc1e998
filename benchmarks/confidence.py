"""log P of 32 given answers to one prompt: a full forward an answer, against packed answers over one prefix.

    python benchmarks/confidence.py             # prints a table, writes benchmarks/confidence.json

The model is a LLaVA with random weights and 576 image tokens (float32). `full` gives each answer with its prompt to the
model by itself, as a training framework without a cache does; `batched` gives all answers with their prompts as one
batch. Both encode the image anew for every row. `packed` is the project's scorer for several group sizes. Time is CPU
seconds of this process, operations are counted by torch's own counter, differences are between sums in nats.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from generation import SHAPES
from llava_576 import IMAGE_TOKENS, prompts, save
from machine import machine

from m3po_dagster.method.confidence import score_continuations
from m3po_dagster.method.generation.model import LoadedModel, load_model
from m3po_dagster.method.generation.settings import ModelSettings
from m3po_dagster.method.prompt import Prompt

N, SHORTEST, LONGEST = 32, 8, 48
GROUPS = (1, 8, 32)
MIN_FLOPS_RATIO = 9.0
MAX_DIFFERENCE = 1e-3


def answers(loaded: LoadedModel) -> list[list[int]]:
    """N answers of random tokens, none suppressed, lengths between SHORTEST and LONGEST."""
    import numpy as np

    rng = np.random.default_rng(0)
    allowed = sorted(set(range(loaded.model.config.text_config.vocab_size)) - set(loaded.suppressed))
    return [rng.choice(allowed, rng.integers(SHORTEST, LONGEST + 1)).tolist() for _ in range(N)]


def full(plain, loaded: LoadedModel, prompt: Prompt, given: Sequence[Sequence[int]], rows: int) -> list[float]:
    """Sums of the answers' log-probs by forwards over whole sequences, `rows` of them at once."""
    import torch

    text = loaded.processor.apply_chat_template(prompt.chat(), tokenize=False, add_generation_prompt=True)
    inputs = loaded.processor(text=text, images=prompt.open_image(), return_tensors="pt", add_special_tokens=False)
    sums = []
    for first in range(0, len(given), rows):
        some = [torch.tensor(ids) for ids in given[first : first + rows]]
        padded = torch.nn.utils.rnn.pad_sequence(some, batch_first=True)
        kept = torch.nn.utils.rnn.pad_sequence([torch.ones_like(ids) for ids in some], batch_first=True)
        with torch.inference_mode():
            logits = plain(
                input_ids=torch.cat([inputs["input_ids"].expand(len(some), -1), padded], dim=1),
                attention_mask=torch.cat([inputs["attention_mask"].expand(len(some), -1), kept], dim=1),
                pixel_values=inputs["pixel_values"].expand(len(some), -1, -1, -1),
                use_cache=False,
                logits_to_keep=padded.shape[1] + 1,
            ).logits
        logps = logits[:, :-1].double().log_softmax(dim=-1).gather(2, padded[..., None])[..., 0]
        sums += (logps * kept).sum(dim=1).tolist()
    return sums


def ways(folder: Path) -> dict[str, Callable[[], list[float]]]:
    """Every way to get the sums, on the model in the folder."""
    loaded = load_model(ModelSettings(path=str(folder), device="cpu"))
    from transformers import AutoModelForImageTextToText

    plain = AutoModelForImageTextToText.from_pretrained(folder).eval()
    (prompt,) = prompts(folder, 1)
    given = answers(loaded)

    def packed(group: int) -> list[float]:
        return [one.sum_logp for one in score_continuations(loaded, prompt, given, group=group)]

    return {
        "full": lambda: full(plain, loaded, prompt, given, 1),
        "batched": lambda: full(plain, loaded, prompt, given, 8),
        **{f"packed by {group}": partial(packed, group) for group in GROUPS},
    }


def measured(run: Callable[[], list[float]], repeats: int) -> tuple[list[float], float, int]:
    """The sums, the CPU seconds of the best repeat, and the floating-point operations."""
    from torch.utils.flop_counter import FlopCounterMode

    sums, best = run(), float("inf")
    for _ in range(repeats):
        started = time.process_time()
        run()
        best = min(best, time.process_time() - started)
    with FlopCounterMode(display=False) as flops:
        run()
    return sums, best, flops.get_total_flops()


def main() -> None:
    """Measures every way in this process, prints the table and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    report = {"machine": machine(), "answers": N, "tokens": [SHORTEST, LONGEST], "shapes": {}}
    for shape in ("mha", "gqa"):
        with tempfile.TemporaryDirectory() as folder:
            save(Path(folder), SHAPES[shape])
            results = {name: measured(run, args.repeats) for name, run in ways(Path(folder)).items()}
        report["shapes"][shape] = {"sizes": asdict(SHAPES[shape]), "ways": summary(results)}
        show(shape, report["shapes"][shape]["ways"])
    args.out.write_text(json.dumps(report, indent=2) + "\n")


def summary(results: dict[str, tuple[list[float], float, int]]) -> dict[str, dict]:
    """Figures of each way, ratios against `full`."""
    reference, seconds, flops = results["full"]
    return {
        name: {
            "seconds": spent,
            "gflop": operations / 1e9,
            "seconds_ratio": seconds / spent,
            "gflop_ratio": flops / operations,
            "largest_difference": max(abs(ours - theirs) for ours, theirs in zip(sums, reference, strict=True)),
        }
        for name, (sums, spent, operations) in results.items()
    }


def show(shape: str, ways: dict[str, dict]) -> None:
    """The table, and whether the targets are met."""
    print(f"{shape}: {N} answers of {SHORTEST} to {LONGEST} tokens, {IMAGE_TOKENS} image tokens")
    print(f"{'':14}{'CPU s':>8}{'ratio':>7}{'GFLOP':>9}{'ratio':>7}{'nats':>10}")
    for name, found in ways.items():
        print(
            f"{name:14}{found['seconds']:8.3f}{found['seconds_ratio']:7.2f}{found['gflop']:9.1f}"
            f"{found['gflop_ratio']:7.2f}{found['largest_difference']:10.1e}"
        )
        if name.startswith("packed") and found["gflop_ratio"] < MIN_FLOPS_RATIO:
            print(f"  fewer operations saved than the target of {MIN_FLOPS_RATIO:g}")
        if found["largest_difference"] > MAX_DIFFERENCE:
            print(f"  further from full forwards than {MAX_DIFFERENCE:g}")


if __name__ == "__main__":
    main()
