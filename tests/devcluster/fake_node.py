"""Stands in for a member: takes its flags, answers Status, and keeps dialling its peers.

Every peer line heard is logged as `heard <name>`. With `--fail=<text>` it says so and exits with 1;
with `--stubborn` it ignores SIGTERM.
"""

from __future__ import annotations

import asyncio
import signal
import sys

import grpc

from kvstore.wire import rpc_pb2

HOST = "127.0.0.1"


def flags() -> dict[str, str]:
    found = {}
    for argument in sys.argv[1:]:
        name, _, value = argument.removeprefix("--").partition("=")
        found[name] = value
    return found


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def port_of(url: str) -> int:
    return int(url.rsplit(":", 1)[1])


async def hear(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while line := await reader.readline():
            say(f"heard {line.decode().strip()}")
    except ConnectionError:
        pass
    finally:
        writer.close()


async def talk(name: str, port: int) -> None:
    while True:
        try:
            _, writer = await asyncio.open_connection(HOST, port)
            while True:
                writer.write(f"{name}\n".encode())
                await writer.drain()
                await asyncio.sleep(0.02)
        except OSError:
            await asyncio.sleep(0.05)


async def main() -> None:
    options = flags()
    if "fail" in options:
        say(f"Error: {options['fail']}")
        raise SystemExit(1)
    name = options["name"]
    number = int(name.removeprefix("node"))

    async def status(request: object, context: object) -> rpc_pb2.StatusResponse:
        return rpc_pb2.StatusResponse(
            header=rpc_pb2.ResponseHeader(member_id=number), leader=1, raftTerm=2, raftIndex=30, dbSize=20480
        )

    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(
        status,
        request_deserializer=rpc_pb2.StatusRequest.FromString,
        response_serializer=rpc_pb2.StatusResponse.SerializeToString,
    )
    service = grpc.method_handlers_generic_handler("etcdserverpb.Maintenance", {"Status": handler})
    server.add_generic_rpc_handlers((service,))
    server.add_insecure_port(f"{HOST}:{port_of(options['listen-client-urls'])}")
    await server.start()
    stop = asyncio.Event()
    if "stubborn" in options:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    listener = await asyncio.start_server(hear, HOST, port_of(options["listen-peer-urls"]))
    peers = dict(pair.split("=", 1) for pair in options["initial-cluster"].split(","))
    talkers = [asyncio.create_task(talk(name, port_of(url))) for other, url in peers.items() if other != name]
    say("ready")
    await stop.wait()
    for talker in talkers:
        talker.cancel()
    await asyncio.gather(*talkers, return_exceptions=True)
    listener.close()
    await server.stop(None)


if __name__ == "__main__":
    asyncio.run(main())
