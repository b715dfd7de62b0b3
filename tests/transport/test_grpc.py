"""The gRPC transport where processes and sockets are real: kills, silence, resets, latency."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import struct
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from raft.core.messages import Message, MessageType
from raft.core.types import Entry, EntryKind
from raft.transport import grpc_stack, peer_link, peer_transport, sockets
from raft.transport.grpc_stack import GrpcStack
from raft.transport.liveness import BACKOFF_MAX_S, PROBE_TIMEOUT_S, SILENCE_TIMEOUT_S
from raft.transport.peer_service import STREAM_METHOD, host_port
from raft.transport.peer_transport import PeerTransport
from raft.transport.stack import StreamEnd
from raft.transport.transport_protocol import Liveness

# They measure time and start processes, so they run beside no other such test.
pytestmark = [pytest.mark.asyncio, pytest.mark.xdist_group("processes")]

Harness = Any  # the fixture's class; conftest modules cannot be imported by name

HEARTBEAT = Message(MessageType.HEARTBEAT, to=2, from_=1, term=1)
PEER_PROCESS = Path(__file__).with_name("peer_process.py")


@pytest_asyncio.fixture
async def remote(grpc_harness: Harness) -> AsyncIterator[tuple[Any, Any, asyncio.subprocess.Process]]:
    """Member 1 here and member 2 in a process of its own, connected both ways."""
    transport, recorder = await grpc_harness.member(1, 10)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(PEER_PROCESS),
        grpc_harness.urls[1][0],
        grpc_harness.kind,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    try:
        assert process.stdout is not None
        port = int(await asyncio.wait_for(process.stdout.readline(), 20))
        transport.set_peer(2, (f"http://127.0.0.1:{port}",))
        await recorder.until(lambda: bool(transport.connected_peers()) and bool(recorder.messages))
        recorder.messages.clear()  # the first message shows that both streams are open
        yield transport, recorder, process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGTERM])
async def test_the_end_of_a_process_is_seen_within_milliseconds(remote: Any, signal_number: int) -> None:
    transport, recorder, process = remote
    began = time.monotonic()
    process.send_signal(signal_number)
    await recorder.until(lambda: 2 in recorder.disconnected, 2.0)
    seen_s = time.monotonic() - began
    assert await transport.probe(2) is Liveness.DEAD
    judged_s = time.monotonic() - began
    assert seen_s < 0.2, f"the end was seen after {seen_s:.3f} s"
    assert judged_s < 0.4, f"it was judged dead after {judged_s:.3f} s"
    assert await asyncio.wait_for(process.wait(), 5) in (0, -signal.SIGKILL)


async def test_silence_ends_the_streams_of_both_directions(remote: Any) -> None:
    """Its kernel still takes what is sent, and a partition does not even refuse it."""
    _, recorder, process = remote
    process.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    try:
        await recorder.until(lambda: recorder.disconnected == [2, 2], 3 * SILENCE_TIMEOUT_S)
    finally:
        process.send_signal(signal.SIGCONT)
    assert time.monotonic() - began > SILENCE_TIMEOUT_S / 2, "a moment's silence is no silence"


async def test_a_stopped_process_is_unreachable_not_dead(remote: Any) -> None:
    transport, recorder, process = remote
    process.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    try:
        assert await transport.probe(2) is Liveness.UNREACHABLE
    finally:
        process.send_signal(signal.SIGCONT)
    assert PROBE_TIMEOUT_S * 0.9 < time.monotonic() - began < PROBE_TIMEOUT_S + 1.0
    assert recorder.disconnected == []
    assert await transport.probe(2) is Liveness.ALIVE


async def test_a_lone_message_does_not_wait_for_a_timer(remote: Any) -> None:
    transport, recorder, _ = remote
    round_trips = []
    for count in range(1, 101):
        began = time.monotonic()
        transport.send(2, HEARTBEAT)
        await recorder.until(lambda count=count: len(recorder.messages) == count)
        round_trips.append(time.monotonic() - began)
    median_s = sorted(round_trips)[50]
    assert median_s < 0.02, f"there and back took {median_s * 1000:.1f} ms"  # a loaded machine; 1 ms idle


async def test_a_heartbeat_and_its_answer_measure_the_round_trip(grpc_harness: Harness) -> None:
    first, recorder, second, other = await grpc_harness.pair()
    assert sum(first.statistics()[2].round_trip_buckets) == 0
    other.on_each_message = lambda message: second.send(
        1, Message(MessageType.HEARTBEAT_RESPONSE, to=1, from_=2, term=1)
    )
    first.send(2, HEARTBEAT)
    await recorder.until(lambda: len(recorder.messages) == 1)
    counted = first.statistics()[2]
    assert 0.0 < counted.round_trip_seconds < 5.0
    assert sum(counted.round_trip_buckets) == 1
    assert len(counted.round_trip_buckets) == 17


async def test_a_heartbeat_passes_bulk_that_is_already_flowing(grpc_harness: Harness) -> None:
    first, _, _, other = await grpc_harness.pair()
    bulk = [
        Message(
            MessageType.APPEND,
            to=2,
            from_=1,
            index=index,
            entries=(Entry(1, index, EntryKind.NORMAL, bytes(1 << 20)),),
        )
        for index in range(1, 33)
    ]
    for message in bulk:
        assert first.send(2, message)
    other.on_each_message = lambda message: len(other.messages) == 1 and first.send(2, HEARTBEAT)
    await other.until(lambda: len(other.messages) == len(bulk) + 1)
    assert other.received.index(HEARTBEAT) < len(bulk) * 3 // 4
    assert [message for message in other.received if message is not HEARTBEAT and message.entries] == bulk


async def test_a_receiver_that_raises_is_reported_to_the_loop(grpc_harness: Harness) -> None:
    first, recorder = await grpc_harness.member(1, 10)
    await grpc_harness.member(2, 20)
    faults: asyncio.Queue[BaseException] = asyncio.Queue()
    asyncio.get_running_loop().set_exception_handler(
        lambda loop, context: faults.put_nowait(context["exception"])
    )

    def broken(member_id: int) -> None:
        raise ZeroDivisionError

    recorder.on_connected = broken
    first.set_peer(2, grpc_harness.urls[2])
    assert isinstance(await asyncio.wait_for(faults.get(), 5), ZeroDivisionError)


async def test_probe_of_a_listener_that_never_answers_is_unreachable(grpc_harness: Harness) -> None:
    transport, _ = await grpc_harness.member(1, 10)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        transport.set_peer(2, (f"http://127.0.0.1:{silent.getsockname()[1]}",))
        assert await transport.probe(2) is Liveness.UNREACHABLE


async def test_probe_of_a_listener_that_resets_is_dead(grpc_harness: Harness) -> None:
    def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raw = writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    transport, _ = await grpc_harness.member(1, 10)
    async with await asyncio.start_server(reset, "127.0.0.1", 0) as server:
        transport.set_peer(2, (f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}",))
        began = time.monotonic()
        assert await transport.probe(2) is Liveness.DEAD
        assert time.monotonic() - began < PROBE_TIMEOUT_S


async def test_a_probe_that_our_own_reset_ends_says_nothing(
    grpc_harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The watchdog of a stuck member resets its connections, a probe of a living leader among them."""
    monkeypatch.setattr(peer_link, "PROBE_TIMEOUT_S", 20.0)
    heard = asyncio.Semaphore(0)

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await reader.read(1):
            heard.release()
        await reader.read()
        writer.close()

    transport, _ = await grpc_harness.member(1, 10)
    async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
        transport.set_peer(2, (f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}",))
        await asyncio.wait_for(heard.acquire(), 10)  # the stream
        probe = asyncio.create_task(transport.probe(2))
        await asyncio.wait_for(heard.acquire(), 10)
        transport.reset_connections()
        assert await asyncio.wait_for(probe, 10) is Liveness.UNREACHABLE


async def test_a_peer_moved_to_another_address_is_found_there(grpc_harness: Harness) -> None:
    transport, recorder = await grpc_harness.member(1, 10)
    with socket.create_server(("127.0.0.1", 0)) as vacant:
        unused = vacant.getsockname()[1]
    transport.set_peer(2, (f"http://127.0.0.1:{unused}",))
    await grpc_harness.member(2, 20)
    transport.set_peer(2, grpc_harness.urls[2])
    await recorder.until(lambda: recorder.connected == [2], BACKOFF_MAX_S + 5)


async def test_the_wrong_member_behind_an_address_is_refused(grpc_harness: Harness) -> None:
    transport, recorder = await grpc_harness.member(1, 10)
    await grpc_harness.member(3, 30)
    transport.set_peer(2, grpc_harness.urls[3])
    await recorder.until(lambda: bool(recorder.answers))
    assert recorder.answers[0][1].refusal == "is member 3, not 2"
    assert recorder.connected == []


async def test_a_dial_may_be_given_up_at_any_moment(grpc_harness: Harness) -> None:
    class Handler:
        def message(self, data: bytes) -> None: ...
        def drained(self) -> None: ...
        def ended(self, end: StreamEnd) -> None: ...

    faults: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: faults.append(context))
    transport, _ = await grpc_harness.member(1, 10)
    for iterations in range(40):
        stream = transport._stack.dial("127.0.0.1", transport.listen_ports[0], STREAM_METHOD, Handler())
        stream.write(b"")
        for _ in range(iterations):
            await asyncio.sleep(0)
        stream.close()
    await transport.close()
    assert faults == []


async def test_a_taken_port_is_an_error_of_the_system(grpc_harness: Harness) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        complaint = f"cannot listen for peers on 127.0.0.1:{port}"
        with pytest.raises(OSError, match=complaint):
            await grpc_harness.member(1, 10, port=port)


async def test_reset_leaves_a_stuck_loop_refusing_probes(remote: Any) -> None:
    """While the loop is stuck nothing listens, so that survivors find the process dead, not silent."""
    transport, recorder, _ = remote
    port = transport.listen_ports[0]
    transport.reset_connections()
    # this very loop has not run since: it is stuck, as far as the transport can tell
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=1)
    await recorder.until(lambda: len(recorder.connected) == 2 and len(recorder.handshakes) >= 2)
    assert await transport.probe(2) is Liveness.ALIVE


async def test_a_shutdown_spares_other_sockets() -> None:
    left, right = socket.socketpair()
    with (
        left,
        right,
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_server(("127.0.0.1", 0)) as stranger,
        socket.create_connection(server.getsockname()) as dialled,
        socket.create_connection(stranger.getsockname()) as untouched,
    ):
        accepted, _ = server.accept()
        with accepted:
            assert sockets.shut_down(sockets.accepted_on(frozenset({server.getsockname()[1]}))) == 1
            assert dialled.recv(1) == b""
        untouched.sendall(b"x")
        with stranger.accept()[0] as other:
            assert other.recv(1) == b"x"
        with socket.create_connection(server.getsockname()):
            pass
        assert sockets.shut_down(sockets.listening_on(frozenset({server.getsockname()[1]}))) == 1
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(server.getsockname())
        left.sendall(b"y")
        assert right.recv(1) == b"y"


@pytest.mark.parametrize(
    "url", ["localhost:2380", "https://a:1", "http://a", "http://:1", "", "http://a:99999"]
)
async def test_broken_peer_urls_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"peer URL|port|Port"):
        host_port(url)


async def test_a_peer_needs_a_url() -> None:
    transport = PeerTransport(("http://127.0.0.1:0",), stack=GrpcStack(), rng=None)  # type: ignore[arg-type]  # never dials
    with pytest.raises(ValueError, match="no peer URL"):
        transport.set_peer(2, ())


async def test_a_link_ends_though_the_library_swallows_its_cancellation(
    grpcio_harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call that ends at the moment of its cancellation reports its end instead."""
    dialled = asyncio.Event()

    async def read_to_end(stream: Any, call: object) -> StreamEnd:
        dialled.set()
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            return StreamEnd("the stream ended", is_evidence=False)
        raise AssertionError("the future is never resolved")

    monkeypatch.setattr(grpc_stack._Dialled, "_read_to_end", read_to_end)
    transport, recorder = await grpcio_harness.member(1, 10)
    transport.set_peer(2, ("http://127.0.0.1:1",))
    async with asyncio.timeout(10):
        await dialled.wait()
        await transport.close()
    assert recorder.disconnected == []


async def test_a_handshake_received_while_closing_dials_no_peer(grpc_harness: Harness) -> None:
    transport, _ = await grpc_harness.member(1, 10)
    await transport.close()
    transport.set_peer(2, ("http://127.0.0.1:1",))
    assert transport.statistics() == {}


async def test_a_server_that_does_not_stop_is_abandoned(
    grpcio_harness: Harness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    transport, _ = await grpcio_harness.member(1, 10)
    server = transport._listener._server
    stop = server.stop

    async def never(grace: float | None) -> None:
        await asyncio.get_running_loop().create_future()

    monkeypatch.setattr(grpc_stack, "STOP_PATIENCE_S", 0.05)
    monkeypatch.setattr(server, "stop", never)
    async with asyncio.timeout(10):
        await transport.close()
    assert "is abandoned" in caplog.text
    await stop(None)


async def test_a_reset_member_listens_again_though_its_server_does_not_stop(
    grpcio_harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, recorder, second, _ = await grpcio_harness.pair()
    listener = first._listener
    server, stop = listener._server, listener._server.stop

    async def never(grace: float | None) -> None:
        await asyncio.get_running_loop().create_future()

    monkeypatch.setattr(grpc_stack, "STOP_PATIENCE_S", 0.05)
    monkeypatch.setattr(server, "stop", never)
    first.reset_connections()
    await recorder.until(lambda: first._listener not in (None, listener), poll=True)
    assert await second.probe(1) is Liveness.ALIVE
    await stop(None)


async def test_a_reset_member_listens_again_once_its_address_is_free(
    grpc_harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, recorder, second, _ = await grpc_harness.pair()
    genuine, refused = first._open_listener, 3

    async def taken() -> None:
        nonlocal refused
        if refused:
            refused -= 1
            raise OSError(errno.EADDRINUSE, "injected")
        await genuine()

    monkeypatch.setattr(peer_transport, "REOPEN_RETRY_S", 0.01)
    monkeypatch.setattr(first, "_open_listener", taken)
    first.reset_connections()
    await recorder.until(lambda: not refused and first._listener is not None, poll=True)
    assert await second.probe(1) is Liveness.ALIVE


async def test_a_member_reset_while_it_reopens_listens_in_the_end(
    grpc_harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, recorder, second, _ = await grpc_harness.pair()
    genuine, opened = first._open_listener, 0

    async def reset_meanwhile() -> None:
        nonlocal opened
        await genuine()
        opened += 1
        if opened == 1:
            await asyncio.to_thread(first.reset_connections)
            await asyncio.sleep(0)  # the loop sees the reset before the server is open

    monkeypatch.setattr(first, "_open_listener", reset_meanwhile)
    first.reset_connections()
    await recorder.until(lambda: opened == 2, poll=True)
    assert await second.probe(1) is Liveness.ALIVE


async def test_closing_does_not_wait_for_an_address_that_stays_taken(
    grpc_harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport, recorder = await grpc_harness.member(1, 10)
    attempts = 0

    async def taken() -> None:
        nonlocal attempts
        attempts += 1
        raise OSError(errno.EADDRINUSE, "injected")

    monkeypatch.setattr(peer_transport, "REOPEN_RETRY_S", 0.01)
    monkeypatch.setattr(transport, "_open_listener", taken)
    transport.reset_connections()
    await recorder.until(lambda: attempts > 1, poll=True)
    async with asyncio.timeout(10):
        await transport.close()
