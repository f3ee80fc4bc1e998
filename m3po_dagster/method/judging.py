"""What other rooms use of a served judge: whom to ask, what about, and what comes of it (section 3.3).

A judged benchmark makes an Inquiry an answer, has them all asked by `ask_all`, and reads their entries. Requests, the
ledger, the budget and retries are the business of `alignment`.
"""

from m3po_dagster.method.alignment.account import Account
from m3po_dagster.method.alignment.calibration import Calibration
from m3po_dagster.method.alignment.inquiry import Inquiry
from m3po_dagster.method.alignment.judge_asking import ask_all, revision_of
from m3po_dagster.method.alignment.judge_image import JudgeImage
from m3po_dagster.method.alignment.judge_reply import Evidence
from m3po_dagster.method.alignment.judge_request import (
    HIGHEST,
    LOWEST,
    chat_request,
    reply_entry,
    reply_format,
    version_of,
)
from m3po_dagster.method.alignment.judge_settings import HOW_REQUESTS_TRAVEL, ServedJudgeSettings
from m3po_dagster.method.alignment.rounds import TOGETHER
from m3po_dagster.method.alignment.scorer import SCORED, UNREADABLE_IMAGE, Score, Scorer, ScorerSettings, calibrated

__all__ = [
    "HIGHEST",
    "HOW_REQUESTS_TRAVEL",
    "LOWEST",
    "SCORED",
    "TOGETHER",
    "UNREADABLE_IMAGE",
    "Account",
    "Calibration",
    "Evidence",
    "Inquiry",
    "JudgeImage",
    "Score",
    "Scorer",
    "ScorerSettings",
    "ServedJudgeSettings",
    "ask_all",
    "calibrated",
    "chat_request",
    "reply_entry",
    "reply_format",
    "revision_of",
    "version_of",
]
