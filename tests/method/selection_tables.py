"""Random score tables with everything that goes wrong: ties, nulls, NaN, cut answers, equal texts, ragged prompts."""

import numpy as np
import pyarrow as pa

TEXTS = ["A cat.", "a  cat.", " A CAT. ", "A dog.", "Two dogs.", "two dogs. ", "A red car.", None]


def random_table(
    seed: int, prompts: int = 60, width: int = 12, regular: bool = False, shuffle: bool = True
) -> pa.Table:
    """About `prompts * width` rows. MAS on a grid of quarters, log-probs on a coarse grid: most tops are tied."""
    rng = np.random.default_rng(seed)
    rows = []
    for prompt in range(prompts):
        size = width if regular else int(rng.integers(1, width + 1))
        for k in rng.permutation(size):
            n_tokens = int(rng.integers(1, 5))
            rows.append(
                {
                    "prompt_id": f"prompt-{prompt}",
                    "candidate_id": f"prompt-{prompt}:{k}",
                    "k": int(k),
                    "mas": rng.choice([None, float("nan"), 0.0, 0.25, 0.5, 0.75, 1.0], p=[0.1, 0.05, *[0.17] * 5]),
                    "style": rng.choice([None, 1.0, 2.0, 3.0], p=[0.1, 0.3, 0.3, 0.3]),
                    "sum_logp": rng.choice([None, -0.5 * int(rng.integers(0, 8)) * n_tokens], p=[0.05, 0.95]),
                    "n_tokens": n_tokens,
                    "text": rng.choice(np.array(TEXTS, dtype=object)),
                    "finish_reason": rng.choice(np.array(["stop", "length", None], dtype=object), p=[0.7, 0.2, 0.1]),
                }
            )
    schema = pa.schema(
        [
            ("prompt_id", pa.string()),
            ("candidate_id", pa.string()),
            ("k", pa.int32()),
            ("mas", pa.float64()),
            ("style", pa.float64()),
            ("sum_logp", pa.float64()),
            ("n_tokens", pa.int32()),
            ("text", pa.string()),
            ("finish_reason", pa.string()),
        ]
    )
    table = pa.Table.from_pylist(rows, schema=schema)
    return table.take(pa.array(rng.permutation(len(rows)))) if shuffle else table


def candidates(mas: list, sum_logp: list, n_tokens: list | None = None, prompt: str = "p", **columns: list) -> pa.Table:
    """One prompt's candidates, `p:0` and on."""
    size = len(mas)
    return pa.table(
        {
            "prompt_id": [prompt] * size,
            "candidate_id": [f"{prompt}:{k}" for k in range(size)],
            "mas": pa.array(mas, pa.float64()),
            "sum_logp": pa.array(sum_logp, pa.float64()),
            "n_tokens": pa.array([1] * size if n_tokens is None else n_tokens, pa.int32()),
            **columns,
        }
    )
