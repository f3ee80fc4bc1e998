"""What to do when a step runs out of memory: the settings that make it take less, named for the step at hand."""

from m3po_dagster.graph import STAGES

_NO_MEMORY_TEXTS = ("out of memory", "can't allocate memory", "cannot allocate memory", "cublas_status_alloc_failed")
_MODEL = "model.dtype and model.quantization make the model itself smaller"
_TABLES = "more shards (dataset.shards) make each one's tables smaller"
_LESS = {
    "filtered_instructions": (_TABLES,),
    "candidates": ("a lower generation.prompts_per_batch or generation.max_new_tokens", _MODEL, _TABLES),
    "mas_table": ("a smaller or quantised model of judge.scorers, or one that is served", _TABLES),
    "logprob_table": ("confidence.source: recorded needs no pass of its own", _MODEL, _TABLES),
    "preference_pairs": (_TABLES,),
    "selection_sweep": (_TABLES,),
    "lora_adapter": (
        "trainer.per_device_batch_size: 1 divides a step into passes with the same result",
        "training.gradient_checkpointing of the recipe",
        _MODEL,
    ),
    "benchmark_scores": ("a lower answers.questions_per_batch", _MODEL),
}


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory could not be had, on a GPU or here; torch need not be imported for it."""
    if isinstance(error, MemoryError):
        return True
    # torch.OutOfMemoryError is a RuntimeError, as is what its CPU allocator raises, in words of its own; what a
    # training process of several died of comes as a ValueError with its words.
    said = str(error).lower()
    return isinstance(error, RuntimeError | ValueError) and any(text in said for text in _NO_MEMORY_TEXTS)


def what_to_do(asset: str, error: BaseException) -> str:
    """A sentence for whoever ran `asset` into the limit: what was asked for, and which settings ask for less."""
    said = str(error).strip().splitlines()
    where = "the GPU's memory" if said and "cuda" in said[0].lower() else "memory"
    less = [*_LESS.get(asset, ())]
    if STAGES[asset].loads_model:
        less.append("another process on the same device, or a run beside this one, may hold what is missing")
    advice = "; ".join(less) or "close what else uses it, or take a machine with more"
    return (
        f"{where} did not suffice ({said[0] if said else type(error).__name__}). Finished parts are kept; "
        f"run it again with less to hold at once: {advice}."
    )
