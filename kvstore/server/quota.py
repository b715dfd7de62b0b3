"""The bound on stored bytes: who would exceed it is refused, and all members learn of it.

The check is made before proposing, on logical bytes,
so that members never disagree about it; the alarm it raises is replicated, and while it stands the
engine refuses everything that stores.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from kvstore.engine import Alarm, AlarmAction, AlarmType, Command, quota_cost_bytes
from kvstore.errors import KVError, NoSpace

if TYPE_CHECKING:
    from kvstore.server.local_member import LocalMember

logger = logging.getLogger("kvstore.server")


class Quota:
    """Admits writes while there is space."""

    def __init__(self, member: LocalMember, limit_bytes: int | None) -> None:
        self._member = member
        self.limit_bytes = limit_bytes
        """None for no limit."""
        self._raising = False
        """An alarm is on its way through the log, so that a flood of writes raises only one."""

    def admit(self, command: Command) -> None:
        """Raise NoSpace, and the alarm, when the command does not fit."""
        if self.limit_bytes is None:
            return
        cost = quota_cost_bytes(command)
        if cost == 0 or self._member.engine.logical_bytes + cost < self.limit_bytes:
            return
        self.raise_alarm(f"database space exceeded, quota {self.limit_bytes} bytes")
        raise NoSpace

    def raise_alarm(self, reason: str) -> None:
        """Tell all members that space is short here, once; `reason` is for the log."""
        member_id = self._member.member_id
        standing = self._member.engine.alarms()
        if self._raising or any(a.member_id == member_id and a.alarm == AlarmType.NOSPACE for a in standing):
            return
        logger.warning("raising the NOSPACE alarm: %s", reason)
        self._raising = True
        alarm = Alarm(action=AlarmAction.ACTIVATE, member_id=member_id, alarm=AlarmType.NOSPACE)
        self._member.propose(alarm, self._raised)

    def _raised(self, outcome: Any) -> None:
        self._raising = False
        if isinstance(outcome, KVError):
            logger.warning("could not raise the NOSPACE alarm: %s", outcome)
