"""A shard's sampling as the candidates' step runs it: rows as they come, failures counted, what this run did."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict

import pyarrow as pa
import pyarrow.compute as pc

from m3po_dagster.assets.parts import Rows
from m3po_dagster.materialise import Work
from m3po_dagster.method.generation.failures import Failures, too_many
from m3po_dagster.method.prompt import Prompt
from m3po_dagster.resources.generator import GeneratorResource
from m3po_dagster.s3_files.ahead import ahead
from m3po_dagster.storage.tables import CANDIDATES

PART_SCHEMA = pa.schema(
    [*(field.with_nullable(True) for field in CANDIDATES.schema), ("failure", pa.string()), ("stopped", pa.string())]
)
"""A part's rows: candidates, the prompt's first with why it got no more rounds; prompts without any with the reason."""


class ShardSampling:
    """Samples the prompts of a shard. Raises TooManyFailed as soon as more have failed than the study allows."""

    def __init__(self, work: Work, generator: GeneratorResource, prompts: Mapping[str, Prompt]) -> None:
        self._prompts, self._settings = prompts, work.study.generation
        self._generator, self._study = generator, work.study
        self._engine = generator.engine(work.study) if prompts else None
        self._failures = Failures(len(prompts), self._settings.max_failed)
        self._done = self._tokens = 0
        self._seconds = 0.0

    @property
    def together(self) -> int:
        """Prompts that are computed at once; 1 where each is by itself."""
        alone = self._engine is None or self._study.generator.kind == "server" or self._engine.path == "generate"
        return 1 if alone else self._settings.prompts_per_batch

    def asked_again(self, kept: pa.Table) -> list[str]:
        """The failed prompts of an interrupted run when they are what stopped it: the cause may be mended by now.

        Fewer are kept as what they are, so that a resumed run gives what an undisturbed one gives.
        """
        failed = kept.filter(pc.is_valid(kept["failure"])).select(["prompt_id", "failure"]).to_pylist()
        if too_many(len(failed), len(self._prompts), self._settings.max_failed):
            return [row["prompt_id"] for row in failed]
        for row in failed:
            self._count(row)
        return []

    def sample(self, prompts: Sequence[Prompt]) -> Iterator[Rows]:
        """The distinct candidates of each prompt as it is done, or a row with the reason why it has none."""
        from m3po_dagster.method.generation.candidates import distinct
        from m3po_dagster.method.generation.samples import Failure, prompt_seed

        if not prompts:
            return
        seeds = [prompt_seed(self._settings.seed, prompt.prompt_id, self._settings.most) for prompt in prompts]
        rounds = self._generator.rounds(self._study, prompts)
        started = time.monotonic()
        with ahead(prompt.image_path for prompt in prompts):
            for i, found in self._engine.sample(prompts, self._settings, seeds, rounds):
                prompt_id = prompts[i].prompt_id
                if isinstance(found, Failure):
                    # Where the images lie on this machine is no part of the result.
                    reason = found.reason.replace(str(prompts[i].image_path), prompts[i].image_path.name)
                    row = {"prompt_id": prompt_id, "failure": reason}
                    yield [row]
                    self._count(row)
                    self._failures.check()
                else:
                    self._tokens += sum(len(one.token_ids) for one in found)
                    rows = [candidate.row(prompt_id, seeds[i]) for candidate in distinct(found)]
                    rows[0]["stopped"] = rounds.why_stopped(i) if rounds else None
                    yield rows
                self._done += 1
                self._seconds = time.monotonic() - started

    def _count(self, row: Mapping[str, str]) -> None:
        prompt = self._prompts[row["prompt_id"]]
        self._failures.add(row["failure"], (prompt.prompt_id, prompt.image_path.name))

    def facts(self) -> dict[str, object]:
        """For the manifest: the numerics, and what this run did itself; parts of an earlier one don't count."""
        if self._engine is None:
            return {}
        return {
            "numerics": self._engine.numerics,
            "path": self._engine.path,
            "this run": {
                "prompts": self._done,
                "tokens": self._tokens,
                "seconds": round(self._seconds, 3),
                **asdict(self._engine.counts),
            },
        }
