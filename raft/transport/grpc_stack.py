"""The stack on grpc.aio: a task or two per stream, because its calls are coroutines.

Every dial has a channel of its own: gRPC would otherwise keep a failed connection's back-off.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import grpc

from raft.transport import sockets
from raft.transport.grpc_options import CHANNEL_OPTIONS, SERVER_OPTIONS, target_of
from raft.transport.stack import CallFailed, Handlers, Refused, Stream, StreamEnd, StreamHandler

logger = logging.getLogger(__name__)

STOP_PATIENCE_S = 10.0
"""Time for a gRPC server to stop beyond its grace. All calls are cancelled by then, which takes milliseconds;
a handler that does not return must not keep the log and the backend from being closed."""

_Call = grpc.aio.StreamStreamCall[bytes, bytes]
_Context = grpc.aio.ServicerContext[bytes, bytes]
_CallEnded = (grpc.aio.AioRpcError, asyncio.InvalidStateError)
"""What gRPC raises for a write to a call that has ended; its read reports why."""


class GrpcStack:
    """See `Stack`. Created with the loop running."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._dialled: dict[asyncio.Task[None], int] = {}
        """The tasks of the streams dialled and not yet closed, with the remote port of each."""
        self._listen_ports: frozenset[int] = frozenset()
        """Those of the newest listener, also after its end."""
        self._resets = 0
        """Of all connections by ourselves: what ended meanwhile says nothing of the peer."""

    def dial(self, host: str, port: int, method: str, handler: StreamHandler) -> Stream:
        stream = _Dialled(target_of(host, port), method, handler)
        self._dialled[stream.task] = port
        stream.task.add_done_callback(self._dialled.pop)
        return stream

    async def call(self, host: str, port: int, method: str, data: bytes) -> bytes:
        """gRPC hides why it cannot connect, so a bare connection is tried first."""
        resets = self._resets
        try:
            _, writer = await asyncio.open_connection(host, port)
        except (ConnectionRefusedError, ConnectionResetError) as error:
            raise CallFailed(str(error), is_evidence=True) from error
        except OSError as error:
            raise CallFailed(str(error), is_evidence=False) from error
        writer.close()
        async with grpc.aio.insecure_channel(target_of(host, port), options=CHANNEL_OPTIONS) as channel:
            exchange: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method)
            try:
                return await exchange(data)
            except grpc.aio.AioRpcError as error:
                is_evidence = _is_unavailable(error) and self._resets == resets
                raise CallFailed(_reason(error), is_evidence=is_evidence) from error
            except asyncio.CancelledError:
                if _being_cancelled():
                    raise
                is_evidence = self._resets == resets
                raise CallFailed("the peer's server is stopping", is_evidence=is_evidence) from None

    async def listen(self, addresses: Sequence[tuple[str, int]], handlers: Handlers) -> GrpcListener:
        server = grpc.aio.server(options=SERVER_OPTIONS)
        server.add_generic_rpc_handlers(tuple(_generic_handlers(handlers)))
        ports = []
        for host, port in addresses:
            try:
                ports.append(server.add_insecure_port(target_of(host, port)))
            except RuntimeError as error:
                await server.stop(None)
                raise OSError(errno.EADDRINUSE, f"cannot listen for peers on {host}:{port}") from error
        await server.start()
        self._listen_ports = frozenset(ports)
        return GrpcListener(server, tuple(ports))

    def reset_connections(self) -> None:
        self._resets += 1
        remote_ports = frozenset(tuple(self._dialled.values()))  # copied at once: this may be another thread
        sockets.shut_down(sockets.listening_on(self._listen_ports))
        sockets.shut_down(sockets.accepted_on(self._listen_ports))
        sockets.shut_down(sockets.connected_to(remote_ports))

    async def close(self) -> None:
        if self._dialled:
            await asyncio.wait(tuple(self._dialled))


class GrpcListener:
    """See `Listener`."""

    def __init__(self, server: grpc.aio.Server, ports: tuple[int, ...]) -> None:
        self.ports = ports
        self._server = server
        self._stopping: asyncio.Future[None] | None = None

    def close_nowait(self) -> None:
        if self._stopping is None:
            self._stopping = asyncio.ensure_future(self._server.stop(None))

    async def wait_closed(self) -> None:
        assert self._stopping is not None
        await asyncio.sleep(0)  # the first step of stopping closes the listening sockets
        sockets.shut_down(sockets.accepted_on(frozenset(self.ports)))
        await _wait_stopped(self._stopping, STOP_PATIENCE_S)


class Stoppable(Protocol):
    """A gRPC server."""

    def stop(self, grace: float | None) -> Awaitable[None]:
        """Take no more calls; cancel those that last longer than the grace."""


async def stop_server(server: Stoppable, grace_s: float) -> None:
    """Stop a server and cancel its calls after the grace; abandon it after STOP_PATIENCE_S more."""
    await _wait_stopped(asyncio.ensure_future(server.stop(grace_s)), grace_s + STOP_PATIENCE_S)


async def _wait_stopped(stopping: asyncio.Future[None], patience_s: float) -> None:
    await asyncio.wait([stopping], timeout=patience_s)
    if stopping.done():
        stopping.result()
    else:
        stopping.cancel()
        logger.error("a gRPC server has not stopped within %.0f s and is abandoned", patience_s)


class _Writer:
    """Messages written one after another, by a task."""

    def __init__(self, handler: Callable[[], StreamHandler]) -> None:
        self._handler = handler
        self._queue: deque[bytes] = deque()
        """Bounded by the users of streams, who write while `is_idle`."""
        self._due = asyncio.Event()
        self._flushed = asyncio.Event()
        self._flushed.set()
        """Everything put was written. The opposite of `_due` but while the last message is being written."""

    @property
    def is_idle(self) -> bool:
        return self._flushed.is_set()

    def put(self, data: bytes) -> None:
        self._queue.append(data)
        self._flushed.clear()
        self._due.set()

    async def flushed(self) -> None:
        await self._flushed.wait()

    async def run(self, write: Callable[[bytes], Awaitable[None]]) -> None:
        """Write until cancelled, or until the call ends."""
        with contextlib.suppress(*_CallEnded):
            while True:
                await self._due.wait()
                self._due.clear()
                while self._queue:
                    await write(self._queue.popleft())
                self._flushed.set()
                self._handler().drained()


class _Dialled:
    """A stream on a channel of its own."""

    def __init__(self, target: str, method: str, handler: StreamHandler) -> None:
        self._target = target
        self._method = method
        self._handler = handler
        self._closed = False
        """`close` was called. Cancelling the task may not suffice: gRPC swallows a cancellation that
        coincides with the end of the call."""
        self._writer = _Writer(lambda: handler)
        self.task = asyncio.get_running_loop().create_task(self._run(), name=f"peer stream to {target}")

    @property
    def is_writable(self) -> bool:
        return self._writer.is_idle

    def write(self, data: bytes) -> None:
        self._writer.put(data)

    def close(self, error: str = "") -> None:
        self._closed = True
        self.task.cancel()

    async def _run(self) -> None:
        if self._closed:
            return
        async with grpc.aio.insecure_channel(self._target, options=CHANNEL_OPTIONS) as channel:
            call: _Call = channel.stream_stream(self._method)()
            writing = asyncio.ensure_future(self._writer.run(call.write))
            writing.add_done_callback(lambda task: _report(task) and call.cancel())
            try:
                end = await self._read_to_end(call)
                if not self._closed:
                    self._closed = True
                    self._handler.ended(end)
            except Exception as fault:  # noqa: BLE001  passed to the loop's exception handler
                _report_fault(fault)
            finally:
                call.cancel()
                await _end(writing)

    async def _read_to_end(self, call: _Call) -> StreamEnd:
        try:
            while isinstance(data := await call.read(), bytes):
                if self._closed:
                    break
                self._handler.message(data)
        except grpc.aio.AioRpcError as error:
            return StreamEnd(_reason(error), _is_unavailable(error))
        except asyncio.InvalidStateError as error:
            return StreamEnd(str(error), is_evidence=False)
        except asyncio.CancelledError:
            if _being_cancelled():
                raise
            return StreamEnd("the peer cancelled the stream", is_evidence=False)
        except Exception as fault:  # noqa: BLE001  passed to the loop's exception handler
            _report_fault(fault)
            return StreamEnd("the stream's handler failed", is_evidence=False)
        return StreamEnd("the stream ended", is_evidence=False)


class _Accepted:
    """A stream that a peer opened; served by gRPC's own task for it."""

    _handler: StreamHandler
    """Set once the stream is open."""

    def __init__(self, context: _Context) -> None:
        self._context = context
        self._task = asyncio.current_task()
        self._closed = False
        self._error = ""
        self._writer = _Writer(lambda: self._handler)

    @property
    def is_writable(self) -> bool:
        return self._writer.is_idle

    def write(self, data: bytes) -> None:
        self._writer.put(data)

    def close(self, error: str = "") -> None:
        if self._closed:
            return
        self._closed, self._error = True, error
        assert self._task is not None
        if asyncio.current_task() is not self._task:
            self._task.cancel()  # it waits for a message

    async def run(self, opened: Callable[[Stream], StreamHandler]) -> None:
        self._handler = opened(self)
        writing = asyncio.ensure_future(self._writer.run(self._context.write))
        writing.add_done_callback(_report)
        try:
            await self._read_to_end()
            if self._closed and not writing.done():
                flushed = asyncio.ensure_future(self._writer.flushed())
                await asyncio.wait([flushed, writing], return_when=asyncio.FIRST_COMPLETED)
                flushed.cancel()
        finally:
            self._report_end()  # first: gRPC may cancel this task at any await
            await _end(writing)
        if self._error:
            await self._context.abort(grpc.StatusCode.INVALID_ARGUMENT, self._error)

    async def _read_to_end(self) -> None:
        try:
            while not self._closed and isinstance(data := await self._read(), bytes):
                self._handler.message(data)
        except asyncio.CancelledError:
            if not self._closed:
                raise
            assert self._task is not None
            self._task.uncancel()
        except Exception as fault:  # noqa: BLE001  passed to the loop's exception handler
            _report_fault(fault)
            self._report_end()
            self._error = "the stream's handler failed"

    async def _read(self) -> object:
        """The next message; anything else at the end of the stream."""
        try:
            return await self._context.read()
        except grpc.aio.BaseError:  # the server has stopped since the last message
            return None

    def _report_end(self) -> None:
        if not self._closed:
            self._closed = True
            self._handler.ended(StreamEnd("the stream ended", is_evidence=False))


def _generic_handlers(handlers: Handlers) -> list[grpc.GenericRpcHandler]:
    by_service: dict[str, dict[str, grpc.RpcMethodHandler[bytes, bytes]]] = {}
    for path, reply in handlers.unary.items():
        _, service, name = path.split("/")
        by_service.setdefault(service, {})[name] = grpc.unary_unary_rpc_method_handler(_unary(reply))
    for path, opened in handlers.streams.items():
        _, service, name = path.split("/")
        by_service.setdefault(service, {})[name] = grpc.stream_stream_rpc_method_handler(_streaming(opened))
    return [grpc.method_handlers_generic_handler(service, found) for service, found in by_service.items()]


def _unary(reply: Callable[[bytes], bytes]) -> Callable[[bytes, _Context], Awaitable[bytes]]:
    async def serve(data: bytes, context: _Context) -> bytes:
        try:
            return reply(data)
        except Refused as refusal:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(refusal))

    return serve


def _streaming(opened: Callable[[Stream], StreamHandler]) -> Callable[[object, _Context], Awaitable[None]]:
    async def serve(requests: object, context: _Context) -> None:
        await _Accepted(context).run(opened)

    return serve


def _reason(error: grpc.aio.AioRpcError) -> str:
    return error.details() or error.code().name


def _is_unavailable(error: grpc.aio.AioRpcError) -> bool:
    return error.code() is grpc.StatusCode.UNAVAILABLE


async def _end(task: asyncio.Future[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


def _report(task: asyncio.Future[None]) -> bool:
    """Report how a task failed; returns whether it did."""
    fault = None if task.cancelled() else task.exception()
    if isinstance(fault, Exception):
        _report_fault(fault)
    return fault is not None


def _report_fault(fault: Exception) -> None:
    context = {"message": "a handler of a peer stream failed", "exception": fault}
    asyncio.get_running_loop().call_exception_handler(context)


def _being_cancelled() -> bool:
    """Whether a CancelledError is meant for this task.

    gRPC raises the same error in a task that awaits a call which the *peer* has cancelled.
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
