"""A member whose node applies at once, and a call that records its answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from google.protobuf.message import Message

from kvstore.engine import Engine, Member
from kvstore.errors import KVError
from kvstore.replica.replica import Limits
from kvstore.rpc import all_methods
from kvstore.rpc.call import Call, Inbound, Method, answer
from kvstore.server.backup_stream import Backups
from kvstore.server.local_member import LocalMember
from kvstore.server.membership_changes import MembershipChanges
from raft.core.confchange import ConfChange
from raft.core.types import Role
from raft.node import Answerer, NodeError, NodeEvent, OnReply

CLUSTER_ID = 0xCDF818194E3A8C32
MEMBER_ID = 0x8E9E05C52164694D


@dataclass
class FakeStatus:
    term: int
    leader: int
    commit: int
    applied: int
    backend_bytes: int


class FakeMembership:
    """Makes every change at once."""

    def __init__(self, node: FakeNode) -> None:
        self._node = node
        self.connected: dict[int, float] = {}
        self.made: list[ConfChange] = []

    def change(
        self, change: ConfChange, command: bytes, on_result: Callable[[object, NodeError | None], None]
    ) -> None:
        node = self._node
        if node.error is not None:
            on_result(None, node.error)
            return
        node.index += 1
        accepted, outcome = node.engine.apply_change(node.index, node.term, command, True)
        if accepted:
            self.made.append(change)
        on_result(outcome, None)

    def connected_seconds(self) -> dict[int, float]:
        return self.connected


class FakeTransfer:
    """Leadership moves at once."""

    def __init__(self, node: FakeNode) -> None:
        self._node = node

    def begin(self, to: int, on_result: Callable[[NodeError | None], object]) -> None:
        if self._node.error is None:
            self._node.leader = to
        on_result(self._node.error)


class FakeNode:
    """A single member: what is proposed is applied before `propose` returns, unless told otherwise."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.term = 3
        self.leader = MEMBER_ID
        self.index = 0
        self.error: NodeError | None = None
        self.held: list[Callable[[], None]] | None = None
        """When a list, settlements wait in it."""
        self.barriers = 0
        self.on_applied: Callable[[], None] = lambda: None
        self.membership = FakeMembership(self)
        self.transfer = FakeTransfer(self)

    def status(self) -> FakeStatus:
        return FakeStatus(self.term, self.leader, self.index, self.index, 4096)

    def propose(self, command: bytes, on_result: Callable[[object, NodeError | None], None]) -> None:
        def act() -> None:
            if self.error is not None:
                on_result(None, self.error)
                return
            self.index += 1
            (outcome,) = self.engine.apply(self.index, self.term, [command], True)
            on_result(outcome, None)
            self.on_applied()

        self._act(act)

    def read_barrier(self, on_result: Callable[[NodeError | None], None]) -> None:
        self.barriers += 1
        self._act(lambda: on_result(self.error))

    def subscribe(self, listener: Callable[[NodeEvent], None]) -> None:
        """It led before anybody asked."""
        listener(NodeEvent(self.term, self.leader, Role.LEADER))

    def answer_with(self, answerer: Answerer) -> None:
        self.answerer = answerer

    def call_leader(self, data: bytes, on_result: OnReply) -> None:
        if self.error is not None:
            on_result(b"", self.error)
        else:
            self.answerer(data, lambda answered: on_result(answered, None))

    def _act(self, act: Callable[[], None]) -> None:
        if self.held is None:
            act()
        else:
            self.held.append(act)


class RecordingCall(Call):
    """A caller that keeps every message it receives."""

    def __init__(self, metadata: dict[str, str] | None = None) -> None:
        super().__init__()
        self._metadata = metadata or {}
        self.result: Message | KVError | None = None
        self.sent: list[Message | bytes] = []
        self.has_space = True
        """What `has_room` answers."""
        self.finished = False
        self.held = False

    @property
    def peer(self) -> str:
        return "test"

    def metadata(self, key: str) -> str | None:
        return self._metadata.get(key)

    def time_remaining(self) -> float | None:
        return None

    def send(self, message: Message | bytes) -> None:
        self.sent.append(message)

    @property
    def has_room(self) -> bool:
        return self.has_space

    def drain(self) -> None:
        """Everything sent so far was read."""
        self.has_space = True
        if self._on_drained is not None:
            self._on_drained()

    def finish(self) -> None:
        self.finished = True

    def hold_requests(self) -> None:
        self.held = True

    def resume_requests(self) -> None:
        self.held = False

    def reply(self, message: Message) -> None:
        assert self.result is None, "answered twice"
        self.result = message

    def fail(self, error: KVError) -> None:
        assert self.result is None, "answered twice"
        self.result = error


class Bench:
    """One member with its services, called without a network."""

    def __init__(self, quota_bytes: int | None = None, request_bytes_max: int = 1_572_864) -> None:
        members = [Member(MEMBER_ID, "default", ("http://localhost:2380",))]
        self.engine = Engine(members=members)
        self.node = FakeNode(self.engine)
        self.member = LocalMember(
            node=self.node,
            engine=self.engine,
            cluster_id=CLUSTER_ID,
            member_id=MEMBER_ID,
            limits=Limits(request_bytes_max=request_bytes_max, txn_operations_max=128),
            quota_bytes=quota_bytes,
        )
        self.changes = MembershipChanges(
            self.member,
            lambda: self.node.membership,
            lambda: self.node.transfer,
            election_timeout_ms=1000,
            learners_max=1,
            strict=True,
        )
        self.backups = Backups(lambda: self.node.snapshots)
        rows = all_methods(self.member, self.changes, self.backups)
        self.methods: dict[str, Method] = {row.path: row for row in rows}

    def begin(self, path: str, request: Message, metadata: dict[str, str] | None = None) -> RecordingCall:
        """Make a call; its result is None while it waits."""
        call = RecordingCall(metadata)
        try:
            reply = answer(self.methods[path], request.SerializeToString(), call)
        except KVError as error:
            call.fail(error)
        else:
            if reply is not None:
                call.reply(reply)
        return call

    def call(self, path: str, request: Message, metadata: dict[str, str] | None = None) -> Message:
        """Make a call that is answered at once; raises its error."""
        result = self.begin(path, request, metadata).result
        assert result is not None, "the call still waits"
        if isinstance(result, KVError):
            raise result
        return result

    async def later(self, path: str, request: Message) -> Message:
        """Make a call that is answered within the next loop iterations; raises its error."""
        call = self.begin(path, request)
        while call.result is None:  # noqa: ASYNC110  what is waited for has no event
            await asyncio.sleep(0)
        if isinstance(call.result, KVError):
            raise call.result
        return call.result

    def open(self, path: str) -> tuple[RecordingCall, Inbound]:
        """A call with a stream of requests."""
        call = RecordingCall()
        opens = self.methods[path].opens
        assert opens is not None
        return call, opens(call)


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.fixture
def make_call() -> type[RecordingCall]:
    return RecordingCall


@pytest.fixture
def make_bench() -> type[Bench]:
    return Bench
