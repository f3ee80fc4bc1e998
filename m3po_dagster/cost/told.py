"""An estimate for a person and for a script: figures of few digits, each assumption beside them."""

from m3po_dagster.cost.assumptions import Assumptions, Card, Range
from m3po_dagster.cost.estimate import Cost, Workload
from m3po_dagster.cost.model_facts import ModelFacts
from m3po_dagster.cost.plan import Plan
from m3po_dagster.settings import Settings

DIGITS = 3


def facts(cost: Cost) -> dict:
    """The estimate as JSON values; a range is [low, high], of three significant digits."""
    return {
        "answer tokens": rounded(cost.answer_tokens),
        "prompt tokens": rounded(cost.prompt_tokens),
        "candidates": ends(cost.candidates),
        "generated tokens": ends(cost.generated_tokens),
        "tokens read for sampling": ends(cost.read_tokens),
        "judges": [
            {
                "name": one.judge.name,
                "group size": one.judge.group_size,
                "requests": ends(one.requests),
                "prompt tokens": ends(one.prompt_tokens),
                "completion tokens": ends(one.completion_tokens),
                "cost": None if one.cost is None else ends(one.cost),
            }
            for one in cost.judges
        ],
        "scorers": [
            {
                "name": one.scorer.name,
                "kind": one.scorer.kind,
                "image views": ends(one.images),
                one.scorer.unit: ends(one.texts),
            }
            for one in cost.scorers
        ],
        "GPU-hours": {
            "sampling": ends(cost.sampling_hours),
            "scoring log-probs": ends(cost.scoring_hours),
            "training": {
                one.training.recipe: {
                    "a run": ends(one.hours_a_run),
                    "runs": one.training.runs,
                    "all": ends(one.hours),
                }
                for one in cost.trainings
            },
            "total": ends(cost.gpu_hours),
        },
        "disk in GB": {name: ends(size * 1e-9) for name, size in cost.disk.items()},
    }


def assumptions(
    plan: Plan,
    work: Workload,
    model: ModelFacts,
    card: Card,
    assumed: Assumptions,
    tokens_per_second: float | None,
) -> dict[str, str]:
    """What the estimate rests on, by name: only what has a part in this one."""
    text = f"{work.text_bytes / assumed.bytes_a_token:.3g} tokens of text ({assumed.bytes_a_token:g} bytes each)"
    if work.beside_text is None:
        beside = f"{assumed.image_tokens + assumed.template_tokens:g} of image and template as LLaVA-1.5 has them"
    else:
        beside = f"{work.beside_text:.4g} of image and template by the model's own processor"
    if work.answer_bytes is None:
        answer = f"{assumed.answer_share:g} of max_new_tokens ({plan.max_new_tokens}): the dataset has no answers"
    else:
        answer = f"the mean of the dataset's own answers, at most max_new_tokens ({plan.max_new_tokens})"
    said = {
        "prompts": f"{work.prompts:,}, {work.counted}",
        "parameters": f"{model.parameters:.3g}, from {model.parameters_from}",
        "prompt": f"{text} and {beside}",
        "answer": answer,
        "distinct_share": described(assumed, "distinct_share"),
    }
    said["judge image"] = (
        f"OpenAI's rule for high detail, over {len(work.sizes)} measured images"
        if work.sizes
        else f"OpenAI's rule for high detail at {assumed.judge_image[0]} x {assumed.judge_image[1]}: none was measured"
    )
    if not plan.judges:
        said["judge"] = f"the study has no served judge; one with groups of {assumed.judge_group} is assumed"
    elif any(judge.at_most for judge in plan.judges):
        said["judge"] = "a cascade leaves answers out, and a referee is asked about a part: this is the most"
    if any(scorer.unit == "sentences" for scorer in plan.scorers):
        said["tokens_a_sentence"] = described(assumed, "tokens_a_sentence")
    speed = f"{card.flops(model.bits) / 1e12:.3g} TFLOP/s in {model.bits} bits, {card.bandwidth / 1e12:.3g} TB/s"
    said["card"] = f"{card.name}: {speed}"
    if tokens_per_second is not None:
        said["sampling"] = f"your own rate, {tokens_per_second:g} generated tokens a second"
    else:
        rows = assumed.server_rows if plan.served else plan.in_flight * plan.samples.high
        said["sampling"] = f"{rows:g} sequences decoded at once; keys and values of a token: {model.kv_from}"
        names = ("read_utilisation", "decode_efficiency") if plan.served else (
            "read_utilisation", "decode_efficiency", "longest_answer",
        )  # fmt: skip
        said |= {name: described(assumed, name) for name in names}
    if plan.trainings:
        said |= {name: described(assumed, name) for name in ("lora_flops", "train_utilisation", "pair_share")}
        several = {one.recipe: one.pairs for one in plan.trainings if one.pairs.high > 1}
        if several:
            said["pairs of a prompt"] = "1, but " + ", ".join(
                f"{pairs.low:g} to {pairs.high:g} for {recipe}" for recipe, pairs in several.items()
            )
    said["compression"] = described(assumed, "compression")
    said["not counted"] = (
        "answering benchmarks, adapters on disk, repairs and retries of a judge, GPU time of the scorers"
    )
    return said


def ends(value: Range) -> list[float | int]:
    """Low and high end, rounded."""
    return [rounded(value.low), rounded(value.high)]


def rounded(value: float) -> float | int:
    """A number of three significant digits; a whole number where it is one."""
    short = float(f"{value:.{DIGITS - 1}e}")
    return int(short) if short.is_integer() else short


def described(assumed: Settings, name: str) -> str:
    """A figure that is assumed, and what it is."""
    value = getattr(assumed, name)
    shown = (
        f"{value.low:g} to {value.high:g}" if isinstance(value, Range) else "none" if value is None else f"{value:g}"
    )
    return f"{shown}: {type(assumed).model_fields[name].description}"
