"""Handing leadership to a chosen member, with an end in every case.

The core stops proposing, brings the member up to date and tells it to stand at once; it gives up
after an election timeout. Here the caller is told how it ended: the member leads, or it certainly
will not by this attempt, or the time is up.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from raft.core import RaftCore
from raft.core.types import NO_NODE, Role
from raft.node.node_config import NodeConfig
from raft.node.node_errors import NodeError, Stopped, TransferFailed
from raft.transport.transport_protocol import Transport

OnTransfer = Callable[[NodeError | None], object]
"""Receives None when the member leads, else why not; exactly once, in the loop."""

WAITING_MAX = 64
"""Callers that wait for a transfer at once."""


def best_successor(core: RaftCore) -> int:
    """The other voter that holds most and was heard from lately; NO_NODE for none, or if we do not lead."""
    peers = [
        peer
        for peer in core.status().peers
        if peer.member != core.id and peer.recent_active and peer.member in core.conf.voters
    ]
    return max(peers, key=lambda peer: (peer.match, peer.member)).member if peers else NO_NODE


class Transfer:
    """Transfers asked for here and not ended. Owned by the core's owner."""

    def __init__(
        self,
        config: NodeConfig,
        core: RaftCore,
        transport: Transport,
        loop: asyncio.AbstractEventLoop,
        wake: Callable[[], None],
    ) -> None:
        self._config = config
        self._core = core
        self._transport = transport
        self._loop = loop
        self._wake = wake
        self._closed = False
        self._waiting: list[tuple[int, int, OnTransfer, float]] = []
        """(member that is to lead, term it was asked in, whom to tell, deadline)."""

    def begin(self, to: int, on_result: OnTransfer) -> None:
        """Have the voter `to` lead, within the request timeout. Only a leader may ask."""
        if self._closed:
            on_result(Stopped("server stopped"))
            return
        core = self._core
        if core.leader == to:
            on_result(None)
        elif core.role is not Role.LEADER or len(self._waiting) >= WAITING_MAX:
            on_result(TransferFailed("this member does not lead"))
        else:
            deadline_s = self._loop.time() + self._config.request_timeout_ms / 1000
            self._waiting.append((to, core.term, on_result, deadline_s))
            core.transfer_leader(to)
            self._wake()

    def look(self) -> None:
        """See whether any has ended; at each change of leader and each tick."""
        if not self._waiting:
            return
        core, now_s = self._core, self._loop.time()
        leads = core.role is Role.LEADER
        transferee = core.status().transferee if leads else NO_NODE
        connected = self._transport.connected_peers()
        still = []
        for waiting in self._waiting:
            to, term, on_result, deadline_s = waiting
            if core.leader == to:
                on_result(None)
            elif (
                now_s >= deadline_s
                or to not in connected
                or (leads and transferee != to)
                or (core.leader and core.term > term)
            ):
                on_result(TransferFailed("leadership was not taken over in time"))
            else:
                still.append(waiting)
        self._waiting = still

    def close(self) -> None:
        """The member stops."""
        self._closed = True
        waiting, self._waiting = self._waiting, []
        for _, _, on_result, _ in waiting:
            on_result(Stopped("server stopped"))

    async def give_up_leadership(self) -> None:
        """Before stopping: let the voter that holds most, and was heard from lately, lead instead of us.

        Ends within two election timeouts, whether it does or not.
        """
        successor = best_successor(self._core)
        if successor == NO_NODE:
            return
        ended = asyncio.Event()
        self.begin(successor, lambda error: ended.set())
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(ended.wait(), 2 * self._config.election_timeout_ms / 1000)
