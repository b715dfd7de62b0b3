"""Leader RPC: requests of the application to the leader's application; opaque bytes both ways, repeatable.

For what only the leader knows and no log entry holds, such as how much time it has counted. A request is
resent whenever it may have been lost: to another leader, on a new stream, or after a silence. So an
answerer must tolerate a repeated request, and gives no reply when it cannot vouch for it: then the request
goes to the next leader, until its deadline.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from raft.node.node_config import RESEND_MS
from raft.node.node_errors import NodeError, NoLeader, ReadTimedOut, TooManyRequests
from raft.transport.transport_protocol import LeaderReply, LeaderRequest

logger = logging.getLogger(__name__)

LEADER_CALLS_MAX = 1024
"""Requests without a reply. The application gathers what waits into one, so a few are usual."""

OnReply = Callable[[bytes, NodeError | None], None]
"""Receives (reply, None) or (b"", error), exactly once, in the loop."""

Answerer = Callable[[bytes, Callable[[bytes], None]], None]
"""The leader's side: receives a request and the function to call with the reply, at most once, or never."""


class _Call:
    __slots__ = ("data", "deadline_s", "on_reply", "sent_s")

    def __init__(self, data: bytes, on_reply: OnReply, deadline_s: float) -> None:
        self.data = data
        self.on_reply = on_reply
        self.deadline_s = deadline_s
        self.sent_s = 0.0
        """Loop time of the latest sending."""


class LeaderRpc:
    """The calls of this incarnation without a reply, and the answerer of those of other members."""

    def __init__(
        self,
        *,
        member_id: int,
        incarnation: int,
        leader: Callable[[], int],
        clock: Callable[[], float],
        send: Callable[[int, LeaderRequest | LeaderReply], bool],
    ) -> None:
        self._member_id = member_id
        self._incarnation = incarnation
        self._leader = leader
        """The leader of the present term, 0 while none is known."""
        self._clock = clock
        self._send = send
        self.answerer: Answerer | None = None
        self._calls: dict[int, _Call] = {}
        """By number, oldest first, so deadlines never decrease. At most LEADER_CALLS_MAX."""
        self._number = 0
        """Calls so far; never reused by this incarnation."""

    def call(self, data: bytes, on_reply: OnReply, deadline_s: float) -> None:
        """Never raises."""
        if len(self._calls) >= LEADER_CALLS_MAX:
            on_reply(b"", TooManyRequests("too many leader calls without a reply"))
            return
        self._number += 1
        call = self._calls[self._number] = _Call(data, on_reply, deadline_s)
        self._put(self._number, call)

    def on_request(self, member_id: int, request: LeaderRequest) -> None:
        """Another member calls; it gets a reply only while this one leads."""
        if self.answerer is None or self._leader() != self._member_id:
            return
        incarnation, number = request.incarnation, request.number

        def reply(data: bytes) -> None:
            # One that cannot be sent is as good as lost: the caller resends its request.
            self._send(member_id, LeaderReply(incarnation, number, data))

        self.answerer(request.data, reply)

    def on_reply(self, reply: LeaderReply) -> None:
        """Of any leader: a repeated request may have two."""
        if reply.incarnation == self._incarnation:
            self._complete(reply.number, reply.data)

    def resend(self) -> None:
        """Another leader, or a new stream to it: every request may be lost."""
        for number, call in list(self._calls.items()):
            self._put(number, call)

    def tick(self) -> None:
        """Fail calls past their deadline, and resend after a silence."""
        now_s = self._clock()
        for number, call in list(self._calls.items()):
            if call.deadline_s <= now_s:
                del self._calls[number]
                error = ReadTimedOut("request timed out") if self._leader() else NoLeader("no leader")
                _call_back(call.on_reply, b"", error)
            elif call.sent_s + RESEND_MS / 1000 <= now_s:
                self._put(number, call)

    def fail_all(self, error: NodeError) -> None:
        """The member stops: complete everything."""
        calls, self._calls = self._calls, {}
        for call in calls.values():
            _call_back(call.on_reply, b"", error)

    def _put(self, number: int, call: _Call) -> None:
        call.sent_s = self._clock()
        leader = self._leader()
        if leader == self._member_id:
            if self.answerer is not None:
                self.answerer(call.data, lambda data: self._complete(number, data))
        elif leader:
            self._send(leader, LeaderRequest(self._incarnation, number, call.data))

    def _complete(self, number: int, data: bytes) -> None:
        call = self._calls.pop(number, None)
        if call is not None:
            _call_back(call.on_reply, data, None)


def _call_back(on_reply: OnReply, data: bytes, error: NodeError | None) -> None:
    try:
        on_reply(data, error)
    except Exception:  # a caller's bug must not stop the member or starve its neighbours
        logger.exception("the callback of a leader call raised")
