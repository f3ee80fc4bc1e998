"""32 candidates a prompt: transformers' own way, an expanded cache, and the project's engine, side by side in one run.

    python benchmarks/generation.py             # prints a table, writes benchmarks/generation.json
    python benchmarks/generation.py --shape 7b --dtype bfloat16 --device cuda   # LLaVA-1.5-7B's shape, on a GPU

The model is a LLaVA with random weights and 576 image tokens. All three draw from the same seed and must give the same
tokens (float32); the recorded log-probs are compared with the logits that `generate` returns. Times are CPU seconds of
the process (seconds of the device on a GPU) for the same prompts, after one that warms up; the floating-point
operations of one prompt are counted by torch's own counter. Peak memory is that of a process of its own a variant.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from llava_576 import IMAGE_TOKENS, Shape, prompts, save
from machine import machine

from m3po_dagster.method.generation.samples import prompt_seed
from m3po_dagster.method.generation.settings import ModelSettings, SamplingSettings
from m3po_dagster.method.prompt import Prompt

CLIP_L = (1024, 4096, 24, 16)
SHAPES = {
    shape.name: shape
    for shape in (
        Shape("mha", hidden=512, intermediate=1376, layers=8, heads=8, key_value_heads=8, vocabulary=4096),
        Shape("gqa", hidden=512, intermediate=1376, layers=8, heads=8, key_value_heads=2, vocabulary=4096),
        Shape(
            "7b",
            hidden=4096,
            intermediate=11008,
            layers=32,
            heads=32,
            key_value_heads=32,
            vocabulary=32064,
            vision=CLIP_L,
        ),
    )
}
VARIANTS = {
    "generate": "generate(num_return_sequences=N), one prompt after the other",
    "expanded": "one prefill, its cache repeated N times, generate from there",
    "engine": "the project's engine, one prompt at a time",
    "engine_in_flight": "the project's engine, 4 prompts in flight",
}
IN_FLIGHT = 4
MIN_RATIO = {"expanded": 1.8, "engine": 5.0, "engine_in_flight": 5.0}

Answers = list[tuple[list[int], float | None]]
"""Token ids of each of the N answers up to the end of sequence, and their log-prob where it was recorded."""


class Generate:
    """transformers' own way on the model as transformers loads it; with `expand`, over one prefill's repeated cache."""

    def __init__(self, model: ModelSettings, settings: SamplingSettings, expand: bool = False):
        import torch

        from m3po_dagster.method.generation.placement import device_of
        from m3po_dagster.method.generation.vocabulary import load_vocabulary

        self.settings, self.expand = settings, expand
        # For the ids that the engine suppresses, so that both draw from the same tokens.
        vocabulary = load_vocabulary(model)
        self.suppressed, self.eos, self.device = vocabulary.suppressed, vocabulary.eos, torch.device(device_of(model))
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self.model = AutoModelForImageTextToText.from_pretrained(model.path, dtype=getattr(torch, model.dtype))
        self.model = self.model.to(self.device).eval()
        self.processor = AutoProcessor.from_pretrained(model.path)

    def __call__(self, asked: Sequence[Prompt], seeds: Sequence[int], logps: bool = False) -> list[Answers]:
        """The answers of each prompt; `logps` keeps all raw logits, which a pipeline that must not run out does not."""
        return [self._one(prompt, seed, logps) for prompt, seed in zip(asked, seeds, strict=True)]

    def _one(self, prompt: Prompt, seed: int, logps: bool) -> Answers:
        import torch

        text = self.processor.apply_chat_template(prompt.chat(), tokenize=False, add_generation_prompt=True)
        inputs = self.processor(text=text, images=prompt.open_image(), return_tensors="pt", add_special_tokens=False)
        inputs = inputs.to(self.device, dtype=self.model.dtype)
        length, given = inputs["input_ids"].shape[1], {**inputs, "num_return_sequences": self.settings.n}
        with torch.inference_mode():
            if self.expand:
                cache = self.model(**inputs, use_cache=True, logits_to_keep=1).past_key_values
                # generate reads the prompt's last token itself.
                cache.crop(-1)
                cache.batch_repeat_interleave(self.settings.n)
                rows = {name: inputs[name].repeat(self.settings.n, 1) for name in ("input_ids", "attention_mask")}
                given = {**rows, "past_key_values": cache}
            torch.manual_seed(seed)
            result = self.model.generate(
                **given,
                do_sample=True,
                temperature=self.settings.temperature,
                top_p=self.settings.top_p,
                top_k=0,
                max_new_tokens=self.settings.max_new_tokens,
                suppress_tokens=list(self.suppressed),
                output_logits=logps,
                return_dict_in_generate=True,
            )
        tokens, scores = result.sequences[:, length:], None
        if logps:
            raw = torch.stack(result.logits, dim=1).float().log_softmax(dim=-1)
            scores = raw.gather(2, tokens[..., None])[..., 0].tolist()
        answers = []
        for i, row in enumerate(tokens.tolist()):
            stop = next((j + 1 for j, token in enumerate(row) if token in self.eos), len(row))
            answers.append((row[:stop], None if scores is None else sum(scores[i][:stop])))
        return answers


class Engine:
    """The project's engine, `at_once` prompts in flight; log-probs are recorded in any case."""

    def __init__(self, model: ModelSettings, settings: SamplingSettings, at_once: int):
        from m3po_dagster.method.generation.model import load_model
        from m3po_dagster.method.generation.sampler import TransformersEngine

        self.settings = settings.model_copy(update={"prompts_per_batch": at_once})
        self.engine = TransformersEngine(load_model(model))
        self.model, self.device = self.engine.loaded.model, self.engine.loaded.device

    def __call__(self, asked: Sequence[Prompt], seeds: Sequence[int], logps: bool = True) -> list[Answers]:
        """The answers of each prompt."""
        found = dict(self.engine.sample(asked, self.settings, seeds))
        return [[(list(one.token_ids), one.sum_logp) for one in found[i]] for i in range(len(asked))]


def runner(variant: str, model: ModelSettings, settings: SamplingSettings):
    """What makes the answers of a variant."""
    if variant in ("generate", "expanded"):
        return Generate(model, settings, expand=variant == "expanded")
    return Engine(model, settings, at_once=IN_FLIGHT if variant == "engine_in_flight" else 1)


@contextmanager
def watched(model) -> Iterator[dict[str, int]]:
    """Counts what reaches the model's parts: images, forwards of the language model, tokens read before the first."""
    counts = {"images": 0, "language_model_forwards": 0, "prefill_tokens": 0, "decode_rows": 0}

    def vision(module, args, kwargs):
        counts["images"] += len(args[0] if args else kwargs["pixel_values"])

    def language(module, args, kwargs):
        rows, length = kwargs["inputs_embeds"].shape[:2]
        counts["language_model_forwards"] += 1
        counts["prefill_tokens" if length > 1 else "decode_rows"] += rows * length

    hooks = [
        model.model.vision_tower.register_forward_pre_hook(vision, with_kwargs=True),
        model.model.language_model.register_forward_pre_hook(language, with_kwargs=True),
    ]
    yield counts
    for hook in hooks:
        hook.remove()


def seconds(device) -> float:
    """CPU seconds of this process; on a GPU seconds after all its work is done."""
    if device.type == "cpu":
        return time.process_time()
    import torch

    torch.cuda.synchronize(device)
    return time.perf_counter()


def limits(device, dtype) -> dict[str, float]:
    """What the machine does at best in this run: GFLOP/s of a large matrix product, GB/s of a large copy."""
    import torch

    side, copied = (2048, 2**28) if device.type == "cpu" else (8192, 2**32)
    one = torch.randn(side, side, device=device, dtype=dtype)
    data = torch.empty(copied, device=device, dtype=torch.uint8)
    best = {"gflop_per_second": 0.0, "gb_per_second": 0.0}
    for _ in range(3):
        started = seconds(device)
        one @ one
        best["gflop_per_second"] = max(best["gflop_per_second"], 2 * side**3 / (seconds(device) - started) / 1e9)
        started = seconds(device)
        data.clone()
        best["gb_per_second"] = max(best["gb_per_second"], 2 * copied / (seconds(device) - started) / 1e9)
    return best


def measure(args: argparse.Namespace) -> dict:
    """One variant in this process: time, counts, operations, peak memory and the answers themselves."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    model = ModelSettings(path=args.folder, dtype=args.dtype, device=args.device)
    settings = SamplingSettings(n=args.n, max_new_tokens=args.tokens)
    asked = prompts(Path(args.folder), args.prompts)
    seeds = [prompt_seed(0, prompt.prompt_id, args.n) for prompt in asked]
    run = runner(args.variant, model, settings)
    run(asked[:1], seeds[:1])
    on_gpu = run.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    best = None
    for _ in range(args.repeats):
        started = seconds(run.device)
        with watched(run.model) as counts:
            run(asked, seeds)
        spent = seconds(run.device) - started
        best = spent if best is None else min(best, spent)
    # Before all raw logits are kept for the comparison.
    peak = torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    with FlopCounterMode(display=False) as flops:
        run(asked[:IN_FLIGHT], seeds[:IN_FLIGHT])
    answers = run(asked, seeds, logps=True)
    sampled = sum(len(tokens) for given in answers for tokens, _ in given)
    gflop = flops.get_total_flops() / min(IN_FLIGHT, len(asked)) / 1e9
    # A forward of the language model reads its weights at least once.
    weights = sum(weight.numel() * weight.element_size() for weight in run.model.model.language_model.parameters())
    gigabytes = weights * counts["language_model_forwards"] / 1e9
    at_best = limits(run.device, run.model.dtype)
    return {
        "seconds_a_prompt": best / len(asked),
        "tokens_per_second": sampled / best,
        "gflop_a_prompt": gflop,
        "share_of_arithmetic_limit": gflop * len(asked) / best / at_best["gflop_per_second"],
        "share_of_bandwidth_limit_for_weights": gigabytes / best / at_best["gb_per_second"],
        "machine_at_best": at_best,
        "peak_memory_mb": peak / 1e6,
        **{f"{name}_a_prompt": number / len(asked) for name, number in counts.items()},
        "answers": answers,
    }


def compare(results: dict[str, dict]) -> None:
    """Puts beside each variant how its answers differ from those of `generate`; drops the answers."""
    reference = results["generate"]["answers"]
    for found in results.values():
        pairs = [
            pair
            for ours, theirs in zip(found["answers"], reference, strict=True)
            for pair in zip(ours, theirs, strict=True)
        ]
        same = [(ours, theirs) for ours, theirs in pairs if ours[0] == theirs[0]]
        found["same_answers"] = len(same) / len(pairs)
        found["largest_logp_difference"] = max((abs(ours[1] - theirs[1]) for ours, theirs in same), default=None)
    for found in results.values():
        del found["answers"]


def main() -> None:
    """Measures every variant in a process of its own and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=[*SHAPES, "all"], default="all", help="language model; all: mha and gqa")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--n", type=int, default=32, help="candidates a prompt")
    parser.add_argument("--tokens", type=int, default=48, help="most tokens an answer")
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.variant:
        print(json.dumps(measure(args)))
        return
    report = {"machine": machine(), "settings": {name: getattr(args, name) for name in PRINTED}, "shapes": {}}
    for shape in ("mha", "gqa") if args.shape == "all" else (args.shape,):
        results = {}
        with tempfile.TemporaryDirectory() as folder:
            save(Path(folder), SHAPES[shape], args.dtype)
            passed = [f"--{name}={getattr(args, name)}" for name in PRINTED]
            for variant in VARIANTS:
                command = [sys.executable, __file__, *passed, f"--variant={variant}", f"--folder={folder}"]
                results[variant] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        compare(results)
        report["shapes"][shape] = {"sizes": asdict(SHAPES[shape]), "variants": results}
        show(shape, results)
    args.out.write_text(json.dumps(report, indent=2) + "\n")


PRINTED = ("dtype", "device", "n", "tokens", "prompts", "repeats")


def show(shape: str, results: dict[str, dict]) -> None:
    """The table, and whether the targets are met."""
    first = results["generate"]
    print(f"{shape}: {IMAGE_TOKENS} image tokens, ratios against generate")
    print(f"{'':18}{'s/prompt':>9}{'ratio':>7}{'GFLOP':>8}{'ratio':>7}{'prefill':>9}{'images':>7}{'MB':>7}{'same':>7}")
    for name, found in results.items():
        ratio = first["seconds_a_prompt"] / found["seconds_a_prompt"]
        operations = first["gflop_a_prompt"] / found["gflop_a_prompt"]
        print(
            f"{name:18}{found['seconds_a_prompt']:9.3f}{ratio:7.2f}{found['gflop_a_prompt']:8.1f}{operations:7.2f}"
            f"{found['prefill_tokens_a_prompt']:9.0f}{found['images_a_prompt']:7.1f}{found['peak_memory_mb']:7.0f}"
            f"{found['same_answers']:7.1%}"
        )
        if ratio < MIN_RATIO.get(name, 0):
            print(f"  below the target of {MIN_RATIO[name]:g}")


if __name__ == "__main__":
    main()
