"""The quota on stored bytes: a member refuses writes that would exceed it, and raises the NOSPACE alarm.

The check comes before the proposal and counts logical bytes, so that members never disagree about it. The
alarm is replicated; while it is active the engine refuses every command that stores.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from kvstore.engine import (
    Alarm,
    AlarmAction,
    AlarmResult,
    AlarmType,
    Command,
    Engine,
    Outcome,
    quota_cost_bytes,
)
from kvstore.errors import KVError, NoSpace
from kvstore.replica.outcome import OnResult

logger = logging.getLogger("kvstore.server")


class Quota:
    """Admits writes while there is space."""

    def __init__(
        self,
        engine: Engine,
        member_id: int,
        propose: Callable[[Alarm, OnResult[AlarmResult]], None],
        limit_bytes: int | None,
    ) -> None:
        self._engine = engine
        self._member_id = member_id
        self._propose = propose
        self.limit_bytes = limit_bytes
        """None for no limit."""
        self._raising = False
        """The alarm is proposed but not applied, so that a flood of writes raises only one."""

    def admit(self, command: Command) -> None:
        """Raise NoSpace, and the alarm, when the command does not fit."""
        if self.limit_bytes is None:
            return
        cost = quota_cost_bytes(command)
        if cost == 0 or self._engine.logical_bytes + cost < self.limit_bytes:
            return
        self.raise_alarm(f"database space exceeded, quota {self.limit_bytes} bytes")
        raise NoSpace

    def raise_alarm(self, reason: str) -> None:
        """Alert all members, once, that space is short here; `reason` is for the log."""
        ours = (self._member_id, AlarmType.NOSPACE)
        if self._raising or ours in self._engine.alarms():
            return
        logger.warning("raising the NOSPACE alarm: %s", reason)
        self._raising = True
        self._propose(Alarm(AlarmAction.ACTIVATE, *ours), self._raised)

    def _raised(self, outcome: Outcome[AlarmResult]) -> None:
        self._raising = False
        if isinstance(outcome, KVError):
            logger.warning("could not raise the NOSPACE alarm: %s", outcome)
