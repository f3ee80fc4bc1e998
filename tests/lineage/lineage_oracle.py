"""What lineage should say, from the store's files by plain SQL: manifests as JSON, tables as Parquet, nothing else."""

import json
from pathlib import Path

import duckdb


class Oracle:
    """DuckDB over a store's folder."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self.sql = duckdb.connect()

    def manifest(self, asset: str, fingerprint: str) -> dict:
        (path,) = self.root.glob(f"{asset}/*/{fingerprint}/manifest.json")
        return json.loads(path.read_text())

    def inputs(self, asset: str, fingerprint: str, wanted: str) -> list[tuple[str, str]]:
        """(partition, fingerprint) of the direct inputs of one asset."""
        refs = self.manifest(asset, fingerprint)["inputs"].values()
        return sorted((ref["partition"], ref["fingerprint"]) for ref in refs if ref["asset"] == wanted)

    def file(self, asset: str, fingerprint: str, table: str = "data") -> str:
        (path,) = self.root.glob(f"{asset}/*/{fingerprint}/{table}.parquet")
        return str(path)

    def trained_pairs(self, asset: str, fingerprint: str) -> list[tuple]:
        """(prompt_id, shard, pair_id, chosen text, rejected text) of an adapter's pairs."""
        found = []
        for partition, pairs in self.inputs(asset, fingerprint, "preference_pairs"):
            ((_, candidates),) = self.inputs("preference_pairs", pairs, "candidates")
            texts = self.file("candidates", candidates)
            found += self.sql.execute(
                """
                SELECT p.prompt_id, ?, p.pair_id, w.text, l.text FROM read_parquet(?) p
                JOIN read_parquet(?) w ON w.candidate_id = p.chosen_id
                LEFT JOIN read_parquet(?) l ON l.candidate_id = p.rejected_id
                """,
                [partition.split("|")[1], self.file("preference_pairs", pairs), texts, texts],
            ).fetchall()
        return found

    def diff(self, asset: str, first: str, second: str) -> dict[str, str]:
        """{prompt_id: kind} between two adapters."""
        for name, fingerprint in (("x", first), ("y", second)):
            self.sql.execute(f"CREATE OR REPLACE TEMP TABLE {name} (p TEXT, shard TEXT, pair TEXT, w TEXT, l TEXT)")
            rows = self.trained_pairs(asset, fingerprint)
            if rows:
                self.sql.executemany(f"INSERT INTO {name} VALUES (?, ?, ?, ?, ?)", rows)
        rows = self.sql.execute(
            """
            SELECT coalesce(x.p, y.p), CASE WHEN x.p IS NULL THEN 'added' WHEN y.p IS NULL THEN 'removed'
              WHEN x.pair = y.pair AND x.w = y.w AND x.l IS NOT DISTINCT FROM y.l THEN 'same' ELSE 'changed' END
            FROM x FULL JOIN y ON x.p = y.p
            """
        ).fetchall()
        return dict(rows)

    def exposures(self, adapter: str, pair_id: str) -> tuple[list[int], int]:
        """The steps that saw a pair, and how often the training saw any pair."""
        log = self.file("adapter", adapter, "training_log")
        seen = "SELECT step, unnest(pair_ids) AS pair FROM read_parquet(?)"
        steps = self.sql.execute(f"SELECT step FROM ({seen}) WHERE pair = ? ORDER BY step", [log, pair_id]).fetchall()
        (total,) = self.sql.execute(f"SELECT count(*) FROM ({seen})", [log]).fetchone()
        return [step for (step,) in steps], total

    def margin(self, adapter: str, pair_id: str) -> float:
        (found,) = self.sql.execute(
            "SELECT reward_margin FROM read_parquet(?) WHERE pair_id = ?",
            [self.file("adapter", adapter, "margins"), pair_id],
        ).fetchone()
        return found

    def holders(self, column: str, value: str) -> set[str]:
        """Fingerprints of the pairs that hold a pair or a prompt."""
        files = str(self.root / "preference_pairs" / "*" / "*" / "data.parquet")
        rows = self.sql.execute(
            f"SELECT DISTINCT filename FROM read_parquet(?, filename = true) WHERE {column} = ?", [files, value]
        ).fetchall()
        return {Path(name).parent.name for (name,) in rows}
