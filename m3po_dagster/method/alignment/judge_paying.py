"""What a request of a served judge may cost, and how its reply is kept and counted (section 3.3)."""

from datetime import UTC, datetime
from typing import Literal

from m3po_dagster.method.alignment.account import Account
from m3po_dagster.method.alignment.estimate import at_most
from m3po_dagster.method.alignment.inquiry import Inquiry
from m3po_dagster.method.alignment.judge_reply import read_usage
from m3po_dagster.method.alignment.judge_settings import ServedJudgeSettings
from m3po_dagster.method.alignment.turn import Spend, Turn


def most_of(inquiry: Inquiry, settings: ServedJudgeSettings, measured: Spend) -> Spend:
    """What a request will hardly pass; `measured` is what the ledger knows of the model's requests.

    Raises OSError when the image can't be read.
    """
    return at_most(inquiry.texts, *inquiry.image.size, settings.max_reply_tokens, settings.charged, measured)


def keep_reply(
    account: Account,
    settings: ServedJudgeSettings,
    inquiry: Inquiry,
    number: int,
    purpose: Literal["first", "repair"],
    reply: str,
) -> None:
    """Puts a reply where it is found before it is asked for again, and counts it. Raises LedgerError."""
    used, prices = read_usage(reply), settings.charged
    tokens = (used.prompt_tokens or 0, used.cached_tokens or 0, used.completion_tokens or 0)
    cost = None if prices is None else prices.cost(*tokens)
    account.ledger.add(
        Turn(
            key=inquiry.key,
            turn=number,
            purpose=purpose,
            scorer=settings.name,
            model=settings.model,
            prompt_id=inquiry.prompt_id,
            image_sha256=inquiry.image.sha256,
            study=account.study,
            run=account.run,
            at=datetime.now(UTC).isoformat(timespec="milliseconds"),
            reply=reply,
            prompt_tokens=used.prompt_tokens,
            cached_tokens=used.cached_tokens,
            completion_tokens=used.completion_tokens,
            cost=cost,
        )
    )
    account.tallies.add(
        settings.name,
        requests=1,
        repairs=int(purpose == "repair"),
        prompt_tokens=tokens[0],
        cached_tokens=tokens[1],
        completion_tokens=tokens[2],
        cost=cost or 0.0,
    )
