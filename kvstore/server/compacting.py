"""Compacting, and giving back what it freed in steps that nobody else has to wait for.

A compaction forbids the past at once. The records it gave up are dropped after later commands, a few each;
that would take for ever where nobody writes. So who asks for the space (a physical compaction, or any while
space is short and writes are refused) makes this member propose the next step until nothing is left.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

from kvstore.engine import AlarmType, Compact
from kvstore.errors import KVError
from kvstore.server.local_member import LocalMember, OnResult

logger = logging.getLogger("kvstore.server")


def compact(member: LocalMember, revision: int, *, physical: bool, on_result: OnResult) -> None:
    """Compact at a revision; a physical compaction settles once the space is free."""
    member.propose(Compact(revision, physical), partial(_compacted, member, revision, physical, on_result))


def _compacted(member: LocalMember, revision: int, physical: bool, on_result: OnResult, outcome: Any) -> None:
    if isinstance(outcome, KVError):
        on_result(outcome)
        return
    short = any(alarm.alarm == AlarmType.NOSPACE for alarm in member.engine.alarms())
    if not physical:
        on_result(outcome)
        on_result = partial(_dropped, revision)
    if outcome.sweeping and (physical or short):
        step = Compact(revision, physical=True, resume=True)
        try:
            member.propose(step, partial(_compacted, member, revision, True, on_result))
        except KVError as error:
            on_result(error)
    elif physical:
        on_result(outcome)


def _dropped(revision: int, outcome: Any) -> None:
    if isinstance(outcome, KVError):
        logger.warning("what the compaction at %d freed is given back later: %s", revision, outcome)
