"""The tables of the graph: one schema each, every column described, checked before anything is written."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import pyarrow as pa

TOKEN_LOGPS = pa.list_(pa.float32())
MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("text", pa.string())]))


def column(name: str, kind: pa.DataType, description: str, nullable: bool = False) -> pa.Field:
    """A field whose description travels inside the Parquet file."""
    return pa.field(name, kind, nullable=nullable, metadata={"description": description})


@dataclass(frozen=True)
class TableSchema:
    """A table's name, its columns, and the columns that identify a row.

    One that does not count is a record of how a result came to be: nothing is made from it, so it is no part of the
    result's data version.
    """

    name: str
    key: tuple[str, ...]
    schema: pa.Schema
    counts: bool = True

    def describe(self) -> dict[str, str]:
        """Column name -> description."""
        return {field.name: field.metadata[b"description"].decode() for field in self.schema}


SOURCE_SHARDS = TableSchema(
    "source_dataset",
    ("shard",),
    pa.schema(
        [
            column("shard", pa.string(), "the shard; its records are the file records/<shard>.parquet"),
            column("records", pa.int64(), "its records; all records of an image are in one shard"),
            column("refused", pa.int64(), "records that are not of their source's format"),
            column("text_only", pa.int64(), "records without an image"),
            column("image_problems", pa.int64(), "records whose image is missing or no good"),
            column("images", pa.int64(), "distinct images that can be used"),
        ]
    ),
)

BENCHMARK_IMAGES = TableSchema(
    "benchmark_images",
    ("benchmark", "image_uri"),
    pa.schema(
        [
            column("benchmark", pa.string(), "the benchmark"),
            column("image_uri", pa.string(), "image path relative to the benchmark's image root"),
            column("image_sha256", pa.string(), "hash of the image file's bytes"),
            column("phash", pa.uint64(), "perceptual hash; null when the image can't be decoded", nullable=True),
        ]
    ),
)

FILTERED_INSTRUCTIONS = TableSchema(
    "filtered_instructions",
    ("prompt_id",),
    pa.schema(
        [
            column("prompt_id", pa.string(), "hash of the image's bytes and the conversation"),
            column(
                "image_name",
                pa.string(),
                "what the record calls its image: a path, a URL, a name in its file",
                nullable=True,
            ),
            column("image_uri", pa.string(), "image path relative to its source's image folders"),
            column("image_sha256", pa.string(), "hash of the image file's bytes"),
            column("width", pa.int32(), "upright width in pixels"),
            column("height", pa.int32(), "upright height in pixels"),
            column("messages", MESSAGES, "the conversation up to the user turn to answer, without the image token"),
            column("reference", pa.string(), "the dataset's own answer", nullable=True),
            column("source", pa.string(), "name of the source in the study"),
            column("source_id", pa.string(), "id of the record in its source"),
            column("turn", pa.int32(), "which of the record's questions is asked, from 0"),
        ]
    ),
)

DROPPED = TableSchema(
    "dropped",
    ("item_id",),
    pa.schema(
        [
            column("item_id", pa.string(), "what was dropped: a record's or a prompt's id"),
            column("reason", pa.string(), "why"),
            column("detail", pa.string(), "file, field or value that led to it", nullable=True),
        ]
    ),
    # It holds positions in the dataset's files, which one more record in front moves.
    counts=False,
)

CANDIDATES = TableSchema(
    "candidates",
    ("candidate_id",),
    pa.schema(
        [
            column("candidate_id", pa.string(), "prompt_id, a colon and k"),
            column("prompt_id", pa.string(), "the prompt it answers"),
            column("k", pa.int32(), "index among the N samples; of equal texts the first is kept"),
            column("text", pa.string(), "the answer"),
            column("token_ids", pa.list_(pa.int32()), "the sampled token ids, end of sequence included when emitted"),
            column("n_tokens", pa.int32(), "number of sampled tokens, end of sequence included"),
            column("finish_reason", pa.string(), "stop, or length when it was cut at max_new_tokens"),
            column("multiplicity", pa.int32(), "how many of the N samples have this text after normalisation"),
            column("seed", pa.int64(), "seed of the prompt's sampling"),
            column("token_logps", TOKEN_LOGPS, "log-prob of each of token_ids at temperature 1 in nats", nullable=True),
            column("sum_logp", pa.float64(), "sum of the tokens' log-probs at temperature 1 in nats", nullable=True),
            column("eos_logp", pa.float64(), "the share of the end-of-sequence token in sum_logp", nullable=True),
        ]
    ),
)

LOGPROBS = TableSchema(
    "logprob_table",
    ("candidate_id",),
    pa.schema(
        [
            column("candidate_id", pa.string(), "the candidate"),
            column("prompt_id", pa.string(), "the prompt it answers"),
            column("sum_logp", pa.float64(), "log P(R | I, Q) under the base model in nats (section 3.4)"),
            column("eos_logp", pa.float64(), "the share of the end-of-sequence token; null when cut", nullable=True),
            column("token_logps", TOKEN_LOGPS, "log-prob of each token of the sum, in nats", nullable=True),
            column("n_tokens", pa.int32(), "number of tokens in the sum"),
            column("numerics", pa.string(), "engine and dtype the log-probs come from"),
        ]
    ),
)

PAIRS = TableSchema(
    "preference_pairs",
    ("pair_id",),
    pa.schema(
        [
            column("pair_id", pa.string(), "hash of chosen_id and rejected_id"),
            column("prompt_id", pa.string(), "the prompt"),
            column("chosen_id", pa.string(), "candidate R_w"),
            column("rejected_id", pa.string(), "candidate R_l; null for rules that train on R_w alone", nullable=True),
            column(
                "chosen_mas",
                pa.float64(),
                "MAS(R_w), or what selection.score and score_noise put in its place; null where a rule ranks by "
                "another score alone",
                nullable=True,
            ),
            column("m3p_score", pa.float64(), "S(R_l), equation 2", nullable=True),
            column(
                "mas_gap",
                pa.float64(),
                "MAS(R_w) - MAS(R_l), or the same difference of what stands for MAS in chosen_mas",
                nullable=True,
            ),
            column(
                "logp_gap",
                pa.float64(),
                "confidence of R_w minus confidence of R_l, in the recipe's scale",
                nullable=True,
            ),
            column("ref_chosen_logp", pa.float64(), "sum of R_w's log-probs under the base model"),
            column("ref_rejected_logp", pa.float64(), "sum of R_l's log-probs under the base model", nullable=True),
        ]
    ),
)

ADAPTERS = TableSchema(
    "lora_adapter",
    ("adapter_id",),
    pa.schema(
        [
            column("adapter_id", pa.string(), "fingerprint of the trained adapter; base for no adapter"),
            column("seed", pa.int64(), "training seed"),
            column(
                "fingerprint", pa.string(), "where the store keeps its files; null for the base model", nullable=True
            ),
            column("data_version", pa.string(), "hash of the adapter's weights; base for no adapter"),
        ]
    ),
)

ANSWERS = TableSchema(
    "benchmark_answers",
    ("seed", "benchmark", "question_id"),
    pa.schema(
        [
            column("seed", pa.int64(), "training seed of the adapter that answered; 0 for the base model"),
            column("benchmark", pa.string(), "the benchmark"),
            column("question_id", pa.string(), "the question's id inside the benchmark"),
            column("image_uri", pa.string(), "image path relative to the benchmark's image root"),
            column("question", pa.string(), "the question as asked"),
            column("expected", pa.string(), "the benchmark's label, as its file gives it", nullable=True),
            column("answer", pa.string(), "the model's answer, greedy"),
            column("n_tokens", pa.int32(), "tokens of the answer, end of sequence included"),
        ]
    ),
)

_JUDGEMENT = [
    column("question_id", pa.string(), "the question whose answer is judged"),
    column("component", pa.string(), "what is judged of the answer"),
    column("score", pa.float64(), "the judge's score; null when there is none", nullable=True),
    column("weight", pa.float64(), "weight of the component"),
    column("status", pa.string(), "scored, or why it is not"),
    column("words", pa.string(), "what the judge said"),
]

BENCHMARK_JUDGEMENTS = TableSchema("benchmark_judgements", ("question_id", "component"), pa.schema(_JUDGEMENT))

JUDGEMENTS_OF_RECIPE = TableSchema(
    "judgements",
    ("seed", "benchmark", "question_id", "component"),
    pa.schema(
        [
            column("seed", pa.int64(), "training seed of the adapter that answered; 0 for the base model"),
            column("benchmark", pa.string(), "the benchmark"),
            *_JUDGEMENT,
        ]
    ),
)

SCORES = TableSchema(
    "benchmark_scores",
    ("recipe", "seed", "benchmark", "rule", "metric"),
    pa.schema(
        [
            column("recipe", pa.string(), "the recipe"),
            column("seed", pa.int64(), "training seed"),
            column("benchmark", pa.string(), "the benchmark"),
            column("rule", pa.string(), "whose reading of the answers: official, or that of another public tool"),
            column("metric", pa.string(), "the metric"),
            column("value", pa.float64(), "its value; shares in per cent"),
            column("n", pa.int64(), "number of questions or answers it is computed from"),
            column("ci_low", pa.float64(), "lower end of the 95 % bootstrap interval over images", nullable=True),
            column("ci_high", pa.float64(), "upper end of the 95 % bootstrap interval over images", nullable=True),
        ]
    ),
)


def mas_schema(
    scorers: Iterable[str], sub_scores: Iterable[str], meanings: Mapping[str, str] | None = None
) -> TableSchema:
    """The MAS table of a judge: fixed columns, one column a scorer (calibrated, in [0, 1]), then its sub-scores.

    `meanings` says what a sub-score holds, where that is known.
    """
    known = meanings or {}
    fixed = [
        column("candidate_id", pa.string(), "the candidate"),
        column("prompt_id", pa.string(), "the prompt it answers"),
        column(
            "mas", pa.float64(), "Multimodal Alignment Score in [0, 1] (section 3.3); null when unscored", nullable=True
        ),
        column("status", pa.string(), "scored, or why it is not"),
        column("words", pa.string(), "what the judge says for its scores; null when it says nothing", nullable=True),
    ]
    scorer_columns = [
        column(name, pa.float64(), f"scorer {name}, calibrated to [0, 1]", nullable=True) for name in scorers
    ]
    sub_columns = [
        column(name, pa.float64(), known.get(name, f"sub-score {name}"), nullable=True) for name in sub_scores
    ]
    return TableSchema("mas_table", ("candidate_id",), pa.schema(fixed + scorer_columns + sub_columns))


PROBE = TableSchema(
    "judge_probe",
    ("scorer", "case"),
    pa.schema(
        [
            column("scorer", pa.string(), "a served scorer of the judge"),
            column("case", pa.string(), "question and answer of the fixed set"),
            column("value", pa.float64(), "raw value of the median sub-scores; null when unscored", nullable=True),
            column("sub_scores", pa.string(), "their medians over the repeats as canonical JSON", nullable=True),
            column("status", pa.string(), "scored, or why it is not"),
        ]
    ),
)

IDENTITY = TableSchema(
    "identity",
    ("fact",),
    pa.schema(
        [
            column("fact", pa.string(), "what is known of the thing"),
            column("value", pa.string(), "its value as canonical JSON"),
        ]
    ),
)

SWEEP = TableSchema(
    "selection_sweep",
    ("alpha", "delta"),
    pa.schema(
        [
            column("alpha", pa.float64(), "weight of the confidence term"),
            column("delta", pa.float64(), "margin of the confidence term"),
            column("n_pairs", pa.int64(), "prompts that give a pair"),
            column("n_no_pair", pa.int64(), "prompts that give none"),
            column("identical_to", pa.int64(), "row of an earlier grid point with the same pairs", nullable=True),
            column("overlap", pa.float64(), "share of prompts with the default point's pair", nullable=True),
            column("active_penalty_share", pa.float64(), "share of pairs whose penalty is above 0", nullable=True),
            column("hard_negative_share", pa.float64(), "share of pairs whose R_l is likelier than R_w", nullable=True),
            column("longer_rejected_share", pa.float64(), "share of pairs whose R_l has more tokens", nullable=True),
            column("mean_mas_gap", pa.float64(), "mean of MAS(R_w) - MAS(R_l)", nullable=True),
            column("mean_logp_gap", pa.float64(), "mean of confidence of R_w minus that of R_l", nullable=True),
            column("mean_length_difference", pa.float64(), "mean of tokens of R_w minus those of R_l", nullable=True),
            column("top_tie_share", pa.float64(), "share of prompts whose top MAS is tied", nullable=True),
            column("no_pair_share", pa.float64(), "share of prompts that give none", nullable=True),
        ]
    ),
)

SWEEP_OVERLAP = TableSchema(
    "selection_sweep overlap",
    ("alpha", "delta", "alpha_other", "delta_other"),
    pa.schema(
        [
            column("alpha", pa.float64(), "weight of the confidence term at one grid point"),
            column("delta", pa.float64(), "margin of the confidence term there"),
            column("alpha_other", pa.float64(), "weight of the confidence term at the other"),
            column("delta_other", pa.float64(), "margin of the confidence term there"),
            column("overlap", pa.float64(), "share of prompts with a pair that have the same at both", nullable=True),
        ]
    ),
)

SWEEP_NO_PAIR = TableSchema(
    "selection_sweep no_pair",
    ("reason",),
    pa.schema(
        [
            column("reason", pa.string(), "why a prompt gives no pair, at any alpha and delta"),
            column("n_prompts", pa.int64(), "prompts with this reason"),
            column("share", pa.float64(), "their share of all prompts"),
        ]
    ),
)

LEADERBOARD = TableSchema(
    "leaderboard",
    ("recipe", "benchmark", "metric", "against"),
    pa.schema(
        [
            column("recipe", pa.string(), "the recipe"),
            column("benchmark", pa.string(), "the benchmark"),
            column("metric", pa.string(), "the metric"),
            column("against", pa.string(), "the recipe it is compared with"),
            column("mean", pa.float64(), "mean over training seeds; shares in per cent"),
            column("seed_sd", pa.float64(), "standard deviation over training seeds", nullable=True),
            column("n_seeds", pa.int64(), "number of training seeds"),
            column(
                "difference",
                pa.float64(),
                "mean minus that of `against`, or minus 50 for a win rate against base; null beside itself",
                nullable=True,
            ),
            column("ci_low", pa.float64(), "lower end of the difference's 95 % interval", nullable=True),
            column("ci_high", pa.float64(), "upper end of the difference's 95 % interval", nullable=True),
            column("interval_over", pa.string(), "what the interval covers: images, and whose seeds", nullable=True),
            column("significant", pa.bool_(), "whether the interval excludes 0", nullable=True),
            column(
                "p_value", pa.float64(), "two-sided p-value of the difference, by the same resamples", nullable=True
            ),
            column(
                "p_corrected",
                pa.float64(),
                "Holm's p-value over all recipes that the metric compares with `against`",
                nullable=True,
            ),
            column("significant_corrected", pa.bool_(), "whether p_corrected is below 0.05", nullable=True),
            column("same_as", pa.string(), "an equal recipe before it, whose figures these are", nullable=True),
        ]
    ),
)

COSTS = TableSchema(
    "costs",
    ("stage", "part", "device"),
    pa.schema(
        [
            column("stage", pa.string(), "what was done, as the store names it"),
            column(
                "part",
                pa.string(),
                "the first recipe that stands on it, for a training RECIPE|SEED; empty for what all recipes share",
            ),
            column("device", pa.string(), "the device it was done on"),
            column("recipe", pa.string(), "the recipe it was done for; null for what all share", nullable=True),
            column("seed", pa.int64(), "seed of the training", nullable=True),
            column("recipes", pa.int64(), "recipes of the leaderboard that stand on it"),
            column(
                "trained_for", pa.list_(pa.string()), "for a training, each RECIPE|SEED that has it; empty for others"
            ),
            column("objects", pa.int64(), "shards, trainings or benchmarks that are summed up here"),
            column("lost", pa.int64(), "those of them that the store no longer holds, of which nothing is known"),
            column("device_hours", pa.float64(), "hours from start to commit times the devices at work"),
            column("peak_memory", pa.int64(), "peak memory of the fullest device, bytes", nullable=True),
            column("money", pa.float64(), "what judges with prices were paid by the runs that made it", nullable=True),
        ]
    ),
    # How long a thing took is no part of what came of it.
    counts=False,
)

TRAINING_LOG = TableSchema(
    "training_log",
    ("step",),
    pa.schema(
        [
            column("step", pa.int64(), "optimiser step, from 1"),
            column("pairs_seen", pa.int64(), "pairs seen up to and with this step; for rlhf, answers sampled"),
            column(
                "pair_ids",
                pa.list_(pa.string()),
                "the pairs of this step; none for rlhf, which trains on answers of its own",
            ),
            column(
                "loss",
                pa.float64(),
                "mean loss of the step (equation 4, the negative log-likelihood, or that of rloo and grpo)",
            ),
            column("learning_rate", pa.float64(), "learning rate of the step"),
            column("grad_norm", pa.float64(), "norm of the gradient before clipping"),
            column("token_accuracy", pa.float64(), "share of answer tokens that are the likeliest", nullable=True),
            column(
                "reward_accuracy",
                pa.float64(),
                "share of pairs with the higher reward for R_w, rewards as in reward_margin",
                nullable=True,
            ),
            column(
                "reward_margin",
                pa.float64(),
                "mean reward of R_w minus that of R_l, as the loss has it: with ld_alpha, tails weighted",
                nullable=True,
            ),
            column("chosen_logp", pa.float64(), "mean sum of R_w's log-probs, nats", nullable=True),
            column("rejected_logp", pa.float64(), "mean sum of R_l's log-probs, nats", nullable=True),
            column("reward", pa.float64(), "mean proxy reward of the answers that rlhf sampled", nullable=True),
            column(
                "kl", pa.float64(), "rlhf: estimated KL to the base model, nats a token; null at beta 0", nullable=True
            ),
            column("answer_tokens", pa.float64(), "mean tokens of the answers that rlhf sampled", nullable=True),
        ]
    ),
)

MARGINS = TableSchema(
    "margins",
    ("pair_id",),
    pa.schema(
        [
            column("pair_id", pa.string(), "the pair"),
            column(
                "reward_margin_before", pa.float64(), "reward margin before training: 0 by definition", nullable=True
            ),
            column(
                "reward_margin",
                pa.float64(),
                "reward margin after training, of whole answers (also with ld_alpha)",
                nullable=True,
            ),
            column("loss_before", pa.float64(), "the pair's own loss under the base model", nullable=True),
            column("loss", pa.float64(), "the pair's own loss under the adapter", nullable=True),
            column("chosen_logp_before", pa.float64(), "log P of R_w under the base model, nats"),
            column("chosen_logp_after", pa.float64(), "log P of R_w under the adapter, nats"),
            column("rejected_logp_before", pa.float64(), "log P of R_l under the base model, nats", nullable=True),
            column("rejected_logp_after", pa.float64(), "log P of R_l under the adapter, nats", nullable=True),
        ]
    ),
)

TRAJECTORY = TableSchema(
    "trajectory",
    ("pair_id", "step"),
    pa.schema(
        [
            column("pair_id", pa.string(), "the pair"),
            column("step", pa.int64(), "the optimiser step that saw it; what follows is from before its update"),
            column("loss", pa.float64(), "the pair's own loss", nullable=True),
            column(
                "reward_margin",
                pa.float64(),
                "its reward of R_w minus that of R_l, as the loss has it: with ld_alpha, tails weighted",
                nullable=True,
            ),
            column("chosen_logp", pa.float64(), "log P of R_w, whole, nats"),
            column("rejected_logp", pa.float64(), "log P of R_l, whole, nats", nullable=True),
        ]
    ),
    counts=False,
)
