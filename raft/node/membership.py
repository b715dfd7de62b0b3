"""Membership: the configuration as applied, the peers that follow from it, and this member's own removal.

A change is one log entry that holds both halves: the steps for consensus, and a command for the state
machine (names, addresses). The machine judges the command when the entry is applied, in log order and alike
on every member; only what it accepts changes the configuration. So of two concurrent changes never both
pass a rule that allows one of them. How a change gets to the leader: `change_queue`.

Which members belong to the cluster comes from the log and the backend only, and so do the peers of the
transport. A member that no applied entry names yet may connect if it shows the cluster's id, since its
addition may be in entries still to come; a removed one never may, and its handshake is answered so.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from raft.core.confchange import ConfChange, apply_change, members_of
from raft.core.core_errors import ConfChangeRefused
from raft.core.types import ConfState, Entry
from raft.node.change_queue import ChangeQueue
from raft.node.envelope import decode_envelope
from raft.node.replica import Replica
from raft.node.request_outcome import OnResult
from raft.node.state_machine import StateMachine
from raft.node.torn_tail_guard import TornTailGuard
from raft.transport.transport_protocol import Handshake

logger = logging.getLogger(__name__)

REMOVAL_TICKS = 10
"""How long streams to a removed member stay, so that its removal reaches it and its answers leave (as in
etcd)."""

REMOVAL_PATIENCE_TICKS = 600
"""How long a removed member waits at most for the others to confirm it: a minute with etcd's heartbeat."""

REMOVED_REASON = "the member has been permanently removed from the cluster"


class Membership:
    """Applies membership changes, keeps the transport's peers in line, and leaves after a removal."""

    def __init__(
        self,
        replica: Replica,
        machine: StateMachine,
        conf: ConfState,
        changes: ChangeQueue,
        torn_tail_guard: TornTailGuard,
        leave: Callable[[str], None],
    ) -> None:
        self._id = replica.member_id
        self._incarnation = replica.incarnation
        self._tick_s = replica.config.heartbeat_interval_ms / 1000
        self._core = replica.core
        self._transport = replica.transport
        self._inbox = replica.inbox
        self._loop = replica.loop
        self._machine = machine
        self.conf = conf
        """The configuration as of the newest applied entry."""
        self._changes = changes
        self._torn_tail_guard = torn_tail_guard
        self._leave = leave
        """Called when this member was removed and is not needed any more; perhaps more than once."""
        self._peers: dict[int, tuple[str, ...]] = {}
        """Peers the transport was given, with their URLs."""
        self._unlisted: dict[int, tuple[str, ...]] = {}
        """Members that connected and no applied entry names yet, with the URLs they gave."""
        self._connected_s: dict[int, float] = {}
        """Member to the time since when its streams have been open."""
        self._closed = False
        self._removed_by: dict[int, None] = {}
        """Members that answered that this one was removed."""
        self._leaving = False
        self.removed = False
        """This member was removed from the cluster, and its process is about to exit."""

    def change(self, change: ConfChange, command: bytes, on_result: OnResult) -> None:
        """Have the change made; `on_result(outcome, error)` is called once, with the machine's outcome.

        NotApplied errors are certain, LearnerNotReady and ChangeRefused among them; OutcomeUnknown ones
        are not. Never raises.
        """
        self._changes.propose(change, command, on_result)

    def connected_seconds(self) -> dict[int, float]:
        """Member to how long its streams have been open; disconnected members are left out."""
        now_s = self._loop.time()
        up = self._transport.connected_peers()
        return {member: now_s - since for member, since in self._connected_s.items() if member in up}

    def close(self) -> None:
        self._closed = True

    def connected(self, member: int) -> None:
        self._connected_s[member] = self._loop.time()

    def disconnected(self, member: int) -> None:
        if member in self._connected_s:
            self._connected_s[member] = self._loop.time()

    # -- applying

    def apply(self, entry: Entry) -> None:
        """Apply a committed change, in log order."""
        change = ConfChange.decode(entry.data)
        try:
            apply_change(self.conf, change)
            accepted = True
        except ConfChangeRefused:
            accepted = False
        outcome: object = None
        counter = 0
        if change.context:
            member, incarnation, counter, commands = decode_envelope(change.context)
            accepted, outcome = self._machine.apply_change(entry.index, entry.term, commands[0], accepted)
            if (member, incarnation) != (self._id, self._incarnation):
                counter = 0
        if accepted:
            self._adopt(self._core.apply_conf(change))
            logger.info("the cluster is now %s", self.conf)
            self.refresh()
            self._inbox.wake()  # the core may have messages about it
        if counter:
            self._changes.complete(counter, outcome)

    def installed(self, conf: ConfState) -> None:
        """The state is now that of a snapshot with this configuration."""
        self._adopt(conf)
        self.refresh()

    def _adopt(self, conf: ConfState) -> None:
        self.conf = conf
        self._torn_tail_guard.voters_changed((*conf.voters, *conf.voters_outgoing))

    # -- which members belong to the cluster

    def accepts(self, handshake: Handshake) -> bool:
        """Whether the sender of a handshake with our cluster id may connect: False once it was removed."""
        member = handshake.member_id
        if self._machine.is_removed(member):
            return False
        if member not in members_of(self.conf) and handshake.urls != self._unlisted.get(member):
            logger.info("member %x is not known here yet; listening to it", member)
            self._unlisted[member] = handshake.urls
            self.refresh()
        return True

    def refresh(self) -> None:
        """Bring the transport's peers in line with the machine."""
        wanted: dict[int, tuple[str, ...]] = {}
        for member in members_of(self.conf):
            urls = self._machine.peer_urls(member)
            if urls is not None:
                wanted[member] = urls
                self._unlisted.pop(member, None)
        for member, urls in list(self._unlisted.items()):
            if self._machine.is_removed(member):
                del self._unlisted[member]
            else:
                wanted.setdefault(member, urls)
        wanted.pop(self._id, None)
        for member in [member for member in self._peers if member not in wanted]:
            self._connected_s.pop(member, None)
            if not self._closed:  # messages under way to it may carry its removal
                self._loop.call_later(REMOVAL_TICKS * self._tick_s, self._transport.remove_peer, member)
        for member, urls in wanted.items():
            if self._peers.get(member) != urls:
                self._set_peer(member, urls)
        self._peers = wanted
        if self._machine.is_removed(self._id):
            self._remove()

    def _set_peer(self, member: int, urls: tuple[str, ...]) -> None:
        try:
            self._transport.set_peer(member, urls)
        except ValueError as error:  # such URLs come from a handshake only: those of a request are checked
            logger.warning("cannot reach member %x: %s", member, error)

    # -- the removal of this member

    def on_removed(self, by: int) -> None:
        """A member answers that this one was removed."""
        self._removed_by[by] = None
        self._remove()

    def tick(self) -> None:
        if self.removed:
            self._remove()

    def _remove(self) -> None:
        """This member was removed, and leaves when it is not needed any more.

        Until they have applied the removal, the others count its vote: if too many of them are down, they
        cannot elect without it. So it stays until most of the others have answered that it is removed; and
        until the changes it has forwarded are complete, its own removal perhaps, which a slow disk may not
        have let it apply yet. Those complete at their deadline at the latest.
        """
        if self._closed:
            return
        if not self.removed:
            self.removed = True
            logger.warning("this member was removed from the cluster")
            self._loop.call_later(REMOVAL_PATIENCE_TICKS * self._tick_s, self._leave, REMOVED_REASON)
        others = [voter for voter in self.conf.voters if voter != self._id]
        dismissed = sum(other in self._removed_by for other in others) > len(others) // 2
        if dismissed and not self._changes.in_flight and not self._leaving:
            self._leaving = True
            self._loop.call_soon(self._leave, REMOVED_REASON)
