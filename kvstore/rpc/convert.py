"""Conversion between wire messages and the engine's requests and results, both ways.

The only module that knows both. It validates nothing: the engine's checks cover every request that a message
can express.
"""

from __future__ import annotations

from collections.abc import Iterable

from kvstore import engine
from kvstore.engine import results
from kvstore.replica.replica import Replica
from kvstore.wire import kv_pb2
from kvstore.wire import rpc_pb2 as pb


class Headers:
    """Makes the header of every response: cluster, member, its term, and the store's revision."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica

    def at(self, revision: int) -> pb.ResponseHeader:
        """A header with the given revision of the store."""
        replica = self._replica
        return pb.ResponseHeader(
            cluster_id=replica.cluster_id,
            member_id=replica.member_id,
            revision=revision,
            raft_term=replica.node.term,
        )

    def current(self) -> pb.ResponseHeader:
        """A header with the revision that this member has applied."""
        return self.at(self._replica.engine.revision)

    def without_revision(self) -> pb.ResponseHeader:
        """For calls that do not touch the store."""
        return self.at(0)


def range_(request: pb.RangeRequest) -> engine.Range:
    return engine.Range(
        key=request.key,
        range_end=request.range_end,
        limit=request.limit,
        revision=request.revision,
        sort_order=request.sort_order,
        sort_target=request.sort_target,
        keys_only=request.keys_only,
        count_only=request.count_only,
        min_mod_revision=request.min_mod_revision,
        max_mod_revision=request.max_mod_revision,
        min_create_revision=request.min_create_revision,
        max_create_revision=request.max_create_revision,
        serializable=request.serializable,
    )


def put(request: pb.PutRequest) -> engine.Put:
    return engine.Put(
        key=request.key,
        value=request.value,
        lease=request.lease,
        prev_kv=request.prev_kv,
        ignore_value=request.ignore_value,
        ignore_lease=request.ignore_lease,
    )


def delete_range(request: pb.DeleteRangeRequest) -> engine.DeleteRange:
    return engine.DeleteRange(key=request.key, range_end=request.range_end, prev_kv=request.prev_kv)


_OPERANDS = ("version", "create_revision", "mod_revision", "value", "lease")
"""Field of the union by compare target."""


def compare(request: pb.Compare) -> engine.Compare:
    """A union with another field set than the target's compares with zero or empty."""
    target = request.target
    return engine.Compare(
        key=request.key,
        range_end=request.range_end,
        target=target,
        result=request.result,
        operand=getattr(request, _OPERANDS[target]) if 0 <= target < len(_OPERANDS) else 0,
    )


def operation(request: pb.RequestOp) -> engine.Operation | None:
    """One operation of a transaction; None for an empty message."""
    kind = request.WhichOneof("request")
    if kind == "request_range":
        return range_(request.request_range)
    if kind == "request_put":
        return put(request.request_put)
    if kind == "request_delete_range":
        return delete_range(request.request_delete_range)
    if kind == "request_txn":
        return txn(request.request_txn)
    return None


def txn(request: pb.TxnRequest) -> engine.Txn:
    return engine.Txn(
        compares=tuple(compare(one) for one in request.compare),
        success=tuple(operation(one) for one in request.success),
        failure=tuple(operation(one) for one in request.failure),
    )


def key_value(pair: results.KeyValue) -> kv_pb2.KeyValue:
    return kv_pb2.KeyValue(
        key=pair.key,
        create_revision=pair.create_revision,
        mod_revision=pair.mod_revision,
        version=pair.version,
        value=pair.value,
        lease=pair.lease,
    )


def _pairs(pairs: Iterable[results.KeyValue]) -> list[kv_pb2.KeyValue]:
    return [key_value(pair) for pair in pairs]


def range_response(result: results.RangeResult, header: pb.ResponseHeader) -> pb.RangeResponse:
    return pb.RangeResponse(header=header, kvs=_pairs(result.kvs), more=result.more, count=result.count)


def range_chunk(pairs: Iterable[results.KeyValue]) -> pb.RangeResponse:
    """A chunk of a streamed response, except the last."""
    return pb.RangeResponse(kvs=_pairs(pairs))


def put_response(result: results.PutResult, header: pb.ResponseHeader) -> pb.PutResponse:
    prev = key_value(result.prev) if result.prev is not None else None
    return pb.PutResponse(header=header, prev_kv=prev)


def delete_response(result: results.DeleteResult, header: pb.ResponseHeader) -> pb.DeleteRangeResponse:
    return pb.DeleteRangeResponse(header=header, deleted=result.deleted, prev_kvs=_pairs(result.prevs))


def txn_response(result: results.TxnResult, header: pb.ResponseHeader) -> pb.TxnResponse:
    """Headers inside a transaction's response carry the revision alone."""
    inner = [_response_op(one) for one in result.results]
    return pb.TxnResponse(header=header, succeeded=result.succeeded, responses=inner)


def compact_response(_result: results.CompactResult, header: pb.ResponseHeader) -> pb.CompactionResponse:
    return pb.CompactionResponse(header=header)


def _response_op(
    result: results.RangeResult | results.PutResult | results.DeleteResult | results.TxnResult,
) -> pb.ResponseOp:
    if isinstance(result, results.TxnResult):
        return pb.ResponseOp(response_txn=txn_response(result, pb.ResponseHeader()))
    header = pb.ResponseHeader(revision=result.revision)
    if isinstance(result, results.RangeResult):
        return pb.ResponseOp(response_range=range_response(result, header))
    if isinstance(result, results.PutResult):
        return pb.ResponseOp(response_put=put_response(result, header))
    return pb.ResponseOp(response_delete_range=delete_response(result, header))


def member(one: engine.Member) -> pb.Member:
    return pb.Member(
        ID=one.id, name=one.name, peerURLs=one.peer_urls, clientURLs=one.client_urls, isLearner=one.is_learner
    )
