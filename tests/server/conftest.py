"""Real members in the test's own loop: real disks, real gRPC, ports chosen by the system."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import grpc.aio
import pytest
import pytest_asyncio

import kvstore
from kvstore import Config, NodeHandle
from kvstore.devcluster.plan import free_ports
from kvstore.wire import rpc_pb2 as pb

REPLIES = {
    "KV/Range": pb.RangeResponse,
    "KV/RangeStream": pb.RangeStreamResponse,
    "KV/Put": pb.PutResponse,
    "KV/DeleteRange": pb.DeleteRangeResponse,
    "KV/Txn": pb.TxnResponse,
    "KV/Compact": pb.CompactionResponse,
    "Watch/Watch": pb.WatchResponse,
    "Cluster/MemberList": pb.MemberListResponse,
    "Cluster/MemberAdd": pb.MemberAddResponse,
    "Cluster/MemberRemove": pb.MemberRemoveResponse,
    "Cluster/MemberUpdate": pb.MemberUpdateResponse,
    "Cluster/MemberPromote": pb.MemberPromoteResponse,
    "Maintenance/MoveLeader": pb.MoveLeaderResponse,
    "Maintenance/Status": pb.StatusResponse,
    "Maintenance/Alarm": pb.AlarmResponse,
    "Lease/LeaseGrant": pb.LeaseGrantResponse,
    "Lease/LeaseRevoke": pb.LeaseRevokeResponse,
    "Lease/LeaseTimeToLive": pb.LeaseTimeToLiveResponse,
    "Lease/LeaseLeases": pb.LeaseLeasesResponse,
    "Lease/LeaseKeepAlive": pb.LeaseKeepAliveResponse,
}


class Member:
    """One member that can be stopped and started again on its data, and called."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.handle: NodeHandle | None = None
        self._stack = AsyncExitStack()
        self._channel: grpc.aio.Channel | None = None

    async def start(self) -> None:
        self.handle = await self._stack.enter_async_context(kvstore.serve(self.config))
        address = self.handle.client_urls[0].removeprefix("http://")
        self._channel = grpc.aio.insecure_channel(address)

    async def stop_serving(self) -> None:
        """Leave the member running its calls to their end: the caller's connection stays open."""
        await self._stack.aclose()

    async def stop(self) -> None:
        if self._channel is not None:
            await self._channel.close()
            self._channel = None
        await self._stack.aclose()

    async def ready(self) -> None:
        async with asyncio.timeout(15):
            await self.handle.wait_ready()

    async def call(self, method: str, request, *, deadline: float | None = 10, **options):
        invoke = self._channel.unary_unary(
            f"/etcdserverpb.{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=REPLIES[method].FromString,
        )
        return await invoke(request, timeout=deadline, **options)

    def stream(self, method: str, request, *, deadline: float | None = 10):
        """A call whose reply is a stream."""
        invoke = self._channel.unary_stream(
            f"/etcdserverpb.{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=REPLIES[method].FromString,
        )
        return invoke(request, timeout=deadline)

    async def call_any(self, method: str, request, reply_type, *, deadline: float | None = 10):
        """A call of any service."""
        invoke = self._channel.unary_unary(
            f"/{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=reply_type.FromString,
        )
        return await invoke(request, timeout=deadline)

    def stream_any(self, method: str, request, reply_type, *, deadline: float | None = 30):
        """A call of any service whose reply is a stream."""
        invoke = self._channel.unary_stream(
            f"/{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=reply_type.FromString,
        )
        return invoke(request, timeout=deadline)

    def both_ways(self, method: str, request_type, *, deadline: float | None = 10, **options):
        """A call with a stream in either direction."""
        invoke = self._channel.stream_stream(
            f"/etcdserverpb.{method}",
            request_serializer=request_type.SerializeToString,
            response_deserializer=REPLIES[method].FromString,
        )
        return invoke(timeout=deadline, **options)

    async def put(self, key: bytes, value: bytes = b"v", lease: int = 0, **options):
        return await self.call("KV/Put", pb.PutRequest(key=key, value=value, lease=lease), **options)

    async def get(self, key: bytes, serializable: bool = False, **options) -> bytes | None:
        request = pb.RangeRequest(key=key, serializable=serializable)
        answered = await self.call("KV/Range", request, **options)
        return answered.kvs[0].value if answered.kvs else None


class Members:
    """Members by name; all are stopped in the end."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.all: list[Member] = []

    def add(self, **options) -> Member:
        """One more member, as configured, not started."""
        made = Member(Config(**options))
        self.all.append(made)
        return made

    def plan(self, count: int, **options) -> list[Member]:
        """Members of one cluster, not started."""
        names = [chr(ord("a") + number) for number in range(count)]
        peers = [f"http://127.0.0.1:{port}" for port in free_ports(count)]
        made = [
            Member(
                Config(
                    **{
                        "name": name,
                        "data_dir": str(self.directory / name),
                        "listen_peer_urls": peer,
                        "listen_client_urls": "http://127.0.0.1:0",
                        "listen_metrics_urls": "http://127.0.0.1:0",
                        # A fifth of the defaults, so that elections do not make up the tests' time.
                        "heartbeat_interval": 20,
                        "election_timeout": 200,
                        "initial_cluster": ",".join(f"{n}={p}" for n, p in zip(names, peers, strict=True)),
                        **options,
                    }
                )
            )
            for name, peer in zip(names, peers, strict=True)
        ]
        self.all += made
        return made

    async def start(self, count: int, **options) -> list[Member]:
        """A running, joined cluster."""
        made = self.plan(count, **options)
        await asyncio.gather(*(member.start() for member in made))
        await asyncio.gather(*(member.ready() for member in made))
        return made


async def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    """Wait for a condition, looking often; TimeoutError when it does not come."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  what is waited for has no event
            await asyncio.sleep(0.01)


@pytest_asyncio.fixture
async def members(tmp_path: Path) -> AsyncIterator[Members]:
    made = Members(tmp_path)
    yield made
    # Each to its end, even if another's stop fails: one cancelled with the loop leaves its threads.
    ends = await asyncio.gather(*(member.stop() for member in made.all), return_exceptions=True)
    for end in ends:
        if end is not None:
            raise end


@pytest.fixture(name="until")
def until_fixture() -> Callable[..., object]:
    return until
