"""What a faulty disk of the log means for leading: a member that cannot write lets others lead.

*Stalled*: a sync has taken half the election timeout. The messages that make followers believe in this
leader stop leaving, and it begins a transfer of leadership; if no member takes over, the silence ends it.
*Full*: there is no space for the log's next segment. It begins a transfer; while no member takes over, this
one goes on leading without proposals, because reads still can be served, and tries one successor after
another: their disks may be faulty as well.
In both states it does not campaign, not even on TIMEOUT_NOW; but a full one campaigns when there has been
no leader for so long that members with space, if there were any, would have: then the reads need it.
"""

from __future__ import annotations

import logging

from raft.core.messages import Message, MessageType
from raft.node.replica import Replica
from raft.storage.storage_protocol import LogWriter

logger = logging.getLogger(__name__)

LEADERLESS_TICKS_MAX = 100
"""Ticks without a leader after which a member with a full disk campaigns too: ten of etcd's election
timeouts, so that members with space, each of which campaigns after one to two, come first."""

_SILENT_WHILE_STALLED = frozenset((MessageType.APPEND, MessageType.HEARTBEAT))
"""What makes followers believe in a leader."""


class DiskHealth:
    """The two faulty states, and what they forbid."""

    def __init__(self, replica: Replica, log: LogWriter) -> None:
        self._core = replica.core
        self._post = replica.inbox.post
        self._log = log
        self._stall_s = replica.config.election_timeout_ms / 2000
        """Age of a sync in progress at which the disk counts as stalled."""
        self.stalled = False
        self.full = False
        self._leaderless_ticks = 0
        """Ticks since a leader was last known."""
        self._tried: list[int] = []
        """Members to which a transfer was begun, in this round through all of them."""

    @property
    def well(self) -> bool:
        return not (self.stalled or self.full)

    @property
    def may_campaign(self) -> bool:
        """Whether this member may campaign: never while its disk hangs; with a full one if no other leads."""
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

    def tick(self) -> None:
        """Detect a sync that has begun to hang, or has returned, and begin a transfer if one is needed."""
        self._leaderless_ticks = 0 if self._core.leader else self._leaderless_ticks + 1
        if self._log.stalled_seconds() >= self._stall_s:
            self.on_stalled()
        elif self.stalled:
            logger.warning("the log sync has returned")
            self.stalled = False
        if not self.well:
            self._transfer_leadership()

    def on_stalled(self) -> None:
        if not self.stalled:
            logger.warning("a log sync hangs; this member stops leading until it returns")
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
            return  # the latest one has an election timeout to take over
        # No peers unless this member leads.
        others = [peer for peer in status.peers if peer.member != core.id and peer.member in core.conf.voters]
        if others:
            fresh = [peer for peer in others if peer.member not in self._tried]
            if not fresh:
                fresh, self._tried = others, []
            chosen = max(fresh, key=lambda peer: peer.match).member
            self._tried.append(chosen)
            core.transfer_leader(chosen)
