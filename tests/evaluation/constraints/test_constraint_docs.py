"""The page about constraints says what they say themselves."""

import json
import re
from pathlib import Path

from m3po_dagster.evaluation.constraints.registry import KINDS, read_constraints

PAGE = Path(__file__).parents[3] / "docs" / "benchmarks-ift.md"
ROW = re.compile(r"\| `(\{.*\})` \| (\w+) \| (.+) \|")


def test_the_table_of_constraints_is_the_code_s():
    rows = [match.groups() for line in PAGE.read_text().splitlines() if (match := ROW.fullmatch(line))]
    found = [read_constraints([json.loads(value)], PAGE.name)[0] for value, _, _ in rows]
    assert [(one.about, one.describe()) for one in found] == [(about, sentence) for _, about, sentence in rows]
    assert [type(one) for one in found] == list(KINDS)
