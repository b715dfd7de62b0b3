"""Replies in the forms of `-w`, byte for byte as etcdctl 3.5 prints them.

Differences between the forms are etcdctl's own: JSON has Go's field names, ids as numbers and no zero
fields; `fields` quotes by Go's rules; a table exists only for members and endpoints.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import click
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from kvstore.cli.exit_codes import bad_feature
from kvstore.cli.gotext import format_bytes, quote
from kvstore.wire import kv_pb2, rpc_pb2


@dataclass(frozen=True, slots=True)
class EndpointHealth:
    endpoint: str
    healthy: bool
    took: str
    error: str


@dataclass(frozen=True, slots=True)
class EndpointStatus:
    endpoint: str
    status: rpc_pb2.StatusResponse


@dataclass(frozen=True, slots=True)
class EndpointHash:
    endpoint: str
    reply: rpc_pb2.HashKVResponse


def _out(data: bytes | str) -> None:
    click.echo(data, nl=False)


class Printer:
    """One form of output; what a form does not know is refused before anything is sent."""

    form = ""
    unsupported: frozenset[str] = frozenset()

    def check(self, what: str) -> None:
        """Raise the error for a reply that this form cannot show."""
        if what in self.unsupported:
            raise bad_feature(f"{self.form} not supported as output format")

    def put(self, reply: rpc_pb2.PutResponse) -> None:
        raise NotImplementedError

    def get(self, reply: rpc_pb2.RangeResponse) -> None:
        raise NotImplementedError

    def delete(self, reply: rpc_pb2.DeleteRangeResponse) -> None:
        raise NotImplementedError

    def txn(self, reply: rpc_pb2.TxnResponse) -> None:
        raise NotImplementedError

    def operation(self, response: rpc_pb2.ResponseOp) -> None:
        """Print the reply of one operation of a transaction, nested ones too."""
        match response.WhichOneof("response"):
            case "response_put":
                self.put(response.response_put)
            case "response_range":
                self.get(response.response_range)
            case "response_delete_range":
                self.delete(response.response_delete_range)
            case "response_txn":
                self.txn(response.response_txn)

    def watch(self, reply: rpc_pb2.WatchResponse) -> None:
        raise NotImplementedError

    def alarms(self, reply: rpc_pb2.AlarmResponse) -> None:
        raise NotImplementedError

    def members(self, reply: rpc_pb2.MemberListResponse) -> None:
        raise NotImplementedError

    def change(self, reply: Message, line: str) -> None:
        """Print the reply to a change of the cluster; `line` is its simple form."""
        raise NotImplementedError

    def statuses(self, found: Sequence[EndpointStatus]) -> None:
        raise NotImplementedError

    def healths(self, found: Sequence[EndpointHealth]) -> None:
        raise NotImplementedError

    def hashes(self, found: Sequence[EndpointHash]) -> None:
        raise NotImplementedError


def _member_cells(member: rpc_pb2.Member) -> tuple[str, ...]:
    return (
        f"{member.ID:x}",
        "started" if member.name else "unstarted",
        member.name,
        ",".join(member.peerURLs),
        ",".join(member.clientURLs),
        _bool(member.isLearner),
    )


def _status_cells(found: EndpointStatus) -> tuple[str, ...]:
    status = found.status
    return (
        found.endpoint,
        f"{status.header.member_id:x}",
        status.version,
        format_bytes(status.dbSize),
        _bool(status.leader == status.header.member_id),
        _bool(status.isLearner),
        str(status.raftTerm),
        str(status.raftIndex),
        str(status.raftAppliedIndex),
        ", ".join(status.errors),
    )


def _bool(value: bool) -> str:
    return "true" if value else "false"


class SimplePrinter(Printer):
    form = "simple"

    def __init__(self, *, in_hex: bool, values_only: bool = False) -> None:
        self._in_hex = in_hex
        self._values_only = values_only

    def _text(self, data: bytes) -> bytes:
        return b"".join(b"\\x%02x" % byte for byte in data) if self._in_hex else data

    def _pair(self, pair: kv_pb2.KeyValue, *, values_only: bool = False) -> bytes:
        key = b"" if values_only else self._text(pair.key) + b"\n"
        return key + self._text(pair.value) + b"\n"

    def put(self, reply: rpc_pb2.PutResponse) -> None:
        _out(b"OK\n" + (self._pair(reply.prev_kv) if reply.HasField("prev_kv") else b""))

    def get(self, reply: rpc_pb2.RangeResponse) -> None:
        _out(b"".join(self._pair(pair, values_only=self._values_only) for pair in reply.kvs))

    def delete(self, reply: rpc_pb2.DeleteRangeResponse) -> None:
        _out(b"%d\n" % reply.deleted + b"".join(map(self._pair, reply.prev_kvs)))

    def txn(self, reply: rpc_pb2.TxnResponse) -> None:
        _out("SUCCESS\n" if reply.succeeded else "FAILURE\n")
        for response in reply.responses:
            _out("\n")
            self.operation(response)

    def watch(self, reply: rpc_pb2.WatchResponse) -> None:
        for event in reply.events:
            before = self._pair(event.prev_kv) if event.HasField("prev_kv") else b""
            name = kv_pb2.Event.EventType.Name(event.type).encode()
            _out(name + b"\n" + before + self._pair(event.kv))

    def alarms(self, reply: rpc_pb2.AlarmResponse) -> None:
        for alarm in reply.alarms:
            member = f"memberID:{alarm.memberID} " if alarm.memberID else ""
            kind = f"alarm:{rpc_pb2.AlarmType.Name(alarm.alarm)} " if alarm.alarm else ""
            _out(f"{member}{kind}\n")

    def members(self, reply: rpc_pb2.MemberListResponse) -> None:
        _out("".join(", ".join(_member_cells(member)) + "\n" for member in reply.members))

    def change(self, reply: Message, line: str) -> None:
        _out(line)

    def statuses(self, found: Sequence[EndpointStatus]) -> None:
        _out("".join(", ".join(_status_cells(one)) + "\n" for one in found))

    def hashes(self, found: Sequence[EndpointHash]) -> None:
        _out("".join(f"{one.endpoint}, {one.reply.hash}\n" for one in found))

    def healths(self, found: Sequence[EndpointHealth]) -> None:
        for one in found:
            if one.error:
                text = f"{one.endpoint} is unhealthy: failed to commit proposal: {one.error}"
                click.echo(text, err=True)
            else:
                text = f"{one.endpoint} is healthy: successfully committed proposal: took = {one.took}"
                click.echo(text)


def json_value(message: Message) -> dict[str, Any]:
    """A message as Go's encoding/json shows the struct: declaration order, zero fields left out."""
    found: dict[str, Any] = {}
    for field, value in message.ListFields():
        convert: Callable[[Any], Any] = _json_scalar
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            convert = json_value
        shown = [convert(item) for item in value] if field.is_repeated else convert(value)
        if field.containing_oneof is not None:
            # gogo wraps a oneof in a field of its Go name
            found[field.containing_oneof.name.capitalize()] = {field.name: shown}
        else:
            found[field.name] = shown
    return found


def _json_scalar(value: Any) -> Any:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value


# encoding/json writes these so, for the sake of HTML and JavaScript.
_JSON_ESCAPES = str.maketrans(
    {char: f"\\u{ord(char):04x}" for char in ("<", ">", "&", "\N{LINE SEPARATOR}", "\N{PARAGRAPH SEPARATOR}")}
)


def json_text(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.translate(_JSON_ESCAPES)


class JsonPrinter(Printer):
    form = "json"

    def __init__(self, *, in_hex: bool) -> None:
        self._in_hex = in_hex

    def _print(self, reply: Message) -> None:
        _out(json_text(json_value(reply)) + "\n")

    put = get = delete = txn = alarms = _print

    def watch(self, reply: rpc_pb2.WatchResponse) -> None:
        # A struct of the client's own, whose fields are never left out.
        shown = {
            "Header": json_value(reply.header),
            "Events": [json_value(event) for event in reply.events],
            "CompactRevision": reply.compact_revision,
            "Canceled": reply.canceled,
            "Created": reply.created,
        }
        _out(json_text(shown) + "\n")

    def change(self, reply: Message, line: str) -> None:
        self._print(reply)

    def members(self, reply: rpc_pb2.MemberListResponse) -> None:
        if not self._in_hex:
            self._print(reply)
            return
        # etcdctl writes this form by hand, with a spelling of its own
        header = reply.header
        members = [
            f'{{"ID":"{member.ID:x}","name":"{member.name}"'
            f',"peerURLs":{json_text(list(member.peerURLs) or None)}'
            f',"clientURLS":{json_text(list(member.clientURLs) or None)}}}'
            for member in reply.members
        ]
        listed = f',"members":[{",".join(members)}]' if members else ""
        _out(
            f'{{"header":{{"cluster_id":"{header.cluster_id:x}","member_id":"{header.member_id:x}"'
            f',"raft_term":{header.raft_term:x}}}{listed}}}\n'
        )

    def statuses(self, found: Sequence[EndpointStatus]) -> None:
        shown = [{"Endpoint": one.endpoint, "Status": json_value(one.status)} for one in found]
        _out(json_text(shown) + "\n")

    def hashes(self, found: Sequence[EndpointHash]) -> None:
        _out(json_text([{"Endpoint": one.endpoint, "HashKV": json_value(one.reply)} for one in found]) + "\n")

    def healths(self, found: Sequence[EndpointHealth]) -> None:
        shown = []
        for one in found:
            row = {"endpoint": one.endpoint, "health": one.healthy, "took": one.took}
            shown.append(row | {"error": one.error} if one.error else row)
        _out(json_text(shown) + "\n")


class FieldsPrinter(Printer):
    """One `"Name" : value` a line."""

    form = "fields"
    unsupported = frozenset({"change"})

    def _lines(self, *rows: tuple[str, object]) -> None:
        _out("".join(f'"{name}" : {value}\n' for name, value in rows))

    def _header(self, header: rpc_pb2.ResponseHeader) -> None:
        self._lines(
            ("ClusterID", header.cluster_id),
            ("MemberID", header.member_id),
            ("Revision", header.revision),
            ("RaftTerm", header.raft_term),
        )

    def _pair(self, prefix: str, pair: kv_pb2.KeyValue) -> None:
        self._lines(
            (f"{prefix}Key", quote(pair.key)),
            (f"{prefix}CreateRevision", pair.create_revision),
            (f"{prefix}ModRevision", pair.mod_revision),
            (f"{prefix}Version", pair.version),
            (f"{prefix}Value", quote(pair.value)),
            (f"{prefix}Lease", pair.lease),
        )

    def put(self, reply: rpc_pb2.PutResponse) -> None:
        self._header(reply.header)
        if reply.HasField("prev_kv"):
            self._pair("Prev", reply.prev_kv)

    def get(self, reply: rpc_pb2.RangeResponse) -> None:
        self._header(reply.header)
        for pair in reply.kvs:
            self._pair("", pair)
        self._lines(("More", _bool(reply.more)), ("Count", reply.count))

    def delete(self, reply: rpc_pb2.DeleteRangeResponse) -> None:
        self._header(reply.header)
        self._lines(("Deleted", reply.deleted))
        for pair in reply.prev_kvs:
            self._pair("Prev", pair)

    def txn(self, reply: rpc_pb2.TxnResponse) -> None:
        self._header(reply.header)
        self._lines(("Succeeded", _bool(reply.succeeded)))
        for response in reply.responses:
            self.operation(response)

    def watch(self, reply: rpc_pb2.WatchResponse) -> None:
        self._header(reply.header)
        for event in reply.events:
            self._lines(("Type", kv_pb2.Event.EventType.Name(event.type)))
            if event.HasField("prev_kv"):
                self._pair("Prev", event.prev_kv)
            self._pair("", event.kv)

    def alarms(self, reply: rpc_pb2.AlarmResponse) -> None:
        self._header(reply.header)
        for alarm in reply.alarms:
            self._lines(("MemberID", alarm.memberID), ("AlarmType", rpc_pb2.AlarmType.Name(alarm.alarm)))
            _out("\n")

    def members(self, reply: rpc_pb2.MemberListResponse) -> None:
        self._header(reply.header)
        for member in reply.members:
            self._lines(
                ("ID", member.ID),
                ("Name", quote(member.name.encode())),
                *(("PeerURL", quote(url.encode())) for url in member.peerURLs),
                *(("ClientURL", quote(url.encode())) for url in member.clientURLs),
                ("IsLearner", _bool(member.isLearner)),
            )
            _out("\n")

    def statuses(self, found: Sequence[EndpointStatus]) -> None:
        for one in found:
            status = one.status
            self._header(status.header)
            self._lines(
                ("Version", quote(status.version.encode())),
                ("DBSize", status.dbSize),
                ("Leader", status.leader),
                ("IsLearner", _bool(status.isLearner)),
                ("RaftIndex", status.raftIndex),
                ("RaftTerm", status.raftTerm),
                ("RaftAppliedIndex", status.raftAppliedIndex),
                ("Errors", f"[{' '.join(status.errors)}]"),
                ("Endpoint", quote(one.endpoint.encode())),
            )
            _out("\n")

    def hashes(self, found: Sequence[EndpointHash]) -> None:
        for one in found:
            self._header(one.reply.header)
            self._lines(("Endpoint", quote(one.endpoint.encode())), ("Hash", one.reply.hash))
            _out("\n")

    def healths(self, found: Sequence[EndpointHealth]) -> None:
        for one in found:
            self._lines(
                ("Endpoint", quote(one.endpoint.encode())),
                ("Health", _bool(one.healthy)),
                ("Took", one.took),
                ("Error", one.error),
            )
            _out("\n")


class TablePrinter(Printer):
    """A drawn table: headings in the middle, cells to the right."""

    form = "table"
    unsupported = frozenset({"put", "get", "delete", "txn", "watch", "alarms", "change"})

    @staticmethod
    def draw(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
        rule = "+" + "".join("-" * (width + 2) + "+" for width in widths) + "\n"

        def line(cells: Sequence[str]) -> str:
            return "|" + "".join(f" {cell} |" for cell in cells) + "\n"

        heading = [
            " " * ((width - len(text)) // 2) + text + " " * (width - len(text) - (width - len(text)) // 2)
            for text, width in zip(headings, widths, strict=True)
        ]
        body = "".join(
            line([cell.rjust(width) for cell, width in zip(row, widths, strict=True)]) for row in rows
        )
        _out(rule + line(heading) + rule + body + rule)

    def members(self, reply: rpc_pb2.MemberListResponse) -> None:
        self.draw(
            ("ID", "STATUS", "NAME", "PEER ADDRS", "CLIENT ADDRS", "IS LEARNER"),
            [_member_cells(member) for member in reply.members],
        )

    def statuses(self, found: Sequence[EndpointStatus]) -> None:
        self.draw(
            (
                "ENDPOINT",
                "ID",
                "VERSION",
                "DB SIZE",
                "IS LEADER",
                "IS LEARNER",
                "RAFT TERM",
                "RAFT INDEX",
                "RAFT APPLIED INDEX",
                "ERRORS",
            ),
            [_status_cells(one) for one in found],
        )

    def hashes(self, found: Sequence[EndpointHash]) -> None:
        self.draw(("ENDPOINT", "HASH"), [(one.endpoint, str(one.reply.hash)) for one in found])

    def healths(self, found: Sequence[EndpointHealth]) -> None:
        self.draw(
            ("ENDPOINT", "HEALTH", "TOOK", "ERROR"),
            [(one.endpoint, _bool(one.healthy), one.took, one.error) for one in found],
        )


class ProtobufPrinter(Printer):
    form = "protobuf"
    unsupported = frozenset({"statuses", "healths", "hashes"})

    def _print(self, reply: Message) -> None:
        _out(reply.SerializeToString())

    put = get = delete = txn = alarms = members = _print

    def watch(self, reply: rpc_pb2.WatchResponse) -> None:
        shown = rpc_pb2.WatchResponse()
        shown.CopyFrom(reply)
        for field in ("watch_id", "cancel_reason"):  # etcdctl's client keeps them to itself
            shown.ClearField(field)
        self._print(shown)

    def change(self, reply: Message, line: str) -> None:
        self._print(reply)


def printer(form: str, *, in_hex: bool, values_only: bool = False) -> Printer:
    """The printer of a form that is known (`options.FORMATS`)."""
    match form:
        case "json":
            return JsonPrinter(in_hex=in_hex)
        case "fields":
            return FieldsPrinter()
        case "table":
            return TablePrinter()
        case "protobuf":
            return ProtobufPrinter()
        case _:
            return SimplePrinter(in_hex=in_hex, values_only=values_only)
