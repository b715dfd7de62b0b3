"""Questions of the application to whoever leads, and the answers: opaque bytes both ways.

For what only the leader knows and no log entry holds, such as how much time it has counted. A question
is asked again whenever it may have been lost: at another leader, on a new stream, or after a silence. So
whoever answers must not mind hearing one twice, and gives no answer when it cannot vouch for it: then
the asker turns to the next leader, until its time is up.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from raft.node.node_config import RESEND_MS
from raft.node.node_errors import NodeError, NoLeader, ReadTimedOut, TooManyRequests
from raft.transport.transport_protocol import LeaderReply, LeaderRequest

logger = logging.getLogger(__name__)

LEADER_CALLS_MAX = 1024
"""Questions without an answer. The application gathers what waits into one, so a few are usual."""

OnReply = Callable[[bytes, NodeError | None], None]
"""Receives (answer, None) or (b"", error), exactly once, in the loop."""

Answerer = Callable[[bytes, Callable[[bytes], None]], None]
"""The leader's side: gets a question and what to call with the answer, at most once, or never."""


class _Asked:
    __slots__ = ("asked_s", "data", "deadline_s", "on_result")

    def __init__(self, data: bytes, on_result: OnReply, deadline_s: float) -> None:
        self.data = data
        self.on_result = on_result
        self.deadline_s = deadline_s
        self.asked_s = 0.0
        """Loop time of the last time it was sent; only meaningful once it was."""


class LeaderRpc:
    """Every question of this process without an answer, and who answers those of others."""

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
        self._asked: dict[int, _Asked] = {}
        """By number, in the order of asking, so deadlines never decrease. At most LEADER_CALLS_MAX."""
        self._number = 0
        """Questions asked so far; never reused by this process."""

    def ask(self, data: bytes, on_result: OnReply, deadline_s: float) -> None:
        """Never raises."""
        if len(self._asked) >= LEADER_CALLS_MAX:
            on_result(b"", TooManyRequests("too many questions without an answer"))
            return
        self._number += 1
        asked = self._asked[self._number] = _Asked(data, on_result, deadline_s)
        self._put(self._number, asked)

    def on_leader_request(self, member_id: int, leader_request: LeaderRequest) -> None:
        """Another member asks; it is answered only while this one leads."""
        if self.answerer is None or self._leader() != self._member_id:
            return
        incarnation, number = leader_request.incarnation, leader_request.number

        def reply(data: bytes) -> None:
            # One that cannot be sent is as good as lost: the asker asks again.
            self._send(member_id, LeaderReply(incarnation, number, data))

        self.answerer(leader_request.data, reply)

    def on_answer(self, answer: LeaderReply) -> None:
        """Of whichever leader: a repeated question may have two."""
        if answer.incarnation == self._incarnation:
            self._answered(answer.number, answer.data)

    def ask_again(self) -> None:
        """Another leader, or a new stream to it: whatever was asked may be lost."""
        for number, asked in list(self._asked.items()):
            self._put(number, asked)

    def sweep(self) -> None:
        """Give up what has no time left, and ask again after a silence."""
        now_s = self._clock()
        for number, asked in list(self._asked.items()):
            if asked.deadline_s <= now_s:
                del self._asked[number]
                error = ReadTimedOut("request timed out") if self._leader() else NoLeader("no leader")
                _tell(asked.on_result, b"", error)
            elif asked.asked_s + RESEND_MS / 1000 <= now_s:
                self._put(number, asked)

    def fail_all(self, error: NodeError) -> None:
        """The member stops: settle everything."""
        asked, self._asked = self._asked, {}
        for each in asked.values():
            _tell(each.on_result, b"", error)

    def _put(self, number: int, asked: _Asked) -> None:
        asked.asked_s = self._clock()
        leader = self._leader()
        if leader == self._member_id:
            if self.answerer is not None:
                self.answerer(asked.data, lambda data: self._answered(number, data))
        elif leader:
            self._send(leader, LeaderRequest(self._incarnation, number, asked.data))

    def _answered(self, number: int, data: bytes) -> None:
        asked = self._asked.pop(number, None)
        if asked is not None:
            _tell(asked.on_result, data, None)


def _tell(on_result: OnReply, data: bytes, error: NodeError | None) -> None:
    try:
        on_result(data, error)
    except Exception:  # an asker's bug must not stop the member or starve its neighbours
        logger.exception("a question's settle callback raised")
