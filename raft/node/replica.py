"""What the parts of one running member share: its options, its core, its transport and its inbox."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from raft.core import RaftCore
from raft.core.ready import AppendWork
from raft.node.node_config import NodeConfig
from raft.storage.snapshot_store import SnapshotStore
from raft.storage.storage_protocol import Backend, Checkpoint, LogWriter, Recovered
from raft.transport.transport_protocol import PeerMessage, Transport

FromPeer = tuple[int, int, PeerMessage]
"""Member, its incarnation, message."""

InboxItem = FromPeer | AppendWork | Callable[[], None]


class Inbox:
    """Input of the core in order of arrival. Schedules at most one loop iteration at a time to take it.

    Only a loop iteration touches the core, so whatever happens elsewhere arrives here first.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.items: deque[InboxItem] = deque()
        """Bounded by INBOX_MAX for peer messages."""
        self.open = False
        """From the start of the member until it stops or fails; while False it answers no request."""
        self.scheduled = False
        """An iteration is scheduled that has not begun."""
        self.iterate: Callable[[], None] = lambda: None
        """The loop iteration; the node sets it."""

    def put(self, item: InboxItem) -> None:
        self.items.append(item)
        self.wake()

    def post(self, action: Callable[[], None]) -> None:
        """Have a loop iteration call `action`; no effect once the member stops."""
        if self.open:
            self.items.append(action)
            self.wake()

    def wake(self) -> None:
        """Schedule a loop iteration."""
        if not self.scheduled and self.open:
            self.scheduled = True
            self.loop.call_soon(self.iterate)


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberOptions:
    """What the program chooses for one incarnation of a member."""

    config: NodeConfig
    incarnation: int
    """64 fresh random bits."""
    rng: random.Random
    """Spreads timeouts; a seeded one repeats a run."""
    fatal: Callable[[str], None]
    """Called once with the reason, when the process must exit."""
    peer_urls: tuple[str, ...] = ()
    """Where other members reach this one."""
    bootstrap_voters: Sequence[int] | None = None
    """Voters of the running cluster that this member joins; None for a member that bootstraps it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberStorage:
    """What a member has on its disk when it starts."""

    recovered: Recovered
    checkpoint: Checkpoint
    """Of the backend."""
    log: LogWriter
    backend: Backend
    snapshot_store: SnapshotStore


@dataclass(frozen=True, slots=True)
class Replica:
    """One incarnation of a member: the context of every part in this package."""

    options: MemberOptions
    core: RaftCore
    transport: Transport
    inbox: Inbox

    @property
    def config(self) -> NodeConfig:
        return self.options.config

    @property
    def member_id(self) -> int:
        return self.options.config.member_id

    @property
    def incarnation(self) -> int:
        return self.options.incarnation

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        return self.inbox.loop
