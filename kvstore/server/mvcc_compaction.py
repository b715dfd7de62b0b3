"""Compaction of the history, and of the records that it frees in small steps.

A compaction makes old revisions unreadable at once. Each later command drops a few of the freed records,
which never finishes without writes. So a physical compaction, or any while space is short and writes are
refused, makes this member propose further steps until none is left.
"""

from __future__ import annotations

import logging
from functools import partial

from kvstore.engine import AlarmType, Compact, CompactResult, Outcome
from kvstore.errors import KVError
from kvstore.replica.outcome import OnResult
from kvstore.replica.replica import Replica

logger = logging.getLogger("kvstore.server")


def compact(replica: Replica, revision: int, *, physical: bool, on_result: OnResult[CompactResult]) -> None:
    """Compact at a revision; a physical compaction completes once the space is free."""
    replica.propose(Compact(revision, physical), partial(_compacted, replica, revision, physical, on_result))


def _compacted(
    replica: Replica,
    revision: int,
    physical: bool,
    on_result: OnResult[CompactResult],
    outcome: Outcome[CompactResult],
) -> None:
    if isinstance(outcome, KVError):
        on_result(outcome)
        return
    short = any(alarm.alarm == AlarmType.NOSPACE for alarm in replica.engine.alarms())
    if not physical:
        on_result(outcome)
        on_result = partial(_dropped, revision)
    if outcome.sweeping and (physical or short):
        step = Compact(revision, physical=True, resume=True)
        try:
            replica.propose(step, partial(_compacted, replica, revision, True, on_result))
        except KVError as error:
            on_result(error)
    elif physical:
        on_result(outcome)


def _dropped(revision: int, outcome: Outcome[CompactResult]) -> None:
    if isinstance(outcome, KVError):
        logger.warning("later commands free what the compaction at %d left: %s", revision, outcome)
