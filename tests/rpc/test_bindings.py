"""The handlers over real gRPC on each binding: status on purpose, late replies, leaving callers, bounds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import grpc.aio
import pytest
import pytest_asyncio

from kvstore.errors import EmptyKey, OutcomeUnknown, Unavailable
from kvstore.rpc import Gate, Method, binding, grpc_binding, make_server
from kvstore.rpc.server_stack import GRPCIO, NGH2
from kvstore.wire import kv_pb2
from kvstore.wire import rpc_pb2 as pb

REQUEST_BYTES_MAX = 10_000


class Service:
    """Handlers that do as the key of the request says."""

    def __init__(self) -> None:
        self.waiting: list = []
        self.gone = asyncio.Event()
        self.taken = asyncio.Event()
        """The unread messages were taken."""

    def put(self, request, call):
        order = request.key.decode()
        if order == "refuse":
            raise EmptyKey
        if order == "unavailable":
            raise Unavailable("etcdserver: no leader")
        if order == "unknown":
            raise OutcomeUnknown
        if order == "break":
            raise RuntimeError("a fault of ours")
        if order == "wait":
            call.on_gone(self.gone.set)
            self.waiting.append(call)
            return None
        if order == "large":
            return pb.PutResponse(prev_kv=kv_pb2.KeyValue(value=bytes(3_000_000)))
        if order == "later":
            asyncio.get_running_loop().call_soon(call.reply, pb.PutResponse())
            return None
        if order == "late refusal":
            asyncio.get_running_loop().call_soon(call.fail, EmptyKey())
            return None
        return pb.PutResponse(header=pb.ResponseHeader(revision=7))

    def stream(self, request, call) -> None:
        call.on_gone(self.gone.set)
        for number in range(request.limit):
            call.send(pb.RangeStreamResponse(range_response=pb.RangeResponse(count=number)))
        if request.key == b"refuse":
            call.fail(EmptyKey())


class Echo:
    """Answers each request of a stream as its key says."""

    def __init__(self, call, service) -> None:
        self.call = call
        call.on_gone(service.gone.set)
        self.service = service

    def receive(self, request) -> None:
        order = request.key.decode()
        if order == "refuse":
            raise EmptyKey
        if order == "break":
            raise RuntimeError("a fault of ours")
        if order == "hold":
            self.call.hold_requests()
            asyncio.get_running_loop().call_later(0.05, self.call.resume_requests)
        if order == "overfill":
            self.call.on_drained(self.overfill)
            return
        if order == "much":
            self.call.send(bytes(binding.UNREAD_LOW_BYTES))
            assert not self.call.has_room
            self.call.on_drained(self.drained)
            return
        self.call.send(pb.RangeStreamResponse(range_response=pb.RangeResponse(count=request.limit)))

    def overfill(self) -> None:
        raise RuntimeError("a fault of ours")

    def drained(self) -> None:
        assert self.call.has_room
        self.service.taken.set()

    def half_closed(self) -> None:
        self.call.send(pb.RangeStreamResponse(range_response=pb.RangeResponse(count=99)).SerializeToString())
        self.call.finish()


class Harness:
    def __init__(self, stack: str) -> None:
        self.stack = stack
        self.service = Service()
        self.put_row = Method(
            service="etcdserverpb.KV", name="Put", request_type=pb.PutRequest, handler=self.service.put
        )
        self.stream_row = Method(
            service="etcdserverpb.KV",
            name="RangeStream",
            request_type=pb.RangeRequest,
            handler=self.service.stream,
            streaming=True,
        )
        self.echo_row = Method(
            service="etcdserverpb.Watch",
            name="Echo",
            request_type=pb.RangeRequest,
            opens=lambda call: Echo(call, self.service),
        )
        rows = [self.put_row, self.stream_row, self.echo_row]
        self.gate = Gate()
        self.server = make_server(stack, rows, request_bytes_max=REQUEST_BYTES_MAX, gate=self.gate)
        self.port = self.server.add_insecure_port("127.0.0.1:0")
        self.channel: grpc.aio.Channel | None = None

    async def put(self, key: str, **options):
        call = self.channel.unary_unary(
            "/etcdserverpb.KV/Put",
            request_serializer=pb.PutRequest.SerializeToString,
            response_deserializer=pb.PutResponse.FromString,
        )
        return await call(pb.PutRequest(key=key.encode()), **options)

    def stream(self, **fields):
        call = self.channel.unary_stream(
            "/etcdserverpb.KV/RangeStream",
            request_serializer=pb.RangeRequest.SerializeToString,
            response_deserializer=pb.RangeStreamResponse.FromString,
        )
        return call(pb.RangeRequest(**fields))

    def echo(self):
        return self.channel.stream_stream(
            "/etcdserverpb.Watch/Echo",
            request_serializer=pb.RangeRequest.SerializeToString,
            response_deserializer=pb.RangeStreamResponse.FromString,
        )()


@pytest_asyncio.fixture(params=[NGH2, GRPCIO])
async def harness(request: pytest.FixtureRequest) -> AsyncIterator[Harness]:
    made = Harness(request.param)
    await made.server.start()
    options = [("grpc.max_receive_message_length", -1)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{made.port}", options=options) as channel:
        made.channel = channel
        yield made
    await made.server.stop(0)


def trailer_of(error: grpc.aio.AioRpcError) -> object:
    return dict(error.trailing_metadata()).get("kvstore-outcome")


@pytest.mark.asyncio
async def test_replies_at_once_and_later(harness: Harness) -> None:
    assert (await harness.put("now")).header.revision == 7
    assert await harness.put("later") == pb.PutResponse()
    assert harness.put_row.statistics.started == 2
    assert harness.put_row.statistics.handled == {0: 2}
    assert harness.put_row.statistics.received_bytes == len(b"now") + len(b"later") + 4


@pytest.mark.parametrize(
    ("order", "code", "text", "outcome"),
    [
        ("refuse", "INVALID_ARGUMENT", "etcdserver: key is not provided", "not-applied"),
        ("late refusal", "INVALID_ARGUMENT", "etcdserver: key is not provided", "not-applied"),
        ("unavailable", "UNAVAILABLE", "etcdserver: no leader", "not-applied"),
        ("unknown", "UNAVAILABLE", "etcdserver: request timed out", "unknown"),
        ("break", "INTERNAL", "etcdserver: internal error", "unknown"),
    ],
)
@pytest.mark.asyncio
async def test_errors_carry_code_text_and_outcome(harness: Harness, order, code, text, outcome) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await harness.put(order)
    error = raised.value
    assert (error.code().name, error.details(), trailer_of(error)) == (code, text, outcome)
    assert harness.put_row.statistics.handled == {error.code().value[0]: 1}


@pytest.mark.asyncio
async def test_garbage_and_unknown_methods(harness: Harness) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await harness.channel.unary_unary("/etcdserverpb.KV/Put")(b"\xff\xff\xff")
    assert raised.value.code() is grpc.StatusCode.INTERNAL
    assert raised.value.details().startswith("grpc: failed to unmarshal")
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await harness.channel.unary_unary("/etcdserverpb.Lease/LeaseGrant")(b"")
    assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.asyncio
async def test_a_caller_that_leaves_is_detected(harness: Harness) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await harness.put("wait", timeout=0.2)
    assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    async with asyncio.timeout(5):
        await harness.service.gone.wait()
    (call,) = harness.service.waiting
    assert call.gone
    call.reply(pb.PutResponse())  # too late, and harmless
    assert (await harness.put("now")).header.revision == 7


@pytest.mark.asyncio
async def test_messages_beyond_the_limit_are_grpcs_own_error(harness: Harness) -> None:
    limit = REQUEST_BYTES_MAX + binding.FRAMING_BYTES_MAX
    assert (await harness.put("x" * (limit - 100))).header.revision == 7
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await harness.put("x" * limit)
    assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.asyncio
async def test_a_stream_of_requests_may_have_one_reply(harness: Harness) -> None:
    call = harness.channel.stream_unary(
        "/etcdserverpb.Watch/Echo",
        request_serializer=pb.RangeRequest.SerializeToString,
        response_deserializer=pb.RangeStreamResponse.FromString,
    )
    assert (await call(iter(()))).range_response.count == 99


@pytest.mark.asyncio
async def test_metadata_deadline_and_address_reach_the_handler(harness: Harness) -> None:
    metadata = (("hasleader", "true"), ("hasleader", "no"), ("x-bin", b"\x00"))
    pending = asyncio.ensure_future(harness.put("wait", timeout=60, metadata=metadata))
    while not harness.service.waiting:  # noqa: ASYNC110  it has no event
        await asyncio.sleep(0.01)
    (call,) = harness.service.waiting
    assert call.metadata("hasleader") == "true"
    assert call.metadata("absent") is None
    assert 50 < call.time_remaining() <= 60.1  # grpcio's client rounds a minute up to tenths of a second
    assert "127.0.0.1" in call.peer
    call.reply(pb.PutResponse())
    call.reply(pb.PutResponse(header=pb.ResponseHeader(revision=8)))  # too late, and harmless
    assert await pending == pb.PutResponse()
    assert harness.put_row.statistics.handled == {0: 1}


@pytest.mark.asyncio
async def test_large_replies_arrive_whole(harness: Harness) -> None:
    call = harness.channel.unary_unary("/etcdserverpb.KV/Put")
    reply = await call(pb.PutRequest(key=b"large").SerializeToString())
    assert len(pb.PutResponse.FromString(reply).prev_kv.value) == 3_000_000


@pytest.mark.asyncio
async def test_requests_of_a_held_stream_wait_and_arrive_in_order(harness: Harness) -> None:
    call = harness.echo()
    for number in range(50):
        await call.write(pb.RangeRequest(key=b"hold" if number % 10 == 0 else b"fine", limit=number))
    await call.done_writing()
    found = [message.range_response.count async for message in call]
    assert found == [*range(50), 99]


@pytest.mark.asyncio
async def test_two_servers_never_share_a_port(harness: Harness) -> None:
    other = make_server(harness.stack, [], request_bytes_max=1, gate=Gate())
    with pytest.raises((RuntimeError, OSError)):
        other.add_insecure_port(f"127.0.0.1:{harness.port}")


@pytest.mark.asyncio
async def test_streams_deliver_in_order_and_end_with_the_caller(harness: Harness) -> None:
    call = harness.stream(limit=3)
    assert [(await call.read()).range_response.count for _ in range(3)] == [0, 1, 2]
    call.cancel()
    async with asyncio.timeout(5):
        await harness.service.gone.wait()
    assert harness.stream_row.statistics.started == 1
    assert harness.stream_row.statistics.handled == {grpc.StatusCode.CANCELLED.value[0]: 1}


@pytest.mark.asyncio
async def test_a_stream_that_fails_delivers_what_came_before(harness: Harness) -> None:
    call = harness.stream(limit=2, key=b"refuse")
    assert [(await call.read()).range_response.count for _ in range(2)] == [0, 1]
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call.read()
    assert raised.value.details() == EmptyKey.text


@pytest.mark.asyncio
async def test_a_caller_that_reads_too_slowly_is_dropped(harness: Harness) -> None:
    call = harness.stream(limit=binding.UNREAD_MESSAGES_MAX + 1)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        [message async for message in call]
    assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.asyncio
async def test_a_stream_of_requests_is_answered_one_by_one_and_ends_well(harness: Harness) -> None:
    call = harness.echo()
    for number in range(3):
        await call.write(pb.RangeRequest(key=b"hold", limit=number))
        assert (await call.read()).range_response.count == number
    await call.done_writing()
    assert (await call.read()).range_response.count == 99
    assert await call.read() is grpc.aio.EOF
    assert await call.code() is grpc.StatusCode.OK
    assert harness.service.gone.is_set()
    assert harness.echo_row.kind == "bidi_stream"
    assert harness.echo_row.statistics.handled == {0: 1}


@pytest.mark.parametrize(
    ("order", "text"), [("refuse", EmptyKey.text), ("break", "etcdserver: internal error")]
)
@pytest.mark.asyncio
async def test_a_stream_of_requests_is_refused_with_a_status(harness: Harness, order: str, text: str) -> None:
    call = harness.echo()
    await call.write(pb.RangeRequest(key=b"fine"))
    assert await call.read() is not grpc.aio.EOF
    await call.write(pb.RangeRequest(key=order.encode()))
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call.read()
    assert raised.value.details() == text
    assert harness.service.gone.is_set()


@pytest.mark.asyncio
async def test_the_caller_of_a_stream_leaves_or_reads_slowly(harness: Harness) -> None:
    call = harness.echo()
    await call.write(pb.RangeRequest(key=b"much"))
    async with asyncio.timeout(5):
        await harness.service.taken.wait()
    call.cancel()
    async with asyncio.timeout(5):
        await harness.service.gone.wait()
    assert harness.echo_row.statistics.handled == {grpc.StatusCode.CANCELLED.value[0]: 1}


@pytest.mark.asyncio
async def test_a_fault_while_filling_a_stream_has_a_status_and_leaves_nothing_behind(
    harness: Harness,
) -> None:
    call = harness.echo()
    await call.write(pb.RangeRequest(key=b"overfill"))
    await call.write(pb.RangeRequest(key=b"fine"))
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        [message async for message in call]
    assert raised.value.code() is grpc.StatusCode.INTERNAL
    assert raised.value.details() == "etcdserver: internal error"
    assert harness.service.gone.is_set()


class BrokenContext:
    """A connection that breaks under the first write."""

    def __init__(self, requests) -> None:
        self.requests = list(requests)

    def peer(self) -> str:
        return "nowhere"

    async def read(self):
        if self.requests:
            return self.requests.pop(0)
        return await asyncio.get_running_loop().create_future()

    async def write(self, data) -> None:
        raise ConnectionError("broken")


@pytest.mark.asyncio
async def test_a_connection_that_breaks_under_a_write_is_a_caller_that_left(harness: Harness) -> None:
    behaviour = grpc_binding._Behaviour(harness.echo_row, harness.gate)
    context = BrokenContext([pb.RangeRequest(key=b"fine").SerializeToString()])
    with pytest.raises(ConnectionError):
        await behaviour.duplex(None, context)
    assert harness.service.gone.is_set()
    assert harness.echo_row.statistics.handled == {grpc.StatusCode.CANCELLED.value[0]: 1}


@pytest.mark.asyncio
async def test_a_gate_that_shuts_ends_all_calls_that_last(harness: Harness) -> None:
    echo, stream, put = harness.echo(), harness.stream(limit=1), asyncio.ensure_future(harness.put("wait"))
    await echo.write(pb.RangeRequest(key=b"fine"))
    await echo.read()
    await stream.read()
    while not harness.service.waiting:  # noqa: ASYNC110  it has no event
        await asyncio.sleep(0.01)
    harness.gate.shut()
    for pending in (echo.read(), stream.read(), put):
        async with asyncio.timeout(5):
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await pending
        error = raised.value
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert (error.details(), trailer_of(error)) == ("etcdserver: server stopped", "unknown")
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await harness.put("now")
    assert trailer_of(raised.value) == "not-applied"
