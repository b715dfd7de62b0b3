"""From the arguments of put, get and del to requests, with etcdctl's checks in their order.

The functions serve the commands and the lines of `txn` alike.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from kvstore.cli.exit_codes import bad_arguments, bad_feature
from kvstore.cli.gotext import parse_int, quote
from kvstore.wire import rpc_pb2

ALL_KEYS = b"\x00"
"""As a key: the first possible one. As a range end: no end."""

_ORDERS = {
    "": rpc_pb2.RangeRequest.NONE,
    "ASCEND": rpc_pb2.RangeRequest.ASCEND,
    "DESCEND": rpc_pb2.RangeRequest.DESCEND,
}
_TARGETS = {
    "": rpc_pb2.RangeRequest.KEY,
    "CREATE": rpc_pb2.RangeRequest.CREATE,
    "KEY": rpc_pb2.RangeRequest.KEY,
    "MODIFY": rpc_pb2.RangeRequest.MOD,
    "VALUE": rpc_pb2.RangeRequest.VALUE,
    "VERSION": rpc_pb2.RangeRequest.VERSION,
}


def to_bytes(text: str) -> bytes:
    """An argument as the shell passed it, UTF-8 or not."""
    return os.fsencode(text)


def prefix_end(prefix: bytes) -> bytes:
    """The end of the range of all keys that begin with `prefix`."""
    kept = prefix.rstrip(b"\xff")
    return kept[:-1] + bytes([kept[-1] + 1]) if kept else ALL_KEYS


def _key_range(args: Sequence[str], *, prefix: bool, from_key: bool) -> tuple[bytes, bytes]:
    key = to_bytes(args[0])
    if len(args) > 1:
        if prefix or from_key:
            raise bad_arguments(
                "too many arguments, only accept one argument when `--prefix` or `--from-key` is set"
            )
        return key, to_bytes(args[1])
    if from_key or (prefix and not key):
        return key or ALL_KEYS, ALL_KEYS
    return key, prefix_end(key) if prefix else b""


def put_request(
    args: Sequence[str],
    *,
    lease: str,
    prev_kv: bool,
    ignore_value: bool,
    ignore_lease: bool,
    read_value: Callable[[], bytes],
) -> rpc_pb2.PutRequest:
    """`read_value` gives the value that is not among the arguments; empty when there is none."""
    needs = "put command needs 1 argument and input from stdin or 2 arguments"
    if not args:
        raise bad_arguments(needs)
    if ignore_value and len(args) > 1:
        raise bad_arguments("put command needs only 1 argument when 'ignore-value' is set")
    value = b""
    if not ignore_value:
        value = to_bytes(args[1]) if len(args) > 1 else read_value()
        if not value and len(args) == 1:
            raise bad_arguments(needs)
    try:
        lease_id = parse_int(lease, 16)
    except ValueError as error:
        raise bad_arguments(f"bad lease ID ({error}), expecting ID in Hex") from None
    return rpc_pb2.PutRequest(
        key=to_bytes(args[0]),
        value=value,
        lease=lease_id,
        prev_kv=prev_kv,
        ignore_value=ignore_value,
        ignore_lease=ignore_lease,
    )


def range_request(
    args: Sequence[str],
    *,
    consistency: str,
    order: str,
    sort_by: str,
    limit: int,
    rev: int,
    prefix: bool,
    from_key: bool,
    keys_only: bool,
    count_only: bool,
) -> rpc_pb2.RangeRequest:
    if not args:
        raise bad_arguments("get command needs one argument as key and an optional argument as range_end")
    if prefix and from_key:
        raise bad_arguments("`--prefix` and `--from-key` cannot be set at the same time, choose one")
    if keys_only and count_only:
        raise bad_arguments("`--keys-only` and `--count-only` cannot be set at the same time, choose one")
    if consistency not in {"l", "s"}:
        raise bad_feature(f"unknown consistency flag {quote(consistency.encode())}")
    key, range_end = _key_range(args, prefix=prefix, from_key=from_key)
    sort_order, sort_target = _ORDERS.get(order.upper()), _TARGETS.get(sort_by.upper())
    if sort_order is None:
        raise bad_feature(f"bad sort order {order}")
    if sort_target is None:
        raise bad_feature(f"bad sort target {sort_by}")
    if (sort_order, sort_target) == (rpc_pb2.RangeRequest.ASCEND, rpc_pb2.RangeRequest.KEY):
        sort_order = rpc_pb2.RangeRequest.NONE  # keys come in order anyway, and unsorted a limit is cheap
    return rpc_pb2.RangeRequest(
        key=key,
        range_end=range_end,
        limit=limit,
        revision=max(rev, 0),
        sort_order=sort_order,
        sort_target=sort_target,
        serializable=consistency == "s",
        keys_only=keys_only,
        count_only=count_only,
    )


def delete_request(
    args: Sequence[str], *, prefix: bool, from_key: bool, prev_kv: bool
) -> rpc_pb2.DeleteRangeRequest:
    if not 1 <= len(args) <= 2:
        raise bad_arguments("del command needs one argument as key and an optional argument as range_end")
    if prefix and from_key:
        raise bad_arguments("`--prefix` and `--from-key` cannot be set at the same time, choose one")
    key, range_end = _key_range(args, prefix=prefix, from_key=from_key)
    return rpc_pb2.DeleteRangeRequest(key=key, range_end=range_end, prev_kv=prev_kv)
