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

from kvstore.engine.lease_commands import LEASE_DECODERS, encode_lease_command
from kvstore.engine.requests import (
    TXN_DEPTH_MAX,
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
_RANGE_BODY = Struct(">BI")
_RANGE_OPTIONS = Struct(">qqiiqqqq")
"""Behind the body's head if `_OPTIONS` is set: limit, revision, order, target, the four bounds."""
_TXN_BODY = Struct(">III")
_ITEM = Struct(">BI")
"""Before each operation of a transaction: its kind and length."""
_COMPARE = Struct(">IiiBqI")
"""Length of what follows these four bytes, target, result, tag, number, length of the key."""
_COMPACT_BODY = Struct(">qB")
_MEMBER_BODY = Struct(">QII")
_ALARM_BODY = Struct(">iQi")
_LENGTH = Struct(">I")

_PREV_KV, _IGNORE_VALUE, _IGNORE_LEASE = 1, 2, 4
_KEYS_ONLY, _COUNT_ONLY, _SERIALIZABLE, _OPTIONS = 1, 2, 4, 8
_PHYSICAL, _RESUME = 1, 2
_NO_OPTIONS = (0, 0, 0, 0, 0, 0, 0, 0)
_NUMBER, _BYTES = 0, 1


class CommandError(Exception):
    """The bytes are no command this version knows. Never an outcome: the member must stop."""


def encode(command: Command) -> bytes:
    """Raises TypeError for what is no command, struct.error for integers out of range."""
    kind, body = _encode_body(command)
    return bytes((VERSION, kind)) + body


def decode(data: bytes | memoryview) -> Command:
    """Raises CommandError."""
    data = bytes(data)
    if len(data) < _BODY_OFFSET or data[0] != VERSION:
        raise CommandError(f"unknown command version {data[0] if data else None}")
    decoder = _DECODERS.get(data[1])
    if decoder is None:
        raise CommandError(f"unknown command kind {data[1]}")
    try:
        return decoder(data, _BODY_OFFSET, len(data))
    except (struct_error, UnicodeDecodeError) as error:
        raise CommandError(f"broken command of kind {data[1]}: {error}") from error


_BODY_OFFSET = 2


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
        return KIND_COMPACT, _COMPACT_BODY.pack(
            command.revision, _PHYSICAL * command.physical | _RESUME * command.resume
        )
    if isinstance(command, SetMemberAttributes):
        return KIND_SET_MEMBER_ATTRIBUTES, _encode_member(command)
    if isinstance(command, Alarm):
        return KIND_ALARM, _ALARM_BODY.pack(command.action, command.member_id, command.alarm)
    encoded = encode_lease_command(command)
    if encoded is not None:
        return encoded
    raise TypeError(f"not a command: {command!r}")


# Every decoder takes the whole command and the bounds of its own part: no part is copied twice.


def _encode_put(put: Put) -> bytes:
    key, value, lease, prev_kv, ignore_value, ignore_lease = put
    flags = prev_kv * _PREV_KV | ignore_value * _IGNORE_VALUE | ignore_lease * _IGNORE_LEASE
    return _PUT_BODY.pack(flags, lease, len(key)) + key + value


def _decode_put(data: bytes, offset: int, end: int) -> Put:
    flags, lease, length = _PUT_BODY.unpack_from(data, offset)
    offset += _PUT_BODY.size
    middle = offset + length
    if middle > end:
        raise CommandError("put truncated")
    key, value = data[offset:middle], data[middle:end]
    if not flags:
        return Put(key, value, lease)
    return Put(
        key, value, lease, flags & _PREV_KV != 0, flags & _IGNORE_VALUE != 0, flags & _IGNORE_LEASE != 0
    )


def _decode_delete(data: bytes, offset: int, end: int) -> DeleteRange:
    flags, length = _DELETE_BODY.unpack_from(data, offset)
    offset += _DELETE_BODY.size
    middle = offset + length
    if middle > end:
        raise CommandError("deletion truncated")
    return DeleteRange(data[offset:middle], data[middle:end], flags != 0)


def _encode_range(request: Range) -> bytes:
    (
        key,
        range_end,
        limit,
        revision,
        order,
        target,
        keys_only,
        count_only,
        min_mod,
        max_mod,
        min_create,
        max_create,
        serializable,
    ) = request
    flags = keys_only * _KEYS_ONLY | count_only * _COUNT_ONLY | serializable * _SERIALIZABLE
    options = (limit, revision, order, target, min_mod, max_mod, min_create, max_create)
    if options == _NO_OPTIONS:
        return _RANGE_BODY.pack(flags, len(key)) + key + range_end
    head = _RANGE_BODY.pack(flags | _OPTIONS, len(key)) + _RANGE_OPTIONS.pack(*options)
    return head + key + range_end


def _decode_range(data: bytes, offset: int, end: int) -> Range:
    flags, length = _RANGE_BODY.unpack_from(data, offset)
    offset += _RANGE_BODY.size
    options = _NO_OPTIONS
    if flags & _OPTIONS:
        options = _RANGE_OPTIONS.unpack_from(data, offset)
        offset += _RANGE_OPTIONS.size
    middle = offset + length
    if middle > end:
        raise CommandError("range truncated")
    key, range_end = data[offset:middle], data[middle:end]
    if not flags:
        return Range(key, range_end)
    keys_only, count_only = flags & _KEYS_ONLY != 0, flags & _COUNT_ONLY != 0
    bounds = options[4:]
    serializable = flags & _SERIALIZABLE != 0
    return Range(key, range_end, *options[:4], keys_only, count_only, *bounds, serializable)


def _encode_txn(txn: Txn) -> bytes:
    compares, success, failure = txn
    parts = [_TXN_BODY.pack(len(compares), len(success), len(failure))]
    for key, target, result, operand, range_end in compares:
        tag, number, value = (_BYTES, 0, operand) if isinstance(operand, bytes) else (_NUMBER, operand, b"")
        length = _COMPARE.size + len(key) + len(range_end) + len(value)
        parts.append(_COMPARE.pack(length, target, result, tag, number, len(key)))
        parts.append(key + _LENGTH.pack(len(range_end)) + range_end + value)
    for operation in (*success, *failure):
        if operation is None:
            raise TypeError("an empty operation cannot be proposed")
        kind, body = _encode_body(operation)
        parts.append(_ITEM.pack(kind, len(body)))
        parts.append(body)
    return b"".join(parts)


def _decode_txn(data: bytes, offset: int, end: int, depth: int = 0) -> Txn:
    if depth > TXN_DEPTH_MAX:
        raise CommandError("transaction nested too deep")
    compare_count, success_count, failure_count = _TXN_BODY.unpack_from(data, offset)
    offset += _TXN_BODY.size
    compares = []
    for _ in range(compare_count):
        (length,) = _LENGTH.unpack_from(data, offset)
        compares.append(_decode_compare(data, offset, _bounded(offset + _LENGTH.size + length, end)))
        offset += _LENGTH.size + length
    operations: list[Operation] = []
    for _ in range(success_count + failure_count):
        kind, length = _ITEM.unpack_from(data, offset)
        offset += _ITEM.size
        stop = offset + length
        if stop > end:
            raise CommandError("operation truncated")
        if kind == KIND_PUT:
            operations.append(_decode_put(data, offset, stop))
        elif kind == KIND_RANGE:
            operations.append(_decode_range(data, offset, stop))
        elif kind == KIND_DELETE_RANGE:
            operations.append(_decode_delete(data, offset, stop))
        elif kind == KIND_TXN:
            operations.append(_decode_txn(data, offset, stop, depth + 1))
        else:
            raise CommandError(f"unknown operation kind {kind}")
        offset = stop
    if offset != end:
        raise CommandError(f"{end - offset} bytes after a transaction")
    return Txn(tuple(compares), tuple(operations[:success_count]), tuple(operations[success_count:]))


def _decode_compare(data: bytes, offset: int, end: int) -> Compare:
    _, target, result, tag, number, length = _COMPARE.unpack_from(data, offset)
    offset += _COMPARE.size
    key_end = _bounded(offset + length, end)
    (length,) = _LENGTH.unpack_from(data, key_end)
    low = key_end + _LENGTH.size
    high = _bounded(low + length, end)
    operand = data[high:end] if tag == _BYTES else number
    return Compare(data[offset:key_end], target, result, operand, data[low:high])


def _decode_compact(data: bytes, offset: int, end: int) -> Compact:
    revision, flags = _COMPACT_BODY.unpack(data[offset:end])
    return Compact(revision, bool(flags & _PHYSICAL), bool(flags & _RESUME))


def _encode_member(request: SetMemberAttributes) -> bytes:
    name = request.name.encode()
    parts = [_MEMBER_BODY.pack(request.member_id, len(name), len(request.client_urls)), name]
    for url in request.client_urls:
        data = url.encode()
        parts.append(_LENGTH.pack(len(data)))
        parts.append(data)
    return b"".join(parts)


def _decode_member(data: bytes, offset: int, end: int) -> SetMemberAttributes:
    member_id, length, url_count = _MEMBER_BODY.unpack_from(data, offset)
    offset += _MEMBER_BODY.size
    stop = _bounded(offset + length, end)
    name = data[offset:stop].decode()
    urls = []
    for _ in range(url_count):
        (length,) = _LENGTH.unpack_from(data, stop)
        offset = stop + _LENGTH.size
        stop = _bounded(offset + length, end)
        urls.append(data[offset:stop].decode())
    return SetMemberAttributes(member_id, name, tuple(urls))


def _decode_alarm(data: bytes, offset: int, end: int) -> Alarm:
    return Alarm(*_ALARM_BODY.unpack(data[offset:end]))


def _bounded(stop: int, end: int) -> int:
    if stop > end:
        raise CommandError("command truncated")
    return stop


_DECODERS: dict[int, Callable[[bytes, int, int], Command]] = {
    KIND_PUT: _decode_put,
    KIND_DELETE_RANGE: _decode_delete,
    KIND_TXN: _decode_txn,
    KIND_COMPACT: _decode_compact,
    KIND_SET_MEMBER_ATTRIBUTES: _decode_member,
    KIND_ALARM: _decode_alarm,
    **LEASE_DECODERS,
}
