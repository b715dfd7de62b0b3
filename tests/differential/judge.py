"""Whether two replies to the same request say the same.

Everything is compared but ids, terms and times. Two freedoms that etcd itself takes are respected: pairs
that tie in a sort come in any order (etcd's sort is not stable), and so, when a limit splits a tie,
it is open which of the tied pairs are returned.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from google.protobuf import text_format
from google.protobuf.message import Message

from kvstore.wire import kv_pb2, rpc_pb2
from tests.differential.programs import Range, Request, RequestOp, Txn

Reply = (
    rpc_pb2.RangeResponse
    | rpc_pb2.PutResponse
    | rpc_pb2.DeleteRangeResponse
    | rpc_pb2.TxnResponse
    | rpc_pb2.CompactionResponse
)


class Refusal(NamedTuple):
    """An error reply."""

    code: int
    text: str


class Kept(NamedTuple):
    """A difference that is kept on purpose, with its reason."""

    name: str
    reason: str
    covers: Callable[[Request, Reply | Refusal, Reply | Refusal], bool]
    """(request, etcd's outcome, ours) -> whether this is that difference."""


KEPT: tuple[Kept, ...] = ()
"""Where this store answers otherwise than etcd 3.5.1, on purpose: the later 3.5 releases are followed.
Each has a row of its name in docs/compatibility.md."""


def _sort_key(pair: kv_pb2.KeyValue, target: int) -> int | bytes:
    numbers = {Range.VERSION: pair.version, Range.CREATE: pair.create_revision, Range.MOD: pair.mod_revision}
    return numbers.get(target, pair.value)  # type: ignore[call-overload,no-any-return]  # enums are ints


def _order_ties(request: Range, reply: rpc_pb2.RangeResponse) -> None:
    """Bring tied pairs into key order; keep only the sort key of a tied group that the limit truncated."""
    target = request.sort_target
    if target == Range.KEY or not reply.kvs:
        return
    if target == Range.VALUE and request.keys_only:
        pairs = (
            sorted(reply.kvs, key=lambda pair: pair.key)
            if not reply.more
            else [kv_pb2.KeyValue()] * len(reply.kvs)
        )
    else:
        last = _sort_key(reply.kvs[-1], target)
        pairs, group = [], list[kv_pb2.KeyValue]()
        for pair in (*reply.kvs, None):
            if group and (pair is None or _sort_key(pair, target) != _sort_key(group[0], target)):
                pairs += sorted(group, key=lambda one: one.key)
                group = []
            if pair is not None:
                is_truncated = reply.more and _sort_key(pair, target) == last
                group.append(_only_sort_key(pair, target) if is_truncated else pair)
    copies = [kv_pb2.KeyValue.FromString(pair.SerializeToString()) for pair in pairs]
    del reply.kvs[:]
    reply.kvs.extend(copies)


def _only_sort_key(pair: kv_pb2.KeyValue, target: int) -> kv_pb2.KeyValue:
    if target == Range.VERSION:
        return kv_pb2.KeyValue(version=pair.version)
    if target == Range.CREATE:
        return kv_pb2.KeyValue(create_revision=pair.create_revision)
    if target == Range.MOD:
        return kv_pb2.KeyValue(mod_revision=pair.mod_revision)
    return kv_pb2.KeyValue(value=pair.value)


def _normalise(request: Request | RequestOp, reply: Reply | rpc_pb2.ResponseOp) -> None:
    if isinstance(request, RequestOp):
        asked, answered = request.WhichOneof("request"), reply.WhichOneof("response")
        if asked is not None and answered is not None and asked.split("_")[1] == answered.split("_")[1]:
            _normalise(getattr(request, asked), getattr(reply, answered))
        return
    if reply.HasField("header"):
        reply.header.ClearField("cluster_id")
        reply.header.ClearField("member_id")
        reply.header.ClearField("raft_term")
    if isinstance(request, Range):
        _order_ties(request, reply)
    elif isinstance(request, Txn):
        branch = request.success if reply.succeeded else request.failure
        for operation, answer in zip(branch, reply.responses, strict=False):
            _normalise(operation, answer)


def normalised(request: Request, reply: Reply | Refusal) -> Reply | Refusal:
    """A copy in which equal answers are equal."""
    if isinstance(reply, Refusal):
        return reply
    copy = type(reply).FromString(reply.SerializeToString())
    _normalise(request, copy)
    return copy


def show(outcome: Any) -> str:
    """A request, an action or a reply, in one line."""
    if isinstance(outcome, Refusal):
        return f"code {outcome.code}: {outcome.text}"
    if not isinstance(outcome, Message):
        return str(outcome)
    text = f"{type(outcome).__name__} {{ {text_format.MessageToString(outcome, as_one_line=True)}}}"
    return text if len(text) < 3000 else text[:3000] + "..."


def explanation(request: Request, left: Reply | Refusal, right: Reply | Refusal) -> Kept | None:
    """The kept difference that this is, if any."""
    return next((kept for kept in KEPT if kept.covers(request, left, right)), None)


def difference(request: Request, left: Reply | Refusal, right: Reply | Refusal) -> str | None:
    """What differs, in words; None if both say the same."""
    one, other = normalised(request, left), normalised(request, right)
    if type(one) is type(other) and one == other:
        return None
    return f"request {show(request)}\n   left {show(one)}\n  right {show(other)}"
