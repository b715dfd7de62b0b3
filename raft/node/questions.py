"""Questions of the application to whoever leads, and the answers: opaque bytes both ways.

For what only the leader knows and no log entry holds, such as how much time it has counted. A question
is asked again whenever it may have been lost: at another leader, on a new stream, or after a silence. So
whoever answers must not mind hearing one twice, and gives no answer when it cannot vouch for it: then
the asker turns to the next leader, until its time is up.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from raft.node.config import RESEND_MS
from raft.node.errors import NodeError, NoLeader, ReadTimedOut, TooManyRequests
from raft.transport.protocol import Answer, Question

logger = logging.getLogger(__name__)

QUESTIONS_MAX = 1024
"""Questions without an answer. The application gathers what waits into one, so a few are usual."""

AnswerSettle = Callable[[bytes, NodeError | None], None]
"""Receives (answer, None) or (b"", error), exactly once, in the loop."""

Answerer = Callable[[bytes, Callable[[bytes], None]], None]
"""The leader's side: gets a question and what to call with the answer, at most once, or never."""


class _Asked:
    __slots__ = ("asked_s", "data", "deadline_s", "settle")

    def __init__(self, data: bytes, settle: AnswerSettle, deadline_s: float) -> None:
        self.data = data
        self.settle = settle
        self.deadline_s = deadline_s
        self.asked_s = 0.0
        """Loop time of the last time it was sent; only meaningful once it was."""


class Questions:
    """Every question of this process without an answer, and who answers those of others."""

    def __init__(
        self,
        *,
        member_id: int,
        boot_id: int,
        leader: Callable[[], int],
        clock: Callable[[], float],
        send: Callable[[int, Question | Answer], bool],
    ) -> None:
        self._member_id = member_id
        self._boot_id = boot_id
        self._leader = leader
        """The leader of the present term, 0 while none is known."""
        self._clock = clock
        self._send = send
        self.answerer: Answerer | None = None
        self._asked: dict[int, _Asked] = {}
        """By number, in the order of asking, so deadlines never decrease. At most QUESTIONS_MAX."""
        self._number = 0
        """Questions asked so far; never reused by this process."""

    def ask(self, data: bytes, settle: AnswerSettle, deadline_s: float) -> None:
        """Never raises."""
        if len(self._asked) >= QUESTIONS_MAX:
            settle(b"", TooManyRequests("too many questions without an answer"))
            return
        self._number += 1
        asked = self._asked[self._number] = _Asked(data, settle, deadline_s)
        self._put(self._number, asked)

    def on_question(self, member_id: int, question: Question) -> None:
        """Another member asks; it is answered only while this one leads."""
        if self.answerer is None or self._leader() != self._member_id:
            return
        boot_id, number = question.boot_id, question.number

        def reply(data: bytes) -> None:
            # One that cannot be sent is as good as lost: the asker asks again.
            self._send(member_id, Answer(boot_id, number, data))

        self.answerer(question.data, reply)

    def on_answer(self, answer: Answer) -> None:
        """Of whichever leader: a repeated question may have two."""
        if answer.boot_id == self._boot_id:
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
                _tell(asked.settle, b"", error)
            elif asked.asked_s + RESEND_MS / 1000 <= now_s:
                self._put(number, asked)

    def fail_all(self, error: NodeError) -> None:
        """The member stops: settle everything."""
        asked, self._asked = self._asked, {}
        for each in asked.values():
            _tell(each.settle, b"", error)

    def _put(self, number: int, asked: _Asked) -> None:
        asked.asked_s = self._clock()
        leader = self._leader()
        if leader == self._member_id:
            if self.answerer is not None:
                self.answerer(asked.data, lambda data: self._answered(number, data))
        elif leader:
            self._send(leader, Question(self._boot_id, number, asked.data))

    def _answered(self, number: int, data: bytes) -> None:
        asked = self._asked.pop(number, None)
        if asked is not None:
            _tell(asked.settle, data, None)


def _tell(settle: AnswerSettle, data: bytes, error: NodeError | None) -> None:
    try:
        settle(data, error)
    except Exception:  # an asker's bug must not stop the member or starve its neighbours
        logger.exception("a question's settle callback raised")
