"""Selection written a second time, in SQL for DuckDB: the independent oracle of the numpy engine."""

import duckdb
import pyarrow as pa

# Every choice of section 3.5 as a window over a prompt's candidates; the engine never sees this text.
QUERY = """
WITH scored AS (
  SELECT *, row_number() OVER () AS position,
         CASE WHEN isfinite(CAST({score} AS DOUBLE)) AND isfinite(sum_logp) AND n_tokens IS NOT NULL
               AND k < {candidates}
              THEN CAST({score} AS DOUBLE) END AS score,
         sum_logp / n_tokens AS mean_logp,
         {confidence} AS conf,
         lower(regexp_replace(trim(text), '\\s+', ' ', 'g')) AS plain
  FROM candidates
), usable AS (
  SELECT * FROM scored WHERE score IS NOT NULL
), means AS (
  SELECT prompt_id, list(score ORDER BY k) AS scores, list_reduce(scores, lambda a, b: a + b) / len(scores) AS mean
  FROM usable GROUP BY prompt_id
), spots AS (
  SELECT prompt_id,
         mean - 2 * sqrt(
           list_reduce(list_transform(scores, lambda x: (x - mean) * (x - mean)), lambda a, b: a + b) / len(scores)
         ) AS spot
  FROM means
), winner AS (
  SELECT * FROM usable WHERE finish_reason IS DISTINCT FROM 'length'
  QUALIFY row_number() OVER (PARTITION BY prompt_id ORDER BY score DESC, mean_logp DESC, n_tokens, k) = 1
), kept AS (
  SELECT * FROM winner WHERE score >= {min_chosen}
), scored_losers AS (
  SELECT w.prompt_id, w.candidate_id AS chosen_id, l.candidate_id AS rejected_id,
         w.mas - l.mas AS mas_gap, w.conf - l.conf AS logp_gap, w.sum_logp AS ref_chosen, l.sum_logp AS ref_rejected,
         l.conf, l.n_tokens, l.k,
         {first} AS s
  FROM kept w JOIN usable l ON w.prompt_id = l.prompt_id JOIN spots ON w.prompt_id = spots.prompt_id
  WHERE w.score - l.score > {min_gap} AND (w.plain IS NULL OR l.plain IS NULL OR w.plain <> l.plain)
    AND abs(w.n_tokens - l.n_tokens) <= {max_length}
)
SELECT prompt_id, chosen_id, rejected_id, s, mas_gap, logp_gap, ref_chosen, ref_rejected FROM scored_losers
QUALIFY row_number() OVER (PARTITION BY prompt_id ORDER BY s DESC, conf DESC, n_tokens, k) = 1
ORDER BY prompt_id
"""


def oracle_pairs(
    table: pa.Table,
    alpha: float,
    delta: float,
    *,
    confidence: str = "mean",
    bonus: bool = False,
    min_gap: float = 0.0,
    min_chosen: float | None = None,
    score: str = "mas",
    max_length: int | None = None,
    candidates: int | None = None,
    sweet_spot: bool = False,
) -> list[tuple]:
    """(prompt, chosen, rejected, S, MAS gap, log-prob gap, both sums) a pair, by prompt id; needs every column.

    `sweet_spot` takes the loser nearest to mean - 2 sd instead of the highest S, which is then minus the distance.
    """
    excess = f"((w.conf - l.conf) - {delta!r}::DOUBLE)"
    penalty = excess if bonus else f"greatest(0::DOUBLE, {excess})"
    query = QUERY.format(
        score=score,
        confidence="sum_logp / n_tokens" if confidence == "mean" else "sum_logp",
        first="-abs(l.score - spot)" if sweet_spot else f"(w.score - l.score) - {alpha!r}::DOUBLE * {penalty}",
        max_length=2**31 if max_length is None else max_length,
        candidates=2**31 if candidates is None else candidates,
        min_gap=f"{min_gap!r}::DOUBLE",
        min_chosen="'-infinity'::DOUBLE" if min_chosen is None else f"{min_chosen!r}::DOUBLE",
    )
    with duckdb.connect() as connection:
        connection.execute("SET threads = 1")
        connection.register("candidates", table)
        return connection.execute(query).fetchall()


def oracle_best(table: pa.Table) -> list[tuple[str, str, float]]:
    """(prompt, R_w, its summed log-prob) by prompt id."""
    with duckdb.connect() as connection:
        connection.register("candidates", table)
        return connection.execute(
            "SELECT prompt_id, candidate_id, sum_logp FROM candidates "
            "WHERE isfinite(mas) AND isfinite(sum_logp) AND n_tokens IS NOT NULL "
            "AND finish_reason IS DISTINCT FROM 'length' "
            "QUALIFY row_number() OVER "
            "(PARTITION BY prompt_id ORDER BY mas DESC, sum_logp / n_tokens DESC, n_tokens, k) = 1 "
            "ORDER BY prompt_id"
        ).fetchall()
