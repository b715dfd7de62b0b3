"""Telling the cluster this member's name and client URLs, as its first write after joining."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import Any

from kvstore.engine import SetMemberAttributes
from kvstore.errors import KVError, ServerStopped
from kvstore.server.local_member import LocalMember

logger = logging.getLogger("kvstore.server")

RETRY_SECONDS = 0.5
"""Between two attempts. Publishing twice changes nothing, so even an unknown outcome is repeated."""


async def publish(member: LocalMember, name: str, client_urls: tuple[str, ...]) -> bool:
    """Keep trying until the cluster knows; False when this member stops first."""
    command = SetMemberAttributes(member_id=member.member_id, name=name, client_urls=client_urls)
    while True:
        applied: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        member.propose(command, partial(_complete, applied))
        outcome = await applied
        if not isinstance(outcome, KVError):
            return True
        if isinstance(outcome, ServerStopped):
            return False
        logger.warning("could not publish this member's client URLs yet: %s", outcome)
        await asyncio.sleep(RETRY_SECONDS)


def _complete(future: asyncio.Future[Any], outcome: object) -> None:
    if not future.done():
        future.set_result(outcome)
