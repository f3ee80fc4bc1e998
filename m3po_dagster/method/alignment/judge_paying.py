"""What a request of a served judge may cost, and how its reply is kept and counted (section 3.3)."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

from m3po_dagster.method.alignment.account import Account
from m3po_dagster.method.alignment.estimate import at_most
from m3po_dagster.method.alignment.judge_group import Group
from m3po_dagster.method.alignment.judge_reply import read_usage
from m3po_dagster.method.alignment.judge_request import request_texts
from m3po_dagster.method.alignment.turn import Spend, Turn

if TYPE_CHECKING:
    from m3po_dagster.method.alignment.llm_judge import LlmJudgeSettings


def most_of(group: Group, settings: "LlmJudgeSettings", measured: Spend) -> Spend:
    """What asking about a group will hardly pass; `measured` is what the ledger knows of the model's requests."""
    texts = request_texts(group.prompt, group.answers)
    return at_most(texts, *group.image.size, settings.max_reply_tokens, settings.charged, measured)


def keep_reply(
    account: Account,
    settings: "LlmJudgeSettings",
    group: Group,
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
            key=group.key,
            turn=number,
            purpose=purpose,
            scorer=settings.name,
            model=settings.model,
            prompt_id=group.prompt.prompt_id,
            image_sha256=group.image.sha256,
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
