"""A gRPC client: connecting, and the call of one request and one reply."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence

from kvstore.http2.client_connection import CallEnd, ClientConnection, ClientLimits, ConnectionEnd
from kvstore.http2.connection import Runtime
from kvstore.http2.status import INTERNAL, OK


class CallError(Exception):
    """A call did not end with OK and one reply."""

    def __init__(self, end: CallEnd) -> None:
        super().__init__(end.text)
        self.end = end


async def connect(
    runtime: Runtime,
    host: str,
    port: int,
    limits: ClientLimits,
    on_end: Callable[[ConnectionEnd], None] = lambda end: None,
) -> ClientConnection:
    """Connect to the first address of a host that accepts.

    Raises ConnectionRefusedError or ConnectionResetError only if the kernel of every address of the host
    refused, so that no process listens there; another OSError otherwise.
    """
    loop = runtime.loop
    authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    sock = await _connected_socket(loop, host, port)
    try:
        _, connection = await loop.create_connection(
            lambda: ClientConnection(runtime, authority, limits, on_end), sock=sock
        )
    except BaseException:
        sock.close()
        raise
    return connection


async def _connected_socket(loop: asyncio.AbstractEventLoop, host: str, port: int) -> socket.socket:
    refusal: OSError | None = None
    fault: OSError | None = None
    for family, kind, protocol, _, address in await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        try:
            sock = socket.socket(family, kind, protocol)
            sock.setblocking(False)
        except OSError as error:
            fault = error
            continue
        try:
            await loop.sock_connect(sock, address)
        except (ConnectionRefusedError, ConnectionResetError) as error:
            sock.close()
            refusal = error
        except OSError as error:
            sock.close()
            fault = error
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise fault or refusal or OSError(f"{host} has no address")


async def call(
    connection: ClientConnection,
    path: bytes,
    request: bytes,
    *,
    timeout_s: float | None = None,
    metadata: Sequence[tuple[str, str | bytes]] = (),
) -> bytes:
    """One request and its reply; cancel it to give up. Raises CallError, or EngineError as `open` does."""
    receiver = _Single(asyncio.get_running_loop())
    stream = connection.open(path, receiver, timeout_s=timeout_s, metadata=metadata)
    stream.send(request)
    stream.half_close()
    try:
        return await receiver.reply
    finally:
        stream.cancel()


class _Single:
    """Takes one reply."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.reply: asyncio.Future[bytes] = loop.create_future()
        self._data: bytes | None = None

    def message(self, data: bytes) -> None:
        self._data = data

    def drained(self) -> None:
        pass

    def ended(self, end: CallEnd) -> None:
        if self.reply.done():
            return  # cancelled, and about to cancel the call
        if end.code == OK and self._data is not None:
            self.reply.set_result(self._data)
        else:
            error = end if end.code != OK else CallEnd(INTERNAL, "the server sent no reply")
            self.reply.set_exception(CallError(error))
