"""What a sick disk of the log means for leading: a member that cannot write lets others lead.

*Stalled*: a sync has taken half the election timeout. Whatever makes followers believe in this leader
stops leaving, and leadership is handed on if somebody takes it; otherwise the silence ends it.
*Full*: there is no room for the log's next segment. Leadership is handed on; while nobody takes it, this
member goes on leading without proposals, because reads still can be served, and asks one after another:
who is asked may be sick as well.
In both states it does not campaign, not even when asked to; but a full one stands when nobody has led
for so long that those with room, if there were any, would: then the reads need it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from raft.core import RaftCore
from raft.core.messages import Message, MessageType
from raft.storage.storage_protocol import LogWriter

logger = logging.getLogger(__name__)

LEADERLESS_TICKS_MAX = 100
"""Ticks without a leader after which a member with a full disk stands too: ten of etcd's election
timeouts, so that members with room, each of which asks after one to two, come first."""

_SILENT_WHILE_STALLED = frozenset((MessageType.APPEND, MessageType.HEARTBEAT))
"""What makes followers believe in a leader."""


class DiskHealth:
    """The two sick states, and what they forbid."""

    def __init__(
        self, *, core: RaftCore, log: LogWriter, stall_s: float, post: Callable[[Callable[[], None]], None]
    ) -> None:
        self._core = core
        self._log = log
        self._stall_s = stall_s
        """Age of a sync in progress at which the disk counts as stalled."""
        self._post = post
        """Has an action done by the core's owner."""
        self.stalled = False
        self.full = False
        self._leaderless_ticks = 0
        """Ticks since a leader was known last."""
        self._asked: list[int] = []
        """Members that were asked to lead instead of this one, in this round through all of them."""

    @property
    def well(self) -> bool:
        return not (self.stalled or self.full)

    @property
    def may_campaign(self) -> bool:
        """Whether this member may stand: never while its disk hangs; with a full one if no other leads."""
        if self.stalled:
            return False
        alone = len(self._core.conf.voters) == 1
        return not self.full or alone or self._leaderless_ticks >= LEADERLESS_TICKS_MAX

    def drops_outbound(self, message: Message) -> bool:
        """Whether this message must not leave now."""
        return self.stalled and message.type in _SILENT_WHILE_STALLED

    def drops_inbound(self, message: Message) -> bool:
        """Whether this message must not be heeded now."""
        return message.type is MessageType.TIMEOUT_NOW and not self.well

    def look(self) -> None:
        """Once a tick, by the core's owner: has a sync begun to hang, or ended? Who is to lead?"""
        self._leaderless_ticks = 0 if self._core.leader else self._leaderless_ticks + 1
        if self._log.stalled_seconds() >= self._stall_s:
            self.on_stalled()
        elif self.stalled:
            logger.warning("the log sync has ended")
            self.stalled = False
        if not self.well:
            self._transfer_leadership()

    def on_stalled(self) -> None:
        if not self.stalled:
            logger.warning("a log sync hangs; this member stops leading until it ends")
            self.stalled = True
            self._post(self._transfer_leadership)

    def on_space(self, available: bool) -> None:
        was_full, self.full = self.full, not available
        if self.full and not was_full:
            logger.warning("no space left for the log; this member takes no proposals until there is")
            self._post(self._transfer_leadership)

    def _transfer_leadership(self) -> None:
        core, status = self._core, self._core.status()
        if status.transferee:
            return  # whoever was asked last has an election timeout to take over
        # No peers unless this member leads.
        others = [peer for peer in status.peers if peer.member != core.id and peer.member in core.conf.voters]
        if others:
            fresh = [peer for peer in others if peer.member not in self._asked]
            if not fresh:
                fresh, self._asked = others, []
            chosen = max(fresh, key=lambda peer: peer.match).member
            self._asked.append(chosen)
            core.transfer_leader(chosen)
