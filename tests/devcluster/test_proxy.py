"""The proxy is transparent, passes ends on as they were, and can be as silent as a pulled cable."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from kvstore.devcluster.dialers import process_of
from kvstore.devcluster.plan import HOST, free_ports
from kvstore.devcluster.proxy import Partition, PeerProxy

pytestmark = pytest.mark.asyncio

DIALLER = 1
TARGET = 2
SILENCE_S = 0.15
"""How long a test listens before it calls something silent; loopback answers a hundred times faster."""


class Target:
    """A member's peer port: echoes, and keeps every connection for the test to do things to."""

    def __init__(self) -> None:
        self.accepted: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
        self.server: asyncio.Server | None = None
        self.port = 0

    async def start(self) -> None:
        self.server = await asyncio.start_server(self._accept, HOST, self.port)
        self.port = self.server.sockets[0].getsockname()[1]

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted.put_nowait((reader, writer))

    async def next(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.wait_for(self.accepted.get(), 5)


@asynccontextmanager
async def proxied(source: int | None = DIALLER) -> AsyncIterator[tuple[PeerProxy, Target, Partition]]:
    target = Target()
    await target.start()
    partition = Partition()
    proxy = PeerProxy(
        number=TARGET,
        listen_port=0,
        target_port=target.port,
        partition=partition,
        who_dials=lambda port, listen_port: source,
    )
    await proxy.start()
    try:
        yield proxy, target, partition
    finally:
        await proxy.stop()
        assert target.server is not None
        target.server.close()


async def dial(proxy: PeerProxy) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection(HOST, proxy.listen_port)


def reset(writer: asyncio.StreamWriter) -> None:
    raw = writer.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110  the proxy has no event for its inner state
            await asyncio.sleep(0.001)


async def assert_handshake_arrives(target: Target) -> None:
    far_reader, far_writer = await target.next()
    assert await asyncio.wait_for(far_reader.readexactly(5), 5) == b"greet"
    far_writer.close()


async def assert_silent(reader: asyncio.StreamReader) -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reader.read(1), SILENCE_S)


async def test_bytes_pass_both_ways() -> None:
    async with proxied() as (proxy, target, _):
        reader, writer = await dial(proxy)
        writer.write(b"requests")
        far_reader, far_writer = await target.next()
        assert await asyncio.wait_for(far_reader.readexactly(8), 5) == b"requests"
        far_writer.write(b"answer")
        assert await asyncio.wait_for(reader.readexactly(6), 5) == b"answer"
        writer.close()
        far_writer.close()


async def test_more_than_all_buffers_passes_unchanged() -> None:
    payload = os.urandom(1 << 20) * 16
    async with proxied() as (proxy, target, _):
        _, writer = await dial(proxy)
        writer.write(payload)
        writer.write_eof()
        far_reader, far_writer = await target.next()
        received = await asyncio.wait_for(far_reader.read(-1), 20)
        assert received == payload
        writer.close()
        far_writer.close()


@pytest.mark.parametrize("dialler_ends", [True, False])
async def test_an_orderly_end_passes_after_the_bytes_before_it(dialler_ends: bool) -> None:
    async with proxied() as (proxy, target, _):
        near = await dial(proxy)
        far = await target.next()
        (_, ending), (reader, other) = (near, far) if dialler_ends else (far, near)
        ending.write(b"last words")
        ending.close()
        assert await asyncio.wait_for(reader.read(-1), 5) == b"last words"
        other.close()


@pytest.mark.parametrize("dialler_resets", [True, False])
async def test_a_reset_passes_as_a_reset(dialler_resets: bool) -> None:
    async with proxied() as (proxy, target, _):
        near = await dial(proxy)
        far = await target.next()
        (_, ending), (reader, other) = (near, far) if dialler_resets else (far, near)
        reset(ending)
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(1), 5)
        other.close()


async def test_a_dead_target_resets_the_dialler() -> None:
    async with proxied() as (proxy, target, _):
        assert target.server is not None
        target.server.close()
        await target.server.wait_closed()
        reader, writer = await dial(proxy)
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(1), 5)
        writer.close()


async def test_a_partition_holds_an_open_connection_in_silence_until_healed() -> None:
    async with proxied() as (proxy, target, partition):
        reader, writer = await dial(proxy)
        far_reader, far_writer = await target.next()
        partition.set_groups([[DIALLER], [TARGET]])
        writer.write(b"to the target")
        far_writer.write(b"to the dialler")
        await assert_silent(far_reader)
        await assert_silent(reader)
        partition.heal()
        assert await asyncio.wait_for(far_reader.readexactly(13), 5) == b"to the target"
        assert await asyncio.wait_for(reader.readexactly(14), 5) == b"to the dialler"
        writer.close()
        far_writer.close()


@pytest.mark.parametrize("speaker", [DIALLER, TARGET])
async def test_a_pair_partitioned_one_way_still_hears_the_other_way(speaker: int) -> None:
    async with proxied() as (proxy, target, partition):
        near = await dial(proxy)
        far = await target.next()
        (silenced_reader, silenced_writer), (reader, writer) = (
            (near, far) if speaker == DIALLER else (far, near)
        )
        partition.set_links([(speaker, TARGET if speaker == DIALLER else DIALLER)])
        silenced_writer.write(b"unheard")
        writer.write(b"heard")
        assert await asyncio.wait_for(silenced_reader.readexactly(5), 5) == b"heard"
        await assert_silent(reader)
        assert any(connection.held_bytes for connection in proxy.connections)
        partition.heal()
        assert await asyncio.wait_for(reader.readexactly(7), 5) == b"unheard"
        silenced_writer.close()
        writer.close()


async def test_a_slow_link_is_late_and_in_order_and_its_end_comes_last() -> None:
    async with proxied() as (proxy, target, partition):
        _, writer = await dial(proxy)
        far_reader, far_writer = await target.next()
        partition.set_delays({(DIALLER, TARGET): 2 * SILENCE_S})
        writer.write(b"first ")
        writer.write(b"second")
        writer.close()
        await assert_silent(far_reader)
        assert await asyncio.wait_for(far_reader.read(-1), 5) == b"first second"
        far_writer.close()


@pytest.mark.parametrize("abrupt", [True, False])
async def test_an_end_during_a_partition_is_heard_only_after_it(abrupt: bool) -> None:
    async with proxied() as (proxy, target, partition):
        reader, writer = await dial(proxy)
        _, far_writer = await target.next()
        partition.set_groups([[DIALLER], [TARGET]])
        if abrupt:
            reset(far_writer)
        else:
            far_writer.close()
        await assert_silent(reader)
        partition.heal()
        if abrupt:
            with pytest.raises(ConnectionResetError):
                await asyncio.wait_for(reader.read(1), 5)
        else:
            assert await asyncio.wait_for(reader.read(1), 5) == b""
        writer.close()


async def test_a_write_that_fails_during_a_partition_notifies_neither_side() -> None:
    async with proxied() as (proxy, target, partition):
        reader, writer = await dial(proxy)
        _, far_writer = await target.next()
        far_writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        far_writer.transport.pause_reading()  # type: ignore[attr-defined]  # a real transport has it
        writer.write(bytes(32 << 20))  # more than the kernel takes: the proxy has bytes waiting to be written
        await until(lambda: any(connection.target._choked for connection in proxy._connections))
        partition.set_groups([[DIALLER], [TARGET]])
        reset(far_writer)
        await assert_silent(reader)
        partition.heal()
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(1), 5)
        writer.transport.abort()


async def test_a_new_connection_during_a_partition_is_accepted_and_held() -> None:
    async with proxied() as (proxy, target, partition):
        partition.set_groups([[DIALLER], [TARGET]])
        reader, writer = await dial(proxy)
        writer.write(b"greet")
        await assert_silent(reader)
        assert target.accepted.empty()
        partition.heal()
        await assert_handshake_arrives(target)
        writer.close()


async def test_pairs_on_the_same_side_are_not_disturbed() -> None:
    async with proxied() as (proxy, target, partition):
        _, writer = await dial(proxy)
        far_reader, far_writer = await target.next()
        partition.set_groups([[DIALLER, TARGET], [3]])
        writer.write(b"greet")
        assert await asyncio.wait_for(far_reader.readexactly(5), 5) == b"greet"
        writer.close()
        far_writer.close()


async def test_an_unrecognised_dialler_is_held_during_any_partition() -> None:
    async with proxied(source=None) as (proxy, target, partition):
        partition.set_groups([[1], [3]])
        _, writer = await dial(proxy)
        writer.write(b"greet")
        await asyncio.sleep(SILENCE_S)
        assert target.accepted.empty()
        partition.heal()
        await assert_handshake_arrives(target)
        writer.close()


async def test_stopping_ends_everything_even_what_is_held() -> None:
    async with proxied() as (proxy, target, partition):
        reader, writer = await dial(proxy)
        _, far_writer = await target.next()
        partition.set_groups([[DIALLER], [TARGET]])
        held_reader, held_writer = await dial(proxy)
        await until(lambda: len(proxy._connections) == 2)
        await proxy.stop()
        for side in (reader, held_reader):
            with pytest.raises(ConnectionResetError):
                await asyncio.wait_for(side.read(1), 5)
        for ended in (writer, held_writer, far_writer):
            ended.close()


async def test_partition_names_pairs() -> None:
    partition = Partition()
    partition.set_groups([[1, 2], [3], [4]])
    assert not partition.blocked(1, 2)
    assert partition.blocked(2, 3)
    assert partition.blocked(3, 2)
    assert partition.blocked(3, 4)
    assert partition.unreachable_from(3) == [1, 2, 4]
    partition.heal()
    assert not partition.active
    assert partition.unreachable_from(3) == []


async def test_the_process_of_a_connection_is_recognised() -> None:
    with socket.create_server((HOST, 0)) as server, socket.create_connection(server.getsockname()) as ours:
        port, listen_port = ours.getsockname()[1], server.getsockname()[1]
        child = await asyncio.create_subprocess_exec("sleep", "60")
        try:
            assert process_of(port, listen_port, [child.pid, os.getpid()]) == os.getpid()
            assert process_of(port, listen_port, [child.pid]) is None
            assert process_of(port, free_ports(1)[0], [os.getpid()]) is None
        finally:
            child.kill()
            await child.wait()
