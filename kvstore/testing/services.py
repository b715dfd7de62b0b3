"""The services of simulated members, and clients of them, without a network between.

The product answers: methods of `kvstore.rpc` over `kvstore.server` over the member's event loop and engine.
Only the connection is a fake: requests and replies travel as bytes through the loop, and a call to a process
that dies fails like one whose connection broke.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Sequence
from typing import Protocol

from google.protobuf.message import Message

from kvstore.client import Method, TimedOut
from kvstore.client.methods import Reply, Request
from kvstore.client.outcomes import error_from_status
from kvstore.engine import Engine
from kvstore.errors import Code, KVError, OutcomeUnknown, Unavailable
from kvstore.replica.replica import Limits
from kvstore.rpc import Call, all_methods
from kvstore.rpc import Method as Row
from kvstore.rpc.call import Inbound, answer, open_stream, outcome_of, receive
from kvstore.server.backup_stream import Backups
from kvstore.server.local_member import LocalMember
from kvstore.server.membership_changes import MembershipChanges
from raft.node import Node

ELECTION_TIMEOUT_MS = 1000
"""The node's default, which simulated members have."""

ROUND_PAUSE_S = 0.05
"""Between two rounds over all members, when none takes the call."""

_NEVER_SENT = "failed to connect to all addresses"


class MemoryCall(Call):
    """One call from a simulated client. What the handler sends waits in `replies`."""

    __slots__ = ("_arrived", "_metadata", "ended", "error", "replies")

    def __init__(self, metadata: dict[str, str] | None = None) -> None:
        super().__init__()
        self._metadata = metadata or {}
        self.replies: deque[bytes] = deque()
        self.ended = False
        """No more replies will come."""
        self.error: KVError | None = None
        """Why it failed, None for success."""
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
        return True

    def hold_requests(self) -> None:
        """The client sends so little that nothing needs to be held."""

    def resume_requests(self) -> None:
        """See `hold_requests`."""

    def send(self, message: Message | bytes) -> None:
        if not (self.gone or self.ended):
            data = message if isinstance(message, bytes) else message.SerializeToString()
            self.replies.append(data)
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
            self._arrived.set()

    def reset(self) -> None:
        """The server's process has ended: its earlier replies have arrived, and no others will."""
        self._end(OutcomeUnknown("connection reset"))
        self.mark_gone()

    async def next_reply(self) -> bytes | None:
        """The next reply, or None at the end of a successful call; raises the call's error after the last
        one."""
        while not self.replies:
            if self.ended:
                if self.error is not None:
                    raise self.error
                return None
            self._arrived.clear()
            await self._arrived.wait()
        return self.replies.popleft()


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
        )
        self._rows: dict[str, Row] = {
            row.path: row for row in all_methods(member, changes, Backups(lambda: node.snapshots))
        }
        self._calls: dict[MemoryCall, None] = {}
        """Calls that have not ended, in order of arrival."""

    def begin(self, path: str, data: bytes) -> MemoryCall:
        row = self._rows[path]
        call = self._new_call()
        try:
            message = answer(row, data, call)
        except KVError as error:
            call.fail(error)
        else:
            if message is not None:
                call.reply(message)
        return call

    def open(self, path: str, metadata: dict[str, str] | None = None) -> tuple[MemoryCall, Inbound | None]:
        """A call whose requests are a stream has arrived; pass them to `request`."""
        call = self._new_call(metadata)
        try:
            return call, open_stream(self._rows[path], call)
        except KVError as error:
            call.fail(error)
            return call, None

    def request(self, path: str, call: MemoryCall, inbound: Inbound, data: bytes | None) -> None:
        """One request of a stream, or None at its end."""
        try:
            receive(self._rows[path], inbound, data)
        except KVError as error:
            call.fail(error)

    def stop(self) -> None:
        self.member.lessor.stop()
        self.member.leader_loss.close()
        calls, self._calls = self._calls, {}
        for call in calls:
            call.reset()

    def _new_call(self, metadata: dict[str, str] | None = None) -> MemoryCall:
        for old in [call for call in self._calls if call.ended or call.gone]:
            del self._calls[old]
        call = MemoryCall(metadata)
        self._calls[call] = None
        return call


class Servers(Protocol):
    def services_of(self, member_id: int) -> MemberServices | None:
        """A member's services; None while it is down or has failed."""

    def paused(self, member_id: int) -> bool:
        """Whether the member is paused: it accepts requests and answers later."""


class SimulatedConnection:
    """A client's connection to some members: like `kvstore.client.Connection`, in memory.

    With the same guarantees: a call returns its reply or raises one error in time, and a request of unknown
    outcome is never retried.
    """

    def __init__(self, servers: Servers, members: Sequence[int], *, timeout_s: float) -> None:
        self._servers = servers
        self._members = tuple(members)
        self._timeout_s = timeout_s
        self._preferred = 0

    async def call(self, method: Method[Request, Reply], request: Request) -> Reply:
        """Make one call. Raises `kvstore.errors.KVError`."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout_s
        last: Unavailable = TimedOut()
        while (remaining_s := deadline - loop.time()) > 0:
            member_id = self._members[self._preferred]
            if self._servers.paused(member_id):
                await asyncio.sleep(ROUND_PAUSE_S)  # the request waits in the process's socket
                continue
            try:
                services = self._servers.services_of(member_id)
                if services is None:
                    raise Unavailable(_NEVER_SENT)
                return await self._once(services, method, request, remaining_s)
            except Unavailable as error:  # certainly not applied
                if error.code is not Code.UNAVAILABLE:
                    raise
                last = error
            self._preferred = (self._preferred + 1) % len(self._members)
            await asyncio.sleep(ROUND_PAUSE_S)
        raise last

    async def _once(
        self, services: MemberServices, method: Method[Request, Reply], request: Request, timeout_s: float
    ) -> Reply:
        call = services.begin(method.path, request.SerializeToString())
        try:
            data = await asyncio.wait_for(call.next_reply(), timeout_s)
        except TimeoutError:
            text = "context deadline exceeded"
            raise (OutcomeUnknown(text) if method.changes else TimedOut(text)) from None
        except KVError as error:
            raise error_from_status(
                error.code, str(error), outcome_of(error), changes=method.changes
            ) from None
        finally:
            call.mark_gone()
        assert data is not None, "a unary call has a reply"
        return method.reply.FromString(data)
