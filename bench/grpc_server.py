"""`make bench-grpc`: what a unary call costs a server's process, on each stack.

    python -m bench.grpc_server --rounds 3 --seconds 3 --in-flight 64

Writes bench/results/grpc.json. The server runs in a process of its own, with a handler that answers at once;
its CPU time is the kernel's account. The client here speaks through the engine directly, so that it is never
what limits. Every figure is the median of the rounds, which alternate over the cases.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import cast

from bench import host
from kvstore.http2.engine import (
    DataReceived,
    EngineBounds,
    ResponseReceived,
    StreamClosed,
    TrailersReceived,
    client_engine,
)
from kvstore.http2.framing import prefix
from kvstore.rpc import Gate, Method, make_server
from kvstore.rpc.server_stack import GRPCIO, NGH2
from kvstore.wire import rpc_pb2 as pb

VALUE_BYTES = 300
PATH = "/etcdserverpb.KV/Put"
RESULTS = Path(__file__).parent / "results" / "grpc.json"
WARM_UP_SHARE = 0.2
"""Of a case's time, before its measurement begins."""


async def serve(stack: str) -> None:
    """Serve until standard input ends."""
    reply = pb.PutResponse(header=pb.ResponseHeader(cluster_id=1 << 60, member_id=1 << 61, revision=7))
    row = Method(
        service="etcdserverpb.KV",
        name="Put",
        request_type=pb.PutRequest,
        handler=lambda _request, _call: reply,
    )
    server = make_server(stack, [row], request_bytes_max=1 << 20, gate=Gate())
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await server.stop(0)


def runner(loop: str) -> asyncio.Runner:
    if loop == "uvloop":
        import uvloop  # only where the extra is installed

        return asyncio.Runner(loop_factory=uvloop.new_event_loop)
    return asyncio.Runner()


class Load(asyncio.Protocol):
    """Keeps so many calls in flight on one connection."""

    transport: asyncio.Transport

    def __init__(self, in_flight: int, deadlines: bool) -> None:
        self.engine = client_engine(EngineBounds())
        self.in_flight = in_flight
        self.deadlines = deadlines
        self.done = 0
        self.failed: list[object] = []
        self.stopping = False
        self.idle: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.open = 0
        self.body = b""
        request = pb.PutRequest(key=b"key", value=bytes(VALUE_BYTES)).SerializeToString()
        self.body = prefix(len(request)) + request
        self.headers = [
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":path", PATH.encode()),
            (b":authority", b"127.0.0.1:2379"),
            (b"content-type", b"application/grpc"),
            (b"user-agent", b"grpc-go/1.38.0"),
            (b"te", b"trailers"),
        ]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's derives from no class of asyncio
        for _ in range(self.in_flight):
            self.call()
        self.flush()

    def call(self) -> None:
        headers = self.headers
        if self.deadlines:
            headers = [*headers, (b"grpc-timeout", b"%du" % (4_900_000 + self.done % 99_991))]
        stream = self.engine.send_request(headers)
        self.engine.send_data(stream, self.body, end_stream=True)
        self.open += 1

    def data_received(self, data: bytes) -> None:
        self.engine.receive_data(data)
        for event in self.engine.events():
            if isinstance(event, DataReceived):
                self.engine.acknowledge_received_data(len(event.data), event.stream_id)
            elif isinstance(event, TrailersReceived | ResponseReceived):
                status = dict(event.headers).get(b"grpc-status", b"0")
                if status != b"0":
                    self.failed.append(event.headers)
            elif isinstance(event, StreamClosed):
                self.open -= 1
                self.done += 1
                if not self.stopping:
                    self.call()
        self.flush()
        if self.stopping and not self.open and not self.idle.done():
            self.idle.set_result(None)

    def flush(self) -> None:
        self.transport.write(self.engine.data_to_send())


async def drive(port: int, pid: int, arguments: argparse.Namespace, deadlines: bool) -> tuple[float, float]:
    """Microseconds of the server's CPU per call, and calls per second."""
    loop = asyncio.get_running_loop()
    _, load = await loop.create_connection(lambda: Load(arguments.in_flight, deadlines), "127.0.0.1", port)
    await asyncio.sleep(arguments.seconds * WARM_UP_SHARE)
    cpu, done, began = host.cpu_seconds(pid), load.done, time.monotonic()
    await asyncio.sleep(arguments.seconds)
    used, count = host.cpu_seconds(pid) - cpu, load.done - done
    elapsed = time.monotonic() - began
    load.stopping = True
    await asyncio.wait_for(load.idle, 30)
    load.transport.close()
    assert not load.failed, load.failed[0]
    return 1e6 * used / count, count / elapsed


def measure(stack: str, loop: str, arguments: argparse.Namespace, deadlines: bool) -> tuple[float, float]:
    command = [sys.executable, "-m", "bench.grpc_server", "--serve", stack, "--loop", loop]
    if arguments.profile:
        command[1:1] = ["-m", "cProfile", "-o", arguments.profile]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        try:
            with runner(loop) as client:
                return client.run(drive(port, process.pid, arguments, deadlines))
        finally:
            process.communicate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--stacks", nargs="+", default=[NGH2, GRPCIO])
    parser.add_argument("--serve", choices=(NGH2, GRPCIO), help="for the server's process")
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), help="for the server's process")
    parser.add_argument("--profile", help="a file for the server's profile (one case only)")
    arguments = parser.parse_args()
    if arguments.serve:
        with runner(arguments.loop) as server:
            server.run(serve(arguments.serve))
        return
    loops = [arguments.loop] if arguments.loop else ["asyncio"]
    if not arguments.loop and importlib.util.find_spec("uvloop"):
        loops.append("uvloop")
    cases = [
        (stack, loop, deadlines)
        for stack in arguments.stacks
        for loop in loops
        for deadlines in (False, True)
    ]
    found: dict[tuple[str, str, bool], list[tuple[float, float]]] = {case: [] for case in cases}
    for _ in range(arguments.rounds):
        for stack, loop, deadlines in cases:
            found[stack, loop, deadlines].append(measure(stack, loop, arguments, deadlines))
    rows = []
    for (stack, loop, deadlines), figures in found.items():
        cost, rate = (statistics.median(column) for column in zip(*figures, strict=True))
        rows.append({"stack": stack, "loop": loop, "deadlines": deadlines, "us": cost, "per_second": rate})
        print(f"{stack:7} {loop:8} {'deadlines' if deadlines else 'plain':10} {cost:6.1f} us {rate:8.0f}/s")
    result = {"host": host.description(), "in_flight": arguments.in_flight, "cases": rows}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    main()
