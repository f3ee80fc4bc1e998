"""A shard's scoring as the step of mas_table runs it: rows as they come, what is unscored counted, what it took."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace

import pyarrow as pa

from m3po_dagster.assets.parts import Rows
from m3po_dagster.materialise import Work
from m3po_dagster.method.alignment.cascade import AnswerFacts
from m3po_dagster.method.alignment.inquiry import NO_ANSWER
from m3po_dagster.method.alignment.probe import changed, probe
from m3po_dagster.method.alignment.quality import Controls, controls, plan
from m3po_dagster.method.alignment.unscored import Unscored, is_unscored
from m3po_dagster.method.generation.failures import too_many
from m3po_dagster.method.prompt import Prompt
from m3po_dagster.resources.judge import JudgeResource
from m3po_dagster.s3_files.ahead import ahead
from m3po_dagster.storage.errors import StoreError

Answers = tuple[Prompt, Sequence[dict]]
"""A prompt and the rows of its candidates."""

SEED = 0
"""Of the draw of the prompts about which the judge is asked again."""


class JudgeChanged(ValueError):
    """Another judge answers than the one that was probed; the message says how it differs."""


class ShardJudging:
    """Scores the candidates of a shard. Raises TooManyUnscored as soon as more are unscored than the study allows."""

    def __init__(self, work: Work, judge: JudgeResource, answers: Mapping[str, Answers]) -> None:
        self._settings = settings = work.study.judge
        self._log, self._max_unscored = work.log, settings.max_unscored
        self._answers = list(answers.values())
        self._candidates = sum(len(rows) for _, rows in answers.values())
        self._unscored = Unscored(self._candidates, settings.max_unscored)
        self._scorer = judge.load(settings)
        self._probed = probed(work)
        self._account = judge.account(work.study, work.store.location, work.run_id, self._probed, work.log)
        if self._account:
            self._scorer = self._scorer.at(self._account)
        self._scored, self._seconds = 0, 0.0
        self._expected: dict[str, dict] = {}

    def asked_again(self, kept: pa.Table) -> list[str]:
        """The prompts of an interrupted run with unscored answers when those are what stopped it.

        Fewer are kept as what they are, so that a resumed run gives what an undisturbed one gives; but for those that
        nobody answered.
        """
        rows = kept.select(["prompt_id", "mas", "status", "words"]).to_pylist()
        unscored = [row for row in rows if is_unscored(row)]
        if too_many(len(unscored), self._candidates, self._max_unscored):
            if self._account:
                # Failed replies that the ledger holds are asked for again too, also those of prompts in no part yet.
                self._scorer = self._scorer.at(replace(self._account, again=True))
            return list(dict.fromkeys(row["prompt_id"] for row in unscored))
        # Nobody has answered these: an outage is no judgement.
        silent = {row["prompt_id"] for row in unscored if NO_ANSWER in row["status"]}
        self._unscored.add(row for row in unscored if row["prompt_id"] not in silent)
        return list(silent)

    def score(self, items: Sequence[Answers]) -> Iterator[Rows]:
        """A row a candidate, some prompts at a time; before the first what this will ask and cost is told."""
        if self._tell(items):
            self._refuse_another_judge()
        started = time.monotonic()
        together = self._scorer.together
        with ahead(prompt.image_path for prompt, _ in items):
            for start in range(0, len(items), together):
                some = items[start : start + together]
                batch = [(prompt, [row["text"] for row in given]) for prompt, given in some]
                found = self._scorer.score(batch, facts=[AnswerFacts.of(given) for _, given in some])
                ids = [row["candidate_id"] for _, given in some for row in given]
                yield [{"candidate_id": key, **row} for key, row in zip(ids, found, strict=True)]
                self._scored += len(found)
                self._seconds = time.monotonic() - started
                self._unscored.add(found)
                self._unscored.check()

    def _refuse_another_judge(self) -> None:
        """Raises JudgeChanged when what stands behind the endpoint is not what was probed.

        Its replies would be kept as the old one's.
        """
        if said := changed(self._probed, probe(self._settings), self._settings.probe_tolerance):
            raise JudgeChanged(
                f"the judge is not the one that was probed: {said}. It was asked nothing else. `m3po run --ask-judge`, "
                "or the nightly check, takes up what it is now"
            )

    def _tell(self, items: Sequence[Answers]) -> bool:
        """Logs what will be asked; whether anything will be."""
        batch = [(prompt, [row["text"] for row in given]) for prompt, given in items]
        asked = (self._settings.assessors, self._settings.quality, SEED, self._settings.cascade is not None)
        checks, asks = plan(self._answers, *asked), False
        at_most = "at most " if self._settings.may_ask_fewer else ""
        for scorer in self._scorer.served:
            shard, again = scorer.estimate(batch), scorer.swapped().estimate(checks.reversed_batch)
            again += scorer.estimate(checks.batch)
            self._expected[scorer.name] = {"shard": shard.facts(), "checks of the judge": again.facts()}
            self._log(
                f"{scorer.name} will be asked {at_most}{shard.words()}, and {again.words()} to check the judge itself; "
                f"{shard.known + again.known} more are in the ledger. Tokens from {shard.source}"
            )
            asks |= shard.spend.requests + again.spend.requests > 0
        return asks

    def controls(self, table: pa.Table) -> Controls:
        """Asks about some of the prompts again, to check the judge itself."""
        settings = self._settings
        cascade = settings.cascade is not None
        return controls(self._scorer, self._answers, table, settings.assessors, settings.quality, SEED, cascade)

    def facts(self) -> dict[str, object]:
        """For the manifest: what this run scored itself, and what its served scorers asked and what that took."""
        this_run = {"candidates": self._scored, "seconds": round(self._seconds, 3)}
        if self._account is None:
            return {"this run": this_run}
        asked = {name: asdict(tally) for name, tally in sorted(self._account.tallies.by_scorer.items())}
        spent = self._account.ledger.spent(study=self._account.study)
        return {
            "this run": this_run,
            "asked": asked,
            "priced": [one.name for one in self._settings.assessors if one.served and one.prices is not None],
            "expected": self._expected,
            "spent by the study": asdict(spent),
        }


def probed(work: Work) -> list[dict]:
    """The rows of the probe that the judge's identity stands on."""
    probe = work.one("judge_identity").manifest.inputs["judge_probe"]
    found = work.store.find("judge_probe", "", probe.fingerprint)
    if found is None:
        raise StoreError(f"the store {work.store.location} no longer holds judge_probe: materialise it again")
    return found.table().to_pylist()
