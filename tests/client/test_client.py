"""The client's guarantees: where it sends, what it retries, and what its errors mean."""

import asyncio
import contextlib
import math
import re
import socket

import grpc
import pytest

from kvstore.client import (
    PUT,
    RANGE,
    Connection,
    Endpoint,
    EndpointError,
    NoSuchHost,
    TimedOut,
    parse_endpoints,
)
from kvstore.client.outcomes import error_from_status
from kvstore.errors import (
    Code,
    Compacted,
    NoSpace,
    OutcomeUnknown,
    RequestError,
    Unavailable,
)
from kvstore.wire import rpc_pb2

UNKNOWN = "kvstore.onion:1"
"""A name that no resolver asks another about, and that none knows (RFC 7686)."""


class FakeMember:
    """Answers each call with the next of `script`: a reply, or (code, text, trailer); then with replies."""

    def __init__(self, script=()):
        self.script = list(script)
        self.calls = 0
        self.called = asyncio.Event()
        self.target = ""

    async def _answer(self, request, context):
        self.calls += 1
        self.called.set()
        step = self.script.pop(0) if self.script else None
        if step == "hang":
            await asyncio.Event().wait()
        if step is not None:
            code, text, outcome = step
            trailer = (("kvstore-outcome", outcome),) if outcome else ()
            await context.abort(code, text, trailing_metadata=trailer)
        return rpc_pb2.PutResponse(header=rpc_pb2.ResponseHeader(revision=self.calls)).SerializeToString()

    @contextlib.asynccontextmanager
    async def run(self):
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        handlers = {
            path.rpartition("/")[2]: grpc.unary_unary_rpc_method_handler(self._answer)
            for path in (PUT.path, RANGE.path)
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("etcdserverpb.KV", handlers),))
        self.target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        try:
            yield self
        finally:
            await server.stop(0)


@contextlib.asynccontextmanager
async def cluster(*scripts, timeout_s=5.0, before=()):
    async with contextlib.AsyncExitStack() as stack:
        members = [await stack.enter_async_context(FakeMember(script).run()) for script in scripts]
        targets = ",".join([*before, *(member.target for member in members)])
        connection = await stack.enter_async_context(
            Connection(parse_endpoints(targets), timeout_s=timeout_s)
        )
        yield connection, members


@pytest.fixture
def dead_target():
    """An address at which nothing listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


PUT_A = rpc_pb2.PutRequest(key=b"a", value=b"1")
GET_A = rpc_pb2.RangeRequest(key=b"a")
NO_LEADER = (grpc.StatusCode.UNAVAILABLE, "etcdserver: no leader", "not-applied")
ETCD_NO_LEADER = (grpc.StatusCode.UNAVAILABLE, "etcdserver: no leader", None)
TIMED_OUT = (grpc.StatusCode.UNAVAILABLE, "etcdserver: request timed out", "unknown")


@pytest.mark.asyncio
async def test_a_call_reaches_the_cluster():
    async with cluster(()) as (connection, (member,)):
        assert (await connection.call(PUT, PUT_A)).header.revision == 1
        assert member.calls == 1


@pytest.mark.asyncio
async def test_a_dead_endpoint_is_passed_over(dead_target):
    async with cluster((), before=(dead_target,)) as (connection, (member,)):
        await connection.call(PUT, PUT_A)
        assert member.calls == 1


@pytest.mark.asyncio
async def test_a_write_that_was_not_applied_moves_on():
    async with cluster((NO_LEADER,), ()) as (connection, (first, second)):
        await connection.call(PUT, PUT_A)
        assert first.calls + second.calls >= 1
        assert not first.script or second.calls  # the endpoint that refused was left


@pytest.mark.asyncio
@pytest.mark.parametrize("step", [TIMED_OUT, ETCD_NO_LEADER, (grpc.StatusCode.UNKNOWN, "oops", None)])
async def test_a_write_of_unknown_outcome_is_never_retried(step):
    async with cluster((step,)) as (connection, (member,)):
        with pytest.raises(OutcomeUnknown) as caught:
            await connection.call(PUT, PUT_A)
        assert caught.value.text == step[1]
        assert member.calls == 1


@pytest.mark.asyncio
@pytest.mark.parametrize("step", [TIMED_OUT, ETCD_NO_LEADER])
async def test_a_read_is_tried_again(step):
    async with cluster((step, step)) as (connection, (member,)):
        await connection.call(RANGE, GET_A)
        assert member.calls == 3


@pytest.mark.asyncio
async def test_a_refusal_is_final_and_typed():
    refusal = (grpc.StatusCode.OUT_OF_RANGE, Compacted.text, None)
    async with cluster((refusal,)) as (connection, (member,)):
        with pytest.raises(Compacted):
            await connection.call(RANGE, GET_A)
        assert member.calls == 1


@pytest.mark.asyncio
async def test_a_write_without_an_answer_is_unknown_and_a_read_is_not():
    async with cluster(("hang", "hang"), timeout_s=0.2) as (connection, _):
        with pytest.raises(OutcomeUnknown, match="context deadline exceeded"):
            await connection.call(PUT, PUT_A)
        with pytest.raises(TimedOut, match="context deadline exceeded"):
            await connection.call(RANGE, GET_A)


@pytest.mark.asyncio
async def test_a_refused_connection_is_certain_and_in_time(dead_target):
    loop = asyncio.get_running_loop()
    begun = loop.time()
    async with Connection(parse_endpoints(dead_target), timeout_s=0.3) as connection:
        with pytest.raises(TimedOut) as caught:
            await connection.call(PUT, PUT_A)
    assert 0.25 < loop.time() - begun < 2
    assert caught.value.text == (f"context deadline exceeded: last error: connection refused ({dead_target})")


@pytest.mark.asyncio
async def test_every_endpoint_has_its_reason(dead_target):
    async with Connection(parse_endpoints(f"{dead_target},{UNKNOWN}"), timeout_s=0.3) as connection:
        with pytest.raises(TimedOut) as caught:
            await connection.channel(asyncio.get_running_loop().time() + 0.3)
    assert caught.value.text == (
        f"context deadline exceeded: last error: connection refused ({dead_target}), no such host ({UNKNOWN})"
    )


@pytest.mark.asyncio
async def test_unknown_names_are_refused_at_once():
    async with Connection(parse_endpoints(UNKNOWN), timeout_s=3600) as connection, asyncio.timeout(60):
        with pytest.raises(NoSuchHost) as caught:
            await connection.call(PUT, PUT_A)
        assert caught.value.text == f"no such host ({UNKNOWN})"
        assert caught.value.code is Code.UNAVAILABLE
        with pytest.raises(NoSuchHost):
            await connection.channel(math.inf)


@pytest.mark.asyncio
async def test_a_server_of_something_else_is_told_apart():
    async def answer(_reader, writer):
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    target = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, Connection(parse_endpoints(target), timeout_s=1) as connection:
        with pytest.raises(TimedOut, match=re.escape(f"last error: not a gRPC server ({target})")):
            await connection.call(RANGE, GET_A)


@pytest.mark.asyncio
async def test_what_has_no_time_limit_says_once_why_it_waits(dead_target):
    told, heard = [], asyncio.Event()

    def tell(reasons):
        told.append(reasons)
        heard.set()

    async with Connection(parse_endpoints(dead_target), timeout_s=0.05, on_waiting=tell) as connection:
        waits = [asyncio.ensure_future(connection.channel(math.inf)) for _ in range(2)]
        async with asyncio.timeout(60):
            await heard.wait()
        with pytest.raises(TimedOut):
            await connection.call(RANGE, GET_A)
        for wait in waits:
            assert not wait.done()
            wait.cancel()
        await asyncio.wait(waits)
    assert told == [f"connection refused ({dead_target})"]


@pytest.mark.asyncio
async def test_the_reason_is_that_of_the_end():
    """A member that had no leader, and then ended, is refused by the kernel."""
    async with FakeMember([NO_LEADER] * 1000).run() as member:
        connection = Connection(parse_endpoints(member.target), timeout_s=2)
        call = asyncio.ensure_future(connection.call(RANGE, GET_A))
        await member.called.wait()
    with pytest.raises(TimedOut, match="connection refused"):
        await call
    await connection.close()


@pytest.mark.asyncio
async def test_a_connection_lost_under_a_request_leaves_it_unknown():
    async with FakeMember(("hang",)).run() as member:
        host, _, port = member.target.partition(":")
        writers = []

        async def pump(reader, writer):
            with contextlib.suppress(ConnectionError):
                while data := await reader.read(65536):
                    writer.write(data)

        async def forward(reader, writer):
            upstream_reader, upstream = await asyncio.open_connection(host, int(port))
            writers.extend((writer, upstream))
            await asyncio.gather(pump(reader, upstream), pump(upstream_reader, writer))

        relay = await asyncio.start_server(forward, "127.0.0.1", 0)
        through = f"127.0.0.1:{relay.sockets[0].getsockname()[1]}"
        async with relay, Connection(parse_endpoints(through), timeout_s=5) as connection:
            call = asyncio.ensure_future(connection.call(PUT, PUT_A))
            await member.called.wait()
            relay.close()
            for writer in writers:
                writer.transport.abort()
            with pytest.raises(OutcomeUnknown) as caught:
                await call
            assert caught.value.code is Code.UNAVAILABLE
        assert member.calls == 1


@pytest.mark.parametrize(
    ("text", "endpoints"),
    [
        ("127.0.0.1:1", (Endpoint("127.0.0.1:1", "127.0.0.1:1"),)),
        ("http://h:1/, [::1]:2", (Endpoint("http://h:1/", "h:1"), Endpoint("[::1]:2", "[::1]:2"))),
        ("http://h:65535/a/b:c", (Endpoint("http://h:65535/a/b:c", "h:65535"),)),
        (":2379", (Endpoint(":2379", "localhost:2379"),)),
    ],
)
def test_endpoints_are_read(text, endpoints):
    assert parse_endpoints(text) == endpoints


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "etcdclient: no available endpoints"),
        (",", "etcdclient: no available endpoints"),
        ("https://h:1", 'endpoint "https://h:1": only http:// is supported'),
        ("host", 'endpoint "host": address host: missing port in address'),
        ("host:", 'endpoint "host:": address host:: missing port in address'),
        ("[::1]", 'endpoint "[::1]": address [::1]: missing port in address'),
        ("::1:2", 'endpoint "::1:2": address ::1:2: too many colons in address'),
        ("h:65536", 'endpoint "h:65536": address 65536: invalid port'),
        ("h:-1", 'endpoint "h:-1": address -1: invalid port'),
        ("h:name", 'endpoint "h:name": address name: invalid port'),
        ("h:\u0661", 'endpoint "h:\u0661": address \u0661: invalid port'),
        ("a:1, http:///x", 'endpoint "http:///x": missing address'),
    ],
)
def test_endpoints_that_cannot_be_are_named(text, words):
    with pytest.raises(EndpointError) as caught:
        parse_endpoints(text)
    assert str(caught.value) == words


@pytest.mark.parametrize(
    ("code", "text", "outcome", "changes", "kind"),
    [
        (Code.RESOURCE_EXHAUSTED, NoSpace.text, None, True, NoSpace),
        (Code.INVALID_ARGUMENT, "something new", None, True, RequestError),
        (Code.RESOURCE_EXHAUSTED, NoSpace.text, "unknown", True, OutcomeUnknown),
        (Code.UNAVAILABLE, "etcdserver: no leader", None, True, OutcomeUnknown),
        (Code.UNAVAILABLE, "etcdserver: no leader", "not-applied", True, Unavailable),
        (Code.UNAVAILABLE, "etcdserver: request timed out", None, False, Unavailable),
        (Code.UNAVAILABLE, "failed to connect to all addresses; last error: x", None, True, Unavailable),
        (Code.INTERNAL, "x", None, True, OutcomeUnknown),
        (Code.CANCELLED, "x", None, True, OutcomeUnknown),
        (Code.DATA_LOSS, "x", None, True, OutcomeUnknown),
    ],
)
def test_a_status_becomes_what_is_certain(code, text, outcome, changes, kind):
    error = error_from_status(code, text, outcome, changes=changes)
    assert type(error) is kind
    assert (error.code, error.text) == (code, text)
