"""The services of simulated members, without a network before them.

The product answers: methods of `kvstore.rpc` over `kvstore.server` over the member's event loop and engine.
Only the binding is a fake: requests and replies are bytes in memory. The client's end is
`simulated_connection`.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable
from functools import partial

from google.protobuf.message import Message

from kvstore.engine import Engine
from kvstore.errors import Code, KVError, OutcomeUnknown, RequestError
from kvstore.replica.replica import Limits
from kvstore.rpc import Call, Method, all_methods
from kvstore.rpc.binding import UNREAD_LOW_BYTES, UNREAD_LOW_MESSAGES, UNREAD_MESSAGES_MAX, SlowCaller
from kvstore.rpc.call import Inbound, answer, open_stream, receive
from kvstore.server.backup_stream import Backups
from kvstore.server.local_member import LocalMember
from kvstore.server.membership_changes import MembershipChanges
from raft.node import Node

ELECTION_TIMEOUT_MS = 1000
"""The node's default, which simulated members have."""


class ConnectionLost(OutcomeUnknown):
    """The process at the other end has ended, or answers no more."""

    code, text = Code.UNAVAILABLE, "connection reset"


class Unimplemented(RequestError):
    """As the bindings answer it."""

    code = Code.UNIMPLEMENTED

    def __init__(self, path: str) -> None:
        service, _, name = path.removeprefix("/").rpartition("/")
        super().__init__(f"unknown method {name} for service {service}")


class MemoryCall(Call):
    """One call from a simulated client. What the handler sends waits in `replies`.

    Its bounds are those of the product's bindings: a sender is asked to wait for a client that does not read.
    """

    __slots__ = (
        "_arrived",
        "_cancelled",
        "_is_congested",
        "_metadata",
        "_queue",
        "_unread_bytes",
        "deliver",
        "ended",
        "error",
        "holds",
        "queued_bytes",
        "replies",
    )

    def __init__(self, metadata: dict[str, str] | None = None) -> None:
        super().__init__()
        self._metadata = metadata or {}
        self.replies: deque[bytes] = deque()
        self._unread_bytes = 0
        """Length of all `replies`."""
        self._is_congested = False
        """The handler found no space, and waits until the client has read everything."""
        self.ended = False
        """No more replies will come."""
        self.error: KVError | None = None
        """Why it failed, None for success."""
        self.holds = False
        """The handler takes no requests for now."""
        self._queue: deque[bytes | None] = deque()
        """Requests that the handler has not taken; None is their end."""
        self.queued_bytes = 0
        """Length of all in `_queue`."""
        self.deliver: Callable[[bytes | None], None] = lambda data: None
        """Passes a request, or the end of requests, to the handler; set when the call is open."""
        self._cancelled = False
        self._arrived = asyncio.Event()

    @property
    def peer(self) -> str:
        return "memory"

    def metadata(self, key: str) -> str | None:
        return self._metadata.get(key)

    def time_remaining(self) -> float | None:
        return None

    @property
    def has_room(self) -> bool:
        space = len(self.replies) < UNREAD_LOW_MESSAGES and self._unread_bytes < UNREAD_LOW_BYTES
        self._is_congested |= not space
        return space

    def hold_requests(self) -> None:
        self.holds = True

    def resume_requests(self) -> None:
        if self.holds:
            self.holds = False
            asyncio.get_running_loop().call_soon(self.deliver_queued)

    def request(self, data: bytes | None) -> None:
        """One request has arrived, or None at the end of them."""
        self.queue(data)
        self.deliver_queued()

    def queue(self, data: bytes | None) -> None:
        """A request, or the end of them, is under way; `deliver_queued` when it arrives."""
        if not (self.gone or self.ended):
            self._queue.append(data)
            self.queued_bytes += len(data or b"")

    def deliver_queued(self) -> None:
        """Pass the requests that have arrived to the handler, as many as it takes."""
        while self._queue and not (self.holds or self.gone or self.ended):
            data = self._queue.popleft()
            self.queued_bytes -= len(data or b"")
            self.deliver(data)

    def send(self, message: Message | bytes) -> None:
        if self.gone or self.ended:
            return
        if len(self.replies) >= UNREAD_MESSAGES_MAX:
            self.fail(SlowCaller())
            return
        data = message if isinstance(message, bytes) else message.SerializeToString()
        self.replies.append(data)
        self._unread_bytes += len(data)
        self._arrived.set()

    def finish(self) -> None:
        self._end(None)

    def reply(self, message: Message) -> None:
        self.send(message)
        self._end(None)

    def fail(self, error: KVError) -> None:
        self._end(error)

    def _end(self, error: KVError | None) -> None:
        if not (self.gone or self.ended):
            self.ended, self.error = True, error
            self._forget_requests()
            self._arrived.set()

    def reset(self) -> None:
        """The server's process has ended: its earlier replies have arrived, and no others will."""
        self._end(ConnectionLost())
        self.mark_gone()

    def cancel(self) -> None:
        """The client has ended the call, and reads nothing any more."""
        if not self.ended:
            self._cancelled = True
            self.replies.clear()
            self._forget_requests()
            self.mark_gone()
            self._arrived.set()

    def _forget_requests(self) -> None:
        self._queue.clear()
        self.queued_bytes = 0

    async def next_reply(self) -> bytes | None:
        """The next reply, or None at the end of a successful call; raises the call's error after the last
        one, and CancelledError once the client has cancelled it."""
        while not self.replies:
            if self._cancelled:
                raise asyncio.CancelledError
            if self.ended:
                if self.error is not None:
                    raise self.error
                return None
            self._arrived.clear()
            await self._arrived.wait()
        data = self.replies.popleft()
        self._unread_bytes -= len(data)
        if self._is_congested and not self.replies:
            self._is_congested = False
            asyncio.get_running_loop().call_soon(self._drained)
        return data

    def _drained(self) -> None:
        if self._on_drained is not None and not (self.gone or self.ended):
            self._on_drained()


class MemberServices:
    """The services of one incarnation of a member."""

    def __init__(self, node: Node, engine: Engine, *, cluster_id: int, rng: random.Random) -> None:
        member = self.member = LocalMember(
            node=node,
            engine=engine,
            cluster_id=cluster_id,
            member_id=node.member_id,
            limits=Limits(request_bytes_max=1 << 20, txn_operations_max=128),
            quota_bytes=None,
        )
        loop = asyncio.get_running_loop()
        member.lessor.start(loop=loop, rng=rng, election_timeout_ms=ELECTION_TIMEOUT_MS)
        node.subscribe(lambda event: member.leader_loss.seen(event.leader))
        node.on_applied = member.watches.applied
        node.subscribe_installed(lambda index: member.watches.applied())
        changes = MembershipChanges(
            member,
            lambda: node.membership,
            lambda: node.transfer,
            election_timeout_ms=ELECTION_TIMEOUT_MS,
            learners_max=1,
            strict=True,
            new_member_id=lambda: rng.getrandbits(64) or 1,
        )
        self.methods = all_methods(member, changes, Backups(lambda: node.snapshots))
        self._rows: dict[str, Method] = {row.path: row for row in self.methods}
        self._calls: dict[MemoryCall, None] = {}
        """Calls that have not ended, in order of arrival."""

    def begin(self, path: str, data: bytes) -> MemoryCall:
        """A call with one request has arrived."""
        call = self.open(path)
        call.request(data)
        call.request(None)
        return call

    def open(self, path: str, call: MemoryCall | None = None) -> MemoryCall:
        """A call has arrived, which its client may have made already; its requests follow."""
        for old in [one for one in self._calls if one.ended or one.gone]:
            del self._calls[old]
        call = call or MemoryCall()
        self._calls[call] = None
        row = self._rows.get(path)
        try:
            if row is None:
                raise Unimplemented(path)
            if row.opens is None:
                call.deliver = partial(_answer, row, call)
            else:
                call.deliver = partial(_receive, row, open_stream(row, call), call)
        except KVError as error:
            call.fail(error)
        return call

    def stop(self) -> None:
        self.member.lessor.stop()
        self.member.leader_loss.close()
        calls, self._calls = self._calls, {}
        for call in calls:
            call.reset()


def _answer(row: Method, call: MemoryCall, data: bytes | None) -> None:
    """The only request of a call."""
    call.deliver = lambda data: None
    try:
        message = answer(row, data or b"", call)
    except KVError as error:
        call.fail(error)
    else:
        if message is not None:
            call.reply(message)


def _receive(row: Method, inbound: Inbound, call: MemoryCall, data: bytes | None) -> None:
    """One request of a stream, or the end of it."""
    try:
        receive(row, inbound, data)
    except KVError as error:
        call.fail(error)
