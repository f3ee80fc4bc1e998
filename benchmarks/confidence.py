"""log P of 32 given answers to one prompt: a full forward an answer, against packed answers over one prefix.

    python benchmarks/confidence.py             # prints a table, writes benchmarks/confidence.json

The model is a LLaVA with random weights and 576 image tokens (float32). `full` gives each answer with its prompt to the
model by itself, as a training framework without a cache does; `batched` gives all answers with their prompts as one
batch. Both encode the image anew for every row. `packed` is the project's scorer for several group sizes. Time is CPU
seconds of a process of its own a way, operations are counted by torch's own counter, tokens are those that reach the
language model, differences are between sums in nats.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from generation import SHAPES, watched
from llava_576 import IMAGE_TOKENS, prompts, save
from machine import machine

from m3po_dagster.method.confidence import score_continuations
from m3po_dagster.method.generation.model import LoadedModel, load_model
from m3po_dagster.method.generation.settings import ModelSettings
from m3po_dagster.method.prompt import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel

N, SHORTEST, LONGEST = 32, 8, 48
WAYS = ("full", "batched", "packed by 1", "packed by 8", "packed by 32")
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


def way(name: str, folder: Path) -> "tuple[PreTrainedModel, Callable[[], list[float]]]":
    """The model in the folder as a way uses it, and what gives the sums."""
    loaded = load_model(ModelSettings(path=str(folder), device="cpu"))
    (prompt,) = prompts(folder, 1)
    given = answers(loaded)
    if name.startswith("packed"):
        group = int(name.split()[-1])
        return loaded.model, lambda: [one.sum_logp for one in score_continuations(loaded, prompt, given, group=group)]
    # As transformers loads it, its attention not exchanged.
    loaded.model.set_attn_implementation("sdpa")
    return loaded.model, lambda: full(loaded.model, loaded, prompt, given, 1 if name == "full" else 8)


def measure(name: str, folder: Path, repeats: int) -> dict:
    """One way in this process: sums, CPU seconds of the best repeat, counts, operations, peak memory."""
    from torch.utils.flop_counter import FlopCounterMode

    model, run = way(name, folder)
    sums, best = run(), float("inf")
    for _ in range(repeats):
        started = time.process_time()
        with watched(model) as counts:
            run()
        best = min(best, time.process_time() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    with FlopCounterMode(display=False) as flops:
        run()
    tokens = counts.pop("prefill_tokens") + counts.pop("decode_rows")
    operations = flops.get_total_flops() / 1e9
    return {
        "sums": sums,
        "seconds": best,
        "gflop": operations,
        "peak_memory_mb": peak / 1e6,
        **counts,
        "language_model_tokens": tokens,
    }


def main() -> None:
    """Measures every way in a process of its own, prints the table and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        print(json.dumps(measure(args.way, args.folder, args.repeats)))
        return
    report = {"machine": machine(), "answers": N, "tokens": [SHORTEST, LONGEST], "shapes": {}}
    for shape in ("mha", "gqa"):
        results = {}
        with tempfile.TemporaryDirectory() as folder:
            save(Path(folder), SHAPES[shape])
            for name in WAYS:
                command = [sys.executable, __file__, f"--repeats={args.repeats}", f"--way={name}", f"--folder={folder}"]
                results[name] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        compare(results)
        report["shapes"][shape] = {"sizes": asdict(SHAPES[shape]), "ways": results}
        show(shape, results)
    args.out.write_text(json.dumps(report, indent=2) + "\n")


def compare(results: dict[str, dict]) -> None:
    """Puts ratios and differences against `full` beside each way; drops the sums."""
    first = results["full"]
    for found in results.values():
        found["seconds_ratio"] = first["seconds"] / found["seconds"]
        found["gflop_ratio"] = first["gflop"] / found["gflop"]
        pairs = zip(found["sums"], first["sums"], strict=True)
        found["largest_difference"] = max(abs(ours - theirs) for ours, theirs in pairs)
    for found in results.values():
        del found["sums"]


def show(shape: str, ways: dict[str, dict]) -> None:
    """The table, and whether the targets are met."""
    print(f"{shape}: {N} answers of {SHORTEST} to {LONGEST} tokens, {IMAGE_TOKENS} image tokens")
    print(f"{'':14}{'CPU s':>8}{'ratio':>7}{'GFLOP':>9}{'ratio':>7}{'forwards':>10}{'tokens':>8}{'MB':>6}{'nats':>10}")
    for name, found in ways.items():
        print(
            f"{name:14}{found['seconds']:8.3f}{found['seconds_ratio']:7.2f}{found['gflop']:9.1f}"
            f"{found['gflop_ratio']:7.2f}{found['language_model_forwards']:10d}{found['language_model_tokens']:8d}"
            f"{found['peak_memory_mb']:6.0f}{found['largest_difference']:10.1e}"
        )
        if name.startswith("packed") and found["gflop_ratio"] < MIN_FLOPS_RATIO:
            print(f"  fewer operations saved than the target of {MIN_FLOPS_RATIO:g}")
        if found["largest_difference"] > MAX_DIFFERENCE:
            print(f"  further from full forwards than {MAX_DIFFERENCE:g}")


if __name__ == "__main__":
    main()
