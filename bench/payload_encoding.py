"""Our own command encoding against raw protobuf request bytes, for the payload of log entries.

    python -m bench.payload_encoding

A command is written by one node and read by three. With protobuf the origin would log the request
bytes as they came in, which costs nothing, and every member would parse them at apply; with our own
layout the origin encodes and every member decodes. Both end in the same request tuples, which
validation needs on the origin in any case. docs/decisions/0001-payload-encoding.md has the figures.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from kvstore.engine import Compare, DeleteRange, Operation, Put, Range, Txn, decode, encode
from kvstore.engine.commands import PUT_HEAD
from kvstore.wire import rpc_pb2 as pb

MEMBERS = 3
OPERATIONS = 5_000
ROUNDS = 15


def from_put(message: pb.PutRequest) -> Put:
    return Put(
        message.key, message.value, message.lease, message.prev_kv, message.ignore_value, message.ignore_lease
    )


def from_range(message: pb.RangeRequest) -> Range:
    return Range(
        message.key,
        message.range_end,
        message.limit,
        message.revision,
        message.sort_order,
        message.sort_target,
        message.keys_only,
        message.count_only,
        message.min_mod_revision,
        message.max_mod_revision,
        message.min_create_revision,
        message.max_create_revision,
        message.serializable,
    )


_UNION = ("version", "create_revision", "mod_revision", "value", "lease")


def from_compare(message: pb.Compare) -> Compare:
    target = message.target
    return Compare(message.key, target, message.result, getattr(message, _UNION[target]), message.range_end)


def from_operation(message: pb.RequestOp) -> Operation:
    kind = message.WhichOneof("request")
    if kind == "request_put":
        return from_put(message.request_put)
    if kind == "request_range":
        return from_range(message.request_range)
    deletion = message.request_delete_range
    return DeleteRange(deletion.key, deletion.range_end, deletion.prev_kv)


def from_txn(message: pb.TxnRequest) -> Txn:
    return Txn(
        tuple(map(from_compare, message.compare)),
        tuple(map(from_operation, message.success)),
        tuple(map(from_operation, message.failure)),
    )


def cost_us(work: Callable[[], object]) -> float:
    costs = []
    for _ in range(ROUNDS):
        start = time.process_time()
        for _ in range(OPERATIONS):
            work()
        costs.append((time.process_time() - start) * 1e6 / OPERATIONS)
    return statistics.median(costs)


def report(name: str, data: bytes, parse: Callable[[bytes], object], request: Put | Txn) -> None:
    encoded = encode(request)
    if parse(data) != request or decode(encoded) != request:
        raise SystemExit("the encodings disagree")
    prefixed = cost_us(lambda: b"\x01\x01" + data)
    parsed = cost_us(lambda: parse(data))
    written = cost_us(lambda: encode(request))
    read = cost_us(lambda: decode(encoded))
    print(
        f"{name:<28} protobuf: write {prefixed:5.2f}, read {parsed:5.2f},"
        f" cluster {prefixed + MEMBERS * parsed:6.2f} us, {len(data) + 2} B"
        f" | own: write {written:5.2f}, read {read:5.2f},"
        f" cluster {written + MEMBERS * read:6.2f} us, {len(encoded)} B"
    )


def read_without_copy(data: bytes) -> tuple[bytes, bytes]:
    """What `Engine.apply` does with a plain put: no request tuple is made."""
    _, _, _, _, length = PUT_HEAD.unpack_from(data)
    middle = PUT_HEAD.size + length
    return data[PUT_HEAD.size : middle], data[middle:]


def main() -> None:
    key, value = b"key000000012345", bytes(256)
    put = pb.PutRequest(key=key, value=value)
    report(
        "put, 256 B",
        put.SerializeToString(),
        lambda data: from_put(pb.PutRequest.FromString(data)),
        Put(key, value),
    )
    encoded = encode(Put(key, value))
    print(f"{'put, 256 B, no copy':<28} own: read {cost_us(lambda: read_without_copy(encoded)):5.2f} us")
    lock = pb.TxnRequest(
        compare=[pb.Compare(key=key, target=pb.Compare.CREATE, create_revision=0)],
        success=[
            pb.RequestOp(request_put=put),
            pb.RequestOp(request_range=pb.RangeRequest(key=b"lock/", range_end=b"lock0", limit=1)),
        ],
        failure=[
            pb.RequestOp(request_range=pb.RangeRequest(key=key)),
            pb.RequestOp(request_range=pb.RangeRequest(key=b"lock/", range_end=b"lock0", limit=1)),
        ],
    )
    many = pb.TxnRequest(success=[pb.RequestOp(request_put=put)] * 100)
    for name, message in (("txn of a lock: 1 + 2 | 2", lock), ("txn of 100 puts, 256 B", many)):
        report(
            name,
            message.SerializeToString(),
            lambda data: from_txn(pb.TxnRequest.FromString(data)),
            from_txn(message),
        )


if __name__ == "__main__":
    main()
