"""Leadership transfer to a chosen member, with an answer in every case.

The core stops proposing, brings the member up to date and sends it TIMEOUT_NOW; it gives up after an
election timeout. Here the caller is notified of the result: the member leads, or it certainly will not by
this attempt, or the deadline has passed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from raft.core import RaftCore
from raft.core.types import NO_NODE, Role
from raft.node.node_errors import NodeError, Stopped, TransferFailed
from raft.node.replica import Replica

OnTransfer = Callable[[NodeError | None], object]
"""Receives None when the member leads, else why not; exactly once, in the loop."""

WAITING_MAX = 64
"""Callers that wait for a transfer at once."""


def best_successor(core: RaftCore) -> int:
    """The other recently active voter that holds most; NO_NODE for none, or if we do not lead."""
    peers = [
        peer
        for peer in core.status().peers
        if peer.member != core.id and peer.recent_active and peer.member in core.conf.voters
    ]
    return max(peers, key=lambda peer: (peer.match, peer.member)).member if peers else NO_NODE


class Transfer:
    """Transfers begun here and not complete."""

    def __init__(self, replica: Replica) -> None:
        self._config = replica.config
        self._core = replica.core
        self._transport = replica.transport
        self._inbox = replica.inbox
        self._closed = False
        self._waiting: list[tuple[int, int, OnTransfer, float]] = []
        """(member that is to lead, term in which it began, callback, deadline)."""

    def begin(self, to: int, on_result: OnTransfer) -> None:
        """Have the voter `to` lead, within the request timeout. Fails unless this member leads."""
        if self._closed:
            on_result(Stopped("server stopped"))
            return
        core = self._core
        if core.leader == to:
            on_result(None)
        elif core.role is not Role.LEADER or len(self._waiting) >= WAITING_MAX:
            on_result(TransferFailed("this member does not lead"))
        else:
            deadline_s = self._inbox.loop.time() + self._config.request_timeout_ms / 1000
            self._waiting.append((to, core.term, on_result, deadline_s))
            core.transfer_leader(to)
            self._inbox.wake()

    def tick(self) -> None:
        """Complete those that succeeded or failed; at each change of leader and each tick."""
        if not self._waiting:
            return
        core, now_s = self._core, self._inbox.loop.time()
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
        self._closed = True
        waiting, self._waiting = self._waiting, []
        for _, _, on_result, _ in waiting:
            on_result(Stopped("server stopped"))

    async def give_up_leadership(self) -> None:
        """Before stopping: let the best successor lead instead of us.

        Returns within two election timeouts, whether it does or not.
        """
        successor = best_successor(self._core)
        if successor == NO_NODE:
            return
        ended = asyncio.Event()
        self.begin(successor, lambda error: ended.set())
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(ended.wait(), 2 * self._config.election_timeout_ms / 1000)
