"""A real HTTP judge on loopback that prefers a place is caught, and what the checks ask it was foretold."""

import pyarrow as pa
import pytest

from m3po_dagster.assets.judge_checks import judge_checks
from m3po_dagster.method.alignment.llm_judge import LlmJudgeSettings
from m3po_dagster.method.alignment.mas import MasSettings
from m3po_dagster.method.alignment.quality import QualitySettings, controls, plan
from m3po_dagster.world.judge_card import draw_cases
from tests.served_judge import ServedJudge


class PrefersTheFirst(ServedJudge):
    """Takes two points from what stands in the second half of a request."""

    def grades(self, image: bytes, question: str, answer: str, place: int) -> tuple[int, int, int, str]:
        *grades, words = super().grades(image, question, answer, place)
        return (*(max(1, grade - 2 * (place > 2)) for grade in grades), words)


@pytest.fixture(scope="module")
def items(tmp_path_factory):
    found = []
    for case in draw_cases("prompts", 30, 3, tmp_path_factory.mktemp("scenes")):
        texts = dict.fromkeys((case.true, case.wrong, *([case.omitting] if case.omitting else []), *case.noisy))
        rows = [{"candidate_id": f"{case.prompt.prompt_id}:{k}", "text": text} for k, text in enumerate(texts)]
        found.append((case.prompt, rows))
    return found


@pytest.mark.parametrize(
    ("server", "caught"), [(ServedJudge, set()), (PrefersTheFirst, {"position_bias", "swap_consistency"})]
)
def test_a_served_judge_that_prefers_a_place_is_caught(items, server, caught):
    with server() as judge:
        settings = LlmJudgeSettings(base_url=judge.base_url, model=judge.model, group_size=4)
        mas, quality = MasSettings[LlmJudgeSettings](scorers=(settings,)), QualitySettings(prompts=8)
        scorer = mas.build()
        scored = scorer.score([(prompt, [row["text"] for row in rows]) for prompt, rows in items])
        given = [row for _, rows in items for row in rows]
        ids = [row["candidate_id"] for row in given]
        table = pa.Table.from_pylist([{"candidate_id": key, **row} for key, row in zip(ids, scored, strict=True)])
        before = judge.requests
        asked = controls(scorer, items, table, mas.scorers, quality, 0)
        asks = plan(items, mas.scorers, quality, 0)
        assert len(asks.reversed_batch) == len(asks.batch) == 8
        assert judge.requests - before == sum(-(-len(texts) // 4) for _, texts in [*asks.reversed_batch, *asks.batch])
    lengths = pa.table({"candidate_id": ids, "n_tokens": [len(row["text"].split()) for row in given]})
    assert {check.name for check in judge_checks(table, lengths, asked, mas) if not check.passed} == caught
