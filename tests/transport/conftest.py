"""Both implementations behind one harness, so that one suite checks them against one contract."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio

from kvstore.peering import make_peer_stack
from raft.transport.liveness import HANDSHAKE_FORMAT_VERSION
from raft.transport.memory_transport import Network
from raft.transport.peer_transport import PeerTransport
from raft.transport.transport_protocol import (
    Handshake,
    HandshakeReply,
    PeerMessage,
    SnapshotOffer,
    SnapshotRefused,
    SnapshotSink,
    Transport,
)

CLUSTER_ID = 0xC1
DEADLINE_S = 10.0


class Recorder:
    """A receiver that records every call, and lets a test wait for one."""

    def __init__(self, member_id: int, incarnation: int) -> None:
        self.handshake = Handshake(
            format_version=HANDSHAKE_FORMAT_VERSION,
            cluster_id=CLUSTER_ID,
            member_id=member_id,
            disk_id=member_id << 8,
            incarnation=incarnation,
        )
        self.refusal = ""
        """The refusal in every answer to a handshake; empty to accept."""
        self.handshakes: list[Handshake] = []
        self.answers: list[tuple[int, HandshakeReply]] = []
        self.messages: list[tuple[int, int, PeerMessage]] = []
        self.connected: list[int] = []
        self.disconnected: list[int] = []
        self.dropped: list[tuple[int, PeerMessage]] = []
        self.on_each_message: Callable[[PeerMessage], None] = lambda message: None
        self._news = asyncio.Event()

    def on_handshake(self, handshake: Handshake) -> HandshakeReply:
        self.handshakes.append(handshake)
        self._news.set()
        return HandshakeReply(handshake=self.handshake, earlier_disk_known=False, refusal=self.refusal)

    def on_answer(self, member_id: int, answer: HandshakeReply) -> None:
        self.answers.append((member_id, answer))
        self._news.set()

    def on_message(self, member_id: int, incarnation: int, message: PeerMessage) -> None:
        self.messages.append((member_id, incarnation, message))
        self.on_each_message(message)
        self._news.set()

    def on_connected(self, member_id: int) -> None:
        self.connected.append(member_id)
        self._news.set()

    def on_disconnected(self, member_id: int) -> None:
        self.disconnected.append(member_id)
        self._news.set()

    def on_dropped(self, member_id: int, message: PeerMessage) -> None:
        self.dropped.append((member_id, message))
        self._news.set()

    async def until(
        self, condition: Callable[[], bool], deadline_s: float = DEADLINE_S, *, poll: bool = False
    ) -> None:
        """Wait until `condition` holds; evaluate it after every recorded call, or every 5 ms with `poll`."""
        async with asyncio.timeout(deadline_s):
            while not condition():
                self._news.clear()
                await (asyncio.sleep(0.005) if poll else self._news.wait())

    def on_snapshot(self, handshake: Handshake, offer: SnapshotOffer) -> SnapshotSink:
        raise SnapshotRefused("no snapshots here")

    @property
    def received(self) -> list[PeerMessage]:
        return [message for _, _, message in self.messages]


class Harness:
    """Starts members of one implementation and connects them."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.rng = random.Random(7)
        self.network = Network(asyncio.get_running_loop(), self.rng)
        self.urls: dict[int, tuple[str, ...]] = {}
        self.transports: list[Transport] = []

    def stack_of(self, member_id: int) -> str:
        """The gRPC stack of a member; `mixed` gives neighbours different ones."""
        return ("grpcio", "ngh2")[member_id % 2] if self.kind == "mixed" else self.kind

    async def member(
        self, member_id: int, incarnation: int, *, port: int = 0, cluster_id: int = CLUSTER_ID
    ) -> tuple[Transport, Recorder]:
        """Start a member that listens and has no peers yet."""
        recorder = Recorder(member_id, incarnation)
        if cluster_id != CLUSTER_ID:
            handshake = recorder.handshake
            recorder.handshake = Handshake(
                format_version=handshake.format_version,
                cluster_id=cluster_id,
                member_id=member_id,
                disk_id=handshake.disk_id,
                incarnation=incarnation,
            )
        transport: Transport
        if self.kind == "memory":
            transport = self.network.transport()
            self.urls[member_id] = (f"http://127.0.0.1:{member_id}",)
            await transport.start(recorder.handshake, recorder)
        else:
            listener = PeerTransport(
                (f"http://127.0.0.1:{port}",), stack=make_peer_stack(self.stack_of(member_id)), rng=self.rng
            )
            transport = listener
            await transport.start(recorder.handshake, recorder)
            self.urls[member_id] = (f"http://127.0.0.1:{listener.listen_ports[0]}",)
        self.transports.append(transport)
        return transport, recorder

    async def again(self, member_id: int, incarnation: int) -> tuple[Transport, Recorder]:
        """Start another incarnation of a closed member at the same address."""
        return await self.member(member_id, incarnation, port=int(self.urls[member_id][0].rsplit(":", 1)[1]))

    async def pair(self) -> tuple[Transport, Recorder, Transport, Recorder]:
        """Start members 1 and 2, incarnations 10 and 20, with both streams open."""
        first, first_recorder = await self.member(1, 10)
        second, second_recorder = await self.member(2, 20)
        first.set_peer(2, self.urls[2])
        second.set_peer(1, self.urls[1])
        await first_recorder.until(lambda: 2 in first.connected_peers())
        await second_recorder.until(lambda: 1 in second.connected_peers())
        return first, first_recorder, second, second_recorder


@pytest_asyncio.fixture(params=["memory", "grpcio", "ngh2", "mixed"])
async def harness(request: pytest.FixtureRequest) -> AsyncIterator[Harness]:
    made = Harness(request.param)
    yield made
    for transport in made.transports:
        await transport.close()


@pytest_asyncio.fixture(params=["grpcio", "ngh2"])
async def grpc_harness(request: pytest.FixtureRequest) -> AsyncIterator[Harness]:
    """Processes and sockets are real."""
    made = Harness(request.param)
    yield made
    for transport in made.transports:
        await transport.close()


@pytest_asyncio.fixture
async def grpcio_harness() -> AsyncIterator[Harness]:
    """For what only grpc.aio does."""
    made = Harness("grpcio")
    yield made
    for transport in made.transports:
        await transport.close()


@pytest_asyncio.fixture
async def http2_harness() -> AsyncIterator[Harness]:
    """For what grpc.aio cannot distinguish."""
    made = Harness("ngh2")
    yield made
    for transport in made.transports:
        await transport.close()


@pytest_asyncio.fixture
async def memory_harness() -> AsyncIterator[Harness]:
    made = Harness("memory")
    yield made
    for transport in made.transports:
        await transport.close()
