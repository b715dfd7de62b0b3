"""The envelope in which a command travels through the log.

    version u8 | kind u8 | body

Our own fixed layout, decided by measurement (docs/decisions/0001-payload-encoding.md). All
integers are big-endian; the last byte string of a body runs to its end, so nothing is escaped.
Kinds are never reused. A kind may be proposed only when every member knows it: one that meets an
unknown kind or version cannot know what the others did with it, and stops.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from struct import error as struct_error

from kvstore.engine.requests import (
    Alarm,
    Command,
    Compact,
    Compare,
    DeleteRange,
    Operation,
    Put,
    Range,
    SetMemberAttributes,
    Txn,
)

VERSION = 1

KIND_PUT = 1
KIND_DELETE_RANGE = 2
KIND_TXN = 3
KIND_COMPACT = 4
KIND_SET_MEMBER_ATTRIBUTES = 5
KIND_ALARM = 6
KIND_RANGE = 7
"""Only inside a transaction."""

PUT_HEAD = Struct(">BBBqI")
"""Version, kind, flags, lease, length of the key; key and value follow."""
PLAIN_PUT = bytes((VERSION, KIND_PUT, 0))
"""How a put without any flag begins: the engine's fast path looks for it."""

_PUT_BODY = Struct(">BqI")
_DELETE_BODY = Struct(">BI")
_RANGE_BODY = Struct(">BqqiiqqqqI")
_TXN_BODY = Struct(">III")
_ITEM = Struct(">BI")
_COMPARE = Struct(">iiBqII")
_COMPACT_BODY = Struct(">qB")
_MEMBER_BODY = Struct(">QII")
_ALARM_BODY = Struct(">iQi")
_LENGTH = Struct(">I")

_PREV_KV, _IGNORE_VALUE, _IGNORE_LEASE = 1, 2, 4
_KEYS_ONLY, _COUNT_ONLY, _SERIALIZABLE = 1, 2, 4
_NUMBER, _BYTES = 0, 1

TXN_DEPTH_MAX = 128
"""Nesting allowed in a transaction. Each level takes at least one operation off its parent's
limit of 128, so a checked request cannot be deeper."""


class CommandError(Exception):
    """The bytes are no command this version knows. Never an outcome: the member must stop."""


def encode(command: Command) -> bytes:
    """Raises TypeError for what is no command, struct.error for integers out of range."""
    kind, body = _encode_body(command)
    return bytes((VERSION, kind)) + body


def decode(data: bytes | memoryview) -> Command:
    """Raises CommandError."""
    if len(data) < 2 or data[0] != VERSION:
        raise CommandError(f"unknown command version {data[0] if data else None}")
    decoder = _DECODERS.get(data[1])
    if decoder is None:
        raise CommandError(f"unknown command kind {data[1]}")
    try:
        return decoder(bytes(data[2:]))
    except (struct_error, UnicodeDecodeError) as error:
        raise CommandError(f"broken command of kind {data[1]}: {error}") from error


def _encode_body(command: Command | Operation) -> tuple[int, bytes]:
    if isinstance(command, Put):
        return KIND_PUT, _encode_put(command)
    if isinstance(command, Txn):
        return KIND_TXN, _encode_txn(command)
    if isinstance(command, Range):
        return KIND_RANGE, _encode_range(command)
    if isinstance(command, DeleteRange):
        head = _DELETE_BODY.pack(command.prev_kv, len(command.key))
        return KIND_DELETE_RANGE, head + command.key + command.range_end
    if isinstance(command, Compact):
        return KIND_COMPACT, _COMPACT_BODY.pack(command.revision, command.physical)
    if isinstance(command, SetMemberAttributes):
        return KIND_SET_MEMBER_ATTRIBUTES, _encode_member(command)
    if isinstance(command, Alarm):
        return KIND_ALARM, _ALARM_BODY.pack(command.action, command.member_id, command.alarm)
    raise TypeError(f"not a command: {command!r}")


def _encode_put(put: Put) -> bytes:
    key, value, lease, prev_kv, ignore_value, ignore_lease = put
    flags = (
        (_PREV_KV if prev_kv else 0)
        | (_IGNORE_VALUE if ignore_value else 0)
        | (_IGNORE_LEASE if ignore_lease else 0)
    )
    return _PUT_BODY.pack(flags, lease, len(key)) + key + value


def _decode_put(body: bytes) -> Put:
    flags, lease, length = _PUT_BODY.unpack_from(body)
    key, value = _split(body, _PUT_BODY.size, length)
    return Put(
        key, value, lease, bool(flags & _PREV_KV), bool(flags & _IGNORE_VALUE), bool(flags & _IGNORE_LEASE)
    )


def _decode_delete(body: bytes) -> DeleteRange:
    flags, length = _DELETE_BODY.unpack_from(body)
    key, range_end = _split(body, _DELETE_BODY.size, length)
    return DeleteRange(key, range_end, bool(flags))


def _encode_range(request: Range) -> bytes:
    flags = (
        (_KEYS_ONLY if request.keys_only else 0)
        | (_COUNT_ONLY if request.count_only else 0)
        | (_SERIALIZABLE if request.serializable else 0)
    )
    head = _RANGE_BODY.pack(
        flags,
        request.limit,
        request.revision,
        request.sort_order,
        request.sort_target,
        request.min_mod_revision,
        request.max_mod_revision,
        request.min_create_revision,
        request.max_create_revision,
        len(request.key),
    )
    return head + request.key + request.range_end


def _decode_range(body: bytes) -> Range:
    flags, limit, revision, order, target, min_mod, max_mod, min_create, max_create, length = (
        _RANGE_BODY.unpack_from(body)
    )
    key, range_end = _split(body, _RANGE_BODY.size, length)
    keys_only, count_only, serializable = (
        bool(flags & bit) for bit in (_KEYS_ONLY, _COUNT_ONLY, _SERIALIZABLE)
    )
    bounds = min_mod, max_mod, min_create, max_create
    return Range(key, range_end, limit, revision, order, target, keys_only, count_only, *bounds, serializable)


def _encode_txn(txn: Txn) -> bytes:
    parts = [_TXN_BODY.pack(len(txn.compares), len(txn.success), len(txn.failure))]
    for compare in txn.compares:
        body = _encode_compare(compare)
        parts.append(_LENGTH.pack(len(body)))
        parts.append(body)
    for operation in (*txn.success, *txn.failure):
        if operation is None:
            raise TypeError("an empty operation cannot be proposed")
        kind, body = _encode_body(operation)
        parts.append(_ITEM.pack(kind, len(body)))
        parts.append(body)
    return b"".join(parts)


def _decode_txn(body: bytes, depth: int = 0) -> Txn:
    if depth > TXN_DEPTH_MAX:
        raise CommandError("transaction nested too deep")
    compare_count, success_count, failure_count = _TXN_BODY.unpack_from(body)
    offset = _TXN_BODY.size
    compares = []
    for _ in range(compare_count):
        (length,) = _LENGTH.unpack_from(body, offset)
        offset += _LENGTH.size
        compares.append(_decode_compare(_cut(body, offset, length)))
        offset += length
    operations: list[Operation] = []
    for _ in range(success_count + failure_count):
        kind, length = _ITEM.unpack_from(body, offset)
        offset += _ITEM.size
        operations.append(_decode_operation(kind, _cut(body, offset, length), depth))
        offset += length
    if offset != len(body):
        raise CommandError(f"{len(body) - offset} bytes after a transaction")
    return Txn(tuple(compares), tuple(operations[:success_count]), tuple(operations[success_count:]))


def _decode_operation(kind: int, body: bytes, depth: int) -> Operation:
    if kind == KIND_PUT:
        return _decode_put(body)
    if kind == KIND_RANGE:
        return _decode_range(body)
    if kind == KIND_DELETE_RANGE:
        return _decode_delete(body)
    if kind == KIND_TXN:
        return _decode_txn(body, depth + 1)
    raise CommandError(f"unknown operation kind {kind}")


def _encode_compare(compare: Compare) -> bytes:
    key, target, result, operand, range_end = compare
    tag, number, tail = (_BYTES, 0, operand) if isinstance(operand, bytes) else (_NUMBER, operand, b"")
    return _COMPARE.pack(target, result, tag, number, len(key), len(range_end)) + key + range_end + tail


def _decode_compare(body: bytes) -> Compare:
    target, result, tag, number, key_length, end_length = _COMPARE.unpack_from(body)
    key, rest = _split(body, _COMPARE.size, key_length)
    range_end, tail = _split(rest, 0, end_length)
    return Compare(key, target, result, tail if tag == _BYTES else number, range_end)


def _decode_compact(body: bytes) -> Compact:
    revision, physical = _COMPACT_BODY.unpack(body)
    return Compact(revision, bool(physical))


def _encode_member(request: SetMemberAttributes) -> bytes:
    name = request.name.encode()
    parts = [_MEMBER_BODY.pack(request.member_id, len(name), len(request.client_urls)), name]
    for url in request.client_urls:
        data = url.encode()
        parts.append(_LENGTH.pack(len(data)))
        parts.append(data)
    return b"".join(parts)


def _decode_member(body: bytes) -> SetMemberAttributes:
    member_id, length, url_count = _MEMBER_BODY.unpack_from(body)
    offset = _MEMBER_BODY.size
    name = _cut(body, offset, length).decode()
    offset += length
    urls = []
    for _ in range(url_count):
        (length,) = _LENGTH.unpack_from(body, offset)
        offset += _LENGTH.size
        urls.append(_cut(body, offset, length).decode())
        offset += length
    return SetMemberAttributes(member_id, name, tuple(urls))


def _decode_alarm(body: bytes) -> Alarm:
    return Alarm(*_ALARM_BODY.unpack(body))


def _split(body: bytes, offset: int, length: int) -> tuple[bytes, bytes]:
    middle = offset + length
    if middle > len(body):
        raise CommandError("command cut short")
    return body[offset:middle], body[middle:]


def _cut(body: bytes, offset: int, length: int) -> bytes:
    end = offset + length
    if end > len(body):
        raise CommandError("command cut short")
    return body[offset:end]


_DECODERS: dict[int, Callable[[bytes], Command]] = {
    KIND_PUT: _decode_put,
    KIND_DELETE_RANGE: _decode_delete,
    KIND_TXN: _decode_txn,
    KIND_COMPACT: _decode_compact,
    KIND_SET_MEMBER_ATTRIBUTES: _decode_member,
    KIND_ALARM: _decode_alarm,
}
